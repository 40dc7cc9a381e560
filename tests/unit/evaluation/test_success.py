import pytest

from wam_video.errors import ConfigError, DataError
from wam_video.evaluation.success import compare, compare_progress, paired, success_rate


@pytest.mark.parametrize(
    ("k", "n", "wilson", "exact"),
    [
        (18, 20, (0.70, 0.97), (0.68, 0.99)),
        (25, 50, (0.37, 0.63), (0.35, 0.65)),
        (45, 50, (0.79, 0.96), (0.78, 0.97)),
        (0, 20, (0.0, 0.161), (0.0, 0.168)),
    ],
)
def test_intervals_are_those_of_the_tables(k: int, n: int, wilson: tuple, exact: tuple) -> None:
    found = success_rate(k, n)
    assert found.wilson == pytest.approx(wilson, abs=0.006)
    assert found.clopper_pearson == pytest.approx(exact, abs=0.006)
    assert found.rate == k / n


def test_no_episodes_have_no_rate() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        success_rate(0, 0)


def test_a_difference_is_claimed_only_where_the_disagreements_carry_it() -> None:
    # five flips in one direction: p = 2 / 2**5 = 0.0625; six: 0.03125
    few = compare("a", "b", [(False, True)] * 5 + [(True, True)] * 45)
    assert few.p_value == pytest.approx(0.0625)
    assert few.verdict == "none"
    assert few.sentence.startswith("No difference between a and b can be claimed from 50 starts")
    assert few.difference == pytest.approx(0.1)
    enough = compare("a", "b", [(False, True)] * 6 + [(True, True)] * 44)
    assert (enough.verdict, enough.p_value) == ("second", pytest.approx(0.03125))
    assert enough.sentence.startswith("b succeeds more often than a by 12 points")
    assert compare("a", "b", [(False, True)] * 6, comparisons=2).verdict == "none"
    turned = compare("b", "a", [(True, False)] * 6)
    assert turned.verdict == "first"


def test_equal_policies_are_no_proof_of_equality() -> None:
    same = compare("a", "b", [(True, True)] * 10)
    assert (same.p_value, same.verdict) == (1.0, "none")
    assert same.detectable >= 0.6
    assert compare("a", "b", [(True, True)] * 1000).detectable < 0.05


def test_who_came_farther_is_told_apart_from_success() -> None:
    found = compare_progress([(0.1 + 0.01 * i, 0.3 + 0.02 * i) for i in range(10)])
    assert (found["verdict"], found["p_value"]) == ("second", pytest.approx(2 / 2**10))
    assert compare_progress([(0.5, 0.5)] * 10)["verdict"] == "none"


def test_pairs_are_made_by_start_and_a_start_that_differs_is_refused() -> None:
    first = [{"start_id": "t-0", "start_hash": "a"}, {"start_id": "t-1", "start_hash": "b"}]
    second = [{"start_id": "t-1", "start_hash": "b"}, {"start_id": "t-2", "start_hash": "c"}]
    assert paired(first, second) == [(first[1], second[0])]
    with pytest.raises(DataError, match="not the same in both"):
        paired(first, [{"start_id": "t-0", "start_hash": "x"}])
