"""No figure of a model card is typed by hand, and none is of another checkpoint."""

import json
import re

import pytest

from tests.policy.tree import ROOT, files, read
from wam_video.evaluation.card import BEGIN, END, PART, PART_END, PARTS, figures, fill
from wam_video.inference.loading import RECORDS as LAID_BESIDE
from wam_video.inference.loading import model_hash

CARDS = sorted(name.rsplit("/", 1)[0] for name in files() if name.endswith("/metrics.json"))


def kind_of(record: str) -> str:
    return record.rsplit("/", 1)[-1].split("_", 1)[0]


RECORDS = sorted(
    name for name in files() if re.fullmatch(r"model_cards/.*/[a-z]+_[^/]+\.json", name) and kind_of(name) in PARTS
)


@pytest.mark.parametrize("folder", CARDS)
def test_a_card_holds_what_its_metrics_say(folder: str) -> None:
    document = json.loads(read(f"{folder}/metrics.json"))
    card = read(f"{folder}/README.md")
    assert card == fill(card, figures(document, folder.rsplit("/", 1)[-1])), f"run: wam-video card {folder}"


@pytest.mark.parametrize("record", RECORDS)
def test_a_card_holds_what_its_records_say(record: str) -> None:
    folder, file = record.rsplit("/", 1)
    kind, name = file.removesuffix(".json").split("_", 1)
    document, card = json.loads(read(record)), read(f"{folder}/README.md")
    made = PARTS[kind](document, folder.rsplit("/", 1)[-1])
    assert card == fill(card, made, PART.format(kind, name), PART_END.format(kind)), (
        f"run wam-video card {folder} again"
    )


@pytest.mark.parametrize("folder", CARDS)
def test_the_metrics_are_of_the_checkpoint_beside_them(folder: str) -> None:
    hashes = [model["model_hash"] for model in json.loads(read(f"{folder}/metrics.json"))["models"]]
    assert model_hash(ROOT / folder) in hashes


def test_no_kind_of_record_changes_the_hash_of_the_checkpoint_beside_it() -> None:
    assert set(PARTS) <= set(LAID_BESIDE)


def test_a_new_card_has_a_place_for_figures() -> None:
    assert CARDS
    assert "| policy |" in fill(read("model_cards/TEMPLATE.md"), "| policy |")
    assert BEGIN in read("model_cards/TEMPLATE.md") and END in read("model_cards/TEMPLATE.md")
