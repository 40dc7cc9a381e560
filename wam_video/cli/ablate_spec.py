"""What an ablation is: variants, seeds and what is the same for all; and the runs that follow from it."""

import json
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from wam_video.config import load, to_dict
from wam_video.errors import ConfigError, one_of
from wam_video.evaluation.ablation import StatisticsConfig
from wam_video.evaluation.ablation_record import METRICS, ROLLOUT, Metric
from wam_video.tensors import Mode
from wam_video.training.config import TrainConfig

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_FORCED = ("seed", "output_dir", "export_on_save")
"""Set for each cell; an ablation can't set them."""


@dataclass(frozen=True, kw_only=True)
class EvaluateSpec:
    """How every cell is scored on held-out episodes."""

    windows: int = 128
    modes: list[str] = field(default_factory=list[str])
    """Empty: all of them."""
    steps: int | None = None
    """From noise to data; None: the checkpoint's own."""
    seed: int = 0
    """Of the noise, the same for all."""
    split: str = "val"


@dataclass(frozen=True, kw_only=True)
class RolloutSpec:
    """How every cell acts in a simulator, on the same starts."""

    env: str = ""
    """As of `wam-video rollout`; empty: no rollouts."""
    env_options: dict[str, str] = field(default_factory=dict[str, str])
    episodes: int = 20
    rows: int = 8
    execute: int | None = None
    max_steps: int | None = None
    steps: int | None = None
    path: str | None = None
    seed: int = 1000


@dataclass(frozen=True, kw_only=True)
class AblationConfig:
    """An ablation: `configs/ablation/*.yaml`."""

    name: str = ""
    """For the page and the card; empty: the name of the file."""
    configs: list[str] = field(default_factory=list[str])
    """YAML files of a training run, merged left to right."""
    overrides: list[str] = field(default_factory=list[str])
    """`key=value` for every variant."""
    variants: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    """Name -> what differs: `key=value`, or further YAML files."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    data: str = ""
    """Shards to score on; empty: the folder that the runs train on, where it is one."""
    reference: str = ""
    """The variant that the others are compared with; empty: the first."""
    evaluate: EvaluateSpec = field(default_factory=EvaluateSpec)
    rollout: RolloutSpec = field(default_factory=RolloutSpec)
    metrics: list[str] = field(default_factory=list[str])
    """`MODE.SCORE`, `MODE.SCORE-CONDITION` or `rollout.success`; empty: `ablation_record.METRICS`."""
    statistics: StatisticsConfig = field(default_factory=StatisticsConfig)

    def __post_init__(self) -> None:
        if not self.variants or not self.seeds:
            raise ConfigError(
                "variants or seeds are empty; give at least one of each: variants: {a: [key=value]}, seeds: [0]"
            )
        for name in (*self.variants, *([self.name] if self.name else [])):
            if not _NAME.fullmatch(name):
                raise ConfigError(f"name {name!r} can't be a folder's; allowed: letters, digits, _ and -")
        if len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ConfigError(f"seeds are {self.seeds}; allowed: different numbers of 0 or more")
        if self.reference and self.reference not in self.variants:
            raise ConfigError(one_of("reference", self.reference, self.variants))
        self._check_scores()
        for setting in [*self.overrides, *(s for values in self.variants.values() for s in values)]:
            if setting.partition("=")[0] in _FORCED:
                raise ConfigError(
                    f"{setting!r} can't be set: an ablation sets it for each run; remove it (seeds are in `seeds`)"
                )

    def _check_scores(self) -> None:
        if self.evaluate.windows < 1 or self.rollout.episodes < 1:
            raise ConfigError("evaluate.windows and rollout.episodes must be 1 or more")
        for mode in self.evaluate.modes:
            if mode not in list(Mode):
                raise ConfigError(one_of("evaluate.modes entry", mode, list(Mode)))
        for metric in map(Metric.parse, self.metrics):
            if metric.mode == ROLLOUT and not self.rollout.env:
                raise ConfigError(f"metrics entry {metric.name!r} needs a simulator; set rollout.env")

    @property
    def compared_with(self) -> str:
        """The reference's name."""
        return self.reference or next(iter(self.variants))

    @property
    def shown(self) -> list[str]:
        """The metrics of the table."""
        scored = self.evaluate.modes or list(Mode)
        chosen = [m for m in METRICS if Metric.parse(m).mode in scored]
        return self.metrics or [*chosen, *(["rollout.success"] if self.rollout.env else [])]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One cell: a variant with a seed, its folder, and the commands that make it."""

    variant: str
    seed: int
    folder: Path
    resolved: Mapping[str, Any]
    """Everything that its figures depend on, as plain containers."""
    commands: Mapping[str, tuple[str, ...]]
    """Step -> arguments of `python -m`."""

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.variant}/seed{self.seed}"

    @property
    def digest(self) -> str:
        """Hash of what its figures depend on."""
        return sha256(json.dumps(self.resolved, sort_keys=True).encode()).hexdigest()

    def shell(self, step: str) -> str:
        """Return the command line of a step."""
        return shlex.join([Path(sys.executable).name, "-m", *self.commands[step]])


def plan(config: AblationConfig, output: Path) -> list[Plan]:
    """Return all cells, seed by seed, so that early ones can be compared.

    Raises:
        ConfigError: A run's configuration is wrong, or the data to score on aren't clear.
    """
    return [_plan_one(config, output, name, seed) for seed in config.seeds for name in config.variants]


def _plan_one(config: AblationConfig, output: Path, variant: str, seed: int) -> Plan:
    folder = output / variant / f"seed{seed}"
    sources = [*config.configs, *config.overrides, *config.variants[variant], f"seed={seed}"]
    try:
        train = load(TrainConfig, sources)
    except ConfigError as error:
        raise ConfigError(f"variant {variant!r}: {error}") from error
    _check(variant, train)
    data = config.data or _only_folder(train, variant)
    settings = {k: v for k, v in to_dict(train).items() if k not in ("output_dir", "export_on_save")}
    resolved = {"train": settings, "data": data, "evaluate": asdict(config.evaluate)}
    where = [f"output_dir={folder / 'train'}", "export_on_save=false"]
    commands = {
        "train": ("wam_video.cli.train", *sources, *where),
        "evaluate": _evaluate(config, variant, folder, data),
    }
    if config.rollout.env:
        resolved["rollout"] = asdict(config.rollout)
        commands["rollout"] = _rollout(config.rollout, variant, folder)
    return Plan(variant=variant, seed=seed, folder=folder, resolved=resolved, commands=commands)


def _check(variant: str, train: TrainConfig) -> None:
    if train.max_minutes is not None:
        raise ConfigError(f"variant {variant!r}: max_minutes is set; an ablation compares equal steps: remove it")
    if train.adapter.kind != "none" and train.adapter.export == "adapter":
        raise ConfigError(
            f"variant {variant!r}: adapter.export is 'adapter'; an ablation scores whole models: set it to merged"
        )
    if not train.data.datasets:
        raise ConfigError(f"variant {variant!r}: data.datasets is empty; give a configuration with data in `configs`")


def _only_folder(train: TrainConfig, variant: str) -> str:
    folders = sorted({d.path for d in train.data.datasets.values()})
    if len(folders) != 1:
        raise ConfigError(
            f"data is not set, and variant {variant!r} trains on {', '.join(folders)}; say which to score on"
        )
    return folders[0]


def _evaluate(config: AblationConfig, variant: str, folder: Path, data: str) -> tuple[str, ...]:
    spec = config.evaluate
    return (
        *("wam_video.cli.evaluate", "--model", f"{variant}={folder / 'train' / 'model'}", "--data", data),
        *("--windows", str(spec.windows), "--seed", str(spec.seed), "--split", spec.split, "--episode-sums"),
        *(("--modes", *spec.modes) if spec.modes else ()),
        *_option("--steps", spec.steps),
        *("--output", str(folder / "evaluation")),
    )


def _rollout(spec: RolloutSpec, variant: str, folder: Path) -> tuple[str, ...]:
    return (
        *("wam_video.cli.rollout", "--model", f"{variant}={folder / 'train' / 'model'}", "--env", spec.env),
        *(part for key, value in spec.env_options.items() for part in ("--env-option", f"{key}={value}")),
        *("--episodes", str(spec.episodes), "--rows", str(spec.rows), "--seed", str(spec.seed), "--films", "0"),
        *(*_option("--execute", spec.execute), *_option("--max-steps", spec.max_steps)),
        *(*_option("--steps", spec.steps), *_option("--path", spec.path)),
        *("--output", str(folder / "rollout"), "--controls"),
    )


def _option(name: str, value: object) -> tuple[str, ...]:
    return () if value is None else (name, str(value))
