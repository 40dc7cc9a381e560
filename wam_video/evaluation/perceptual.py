"""LPIPS (Zhang et al. 2018): how different two pictures look to an image network, from weights that the user brings.

Only safetensors files are read. TorchScript, in which such networks often travel, is a zip of pickles and of a program that
is run when it is loaded or called; a file of plain tensors and a network written down here can do neither.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from wam_video.errors import CheckpointError, first_line

Features = Callable[[Float[Tensor, "n 3 h w"]], list[Tensor]]
"""From pictures in [-1, 1] to maps `n c h w` of several layers."""

_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Of the channels of a picture in [-1, 1], as the published weights expect them."""
_EPS = 1e-10

HOW_TO_GET = (
    "needs the weights of an image network: put torchvision's AlexNet (keys features.*) and the linear heads of the package "
    "lpips, version 0.1, net 'alex' (keys lin0.model.1.weight to lin4.model.1.weight) into one safetensors file and give it "
    "with --weights lpips=FILE"
)


class AlexNetFeatures(nn.Module):
    """The five convolutions of AlexNet with the names of torchvision's `alexnet().features`; the map after each ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleDict(
            {
                "0": nn.Conv2d(3, 64, 11, stride=4, padding=2),
                "3": nn.Conv2d(64, 192, 5, padding=2),
                "6": nn.Conv2d(192, 384, 3, padding=1),
                "8": nn.Conv2d(384, 256, 3, padding=1),
                "10": nn.Conv2d(256, 256, 3, padding=1),
            }
        )
        self.pool = nn.MaxPool2d(3, stride=2)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> list[Tensor]:
        """Return the maps of pictures in [-1, 1]."""
        x = (x - x.new_tensor(_SHIFT)[:, None, None]) / x.new_tensor(_SCALE)[:, None, None]
        maps = []
        for name, layer in self.features.items():
            x = self.pool(x) if name in ("3", "6") else x
            x = layer(x).relu()
            maps.append(x)
        return maps


def perceptual_distance(
    features: Features,
    heads: list[Float[Tensor, " c"]],
    first: Float[Tensor, "n 3 h w"],
    second: Float[Tensor, "n 3 h w"],
) -> Float[Tensor, " n"]:
    """Return LPIPS: squared distance of unit feature vectors, weighted by channel, averaged over sites, added over layers.

    Args:
        features: The image network.
        heads: A weight for each channel of each layer.
        first: Pictures in [0, 1].
        second: Others.
    """
    maps = [features(x.float() * 2 - 1) for x in (first, second)]
    total = torch.zeros(len(first), dtype=torch.float64)
    for head, *pair in zip(heads, *maps, strict=True):
        a, b = (x / (x.square().sum(dim=1, keepdim=True).sqrt() + _EPS) for x in pair)
        weighted = (a - b).square() * rearrange(head.to(a), "c -> c 1 1")
        total += reduce(weighted.double(), "n c h w -> n", "sum").cpu() / weighted[0, 0].numel()
    return total


def load_lpips(path: str | Path) -> Callable[[Tensor, Tensor], Float[Tensor, " n"]]:
    """Return LPIPS (AlexNet) with the weights of a safetensors file; from two batches of pictures in [0, 1].

    Raises:
        CheckpointError: The file is missing, no safetensors file, or of another network.
    """
    tensors = read_weights("lpips", path)
    heads = {k: v for k, v in tensors.items() if k.startswith("lin")}
    network = AlexNetFeatures()
    fill("lpips", path, network, {k: v for k, v in tensors.items() if k.startswith("features.")})
    names = [f"lin{i}.model.1.weight" for i in range(5)]
    widths = [layer.out_channels for layer in network.features.values() if isinstance(layer, nn.Conv2d)]
    if [heads[n].numel() if n in heads else 0 for n in names] != widths:
        raise CheckpointError(
            f"--weights lpips={path} lacks heads of the widths {widths}; expected: {', '.join(names)}"
        )
    flat = [heads[name].flatten() for name in names]

    @torch.no_grad()
    def distance(first: Tensor, second: Tensor) -> Tensor:
        return perceptual_distance(network, flat, first, second)

    return distance


def read_weights(metric: str, path: str | Path) -> dict[str, Tensor]:
    """Read a safetensors file of a metric's network.

    Raises:
        CheckpointError: It is missing or no safetensors file.
    """
    try:
        return {name: tensor.float() for name, tensor in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"--weights {metric}={path} can't be read ({first_line(error)}); allowed: a safetensors file. Others can run code when "
            "they are loaded; convert them where you trust them: safetensors.torch.save_file(state_dict, FILE)"
        ) from error


def fill(metric: str, path: str | Path, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put the tensors into the network and make it ready; counters of batches don't matter.

    Raises:
        CheckpointError: Names or shapes are not the network's.
    """
    wanted = {k: tuple(v.shape) for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    wrong = sorted(k for k, shape in wanted.items() if k not in tensors or tuple(tensors[k].shape) != shape)
    if wrong:
        raise CheckpointError(
            f"--weights {metric}={path} is of another network: {len(wrong)} of {len(wanted)} tensors are missing or of another "
            f"shape, the first is {wrong[0]!r}, expected {list(wanted[wrong[0]])}"
        )
    network.load_state_dict({k: tensors[k] for k in wanted}, strict=False)
    network.eval().requires_grad_(requires_grad=False)
