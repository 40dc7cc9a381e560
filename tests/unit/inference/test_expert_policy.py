"""FastWAM's way to act: the trunk once over the observed frames, then steps of the expert alone, with the same actions."""

from typing import Any

import numpy as np
import pytest
import torch

from wam_video.errors import ConfigError
from wam_video.flow.modes import POLICY_PATHS, path_grid
from wam_video.flow.solvers import sample
from wam_video.inference.checks import unanswered
from wam_video.inference.inputs import batch_conditions
from wam_video.inference.noise import make_generators
from wam_video.inference.outputs import physical_actions
from wam_video.inference.pipeline import WAMPipeline
from wam_video.inference.sampling import SamplingConfig, VelocityField, prepare
from wam_video.tensors import Batch
from wam_video.testing import fake_batch, tiny_pipeline

FASTWAM = {"video_sees_actions": False, "actions_see_video": "observed"}
EXPERT = {"dim": 10, "ffn_dim": 20}


def pipeline(rule: dict[str, Any], **options: Any) -> WAMPipeline:
    return tiny_pipeline(model={"attention": rule, "expert": EXPERT}, **options)


def calls(pipe: WAMPipeline) -> dict[str, int]:
    """How often a layer of each tower, and the patch embedding, are computed from now on."""
    counts = {"trunk": 0, "expert": 0, "patches": 0}
    layers = {"trunk": pipe.transformer.blocks[0].ffn, "expert": pipe.transformer.expert.blocks[0].ffn}
    for name, layer in (layers | {"patches": pipe.transformer.patch_embedding}).items():
        layer.register_forward_hook(lambda *_, name=name: counts.update({name: counts[name] + 1}))
    return counts


def whole_pass(pipe: WAMPipeline, batch: Batch, guidance: float, solver: str) -> np.ndarray:
    """The policy with every token computed at each of four steps."""
    spec, device = POLICY_PATHS["unknown"], torch.device("cpu")
    conditions = batch_conditions(pipe.processor, batch, spec, 0)
    generators = make_generators(list(range(len(batch))), len(batch))
    prepared = prepare(
        pipe.vae, pipe.processor, conditions, spec, generators, pipe.transformer, device, pipe.image_context()
    )
    guided = guidance != 1
    texts = [encode(pipe, batch.prompts)]
    texts += [encode(pipe, [""] * len(batch))] if guided else []
    inputs = dict(prepared.inputs, num_context=prepared.num_context)
    sampling = SamplingConfig(path=pipe.scheduler.path(4), solver=solver, guidance=(guidance, guidance))
    field = VelocityField(pipe.transformer, inputs, torch.cat(texts), sampling, guided=guided)
    grid = path_grid(spec, pipe.scheduler.path(4))
    end = sample(field, prepared.start, prepared.pattern, grid, solver=solver)
    return physical_actions(pipe.processor, end.actions, conditions).numpy()


def encode(pipe: WAMPipeline, prompts: Any) -> torch.Tensor:
    from wam_video.models.text import encode_text

    return torch.cat([encode_text(pipe.tokenizer, pipe.text_encoder, [prompt]) for prompt in prompts])


@pytest.mark.parametrize(("guidance", "solver"), [(1.0, "euler"), (2.5, "euler"), (1.0, "heun"), (1.0, "ab2")])
@pytest.mark.parametrize("views", [1, 2])
@torch.no_grad()
def test_a_policy_call_is_one_trunk_pass_and_expert_steps(guidance: float, solver: str, views: int) -> None:
    pipe = pipeline(FASTWAM, views=views)
    batch = fake_batch(pipe)
    expected = whole_pass(pipe, batch, guidance, solver)
    counts = calls(pipe)
    options = dict(num_inference_steps=4, guidance_scale=guidance, solver=solver, generator=list(range(len(batch))))
    out = pipe.predict(batch, "policy", policy_path="unknown", **options)
    steps = 7 if solver == "heun" else 4
    assert counts == {"trunk": 1, "expert": steps, "patches": 1}
    assert out.video is None
    np.testing.assert_allclose(out.actions, expected, atol=2e-6)
    absent = pipe.predict(batch, "policy", policy_path="absent", **options)
    assert absent.actions.shape == out.actions.shape and counts == {"trunk": 2, "expert": 2 * steps, "patches": 2}


@torch.no_grad()
def test_actions_that_see_the_imagined_video_take_the_trunk_at_each_step() -> None:
    pipe = pipeline({"video_sees_actions": False})
    counts = calls(pipe)
    pipe.predict(fake_batch(pipe), "policy", policy_path="unknown", num_inference_steps=4)
    assert counts == {"trunk": 4, "expert": 4, "patches": 4}


@pytest.mark.parametrize("mode", ["policy", "forward", "inverse", "video", "joint"])
@pytest.mark.parametrize("rule", [{}, FASTWAM, {"actions_see_video": "observed"}, {"pattern": "causal"} | FASTWAM])
@torch.no_grad()
def test_every_mode_runs_with_an_expert_or_is_refused(rule: dict[str, Any], mode: str) -> None:
    pipe = pipeline(rule, codec="wan", views=2)
    batch = fake_batch(pipe)
    if mode in unanswered(pipe.transformer.attention):
        with pytest.raises(ConfigError, match=f"mode is '{mode}', but this network's"):
            pipe.predict(batch, mode)
        return
    out = pipe.predict(batch, mode, num_inference_steps=2, generator=list(range(len(batch))))
    for values in (out.actions, out.video):
        assert values is None or np.isfinite(values).all()
    assert (out.actions is not None) == (mode in ("policy", "inverse", "joint"))
    assert (out.video is not None) == (mode in ("forward", "video", "joint"))
