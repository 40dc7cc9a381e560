"""Diffusion Policy's transformer (Chi et al. 2023, arXiv 2303.04137), the baseline: it makes actions and sees no future.

Each observed picture of each view goes through a ResNet-18 of its own view with GroupNorm, spatial softmax and a linear layer;
with the robot's state that is one token for each moment observed. A decoder of causal self-attention denoises the action chunk
and reads those tokens and the DDPM step through cross-attention.

As published for pictures (the code's "transformer hybrid" configuration): 8 layers, 4 heads, width 256, dropout 0.3 in the
decoder, 32 keypoints and 64 features a view, random crops of nine tenths, one crop in the middle when it acts. Not as there, for
the windows are ours: the chunk starts now and not at the oldest observation, so every action may read every observation; the
state is known now, not at the moments before; and the prompt is one more token where there is a text encoder, for data of
several tasks.
"""

from collections.abc import Sequence

import torch
from diffusers import DDPMScheduler, ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import Timesteps
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetModel

from wam_video.errors import ConfigError

NUM_DIFFUSION_STEPS = 100
_GROUP = 16
"""Channels in a group of the GroupNorms that stand for the ResNet's BatchNorms, which a moving average of weights spoils."""
_STEM_STRIDE = 4


def ddpm_scheduler() -> DDPMScheduler:
    """Return the diffusion that is published: 100 steps, squared cosine, epsilon prediction, samples clipped to [-1, 1]."""
    return DDPMScheduler(
        num_train_timesteps=NUM_DIFFUSION_STEPS,
        beta_schedule="squaredcos_cap_v2",
        variance_type="fixed_small",
        clip_sample=True,
        prediction_type="epsilon",
    )


def repeat_missing(pixels: Float[Tensor, "b v 3 f h w"], recorded: Bool[Tensor, "b f"]) -> Float[Tensor, "b v 3 f h w"]:
    """Return the frames with those that were not recorded, before an episode's start, replaced by the next one."""
    frames = list(pixels.unbind(3))
    for i in reversed(range(len(frames) - 1)):
        known = rearrange(recorded[:, i].to(pixels.device), "b -> b 1 1 1 1")
        frames[i] = torch.where(known, frames[i], frames[i + 1])
    return torch.stack(frames, dim=3)


class DiffusionPolicyTransformer(ModelMixin, ConfigMixin):
    """Predict the noise in a chunk of actions from what was observed.

    Args:
        action_dim: Width of the actions.
        state_dim: Width of the state; 0: there is none.
        action_horizon: Actions in a chunk.
        num_observations: Moments observed, the last of them now.
        num_views: Cameras; each has an encoder of its own.
        text_dim: Channels of the prompt's embedding; 0: prompts are not read.
        dim: Width of the decoder.
        num_layers: Blocks of the decoder.
        num_attention_heads: Heads of its attentions.
        dropout: In the decoder's blocks.
        embedding_dropout: Of the embedded actions and observations.
        crop: Share of a picture's sides that is seen: a random place in training, the middle else.
        backbone_widths: Channels of the ResNet's stages, multiples of 16; four of two blocks each are a ResNet-18.
        num_keypoints: Of the spatial softmax.
        feature_dim: Features of a picture.

    Raises:
        ConfigError: A size is out of range.
    """

    @register_to_config
    def __init__(  # noqa: PLR0913 - diffusers turns the arguments into config.json, one by one
        self,
        action_dim: int,
        state_dim: int,
        action_horizon: int,
        num_observations: int,
        num_views: int = 1,
        text_dim: int = 0,
        dim: int = 256,
        num_layers: int = 8,
        num_attention_heads: int = 4,
        dropout: float = 0.3,
        embedding_dropout: float = 0.0,
        crop: float = 0.9,
        backbone_widths: Sequence[int] = (64, 128, 256, 512),
        num_keypoints: int = 32,
        feature_dim: int = 64,
    ) -> None:
        super().__init__()
        _check_sizes(dim, num_layers, num_attention_heads, crop, backbone_widths)
        self.views = nn.ModuleList(_Eye(backbone_widths, num_keypoints, feature_dim, crop) for _ in range(num_views))
        self.time_embedder = Timesteps(dim, flip_sin_to_cos=False, downscale_freq_shift=1)
        self.observation_embedder = nn.Linear(num_views * feature_dim + state_dim, dim)
        self.text_embedder = nn.Linear(text_dim, dim) if text_dim else None
        self.memory_position_embedding = nn.Parameter(torch.zeros(1, 1 + bool(text_dim) + num_observations, dim))
        self.memory_mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.Mish(), nn.Linear(4 * dim, dim))
        self.action_embedder = nn.Linear(action_dim, dim)
        self.position_embedding = nn.Parameter(torch.zeros(1, action_horizon, dim))
        self.drop = nn.Dropout(embedding_dropout)
        layer = nn.TransformerDecoderLayer(
            dim, num_attention_heads, 4 * dim, dropout, "gelu", batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, num_layers)
        self.norm_out = nn.LayerNorm(dim)
        self.proj_out = nn.Linear(dim, action_dim)
        self._draw_weights()

    @property
    def least_side(self) -> int:
        """Smallest side of pictures, in pixels, whose features are more than one cell, which spatial softmax needs."""
        stride = _STEM_STRIDE * 2 ** (len(self.config["backbone_widths"]) - 1)
        return int(-(-(stride + 1) // self.config["crop"]))

    def observe(
        self, pixels: Float[Tensor, "b v 3 f h w"], state: Float[Tensor, "b ds"], text: Float[Tensor, "b s dt"] | None
    ) -> Float[Tensor, "b o d"]:
        """Return the tokens of what was observed, which do not depend on the noise: once for all steps of a decision.

        Args:
            pixels: In [-1, 1]; the last frame is now.
            state: Normalised; zeros where it is unknown.
            text: The encoded prompt, zeros past its end (`text.encode_text`); None where prompts are not read.

        Raises:
            ConfigError: The pictures are too small.
        """
        if min(pixels.shape[-2:]) < self.least_side:
            raise ConfigError(
                f"frames are {pixels.shape[-2]}x{pixels.shape[-1]}; this Diffusion Policy needs sides of at least "
                f"{self.least_side} pixels: use larger frames, or fewer model.backbone_widths"
            )
        frames = pixels.shape[3]
        seen = [
            rearrange(eye(rearrange(view, "b c f h w -> (b f) c h w")), "(b f) d -> b f d", f=frames)
            for eye, view in zip(self.views, pixels.unbind(1), strict=True)
        ]
        if width := self.config["state_dim"]:
            known = state[:, None, :width].to(seen[0])
            seen.append(torch.cat([known.new_zeros(len(known), frames - 1, width), known], dim=1))
        tokens = self.observation_embedder(torch.cat(seen, dim=-1))
        if self.text_embedder is None:
            return tokens
        if text is None:
            raise ValueError("this network reads prompts; give their embeddings")
        length = text.any(dim=-1).sum(dim=1, keepdim=True).clamp(min=1)
        return torch.cat([self.text_embedder(text.sum(dim=1) / length)[:, None], tokens], dim=1)

    def forward(
        self, actions: Float[Tensor, "b ta da"], timesteps: Int[Tensor, " b"], observed: Float[Tensor, "b o d"]
    ) -> Float[Tensor, "b ta da"]:
        """Return the noise that the network sees in `actions` at DDPM steps in 0..99, given the tokens of `observe`."""
        time = self.time_embedder(timesteps).to(observed)
        memory = torch.cat([time[:, None], observed], dim=1) + self.memory_position_embedding
        memory = self.memory_mlp(self.drop(memory))
        steps = actions.shape[1]
        x = self.drop(self.action_embedder(actions) + self.position_embedding[:, :steps])
        causal = nn.Transformer.generate_square_subsequent_mask(steps, device=x.device, dtype=x.dtype)
        return self.proj_out(self.norm_out(self.decoder(x, memory, tgt_mask=causal, tgt_is_causal=True)))

    def _draw_weights(self) -> None:
        """Draw as published: normal numbers of deviation 0.02, biases 0; the ResNets keep their own."""
        for name, module in self.named_modules():
            if name.startswith("views."):
                continue
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.MultiheadAttention):
                nn.init.normal_(module.in_proj_weight, std=0.02)
                nn.init.zeros_(module.in_proj_bias)
        nn.init.normal_(self.position_embedding, std=0.02)
        nn.init.normal_(self.memory_position_embedding, std=0.02)


class _Eye(nn.Module):
    """A picture's features: crop, ResNet, spatial softmax (Finn et al. 2016), a linear layer and ReLU."""

    def __init__(self, widths: Sequence[int], num_keypoints: int, feature_dim: int, crop: float) -> None:
        super().__init__()
        self.crop = crop
        self.backbone = _resnet(widths)
        self.keypoints = nn.Conv2d(widths[-1], num_keypoints, 1)
        self.features = nn.Linear(2 * num_keypoints, feature_dim)

    def forward(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Return features; in training each picture is cropped by torch's global generator, which draws dropout too."""
        maps = self.keypoints(self.backbone(_crop(pixels, self.crop, random=self.training)).last_hidden_state)
        return torch.relu(self.features(spatial_softmax(maps).flatten(1)))


def spatial_softmax(maps: Float[Tensor, "n k h w"]) -> Float[Tensor, "n k 2"]:
    """Return where each map is high: the mean of (x, y), from -1 to 1, under its softmax."""
    weights = rearrange(maps, "n k h w -> n k (h w)").softmax(dim=-1)
    rows, columns = (torch.linspace(-1, 1, size, device=maps.device, dtype=maps.dtype) for size in maps.shape[2:])
    places = torch.stack(
        [repeat(columns, "w -> (h w)", h=len(rows)), repeat(rows, "h -> (h w)", w=len(columns))], dim=-1
    )
    return weights @ places


def _crop(pixels: Float[Tensor, "n c h w"], share: float, *, random: bool) -> Float[Tensor, "n c h2 w2"]:
    sides = [round(size * share) for size in pixels.shape[2:]]
    spare = [size - side for size, side in zip(pixels.shape[2:], sides, strict=True)]
    if not random:
        top, left = (room // 2 for room in spare)
        return pixels[:, :, top : top + sides[0], left : left + sides[1]]
    places = [
        torch.randint(room + 1, (len(pixels), 1), device=pixels.device) + torch.arange(side, device=pixels.device)
        for room, side in zip(spare, sides, strict=True)
    ]
    picture = torch.arange(len(pixels), device=pixels.device)[:, None, None]
    cropped = pixels.movedim(1, -1)[picture, places[0][:, :, None], places[1][:, None, :]]
    return cropped.movedim(-1, 1)


def _resnet(widths: Sequence[int]) -> ResNetModel:
    """Return a ResNet of two basic blocks a stage with drawn weights, its BatchNorms replaced."""
    backbone = ResNetModel(
        ResNetConfig(embedding_size=widths[0], hidden_sizes=list(widths), depths=[2] * len(widths), layer_type="basic")
    )
    for name, module in list(backbone.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            backbone.set_submodule(name, nn.GroupNorm(module.num_features // _GROUP, module.num_features))
    return backbone


def _check_sizes(dim: int, layers: int, heads: int, crop: float, widths: Sequence[int]) -> None:
    if layers < 1 or heads < 1 or dim < 4 or dim % (2 * heads):
        raise ConfigError(
            f"the decoder has {layers} layers of width {dim} and {heads} heads; allowed: 1 or more of each, and an even "
            "width for each head"
        )
    if not 0 < crop <= 1:
        raise ConfigError(f"crop is {crop}; allowed: above 0 to 1, the share of a picture's sides that is seen")
    if not widths or any(width < _GROUP or width % _GROUP for width in widths):
        raise ConfigError(f"backbone_widths is {list(widths)}; allowed: at least one multiple of {_GROUP}")
