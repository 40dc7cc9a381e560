"""Maps of actions and state that are deeper than one table: an MLP for each embodiment, and one that is told the clock."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from wam_video.models.layers import TRAIN_TIMESTEPS, EmbodimentLinear


class EmbodimentMLP(nn.Module):
    """Two maps of an embodiment's own with a ReLU between them (DreamZero's state encoder and action decoder)."""

    def __init__(self, in_dims: list[int], hidden_dim: int, out_dims: list[int], *, zero_init: bool = False) -> None:
        super().__init__()
        self.layer1 = EmbodimentLinear(in_dims, [hidden_dim] * len(in_dims))
        self.layer2 = EmbodimentLinear([hidden_dim] * len(in_dims), out_dims, zero_init=zero_init)

    def forward(self, x: Float[Tensor, "b m i"], embodiment: Int[Tensor, " b"]) -> Float[Tensor, "b m o"]:
        """Map row i of the batch with the weights of its embodiment."""
        return self.layer2(self.layer1(x, embodiment).relu(), embodiment)


def embodiment_map(
    in_dims: list[int], hidden: int | None, out_dims: list[int], *, zero_init: bool = False
) -> EmbodimentLinear | EmbodimentMLP:
    """Return a map with a hidden layer of that width, or a linear one."""
    if hidden is None:
        return EmbodimentLinear(in_dims, out_dims, zero_init=zero_init)
    return EmbodimentMLP(in_dims, hidden, out_dims, zero_init=zero_init)


class TimedActionEmbedder(nn.Module):
    """Three maps of an embodiment's own, which are told each action's clock (DreamZero's action encoder)."""

    def __init__(self, in_dims: list[int], dim: int) -> None:
        super().__init__()
        widths = [dim] * len(in_dims)
        self.layer1 = EmbodimentLinear(in_dims, widths)
        self.layer2 = EmbodimentLinear([2 * dim] * len(in_dims), widths)
        self.layer3 = EmbodimentLinear(widths, widths)
        self.dim = dim

    def forward(
        self, x: Float[Tensor, "b m i"], t: Float[Tensor, "b m"], embodiment: Int[Tensor, " b"]
    ) -> Float[Tensor, "b m d"]:
        """Map actions at clocks `t` in [0, 1]."""
        waves = time_sinusoids(t, self.dim).to(x)
        hidden = self.layer2(torch.cat([self.layer1(x, embodiment), waves], dim=-1), embodiment)
        return self.layer3(torch.nn.functional.silu(hidden), embodiment)


def time_sinusoids(t: Float[Tensor, "b m"], dim: int) -> Float[Tensor, "b m d"]:
    """Return sines, then cosines, of clocks in thousandths (Vaswani et al. 2017, section 3.5)."""
    half = dim // 2
    frequencies = 10000.0 ** -(torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angles = (t.float() * TRAIN_TIMESTEPS)[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
