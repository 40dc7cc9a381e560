"""No figure of a model card is typed by hand, and none is of another checkpoint."""

import json
import re

import pytest

from tests.policy.tree import ROOT, files, read
from wam_video.evaluation.ablation_page import markdown
from wam_video.evaluation.card import ABLATION, ABLATION_END, BEGIN, END, figures, fill
from wam_video.inference.loading import model_hash

CARDS = sorted(name.rsplit("/", 1)[0] for name in files() if name.endswith("/metrics.json"))
RECORDS = sorted(name for name in files() if re.fullmatch(r"model_cards/.*/ablation_[^/]+\.json", name))


@pytest.mark.parametrize("folder", CARDS)
def test_a_card_holds_what_its_metrics_say(folder: str) -> None:
    document = json.loads(read(f"{folder}/metrics.json"))
    card = read(f"{folder}/README.md")
    assert card == fill(card, figures(document, folder.rsplit("/", 1)[-1])), f"run: wam-video card {folder}"


@pytest.mark.parametrize("record", RECORDS)
def test_a_card_holds_what_its_ablations_say(record: str) -> None:
    document, card = json.loads(read(record)), read(record.rsplit("/", 1)[0] + "/README.md")
    filled = fill(card, markdown(document), ABLATION.format(document["name"]), ABLATION_END)
    assert card == filled, f"run: wam-video card {record.rsplit('/', 1)[0]} --ablation {record}"


@pytest.mark.parametrize("folder", CARDS)
def test_the_metrics_are_of_the_checkpoint_beside_them(folder: str) -> None:
    hashes = [model["model_hash"] for model in json.loads(read(f"{folder}/metrics.json"))["models"]]
    assert model_hash(ROOT / folder) in hashes


def test_a_new_card_has_a_place_for_figures() -> None:
    assert CARDS
    assert "| policy |" in fill(read("model_cards/TEMPLATE.md"), "| policy |")
    assert BEGIN in read("model_cards/TEMPLATE.md") and END in read("model_cards/TEMPLATE.md")
