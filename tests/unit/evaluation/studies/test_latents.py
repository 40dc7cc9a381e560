"""Latent actions: features that hold the world are told from frozen, blind and habitual ones; the same figures every time."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.unit.evaluation import toy_world
from tests.unit.evaluation.studies.toy_subject import toy_subject
from wam_video.evaluation.evaluate import EvaluateConfig, evaluate
from wam_video.evaluation.studies.latents import Latents
from wam_video.evaluation.study import Findings
from wam_video.tensors import Batch
from wam_video.testing import fake_shards, tiny_pipeline

LENGTH = 10
"""Windows of an episode."""


class Walks:
    """A data set of walks: window i is frame i % LENGTH of walk i // LENGTH, after which comes the next one."""

    def __init__(self, walks: int, seed: int) -> None:
        self.size = walks * LENGTH
        g = torch.Generator().manual_seed(seed)
        self.steps = torch.randn(walks, LENGTH + toy_world.FUTURE, 2, generator=g)
        self.at = self.steps.cumsum(1) - self.steps

    def __len__(self) -> int:
        return self.size

    def batch(self, indices: Sequence[int]) -> Batch:
        base = toy_world.fetch([0] * len(indices))
        walk, frame = torch.tensor(indices) // LENGTH, torch.tensor(indices) % LENGTH
        actions = torch.stack([self.steps[w, f : f + toy_world.FUTURE] for w, f in zip(walk, frame, strict=True)])
        return replace(
            base,
            actions=actions,
            state=self.at[walk, frame],
            keys=tuple(f"walk{w}@{f}" for w, f in zip(walk.tolist(), frame.tolist(), strict=True)),
        )

    def group(self) -> Any:
        return replace(
            toy_world.make_group(1),
            indices=tuple(range(self.size)),
            episodes=tuple(f"walk{i // LENGTH}" for i in range(self.size)),
            action_scale=torch.ones(2),
            previous_actions=None,
        )


def _run(kind: str, **changes: Any) -> Findings:
    def see(batch: Batch, seeds: Sequence[int]) -> torch.Tensor:
        # The test's features come from the keys, for the study hides the state, as it must.
        assert not batch.state.any()
        assert not batch.state_mask.any()
        names = [key.removeprefix("walk").split("@") for key in batch.keys]
        walks, frames = (torch.tensor([int(name[i]) for name in names]) for i in (0, 1))
        data = held if batch.prompts[0] == "held" else train
        at, going = data.at[walks, frames], data.steps[walks, frames]
        places = (walks * 100 + frames + len(data) * 10_000).tolist()
        noise = torch.stack([torch.randn(6, generator=torch.Generator().manual_seed(place)) for place in places])
        return {
            "right": torch.cat([at, at.square(), noise[:, :2]], dim=1),
            "frozen": torch.ones(len(batch), 6),
            "blind": noise,
            "habit": torch.cat([going, torch.ones(len(batch), 4)], dim=1),
        }[kind]

    train, held = Walks(16, seed=1), Walks(8, seed=2)
    held_batch = held.batch
    held.batch = lambda indices: replace(held_batch(indices), prompts=("held",) * len(indices))  # type: ignore[method-assign]
    encoders = {
        "model": see,
        "random": lambda b, s: torch.ones(len(b), 2),
        "pixels": lambda b, s: torch.ones(len(b), 2),
    }
    data = SimpleNamespace(dataset=train, groups=(train.group(),))
    subject = toy_subject(
        lambda *_: None,
        data=SimpleNamespace(dataset=held, facts={"split": "val"}, groups=()),
        group=held.group(),
        **changes,
    )
    return Latents(encoders=lambda _: encoders, training=lambda _: data).run(subject)


def _values(found: Findings) -> dict[str, float]:
    return {r.condition: r.estimate.value for r in found.rows if r.dimension is None}


def _statuses(found: Findings) -> dict[str, str]:
    return {a.check.name: a.status for a in found.answers}


def test_features_that_hold_the_world_tell_the_actions_and_pass_every_check() -> None:
    found = _run("right")
    values = _values(found)
    assert set(values) == set(Latents.words.conditions)
    assert values["model"] > 0.99
    assert values["model_mlp"] > 0.5
    assert abs(values["shuffled"]) < 0.1
    assert abs(values["present"]) < 0.1
    assert set(_statuses(found).values()) == {"yes"}
    assert {r.dimension for r in found.rows} == {None, "right", "down"}
    windows = {r.estimate.num_windows for r in found.rows}
    assert windows == {8 * (LENGTH - 1)}, "the last window of a clip has no next one"


@pytest.mark.parametrize(
    ("kind", "caught"),
    [
        ("frozen", "latents_beat_shuffled"),
        ("frozen", "latents_beat_pixels"),
        ("blind", "latents_beat_shuffled"),
        ("habit", "latents_beat_present"),
    ],
)
def test_features_that_tell_nothing_of_what_was_done_are_caught(kind: str, caught: str) -> None:
    assert _statuses(_run(kind))[caught] == "no"


def test_batch_size_changes_nothing() -> None:
    a, b = (_run("right", batch_size=size) for size in (16, 7))
    assert _values(a) == pytest.approx(_values(b), abs=1e-9)


def test_what_can_not_be_measured_is_said() -> None:
    subject = toy_subject(lambda *_: None, data=SimpleNamespace(facts={"split": "train"}))
    (left,) = Latents().run(subject).left_out
    assert "training split" in left[1]


def test_a_real_network_is_read_and_twice_the_same(tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    specs = [pipe.processor.spec(body["name"]) for body in pipe.processor.config.embodiments]
    shards = fake_shards(tmp_path / "toy", specs, episodes=8)
    pipe.save_pretrained(tmp_path / "model")
    config = EvaluateConfig(
        models={"tiny": str(tmp_path / "model")}, data=str(shards), modes=("policy",), num_windows=8, studies=("latents",)
    )  # fmt: skip
    one, two = (evaluate(config).document["models"][0]["studies"] for _ in range(2))
    assert one == two
    assert {r["condition"] for s in one for r in s["rows"]} == set(Latents.words.conditions)
    assert all(-1 <= r["value"] <= 1 for s in one for r in s["rows"])
