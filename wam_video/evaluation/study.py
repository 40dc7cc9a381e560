"""What a study is: a score of one model that goes beyond the recorded windows of `open_loop`, and how it reports.

A study looks at one model on one body and returns rows (figures with intervals), answers (does a figure cross its control?)
and what it had to leave out. It knows nothing of JSON or pages: `evaluate` writes the first, `study_page` the second.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from jaxtyping import UInt8
from torch import Tensor

from wam_video.data.simulation import Environment
from wam_video.errors import ConfigError, one_of
from wam_video.evaluation.intervals import BootstrapConfig, Estimate
from wam_video.evaluation.open_loop import Group, Key, Sampler
from wam_video.evaluation.scores import Answer, Check, Row, status_of
from wam_video.evaluation.svg import Series
from wam_video.evaluation.windows import EvalData
from wam_video.inference.pipeline import WAMPipeline

WEIGHTED = ("lpips", "fvd")
"""Metrics that need a network's weights."""


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """What studies may use beside the model and the windows; a study without what it needs is left out, and says so."""

    env: str | None = None
    """Simulator of the body, as `rollout` names it."""
    env_options: Mapping[str, str] = field(default_factory=dict[str, str])
    episodes: int = 8
    """To simulate or to imagine, where a study does."""
    inverse_model: str | None = None
    """Checkpoint that reads actions out of pictures and is not the one that is scored."""
    weights: Mapping[str, str] = field(default_factory=dict[str, str])
    """Metric (`lpips`, `fvd`) -> safetensors file of its network; nothing that could run code is loaded."""

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ConfigError(f"study episodes is {self.episodes}; allowed: 1 or more")
        for name in self.weights:
            if name not in WEIGHTED:
                raise ConfigError(one_of("--weights metric", name, WEIGHTED))


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a study looks at."""

    name: str
    pipe: WAMPipeline
    sampler: Sampler
    data: EvalData
    group: Group
    """Held-out windows of one body."""
    options: StudyOptions
    seed: int
    batch_size: int
    num_inference_steps: int | None
    """None: the checkpoint's own."""
    device: str
    bootstrap: BootstrapConfig
    inverse: Sampler | None = None
    """Of `options.inverse_model`."""
    open_environment: Callable[[], Environment] | None = None
    """Opens `options.env` at the model's picture size; None where none was named or its body is another."""
    on_progress: Callable[[int, int], None] = lambda done, total: None


@dataclass(frozen=True, kw_only=True)
class Film:
    """A moving picture for the page."""

    caption: str
    frames: UInt8[Tensor, "f h w 3"]
    seconds_a_frame: float


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One quantity over another, for the page; its points are rows too."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]


@dataclass(kw_only=True)
class Findings:
    """What a study found."""

    rows: list[Row] = field(default_factory=list[Row])
    answers: list[Answer] = field(default_factory=list[Answer])
    left_out: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    """(metric or study, reason): never a number in its place."""
    films: list[Film] = field(default_factory=list[Film])
    curves: list[Curve] = field(default_factory=list[Curve])
    timing: dict[str, float] = field(default_factory=dict[str, float])
    """Measured times, named with their unit: the only figures that differ from run to run."""


@dataclass(frozen=True, kw_only=True)
class StudyWords:
    """What the page says."""

    title: str
    """A question to a reader who has never seen a model, e.g. `Physics: does the world behave?`"""
    sentence: str
    """How it is measured and what to compare."""
    metrics: Mapping[str, str]
    """Metric -> label, in the order of the page, with unit and direction (longer or shorter is better)."""
    conditions: Mapping[str, str]
    """Condition -> label; the first is the model."""


class Study(Protocol):
    """A score of one model."""

    name: str
    words: StudyWords

    def run(self, subject: Subject) -> Findings:
        """Measure.

        Raises:
            WamError: The request can't be met; what merely lacks something optional is left out instead.
        """
        ...


def missing(study: str, reason: str) -> Findings:
    """Return findings that hold nothing but the reason."""
    return Findings(left_out=[(study, reason)])


def answer(body: str, check: Check, advantage: Estimate) -> Answer:
    """Answer a study's question by an advantage that is above 0 where the answer is yes.

    Args:
        body: Name of the embodiment.
        check: From `question`.
        advantage: Of the better condition over the worse, with its interval.
    """
    return Answer(check=check, embodiment=body, advantage=advantage, status=status_of(advantage))


def question(name: str, metric: str, better: Key, worse: Key, *, asks: str, flag: str) -> Check:
    """Return a study's question: `better` and `worse` are (study, condition), `flag` is what to say if the answer is no."""
    return Check(name=name, mode=None, metric=metric, better=better, worse=worse, question=asks, flag=flag)


def select(names: Sequence[str], known: Mapping[str, Study]) -> list[Study]:
    """Return the studies of those names in the order of the table; `all` is every one of them."""
    chosen = set(known) if "all" in names else set(names)
    return [study for name, study in known.items() if name in chosen]
