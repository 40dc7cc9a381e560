"""Velocities used again: when, for whom, and what a straight path makes of it."""

import pytest
import torch

from wam_video.errors import ConfigError
from wam_video.flow.reuse import Meter, ReuseConfig, ReusedField
from wam_video.flow.solvers import Clocks, State

CLOCKS = Clocks(video=None, actions=torch.ones(2, 3))


class Velocities:
    """Row 0 hears the first column, row 1 the second, one line after the other."""

    def __init__(self, *lines: tuple[float, float]) -> None:
        self.lines, self.calls = lines, 0

    def __call__(self, state: State, clocks: Clocks) -> State:
        rows = torch.tensor(self.lines[self.calls])
        self.calls += 1
        return State(video=None, actions=rows[:, None, None].expand(2, 3, 1))


def heard(field: Velocities, steps: int, **options: float) -> tuple[list[list[float]], Meter]:
    meter = Meter()
    reused = ReusedField(field, ReuseConfig(**options), video=True, actions=True, meter=meter)
    state = State(video=None, actions=torch.zeros(2, 3, 1))
    return [reused(state, CLOCKS).actions[:, 0, 0].tolist() for _ in range(steps)], meter


def test_without_a_tolerance_every_step_is_computed() -> None:
    field = Velocities(*[(1.0, 1.0)] * 5)
    _, meter = heard(field, 5)
    assert (field.calls, meter.asked, meter.computed) == (5, 5, 5)


@pytest.mark.parametrize(("most", "calls"), [(1, 4), (3, 3)])
def test_a_velocity_that_stands_still_is_used_again_but_not_for_ever(most: int, calls: int) -> None:
    field = Velocities(*[(1.0, 2.0)] * 9)
    velocities, meter = heard(
        field, 6, tolerance=0.1, most=most
    )  # computed, computed, reused, computed, reused, computed
    assert field.calls == meter.computed == calls and meter.asked == 6
    assert velocities == [[1.0, 2.0]] * 6


def test_the_change_is_relative_to_what_was_computed_last() -> None:
    velocities, meter = heard(Velocities((1, 1), (1.5, 1.5), (1.6, 1.6), (9, 9)), 4, tolerance=0.1)
    assert meter.computed == 3 and [row[0] for row in velocities] == pytest.approx([1, 1.5, 1.6, 1.6])


def test_a_row_does_not_hear_of_its_neighbour() -> None:
    """The second row changes at every step, so the network is called; the first keeps its velocity as it would alone."""
    lines = [(1.0, 1.0), (1.0, 2.0), (5.0, 4.0), (1.0, 8.0)]
    together, meter = heard(Velocities(*lines), 4, tolerance=0.1)
    assert meter.computed == 4 and together == [[1, 1], [1, 2], [1, 4], [1, 8]]
    alone, _ = heard(Velocities(*[(a, a) for a, _ in (lines[0], lines[1], lines[3])]), 4, tolerance=0.1)
    assert [row[0] for row in alone] == [row[0] for row in together]


@pytest.mark.parametrize(
    ("options", "words"), [({"tolerance": -1.0}, "reuse_tolerance is -1"), ({"most": 0}, "reuse_most is 0")]
)
def test_what_can_not_be_is_told(options: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ReuseConfig(**options)
