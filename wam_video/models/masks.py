"""Which token sees which: one pure function of token metadata, and everything that is derived from it.

`visible` decides for a pair of tokens. The dense mask, FlexAttention's block mask and what a cached call may look at are all
made from it, so that training and inference can't differ.

With pattern `causal` a sample is cut into chunks: chunk 0 is what was observed up to now, then follow chunks of
`chunk_frames` latent frames with their state, actions and registers. There are two streams of tokens. The clean one holds
what is, or is taken as, known (t = 0, or a small clock); the noisy one what is being predicted. Every noisy chunk reads the
clean chunks before its own and itself, so all of them train at once (teacher forcing), and at inference the clean ones are
keys and values in a cache (`models.kv_cache`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from inspect import signature
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from wam_video.errors import ConfigError, one_of

Pattern = Literal["bidirectional", "causal"]
StateView = Literal["chunk", "self"]
VideoView = Literal["chunk", "observed"]


class Modality(IntEnum):
    """What a token stands for."""

    VIDEO = 0
    STATE = 1
    ACTION = 2
    REGISTER = 3


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """How samples are cut into chunks and who sees whom. Without chunks there are `video_sees_actions` and `actions_see_video`."""

    pattern: str = "bidirectional"
    """`bidirectional`: one chunk in which every token sees every other; `causal`: chunks."""
    chunk_frames: int = 1
    """Latent frames of a chunk after the first."""
    state_sees: str = "chunk"
    """What a state token sees: `chunk`, as the actions of its chunk do; `self`: itself only (DreamZero)."""
    video_sees_actions: bool = True
    """Whether video sees actions, state and registers; False: video only (FastWAM)."""
    actions_see_video: str = "chunk"
    """What actions, state and registers see of video: `chunk`: observed frames and the (imagined) ones of their own chunk;
    `observed`: the clean stream only (FastWAM). Observed frames then see each other only, without chunks too, for else the
    imagined ones would reach the actions through them; so a policy needs them once (`WAMTransformer.observe`)."""
    action_history: bool = False
    """Whether clean actions of earlier chunks are kept and seen, in the order video, then actions (LingBot-VA)."""
    window: int | None = None
    """Chunks before its own that a token sees; None: all."""
    sink_chunks: int = 0
    """The first so many chunks are seen however long ago they were."""

    def __post_init__(self) -> None:
        for name, allowed in (("pattern", Pattern), ("state_sees", StateView), ("actions_see_video", VideoView)):
            if getattr(self, name) not in get_args(allowed):
                raise ConfigError(one_of(f"model.attention.{name}", getattr(self, name), get_args(allowed)))
        for name, low in (("chunk_frames", 1), ("window", 1), ("sink_chunks", 0)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(f"model.attention.{name} is {value}; allowed: {low} or more")
        free = ("video_sees_actions", "actions_see_video")
        unset = all(getattr(self, field.name) == field.default for field in fields(self) if field.name not in free)
        if self.pattern == "bidirectional" and not unset:
            raise ConfigError(
                "model.attention.pattern is 'bidirectional', which has no chunks; allowed with it: video_sees_actions and "
                "actions_see_video; remove the other settings of model.attention, or set pattern: causal"
            )
        if self.sink_chunks and self.window is None:
            raise ConfigError(
                f"model.attention.sink_chunks is {self.sink_chunks} without a window, which would hide nothing; set window"
            )

    @classmethod
    def read(cls, settings: Mapping[str, Any] | None) -> "AttentionConfig":
        """Return the configuration of a mapping, such as `attention` of a network's config.json.

        Raises:
            ConfigError: A key is unknown or a value not allowed.
        """
        for key in settings or {}:
            if key not in signature(cls).parameters:
                raise ConfigError(one_of("configuration key under model.attention.", key, signature(cls).parameters))
        return cls(**(settings or {}))

    @property
    def causal(self) -> bool:
        """Whether there are chunks."""
        return self.pattern == "causal"

    @property
    def caches(self) -> bool:
        """Whether observed frames are the same whatever comes after them, so that they can be remembered."""
        return self.causal or self.actions_see_video == "observed"

    @property
    def open(self) -> bool:
        """Whether the noisy tokens of a chunk see each other and all that came before."""
        return self.state_sees == "chunk" and self.video_sees_actions and self.actions_see_video == "chunk"

    def hides(self, *, mixed: bool, blind: bool) -> bool:
        """Say whether any token of a call without a cache is hidden from another.

        Args:
            mixed: There is video, and others.
            blind: Video has an attention of its own (`Masks.blind`).
        """
        return self.causal or self.actions_see_video == "observed" or (mixed and not (self.open or blind))


class TokenMeta(NamedTuple):
    """What the rule knows of tokens; the first axis is 1 where all samples of a batch are alike."""

    chunk: Int[Tensor, "r n"]
    modality: Int[Tensor, "r n"]
    """A `Modality`."""
    noisy: Int[Tensor, "r n"]
    """1 in the noisy stream, 0 in the clean one."""
    real: Int[Tensor, "r n"]
    """0 for what is not there: the tokens of an absent camera, the free places of a cache. Nobody sees it."""

    def part(self, where: slice) -> "TokenMeta":
        """Return the metadata of some of the tokens."""
        return TokenMeta(*(field[:, where] for field in self))

    def queries(self) -> "TokenMeta":
        """Return the metadata shaped to be broadcast against keys."""
        return TokenMeta(*(field[..., :, None] for field in self))

    def keys(self) -> "TokenMeta":
        """Return the metadata shaped to be broadcast against queries."""
        return TokenMeta(*(field[..., None, :] for field in self))


def join_meta(metas: list[TokenMeta]) -> TokenMeta:
    """Concatenate the metadata of groups of tokens."""
    rows = max(field.shape[0] for meta in metas for field in meta)
    return TokenMeta(*(torch.cat([f.expand(rows, -1) for f in fields], dim=1) for fields in zip(*metas, strict=True)))


_VIDEO, _STATE = int(Modality.VIDEO), int(Modality.STATE)


def visible(query: TokenMeta, key: TokenMeta, rule: AttentionConfig) -> Bool[Tensor, "..."]:
    """Say whether `query` sees `key`, element by element.

    The fields broadcast; where the answer is the same for all queries, it has not their shape. Settings choose terms outside
    of the arithmetic, for FlexAttention vectorises this function and takes tensors only.
    """
    real = key.real > 0
    from_video, to_video = query.modality == _VIDEO, key.modality == _VIDEO
    allowed = real if rule.video_sees_actions else real & (~from_video | to_video)
    if not rule.causal:
        if rule.actions_see_video == "chunk":
            return allowed
        # Actions see no imagined video, and no video that has seen it: what was observed sees only its like.
        return allowed & ((key.noisy == 0) | ((query.noisy == 1) & (from_video | ~to_video)))
    age = query.chunk - key.chunk

    # The clean stream: earlier chunks, and for clean tokens their own, in which video comes before the actions.
    own_clean = (query.noisy == 0) & (age == 0) & (to_video | ~from_video)
    clean = (key.noisy == 0) & ((age > 0) | own_clean)
    if not rule.action_history:
        clean = clean & to_video
    if rule.window is not None:
        clean = clean & ((age <= rule.window) | (key.chunk < rule.sink_chunks))

    # The noisy stream: the own chunk.
    own = (query.noisy == 1) & (key.noisy == 1) & (age == 0)
    if rule.actions_see_video == "observed":
        own = own & (from_video | ~to_video)
    seen = clean | own
    if rule.state_sees == "self":
        seen = seen & ((query.modality != _STATE) | (own & (key.modality == _STATE)))
    return allowed & seen


AttentionMask = Bool[Tensor, "r 1 q n"] | BlockMask
"""Who sees whom, as the attention backend wants it."""


def dense_mask(query: TokenMeta, key: TokenMeta, rule: AttentionConfig) -> Bool[Tensor, "r 1 q n"]:
    """Return the rule as a mask for every pair."""
    return visible(query.queries(), key.keys(), rule)[:, None]


def block_mask(query: TokenMeta, key: TokenMeta, rule: AttentionConfig) -> BlockMask:
    """Return the rule as a block mask, with which FlexAttention skips what is invisible."""
    rows = max(query.chunk.shape[0], key.chunk.shape[0], key.real.shape[0])
    query, key = (TokenMeta(*(field.expand(rows, -1) for field in meta)) for meta in (query, key))

    def sees(b: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        row = b if rows > 1 else b * 0  # one row stands for all samples
        return visible(
            TokenMeta(*(field[row, q] for field in query)), TokenMeta(*(field[row, k] for field in key)), rule
        )

    device = query.chunk.device
    return create_block_mask(
        sees,
        rows if rows > 1 else None,
        None,
        query.chunk.shape[1],
        key.chunk.shape[1],
        device=device,
        _compile=device.type == "cuda",
    )


class Masks(NamedTuple):
    """The masks of one call; None: no token is hidden."""

    whole: AttentionMask | None
    """For all queries; with gates, for those that are not video. Keys: the cache's, then the call's."""
    video: AttentionMask | None = None
    """With gates: video queries; the cache's keys, then the call's video."""
    side: AttentionMask | None = None
    """With gates: video queries; the call's other keys."""
    sees_side: Bool[Tensor, "r q 1 1"] | None = None
    """With gates: the video queries that see any of the others. (`side` shows a blind query everything, for an attention
    over nothing has no value; what it sees is multiplied by 0.)"""
    blind: bool = False
    """Whether video sees none of the others and has an attention of its own (`video`), which costs nothing for them."""


def make_masks(
    metas: Sequence[TokenMeta],
    past: TokenMeta | None,
    rule: AttentionConfig,
    *,
    gated: bool,
    flex: bool,
    blind: bool = False,
) -> Masks:
    """Return the masks of a call.

    Args:
        metas: Of each stream of tokens.
        past: Of the tokens in the cache.
        rule: The rule.
        gated: Whether video has an attention of its own, apart from the others.
        flex: Make block masks.
        blind: Whether video keeps to itself (`Masks.blind`).
    """
    make = block_mask if flex else dense_mask
    everything = join_meta([*([past] if past is not None else []), *metas])
    if len(metas) == 1 or not (gated or blind):
        return Masks(whole=make(join_meta(list(metas)), everything, rule))
    video, side = metas
    video_keys = video if past is None else join_meta([past, video])
    masks = Masks(whole=make(side, everything, rule), video=make(video, video_keys, rule), blind=blind)
    if blind:
        return masks
    if rule.open and not rule.causal:
        return masks._replace(side=make(video, side, rule))
    sees = visible(video.queries(), side.keys(), rule).any(-1)[..., None, None]
    return masks._replace(side=_with_blind(video, side, rule, flex=flex), sees_side=sees)


def _with_blind(query: TokenMeta, key: TokenMeta, rule: AttentionConfig, *, flex: bool) -> AttentionMask:
    pairs = dense_mask(query, key, rule)
    pairs = pairs | ~pairs.any(-1, keepdim=True)
    if not flex:
        return pairs

    def sees(b: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return pairs[b if pairs.shape[0] > 1 else b * 0, 0, q, k]

    rows, _, queries, keys = pairs.shape
    return create_block_mask(sees, rows if rows > 1 else None, None, queries, keys, device=pairs.device)
