"""Run every mode over recorded windows, beside the controls that say whether the figures mean anything.

Each run is the same thing: a batch of windows, altered or not, through one mode. "Shuffled actions" is a batch whose
actions are another window's; "shuffled video" one whose future is. The noise is a function of the seed and the window
alone, so batch size and order change nothing, and the runs that are compared start from the same noise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256

import torch
from einops import rearrange
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from wam_video.data.schema import EmbodimentSpec
from wam_video.evaluation.metrics import action_sums, video_sums
from wam_video.flow.modes import MODES, Role
from wam_video.tensors import Batch, Mode

CONTROL = "control"
"""Stands where a mode does, for predictions that no model made."""

Key = tuple[str, str]
"""(mode or `CONTROL`, condition)."""


@dataclass(frozen=True, kw_only=True)
class Generated:
    """What a mode made of a batch, on the CPU; None where it gives none."""

    actions: Float[Tensor, "b ta da"] | None
    """Physical units; as wide as the batch's actions, or wider."""
    video: Float[Tensor, "b v f 3 h w"] | None
    """Future frames in [0, 1]."""


Sampler = Callable[[Mode, Batch, Sequence[int]], Generated]
"""Runs a mode on what it may read of the batch, with one seed a window."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """The windows of one embodiment that are to be scored together."""

    spec: EmbodimentSpec
    indices: tuple[int, ...]
    """Of the windows in the data set."""
    episodes: tuple[str, ...]
    action_mean: Float[Tensor, " da"]
    """Of the training split."""
    action_scale: Float[Tensor, " da"]
    """Standard deviation in the training split; 0 for a dimension that never changed."""
    previous_actions: Float[Tensor, "n da"] | None = None
    """The action just before time 0 of each window; the mean action where the recording starts there."""

    def __len__(self) -> int:
        return len(self.indices)


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


@dataclass(kw_only=True)
class Shown:
    """One window, kept whole."""

    key: str
    prompt: str
    video: UInt8[Tensor, "v f h w 3"]
    num_context_frames: int
    frame_times: Float[Tensor, " f"]
    actions: Float[Tensor, "ta da"]
    action_mask: Bool[Tensor, "ta da"]
    action_times: Float[Tensor, " ta"]
    videos: dict[Key, UInt8[Tensor, "v f h w 3"]] = field(default_factory=dict)
    """Generated future frames."""
    chunks: dict[Key, Float[Tensor, "ta da"]] = field(default_factory=dict)
    """Generated actions."""


@dataclass(kw_only=True)
class Measured:
    """The sums of every run and control, window by window, in the order of the group."""

    video: dict[Key, Float[Tensor, "n k f"]] = field(default_factory=dict)
    actions: dict[Key, Float[Tensor, "n k ta da"]] = field(default_factory=dict)
    frame_times: list[float] = field(default_factory=list)
    """Seconds of the future frames."""
    action_times: list[float] = field(default_factory=list)
    shown: list[Shown] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A mode on a batch that may have been altered with the help of another one."""

    mode: Mode
    condition: str
    alter: Callable[[Batch, Batch, Group], Batch]
    """From the batch and its donors: other windows of the same embodiment, one each."""
    needs_donor: bool = False


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


RUNS: tuple[Run, ...] = (
    Run(mode=Mode.POLICY, condition="model", alter=_same),
    Run(mode=Mode.INVERSE, condition="model", alter=_same),
    Run(mode=Mode.INVERSE, condition="shuffled_video", alter=_donor_future, needs_donor=True),
    Run(mode=Mode.FORWARD, condition="model", alter=_same),
    Run(mode=Mode.FORWARD, condition="shuffled_actions", alter=_donor_actions, needs_donor=True),
    Run(mode=Mode.FORWARD, condition="mean_actions", alter=_mean_actions),
    Run(mode=Mode.VIDEO, condition="model", alter=_same),
    Run(mode=Mode.JOINT, condition="model", alter=_same),
)


def donors(episodes: Sequence[str]) -> list[int] | None:
    """Return for each window another one, by one rotation for all, of another episode wherever that can be.

    None for a single window. A rotation is a derangement in which each window also gives exactly once, so that shuffled
    inputs have the very same distribution as true ones.
    """
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
    return result


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
    partner = donors(group.episodes)
    modes = set(config.modes) - config.unanswered
    runs = [r for r in RUNS if r.mode in modes and _possible(r, group, partner)]
    measured, parts = Measured(), list[_Sums]()
    shown = set(torch.linspace(0, len(group) - 1, min(config.num_shown, len(group))).round().int().tolist())
    for start in range(0, len(group), config.batch_size):
        places = range(start, min(start + config.batch_size, len(group)))
        batch = fetch([group.indices[i] for i in places])
        donor = fetch([group.indices[partner[i]] for i in places]) if partner else batch
        part = _Part(batch, donor, group)
        part.controls(None if group.previous_actions is None else group.previous_actions[list(places)])
        seeds = [window_seed(config.seed, key) for key in batch.keys]
        for run in runs:
            part.add((run.mode.value, run.condition), sampler(run.mode, run.alter(batch, donor, group), seeds))
        if Mode.JOINT in modes and Mode.INVERSE not in config.unanswered and group.spec.action_dim:
            part.agreement(sampler, seeds)
        measured.shown += [part.show(j) for j, i in enumerate(places) if i in shown]
        parts.append(part.sums)  # the pixels of all windows might not fit; their sums do
        on_batch(len(batch))
        measured.frame_times = batch.frame_times[0, batch.num_context_frames :].tolist()
        measured.action_times = batch.action_times[0].tolist()
    measured.video = _join([p.video for p in parts])
    measured.actions = _join([p.actions for p in parts])
    if partner is not None and group.spec.action_dim:
        _add_shuffled_agreement(measured, parts, partner, group)
    return measured


def _possible(run: Run, group: Group, partner: list[int] | None) -> bool:
    needs_actions = MODES[run.mode].actions is not Role.UNKNOWN
    return (group.spec.action_dim > 0 or not needs_actions) and (partner is not None or not run.needs_donor)


def _join(parts: Sequence[dict[Key, Tensor]]) -> dict[Key, Tensor]:
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


@dataclass(kw_only=True)
class _Sums:
    """What is kept of a batch."""

    mask: Bool[Tensor, "b ta da"]
    video: dict[Key, Tensor] = field(default_factory=dict)
    actions: dict[Key, Tensor] = field(default_factory=dict)
    imagined: Tensor | None = None
    """Actions of `joint`."""
    read_back: Tensor | None = None
    """Actions that `inverse` reads out of the video of `joint`."""


class _Part:
    """One batch while it is measured."""

    def __init__(self, batch: Batch, donor: Batch, group: Group) -> None:
        self.batch, self.group, self.k = batch, group, batch.num_context_frames
        self.width = group.spec.action_dim
        frames = rearrange(batch.video, "b v c f h w -> b v f c h w").float() / 255
        self.last, self.future = frames[:, :, self.k - 1], frames[:, :, self.k :]
        self.frame_mask = batch.frame_mask[:, :, self.k :] & batch.frame_mask[:, :, self.k - 1 : self.k]
        self.true, self.mask = batch.actions[..., : self.width], batch.action_mask[..., : self.width]
        self.other, self.other_mask = donor.actions[..., : self.width], donor.action_mask[..., : self.width]
        self.has_donor = donor is not batch
        self.sums = _Sums(mask=self.mask)
        self.generated: dict[Key, Generated] = {}

    def controls(self, previous: Float[Tensor, "b da"] | None) -> None:
        copied = self.last.unsqueeze(2).expand_as(self.future)
        self.sums.video[CONTROL, "copy_last"] = video_sums(copied, self.future, self.last, self.frame_mask)
        if not self.width:
            return
        mean = self.group.action_mean.to(self.true).expand_as(self.true)
        self.sums.actions[CONTROL, "mean_action"] = self._errors(mean, self.true, self.mask)
        if previous is not None:
            held = previous.to(self.true)[:, None].expand_as(self.true)
            self.sums.actions[CONTROL, "hold_last"] = self._errors(held, self.true, self.mask)

    def add(self, key: Key, made: Generated) -> None:
        self.generated[key] = made
        if made.video is not None:
            self.sums.video[key] = video_sums(made.video, self.future, self.last, self.frame_mask)
        if made.actions is not None and self.width:
            actions = made.actions[..., : self.width]
            self.sums.actions[key] = self._errors(actions, self.true, self.mask)
            if key[1] == "model" and self.has_donor:
                self.sums.actions[key[0], "shuffled_targets"] = self._errors(actions, self.other, self.other_mask)

    def agreement(self, sampler: Sampler, seeds: Sequence[int]) -> None:
        """Read the actions back out of the imagined video with the inverse mode, and compare them with the imagined ones."""
        made = self.generated[Mode.JOINT.value, "model"]
        if made.video is None or made.actions is None:
            return
        frames = rearrange((made.video * 255).round().clamp(0, 255).to(torch.uint8), "b v f c h w -> b v c f h w")
        video = torch.cat([self.batch.video[:, :, :, : self.k], frames], dim=3)
        actions = sampler(Mode.INVERSE, replace(self.batch, video=video), seeds).actions
        if actions is None:
            return
        imagined, read_back = made.actions[..., : self.width], actions[..., : self.width]
        self.sums.imagined, self.sums.read_back = imagined, read_back
        self.sums.actions[Mode.JOINT.value, "read_back"] = self._errors(read_back, imagined, self.mask)

    def _errors(self, predicted: Tensor, true: Tensor, mask: Bool[Tensor, "b ta da"]) -> Tensor:
        return action_sums(predicted, true, mask, self.group.action_mean)

    def show(self, row: int) -> Shown:
        """Keep one window of the batch whole."""
        batch = self.batch
        shown = Shown(
            key=batch.keys[row],
            prompt=batch.prompts[row],
            video=rearrange(batch.video[row], "v c f h w -> v f h w c").clone(),
            num_context_frames=self.k,
            frame_times=batch.frame_times[row],
            actions=self.true[row],
            action_mask=self.mask[row],
            action_times=batch.action_times[row],
        )
        for key, made in self.generated.items():
            if made.video is not None:
                pixels = (made.video[row] * 255).round().clamp(0, 255).to(torch.uint8)
                shown.videos[key] = rearrange(pixels, "v f c h w -> v f h w c")
            if made.actions is not None and self.width:
                shown.chunks[key] = made.actions[row, :, : self.width].float()
        return shown


def _add_shuffled_agreement(measured: Measured, parts: Sequence[_Sums], partner: Sequence[int], group: Group) -> None:
    """The control of `read_back`: the actions read from one imagined video against those imagined with another."""
    pairs = [(p.read_back, p.imagined) for p in parts if p.read_back is not None and p.imagined is not None]
    if not pairs:
        return
    read_back, imagined = (torch.cat(column) for column in zip(*pairs, strict=True))
    mask = torch.cat([p.mask for p in parts])
    measured.actions[Mode.JOINT.value, "read_back_shuffled"] = action_sums(
        read_back, imagined[list(partner)], mask & mask[list(partner)], group.action_mean
    )
