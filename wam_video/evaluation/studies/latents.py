"""Latent action predictability: can what was done be read out of how the network's features change?

A ridge regression reads the actions between two observations from [phi(o_t), phi(o_t+1) - phi(o_t)], where phi is what the
network makes of an observation. It is fitted on training episodes and scored by its R2 on held-out ones. An observation is what
the policy mode is shown: the context frames and the prompt, here without proprioception, which would give the actions away.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from wam_video.errors import DataError
from wam_video.evaluation.metrics import action_scores, action_sums
from wam_video.evaluation.open_loop import Group, donors, window_seed
from wam_video.evaluation.studies.ledger import Figure, Ledger, refused
from wam_video.evaluation.studies.probes import MLPConfig, Predictor, Projection, fit_mlp, fit_projection, fit_ridge
from wam_video.evaluation.study import Findings, StudyWords, Subject, missing, question
from wam_video.evaluation.windows import EvalData, open_windows
from wam_video.inference.pipeline import WAMPipeline
from wam_video.models.features import first_output, pool_frame
from wam_video.models.transformer import WAMTransformer
from wam_video.models.video_codec import num_latents, spatial_factor
from wam_video.tensors import Batch, Mode

NUM_TRAIN = 768
"""Windows of training episodes that the probes are fitted on, at most."""
MIN_EPISODES = 2
NUM_COMPONENTS = 256
"""Principal components of the observation, and as many of its change."""
FEATURE_SIDE, PIXEL_SIDE = 4, 32
"""Rows and columns on which features and pixels of a view are averaged."""

_NAME = "latents"

Encoder = Callable[[Batch, Sequence[int]], Float[Tensor, "b p"]]
"""From windows and seeds to what is made of their observation."""


class Latents:
    """The study `latents`.

    Args:
        encoders: What makes features of an observation, by condition: `model`, `random` and `pixels`.
        training: Opens windows of training episodes.
    """

    name = _NAME
    words = StudyWords(
        title="Latent actions: do the network's features tell what was done?",
        sentence=(
            "A linear probe reads the actions between two observations from the features of the first and their change: the output "
            "of the network's middle block at the first step of the policy mode, for the last observed frame, averaged on "
            f"{FEATURE_SIDE} x {FEATURE_SIDE} fields of each view, in at most {NUM_COMPONENTS} principal components each; proprioception is "
            "hidden. Fitted on training episodes, scored on held-out ones. What the first observation alone tells is habit, not "
            "a reading of what happened; the same network before any training, and the bare pixels, say what needs no learning."
        ),
        metrics={"r2": "R\u00b2 of the actions, clipped to [-1, 1] (longer is better)"},
        conditions={
            "model": "features and their change",
            "model_mlp": "the same, read by a small network",
            "present": "features of the first observation alone",
            "shuffled": "fitted to other windows' actions",
            "pixels": f"pixels ({PIXEL_SIDE} x {PIXEL_SIDE}) and their change",
            "random": "features of the untrained network",
        },
    )

    def __init__(
        self,
        encoders: Callable[[Subject], Mapping[str, Encoder]] | None = None,
        training: Callable[[Subject], EvalData] | None = None,
    ) -> None:
        self._encoders = encoders or network_encoders
        self._training = training or training_windows

    def run(self, subject: Subject) -> Findings:
        """Measure."""
        spec = subject.group.spec
        if not spec.action_dim:
            return missing(_NAME, f"{spec.name} has no actions")
        if Mode.POLICY in refused(subject):
            return missing(_NAME, "the network answers no policy mode, by whose observation it is read")
        if subject.data.facts.get("split") == "train":
            return missing(_NAME, "the windows are of the training split, on which the probes are fitted")
        try:
            data = self._training(subject)
        except DataError as error:
            return missing(_NAME, f"there are no training episodes to fit the probes on ({error})")
        group = next((g for g in data.groups if g.spec.name == spec.name), None)
        if group is None:
            return missing(_NAME, f"the training split holds no {spec.name}")
        encoders = self._encoders(subject)
        train = observe(subject, data, group, encoders)
        test = observe(subject, subject.data, subject.group, encoders)
        for what, seen in (("training", train), ("held-out", test)):
            if len(set(seen.episodes)) < MIN_EPISODES:
                return missing(
                    _NAME, f"fewer than {MIN_EPISODES} {what} episodes hold a window with another one step later"
                )
        return _score(subject, train, test)


def _score(subject: Subject, train: "Pairs", test: "Pairs") -> Findings:
    ledger = Ledger(_NAME, subject.group.spec.name, test.episodes, subject.bootstrap)
    scale = test.scale

    def r2(sums: Tensor) -> Tensor:
        return action_scores(sums, scale)[0]["r2"].clamp(-1, 1)

    for condition, predict in _probes(train, subject.seed).items():
        predicted = predict(test) * test.units
        shaped = rearrange(predicted, "n (s d) -> n s d", d=len(scale))
        mask = torch.ones_like(shaped, dtype=torch.bool)
        ledger.add(condition, action_sums(shaped, test.actions, mask, test.actions.mean((0, 1))))
    figure = Figure(metric="r2", unit="", score=r2)
    ledger.rows([figure], list(Latents.words.conditions))
    names = subject.group.spec.action_names or tuple(f"action {i}" for i in range(len(scale)))
    for d in torch.nonzero(scale > 0).flatten().tolist():
        score = _dimension(scale, d)
        ledger.rows([Figure(metric="r2", unit="", score=score, dimension=names[d])], ["model", "present"])
    # What is worse than the mean action tells nothing; to be less bad than a control is no knowledge.
    known = replace(figure, score=lambda sums: r2(sums).clamp(min=0))
    model = (_NAME, "model")
    for worse, asks, flag in (
        ("shuffled", "Can the actions be read out of the features at all?", "the features tell nothing of the actions"),
        (
            "present",
            "Does the change of the features tell what was done, beyond habit?",
            "the change of the features tells nothing",
        ),
        ("random", "Has training put it there?", "an untrained network's features tell as much"),
        ("pixels", "Do the features tell more than the bare pixels?", "the bare pixels tell as much of the actions"),
    ):
        ledger.ask(question(f"latents_beat_{worse}", "r2", model, (_NAME, worse), asks=asks, flag=flag), known)
    return ledger.findings


def _dimension(scale: Tensor, d: int) -> Callable[[Tensor], Tensor]:
    return lambda sums: action_scores(sums, scale)[1]["r2"][..., d].clamp(-1, 1)


def _probes(train: "Pairs", seed: int) -> dict[str, Callable[["Pairs"], Tensor]]:
    """Fit every probe; each maps pairs to actions in standard deviations."""
    y = rearrange(train.actions, "n s d -> n (s d)") / train.units
    partner = donors(train.episodes)
    probes: dict[str, Callable[[Pairs], Tensor]] = {}

    def reader(inputs: "Inputs", predict: Predictor, key: str) -> Callable[[Pairs], Tensor]:
        return lambda pairs: predict(inputs(pairs.now[key], pairs.then[key]))

    for key in train.now:
        inputs = Inputs.fit(train.now[key], train.then[key])
        x = inputs(train.now[key], train.then[key])
        probes[key] = reader(inputs, fit_ridge(x, y, train.episodes), key)
        if key == "model":
            alone = replace(inputs, change=None)
            present = fit_ridge(alone(train.now[key], train.then[key]), y, train.episodes)
            probes["present"] = reader(alone, present, key)
            probes["model_mlp"] = reader(inputs, fit_mlp(x, y, train.episodes, MLPConfig(seed=seed)), key)
            probes["shuffled"] = reader(inputs, fit_ridge(x, y[partner], train.episodes), key)
    return probes


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a probe reads: principal components of the observation and of its change."""

    present: Projection
    change: Projection | None

    @classmethod
    def fit(cls, now: Float[Tensor, "n p"], then: Float[Tensor, "n p"]) -> "Inputs":
        """Find the components on training windows."""
        return cls(present=fit_projection(now, NUM_COMPONENTS), change=fit_projection(then - now, NUM_COMPONENTS))

    def __call__(self, now: Float[Tensor, "n p"], then: Float[Tensor, "n p"]) -> Float[Tensor, "n k"]:
        """Return the inputs of windows."""
        parts = [self.present(now)] + ([] if self.change is None else [self.change(then - now)])
        return torch.cat(parts, dim=1)


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Observations one step of the model's video apart, and the actions between them."""

    episodes: tuple[str, ...]
    actions: Float[Tensor, "n s da"]
    scale: Float[Tensor, " da"]
    """Standard deviation of the actions in the model's training data; 0 for what never changed."""
    now: Mapping[str, Float[Tensor, "n p"]]
    """Features by condition."""
    then: Mapping[str, Float[Tensor, "n p"]]

    @property
    def units(self) -> Float[Tensor, " sd"]:
        """What each target is divided by, step after step."""
        return torch.where(self.scale > 0, self.scale, 1.0).repeat(self.actions.shape[1])


def observe(subject: Subject, data: EvalData, group: Group, encoders: Mapping[str, Encoder]) -> Pairs:
    """Return the pairs that start at the windows of a group, without those that a clip ends before."""
    spec, window = group.spec, subject.pipe.processor.window
    ahead = max(1, round(window.future_stride_s * spec.fps))
    steps = max(
        1, min(round(ahead / spec.fps * spec.action_rate), window.action_horizons.get(spec.name, window.action_horizon))
    )
    last, size = len(data.dataset) - 1, subject.batch_size
    kept: list[int] = []
    actions: list[Tensor] = []
    features: dict[str, tuple[list[Tensor], list[Tensor]]] = {name: ([], []) for name in encoders}
    for start in range(0, len(group), size):
        places = list(range(start, min(start + size, len(group))))
        indices = [group.indices[i] for i in places]
        now, then = (_hide(data.dataset.batch([min(i + k, last) for i in indices])) for k in (0, ahead))
        whole = now.action_mask[:, :steps, : spec.action_dim].flatten(1).all(1)
        good = [j for j in range(len(now)) if bool(whole[j]) and _frames_apart(now.keys[j], then.keys[j]) == ahead]
        kept += [places[j] for j in good]
        actions.append(now.actions[good, :steps, : spec.action_dim].double())
        # The noise of what is unknown is the same in both, so that it is no part of the change.
        seeds = [window_seed(subject.seed, key) for key in now.keys]
        for name, encode in encoders.items():
            for batch, rows in zip((now, then), features[name], strict=True):
                rows.append(encode(batch, seeds)[good])
    return Pairs(
        episodes=tuple(group.episodes[i] for i in kept),
        actions=torch.cat(actions),
        scale=group.action_scale,
        now={name: torch.cat(rows) for name, (rows, _) in features.items()},
        then={name: torch.cat(rows) for name, (_, rows) in features.items()},
    )


def _hide(batch: Batch) -> Batch:
    return replace(batch, state=torch.zeros_like(batch.state), state_mask=torch.zeros_like(batch.state_mask))


def _frames_apart(first: str, second: str) -> int | None:
    (clip, frame), (other, later) = (key.rsplit("@", 1) for key in (first, second))
    return int(later) - int(frame) if clip == other else None


def training_windows(subject: Subject) -> EvalData:
    """Return windows of the training episodes of the folder that the model is scored on.

    Raises:
        DataError: There are none.
    """
    return open_windows(subject.pipe.processor, subject.data.facts["path"], "train", NUM_TRAIN)


def network_encoders(subject: Subject) -> dict[str, Encoder]:
    """Return the features of the model, of the same network with fresh weights, and the pixels."""
    pipe = subject.pipe
    build: Any = WAMTransformer.from_config  # diffusers' decorator hides from the types that it is a class method
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(subject.seed)
        fresh: Any = build(pipe.transformer.config)
    fresh = fresh.to(device=pipe.transformer.device, dtype=pipe.transformer.dtype).eval()
    untrained = WAMPipeline(**{**pipe.components, "transformer": fresh})
    untrained.set_progress_bar_config(disable=True)
    return {"model": _hidden(pipe), "random": _hidden(untrained), "pixels": _pixels}


def _hidden(pipe: WAMPipeline) -> Encoder:
    network: Any = pipe.transformer
    block = network.blocks[network.config["num_layers"] // 2]
    patch = network.config["patch_size"]

    def encode(batch: Batch, seeds: Sequence[int]) -> Tensor:
        with first_output(block) as tokens:
            pipe.predict(batch, "policy", num_inference_steps=1, solver="euler", generator=list(seeds))
        frame = num_latents(pipe.vae, batch.num_context_frames) // patch[0] - 1
        rows, columns = (
            size // spatial_factor(pipe.vae) // p for size, p in zip(batch.video.shape[-2:], patch[1:], strict=True)
        )
        return pool_frame(tokens(), frame, (batch.video.shape[1], rows, columns), FEATURE_SIDE).cpu()

    return encode


def _pixels(batch: Batch, seeds: Sequence[int]) -> Tensor:
    frames = rearrange(batch.video[:, :, :, : batch.num_context_frames], "b v c f h w -> b (v c f) h w").float() / 255
    side = (min(PIXEL_SIDE, frames.shape[-2]), min(PIXEL_SIDE, frames.shape[-1]))
    return adaptive_avg_pool2d(frames, side).flatten(1)
