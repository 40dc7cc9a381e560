"""The errors of a step summed up in every way that is looked at: by region of the noise square, by clock, by dataset."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from wam_video.flow.loss import LossTerms
from wam_video.models.teacher import AlignmentTerms
from wam_video.training.metrics import REGIONS, region_sums
from wam_video.training.sample import TrainingSample

BINS = 5
"""Of a modality's clock, from 0 to 1, equally wide; the last one holds 1."""

MODALITIES = ("video", "action")
TERMS = tuple(f"loss_{name}" for name in (*MODALITIES, "teacher"))
"""Names, among a tally's, of what a loss consists of."""


class Tally:
    """Sums of errors and of their weights under fixed names, on the device and without waiting for it.

    Args:
        datasets: Their names, in the same order on every process; a single one is not told apart.
        device: Of the sums.
    """

    def __init__(self, datasets: Sequence[str], device: torch.device) -> None:
        self._datasets = {name: row for row, name in enumerate(datasets)} if len(datasets) > 1 else {}
        edges = [f"{i / BINS:.1f}-{(i + 1) / BINS:.1f}" for i in range(BINS)]
        clocks = [f"clock/{modality}/{edge}" for modality in MODALITIES for edge in edges]
        sets = [f"dataset/{name}/{modality}" for modality in MODALITIES for name in self._datasets]
        self.names = (*REGIONS, *clocks, *sets)
        self._device = device
        self._term_ids = torch.tensor([self.names.index(name) for name in TERMS], device=device)

    def zeros(self) -> Float[Tensor, "2 k"]:
        """Return sums of nothing."""
        return torch.zeros(2, len(self.names), device=self._device)

    def sums(self, sample: TrainingSample, terms: LossTerms, alignment: AlignmentTerms | None) -> Float[Tensor, "2 k"]:
        """Return the sums of a micro-batch: errors, and the weights to divide them by, under `names`."""
        rows = (
            torch.stack([terms.video_sum.detach(), terms.video_count]),
            torch.stack([terms.action_sum.detach(), terms.action_count]),
        )
        parts = [region_sums(sample, terms, alignment)]
        for clock, row in zip((sample.t_video, sample.t_action), rows, strict=True):
            parts.append(row @ _one_hot((clock * BINS).long().clamp(0, BINS - 1), BINS, row.dtype))
        if self._datasets:
            ids = torch.tensor([self._datasets[name] for name in sample.datasets])
            member = _one_hot(ids, len(self._datasets), rows[0].dtype).to(self._device, non_blocking=True)
            parts += [row @ member for row in rows]
        return torch.cat(parts, dim=1)

    def means(self, sums: Float[Tensor, "2 k"]) -> dict[str, float]:
        """Return the mean error under each name that something was counted for; waits for the device."""
        totals, counts = sums.tolist()
        return {name: total / count for name, total, count in zip(self.names, totals, counts, strict=True) if count > 0}

    def terms(self, sums: Float[Tensor, "*s 2 k"]) -> Float[Tensor, "*s 2 3"]:
        """Return the columns of what the loss consists of (`TERMS`)."""
        return sums.index_select(-1, self._term_ids)


def not_finite(sums: Float[Tensor, "2 3"]) -> list[str]:
    """Return which `TERMS` of a step are not finite on this process; waits for the device."""
    return [name for name, total in zip(TERMS, sums[0].tolist(), strict=True) if not abs(total) < float("inf")]


def term_means(sums: Float[Tensor, "2 3"]) -> dict[str, float]:
    """Return the mean of each of video and actions that was in a step; waits for the device."""
    totals, counts = sums.tolist()
    return {name: totals[i] / counts[i] for i, name in enumerate(MODALITIES) if counts[i] > 0}


def _one_hot(ids: Tensor, count: int, dtype: torch.dtype) -> Float[Tensor, "b k"]:
    return (ids[:, None] == torch.arange(count, device=ids.device)).to(dtype)
