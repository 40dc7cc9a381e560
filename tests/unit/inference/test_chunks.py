"""Causal networks in the pipeline: every mode, chunk by chunk, and what a chunk may not know."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wam_video.errors import ConfigError
from wam_video.flow.modes import MODES, Role
from wam_video.inference.checks import unanswered
from wam_video.inference.chunks import remembered
from wam_video.inference.pipeline import WAMPipeline
from wam_video.models.masks import AttentionConfig
from wam_video.tensors import Mode
from wam_video.testing import tiny_pipeline

RULES = {
    "open": {},
    "dreamzero": {"state_sees": "self"},
    "fastwam": {"video_sees_actions": False, "actions_see_video": "observed"},
    "lingbot": {"action_history": True},
    "window": {"window": 1, "sink_chunks": 1},
}
HORIZON, FRAMES = 6, 3
"""Actions and future frames: three chunks of two and one."""


def pipeline(rule: str, **options: Any) -> WAMPipeline:
    attention = {"pattern": "causal", "chunk_frames": 1} | RULES[rule]
    model = {"attention": attention} | options.pop("model", {})
    return tiny_pipeline(num_future_frames=FRAMES, action_horizon=HORIZON, model=model, **options)


def request(mode: str, batch: int = 2, **changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    values: dict[str, Any] = dict(
        mode=mode,
        video=rng.integers(0, 256, (batch, 1, 2 + (FRAMES if mode == "inverse" else 0), 16, 16, 3), dtype=np.uint8),
        state=rng.normal(size=(batch, 2)),
        prompt="push the block",
        embodiment="arm",
        generator=list(range(batch)),
        num_inference_steps=2,
        output_type="pt",
    )
    if mode == "forward":
        values["actions"] = rng.normal(size=(batch, HORIZON, 2))
    return values | changes


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("mode", list(Mode))
def test_every_mode_runs_or_is_refused_and_rows_do_not_know_each_other(rule: str, mode: Mode) -> None:
    pipe, spec = pipeline(rule), MODES[mode]
    if mode in unanswered(pipe.transformer.attention):
        assert rule == "fastwam"
        with pytest.raises(ConfigError, match=f"mode is '{mode.value}', but"):
            pipe(**request(mode))
        return
    out = pipe(**request(mode))
    again = pipe(**request(mode))
    values = request(mode)
    alone = pipe(**{k: v[1:] if k in ("video", "state", "actions", "generator") else v for k, v in values.items()})
    for name, gives, shape in (
        ("actions", spec.gives_actions, (2, HORIZON, 2)),
        ("video", spec.gives_video, (2, 1, FRAMES, 3, 16, 16)),
    ):
        value = getattr(out, name)
        assert (value is not None) == gives, name
        if gives:
            assert value.shape == shape and bool(value.isfinite().all())
            assert torch.equal(value, getattr(again, name))
            torch.testing.assert_close(value[1:], getattr(alone, name), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rule", ["open", "lingbot"])
def test_the_future_does_not_reach_back(rule: str) -> None:
    pipe, given = pipeline(rule), request("forward")
    later = given["actions"].copy()
    later[:, 2:4] += 1.0  # of the second chunk
    a, b = pipe(**given).video, pipe(**request("forward", actions=later)).video
    assert torch.equal(a[:, :, 0], b[:, :, 0])
    assert not torch.equal(a[:, :, 1], b[:, :, 1]) and not torch.equal(a[:, :, 2], b[:, :, 2])
    frames = request("inverse")["video"]
    changed = frames.copy()
    changed[:, :, 3] = 255 - changed[:, :, 3]
    a, b = pipe(**request("inverse")).actions, pipe(**request("inverse", video=changed)).actions
    assert torch.equal(a[:, :2], b[:, :2]) and not torch.equal(a[:, 2:4], b[:, 2:4])
    assert not torch.equal(a[:, 4:], b[:, 4:])


def test_actions_that_see_observed_video_only_do_not_ask_what_is_imagined() -> None:
    """With one chunk; the second of several sees the first as it was imagined."""
    options = {"num_future_frames": 2, "action_horizon": 4}
    for rule, same in (("fastwam", True), ("open", False)):
        attention = {"pattern": "causal", "chunk_frames": 2} | RULES[rule]
        pipe = tiny_pipeline(model={"attention": attention}, **options)
        outs = [pipe(**request("policy", policy_path=path)).actions for path in ("unknown", "absent", "joint")]
        for other in outs[1:]:
            assert torch.allclose(outs[0], other, atol=1e-5) is same


def test_what_must_be_seen_moves_the_actions() -> None:
    for rule in RULES:
        pipe, base = pipeline(rule), request("policy")
        first = pipe(**base).actions
        for name in ("video", "state"):
            changed = 255 - base[name] if name == "video" else base[name] + 0.5
            assert not torch.equal(pipe(**request("policy", **{name: changed})).actions, first), (rule, name)
        assert not torch.equal(pipe(**request("policy", prompt="fold the towel")).actions, first), rule


def test_committed_actions_stay_and_guidance_counts() -> None:
    pipe = pipeline("open")
    prefix = np.random.default_rng(3).normal(size=(2, 3, 2)).astype(np.float32)
    out = pipe(**request("policy", committed_actions=prefix)).actions
    np.testing.assert_allclose(out[:, :3].numpy(), prefix, atol=1e-4)
    plain, guided = (pipe(**request("joint", guidance_scale=scale)) for scale in (1.0, 3.0))
    assert not torch.allclose(plain.video, guided.video) and bool(guided.video.isfinite().all())


def test_steps_are_told_with_the_whole_state() -> None:
    pipe, seen = pipeline("open"), []

    def look(_: Any, step: int, point: torch.Tensor, tensors: dict[str, Any]) -> None:
        seen.append((step, tuple(point.tolist()), tensors["latents"].shape[3], tensors["actions"].shape[1]))

    pipe(**request("joint", callback_on_step_end=look))
    assert [step for step, *_ in seen] == list(range(6))
    assert seen[1][1] == (0, 0) and {entry[2:] for entry in seen} == {(2 + FRAMES, HORIZON)}


def test_a_saved_causal_model_does_the_same(tmp_path: Path) -> None:
    pipe = pipeline("lingbot", model={"action_rope": "index", "embodiment_hidden_dim": 8})
    pipe.save_pretrained(tmp_path)
    loaded = WAMPipeline.from_pretrained(tmp_path)
    assert loaded.transformer.attention == pipe.transformer.attention
    a, b = pipe(**request("joint")), loaded(**request("joint"))
    assert torch.equal(a.actions, b.actions) and torch.equal(a.video, b.video)


def test_what_is_remembered_is_imagined_first() -> None:
    rule = AttentionConfig(pattern="causal", action_history=True)
    spec = remembered(MODES[Mode.VIDEO], rule)
    assert spec.actions is Role.GENERATE and remembered(MODES[Mode.POLICY], rule).video is Role.GENERATE
    assert remembered(MODES[Mode.VIDEO], AttentionConfig(pattern="causal")).actions is Role.UNKNOWN
    assert remembered(MODES[Mode.INVERSE], rule) == MODES[Mode.INVERSE]


def test_windows_that_are_no_whole_number_of_chunks_are_refused() -> None:
    pipe = tiny_pipeline(num_future_frames=3, model={"attention": {"pattern": "causal", "chunk_frames": 2}})
    with pytest.raises(ConfigError, match="chunk_frames"):
        pipe(**request("policy"))
