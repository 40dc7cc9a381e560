"""Fast policy paths: what is lost by imagining less and by taking fewer steps, against what a decision costs."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from statistics import median

import torch
from jaxtyping import Float
from torch import Tensor

from wam_video.data.simulation import Environment
from wam_video.evaluation.agents import ModelAgent, ModelOptions
from wam_video.evaluation.intervals import Estimate
from wam_video.evaluation.metrics import action_scores, action_sums
from wam_video.evaluation.rollout import Job, LoopConfig, roll
from wam_video.evaluation.scores import Row
from wam_video.evaluation.studies.ledger import Figure, Ledger, refused, walk
from wam_video.evaluation.study import Curve, Findings, StudyWords, Subject, missing, question
from wam_video.evaluation.svg import Series
from wam_video.flow.modes import POLICY_PATHS, path_grid
from wam_video.flow.scheduler import guidance_scales
from wam_video.flow.solvers import num_calls
from wam_video.inference.pipeline import WAMPipeline
from wam_video.inference.plan import DecisionConfig, decision_layout, plan_decision
from wam_video.models import video_codec
from wam_video.models.devices import get_device
from wam_video.models.shapes import NetworkShape
from wam_video.tensors import Batch, Mode

_NAME = "paths"
STEPS = (1, 2, 4, 8)
_ORDER = ("absent", "unknown", "joint")
_ROWS = 4
"""Worlds side by side: a number of its own, so that no figure depends on the batch size of the recorded windows."""
_TIMED = 5
_CHEAPEST = "absent_1"
_OTHER = "another_moment"


@dataclass(frozen=True, kw_only=True)
class Way:
    """A path with its number of steps."""

    path: str
    steps: int

    @property
    def name(self) -> str:
        """Of the condition."""
        return f"{self.path}_{self.steps}"

    @property
    def label(self) -> str:
        """For the page."""
        return f"{self.path}, {self.steps} step{'s' if self.steps > 1 else ''}"


WAYS = tuple(Way(path=path, steps=steps) for path in _ORDER for steps in STEPS)


class Paths:
    """The study `paths`."""

    name = _NAME
    words = StudyWords(
        title="Fast policy paths: how cheap may a decision be?",
        sentence=(
            "A policy may leave the future video out (absent), leave it noise (unknown) or imagine it with the actions (joint), "
            "each in 1 to 8 steps. The error is that of its actions on recorded moments, beside the average action, the last action "
            "again and the cheapest way's actions of another moment. One step tends to the mean of all likely plans, which lowers this "
            "error and need not act better: with a simulator, episodes are played too. Operations are counted on paper, for the "
            "network alone."
        ),
        metrics={
            "nrmse": "Error of the actions, standard deviations (shorter is better)",
            "success": "Episodes that succeeded, % (longer is better)",
            "progress": "How far they came at best, % of the task (longer is better)",
            "gflop": "Cost of a decision, 10^9 operations (shorter is cheaper)",
        },
        conditions={way.name: way.label for way in WAYS}
        | {"mean_action": "the average action", "hold_last": "the last action again", _OTHER: "absent, 1 step, for another moment"},
    )  # fmt: skip

    def run(self, subject: Subject) -> Findings:
        """Measure; see `study.Study`."""
        if Mode.POLICY in refused(subject):
            return missing(_NAME, "the model plans no actions for this body")
        body, group = subject.group.spec.name, subject.group
        ledger = Ledger(_NAME, body, group.episodes, subject.bootstrap)
        times = _recorded(subject, ledger)
        error = Figure(
            metric="nrmse",
            unit="",
            score=lambda sums: action_scores(sums, group.action_scale)[0]["nrmse"],
            more_is_better=False,
        )
        ledger.rows([error], list(self.words.conditions))
        _ask(ledger, error)
        found = ledger.findings
        paid = costs(subject.pipe)
        if paid is None:
            found.left_out.append((f"{_NAME}: operations", "they are counted for networks without chunks"))
        found.rows += [_cost_row(body, way, cost) for way, cost in (paid or {}).items()]
        if subject.open_environment is None:
            found.left_out.append((f"{_NAME}: success", "needs --env with a simulator of this body"))
        else:
            play(subject, found)
        if paid is not None:
            found.curves += _curves(found.rows, paid)
        found.timing |= times
        return found


def _ask(ledger: Ledger, error: Figure) -> None:
    own, checks = (_NAME, _CHEAPEST), (
        ("mean_action", "Is the cheapest way better than the average action?", "in one step without video the policy is no better "
         "than the average action"),
        (_OTHER, "Do its actions fit this moment, not just any?", "in one step without video the policy ignores what it sees"),
    )  # fmt: skip
    for worse, asks, flag in checks:
        ledger.ask(question(f"{_NAME}_beats_{worse}", "nrmse", own, (_NAME, worse), asks=asks, flag=flag), error)


def _recorded(subject: Subject, ledger: Ledger) -> dict[str, float]:
    """Add the errors on recorded windows; return the milliseconds of a decision for one robot."""
    group, width = subject.group, subject.group.spec.action_dim
    for part in walk(subject):
        true, mask = part.batch.actions[..., :width], part.batch.action_mask[..., :width]

        def errors(actions: Tensor, target: Tensor = true, known: Tensor = mask) -> Tensor:
            return action_sums(actions[..., :width], target, known, group.action_mean)

        ledger.add("mean_action", errors(group.action_mean.to(true).expand_as(true)))
        if group.previous_actions is not None:
            held = group.previous_actions[list(part.places)].to(true)
            ledger.add("hold_last", errors(held[:, None].expand_as(true)))
        for way in WAYS:
            actions = _decide(subject.pipe, part.batch, way, part.seeds)
            ledger.add(way.name, errors(actions))
            if way.name == _CHEAPEST and part.donor is not None:
                other = part.donor
                ledger.add(_OTHER, errors(actions, other.actions[..., :width], other.action_mask[..., :width]))
    one = subject.data.dataset.batch([group.indices[0]])
    return {f"{way.name}_ms": _milliseconds(subject.pipe, one, way) for way in WAYS}


def _decide(pipe: WAMPipeline, batch: Batch, way: Way, seeds: Sequence[int]) -> Float[Tensor, "b ta da"]:
    made = pipe.predict(
        batch,
        "policy",
        policy_path=way.path,
        num_inference_steps=way.steps,
        generator=list(seeds),
        output_type="pt",
    )
    return torch.as_tensor(made.actions).float().cpu()


def _milliseconds(pipe: WAMPipeline, one: Batch, way: Way) -> float:
    """Return the median time of a decision on one window, codec and prompt included."""
    seconds = list[float]()
    for _ in range(1 + _TIMED):
        before = time.perf_counter()
        _decide(pipe, one, way, [0])
        seconds.append(time.perf_counter() - before)
    return round(1000 * median(seconds[1:]), 3)


def costs(pipe: WAMPipeline) -> dict[Way, float] | None:
    """Return the operations of a decision of each way, 10^9; None for a causal network, which decides chunk by chunk."""
    network, codec, window = pipe.transformer, pipe.vae, pipe.processor.window
    rule = network.attention
    if rule.causal or window.height is None or window.width is None:
        return None
    shape, settings = NetworkShape.of(network.config), pipe.scheduler.config
    side = video_codec.spatial_factor(codec)
    grid = (video_codec.num_latents(codec, window.num_frames), window.height // side, window.width // side)
    layout = shape.layout(views=window.max_views, grid=grid, actions=window.action_horizon)
    paid = {}
    for way in WAYS:
        spec = POLICY_PATHS[way.path]
        config = DecisionConfig(
            calls=num_calls(path_grid(spec, pipe.scheduler.path(way.steps)), settings.solver),
            context=video_codec.num_latents(codec, window.num_context_frames),
            text=pipe.tokenizer.model_max_length if pipe.tokenizer is not None else 1,
            guidance=any(scale != 1 for scale in guidance_scales(settings.guidance_scale)),
        ).for_network(rule)
        tokens = decision_layout(layout, spec, config.context, rule)
        paid[way] = plan_decision(shape, tokens, 0, config, get_device("cpu")).decision_flops / 1e9
    return paid


def _cost_row(body: str, way: Way, cost: float) -> Row:
    known = Estimate(value=cost, low=None, high=None, num_windows=0, num_episodes=0)
    return Row(embodiment=body, mode=_NAME, condition=way.name, metric="gflop", unit="GFLOP", estimate=known)


def play(subject: Subject, found: Findings) -> None:
    """Play the same episodes with every way, and add success and progress to what was found."""
    opened = subject.open_environment
    if opened is None:
        return
    with ExitStack() as stack:
        _play_all(subject, lambda: stack.enter_context(closing(opened())), found)


def _play_all(subject: Subject, open_world: Callable[[], Environment], found: Findings) -> None:
    first = open_world()
    jobs = [Job(task=task, index=i, filmed=False) for task in first.tasks for i in range(subject.options.episodes)]
    worlds: list[Environment] = [first, *(open_world() for _ in range(min(_ROWS, len(jobs)) - 1))]
    loop, spec = LoopConfig(rows=len(worlds), seed=subject.seed), subject.group.spec
    ledger = Ledger(_NAME, spec.name, [job.start_id(loop.seed) for job in jobs], subject.bootstrap)
    for number, way in enumerate(WAYS, 1):
        options = ModelOptions(num_inference_steps=way.steps, policy_path=way.path, device=subject.device)
        played = roll(worlds, ModelAgent(subject.name, subject.pipe, spec, options), jobs, loop)
        ends = [[float(e.success_step is not None), max(o.progress for o in e.outcomes), 1.0] for e in played]
        ledger.add(way.name, torch.tensor(ends))
        subject.on_progress(number, len(WAYS))
    for way in WAYS:
        won, _, of = ledger.sums(way.name).sum(dim=0).tolist()
        ledger.rate("success", way.name, round(won), round(of))
    figure = Figure(metric="progress", unit="%", score=lambda sums: 100 * sums[..., 1] / sums[..., 2])
    ledger.rows([figure], [way.name for way in WAYS])
    found.rows += ledger.findings.rows


def _curves(rows: Sequence[Row], paid: dict[Way, float]) -> list[Curve]:
    """Return each quality over the cost of a decision."""
    curves = []
    for metric, label in (("nrmse", "Error of the actions"), ("success", "% succeeded"), ("progress", "% of the task")):
        quality = {row.condition: row.estimate for row in rows if row.metric == metric}
        if not quality:
            continue
        series = []
        for place, path in enumerate(_ORDER, 1):
            ways = [way for way in WAYS if way.path == path and way.name in quality]
            series.append(
                Series(
                    label=path,
                    x=[paid[way] for way in ways],
                    y=[quality[way.name].value for way in ways],
                    low=[quality[way.name].low for way in ways],
                    high=[quality[way.name].high for way in ways],
                    style=f"s{place}",
                )
            )
        curves.append(Curve(title=f"{label}, over the cost", x_label="GFLOP a decision", y_label=label, series=series))
    return curves
