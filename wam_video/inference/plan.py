"""What a decision needs, on paper: operations, memory, and the latency that the device's peaks allow.

A decision is K network calls along a mode's path. Without a cache each computes every token; with one, the observed frames
and the prompt are computed once (the prefill) and each call computes what is new. Left out: codec, text encoder, host.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

from wam_video.errors import ConfigError
from wam_video.flow.modes import ModeSpec, Role
from wam_video.models.devices import Device, Roofline, roofline
from wam_video.models.flops import Call, NetworkShape, cache_bytes, cached_step, forward_flops, prefill, towers, whole
from wam_video.models.masks import AttentionConfig
from wam_video.models.tokens import TokenLayout


@dataclass(frozen=True, kw_only=True)
class DecisionConfig:
    """How a decision is computed."""

    calls: int = 8
    """Network evaluations: the steps of `euler` and `ab2`; `heun` takes two a step, but for those in which a modality arrives."""
    context: int = 1
    """Latent frames that were observed."""
    fresh: int | None = None
    """Those of them that are new since the last decision (with `cached`); None: all, as after a reset."""
    text: int = 64
    """Text tokens."""
    image: int = 0
    """Image tokens."""
    guidance: bool = False
    """A second, unconditional sample at each call."""
    cached: bool = False
    """Keep keys and values of observed frames and prompt. Networks whose observed frames are the same in
    all calls, causal ones among them, always do (`for_network`)."""
    batch_size: int = 1
    """Robots served at once."""
    precision: str = "bf16"
    """Of weights and matrix products: `bf16` or `fp8`."""
    efficiency: float = 0.4
    """Assumed share of the arithmetic peak."""

    def __post_init__(self) -> None:
        for name in ("calls", "context", "batch_size", "text"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; allowed: 1 or more")
        if self.fresh is not None and not (self.cached and 0 < self.fresh <= self.context):
            raise ConfigError(
                f"fresh is {self.fresh} latent frames; allowed: 1 to context ({self.context}), and only with cached"
            )

    def for_network(self, rule: AttentionConfig) -> "DecisionConfig":
        """Return how the pipeline decides with such a network: one whose observed frames are the same in all calls caches."""
        return replace(self, cached=self.cached or rule.caches)

    @property
    def rows(self) -> int:
        """Rows of a batch: samples, twice with guidance."""
        return self.batch_size * (2 if self.guidance else 1)


@dataclass(frozen=True, kw_only=True)
class DecisionPlan:
    """A decision on paper."""

    calls: int
    """Network evaluations after the prefill."""
    trunk_queries: int
    """Video tokens that the trunk computes in the prefill, or without a cache in each call."""
    queries: int
    """Tokens that each call computes for a sample."""
    keys: int
    """Tokens that they attend to."""
    call_flops: int
    """Of one call, one row."""
    prefill_flops: int
    """Of what is computed once a decision, one row: observed frames and prompt; 0 without a cache."""
    decision_flops: int
    """Of a decision, for one robot."""
    weight_bytes: int
    cache_bytes: int
    """Keys and values of all rows."""
    expert_steps: bool
    """Whether the calls after the prefill go through the expert only."""
    working_bytes: int
    """The largest tensors alive at once, roughly."""
    call_time: Roofline
    prefill_time: Roofline
    latency_s: float
    """Prefill and calls, at the assumed efficiency."""
    peak_latency_s: float
    """The same at the device's peak: the floor."""

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-able numbers."""
        return asdict(self)


def decision_layout(
    layout: TokenLayout, spec: ModeSpec, context: int, rule: AttentionConfig | None = None
) -> TokenLayout:
    """Return the tokens of a mode's calls: the future frames are left out where video is absent, or unknown and unseen.

    Raises:
        ConfigError: There are not as many frames.
    """
    if context > layout.frames:
        raise ConfigError(f"context is {context} latent frames; allowed: at most the grid's {layout.frames}")
    unseen = spec.video is Role.UNKNOWN and rule is not None and rule.actions_see_video == "observed"
    frames = context if spec.video is Role.ABSENT or unseen else layout.frames
    return TokenLayout(**{**_sizes(layout), "frames": frames})


def _sizes(layout: TokenLayout) -> dict[str, int]:
    return {name: getattr(layout, name) for name in TokenLayout.__dataclass_fields__}


def plan_decision(
    shape: NetworkShape, layout: TokenLayout, parameters: int, config: DecisionConfig, device: Device
) -> DecisionPlan:
    """Plan a decision over the tokens of `layout` (see `decision_layout`)."""
    bytes_each = 1 if config.precision == "fp8" else 2
    before, step = None, whole(layout, config.text, config.image)
    if config.cached:
        before = prefill(layout, config.context, config.text, config.image, fresh=config.fresh)
        step = cached_step(layout, config.context, config.text, config.image)
    call, first = forward_flops(shape, step).total, forward_flops(shape, before).total if before else 0
    cache = config.rows * cache_bytes(shape, tokens=step.past, context=step.context) if config.cached else 0
    # a block reads its weights once a call, except those of the text's keys and values where these are cached

    def timed(flops: int, of: Call | None, efficiency: float) -> Roofline:
        moved = (
            0
            if of is None
            else cache
            + shape.layers
            * bytes_each
            * sum(tower.weights(shape.dim, text_cached=config.cached) for tower, _, _ in towers(shape, of))
        )
        return roofline(
            device, flops=config.rows * flops, moved=moved, precision=config.precision, efficiency=efficiency
        )

    call_time, first_time = timed(call, step, config.efficiency), timed(first, before, config.efficiency)
    floor = timed(first, before, 1.0).seconds + config.calls * timed(call, step, 1.0).seconds
    return DecisionPlan(
        calls=config.calls,
        trunk_queries=before.video if before else step.video,
        queries=step.queries,
        keys=step.queries + step.past,
        call_flops=call,
        prefill_flops=first,
        decision_flops=(first + config.calls * call) * (2 if config.guidance else 1),
        weight_bytes=parameters * bytes_each,
        cache_bytes=cache,
        expert_steps=shape.expert is not None and step.video == 0,
        working_bytes=config.rows * max(_working_bytes(shape, part) for part in (before, step) if part),
        call_time=call_time,
        prefill_time=first_time,
        latency_s=first_time.seconds + config.calls * call_time.seconds,
        peak_latency_s=floor,
    )


def _working_bytes(shape: NetworkShape, call: Call) -> int:
    """Stream, normalised copy, queries, keys, values and their float32 rotation; or the feed-forward's two hidden layers."""
    parts = towers(shape, call)
    attention = sum(tokens * (2 * 2 * tower.dim + (2 * 3 + 2 * 4) * shape.dim) for tower, tokens, _ in parts)
    feed_forward = sum(tokens * (tower.dim * 2 * 2 + tower.ffn_dim * 2 * 2) for tower, tokens, _ in parts)
    return max(attention, feed_forward)
