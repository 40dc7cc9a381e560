import numpy as np
import pytest

from wam_video.errors import ConfigError
from wam_video.evaluation.variants import Variant, describe, parse_variant, parse_variants


def test_a_policy_is_a_folder_with_options() -> None:
    assert parse_variant("a=runs/x") == Variant(name="a", folder="runs/x")
    made = parse_variant("b=runs/x:steps=1,path=absent,noise=0.3")
    assert made == Variant(name="b", folder="runs/x", steps=1, path="absent", noise=0.3)
    assert describe(made) == "steps=1, path=absent, noise=0.3"
    assert describe(parse_variant("a=runs/x")) == ""
    assert parse_variant("c=C:/x/y").folder == "C:/x/y"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("runs/x", "give NAME=FOLDER"),
        ("runs/x:steps=1", "give NAME=FOLDER"),
        ("a=", "give NAME=FOLDER"),
        ("a=x:stepz=1", "steps"),
        ("a=x:steps=one", "give a number"),
        ("a=x:steps=0", "1 or more"),
        ("a=x:noise=-1", "0 .none."),
        ("a=x:noise=nan", "0 .none."),
    ],
)
def test_a_wrong_policy_is_told_in_one_line(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_variant(text)


def test_names_are_unique() -> None:
    with pytest.raises(ConfigError, match="twice"):
        parse_variants(["a=x", "a=y"])
    assert np.unique([v.name for v in parse_variants(["a=x", "b=x"])]).size == 2
