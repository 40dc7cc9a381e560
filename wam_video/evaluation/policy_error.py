"""What a shortcut costs in actions: the error of each way to decide on recorded moments, beside that of the first way."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from wam_video.errors import ConfigError, one_of
from wam_video.evaluation.intervals import Estimate, estimate
from wam_video.evaluation.metrics import action_scores, action_sums
from wam_video.evaluation.open_loop import Group, window_seed
from wam_video.evaluation.policy_bench import Variant
from wam_video.evaluation.windows import open_windows
from wam_video.inference.pipeline import WAMPipeline
from wam_video.tensors import Batch

_BATCH = 16


def measure_errors(
    pipes: Mapping[str, WAMPipeline],
    variants: Sequence[Variant],
    folder: str,
    *,
    windows: int,
    seed: int,
    embodiment: str | None = None,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Decide with every variant at the same recorded moments, from the same noise.

    Args:
        pipes: The policy, trained, as each variant runs it (`policy_bench.run_as`).
        variants: Ways to decide; a way that `recompute`s gives the actions of the one that does not.
        folder: Shards; held-out episodes are read.
        windows: At most so many.
        seed: Of the noise.
        embodiment: Whose windows; None: the only body's of the folder.
        on_batch: Called after each batch.

    Returns:
        What was read, and for each variant with 95 % intervals over episodes: `nrmse`, the error in standard deviations of the
        training data's actions, `more_than_first`, the difference of that to the first variant's, and `apart`, how far its actions lie from the
        first variant's.

    Raises:
        ConfigError: The folder holds several bodies, and none is named, or not this one.
        DataError: The folder can't be read.
    """
    data = open_windows(pipes[variants[0].name].processor, folder, "val", windows)
    groups = {group.spec.name: group for group in data.groups}
    name = embodiment or (next(iter(groups)) if len(groups) == 1 else "")
    if name not in groups:
        raise ConfigError(one_of("--embodiment", name, groups))
    group, found = groups[name], {variant.name: list[Tensor]() for variant in variants}
    starts = range(0, len(group), _BATCH)
    for number, start in enumerate(starts, 1):
        batch = data.dataset.batch(group.indices[start : start + _BATCH])
        seeds = [window_seed(seed, key) for key in batch.keys]
        first: Float[Tensor, "b ta da"] | None = None
        for variant in variants:
            actions = _decide(pipes[variant.name], batch, variant, seeds)[..., : group.spec.action_dim]
            first = actions if first is None else first
            found[variant.name].append(_sums(actions, first, batch, group))
        on_batch(number, len(starts))
    sums = {key: torch.cat(parts) for key, parts in found.items()}
    facts = {
        **data.facts,
        "embodiment": name,
        "windows": len(group),
        "episodes": len(set(group.episodes)),
        "seed": seed,
    }
    return facts, {key: _figures(each, sums[variants[0].name], group) for key, each in sums.items()}


def _decide(pipe: WAMPipeline, batch: Batch, variant: Variant, seeds: list[int]) -> Float[Tensor, "b ta da"]:
    made = pipe.predict(
        batch,
        "policy",
        policy_path=variant.path,
        num_inference_steps=variant.steps,
        guidance_scale=variant.guidance,
        reuse_tolerance=variant.reuse,
        generator=seeds,
        output_type="pt",
    )
    return torch.as_tensor(made.actions).float().cpu()


def _sums(
    actions: Float[Tensor, "b ta da"], first: Float[Tensor, "b ta da"], batch: Batch, group: Group
) -> Float[Tensor, "b two k ta da"]:
    width = group.spec.action_dim
    true, mask = batch.actions[..., :width], batch.action_mask[..., :width]
    return torch.stack([_against(actions, target, mask, group) for target in (true, first)], dim=1)


def _against(
    actions: Float[Tensor, "b ta da"], target: Float[Tensor, "b ta da"], mask: Bool[Tensor, "b ta da"], group: Group
) -> Float[Tensor, "b k ta da"]:
    return action_sums(actions, target, mask, group.action_mean)


def _figures(
    sums: Float[Tensor, "n two k ta da"], first: Float[Tensor, "n two k ta da"], group: Group
) -> dict[str, Any]:
    def error(x: Float[Tensor, "*n k ta da"]) -> Float[Tensor, "*n"]:
        return action_scores(x, group.action_scale)[0]["nrmse"]

    def figures(x: Float[Tensor, "*n both two k ta da"]) -> Float[Tensor, "*n m"]:
        own, others = x.unbind(dim=-5)
        away, apart = (error(own[..., i, :, :, :]) for i in (0, 1))
        return torch.stack([away, away - error(others[..., 0, :, :, :]), apart], dim=-1)

    found = estimate(torch.stack([sums, first], dim=1), group.episodes, figures)
    return dict(zip(("nrmse", "more_than_first", "apart"), map(_short, found), strict=True))


def _short(one: Estimate) -> dict[str, float | None]:
    return {
        key: None if value is None else round(value, 5)
        for key, value in (("value", one.value), ("low", one.low), ("high", one.high))
    }
