"""Training of a latent action model on pairs of frames, and what it has learned beside its controls."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from wam_video.data.manifest import SampleEntry, ShardEntry, load_manifest
from wam_video.data.shard_set import episode_share
from wam_video.errors import ConfigError, DataError
from wam_video.latent_actions.networks import LatentActionModel, LatentModelConfig
from wam_video.latent_actions.pairs import Body, Pairs, load_pairs, ready
from wam_video.log import get_logger, progress

_LOG = get_logger(__name__)
_TINY = 1e-6
_EVERY = 10
"""Without a split `val`, every tenth episode is held out."""
_TELLS = 0.02
"""A latent whose own reconstruction explains no more than another pair's plus this tells nothing of the second frame."""
_REVIVE_EVERY = 50


@dataclass(frozen=True, kw_only=True)
class LearnConfig:
    """How a latent action model is trained."""

    steps: int = 1500
    batch_size: int = 64
    lr: float = 2e-3
    """Highest rate of AdamW: a twentieth of the steps upwards, then a cosine down."""
    beta: float = 1e-3
    """`vae`: weight of the KL divergence, in nats a pair, beside the share of the change that is not explained."""
    motion_weight: float = 15.0
    """Pixels that move weigh so much more."""
    max_pairs: int = 20_000
    """Pairs that are kept in memory, evenly over the episodes."""
    labels: float = 0.0
    """Share of the episodes whose true actions a linear map reads from the latents (Motus); the same episodes as those of
    `data.datasets.NAME.episodes`. 0: from video alone."""
    label_weight: float = 1.0
    """Weight of that reading's error, in variances of the actions."""
    reconstruction: float = 1.0
    """Weight of the share of the change that is not explained; 0 with labels: a plain inverse model, as a baseline."""
    seed: int = 0

    def __post_init__(self) -> None:
        for what, value, low, high in (
            ("steps", self.steps, 1, 10_000_000),
            ("batch_size", self.batch_size, 2, 65_536),
            ("lr", self.lr, 1e-7, 1),
            ("beta", self.beta, 0, 1e3),
            ("motion_weight", self.motion_weight, 0, 1e4),
            ("max_pairs", self.max_pairs, 2, 10_000_000),
            ("labels", self.labels, 0, 1),
            ("label_weight", self.label_weight, 0, 1e4),
            ("reconstruction", self.reconstruction, 0, 1e4),
            ("seed", self.seed, 0, 2**31 - 1),
        ):
            if not low <= value <= high:
                raise ConfigError(f"{what} is {value}; allowed: {low} to {high}")
        if self.reconstruction == 0 and not (self.labels and self.label_weight):
            raise ConfigError(
                "reconstruction is 0, and there is nothing else to learn from; give labels, or more than 0"
            )


@dataclass(frozen=True, kw_only=True)
class Learned:
    """A trained model and its record."""

    model: LatentActionModel
    figures: dict[str, Any]
    """JSON-able; see `measure`."""


def learn(data: Path, body: Body, model: LatentModelConfig, config: LearnConfig) -> Learned:
    """Train on the train split of a folder of shards; the same seed gives the same bits on one machine.

    Raises:
        DataError: The shards hold no pairs, or can't be read.
        ConfigError: The interval does not fit the video, labels are asked for that are not there, or the loss is not finite.
    """
    fit, held, where = _split(data, body)
    pairs = load_pairs(data, fit, body, model, config.max_pairs)
    labelled = _labelled(pairs, config, model)
    _LOG.info(
        "%d pairs of %d episodes, %d with their actions", len(pairs), len(set(pairs.episodes)), int(labelled.sum())
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = LatentActionModel(model)
    losses, revived = _train(network, pairs, labelled, config)
    network.eval().requires_grad_(False)
    test = load_pairs(data, held, body, model, min(4000, config.max_pairs)) if held else pairs
    figures = measure(network, test, config) | {
        "held_out": where,
        "pairs": {"train": len(pairs), "held_out": len(test), "labelled": int(labelled.sum())},
        "losses": losses,
        "codes_revived": revived,
        "training": asdict(config),
    }
    return Learned(model=network, figures=figures)


Samples = list[tuple[ShardEntry, SampleEntry]]


def _split(data: Path, body: Body) -> tuple[Samples, Samples, str]:
    """Return samples to fit on, samples that are held out, and where these come from."""
    manifest = load_manifest(data)
    train, val = (body.samples(manifest, split) for split in ("train", "val"))
    if not train:
        raise DataError(f"{data} has no split 'train' of {body.spec.name!r}; give shards that hold one")
    if val:
        return train, val, "split val"
    names = sorted({sample.episode_id for _, sample in train})[_EVERY - 1 :: _EVERY]
    if not names:
        return train, [], "the training pairs themselves: too few episodes"
    held = [pair for pair in train if pair[1].episode_id in names]
    return [pair for pair in train if pair[1].episode_id not in names], held, "every tenth episode"


def _labelled(pairs: Pairs, config: LearnConfig, model: LatentModelConfig) -> Bool[Tensor, " n"]:
    """Return which pairs' true actions are used."""
    if not config.labels:
        return torch.zeros(len(pairs), dtype=torch.bool)
    chosen = torch.tensor([episode_share(name) < config.labels for name in pairs.episodes])
    known = chosen & pairs.actions.isfinite().all(1) if model.action_dim else torch.zeros_like(chosen)
    if (count := int(known.sum())) < 2:  # of one there is no deviation
        raise ConfigError(
            f"labels is {config.labels}, and {count} pair(s) of that share of the episodes have actions; give more, or 0"
        )
    return known


def _train(
    network: LatentActionModel, pairs: Pairs, labelled: Bool[Tensor, " n"], config: LearnConfig
) -> tuple[list[tuple[int, float]], int]:
    """Fit the network; return losses by step, and how many codes were revived."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=1e-4)
    rise = 0.05 if config.steps != 20 else 0.1  # torch divides by the steps of the rise but one: of 20, by none
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.lr, total_steps=max(2, config.steps), pct_start=rise, cycle_momentum=False
    )
    generator = torch.Generator().manual_seed(config.seed)
    targets = pairs.actions
    if network.reader is not None:
        known = pairs.actions[labelled]
        network.action_mean.copy_(known.mean(0))
        network.action_scale.copy_(known.std(0).clamp(min=_TINY))
        targets = (pairs.actions - network.action_mean) / network.action_scale
    losses, revived = [], 0
    counts = torch.zeros(network.config.codebook, dtype=torch.int64)
    for step, rows in progress(_batches(len(pairs), config), what="steps", total=config.steps):
        x = ready(pairs.kept[rows])
        reading = network(x, generator)
        wrong, still = _errors(reading.guess, reading.target, config)
        unexplained = wrong.sum() / still.sum().clamp(min=_TINY)
        loss = config.reconstruction * unexplained + config.beta * reading.cost
        known = labelled[rows]
        if network.reader is not None and known.any():
            loss = loss + config.label_weight * F.mse_loss(network.reader(reading.latent[known]), targets[rows[known]])
        if not loss.isfinite():
            raise ConfigError(f"the loss is {loss.item()} at step {step}; lower lr ({config.lr:g}) or the weights")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if reading.codes is not None and network.codebook is not None:
            counts += reading.codes.flatten().bincount(minlength=len(counts))
            if step % _REVIVE_EVERY == 0 and step < 0.8 * config.steps:  # the last codes must have time to settle
                revived += network.codebook.revive(counts, generator)
                counts.zero_()
        if step == 1 or step == config.steps or step % max(1, config.steps // 20) == 0:
            losses.append((step, round(loss.item(), 6)))
    return losses, revived


def _batches(count: int, config: LearnConfig) -> Iterator[tuple[int, Tensor]]:
    """Yield steps from 1 on, each with the rows of its batch; every pair once before any comes again."""
    rng = np.random.default_rng(config.seed)
    order = np.empty(0, np.int64)
    size = min(config.batch_size, count)
    for step in range(1, config.steps + 1):
        if len(order) < size:
            order = np.concatenate([order, rng.permutation(count)])
        yield step, torch.from_numpy(order[:size].copy())
        order = order[size:]


def _errors(
    guess: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"], config: LearnConfig
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Return each pair's weighted error, and that of saying that nothing moves."""
    moves = target.abs().amax(dim=1, keepdim=True) > 0.1
    weight = 1 + config.motion_weight * moves
    return (weight * (guess - target).square()).sum((1, 2, 3)), (weight * target.square()).sum((1, 2, 3))


@torch.no_grad()
def measure(network: LatentActionModel, pairs: Pairs, config: LearnConfig) -> dict[str, Any]:
    """Return how much of what happens between held-out frames the latents explain, beside what they must beat.

    Returns:
        `explained` (1: all, 0: as much as saying that nothing moves) by `own` latent, the latent of `another` pair and the
        `mean` latent; `advantage_db`, by which a pair's own latent is better than another's (Genie's delta PSNR); `codes`; and
        `flags`, a sentence for each control that is not beaten. With labels, `actions`: R2 of the true ones that are read.
    """
    latents = torch.cat([network.label(ready(rows)) for rows in pairs.kept.split(256)])
    half = len(pairs) // 2
    conditions = {"own": latents, "another": latents.roll(max(1, half), 0), "mean": latents.mean(0).expand_as(latents)}
    explained, plain = {}, {}
    for name, used in conditions.items():
        wrong = still = squares = torch.zeros(())
        for rows, z in zip(pairs.kept.split(256), used.split(256), strict=True):
            x = ready(rows)
            guess, target = network.decode(x, z), network.target(x)
            errors = _errors(guess, target, config)
            wrong, still = wrong + errors[0].sum(), still + errors[1].sum()
            squares = squares + (guess - target).square().sum()
        explained[name] = round(float(1 - wrong / still.clamp(min=_TINY)), 6)
        plain[name] = float(squares.clamp(min=_TINY))
    flags = []
    if not explained["own"] > max(explained["another"], explained["mean"]) + _TELLS:
        flags.append("the latents tell nothing of the second frame: another pair's explain as much")
    figures: dict[str, Any] = {
        "explained": explained,
        "advantage_db": round(10 * float(np.log10(plain["another"] / plain["own"])), 4),
    }
    known = pairs.actions.isfinite().all(1)
    if network.reader is not None and int(known.sum()) > 1:
        figures["actions"] = read = _reading(network, latents[known], pairs.actions[known])
        if not read["r2_own"] > max(read["r2_another"], 0) + _TELLS:
            flags.append("true actions can't be read: another pair's latent or the mean action tells as much")
    if network.codebook is not None:
        figures["codes"] = codes = _codes(network, pairs)
        if codes["perplexity"] < 2:
            flags.append("the codebook has collapsed: fewer than two codes are in use")
    return figures | {"flags": flags}


def _reading(
    network: LatentActionModel, latents: Float[Tensor, "n d"], actions: Float[Tensor, "n da"]
) -> dict[str, float]:
    """Return R2 of the line that was trained with the network, over all dimensions, and of other pairs' latents."""
    # what never changed where the line was fitted has no unit, and no part in the score
    units = torch.where(network.action_scale > _TINY, network.action_scale, torch.inf)
    spread = ((actions - actions.mean(0)) / units).square().sum()
    found = {}
    for name, used in (("own", latents), ("another", latents.roll(max(1, len(latents) // 2), 0))):
        wrong = ((network.read(used) - actions) / units).square().sum()
        found[f"r2_{name}"] = round(float(1 - wrong / spread.clamp(min=_TINY)), 6)
    return found


def _codes(network: LatentActionModel, pairs: Pairs) -> dict[str, float | int]:
    """Return how many codes are in use, and how evenly."""
    if network.codebook is None:
        return {}
    chosen = torch.cat([network.codebook.nearest(network.encoder(ready(rows))) for rows in pairs.kept.split(256)])
    share = chosen.flatten().bincount(minlength=network.config.codebook).double()
    share = share / share.sum()
    entropy = -(share * share.clamp(min=1e-12).log()).sum()
    return {
        "codebook": len(share),
        "used": int((share > 0).sum()),
        "perplexity": round(float(entropy.exp()), 4),
        "different_latents": len(chosen.unique(dim=0)),
    }
