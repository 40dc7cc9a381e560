"""What a caller says of the plan before: the actions that are carried out while a chunk is made, and those after them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from wam_video.data.processor import WAMProcessor
from wam_video.errors import ConfigError
from wam_video.flow.continuation import Continuation, check_continuation, soft_mask
from wam_video.inference.per_row import one_each


@dataclass(frozen=True, kw_only=True)
class Commitment:
    """The plan before, from now on, in physical units, padded to the model's width."""

    actions: Float[Tensor, "b ta da"]
    committed: Bool[Tensor, "b ta"]
    planned: Bool[Tensor, "b ta"]
    """Those after the committed ones, which may still change."""
    continuation: str = "prefix"

    @property
    def held(self) -> Bool[Tensor, "b ta"]:
        """Which actions stand at clock 0 all along."""
        return self.committed if self.continuation == "prefix" else torch.zeros_like(self.committed)

    def after(self, executed: Sequence[Float[Tensor, "k da"] | None], done: Sequence[int], steps: int) -> "Commitment":
        """Return the plan of a whole chunk of so many steps, of which some are past.

        Args:
            executed: Of each row; NaN where nobody said which.
            done: How many steps are past in each row.
            steps: Of the chunk.
        """
        actions = torch.full_like(self.actions[:, :steps], torch.nan)
        planned = torch.zeros(actions.shape[:2], dtype=torch.bool)
        for place, (past, begin) in enumerate(zip(executed, done, strict=True)):
            if past is not None:
                actions[place, : len(past)] = past[:steps]
            known = (self.committed | self.planned)[place, : steps - begin, None]
            actions[place, begin:] = torch.where(known, self.actions[place, : steps - begin], actions[place, begin:])
            planned[place, begin:] = self.planned[place, : steps - begin]
        committed = ~actions.isnan().any(-1) & ~planned
        return replace(self, actions=actions.nan_to_num(), committed=committed, planned=planned)

    def bend(
        self, processor: WAMProcessor, bodies: Sequence[str], noise: Float[Tensor, "b ta da"], device: torch.device
    ) -> Continuation | None:
        """Return what bends the path of these actions; None where nothing does.

        Args:
            processor: Which normalises them.
            bodies: Of each row.
            noise: That the rest starts from, of the same shape.
            device: Where the path is walked.
        """
        if self.continuation == "prefix" or not bool(self.committed.any() | self.planned.any()):
            return None
        widths = torch.tensor([processor.action_dim(name) for name in bodies])
        has = torch.arange(self.actions.shape[2])[None] < widths[:, None]
        planned = self.planned if self.continuation == "guided" else torch.zeros_like(self.planned)
        weight = soft_mask(self.committed, planned)[..., None] * has[:, None]
        target = processor.normalize_actions(self.actions, processor.indices(bodies))
        target, weight, noise = (x.to(device) for x in (target, weight, noise))
        return Continuation(name=self.continuation, target=target, weight=weight, noise=noise)


@dataclass(frozen=True, kw_only=True)
class PlanBefore:
    """The same as the caller wrote it; `WAMPipeline.__call__` says what each means."""

    committed_actions: Any = None
    planned_actions: Any = None
    continuation: str = "prefix"

    def rows(self, names: tuple[str, ...], processor: WAMProcessor, horizons: Sequence[int]) -> Commitment:
        """Check it and bring it into one form.

        Args:
            names: The body of each row.
            processor: The model's.
            horizons: Of a chunk of each row; at least one action of it must be free.

        Raises:
            ConfigError: It is of another width or length, or what is planned would not be read.
        """
        check_continuation(self.continuation)
        if self.planned_actions is not None and self.continuation != "guided":
            raise ConfigError(
                f"planned_actions are given, but continuation {self.continuation!r} does not read them; leave them out or use 'guided'"
            )
        width = max(processor.max_action_dim, 1)
        actions = torch.zeros(len(names), processor.window.action_horizon, width)
        marks = []
        done = [0] * len(names)
        for what in ("committed_actions", "planned_actions"):
            given, known = getattr(self, what), torch.zeros(actions.shape[:2], dtype=torch.bool)
            widths = [processor.spec(name).action_dim for name in names]
            rows = [actions[0, :0]] * len(names) if given is None else one_each(what, given, widths, names, ndim=2)
            for i, row in enumerate(rows):
                if what == "committed_actions" and row.shape[0] and not row.shape[0] < horizons[i]:
                    raise ConfigError(
                        f"{what} has {row.shape[0]} steps; allowed: fewer than {horizons[i]}, the action horizon of {names[i]!r}"
                    )
                count = min(row.shape[0], max(horizons[i] - done[i], 0))  # a plan may go on past this chunk
                span = slice(done[i], done[i] + count)
                actions[i, span, : row.shape[1]] = row[:count]
                known[i, span] = True
                done[i] += count
            marks.append(known)
        return Commitment(actions=actions, committed=marks[0], planned=marks[1], continuation=self.continuation)
