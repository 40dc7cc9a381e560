"""Validation during training: the network's own errors on held-out windows along the path of each mode.

One evaluation of the network a window and mode, at fixed clocks and fixed noise: cheap, and comparable from step to step.
What the modes are really worth (sampled, in physical units, against controls) is measured by `wam_video.evaluation`.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from wam_video.flow.density import DensityConfig
from wam_video.flow.loss import loss_terms
from wam_video.flow.modes import MODES, Role
from wam_video.tensors import Batch, Mode, Prediction
from wam_video.training.run import Run


def validation_losses(run: Run) -> dict[str, float]:
    """Return the mean errors of each mode on the held-out windows, every process doing its share.

    `val_forward_shuffled` is the control of `val_forward`: the same video with another window's actions. A network that
    ignores the actions has the same error in both.
    """
    module = run.engine.module
    rows: dict[str, Tensor] = {}
    was_training = module.training
    module.eval()
    with torch.no_grad():
        batches = run.validation_batches()
        for first in range(0, len(batches), run.engine.data_processes):
            number = first + run.engine.data_rank
            # All compute every time, for it may take all to put the weights together; past the end it counts for nothing.
            for name, sums in _batch_sums(run, batches[min(number, len(batches) - 1)]).items():
                rows[name] = rows.get(name, 0) + sums * (number < len(batches))
    module.train(was_training)
    run.parts.text_encoder.eval()
    names = [f"val_{part}" for part in _PARTS]
    table = torch.stack([rows.get(name, torch.zeros(2, device=run.engine.device)) for name in names])
    totals = run.engine.sum(table).tolist()
    return {name: total / count for name, (total, count) in zip(names, totals, strict=True) if count > 0}


_PARTS = ("policy", "forward", "forward_shuffled", "inverse", "video", "joint_video", "joint_action")


def trained_modes(density: DensityConfig) -> tuple[Sequence[Mode], bool]:
    """Return the modes whose paths a density visits, and whether it never shows the future video."""
    if density.absent_video == 1:
        return [Mode.POLICY], True
    if sum(density.edges.values()) < 1 - 1e-6:
        return list(MODES), False
    return [mode for mode in MODES if density.edges.get(mode, 0)], False


def _batch_sums(run: Run, batch: Batch) -> dict[str, Float[Tensor, " 2"]]:
    t = (torch.arange(len(batch)) + 0.5) / len(batch)  # spread evenly over the path
    clock = {Role.GIVEN: torch.zeros_like(t), Role.GENERATE: t, Role.UNKNOWN: torch.ones_like(t)}
    sums: dict[str, Tensor] = {}
    modes, absent = trained_modes(run.config.density)
    for mode, spec in ((mode, MODES[mode]) for mode in modes):
        clocks = clock[spec.video], clock[spec.actions]
        sample = run.sampler(batch, run.engine.device, absent_video=absent, clocks=clocks)
        for control in (False, True) if mode == "forward" else (False,):
            if control:
                x_t = sample.noisy.x_t
                if x_t.actions is None:
                    continue
                half = max(len(batch) // 2, 1)  # neighbours are often of one episode, whose actions are alike
                sample = replace(
                    sample, noisy=replace(sample.noisy, x_t=replace(x_t, actions=x_t.actions.roll(half, dims=0)))
                )
            with torch.autocast(run.engine.device.type, torch.bfloat16, enabled=run.engine.precision == "bf16"):
                video, actions = run.engine.module(sample)
            predicted = Prediction(video=video, actions=actions)
            terms = loss_terms(run.config.loss, predicted, sample.noisy, run.prediction_kinds, sample.num_context)
            name = f"val_{mode}" + ("_shuffled" if control else "")
            both = spec.gives_video and spec.gives_actions
            if spec.gives_video:
                sums[name + "_video" * both] = torch.stack([terms.video_sum.sum(), terms.video_count.sum()])
            if spec.gives_actions:
                sums[name + "_action" * both] = torch.stack([terms.action_sum.sum(), terms.action_count.sum()])
    return sums
