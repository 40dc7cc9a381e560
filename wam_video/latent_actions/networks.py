"""The networks: an autoencoder of optical flow, and one of the second frame given the first, with a narrow middle.

What passes the middle is the latent action. The flow's autoencoder follows Motus (arXiv 2512.13030: flow -> a small encoder ->
14 numbers); the pair's is AdaWorld's with a Gaussian middle (arXiv 2503.18938) or LAPA's with codes (arXiv 2410.11758), which
are substituted by noise while they are learned (NSVQ; Vali and Baeckstroem 2022, equation 7). All small, for one CPU core.
"""

from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from wam_video.errors import ConfigError, one_of

METHODS = ("flow", "vae", "nsvq")
DIMS = {"flow": 14, "vae": 16, "nsvq": 16}
SIDES = {"flow": 32, "vae": 64, "nsvq": 64}
_GRID = 4
"""Rows and columns of the innermost map."""
_PATCH = 2
"""Frames are read and written in squares of so many pixels, so that the widest maps are small."""


@dataclass(frozen=True, kw_only=True)
class LatentModelConfig:
    """What a latent action is and which network makes it."""

    method: str = "flow"
    """`flow`, `vae` or `nsvq`."""
    interval_s: float = 0.1
    """Seconds from the first frame of a pair to the second."""
    dim: int = 14
    """Numbers of a latent action."""
    side: int = 32
    """Rows and columns of what the network reads: flow, or frames."""
    width: int = 16
    """Channels of the outermost map; twice as many further in."""
    num_tokens: int = 4
    """`nsvq`: codes of a latent action, each of `dim / num_tokens` numbers."""
    codebook: int = 8
    """`nsvq`: different codes."""
    action_dim: int = 0
    """Of the true actions that some pairs are labelled with while it is trained; 0 without."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(one_of("method", self.method, METHODS))
        for what, value, low, high in (
            ("interval_s", self.interval_s, 1e-3, 60),
            ("dim", self.dim, 1, 1024),
            ("width", self.width, 8, 1024),
            ("num_tokens", self.num_tokens, 1, 64),
            ("codebook", self.codebook, 2, 4096),
            ("action_dim", self.action_dim, 0, 4096),
        ):
            if not low <= value <= high:
                raise ConfigError(f"{what} is {value}; allowed: {low} to {high}")
        if self.side not in (16, 32, 64, 128):
            raise ConfigError(f"side is {self.side}; allowed: 16, 32, 64, 128")
        if self.width % 8:
            raise ConfigError(f"width is {self.width}; allowed: multiples of 8")
        if self.method == "nsvq" and self.dim % self.num_tokens:
            raise ConfigError(f"dim is {self.dim}; allowed: multiples of num_tokens ({self.num_tokens})")

    @property
    def channels(self) -> int:
        """Of what the network reads: flow to the right and down, or two frames."""
        return 2 if self.method == "flow" else 6


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a network makes of pairs."""

    latent: Float[Tensor, "b d"]
    """As decoded: with noise while training."""
    guess: Float[Tensor, "b c h w"]
    """The flow, or the change from the first frame to the second."""
    target: Float[Tensor, "b c h w"]
    """What `guess` should be; all zeros where nothing moves."""
    cost: Float[Tensor, ""]
    """Of the middle: KL divergence in nats per pair; 0 without."""
    codes: Int[Tensor, "b n"] | None = None


def _groups(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(8, channels)


class _Down(nn.Sequential):
    """Half the rows and columns."""

    def __init__(self, inward: int, outward: int) -> None:
        super().__init__(nn.Conv2d(inward, outward, 4, stride=2, padding=1), _groups(outward), nn.GELU())


class _Up(nn.Module):
    """Twice the rows and columns, joined by a map of that size and by the latent."""

    def __init__(self, inward: int, outward: int, skip: int, latent: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inward + skip, outward, 3, padding=1)
        self.latent = nn.Linear(latent, 2 * outward)
        self.norm = _groups(outward)

    def forward(
        self, x: Float[Tensor, "b i h w"], z: Float[Tensor, "b d"], skip: Float[Tensor, "b j y x"] | None
    ) -> Float[Tensor, "b o y x"]:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        x = self.conv(x if skip is None else torch.cat([x, skip], dim=1))
        scale, shift = rearrange(self.latent(z), "b (two o) -> two b o 1 1", two=2)
        return F.gelu(self.norm(x) * (1 + scale) + shift)


def _widths(config: LatentModelConfig) -> list[int]:
    """Return the channels of the maps from the outermost to the innermost, which has 4 x 4 fields."""
    side = config.side if config.method == "flow" else config.side // _PATCH
    levels = (side // _GRID).bit_length() - 1
    return [config.width, *[2 * config.width] * (levels - 1)]


class Encoder(nn.Module):
    """From a pair, with the places of its pixels, to numbers."""

    def __init__(self, config: LatentModelConfig, outputs: int) -> None:
        super().__init__()
        inputs = 3 if config.method == "flow" else 9 * _PATCH**2
        widths = _widths(config)
        self.body = nn.Sequential(*(_Down(i, o) for i, o in zip([inputs + 2, *widths[:-1]], widths, strict=True)))
        self.head = nn.Linear(widths[-1] * _GRID**2, outputs)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o"]:
        """Return the numbers."""
        if x.shape[1] == 2:
            x = torch.cat([x, x.norm(dim=1, keepdim=True)], dim=1)
        else:
            x = F.pixel_unshuffle(torch.cat([x, x[:, 3:] - x[:, :3]], dim=1), _PATCH)
        places = torch.linspace(-1, 1, x.shape[-1], device=x.device)
        grid = repeat(torch.stack(torch.meshgrid(places, places, indexing="ij")), "c h w -> b c h w", b=len(x))
        return self.head(rearrange(self.body(torch.cat([x, grid], dim=1)), "b c h w -> b (c h w)"))


class FlowDecoder(nn.Module):
    """From a latent to flow."""

    def __init__(self, config: LatentModelConfig) -> None:
        super().__init__()
        widths = _widths(config)[::-1]
        self.first = nn.Linear(config.dim, widths[0] * _GRID**2)
        self.body = nn.ModuleList(
            _Up(i, o, 0, config.dim) for i, o in zip(widths, [*widths[1:], config.width], strict=True)
        )
        self.last = nn.Conv2d(config.width, 2, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b 2 h w"]:
        """Return the flow."""
        x = rearrange(self.first(z), "b (c h w) -> b c h w", h=_GRID, w=_GRID)
        for level in self.body:
            x = level(x, z, None)
        return self.last(x)


class ChangeDecoder(nn.Module):
    """From the first frame and a latent to the change that leads to the second."""

    def __init__(self, config: LatentModelConfig) -> None:
        super().__init__()
        widths = _widths(config)
        self.down = nn.ModuleList(_Down(i, o) for i, o in zip([3 * _PATCH**2, *widths[:-1]], widths, strict=True))
        inner = [*widths[::-1], config.width]
        skips = [*widths[-2::-1], 3 * _PATCH**2]
        self.up = nn.ModuleList(_Up(i, o, s, config.dim) for i, o, s in zip(inner[:-1], inner[1:], skips, strict=True))
        self.last = nn.Conv2d(config.width, 3 * _PATCH**2, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, first: Float[Tensor, "b 3 h w"], z: Float[Tensor, "b d"]) -> Float[Tensor, "b 3 h w"]:
        """Return the change."""
        maps = [F.pixel_unshuffle(first, _PATCH)]
        for level in self.down:
            maps.append(level(maps[-1]))
        x = maps.pop()
        for level in self.up:
            x = level(x, z, maps.pop())
        return F.pixel_shuffle(self.last(x), _PATCH)


class Codebook(nn.Module):
    """Codes that a latent is made of, learned through noise in their place (NSVQ)."""

    def __init__(self, config: LatentModelConfig) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.randn(config.codebook, config.dim // config.num_tokens))
        self.num_tokens = config.num_tokens

    def nearest(self, z: Float[Tensor, "b d"]) -> Int[Tensor, "b n"]:
        """Return the code nearest to each part of a latent."""
        return torch.cdist(self._parts(z), self.codes[None]).argmin(dim=-1)

    def vectors(self, codes: Int[Tensor, "b n"]) -> Float[Tensor, "b d"]:
        """Return latents made of codes."""
        return rearrange(self.codes[codes], "b n k -> b (n k)")

    def noisy(
        self, z: Float[Tensor, "b d"], codes: Int[Tensor, "b n"], generator: torch.Generator
    ) -> Float[Tensor, "b d"]:
        """Return `z` moved in a random direction as far as its codes are away: q = z + |z - e| / |n| n, by which both learn."""
        parts, chosen = self._parts(z), self._parts(self.vectors(codes))
        noise = torch.randn(parts.shape, generator=generator, device=z.device)
        far = (parts - chosen).norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True).clamp(min=1e-9)
        return rearrange(parts + far * noise, "b n k -> b (n k)")

    @torch.no_grad()
    def revive(self, counts: Int[Tensor, " k"], generator: torch.Generator) -> int:
        """Put codes that were used less than a hundredth of their share beside the most used ones; return how many."""
        dead = counts < counts.sum() / (100 * len(counts))
        if not dead.any() or dead.all():
            return 0
        number = int(dead.sum())
        alive = torch.multinomial(counts.float() * ~dead, number, replacement=True, generator=generator)
        jitter = torch.randn(number, self.codes.shape[1], generator=generator)
        self.codes[dead] = self.codes[alive] + 0.1 * self.codes.std() * jitter
        return number

    def _parts(self, z: Tensor) -> Tensor:
        return rearrange(z, "b (n k) -> b n k", n=self.num_tokens)


class LatentActionModel(nn.Module):
    """From pairs of frames, or the flow between them, to latent actions and back."""

    action_mean: Tensor
    """Of the true actions it was trained with; likewise `action_scale`, their deviation."""
    action_scale: Tensor

    def __init__(self, config: LatentModelConfig) -> None:
        """Make the network with random weights from torch's global generator."""
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, config.dim * (2 if config.method == "vae" else 1))
        self.decoder = FlowDecoder(config) if config.method == "flow" else ChangeDecoder(config)
        self.codebook = Codebook(config) if config.method == "nsvq" else None
        self.reader = nn.Linear(config.dim, config.action_dim) if config.action_dim else None
        if config.action_dim:
            self.register_buffer("action_mean", torch.zeros(config.action_dim))
            self.register_buffer("action_scale", torch.ones(config.action_dim))

    def label(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """Return the latent actions, without noise."""
        z = self.encoder(x)[:, : self.config.dim]
        return z if self.codebook is None else self.codebook.vectors(self.codebook.nearest(z))

    def read(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b da"]:
        """Return what a line reads out of latents: mean true actions, in the robot's own units.

        Raises:
            ConfigError: The model was trained without labels.
        """
        if self.reader is None:
            raise ConfigError("the model was trained without labels and reads no actions; train it with labels above 0")
        return self.reader(z) * self.action_scale + self.action_mean

    def decode(self, x: Float[Tensor, "b c h w"], z: Float[Tensor, "b d"]) -> Float[Tensor, "b k h w"]:
        """Return what latents say of pairs, of which at most the first frame is read."""
        return self.decoder(z) if isinstance(self.decoder, FlowDecoder) else self.decoder(x[:, :3], z)

    def target(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        """Return what `decode` should say."""
        return x if self.config.method == "flow" else x[:, 3:] - x[:, :3]

    def forward(self, x: Float[Tensor, "b c h w"], generator: torch.Generator) -> Reading:
        """Encode and decode, with the noise of training."""
        found = self.encoder(x)
        z, cost, codes = found, x.new_zeros(()), None
        if self.config.method == "vae":
            z, spread = found.chunk(2, dim=1)
            cost = 0.5 * (z.square() + spread.exp() - 1 - spread).sum(dim=1).mean()
            z = z + (0.5 * spread).exp() * torch.randn(z.shape, generator=generator, device=z.device)
        elif self.codebook is not None:
            codes = self.codebook.nearest(found)
            z = self.codebook.noisy(found, codes, generator)
        return Reading(latent=z, guess=self.decode(x, z), target=self.target(x), cost=cost, codes=codes)
