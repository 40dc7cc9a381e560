"""A vision transformer with timm's interface, small enough for tests, and a stand-in for timm that builds it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from einops import rearrange
from safetensors.torch import save_file
from torch import nn


class FakeViT(nn.Module):
    """Patches through one layer of tanh, and a class token; at 16x16 pixels a grid of 4x4."""

    num_prefix_tokens = 1

    def __init__(self, channels: int = 8, size: int = 16, cell: int = 4) -> None:
        super().__init__()
        grid = (size // cell, size // cell)
        self.patch_embed = nn.Module()
        self.patch_embed.grid_size, self.patch_embed.img_size = grid, (size, size)
        self.patch_embed.proj = nn.Conv2d(3, channels, cell, cell)
        self.cls = nn.Parameter(torch.randn(1, 1, channels))
        self.norm = nn.BatchNorm1d(channels)  # in training mode it would mix the frames of a batch
        self.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        tokens = rearrange(torch.tanh(3 * self.patch_embed.proj(x)), "b d h w -> b (h w) d")
        tokens = torch.cat([self.cls.expand(len(x), -1, -1), tokens], dim=1)
        return rearrange(self.norm(rearrange(tokens, "b n d -> b d n")), "b d n -> b n d")


class NoGrid(FakeViT):
    """Features that are no row of tokens."""

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return self.patch_embed.proj(x)


def fake_timm() -> SimpleNamespace:
    """Return what of timm the library uses, with the models `fake_vit` and `fake_cnn`."""
    kinds = {"fake_vit": FakeViT, "fake_cnn": NoGrid}

    def create_model(name: str, *, pretrained: bool, num_classes: int) -> Any:
        if pretrained:
            raise RuntimeError("no route to the hub\nand a second line")
        assert num_classes == 0
        return kinds[name]()

    return SimpleNamespace(
        __version__="0", is_model=kinds.__contains__, list_models=lambda: list(kinds), create_model=create_model
    )


def write_weights(path: Path, seed: int = 0) -> str:
    """Write the weights of a `fake_vit`, with a classifier beside them as published files have."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = FakeViT()
    save_file(model.state_dict() | {"head.weight": torch.zeros(2, 8)}, path)
    return str(path)
