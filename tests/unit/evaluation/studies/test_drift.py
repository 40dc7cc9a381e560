from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.unit.evaluation.line_world import SPEC as LINE_SPEC
from tests.unit.evaluation.line_world import LineWorld
from tests.unit.evaluation.long_world import NUM_EPISODES, LongWorld
from tests.unit.evaluation.studies.toy_subject import toy_processor, toy_subject
from tests.unit.evaluation.toy_world import SIDE, SPEC, make_group
from wam_video.data.windows import WindowConfig
from wam_video.evaluation.drift_scores import change_sums, drift_scores, drift_sums
from wam_video.evaluation.long_rollout import make_grid
from wam_video.evaluation.open_loop import Generated
from wam_video.evaluation.stretches import recorded_stretches, simulated_stretches, still_stretches
from wam_video.evaluation.studies.drift import Drift
from wam_video.models.masks import AttentionConfig
from wam_video.models.video_codec import PixelCodec

FIELDS = {
    "num_context_frames": 2, "num_future_frames": 2, "context_stride_s": 0.2, "future_stride_s": 0.4,
    "action_horizon": 4, "height": SIDE, "width": SIDE,
}  # fmt: skip
WINDOW = WindowConfig(**FIELDS)


def subject(world, sampler, **changes):
    transformer = SimpleNamespace(attention=changes.pop("attention", AttentionConfig()))
    pipe = SimpleNamespace(transformer=transformer, processor=toy_processor(SPEC, FIELDS), vae=PixelCodec())
    data = SimpleNamespace(dataset=world.dataset, facts={}, groups=())
    return toy_subject(sampler, pipe=pipe, data=data, group=make_group(8), **changes)


def value(findings, condition, metric, time_s=None):
    (row,) = [r for r in findings.rows if (r.condition, r.metric, r.time_s) == (condition, metric, time_s)]
    return row.estimate.value


def status(findings):
    return {a.check.name: a.status for a in findings.answers}


def test_a_model_that_knows_the_world_never_drifts() -> None:
    world = LongWorld(WINDOW, still=12)
    found = Drift(num_frames=20).run(subject(world, world.model()))
    assert set(status(found).values()) == {"yes"}
    assert set(status(found)) == {
        "drift_beats_held", "drift_uses_actions", "drift_keeps_static", "drift_stays_sharp", "drift_stands_still",
    }  # fmt: skip
    assert value(found, "rollout", "psnr_moving") == 100
    assert value(found, "rollout", "static_drift") == 0
    assert value(found, "rollout", "sharpness") == pytest.approx(1)
    assert value(found, "rollout", "still_change") == value(found, "still_real", "still_change") == 0
    assert value(found, "moving_real", "still_change") > 1


@pytest.mark.parametrize(
    ("broken", "flags"),
    [
        ("frozen", {"drift_beats_held"}),
        ("ignores the actions", {"drift_uses_actions"}),
        ("wears away", {"drift_keeps_static"}),
    ],
)
def test_a_broken_model_is_flagged(broken, flags) -> None:
    world = LongWorld(WINDOW, still=12)
    found = status(Drift(num_frames=20).run(subject(world, world.model(broken))))
    assert {name for name, answer in found.items() if answer == "no"} >= flags


def test_a_model_that_makes_up_motion_is_flagged_where_nothing_happens() -> None:
    world = LongWorld(WINDOW, still=12)

    def restless(mode, batch, seeds):
        made = world.model()(mode, batch, seeds)
        moves = [torch.randint(-4, 5, (2,), generator=torch.Generator().manual_seed(s % 2**31)).tolist() for s in seeds]
        rows = [torch.roll(v, tuple(m), dims=(-2, -1)) for v, m in zip(made.video, moves, strict=True)]
        return Generated(actions=None, video=torch.stack(rows))

    assert status(Drift(num_frames=10).run(subject(world, restless)))["drift_stands_still"] == "no"


def test_a_picture_that_turns_to_noise_or_grey_is_flagged() -> None:
    world = LongWorld(WINDOW)
    noisy = Drift(num_frames=20).run(subject(world, world.model(noise=60)))
    assert value(noisy, "rollout", "sharpness") > 2
    assert status(noisy)["drift_stays_sharp"] == "no"

    def blurred(mode, batch, seeds):
        video = world.model()(mode, batch, seeds).video
        pooled = torch.nn.functional.avg_pool2d(video.flatten(0, 2), 7, stride=1, padding=3)
        return Generated(actions=None, video=pooled.reshape(video.shape))

    soft = Drift(num_frames=20).run(subject(world, blurred))
    assert value(soft, "single_step", "sharpness") < 0.5
    assert status(soft)["drift_stays_sharp"] == "no"


def test_recordings_that_are_too_short_are_measured_as_far_as_they_go_and_named() -> None:
    world = LongWorld(WINDOW)
    found = Drift().run(subject(world, world.model()))
    reasons = dict(found.left_out)
    assert "29 to 29 of 200 frames" in reasons["drift over 200 frames"]
    assert "--env" in reasons["still_change"]
    times = {r.time_s for r in found.rows} - {None}
    assert max(times) == pytest.approx(29 * 0.4) and len(times) == 20
    assert len(found.films) == 2 and len(found.films[0].frames) <= 41


def test_any_batch_size_gives_the_same_rows() -> None:
    world = LongWorld(WINDOW, still=12)
    rows = [
        [r.to_dict() for r in Drift(num_frames=9).run(subject(world, world.model(noise=3), batch_size=size)).rows]
        for size in (16, 3)
    ]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("what", ["attention", "strides"])
def test_what_cannot_be_rolled_out_says_why(what) -> None:
    world = LongWorld(WINDOW)
    case = subject(world, world.model(), attention=AttentionConfig(video_sees_actions=what != "attention"))
    if what == "strides":
        case.pipe.processor = toy_processor(SPEC, {**FIELDS, "num_future_frames": 0})
    found = Drift().run(case)
    assert not found.rows and [name for name, _ in found.left_out] == ["drift"]


def test_the_longest_episodes_are_followed_from_their_start() -> None:
    world = LongWorld(WINDOW)
    stretches = recorded_stretches(world.dataset, SPEC, make_grid(WINDOW), 3)
    assert len(stretches) == 3 and all(s.places == tuple(range(s.places[0], s.places[0] + 60)) for s in stretches)
    assert len({s.episode for s in stretches}) == 3 <= NUM_EPISODES


def test_still_moments_are_found_only_where_nothing_moves() -> None:
    for still, expected in ((0, 0), (12, 4)):
        world, grid = LongWorld(WINDOW, still=still), make_grid(WINDOW)
        stretches = recorded_stretches(world.dataset, SPEC, grid, 4)
        moments = [(s.episode, s.fetch, place) for s in stretches for place in s.places]
        found = still_stretches(moments, grid, count=9, num_frames=7)
        assert len(found) == expected
        for stretch in found:
            frames = stretch.frames(range(len(stretch.places)))
            assert bool((frames == frames[0]).all())


def test_a_simulated_stretch_holds_what_the_simulator_did() -> None:
    window = WindowConfig(context_stride_s=0.1, future_stride_s=0.2, action_horizon=4, height=32, width=32)
    grid = make_grid(window)
    made = [
        simulated_stretches(LineWorld, window, grid, count=2, num_frames=12, seed=3, still=still)
        for still in (False, True)
    ]
    for moving, still in zip(*made, strict=True):
        assert grid.reach(len(moving.places)) >= 12 and grid.reach(len(still.places)) >= 12
        assert still.frames(range(25)).float().std(dim=0).max() == 0
        assert moving.frames(range(25)).float().std(dim=0).max() > 0
        batch = moving.fetch(moving.places[2:4])
        assert batch.embodiments == (LINE_SPEC.name,) * 2 and bool(batch.action_mask.all())
        np.testing.assert_allclose(batch.actions[0, 1:], batch.actions[1, :-1])
    again = simulated_stretches(LineWorld, window, grid, count=2, num_frames=12, seed=3)
    assert all(torch.equal(a.frames(range(20)), b.frames(range(20))) for a, b in zip(made[0], again, strict=True))


def test_the_scores_are_those_of_the_definitions() -> None:
    last = torch.full((1, 1, 3, 16, 16), 100, dtype=torch.uint8)
    true = last.repeat(2, 1, 1, 1, 1)
    true[:, :, :, :4] = 200
    video = true.clone()
    video[:, :, :, 4:] += 51  # a fifth of the range, on all that stands still
    s = drift_scores(drift_sums(video, true, last).sum(dim=-1))
    assert float(s["static_drift"]) == pytest.approx(20)
    assert float(s["brightness_drift"]) == pytest.approx(20 * 12 / 16)
    assert float(s["psnr_moving"]) == 100
    total, count = change_sums(torch.stack([last[0], last[0] + 51, last[0] + 102]), second=1)
    assert float(total / count) == pytest.approx(20)
