"""Run every mode over recorded windows, beside the controls that say whether the figures mean anything.

Each run is the same thing: a batch of windows, altered or not, through one mode. "Shuffled actions" is a batch whose
actions are another window's; "shuffled video" one whose future is. The noise is a function of the seed and the window
alone, so batch size and order change nothing, and the runs that are compared start from the same noise.

Whether a mode sees what it must not see is asked directly: everything that its row of the table leaves to it (`flow.modes`) is
replaced by another window's, and its answer must stay the same to the bit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from hashlib import sha256

import torch
from torch import Tensor

from wam_video.evaluation.measured import CONTROL, BatchSums, Generated, Group, Key, Measured, Sampler, Shown
from wam_video.evaluation.metrics import action_sums
from wam_video.evaluation.open_loop_batch import MeasuredBatch
from wam_video.flow.modes import MODES, Role
from wam_video.tensors import Batch, Mode

__all__ = [
    "CONTROL",
    "Generated",
    "Group",
    "Key",
    "Measured",
    "OpenLoopConfig",
    "Sampler",
    "Shown",
    "donors",
    "measure",
]

NUM_PROBED = 16
"""Windows on which a mode is asked whether it sees what it must not see: one that does so does it everywhere."""

HIDDEN = "hidden_altered"
"""Condition of those runs."""


@dataclass(frozen=True, kw_only=True)
class OpenLoopConfig:
    """What is run."""

    modes: tuple[Mode, ...] = tuple(Mode)
    unanswered: frozenset[Mode] = frozenset()
    """Those that the model refuses (`inference.checks.check_answer`), which are left out."""
    batch_size: int = 16
    seed: int = 0
    num_shown: int = 6
    """Windows whose pixels and actions are kept for the page, evenly spread."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A mode on a batch that may have been altered with the help of another one."""

    mode: Mode
    condition: str
    alter: Callable[[Batch, Batch, Group], Batch]
    """From the batch and its donors: other windows of the same embodiment, one each."""
    needs_donor: bool = False
    must_not_matter: bool = False
    """What is altered is hidden from the mode: the answer is compared to the bit, not scored."""


def _same(batch: Batch, donor: Batch, group: Group) -> Batch:
    return batch


def _donor_actions(batch: Batch, donor: Batch, group: Group) -> Batch:
    return replace(batch, actions=donor.actions, action_mask=donor.action_mask)


def _mean_actions(batch: Batch, donor: Batch, group: Group) -> Batch:
    actions = torch.zeros_like(batch.actions)
    actions[..., : len(group.action_mean)] = group.action_mean.to(actions)
    return replace(batch, actions=torch.where(batch.action_mask, actions, 0.0))


def _donor_future(batch: Batch, donor: Batch, group: Group) -> Batch:
    k = batch.num_context_frames
    video = torch.cat([batch.video[:, :, :, :k], donor.video[:, :, :, k:]], dim=3)
    return replace(
        batch, video=video, frame_mask=torch.cat([batch.frame_mask[..., :k], donor.frame_mask[..., k:]], dim=2)
    )


def _hidden(batch: Batch, donor: Batch, group: Group, *, mode: Mode) -> Batch:
    """Replace whatever the mode is not given; what exists, the masks, stays as it is."""
    spec, k = MODES[mode], batch.num_context_frames
    video, actions = batch.video, batch.actions
    if spec.actions is not Role.GIVEN:
        actions = torch.where(batch.action_mask, donor.actions, actions)
    if spec.video is not Role.GIVEN:
        recorded = batch.frame_mask[:, :, None, k:, None, None]
        video = torch.cat(
            [video[:, :, :, :k], torch.where(recorded, donor.video[:, :, :, k:], video[:, :, :, k:])], dim=3
        )
    return replace(batch, video=video, actions=actions)


RUNS: tuple[Run, ...] = (
    Run(mode=Mode.POLICY, condition="model", alter=_same),
    Run(mode=Mode.INVERSE, condition="model", alter=_same),
    Run(mode=Mode.INVERSE, condition="shuffled_video", alter=_donor_future, needs_donor=True),
    Run(mode=Mode.FORWARD, condition="model", alter=_same),
    Run(mode=Mode.FORWARD, condition="shuffled_actions", alter=_donor_actions, needs_donor=True),
    Run(mode=Mode.FORWARD, condition="mean_actions", alter=_mean_actions),
    Run(mode=Mode.VIDEO, condition="model", alter=_same),
    Run(mode=Mode.JOINT, condition="model", alter=_same),
    *(
        Run(mode=mode, condition=HIDDEN, alter=partial(_hidden, mode=mode), needs_donor=True, must_not_matter=True)
        for mode in Mode
    ),
)


def donors(episodes: Sequence[str]) -> list[int] | None:
    """Return for each window another one, by one rotation for all, of another episode wherever that can be.

    None for a single window. A rotation is a derangement in which each window also gives exactly once, so that shuffled
    inputs have the very same distribution as true ones.
    """
    found = _donors(tuple(episodes))
    return None if found is None else list(found)


@lru_cache(maxsize=8)
def _donors(episodes: tuple[str, ...]) -> tuple[int, ...] | None:
    n = len(episodes)
    if n < 2:
        return None
    order = sorted(range(n), key=lambda i: (episodes[i], i))
    names = [episodes[i] for i in order]
    strangers = [sum(names[i] != names[(i + shift) % n] for i in range(n)) for shift in range(1, n)]
    best = max(strangers)
    shift = min((s for s in range(1, n) if strangers[s - 1] == best), key=lambda s: abs(s - n // 2))
    result = [0] * n
    for place, i in enumerate(order):
        result[i] = order[(place + shift) % n]
    return tuple(result)


def window_seed(seed: int, key: str) -> int:
    """Return the seed of a window's noise."""
    return int.from_bytes(sha256(f"{seed}:{key}".encode()).digest()[:7], "big")


def measure(
    sampler: Sampler,
    fetch: Callable[[Sequence[int]], Batch],
    group: Group,
    config: OpenLoopConfig,
    on_batch: Callable[[int], None] = lambda count: None,
) -> Measured:
    """Run the modes over a group of windows and return the sums of all errors.

    Args:
        sampler: The model.
        fetch: Returns recorded windows by index (`WindowDataset.batch`).
        group: Windows of one embodiment.
        config: What to run.
        on_batch: Called after each batch with its number of windows.
    """
    parts = []
    for number in range(num_batches(group, config)):
        parts.append(measure_batch(sampler, fetch, group, config, number))
        on_batch(len(parts[-1]))
    return join_batches(parts, group)


def num_batches(group: Group, config: OpenLoopConfig) -> int:
    """Return into how many batches the windows of a group are cut."""
    return -(-len(group) // config.batch_size)


def measure_batch(
    sampler: Sampler,
    fetch: Callable[[Sequence[int]], Batch],
    group: Group,
    config: OpenLoopConfig,
    number: int,
) -> BatchSums:
    """Run the modes over one batch of a group; no batch depends on those before it, nor on the process.

    Args:
        sampler: The model.
        fetch: Returns recorded windows by index.
        group: Windows of one embodiment.
        config: What to run.
        number: Which batch, below `num_batches`.
    """
    partner = donors(group.episodes)
    modes = set(config.modes) - config.unanswered
    places = range(number * config.batch_size, min((number + 1) * config.batch_size, len(group)))
    batch = fetch([group.indices[i] for i in places])
    donor = fetch([group.indices[partner[i]] for i in places]) if partner else batch
    part = MeasuredBatch(batch, donor, group)
    part.controls(None if group.previous_actions is None else group.previous_actions[list(places)])
    seeds = [window_seed(config.seed, key) for key in batch.keys]
    probed = min(len(places), NUM_PROBED - places.start)
    for run in RUNS:
        if run.mode not in modes or not _possible(run, group, partner) or (run.must_not_matter and probed < 1):
            continue
        key, made = (run.mode.value, run.condition), sampler(run.mode, run.alter(batch, donor, group), seeds)
        if run.must_not_matter:
            part.compare(key, made, probed)
        else:
            part.add(key, made)
    if Mode.JOINT in modes and Mode.INVERSE not in config.unanswered and group.spec.action_dim:
        # From other noise than joint's: an inverse that ignores the video could else repeat its actions from the noise alone.
        part.agreement(sampler, [window_seed(config.seed, f"{key}:read_back") for key in batch.keys])
    shown = torch.linspace(0, len(group) - 1, min(config.num_shown, len(group))).round().int().tolist()
    part.sums.shown = [part.show(j) for j, i in enumerate(places) if i in shown]
    part.sums.frame_times = batch.frame_times[0, batch.num_context_frames :].tolist()
    part.sums.action_times = batch.action_times[0].tolist()
    return part.sums


def join_batches(parts: Sequence[BatchSums], group: Group) -> Measured:
    """Return what was measured of all windows of a group.

    Args:
        parts: All its batches in their order.
        group: The windows.
    """
    measured = Measured(
        video=_join([p.video for p in parts]),
        actions=_join([p.actions for p in parts]),
        identical=_join([p.identical for p in parts]),
        frame_times=parts[-1].frame_times,
        action_times=parts[-1].action_times,
        shown=[shown for p in parts for shown in p.shown],
    )
    partner = donors(group.episodes)
    if partner is not None and group.spec.action_dim:
        _add_shuffled_agreement(measured, parts, partner, group)
    return measured


def _possible(run: Run, group: Group, partner: list[int] | None) -> bool:
    needs_actions = MODES[run.mode].actions is not Role.UNKNOWN
    return (group.spec.action_dim > 0 or not needs_actions) and (partner is not None or not run.needs_donor)


def _join(parts: Sequence[dict[Key, Tensor]]) -> dict[Key, Tensor]:
    return {key: torch.cat([part[key] for part in parts if key in part]) for key in parts[0]}


def _add_shuffled_agreement(
    measured: Measured, parts: Sequence[BatchSums], partner: Sequence[int], group: Group
) -> None:
    """The control of `read_back`: the actions read from one imagined video against those imagined with another."""
    pairs = [(p.read_back, p.imagined) for p in parts if p.read_back is not None and p.imagined is not None]
    if not pairs:
        return
    read_back, imagined = (torch.cat(column) for column in zip(*pairs, strict=True))
    mask = torch.cat([p.mask for p in parts])
    measured.actions[Mode.JOINT.value, "read_back_shuffled"] = action_sums(
        read_back, imagined[list(partner)], mask & mask[list(partner)], group.action_mean
    )
