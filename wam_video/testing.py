"""Tiny models and made-up recordings for tests: every part real, weights random, nothing read from disk.

`tiny_pipeline` has two bodies of different widths (and a third without actions on request); `fake_batch` makes windows that
fit it. All of it comes from seeds, in milliseconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from wam_video.data.encode import WriterConfig
from wam_video.data.normalize import FIELDS, Stats, compute_stats, save_stats, stats_hash
from wam_video.data.processor import WAMProcessor
from wam_video.data.schema import EmbodimentSpec, Episode
from wam_video.data.video import ArrayView
from wam_video.data.writer import ShardWriter
from wam_video.flow.path import PredictionType
from wam_video.flow.scheduler import WAMScheduler
from wam_video.inference.pipeline import WAMPipeline
from wam_video.models.image_encoder import image_processor
from wam_video.models.text import build_byte_t5
from wam_video.models.transformer import WAMTransformer
from wam_video.models.video_codec import PixelCodec, latent_channels, temporal_factor
from wam_video.tensors import Batch

BODIES = (("arm", 2, 2), ("hand", 5, 3))
"""Name, action width, state width."""
ACTION_FREE = ("clips", 0, 0)
CLIP_DIM = 32
"""Width of `tiny_clip`."""
PROMPTS = ("push the block", "fold the towel", "")


@dataclass(frozen=True, kw_only=True)
class TinyConfig:
    """A model that runs in milliseconds."""

    codec: str = "pixel"
    """`pixel` or `wan` (a random `AutoencoderKLWan`, 4 frames and 8x8 pixels a latent)."""
    views: int = 1
    """1 or 2; of two, only the first body has both."""
    size: int = 16
    num_context_frames: int | None = None
    """None: 2 for `pixel`, 5 for `wan`."""
    num_future_frames: int | None = None
    """None: 2 for `pixel`, 4 for `wan`."""
    action_horizon: int = 4
    action_free: bool = False
    """Add a third body without actions or state."""
    num_layers: int = 2
    video_prediction: PredictionType = "velocity"
    action_prediction: PredictionType = "velocity"
    residual_video: bool = False
    image: bool = False
    """Of Wan's image-to-video shape: first-frame condition and a random CLIP."""
    model: dict[str, Any] = field(default_factory=dict)
    """More arguments of `WAMTransformer`."""
    seed: int = 0

    @property
    def window(self) -> dict[str, Any]:
        """The fields of `WindowConfig`."""
        wan = self.codec == "wan"
        return {
            "num_context_frames": self.num_context_frames or (5 if wan else 2),
            "num_future_frames": self.num_future_frames or (4 if wan else 2),
            "context_stride_s": 0.2,
            "future_stride_s": 0.2,
            "action_horizon": self.action_horizon,
            "max_views": self.views,
            "height": self.size,
            "width": self.size,
        }

    @property
    def bodies(self) -> tuple[tuple[str, int, int], ...]:
        """Name, action width and state width of each body."""
        return (*BODIES, ACTION_FREE) if self.action_free else BODIES


def tiny_pipeline(**options: Any) -> WAMPipeline:
    """Return a pipeline with random weights; `options` are the fields of `TinyConfig`.

    Unlike a freshly built network, every output depends on every input: the layers that start at zero are filled too.
    """
    config = TinyConfig(**options)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        vae = tiny_wan_vae() if config.codec == "wan" else PixelCodec(patch_size=4)
        tokenizer, encoder = build_byte_t5(d_model=16, num_layers=1, num_heads=2, max_length=24, seed=config.seed)
        transformer = tiny_transformer(config, latent_channels(vae), temporal_factor(vae))
        clip = tiny_clip() if config.image else None
    return WAMPipeline(
        transformer=transformer.eval(),
        vae=vae.eval(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        scheduler=WAMScheduler(num_inference_steps=2),
        processor=tiny_processor(config),
        image_encoder=clip,
        image_processor=clip and image_processor(clip, "crop"),
    )


def tiny_transformer(config: TinyConfig, in_channels: int, mask_channels: int = 0) -> WAMTransformer:
    """Return a network of some ten thousand parameters, drawn from torch's global generator."""
    image: dict[str, Any] = dict(
        condition_channels=mask_channels + in_channels, image_dim=CLIP_DIM, added_kv_proj_dim=24
    )
    extra: dict[str, Any] = {"num_registers": 2} | (image if config.image else {}) | config.model
    bodies = [{"name": name, "action_dim": action, "state_dim": state} for name, action, state in config.bodies]
    transformer = WAMTransformer(
        embodiments=bodies,
        num_views=config.views,
        in_channels=in_channels,
        patch_size=(1, 1, 1) if config.codec == "wan" else (1, 2, 2),
        num_layers=config.num_layers,
        num_attention_heads=2,
        attention_head_dim=12,
        ffn_dim=48,
        freq_dim=32,
        text_dim=16,
        video_prediction=config.video_prediction,
        action_prediction=config.action_prediction,
        residual_video=config.residual_video,
        **extra,
    )
    for parameter in transformer.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return transformer


def tiny_clip() -> CLIPVisionModel:
    """Return a random CLIP vision encoder of 17 tokens, drawn from torch's global generator."""
    config = CLIPVisionConfig(
        hidden_size=CLIP_DIM,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=7,
    )
    return CLIPVisionModel(config).requires_grad_(False).eval()


def tiny_wan_vae() -> AutoencoderKLWan:
    """Return a random Wan video VAE of three channels a latent, drawn from torch's global generator."""
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.1, 0.2, 0.0],
        latents_std=[0.5, 1.0, 0.8, 1.2],
    )


def tiny_processor(config: TinyConfig) -> WAMProcessor:
    """Return a processor with made-up statistics of every body."""
    stats = fake_stats(config)
    specs = [
        {
            "name": name,
            "action_dim": action,
            "state_dim": state,
            "views": ["front", "wrist"][: config.views if i == 0 else 1],
            "fps": 5.0,
            "action_rate": 10.0 if action else 0.0,
        }
        for i, (name, action, state) in enumerate(config.bodies)
    ]
    return WAMProcessor(embodiments=specs, stats=stats, window=config.window, stats_hash=stats_hash(stats))


def fake_stats(config: TinyConfig) -> Stats:
    """Return statistics as `data.normalize.compute_stats` would: actions in about -2..4, different in each dimension."""
    rng = np.random.default_rng(config.seed)
    stats: Stats = {}
    for name, *widths in config.bodies:
        stats[name] = {}
        for quantity, width in zip(("actions", "state"), widths, strict=True):
            if width:
                values = rng.normal(1.0, 0.5 + rng.random(width), (200, width)).astype(np.float32)
                rows = (
                    values.mean(0),
                    values.std(0),
                    values.min(0),
                    values.max(0),
                    *np.quantile(values, [0.01, 0.99], axis=0),
                )
                fields = {field: [float(np.float32(x)) for x in row] for field, row in zip(FIELDS, rows, strict=True)}
                stats[name][quantity] = fields | {"count": len(values)}
    return stats


def fake_batch(pipeline: WAMPipeline, batch_size: int = 4, seed: int = 0) -> Batch:
    """Return windows of noise that fit the pipeline, its bodies in turn; nothing is missing but what a body lacks."""
    processor, window = pipeline.processor, pipeline.processor.window
    rng = np.random.default_rng(seed)
    specs = [processor.spec(body["name"]) for body in processor.config.embodiments]
    specs = [specs[i % len(specs)] for i in range(batch_size)]
    frames = window.num_context_frames + window.num_future_frames
    views = max(min(len(spec.views), window.max_views) for spec in specs)
    has_view = torch.arange(views)[None] < torch.tensor([len(spec.views) for spec in specs])[:, None]
    shape = (batch_size, views, 3, frames, window.height or 16, window.width or 16)
    video = torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8)) * has_view[:, :, None, None, None, None]
    actions, action_mask = _fake_rows(
        rng, (window.action_horizon,), [s.action_dim for s in specs], processor.max_action_dim
    )
    state, state_mask = _fake_rows(rng, (), [s.state_dim for s in specs], processor.max_state_dim)
    return Batch(
        video=video.to(torch.uint8),
        frame_mask=has_view[:, :, None].repeat(1, 1, frames),
        frame_times=torch.from_numpy(window.frame_times()).float().repeat(batch_size, 1),
        num_context_frames=window.num_context_frames,
        actions=actions,
        action_mask=action_mask,
        action_times=torch.stack([torch.from_numpy(window.action_times(spec.action_rate)).float() for spec in specs]),
        state=state,
        state_mask=state_mask,
        prompts=tuple(PROMPTS[i % len(PROMPTS)] for i in range(batch_size)),
        embodiments=tuple(spec.name for spec in specs),
        datasets=("fake",) * batch_size,
        keys=tuple(f"fake-{i:04d}@{i}" for i in range(batch_size)),
        indices=torch.arange(batch_size),
    )


def _fake_rows(
    rng: np.random.Generator, leading: tuple[int, ...], widths: list[int], width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (len(widths), *leading, max(width, 1))
    mask = torch.arange(shape[-1]) < torch.tensor(widths).reshape(-1, *[1] * (len(leading) + 1))
    mask = mask.expand(shape).contiguous()
    return torch.from_numpy(rng.normal(1.0, 0.7, shape).astype(np.float32)) * mask, mask


def fake_episode(spec: EmbodimentSpec, number: int = 0, num_frames: int = 12, size: int = 16) -> Episode:
    """Return a recording in which a square wanders over a gradient and the actions say where to.

    At the rates of `tiny_processor` (two actions a frame) it has `2 * (num_frames - 1)` actions.
    """
    rng = np.random.default_rng(number)
    per_frame = round(spec.action_rate / spec.fps) if spec.action_dim else 1
    steps = per_frame * (num_frames - 1)
    path = np.cumsum(rng.normal(0, 0.8, (steps + 1, 2)), axis=0) + size / 2
    ramp = np.add.outer(np.arange(size), np.arange(size)) * (255 // (2 * size))
    frames = np.repeat(ramp[None, :, :, None], 3, axis=-1).repeat(num_frames, axis=0).astype(np.uint8)
    for frame, (x, y) in zip(frames, path[::per_frame].clip(2, size - 2).astype(int), strict=True):
        frame[y - 2 : y + 2, x - 2 : x + 2] = (230, 60, 20)
    views = {
        view: ArrayView(frames if i == 0 else 255 - frames, np.arange(num_frames) / spec.fps)
        for i, view in enumerate(spec.views)
    }
    columns = np.tile(path, (1, 4)).astype(np.float32)
    return Episode(
        episode_id=f"{spec.name}-{number:03d}",
        embodiment=spec,
        views=views,
        actions=columns[1:, : spec.action_dim] if spec.action_dim else None,
        state=columns[:, : spec.state_dim] if spec.state_dim else None,
        prompts=(PROMPTS[number % len(PROMPTS)],),
    )


def fake_shards(
    folder: Path, specs: Sequence[EmbodimentSpec], episodes: int = 4, num_frames: int = 12, size: int = 16
) -> Path:
    """Write shards of so many fake episodes of each body, with statistics, and return their folder."""
    config = WriterConfig(
        dataset=folder.name, height=size, width=size, val_fraction=0.3, licence="CC0", source="made up"
    )
    with ShardWriter(folder, config) as writer:
        for spec in specs:
            for number in range(episodes):
                writer.write(fake_episode(spec, number, num_frames, size))
    save_stats(compute_stats(folder), folder)
    return folder
