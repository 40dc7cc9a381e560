"""Every YAML of configs/ says what it is for, stays small, and resolves; so does every documented training command."""

import re
import shlex
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from tests.policy.tree import ROOT, files, read
from wam_video.cli.ablate_spec import AblationConfig, plan
from wam_video.config import load
from wam_video.data.loader import DataConfig
from wam_video.errors import ConfigError
from wam_video.training.build import build_on_meta, count_parameters
from wam_video.training.config import TrainConfig
from wam_video.training.feed import find_embodiments

CONFIGS = sorted(name for name in files() if name.startswith("configs/") and name.endswith((".yaml", ".yml")))
ABLATIONS = [name for name in CONFIGS if name.startswith("configs/ablation/")]
RECIPES = [name for name in CONFIGS if name.startswith("configs/recipe/")]
MODELS = [name for name in CONFIGS if name.startswith("configs/model/")]
"""Recipes are for our network; a file that names another one (`network:`) is no part of them."""
DOCUMENTS = [n for n in files() if n.endswith(".md") or n in CONFIGS]
MAX_LINES = 60

COMMAND = re.compile(r"(?:wam-video train|wam_video\.cli\.train)((?: +(?:\\\n[# ]*)?[^\s`#|>\\]+)+)")


def training_commands(text: str) -> list[list[str]]:
    """Arguments of each documented `wam-video train` or `... -m wam_video.cli.train` that names a config of ours."""
    found = [shlex.split(match.replace("\\\n", " ").replace("#", " ")) for match in COMMAND.findall(text)]
    return [
        a for a in found if any(x.startswith("configs/") for x in a) and not re.search(r"[<$*]|\.\.\.", " ".join(a))
    ]


DOCUMENTED = sorted({tuple(a) for name in DOCUMENTS for a in training_commands(read(name))})


def dry_run(*arguments: str) -> int:
    if find_spec("wam_video.cli.train") is None:
        pytest.skip("wam_video.cli.train does not exist yet")
    main = import_module("wam_video.cli.train").main
    return main([*arguments, *([] if "--dry-run" in arguments else ["--dry-run"])]) or 0


def refused(*arguments: str) -> bool:
    """Whether the command says 2 or raises the error that becomes 2."""
    try:
        return dry_run(*arguments) == 2
    except ConfigError:
        return True


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_says_what_it_is_and_holds_differences_only(name: str) -> None:
    text = read(name)
    assert text.startswith("# ")
    assert len(text.splitlines()) <= MAX_LINES
    assert isinstance(yaml.safe_load(text), dict)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_resolves(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert dry_run(name) == 0


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_run_of_an_ablation_resolves(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    spec = load(AblationConfig, [name])
    plans = plan(spec, tmp_path)
    assert len(plans) == len(spec.variants) * len(spec.seeds) == len({p.digest for p in plans})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", DOCUMENTED, ids=" ".join)
def test_a_documented_training_command_resolves(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert dry_run(*arguments) == 0


def test_a_key_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    if not RECIPES:
        pytest.skip("no recipes yet")
    assert refused(RECIPES[0], "no_such_key=1")


def test_documented_commands_are_found() -> None:
    text = "x\n```\nwam-video train configs/recipe/a.yaml \\\n  a.b=1\n```\nand `wam-video train --help`, or\n"
    text += "accelerate launch -m wam_video.cli.train configs/recipe/b.yaml c=2 # comment\n"
    assert training_commands(text) == [["configs/recipe/a.yaml", "a.b=1"], ["configs/recipe/b.yaml", "c=2"]]


def pair(model: str, recipe: str) -> TrainConfig:
    return load(TrainConfig, [ROOT / model, ROOT / recipe])


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("model", [name for name in MODELS if "\nnetwork:" not in read(name)])
def test_every_recipe_fits_every_model(model: str, recipe: str) -> None:
    config, (bodies, _) = pair(model, recipe), find_embodiments(DataConfig())
    network = build_on_meta(config, bodies)
    count, plain = (
        sum(p.numel() for p in network.parameters()),
        count_parameters(load(TrainConfig, [ROOT / model]), bodies),
    )
    assert all(p.is_meta for p in network.parameters())
    assert (count - plain) / plain < (0.3 if network.expert is not None or "tiny" in model else 0.015)
    window, rule = config.data.window, network.attention
    latents = [
        frames if config.codec.kind == "pixel" else (frames - 1) / 4 + 1
        for frames in (window.num_context_frames, window.num_frames)
    ]
    chunks, rest = divmod(latents[1] - latents[0], rule.chunk_frames) if rule.causal else (1, 0)
    assert rest == 0 and all(n == int(n) for n in latents) and window.action_horizon % chunks == 0


def test_there_are_recipes_and_models() -> None:
    assert len(RECIPES) == 8
