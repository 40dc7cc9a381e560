"""Committed actions: they come back as they are, move the rest, and are checked; alone, in a stream, in any continuation."""

from typing import Any

import numpy as np
import pytest

from wam_video.errors import ConfigError
from wam_video.inference.pipeline import WAMPipeline
from wam_video.testing import tiny_pipeline

CAUSAL = {"attention": {"pattern": "causal", "chunk_frames": 2}}
WAYS = ("prefix", "guided", "replace")


def quiet(model: dict[str, Any] | None = None) -> WAMPipeline:
    pipe = tiny_pipeline(model=model or {})
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipes() -> dict[str, WAMPipeline]:
    return {"whole": quiet(), "causal": quiet(CAUSAL)}


def rows(seed: int, steps: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(1, 0.5, (2, steps, 2)).astype(np.float32)


def request(**options: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "video": rng.integers(0, 256, (2, 1, 2, 16, 16, 3), dtype=np.uint8),
        "state": rng.normal(1, 0.5, (2, 2)).astype(np.float32),
        "prompt": "push",
        "embodiment": "arm",
        "generator": [3, 4],
    } | options


@pytest.mark.parametrize("kind", ["whole", "causal"])
@pytest.mark.parametrize("way", WAYS)
def test_a_stream_and_a_call_commit_alike(pipes: dict[str, WAMPipeline], kind: str, way: str) -> None:
    pipe, call = pipes[kind], request()
    more = {"planned_actions": rows(2, 1)} if way == "guided" else {}
    options = {"committed_actions": rows(1, 2), "continuation": way, **more}
    out = pipe("policy", **call, **options).actions
    np.testing.assert_array_equal(out[:, :2], rows(1, 2))
    free = pipe("policy", **call).actions
    assert (np.abs(out[:, 2:] - free[:, 2:]).max((1, 2)) > 1e-4).all()
    session = pipe.stream(embodiment="arm", prompt="push", batch_size=2)
    session.observe(call["video"], call["state"])
    np.testing.assert_allclose(session.act(generator=[3, 4], **options).actions, out, atol=1e-5)


def test_what_is_planned_draws_only_those_who_are_told(pipes: dict[str, WAMPipeline]) -> None:
    pipe, call = pipes["whole"], request(committed_actions=rows(1, 1), continuation="guided")
    alone, near, far = (
        pipe("policy", **call, planned_actions=plan).actions for plan in (None, rows(2, 2), rows(2, 2) + 3)
    )
    assert (far[:, 1:3] - near[:, 1:3]).mean() > 1e-3, "a plan farther up draws further up"
    assert np.abs(alone[:, 1:] - near[:, 1:]).max() > 1e-4


def test_a_row_without_a_plan_is_not_moved_by_its_neighbours(pipes: dict[str, WAMPipeline]) -> None:
    pipe = pipes["whole"]
    lists = {"committed_actions": [rows(1, 2)[0], rows(1, 0)[1]]}
    for way in WAYS:
        out = pipe("policy", **request(), **lists, continuation=way).actions
        np.testing.assert_allclose(out[1], pipe("policy", **request()).actions[1], atol=1e-5)


def test_actions_that_are_past_count_beside_those_committed(pipes: dict[str, WAMPipeline]) -> None:
    """Half a chunk was carried out; one more action is committed: what is left begins with it."""
    pipe, call = pipes["causal"], request()
    session = pipe.stream(embodiment="arm", prompt="push", batch_size=2)
    session.observe(call["video"], call["state"])
    session.act(generator=[3, 4])
    session.observe(call["video"][:, :, :1], call["state"], rows(5, 2))
    for way in WAYS:
        out = session.act(generator=[5, 6], committed_actions=rows(1, 1), continuation=way).actions
        assert out.shape == (2, 2, 2)
        np.testing.assert_allclose(out[:, :1], rows(1, 1), atol=1e-6)
    with pytest.raises(ConfigError, match="committed_actions has 2 steps; allowed: fewer than 2"):
        session.act(committed_actions=rows(1, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"continuation": "guide"}, "continuation is 'guide'"),
        ({"planned_actions": rows(0, 1)}, "planned_actions are given, but continuation 'prefix' does not read them"),
        ({"committed_actions": rows(0, 4)}, "committed_actions has 4 steps; allowed: fewer than 4"),
        ({"committed_actions": rows(0, 1)[..., :1]}, "committed_actions is 1 wide; embodiment 'arm' has 2"),
    ],
)
def test_what_does_not_fit_is_told(pipes: dict[str, WAMPipeline], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pipes["whole"]("policy", **request(), **options)
