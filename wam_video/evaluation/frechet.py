"""FVD (Unterthiner et al. 2018): the distance between what generated and recorded clips look like to a video network.

Both sets of clips become features, each set a Gaussian, and the distance is Frechet's between the two. The figure is biased:
too few clips make it too large (2048 are the custom), so it is only comparable at equal counts, and not given at all with
fewer clips than features, where the covariance can't be estimated.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from wam_video.evaluation.perceptual import fill, read_weights

ClipFeatures = Callable[[Float[Tensor, "f 3 h w"]], Float[Tensor, " d"]]
"""From one clip in [0, 1] to its features."""

MIN_FRAMES = 10
"""That I3D can make something of."""

HOW_TO_GET = (
    "needs the weights of a video network: I3D trained on Kinetics-400, as a safetensors file with the names of the usual PyTorch "
    "port (Conv3d_1a_7x7.conv3d.weight to logits.conv3d.bias); give it with --weights fvd=FILE"
)

_SIDE = 224
_BN_EPS = 1e-3
_BLOCKS: dict[str, tuple[int, tuple[int, int, int, int, int, int]]] = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)), "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)), "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)), "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)), "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}  # fmt: skip
_POOLS = {"Mixed_4b": ((3, 3, 3), (2, 2, 2)), "Mixed_5b": ((2, 2, 2), (2, 2, 2))}
"""In front of these blocks: sizes and strides."""


@dataclass(kw_only=True)
class Gaussian:
    """Sums of features, from which mean and covariance follow; adding sums is pooling sets."""

    count: int
    first: Float[Tensor, " d"]
    second: Float[Tensor, "d d"]

    @classmethod
    def of(cls, features: Float[Tensor, "n d"]) -> Self:
        """Return the sums of features (float64)."""
        x = features.double()
        return cls(count=len(x), first=x.sum(dim=0), second=x.T @ x)

    def __add__(self, other: "Gaussian") -> "Gaussian":
        return Gaussian(
            count=self.count + other.count, first=self.first + other.first, second=self.second + other.second
        )

    @property
    def mean(self) -> Float[Tensor, " d"]:
        """Of the features."""
        return self.first / self.count

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        """Of the features, unbiased; needs two of them."""
        return (self.second - self.count * torch.outer(self.mean, self.mean)) / (self.count - 1)


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """Return |m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)) of two Gaussians (Dowson and Landau 1982).

    The last trace is that of the root of A C2 A with A = C1^(1/2), which is symmetric, so real eigenvalues are enough.
    """
    values, vectors = torch.linalg.eigh(first.covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ second.covariance @ root).clamp(min=0).sqrt().sum()
    apart = (first.mean - second.mean).square().sum()
    spread = first.covariance.trace() + second.covariance.trace()
    return float((apart + spread - 2 * cross).clamp(min=0))


class _Unit(nn.Module):
    """Convolution, batch norm and ReLU; padded as TensorFlow's SAME, whose weights these are."""

    def __init__(self, dim: int, out: int, kernel: int = 1, stride: int = 1, *, last: bool = False) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(dim, out, kernel, stride, bias=last)
        self.bn = None if last else nn.BatchNorm3d(out, eps=_BN_EPS)

    def forward(self, x: Float[Tensor, "n c f h w"]) -> Float[Tensor, "n d g i j"]:
        x = self.conv3d(_same(x, self.conv3d.kernel_size, self.conv3d.stride))
        return x if self.bn is None else self.bn(x).relu()


class _Mixed(nn.Module):
    """An Inception block: four branches side by side."""

    def __init__(self, dim: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        self.b0 = _Unit(dim, widths[0])
        self.b1a, self.b1b = _Unit(dim, widths[1]), _Unit(widths[1], widths[2], 3)
        self.b2a, self.b2b = _Unit(dim, widths[3]), _Unit(widths[3], widths[4], 3)
        self.b3b = _Unit(dim, widths[5])

    def forward(self, x: Float[Tensor, "n c f h w"]) -> Float[Tensor, "n d f h w"]:
        pooled = _pool(x, (3, 3, 3), (1, 1, 1))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)], dim=1)


class I3D(nn.Module):
    """Inflated Inception (Carreira and Zisserman 2017) with the names of the usual PyTorch port; Kinetics-400 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = _Unit(3, 64, 7, 2)
        self.Conv3d_2b_1x1 = _Unit(64, 64)
        self.Conv3d_2c_3x3 = _Unit(64, 192, 3)
        for name, (dim, widths) in _BLOCKS.items():
            self.add_module(name, _Mixed(dim, widths))
        self.logits = _Unit(1024, 400, last=True)

    def forward(self, x: Float[Tensor, "n 3 f h w"]) -> Float[Tensor, "n 400"]:
        """Return the logits of clips in [-1, 1], averaged over time."""
        x = _pool(self.Conv3d_1a_7x7(x), (1, 3, 3), (1, 2, 2))
        x = _pool(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)), (1, 3, 3), (1, 2, 2))
        for name in _BLOCKS:
            x = self.get_submodule(name)(_pool(x, *_POOLS[name]) if name in _POOLS else x)
        x = self.logits(F.avg_pool3d(x, (2, 7, 7), stride=1))
        return x.mean(dim=(2, 3, 4))


def load_i3d(path: str | Path) -> ClipFeatures:
    """Return I3D with the weights of a safetensors file, as a function of one clip in [0, 1] of `MIN_FRAMES` or more.

    Raises:
        CheckpointError: The file is missing, no safetensors file, or of another network.
    """
    network = I3D()
    fill("fvd", path, network, read_weights("fvd", path))

    @torch.no_grad()
    def features(clip: Float[Tensor, "f 3 h w"]) -> Float[Tensor, " d"]:
        big = F.interpolate(clip.float(), (_SIDE, _SIDE), mode="bilinear", align_corners=False)
        return network(rearrange(big * 2 - 1, "f c h w -> 1 c f h w"))[0]

    return features


def _pool(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    return F.max_pool3d(_same(x, kernel, stride), kernel, stride)


def _same(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    pads: list[int] = []
    for size, k, s in zip(x.shape[2:], kernel, stride, strict=True):
        total = max(k - (size % s or s), 0)
        pads = [total // 2, total - total // 2, *pads]
    return F.pad(x, pads)
