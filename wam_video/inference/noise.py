"""Where a run's randomness comes from: one generator a sample, drawn from in an order that no neighbour changes."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from wam_video.errors import ConfigError
from wam_video.flow.path import standard_noise

Generators = torch.Generator | int | Sequence[torch.Generator | int] | None


def make_generators(given: Generators, batch: int) -> list[torch.Generator]:
    """Return one generator for each sample; a single one serves all of them, sample after sample.

    Args:
        given: A generator or seed, a list of one a sample, or None for torch's global generator.
        batch: Number of samples.

    Raises:
        ConfigError: A list of another length, something that is neither a generator nor a seed, or a seed beyond 64 bits.
    """
    if given is None:
        given = torch.default_generator
    if isinstance(given, torch.Generator | int):
        return [_generator(given)] * batch
    if len(given) != batch:
        raise ConfigError(f"generator is a list of {len(given)} for {batch} samples; give one, or one a sample")
    return [_generator(one) for one in given]


def _generator(given: torch.Generator | int) -> torch.Generator:
    if isinstance(given, torch.Generator):
        return given
    if isinstance(given, bool) or not isinstance(given, int):
        raise ConfigError(f"generator is {given!r}; allowed: a torch.Generator or an integer seed")
    if not -(2**63) <= given < 2**64:
        raise ConfigError(f"seed is {given}; allowed: -2**63 to 2**64 - 1")
    return torch.Generator().manual_seed(given)


def draw_noise(
    generators: Sequence[torch.Generator], video: tuple[int, ...], actions: tuple[int, ...]
) -> tuple[Float[Tensor, "b v c t h w"], Float[Tensor, "b ta da"]]:
    """Draw each sample's noise from its generator: actions first, then view by view.

    So a sample's noise does not depend on its neighbours, and that of its actions not on the video.
    """
    rows = []
    for generator in generators:
        row_actions = standard_noise((1, *actions), [generator], "cpu")
        views = [standard_noise((1, *video[1:]), [generator], "cpu") for _ in range(video[0])]
        rows.append((torch.stack(views, dim=1), row_actions))
    return torch.cat([row[0] for row in rows]), torch.cat([row[1] for row in rows])
