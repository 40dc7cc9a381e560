"""The baseline's checkpoint: DDPM is right, the future does not leak, folders tell what they are, wrong requests are told."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.evaluation.line_world import SPEC, LineWorld
from tests.unit.inference.tiny_policy import tiny_policy, windows
from wam_video import DiffusionPolicyPipeline, WAMPipeline
from wam_video.errors import CheckpointError, ConfigError
from wam_video.evaluation.agents import ModelAgent, ModelOptions
from wam_video.evaluation.rollout import Job, LoopConfig, roll
from wam_video.inference.diffusion_policy import denoise
from wam_video.inference.opening import open_checkpoint
from wam_video.models.diffusion_policy import ddpm_scheduler
from wam_video.tensors import Mode
from wam_video.testing import tiny_pipeline

MEAN, STD = torch.tensor([0.3, -0.5]), 0.1


def gaussian_noise(x: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """The noise that is to be expected in x if the data are normal: what a perfect network says."""
    kept = ddpm_scheduler().alphas_cumprod[steps][:, None, None]
    return (1 - kept).sqrt() * (x - kept.sqrt() * MEAN) / (kept * STD**2 + 1 - kept)


@pytest.mark.parametrize(("num_steps", "slack"), [(100, 0.015), (20, 0.05)])
def test_a_known_gaussian_comes_out(num_steps: int, slack: float) -> None:
    """The published small variance is too small for few steps, so there the spread comes out narrower."""
    generators = [torch.Generator().manual_seed(i) for i in range(2000)]
    start = torch.cat([torch.randn(1, 1, 2, generator=g) for g in generators])
    end = denoise(ddpm_scheduler(), gaussian_noise, start, generators, num_steps)[:, 0]
    torch.testing.assert_close(end.mean(dim=0), MEAN, atol=0.01, rtol=0)
    torch.testing.assert_close(end.std(dim=0), torch.full((2,), STD), atol=slack, rtol=0)


def act(pipe: DiffusionPolicyPipeline, batch: Any, **options: Any) -> torch.Tensor:
    seeds = list(range(len(batch)))
    return pipe.predict(batch, "policy", generator=seeds, num_inference_steps=10, output_type="pt", **options).actions


def test_it_comes_back_from_its_folder_to_the_bit(tmp_path: Path) -> None:
    pipe = tiny_policy()
    batch = windows(pipe.processor, 3)
    pipe.save_pretrained(tmp_path)
    again = open_checkpoint(tmp_path)
    assert isinstance(again, DiffusionPolicyPipeline)
    assert torch.equal(act(again, batch), act(pipe, batch))
    assert dict(again.scheduler.config)["beta_schedule"] == "squaredcos_cap_v2"


def test_it_reads_the_past_and_nothing_of_the_future() -> None:
    pipe = tiny_policy()
    batch = windows(pipe.processor, 3)
    other = windows(pipe.processor, 3, seed=9)
    k = batch.num_context_frames
    before = act(pipe, batch)
    future = batch.video.clone()
    future[:, :, :, k:] = other.video[:, :, :, k:]
    assert torch.equal(act(pipe, replace(batch, video=future, actions=other.actions)), before)
    for changed in (
        replace(batch, video=other.video),
        replace(batch, state=other.state),
        replace(batch, prompts=("x", "y", "z")),
    ):
        assert not torch.allclose(act(pipe, changed), before, atol=1e-5)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    pipe = tiny_policy()
    batch = windows(pipe.processor, 3)
    first = {f: getattr(batch, f)[:1] for f in ("video", "frame_mask", "frame_times", "actions", "action_mask")}
    first |= {f: getattr(batch, f)[:1] for f in ("action_times", "state", "state_mask", "prompts", "embodiments")}
    alone = act(pipe, replace(batch, **first, datasets=("fake",), keys=batch.keys[:1], indices=batch.indices[:1]))
    torch.testing.assert_close(alone, act(pipe, batch)[:1], atol=1e-5, rtol=0)


def test_committed_actions_come_back_and_a_call_is_a_prediction() -> None:
    pipe = tiny_policy()
    batch = windows(pipe.processor, 2)
    made = act(pipe, batch, committed_steps=1)
    torch.testing.assert_close(made[:, :1], batch.actions[:, :1])
    video = batch.video[:, :, :, : batch.num_context_frames].movedim(2, -1).numpy()
    options = {"generator": [0, 1], "num_inference_steps": 10, "output_type": "pt"}
    called = pipe("policy", video, state=batch.state, prompt=list(batch.prompts), **options)
    assert called.video is None
    torch.testing.assert_close(called.actions, act(pipe, batch))


def test_a_missing_first_frame_is_the_next_one() -> None:
    pipe = tiny_policy()
    batch = windows(pipe.processor, 2)
    mask = batch.frame_mask.clone()
    mask[:, :, 0] = False
    twice = batch.video.clone()
    twice[:, :, :, 0] = twice[:, :, :, 1]
    assert torch.equal(act(pipe, replace(batch, frame_mask=mask)), act(pipe, replace(batch, video=twice)))


@pytest.mark.parametrize(
    ("mode", "options", "told"),
    [
        ("forward", {}, "mode is 'forward', but a Diffusion Policy makes actions"),
        ("polcy", {}, "Did you mean 'policy'"),
        ("policy", {"policy_path": "absent"}, "policy_path is 'absent'"),
        ("policy", {"num_inference_steps": 101}, "num_inference_steps is 101; allowed: 1 to 100"),
        ("policy", {"num_inference_steps": 0}, "num_inference_steps is 0; allowed: 1 to 100"),
        ("policy", {"output_type": "latent"}, "output_type is 'latent'"),
        ("policy", {"generator": [1]}, "generator is a list of 1 for 2 samples"),
    ],
)
def test_wrong_requests_are_told(mode: str, options: dict[str, Any], told: str) -> None:
    pipe = tiny_policy()
    with pytest.raises(ConfigError, match=told):
        pipe.predict(windows(pipe.processor, 2), mode, **options)


def test_a_folder_tells_what_it_is(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "wam")
    tiny_policy().save_pretrained(tmp_path / "dp")
    assert isinstance(open_checkpoint(tmp_path / "wam"), WAMPipeline)
    with pytest.raises(CheckpointError, match=r"'DiffusionPolicyPipeline'; allowed: 'WAMPipeline'"):
        WAMPipeline.from_pretrained(tmp_path / "dp")
    index = tmp_path / "dp" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "WanPipeline"}))
    with pytest.raises(CheckpointError, match="WanPipeline"):
        open_checkpoint(tmp_path / "dp")
    with pytest.raises(CheckpointError, match="no folder"):
        open_checkpoint(tmp_path / "nowhere")


def test_a_checkpoint_of_the_hub_is_the_one_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_policy().save_pretrained(tmp_path)
    asked: list[dict[str, Any]] = []

    def fetch(name: str, **options: Any) -> str:
        asked.append({"name": name} | options)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert isinstance(open_checkpoint("lab/policy", revision="v2"), DiffusionPolicyPipeline)
    assert [(call["name"], call["revision"]) for call in asked] == [("lab/policy", "v2")]


def test_parts_of_two_models_are_refused() -> None:
    pipe = tiny_policy()
    parts = {name: getattr(pipe, name) for name in ("text_encoder", "tokenizer", "scheduler", "processor")}
    other = type(pipe.transformer)(**{**pipe.transformer.config, "action_dim": 3})
    with pytest.raises(CheckpointError, match=r"action_dim is 2 .* and 3 in transformer"):
        DiffusionPolicyPipeline(transformer=other, **parts)


def test_it_acts_in_a_closed_loop_and_films_without_imagining() -> None:
    pipe = tiny_policy(size=32)
    assert pipe.unanswered() == frozenset(Mode) - {Mode.POLICY}
    agent = ModelAgent("tiny", pipe, SPEC, ModelOptions(num_inference_steps=3))
    loop = LoopConfig(max_steps=6, execute=2)
    (episode,) = roll([LineWorld()], agent, [Job(task="near", index=0, filmed=True)], loop)
    assert len(agent.calls) == 3 and not episode.imagined and len(episode.film) == 7
    with pytest.raises(ConfigError, match="policy_path"):
        ModelAgent("tiny", pipe, SPEC, ModelOptions(policy_path="joint"))
