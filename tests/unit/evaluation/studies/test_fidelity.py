from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests.unit.evaluation import toy_world
from tests.unit.evaluation.studies.toy_subject import toy_processor, toy_subject
from wam_video.data import optical_flow as flow_module
from wam_video.evaluation.open_loop import Generated
from wam_video.evaluation.perceptual import perceptual_distance
from wam_video.evaluation.studies.fidelity import Fidelity, Networks
from wam_video.evaluation.study import StudyOptions
from wam_video.models.masks import AttentionConfig
from wam_video.models.video_codec import PixelCodec
from wam_video.tensors import Mode


def subject(sampler, n=24, **changes):
    transformer = SimpleNamespace(attention=changes.pop("attention", AttentionConfig()))
    pipe = SimpleNamespace(transformer=transformer, processor=toy_processor(), vae=PixelCodec())
    return toy_subject(sampler, n, pipe=pipe, **changes)


class Leaky(toy_world.ToyModel):
    """Shows the recorded future in every mode that draws."""

    def __call__(self, mode, batch, seeds):
        made = super().__call__(mode, batch, seeds)
        if made.video is None:
            return made
        return replace(made, video=batch.video.movedim(2, 3)[:, :, toy_world.CONTEXT :].float() / 255)


def noisy(model, sigma=0.05):
    """A model whose pixels are a little off, as those of a real one are."""

    def sample(mode, batch, seeds):
        made = model(mode, batch, seeds)
        if made.video is None:
            return made
        g = torch.Generator().manual_seed(seeds[0] % 2**31)
        return Generated(
            actions=made.actions, video=(made.video + sigma * torch.randn(made.video.shape, generator=g)).clamp(0, 1)
        )

    return sample


def figure(findings, condition, metric, time_s=None, view=None):
    (row,) = [
        r for r in findings.rows if (r.condition, r.metric, r.time_s, r.view) == (condition, metric, time_s, view)
    ]
    return row.estimate.value


def status(findings):
    return {a.check.name: a.status for a in findings.answers}


def test_a_model_that_knows_the_world_passes_every_question() -> None:
    found = Fidelity().run(subject(noisy(toy_world.ToyModel())))
    assert set(status(found).values()) == {"yes"}
    assert figure(found, "forward", "psnr_moving") > figure(found, "forward_shuffled", "psnr_moving") + 3
    assert figure(found, "forward", "flow_epe_moving") < figure(found, "copy_last", "flow_epe_moving")


@pytest.mark.parametrize(
    ("model", "flags"),
    [
        (toy_world.ToyModel("frozen"), {"fidelity_beats_copy", "fidelity_moves_right", "fidelity_uses_actions"}),
        (toy_world.ToyModel("forward_ignores_actions"), {"fidelity_uses_actions", "fidelity_beats_video"}),
        (Leaky(), {"fidelity_below_ceiling", "fidelity_video_below_ceiling", "fidelity_joint_below_ceiling"}),
    ],
    ids=["frozen", "ignores the actions", "leaked future"],
)
def test_a_broken_model_is_flagged(model, flags) -> None:
    answers = status(Fidelity().run(subject(model)))
    assert {name for name, answer in answers.items() if answer == "no"} >= flags


def test_figures_by_step_are_of_future_frames_and_do_not_depend_on_the_batch() -> None:
    found = Fidelity().run(subject(noisy(toy_world.ToyModel(), 0.0)))
    times = {r.time_s for r in found.rows if r.metric == "psnr"} - {None}
    assert times == {0.2, 0.4, 0.6}
    assert [figure(found, "forward", "psnr", t) for t in sorted(times)] == [100, 100, 100]
    again = Fidelity().run(subject(noisy(toy_world.ToyModel(), 0.0), batch_size=5))
    assert [r.to_dict() for r in found.rows] == [r.to_dict() for r in again.rows]


def test_what_is_missing_is_named_and_has_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(flow_module.MissingDependencyError):
        flow_module.load_opencv()
    attention = AttentionConfig(video_sees_actions=False)
    found = Fidelity().run(subject(toy_world.ToyModel(), 8, attention=attention))
    left = dict(found.left_out)
    assert {"flow_epe", "lpips", "fvd", "fidelity of forward"} <= set(left)
    assert "metrics" in left["flow_epe"] and "--weights lpips=" in left["lpips"] and "--weights fvd=" in left["fvd"]
    measured = {r.metric for r in found.rows}
    assert measured == {"psnr", "psnr_moving", "ssim"}
    assert "forward" not in {r.condition for r in found.rows}


def tiny_networks(min_frames=2, width=4):
    g = torch.Generator().manual_seed(0)
    kernel = torch.randn(width, 3, 3, 3, generator=g)

    def maps(x):
        return [torch.nn.functional.conv2d(x, kernel)]

    def clip(video):
        return maps(video * 2 - 1)[0].relu().mean(dim=(0, 2, 3))

    def lpips(path):
        return lambda a, b: perceptual_distance(maps, [torch.ones(width)], a, b)

    return Networks(lpips=lpips, fvd=lambda path: clip, min_clip_frames=min_frames)


def test_given_networks_score_through_the_same_path() -> None:
    options = StudyOptions(weights={"lpips": "a", "fvd": "b"})
    perfect = Fidelity(tiny_networks()).run(subject(Leaky(), options=options))
    assert figure(perfect, "forward", "lpips") == pytest.approx(0, abs=1e-9)
    assert figure(perfect, "forward", "fvd") == pytest.approx(0, abs=1e-6)
    model = Fidelity(tiny_networks()).run(subject(noisy(toy_world.ToyModel()), options=options))
    assert 0 < figure(model, "forward", "lpips") < figure(model, "forward_shuffled", "lpips")
    worse = Fidelity(tiny_networks()).run(subject(noisy(toy_world.ToyModel(), 0.3), options=options))
    assert figure(model, "forward", "fvd") < figure(worse, "forward", "fvd")
    assert not [name for name, _ in model.left_out if name in ("lpips", "fvd")]


@pytest.mark.parametrize(
    ("networks", "reason"), [(tiny_networks(9), "needs 9"), (tiny_networks(width=40), "fewer than")]
)
def test_fvd_is_left_out_with_too_few_frames_or_clips(networks, reason) -> None:
    found = Fidelity(networks).run(subject(toy_world.ToyModel(), options=StudyOptions(weights={"fvd": "b"})))
    assert reason in dict(found.left_out)["fvd"]
    assert "fvd" not in {r.metric for r in found.rows}


def test_two_cameras_are_told_apart() -> None:
    spec = replace(toy_world.SPEC, views=("top", "side"))

    def fetch(indices):
        batch = toy_world.fetch(indices)
        masks = batch.frame_mask.expand(-1, 2, -1)
        return replace(batch, video=batch.video.expand(-1, 2, -1, -1, -1, -1).clone(), frame_mask=masks)

    def one_eyed(mode, batch, seeds):
        made = toy_world.ToyModel()(mode, batch, seeds)
        return made if made.video is None else replace(made, video=torch.cat([made.video, made.video.flip(-1)], dim=1))

    case = subject(one_eyed, 8, group=replace(toy_world.make_group(8), spec=spec))
    case.pipe.processor = toy_processor(spec, {**case.pipe.processor.config["window"], "max_views": 2})
    case.data.dataset.batch = fetch
    found = Fidelity().run(case)
    assert figure(found, "forward", "psnr", view="top") > figure(found, "forward", "psnr", view="side") + 10
    assert figure(found, "forward", "psnr", 0.2, "side") == figure(found, "forward", "psnr", 0.2, "side")


def test_modes_that_draw_nothing_are_not_asked() -> None:
    model = toy_world.ToyModel()
    Fidelity().run(subject(model, 4))
    assert {mode for mode, _ in model.calls} == {Mode.FORWARD, Mode.VIDEO, Mode.JOINT}
