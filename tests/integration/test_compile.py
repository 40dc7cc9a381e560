"""The denoising step as one graph: no graph break, and no new graph from chunk to chunk once the window is full."""

from typing import Any

import numpy as np
import pytest
import torch

from wam_video.testing import tiny_pipeline

pytestmark = [pytest.mark.compile, pytest.mark.slow]


@pytest.mark.parametrize(("rule", "graphs"), [({}, 1), ({"pattern": "causal", "chunk_frames": 2, "window": 2}, 2)])
def test_the_denoising_step_is_one_graph(rule: dict[str, Any], graphs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, made = tiny_pipeline(model={"attention": rule} if rule else {}), []

    def backend(module: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        made.append(len(inputs))
        return module.forward

    def live() -> np.ndarray:
        session, rng, heard = pipe.stream(embodiment="arm", prompt="push"), np.random.default_rng(0), []
        for _ in range(5):
            session.observe(rng.integers(0, 256, (1, 1, 2, 16, 16, 3), dtype=np.uint8), np.ones((1, 2)))
            heard.append(session.act(generator=0, num_inference_steps=3).actions)
        return np.stack(heard)

    plain = live()
    torch.compiler.reset()
    compiled = torch.compile(pipe.transformer.forward, fullgraph=True, backend=backend)
    monkeypatch.setattr(pipe.transformer, "forward", compiled)
    np.testing.assert_allclose(live(), plain, atol=1e-5)
    assert len(made) == graphs, "one for a window that fills, one for a full one"
