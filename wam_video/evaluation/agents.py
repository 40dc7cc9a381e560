"""What decides in a closed loop: a checkpoint, and the controls that its figures mean something next to."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from einops import rearrange

from wam_video.data.schema import EmbodimentSpec
from wam_video.data.simulation import Environment
from wam_video.errors import ConfigError, one_of
from wam_video.evaluation.moments import Moment, batch_of, look_ahead, look_back
from wam_video.evaluation.rollout import Plan, Row
from wam_video.inference.chunk_player import Before
from wam_video.inference.inputs import horizon
from wam_video.inference.opening import Acting
from wam_video.inference.speed import SpeedConfig
from wam_video.tensors import Batch, Mode

CONTROLS: dict[str, str] = {
    "expert": "the scripted expert, which sees what only the simulator knows",
    "random": "random actions",
    "hold": "holding still",
}
"""Name -> what the page calls it."""


class Control:
    """A policy that needs no model: `expert`, `random` or `hold`."""

    horizon = 1
    looks_back = ()

    def __init__(self, name: str) -> None:
        self.name = name
        self._experts: dict[int, Any] = {}

    def begin(self, row: Row) -> None:
        """Make the expert of this episode.

        Raises:
            ConfigError: The environment has none.
        """
        if self.name == "expert":
            expert = row.environment.expert(row.rng)
            if expert is None:
                raise ConfigError(
                    f"environment {row.environment.name!r} has no scripted expert; leave that control out"
                )
            self._experts[id(row)] = expert

    def decide(self, rows: Sequence[Row]) -> list[Plan]:
        """Return one action for each row."""
        return [Plan(actions=self._act(row)[None]) for row in rows]

    def _act(self, row: Row) -> np.ndarray:
        if self.name == "expert":
            return self._experts[id(row)]()
        return row.environment.random(row.rng) if self.name == "random" else row.environment.hold()


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """How a checkpoint decides."""

    num_inference_steps: int | None = None
    """None: its own."""
    policy_path: str | None = None
    """None: its own."""
    condition_on_committed: bool = True
    """With a latency: tell the model the actions that will have been carried out meanwhile."""
    continuation: str | None = None
    """What it makes of them: `prefix`, `guided` or `replace`; None: its own."""
    device: str = "cpu"
    speed: SpeedConfig = field(default_factory=SpeedConfig)


class ModelAgent:
    """A checkpoint as a policy; one batched call decides for all rows.

    Args:
        name: On the page.
        pipe: The checkpoint.
        spec: The environment's body.
        options: How it decides.

    Raises:
        ConfigError: The checkpoint does not know this body, or another shape of it.
    """

    def __init__(self, name: str, pipe: Acting, spec: EmbodimentSpec, options: ModelOptions) -> None:
        self.name, self.pipe, self.options = name, pipe, options
        pipe.set_progress_bar_config(disable=True)
        self.spec = check_body(pipe, spec)
        self.window = pipe.processor.window
        # what can't be asked of it is told before a world is reset
        pipe.sampling_facts(options.num_inference_steps, options.policy_path)
        self.horizon = horizon(self.window, self.spec.name)
        self.looks_back = look_back(self.window, self.spec)
        self.calls: list[tuple[int, float]] = []
        """Rows and seconds of each decision."""

    def begin(self, row: Row) -> None:
        """Nothing to prepare: what it knows of an episode is in the row."""

    def decide(self, rows: Sequence[Row], told: Sequence[Before] | None = None) -> list[Plan]:
        """Return a chunk for each row, and for filmed rows the pictures that they lead to in the model's mind.

        Args:
            rows: Who asks.
            told: What each carries out while it waits, and would after that; None: the loop keeps its plan.
        """
        before = time.perf_counter()
        latency = rows[0].config.latency if told is None else max(len(one.committed) for one in told)
        latency = latency if self.options.condition_on_committed else 0
        batch = self._batch(rows, latency, told)
        continuation = self.options.continuation
        more: dict[str, Any] = {} if continuation is None else {"continuation": continuation}
        if told is not None and continuation == "guided":
            more["planned_steps"] = self.horizon
        out = self.pipe.predict(
            batch,
            "policy",
            policy_path=self.options.policy_path,
            committed_steps=latency,
            **more,
            num_inference_steps=self.options.num_inference_steps,
            generator=[_noise_seed(row) for row in rows],
            output_type="pt",
        )
        if out.actions is None:
            raise ConfigError(
                f"model {self.name!r} gives no actions; a rollout needs a checkpoint that was trained with them"
            )
        actions = torch.as_tensor(out.actions)[:, : self.horizon, : self.spec.action_dim].float().cpu().numpy()
        self.calls.append((len(rows), time.perf_counter() - before))
        plans = [Plan(actions=chunk) for chunk in actions]
        filmed = [i for i, row in enumerate(rows) if row.job.filmed]
        if filmed and self.window.num_future_frames and Mode.FORWARD not in self.pipe.unanswered():
            self._imagine(rows, plans, filmed)
        return plans

    def _imagine(self, rows: Sequence[Row], plans: list[Plan], filmed: Sequence[int]) -> None:
        """Fill in what the model thinks will be seen if the plan is carried out."""
        chosen = [rows[i] for i in filmed]
        batch = self._batch(chosen, 0)
        actions, mask = batch.actions.clone(), batch.action_mask.clone()
        for place, i in enumerate(filmed):
            row, chunk = rows[i], plans[i].actions.copy()
            for step in range(row.config.latency):  # what the chunk before still does
                chunk[step] = row.committed.get(row.step + step, row.environment.hold())
            actions[place, : self.horizon, : self.spec.action_dim] = torch.from_numpy(chunk)
            mask[place, : self.horizon, : self.spec.action_dim] = True
        out = self.pipe.predict(
            replace(batch, actions=actions, action_mask=mask),
            "forward",
            num_inference_steps=self.options.num_inference_steps,
            generator=[_noise_seed(row) for row in chosen],
            output_type="pt",
        )
        if out.video is None:
            return
        frames = rearrange(
            (torch.as_tensor(out.video)[:, 0].float().cpu() * 255).round().to(torch.uint8), "b f c h w -> b f h w c"
        ).numpy()
        for place, i in enumerate(filmed):
            ahead = {step: frames[place, f] for f, step in enumerate(look_ahead(self.window, self.spec))}
            plans[i] = replace(plans[i], imagined=ahead)

    def _batch(self, rows: Sequence[Row], prefix: int, told: Sequence[Before] | None = None) -> Batch:
        """Put what each row sees into windows, with the actions that are decided already where the first `prefix` are."""
        moments = [self._moment(row, prefix) for row in rows]
        if told is not None:
            moments = [
                replace(
                    one,
                    actions=np.concatenate([plan.committed, plan.planned]) if prefix and len(plan.committed) else None,
                )
                for one, plan in zip(moments, told, strict=True)
            ]
        return batch_of(moments, self.window, self.spec, "rollout")

    def _moment(self, row: Row, prefix: int) -> Moment:
        ahead = [row.committed.get(row.step + step) for step in range(prefix)]
        decided = [action for action in ahead if action is not None]
        return Moment(
            pictures={row.step - step: frames for step, frames in row.history.items()},
            state=row.environment.state(),
            prompt=row.environment.prompt,
            key=f"{row.job.task}-{row.job.index}@{row.step}",
            actions=np.stack(decided) if prefix and len(decided) == prefix else None,
        )


def _noise_seed(row: Row) -> int:
    """Return the seed of a decision's noise: that of the run, the episode and the decision, and of nothing else."""
    parts = [row.config.seed, row.job.index, row.decisions, *row.job.task.encode()]
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def check_body(pipe: Acting, spec: EmbodimentSpec) -> EmbodimentSpec:
    """Return what the checkpoint knows of the environment's body."""
    known = pipe.processor.spec(spec.name)  # raises, and lists what it knows
    differences = [
        f"{what} {getattr(known, what)} (the environment has {getattr(spec, what)})"
        for what in ("action_dim", "state_dim", "action_rate", "views")
        if getattr(known, what) != getattr(spec, what)
    ]
    if differences:
        raise ConfigError(
            f"the checkpoint was trained on embodiment {spec.name!r} with {', '.join(differences)}; give the environment the same "
            "options as the data"
        )
    return known


def control_agents(names: Sequence[str], world: Environment) -> list[Control]:
    """Return the controls asked for; an expert only where there is one.

    Raises:
        ConfigError: There is no such control.
    """
    for name in names:
        if name not in CONTROLS:
            raise ConfigError(one_of("control", name, CONTROLS))
    world.reset(world.tasks[0], [0])
    has_expert = world.expert(np.random.default_rng(0)) is not None
    return [Control(name) for name in names if name != "expert" or has_expert]
