"""One batch of recorded windows while it is measured: the sums of each run's errors, and of the controls'."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from wam_video.evaluation.measured import CONTROL, BatchSums, Generated, Group, Key, Sampler, Shown
from wam_video.evaluation.metrics import action_sums, video_sums
from wam_video.tensors import Batch, Mode


class MeasuredBatch:
    """One batch while it is measured.

    Args:
        batch: The windows.
        donor: Other windows, one each, for controls; `batch` itself where there are none.
        group: What they belong to.
    """

    def __init__(self, batch: Batch, donor: Batch, group: Group) -> None:
        self.batch, self.group, self.k = batch, group, batch.num_context_frames
        self.width = group.spec.action_dim
        frames = rearrange(batch.video, "b v c f h w -> b v f c h w").float() / 255
        self.last, self.future = frames[:, :, self.k - 1], frames[:, :, self.k :]
        self.frame_mask = batch.frame_mask[:, :, self.k :] & batch.frame_mask[:, :, self.k - 1 : self.k]
        self.true, self.mask = batch.actions[..., : self.width], batch.action_mask[..., : self.width]
        self.other, self.other_mask = donor.actions[..., : self.width], donor.action_mask[..., : self.width]
        self.has_donor = donor is not batch
        self.sums = BatchSums(mask=self.mask)
        self.generated: dict[Key, Generated] = {}

    def controls(self, previous: Float[Tensor, "b da"] | None) -> None:
        """Score what needs no model: the last frame, the mean action, and the action before each window again."""
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
        """Score what a mode gave."""
        self.generated[key] = made
        if made.video is not None:
            self.sums.video[key] = video_sums(made.video, self.future, self.last, self.frame_mask)
        if made.actions is not None and self.width:
            actions = made.actions[..., : self.width]
            self.sums.actions[key] = self._errors(actions, self.true, self.mask)
            if key[1] == "model" and self.has_donor:
                self.sums.actions[key[0], "shuffled_targets"] = self._errors(actions, self.other, self.other_mask)

    def compare(self, key: Key, made: Generated, count: int) -> None:
        """Keep whether each of the first `count` windows got the very answer that the mode gave before."""
        before = self.generated[key[0], "model"]
        same = torch.ones(count, dtype=torch.bool)
        width = self.width
        for a, b in ((before.video, made.video), (_narrow(before.actions, width), _narrow(made.actions, width))):
            if a is not None and b is not None:
                equal = (a == b) | (a.isnan() & b.isnan())
                same &= equal.flatten(1).all(dim=1)[:count].cpu()
        self.sums.identical[key] = same

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


def _narrow(actions: Tensor | None, width: int) -> Tensor | None:
    return None if actions is None else actions[..., :width]
