"""A Diffusion Policy of some thousand parameters for one body of `wam_video.testing`."""

from types import SimpleNamespace
from typing import Any

import torch

from wam_video.data.processor import WAMProcessor
from wam_video.inference.diffusion_policy import DiffusionPolicyPipeline
from wam_video.models.diffusion_policy import DiffusionPolicyTransformer, ddpm_scheduler
from wam_video.models.text import build_byte_t5
from wam_video.tensors import Batch
from wam_video.testing import TinyConfig, fake_batch, tiny_processor

SIZES: dict[str, Any] = {
    **{"dim": 16, "num_layers": 1, "num_attention_heads": 2, "dropout": 0.1},
    **{"backbone_widths": [16, 16], "num_keypoints": 4, "feature_dim": 8},
}


def one_body(size: int = 24) -> WAMProcessor:
    """Return the processor of `arm` alone."""
    both = tiny_processor(TinyConfig(size=size)).config
    body = both["embodiments"][0]
    return WAMProcessor(embodiments=[body], stats={body["name"]: both["stats"][body["name"]]}, window=both["window"])


def windows(processor: WAMProcessor, count: int, seed: int = 0) -> Batch:
    return fake_batch(SimpleNamespace(processor=processor), count, seed)


def tiny_policy(size: int = 24) -> DiffusionPolicyPipeline:
    """Return a pipeline with random weights whose actions depend on what it sees."""
    processor = one_body(size)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer, encoder = build_byte_t5(d_model=16, num_layers=1, num_heads=2, max_length=24, seed=0)
        network = DiffusionPolicyTransformer(
            action_dim=2, state_dim=2, action_horizon=4, num_observations=2, text_dim=16, **SIZES
        )
    with torch.no_grad():
        for parameter in network.parameters():  # as drawn, what is seen hardly counts
            if parameter.ndim > 1:
                parameter.mul_(6)
    return DiffusionPolicyPipeline(
        transformer=network.eval(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        scheduler=ddpm_scheduler(),
        processor=processor,
    )
