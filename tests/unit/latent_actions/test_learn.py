import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.unit.latent_actions.square import write
from wam_video.data.manifest import load_manifest
from wam_video.errors import CheckpointError, ConfigError, DataError
from wam_video.latent_actions.files import load_model, save_model
from wam_video.latent_actions.learn import LearnConfig, _labelled, _train, learn, measure
from wam_video.latent_actions.networks import DIMS, LatentActionModel, LatentModelConfig
from wam_video.latent_actions.pairs import Body, Pairs, load_pairs, ready

pytest.importorskip("cv2")

STEPS = {"flow": 120, "vae": 400, "nsvq": 500}


def small(method: str) -> LatentModelConfig:
    return LatentModelConfig(method=method, dim=DIMS[method], side=32, width=16, codebook=16)


def held_out(folder: Path, config: LatentModelConfig, split: str) -> Pairs:
    manifest = load_manifest(folder)
    body = Body.of(manifest)
    return load_pairs(folder, body.samples(manifest, split), body, config, 2000)


def r2(model, fit: Pairs, held: Pairs) -> float:
    """Of a line from latents to the square's velocity, on other episodes."""
    x, test = (model.label(ready(p.kept)).double() for p in (fit, held))
    one = torch.ones(len(x), 1, dtype=torch.float64)
    line = torch.linalg.lstsq(torch.cat([x, one], 1), fit.actions.double()).solution
    wrong = torch.cat([test, torch.ones(len(test), 1, dtype=torch.float64)], 1) @ line - held.actions
    return float(1 - wrong.square().sum() / (held.actions - held.actions.mean(0)).square().sum())


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("many") / "squares", episodes=60)


@pytest.mark.parametrize(
    "method",
    [pytest.param("flow"), pytest.param("vae", marks=pytest.mark.long), pytest.param("nsvq", marks=pytest.mark.long)],
)
def test_a_latent_is_linear_in_the_squares_velocity(many: Path, method: str) -> None:
    config = small(method)
    body = Body.of(load_manifest(many))
    learned = learn(many, body, config, LearnConfig(steps=STEPS[method], batch_size=48))
    fit, held = (held_out(many, config, split) for split in ("train", "val"))
    found = r2(learned.model, fit, held)
    shuffled = replace(held, kept=held.kept.roll(len(held) // 2, 0))
    assert found > 0.8, learned.figures
    assert r2(learned.model, fit, shuffled) < 0.1
    assert not learned.figures["flags"]
    assert learned.figures["explained"]["own"] > learned.figures["explained"]["another"] + 0.3
    if method == "nsvq":
        assert learned.figures["codes"]["perplexity"] > 4, "codes are in use"


def test_the_same_seed_gives_the_same_bits_and_another_gives_others(squares: Path) -> None:
    body, config = Body.of(load_manifest(squares)), small("nsvq")
    runs = [learn(squares, body, config, LearnConfig(steps=3, batch_size=8, seed=seed)).model for seed in (0, 0, 1)]
    states = [torch.cat([p.flatten() for p in run.state_dict().values()]) for run in runs]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_a_model_that_ignores_the_second_frame_crosses_its_control(
    squares: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small("vae")
    body = Body.of(load_manifest(squares))
    model = learn(squares, body, config, LearnConfig(steps=3, batch_size=8)).model
    whole = model.label

    def blind(x: torch.Tensor) -> torch.Tensor:
        return whole(torch.cat([x[:, :3], x[:, :3]], dim=1))

    monkeypatch.setattr(model, "label", blind)
    figures = measure(model, held_out(squares, config, "val"), LearnConfig())
    assert any("nothing of the second frame" in flag for flag in figures["flags"])


def test_weak_labels_are_of_the_episodes_that_a_run_would_read(many: Path) -> None:
    body = Body.of(load_manifest(many))
    config = replace(small("flow"), action_dim=2)
    learned = learn(many, body, config, LearnConfig(steps=4, batch_size=16, labels=0.25))
    pairs = learned.figures["pairs"]
    assert 0.1 < pairs["labelled"] / pairs["train"] < 0.4
    assert set(learned.figures["actions"]) == {"r2_own", "r2_another"}
    with pytest.raises(ConfigError, match=r"0 pair\(s\) of that share"):
        learn(many, body, config, LearnConfig(steps=4, labels=1e-6))


def made_up(count: int = 24, channels: int = 2) -> Pairs:
    generator = torch.Generator().manual_seed(0)
    return Pairs(
        kept=torch.rand(count, channels, 16, 16, generator=generator),
        episodes=tuple(f"e{i // 4}" for i in range(count)),
        actions=torch.randn(count, 2, generator=generator),
    )


def fitted(labelled: torch.Tensor, pairs: Pairs, **settings: object) -> LatentActionModel:
    torch.manual_seed(0)
    model = LatentActionModel(LatentModelConfig(method="flow", side=16, width=8, action_dim=2 * int(labelled.any())))
    _train(model, pairs, labelled, LearnConfig(batch_size=8, **settings))
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("steps", [1, 2, 19, 20, 21])
def test_any_number_of_steps_has_a_schedule(steps: int) -> None:
    fitted(torch.zeros(24, dtype=torch.bool), made_up(), steps=steps)


def test_what_can_not_be_learned_is_told_and_no_broken_model_comes_of_it() -> None:
    pairs = made_up()
    with pytest.raises(ConfigError, match="lower lr"):
        fitted(torch.zeros(24, dtype=torch.bool), replace(pairs, kept=pairs.kept * torch.nan), steps=2)
    with pytest.raises(ConfigError, match="nothing else to learn from"):
        LearnConfig(reconstruction=0)
    one = replace(pairs, actions=torch.full_like(pairs.actions, torch.nan).index_fill(0, torch.tensor([0]), 1.0))
    with pytest.raises(ConfigError, match=r"1 pair\(s\) of that share"):
        _labelled(one, LearnConfig(labels=1.0), LatentModelConfig(action_dim=2))


def test_a_reading_that_is_no_better_than_another_pairs_is_flagged_and_constant_actions_do_not_count() -> None:
    pairs = made_up()
    moving = replace(pairs, actions=pairs.actions * torch.tensor([1.0, 0.0]))
    model = fitted(torch.ones(24, dtype=torch.bool), moving, steps=3, labels=1.0)
    figures = measure(model, replace(pairs, actions=pairs.actions.flip(0)), LearnConfig())
    assert any("can't be read" in flag for flag in figures["flags"])
    right = moving.actions[:, :1] * torch.ones(1, 14)
    model.label = lambda x: right
    model.reader.weight.zero_()
    model.reader.weight[0, 0] = 1 / model.action_scale[0]
    model.reader.bias.copy_(-model.action_mean / model.action_scale)
    figures = measure(model, pairs, LearnConfig())
    assert figures["actions"]["r2_own"] > 0.99, "the second never changed where the line was fitted"
    assert not any("can't be read" in flag for flag in figures["flags"])


def test_a_line_trained_with_the_network_reads_actions_in_their_own_units(many: Path) -> None:
    body = Body.of(load_manifest(many))
    config = replace(small("flow"), action_dim=2)
    learned = learn(many, body, config, LearnConfig(steps=120, batch_size=32, labels=0.5))
    assert learned.figures["actions"]["r2_own"] > 0.7
    assert learned.figures["actions"]["r2_another"] < 0
    with pytest.raises(ConfigError, match="without labels"):
        learn(many, body, small("flow"), LearnConfig(steps=1)).model.read(torch.zeros(1, 14))


def test_a_folder_comes_back_and_a_broken_one_is_refused(squares: Path, tmp_path: Path) -> None:
    body, config = Body.of(load_manifest(squares)), small("flow")
    model = learn(squares, body, config, LearnConfig(steps=2, batch_size=8)).model
    digest = save_model(model, {"flags": []}, tmp_path / "m")
    again, found = load_model(tmp_path / "m")
    x = torch.randn(2, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    assert found == digest
    assert torch.equal(again.label(x), model.label(x))
    with pytest.raises(DataError, match="exists already"):
        save_model(model, {}, tmp_path / "m")
    weights, text = tmp_path / "m" / "model.safetensors", (tmp_path / "m" / "config.json").read_text()
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="cut short"):
        load_model(tmp_path / "m")
    weights.write_bytes(whole)
    for wrong in (
        "{",
        text.replace('"flow"', '"flaw"'),
        text.replace('"schema_version": 1', '"schema_version": 9'),
        text.replace('"dim": 14', '"dim": 15'),
    ):
        (tmp_path / "m" / "config.json").write_text(wrong)
        with pytest.raises(CheckpointError):
            load_model(tmp_path / "m")
    with pytest.raises(CheckpointError, match="latent-actions train"):
        load_model(tmp_path / "nowhere")


def test_a_disk_that_takes_half_a_model_is_told_in_one_line_and_keeps_nothing(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    model = LatentActionModel(LatentModelConfig(side=16, width=8))
    (tmp_path / "m.partial").mkdir()
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(DataError, match="make room"):
            save_model(model, {}, tmp_path / "m")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["m.partial"], "which is another command's"
