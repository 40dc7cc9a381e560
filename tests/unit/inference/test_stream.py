"""Sessions: who sees what, what is remembered, and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch

from wam_video.errors import ConfigError
from wam_video.inference.pipeline import WAMPipeline
from wam_video.inference.stream import StreamSession
from wam_video.testing import tiny_pipeline

RULES: dict[str, dict[str, Any] | None] = {
    "open": {},
    "history": {"action_history": True, "window": 2},
    "fastwam": {"video_sees_actions": False, "actions_see_video": "observed"},
    "no_chunks": None,
}


def pipeline(rule: str, **options: Any) -> WAMPipeline:
    """A window is one chunk of two frames and four actions, after two frames of context."""
    attention = RULES[rule]
    model = {} if attention is None else {"attention": {"pattern": "causal", "chunk_frames": 2} | attention}
    return tiny_pipeline(model=model, **options)


class Robots:
    """Frames, states and actions of several robots, each from a seed of its own."""

    def __init__(self, seeds: list[int]) -> None:
        self.rngs = [np.random.default_rng(seed) for seed in seeds]

    def video(self, frames: int) -> np.ndarray:
        return np.stack([rng.integers(0, 256, (1, frames, 16, 16, 3), dtype=np.uint8) for rng in self.rngs])

    def state(self) -> np.ndarray:
        return np.stack([rng.normal(1, 0.5, 2) for rng in self.rngs]).astype(np.float32)

    def actions(self, steps: int) -> np.ndarray:
        return np.stack([rng.normal(1, 0.5, (steps, 2)) for rng in self.rngs]).astype(np.float32)


def start(pipe: WAMPipeline, rows: int = 1, **options: Any) -> StreamSession:
    return pipe.stream(**{"embodiment": "arm", "prompt": "push", "batch_size": rows} | options)


def live(session: StreamSession, robots: Robots, chunks: int, rows: list[int] | None = None) -> None:
    """Show the context and then so many chunks, during which others act."""
    session.observe(robots.video(2), robots.state(), rows=rows)
    for _ in range(chunks):
        session.observe(robots.video(2), robots.state(), robots.actions(4), rows=rows)


def act(session: StreamSession, seeds: list[int], **options: Any) -> np.ndarray:
    return session.act(generator=seeds, **options).actions


@pytest.mark.parametrize("path", ["unknown", "absent", "joint"])
@pytest.mark.parametrize("rule", RULES)
def test_a_session_begins_as_the_pipeline_decides(rule: str, path: str) -> None:
    pipe, robots = pipeline(rule), Robots([0, 1])
    session, video, state = start(pipe, 2), robots.video(2), robots.state()
    session.observe(video[:, :, 1:], state)  # of the two context frames the older is missing
    call = dict(state=state, prompt="push", embodiment="arm", generator=[3, 4], policy_path=path)
    shapes = []
    for frames in (video[:, :, 1:], video):
        if frames is video:
            session.reset()
            session.observe(video, state)
        wanted = pipe("policy", frames, **call).actions
        out = session.act(generator=[3, 4], path=path)
        if frames is video or rule == "no_chunks":  # a missing frame is noise, and a session has its own
            np.testing.assert_allclose(out.actions, wanted, atol=1e-5)
        shapes.append(None if out.video is None else out.video.shape)
    assert shapes == [(2, 1, 2, 3, 16, 16) if path == "joint" else None] * 2
    if path == "joint":
        joint = pipe("joint", video, **{k: v for k, v in call.items() if k != "policy_path"})
        np.testing.assert_allclose(out.video, joint.video, atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_rows_are_sessions_of_their_own(rule: str) -> None:
    pipe = pipeline(rule)
    together, worst = start(pipe, 3, prompt=["push", "fold", "lift"], guidance_scale=2.0), 0.0
    live(together, Robots([0, 1, 2]), 3)
    together.reset(rows=[1])
    live(together, Robots([9]), 1, rows=[1])
    some = act(together, [7, 5], rows=[2, 1])
    whole = act(together, [6, 5, 7])
    np.testing.assert_allclose(some[::-1], whole[1:], atol=1e-5)
    for row, (prompt, seed, chunks) in enumerate((("push", 0, 3), ("fold", 9, 1), ("lift", 2, 3))):
        alone = start(pipe, prompt=prompt, guidance_scale=2.0)
        live(alone, Robots([seed]), chunks)
        worst = max(worst, float(np.abs(act(alone, [5 + [1, 0, 2][row]])[0] - whole[row]).max()))
    assert worst < 1e-5


@pytest.mark.parametrize(("rule", "guidance"), [("open", 1.0), ("history", 2.0), ("no_chunks", 1.0)])
def test_rows_keep_their_places_in_whatever_order_they_are_named(rule: str, guidance: float) -> None:
    pipe, answers = pipeline(rule), []
    for order in ([0, 1], [1, 0]):
        session = start(pipe, 2, prompt=["push", "fold"], guidance_scale=guidance)
        live(session, Robots(order), 2, rows=order)
        live_on = Robots([7, 8])
        session.observe(live_on.video(2), live_on.state(), live_on.actions(4))
        answers.append(act(session, [3, 4]))
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_a_row_sees_nothing_of_the_others(rule: str) -> None:
    answers = []
    for other in (1, 2):
        session = start(pipeline(rule), 2)
        live(session, Robots([0, other]), 2)
        session.prompt("fold" if other == 1 else "lift", rows=[1])
        if other == 2:
            session.reset(rows=[1])
            live(session, Robots([5]), 1, rows=[1])
        answers.append(act(session, [3, 4]))
    np.testing.assert_allclose(answers[0][0], answers[1][0], atol=2e-6)  # sums are cut otherwise
    assert np.abs(answers[0][1] - answers[1][1]).max() > 1e-3


@pytest.mark.parametrize("rule", RULES)
def test_what_was_imagined_changes_nothing_that_follows(rule: str) -> None:
    answers = []
    for asked in (0, 1, 3):
        session, robots = start(pipeline(rule)), Robots([0])
        session.observe(robots.video(2), robots.state())
        for number in range(3):
            for again in range(asked):
                act(session, [100 * number + again], path="joint")
            session.observe(robots.video(1), robots.state(), robots.actions(2))
            session.observe(robots.video(1), robots.state(), robots.actions(2))
        answers.append(act(session, [1]))
    assert np.array_equal(answers[0], answers[1]) and np.array_equal(answers[0], answers[2])


def test_what_was_carried_out_is_what_act_gave_unless_it_is_told() -> None:
    pipe = pipeline("history")
    answers = {}
    for told in ("default", "same", "other"):
        session, robots = start(pipe), Robots([0])
        session.observe(robots.video(2), robots.state())
        given = act(session, [1])
        video, state, other = robots.video(2), robots.state(), robots.actions(4)
        session.observe(video, state, {"default": None, "same": given, "other": other}[told])
        answers[told] = act(session, [2])
    np.testing.assert_allclose(answers["default"], answers["same"], atol=1e-6)
    assert np.abs(answers["default"] - answers["other"]).max() > 1e-4


@pytest.mark.parametrize("rule", ["open", "history"])
def test_within_a_chunk_the_rest_of_it_is_decided_and_the_past_of_it_stays(rule: str) -> None:
    session, robots = start(pipeline(rule)), Robots([0])
    session.observe(robots.video(2), robots.state())
    first = act(session, [1])
    frame, state = robots.video(1), robots.state()
    session.observe(frame, state)
    rest = act(session, [1])
    assert first.shape[1] == 4 and rest.shape[1] == 2
    other = start(pipeline(rule))
    robots = Robots([0])
    other.observe(robots.video(2), robots.state())
    other.observe(frame, state, first[:, :2] + 0.5)
    assert np.abs(act(other, [1]) - rest).max() > 1e-4  # what was done counts


def test_nothing_grows_in_two_hundred_chunks() -> None:
    session, robots = start(pipeline("history"), 2), Robots([0, 1])
    live(session, robots, 0)

    def held() -> int:
        memory = session._memory
        tensors = [x for layer in memory._cache.layers for x in (layer.key, layer.value)]
        tensors += [*memory._cache.meta, memory._cache.last_frame]
        for row in memory._rows:
            tensors += [x for x in vars(row).values() if isinstance(x, torch.Tensor)]
            tensors += [x for x in (*row.encoder.features, row.encoder.pending) if isinstance(x, torch.Tensor)]
        return sum(x.untyped_storage().nbytes() for x in tensors)

    sizes = []
    for number in range(200):
        if number % 20 == 0:
            act(session, [1, 2], num_inference_steps=1)
        session.observe(robots.video(2), robots.state(), robots.actions(4))
        sizes.append(held())
    assert len(set(sizes[3:])) == 1
    assert session._memory._cache.counts == (201, 201)


def test_a_stream_does_not_wear_out_with_time() -> None:
    """Only differences of time count, so an old stream decides as a young one that saw the same window."""
    pipe = pipeline("history", num_layers=1)  # one layer sees no further than its window
    old, young = start(pipe), start(pipe)
    live(old, Robots([0]), 30)
    for session in (old, young):
        robots = Robots([5])
        if session is young:
            live(young, Robots([1]), 0)
        for _ in range(3):
            session.observe(robots.video(2), robots.state(), robots.actions(4))
    np.testing.assert_allclose(act(old, [1]), act(young, [1]), atol=2e-5)


def test_the_wan_codec_waits_for_whole_latents_and_decodes_what_comes_next() -> None:
    pipe = tiny_pipeline(codec="wan", model={"attention": {"pattern": "causal", "chunk_frames": 1}})
    robots, answers = Robots([0]), []
    context, later, state = robots.video(5), robots.video(4), robots.state()
    for pieces in ((4,), (1, 1, 1, 1), (3, 1)):
        session = start(pipe)
        session.observe(context, state)
        at = 0
        for count in pieces:
            session.observe(later[:, :, at : at + count], state)
            at += count
        out = session.act(generator=0, path="joint")
        assert out.video.shape == (1, 1, 4, 3, 16, 16) and np.isfinite(out.video).all()
        answers.append(out.actions)
    np.testing.assert_allclose(answers[1], answers[0], atol=1e-6)
    np.testing.assert_allclose(answers[2], answers[0], atol=1e-6)
    with pytest.raises(ConfigError, match="fill no latent"):
        start(pipe).observe(context[:, :, :3], state)


def test_networks_that_are_told_of_the_first_frame_keep_it() -> None:
    pipe = pipeline("open", image=True)
    session, robots = start(pipe, 2, prompt=["push", "fold"]), Robots([0, 1])
    video, state = robots.video(2), robots.state()
    session.observe(video, state)
    wanted = pipe("policy", video, state=state, prompt=["push", "fold"], embodiment="arm", generator=[3, 4])
    np.testing.assert_allclose(act(session, [3, 4]), wanted.actions, atol=1e-5)
    session.reset(rows=[0])
    session.prompt("fold", rows=[0])
    session.observe(video[1:], state[1:], rows=[0])
    out = act(session, [4, 4])
    np.testing.assert_allclose(out[0], out[1], atol=1e-5)
    session.observe(robots.video(2), robots.state())
    assert np.isfinite(act(session, [3, 4])).all()


REFUSED = {
    "frames are of 2 rows": dict(frames=np.zeros((2, 1, 1, 16, 16, 3), np.uint8)),
    "2 views": dict(frames=np.zeros((1, 2, 1, 16, 16, 3), np.uint8)),
    "allowed: uint8": dict(frames=np.zeros((16, 16, 3), np.uint8)),
    "32x32; those of row 0 were 16x16": dict(frames=np.zeros((1, 1, 1, 32, 32, 3), np.uint8)),
    "state is 3 wide": dict(state=np.zeros((1, 3))),
    "not finite": dict(state=np.full((1, 2), np.nan)),
    "actions is 3 wide": dict(actions=np.zeros((1, 2, 3))),
    "actions have 3 steps": dict(actions=np.zeros((1, 3, 2))),
    "0.1 s apart; this checkpoint reads one every 0.2 s .5 frames a second": dict(times=[0.3]),
    "allowed: seconds that rise": dict(times=[0.1]),
    "times are of shape": dict(times=[0.4, 0.6]),
    "row 7 is unknown; allowed: 0 to 0": dict(rows=[7]),
    "each once": dict(rows=[]),
    "rows is 0; give a list": dict(rows=0),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_can_not_come_next_is_told_in_one_line_and_changes_nothing(message: str) -> None:
    session, robots = start(pipeline("open")), Robots([0])
    session.observe(robots.video(2), robots.state(), times=[0.0, 0.2])
    before = act(session, [1])
    call = dict(frames=robots.video(1), state=robots.state()) | REFUSED[message]
    with pytest.raises(ConfigError, match=message) as error:
        session.observe(call.pop("frames"), **call)
    assert "\n" not in str(error.value)
    assert np.array_equal(act(session, [1]), before)
    session.observe(robots.video(1), robots.state(), times=[0.4])


def test_wrong_sessions_and_questions_are_refused() -> None:
    pipe = pipeline("open")
    with pytest.raises(ConfigError, match="observed nothing"):
        start(pipe).act()
    with pytest.raises(ConfigError, match="embodiment is missing"):
        pipe.stream()
    for options, message in (
        ({"embodiment": "leg"}, "embodiment is 'leg'"),
        ({"batch_size": 0}, "batch_size"),
        ({"window": 0}, "window is 0"),
        ({"prompt": ["a", "b"], "batch_size": 3}, "2 entries for 3"),
    ):
        with pytest.raises(ConfigError, match=message):
            start(pipe, **options)
    with pytest.raises(ConfigError, match="no chunks"):
        start(pipeline("no_chunks"), window=3)
    session, robots = start(pipe, 2), Robots([0])
    session.observe(robots.video(2), robots.state(), rows=[1])
    for options, message in (
        ({}, "row 0 has observed nothing"),
        ({"rows": [1], "path": "both"}, "policy_path"),
        ({"rows": [1], "output_type": "pil"}, "output_type"),
        ({"rows": [2]}, "row 2 is unknown"),
    ):
        with pytest.raises(ConfigError, match=message):
            session.act(**options)
    history = start(pipeline("history"))
    history.observe(robots.video(2), robots.state())
    with pytest.raises(ConfigError, match="actions are missing"):
        history.observe(robots.video(1), robots.state())
    with pytest.raises(ConfigError, match="can't go on as a stream"):
        start(pipeline("history", action_horizon=8))


def test_sparse_frames_are_missing_frames_without_chunks_and_dense_ones_are_refused() -> None:
    session, robots = start(pipeline("no_chunks")), Robots([0])
    video, state = robots.video(2), robots.state()
    session.observe(video[:, :, :1], state, times=[10.0])
    session.observe(video[:, :, 1:], state, times=[11.0])
    sparse = act(session, [1])
    session.reset()
    session.observe(video[:, :, 1:], state)
    assert np.array_equal(act(session, [1]), sparse)
    session.reset()
    session.observe(video, state, times=[10.0, 10.2])
    assert not np.array_equal(act(session, [1]), sparse)
    with pytest.raises(ConfigError, match=r"every 0\.2 s"):
        session.observe(robots.video(1), state, times=[10.3])


def test_guidance_is_remembered_for_the_whole_session() -> None:
    pipe = pipeline("open")
    plain, guided = start(pipe), start(pipe, guidance_scale={"actions": 3.0})
    for session in (plain, guided):
        live(session, Robots([0]), 1)
    assert np.abs(act(plain, [1]) - act(guided, [1])).max() > 1e-3


def test_prompts_that_change_leave_nothing_behind() -> None:
    """Keys and values of a prompt with a gradient would keep those of all prompts before them: a server would grow."""
    session = start(pipeline("open"), 2)
    session.observe(Robots([0, 1]).video(2))
    session.prompt("pull", rows=[1])
    kept = [tensor for layer in session._memory._cache.layers for one in layer.contexts for tensor in one.text]
    assert kept and not any(tensor.requires_grad for tensor in kept)
