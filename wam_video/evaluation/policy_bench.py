"""How long a decision takes, and where: encoding, prefill, denoising, decoding, and what lies between them.

A decision is a robot's: the frames that came since the last one are shown to a session, and it acts. Several ways to decide take
turns in one process, in alternating order, so that a machine whose speed drifts favours none; ratios are pair by pair.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch

from wam_video.errors import ConfigError
from wam_video.evaluation.policy_naive import Naive, chunks_of, remembered
from wam_video.flow.modes import POLICY_PATHS, ModeSpec, path_grid
from wam_video.flow.scheduler import check_policy_path, guidance_scales
from wam_video.flow.solvers import num_calls
from wam_video.inference.pipeline import WAMPipeline
from wam_video.inference.plan import DecisionConfig, decision_layout, plan_decision
from wam_video.inference.speed import SpeedConfig, faster_copy, weight_bytes
from wam_video.inference.stream import StreamSession
from wam_video.models.devices import get_device
from wam_video.models.flops import NetworkShape, count_parameters
from wam_video.models.video_codec import num_latents, spatial_factor, temporal_factor

PARTS = ("encode", "prefill", "denoise", "decode", "rest")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to decide."""

    name: str
    steps: int | None = None
    path: str | None = None
    guidance: float | None = None
    reuse: float | None = None
    """Tolerance of `flow.reuse`."""
    decode: bool = False
    """Whether the video that a path makes is decoded."""
    recompute: bool = False
    """Whether a causal network goes without its cache (`policy_naive`)."""
    compile: str = "none"
    """As of `inference.speed.SpeedConfig`, like `quantize`."""
    quantize: str = "none"

    @property
    def speed(self) -> SpeedConfig:
        """How the network is run."""
        return SpeedConfig(compile=self.compile, quantization=self.quantize)


@dataclass(frozen=True, kw_only=True)
class PolicyBenchConfig:
    """What is measured."""

    variants: tuple[Variant, ...]
    decisions: int = 20
    """Counted ones of each variant."""
    warmup: int = 2
    robots: int = 1
    embodiment: str | None = None
    prompt: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in (("decisions", 1), ("warmup", 0), ("robots", 1)):
            if getattr(self, name) < low:
                raise ConfigError(f"{name} is {getattr(self, name)}; allowed: {low} or more")
        names = [variant.name for variant in self.variants]
        if not names or len(set(names)) != len(names):
            raise ConfigError(
                f"variants are {', '.join(names) or 'none'}; give at least one, each under a name of its own"
            )


class Stopwatch:
    """Seconds spent inside some calls; of calls within calls only the outer one counts."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._device, self._inside = device, False

    def now(self) -> float:
        """Return the time when everything that was begun is done."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return perf_counter()

    @contextmanager
    def watch(self, owner: Any, method: str, part: str) -> Iterator[None]:
        """Count a method's calls as `part` until the block ends."""
        inner = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return inner(*args, **kwargs)
            self._inside, began = True, self.now()
            try:
                return inner(*args, **kwargs)
            finally:
                self.seconds[part] += self.now() - began
                self._inside = False

        own = owner.__dict__.get(method)  # of a network that is replayed (`inference.speed`)
        owner.__dict__[method] = timed  # nn.Module would refuse a function as an attribute of a module's name
        try:
            yield
        finally:
            del owner.__dict__[method]
            if own is not None:
                owner.__dict__[method] = own


@dataclass(frozen=True, kw_only=True)
class Timed:
    """One decision."""

    total: float
    cpu: float
    """Processor seconds of this process: what other programs on the machine do not change."""
    parts: dict[str, float]
    calls: int


def run_as(pipe: WAMPipeline, variants: Sequence[Variant]) -> dict[str, WAMPipeline]:
    """Return the pipeline of each variant: the given one, or one whose network is compiled or quantized; alike ones share it.

    Raises:
        ConfigError: The device or the network can't do what a variant says.
    """
    made = {SpeedConfig(): pipe}
    for variant in variants:
        if variant.speed not in made:
            made[variant.speed] = faster_copy(pipe, variant.speed)
    return {variant.name: made[variant.speed] for variant in variants}


def measure(
    pipes: Mapping[str, WAMPipeline],
    config: PolicyBenchConfig,
    on_decision: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, list[Timed]]:
    """Decide with every variant, on its pipeline, in turn, and return the timings of each, warm-up left out."""
    robots = {variant.name: _Robot(pipes[variant.name], config, variant) for variant in config.variants}
    found: dict[str, list[Timed]] = {name: [] for name in robots}
    rounds = config.warmup + config.decisions
    for turn in range(rounds):
        for name in sorted(robots, reverse=bool(turn % 2)):
            timed = robots[name].decide(turn)
            if turn >= config.warmup:
                found[name].append(timed)
        on_decision(turn + 1, rounds)
    return found


class _Robot:
    """A session that is shown noise."""

    def __init__(self, pipe: WAMPipeline, config: PolicyBenchConfig, variant: Variant) -> None:
        self._pipe, self._config, self._variant = pipe, config, variant
        self._watch = Stopwatch(pipe._execution_device)
        began = self._watch.now()
        self._session: StreamSession = pipe.stream(
            embodiment=config.embodiment,
            prompt=config.prompt,
            batch_size=config.robots,
            guidance_scale=variant.guidance,
        )
        self.start_ms = round(1000 * (self._watch.now() - began), 3)
        self._spec = pipe.processor.spec(self._session.embodiments[0])
        self._rng = np.random.default_rng(config.seed)
        self._naive = Naive(pipe, self._spec.name, config.robots) if variant.recompute else None
        self._text = pipe.encode_prompts([config.prompt])[0] if variant.recompute else torch.zeros(0)
        self.fill()

    def fill(self) -> None:
        """Show the context, and to a network that remembers as much as it will ever remember."""
        pipe, rule = self._pipe, self._pipe.transformer.attention
        self._session.observe(*self._sees(pipe.processor.window.num_context_frames))
        for _ in range(remembered(pipe) // rule.chunk_frames if rule.causal else 0):
            self._session.observe(*self._sees(fresh_frames(pipe)))

    def decide(self, turn: int) -> Timed:
        """Observe and act."""
        pipe, watch = self._pipe, self._watch
        video, state = self._sees(fresh_frames(pipe))
        watch.seconds.clear()
        with ExitStack() as stack:
            for owner, method, part in _calls(pipe):
                stack.enter_context(watch.watch(owner, method, part))
            began, cpu = watch.now(), process_time()
            calls = self._naively() if self._naive is not None else self._decided(video, state, turn)
            total, cpu = watch.now() - began, process_time() - cpu
        parts = {part: watch.seconds[part] for part in PARTS[:-1]}
        return Timed(total=total, cpu=cpu, parts={**parts, "rest": total - sum(parts.values())}, calls=calls)

    def _decided(self, video: np.ndarray, state: np.ndarray | None, turn: int) -> int:
        variant, config = self._variant, self._config
        self._session.observe(video, state)
        out = self._session.act(
            path=variant.path,
            num_inference_steps=variant.steps,
            reuse_tolerance=variant.reuse,
            generator=[config.seed + turn] * config.robots,
            decode=variant.decode,
        )
        return out.calls or 0

    def _naively(self) -> int:
        assert self._naive is not None, "the variant recomputes"
        spec, grid = _path(self._pipe, self._variant)
        calls = num_calls(grid, self._pipe.scheduler.config["solver"])
        self._naive.decide(self._text, spec, calls, guided=_guided(self._pipe, self._variant))
        return calls

    def _sees(self, frames: int) -> tuple[np.ndarray, np.ndarray | None]:
        window, rows = self._pipe.processor.window, self._config.robots
        size, views = (window.height or 64, window.width or 64), min(len(self._spec.views), window.max_views)
        video = self._rng.integers(0, 256, (rows, views, frames, *size, 3), dtype=np.uint8)
        return video, np.zeros((rows, self._spec.state_dim), np.float32) if self._spec.state_dim else None


def fresh_frames(pipe: WAMPipeline) -> int:
    """Return the frames that a robot shows between two decisions: a chunk's, or one to a network without chunks."""
    rule = pipe.transformer.attention
    return rule.chunk_frames * temporal_factor(pipe.vae) if rule.causal else 1


def _calls(pipe: WAMPipeline) -> list[tuple[Any, str, str]]:
    calls = [(pipe.vae, "encode", "encode"), (pipe.vae, "decode", "decode")]
    if hasattr(pipe.vae, "encoder"):  # a stream encodes group by group
        calls.append((pipe.vae.encoder, "forward", "encode"))
    return [*calls, (pipe.transformer, "observe", "prefill"), (pipe.transformer, "forward", "denoise")]


def summary(
    pipes: Mapping[str, WAMPipeline], config: PolicyBenchConfig, found: dict[str, list[Timed]], peak: str
) -> dict[str, Any]:
    """Return the figures as JSON-able numbers: latencies in milliseconds, parts, operations, and ratios to the first variant.

    Args:
        pipes: The policy, as each variant runs it.
        config: What was measured.
        found: The timings.
        peak: Name of the device of the roofline (`models.devices`).

    Raises:
        ConfigError: There is no such device.
    """
    first, pipe = found[config.variants[0].name], pipes[config.variants[0].name]
    on_paper = [
        _on_paper(pipes[variant.name], config, variant, found[variant.name], peak) for variant in config.variants
    ]
    return {
        "network": {
            "parameters": sum(count_parameters(pipe.transformer).values()),
            "dtype": str(pipe.transformer.patch_embedding.weight.dtype).removeprefix("torch."),
        },
        "robots": config.robots,
        "decisions": config.decisions,
        "peak": {"device": peak, "bf16_tflops": get_device(peak).bf16_tflops},
        "variants": [
            {
                **asdict(variant),
                "weights_mb": round(weight_bytes(pipes[variant.name].transformer) / 2**20, 3),
                **_latencies(found[variant.name]),
                **paper,
                "fewer_flops": round(on_paper[0]["flops"] / paper["flops"], 3),
                "ratio": _ratios([t.total for t in found[variant.name]], [t.total for t in first]),
                "cpu_ratio": _ratios([t.cpu for t in found[variant.name]], [t.cpu for t in first]),
            }
            for variant, paper in zip(config.variants, on_paper, strict=True)
        ],
        "remembered_latent_frames": remembered(pipe),
    }


def _latencies(timings: Sequence[Timed]) -> dict[str, Any]:
    ms = 1000 * np.asarray([timed.total for timed in timings])
    p50, p95, p99 = (round(float(np.quantile(ms, q)), 3) for q in (0.5, 0.95, 0.99))
    parts = {part: round(1000 * float(np.median([t.parts[part] for t in timings])), 3) for part in PARTS}
    return {
        "latency_ms": {"p50": p50, "p95": p95, "p99": p99},
        "cpu_ms": round(1000 * float(np.median([t.cpu for t in timings])), 3),
        "hz": round(1000 / p50, 3),
        "parts_ms": parts,
        "calls": float(np.mean([t.calls for t in timings])),
    }


def _ratios(seconds: Sequence[float], first: Sequence[float]) -> dict[str, float]:
    ratios = np.asarray(seconds) / np.asarray(first)
    return {
        "median": round(float(np.median(ratios)), 4),
        "min": round(float(ratios.min()), 4),
        "max": round(float(ratios.max()), 4),
    }


def _on_paper(
    pipe: WAMPipeline, config: PolicyBenchConfig, variant: Variant, timings: Sequence[Timed], peak: str
) -> dict[str, Any]:
    """Return operations and roofline of the network's part; codec, text encoder and host are not counted there."""
    network, window, codec = pipe.transformer, pipe.processor.window, pipe.vae
    rule, (spec, path) = network.attention, _path(pipe, variant)
    context, total = remembered(pipe), num_latents(codec, window.num_frames)
    frames = context + (rule.chunk_frames if rule.causal else total - context)
    side = spatial_factor(codec)
    grid = (frames, (window.height or 64) // side, (window.width or 64) // side)
    shape = NetworkShape.of(network.config)
    layout = shape.layout(views=window.max_views, grid=grid, actions=window.action_horizon // chunks_of(pipe))
    calls = float(np.mean([t.calls for t in timings]))  # reused velocities make it a fraction
    decision = DecisionConfig(
        calls=max(round(calls), 1),
        context=context,
        fresh=rule.chunk_frames if rule.causal and not variant.recompute else None,
        cached=rule.caches and not variant.recompute,
        text=pipe.tokenizer.model_max_length if pipe.tokenizer is not None else 64,
        guidance=_guided(pipe, variant),
        batch_size=config.robots,
    )
    plan = plan_decision(
        shape,
        decision_layout(layout, spec, context, rule),
        sum(count_parameters(network).values()),
        decision,
        get_device(peak),
    )
    seconds = float(np.median([t.parts["prefill"] + t.parts["denoise"] for t in timings]))
    flops = round((plan.prefill_flops + calls * plan.call_flops) * decision.rows)
    return {
        "steps_of_path": len(path) - 1,
        "flops": flops,
        "gflop_s": round(flops / seconds / 1e9, 3),
        "share_of_peak": round(flops / seconds / (get_device(peak).bf16_tflops * 1e12), 6),
        "floor_ms": round(1000 * plan.peak_latency_s, 4),
        "share_of_roofline": round(plan.peak_latency_s / seconds, 6),
    }


def _path(pipe: WAMPipeline, variant: Variant) -> tuple[ModeSpec, torch.Tensor]:
    spec = POLICY_PATHS[check_policy_path(variant.path or pipe.scheduler.config["policy_path"])]
    return spec, path_grid(spec, pipe.scheduler.path(variant.steps))


def _guided(pipe: WAMPipeline, variant: Variant) -> bool:
    scale = pipe.scheduler.config["guidance_scale"] if variant.guidance is None else variant.guidance
    return any(one != 1 for one in guidance_scales(scale))
