"""Guidance in a part of the path and velocities used again: what the network is called with, and what comes out."""

from typing import Any

import numpy as np
import pytest
import torch

from wam_video.errors import ConfigError
from wam_video.inference.pipeline import WAMPipeline
from wam_video.testing import tiny_pipeline

CAUSAL = {"attention": {"pattern": "causal", "chunk_frames": 2}}


@pytest.fixture(scope="module", params=["whole", "causal"])
def pipe(request: pytest.FixtureRequest) -> WAMPipeline:
    pipe = tiny_pipeline(model=CAUSAL if request.param == "causal" else {})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def ask(**options: Any) -> dict[str, Any]:
    video = np.random.default_rng(0).integers(0, 256, (2, 1, 2, 16, 16, 3), dtype=np.uint8)
    return {
        "mode": "policy", "video": video, "state": np.ones((2, 2)), "prompt": "push", "embodiment": "arm", "generator": [3, 4],
        "num_inference_steps": 4, **options,
    }  # fmt: skip


def test_guidance_outside_of_its_interval_costs_no_row(pipe: WAMPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, rows = pipe.transformer.forward, []

    def count(**inputs: Any) -> Any:
        rows.append(len(inputs["latents"]))
        return forward(**inputs)

    monkeypatch.setattr(pipe.transformer, "forward", count)
    outs = {}
    for name, scale, interval in (
        ("none", 1.0, None),
        ("never", 3.0, (0, 0)),
        ("half", 3.0, (0.5, 0.8)),
        ("all", 3.0, None),
    ):
        rows.clear()
        options = {
            "guidance_scale": {"actions": scale},
            **({} if interval is None else {"guidance_interval": interval}),
        }
        outs[name] = pipe(**ask(**options)).actions
        expected = {"none": [2] * 4, "never": [2] * 4, "half": [2, 4, 4, 2], "all": [4] * 4}[name]
        assert rows == expected, name
    np.testing.assert_allclose(outs["never"], outs["none"], atol=1e-5)
    assert not np.allclose(outs["half"], outs["all"], atol=1e-4) and not np.allclose(
        outs["half"], outs["none"], atol=1e-4
    )


def test_reused_velocities_are_counted_and_cost_an_error(pipe: WAMPipeline) -> None:
    full, same, fewer = (pipe(**ask(num_inference_steps=8, reuse_tolerance=x)) for x in (None, 1e-9, 1e9))
    assert (full.calls, same.calls, fewer.calls) == (8, 8, 5)
    np.testing.assert_array_equal(full.actions, same.actions)
    assert 0 < np.abs(full.actions - fewer.actions).max() < 1
    session = pipe.stream(embodiment="arm", prompt="push", batch_size=2)
    session.observe(ask()["video"], np.ones((2, 2)))
    out = session.act(generator=[3, 4], num_inference_steps=8, reuse_tolerance=1e9)
    assert out.calls == 5
    np.testing.assert_allclose(out.actions, fewer.actions, atol=1e-5)


def test_what_can_not_be_is_told(pipe: WAMPipeline) -> None:
    with pytest.raises(ConfigError, match="guidance_interval is"):
        pipe(**ask(guidance_interval=(0.8, 0.2)))


def test_the_prompt_is_encoded_and_projected_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of eight steps and three decisions: one pass of the text encoder, one of the keys and values of each block."""
    pipe, counts = tiny_pipeline(model=CAUSAL), {"text": 0, "keys": 0}

    def counted(module: torch.nn.Module, name: str) -> None:
        module.register_forward_hook(lambda *_: counts.__setitem__(name, counts[name] + 1))

    counted(pipe.text_encoder, "text")
    blocks = [module for name, module in pipe.transformer.named_modules() if name.endswith("attn2.to_k")]
    assert len(blocks) == 2
    for block in blocks:
        counted(block, "keys")
    session = pipe.stream(embodiment="arm", prompt="push")
    rng = np.random.default_rng(0)
    for _ in range(3):
        session.observe(rng.integers(0, 256, (1, 1, 2, 16, 16, 3), dtype=np.uint8), np.ones((1, 2)))
        session.act(num_inference_steps=8, generator=0)
    assert counts == {"text": 1, "keys": len(blocks)}
    session.prompt("pull")
    session.act(num_inference_steps=8, generator=0)
    assert counts == {"text": 2, "keys": 2 * len(blocks)}
