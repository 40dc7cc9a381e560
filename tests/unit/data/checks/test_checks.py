"""Every fault that is planted is named, and what is sound raises no alarm."""

from dataclasses import replace

import numpy as np
import pytest

from tests.unit.data.checks.faults import (
    Episodes,
    Fault,
    common_faults,
    digested,
    late_actions,
    made_up,
    numbers,
    prompts,
    recorded,
)
from wam_video.data.checks import Finding, ordered, run_checks, worst

BLOCKS = common_faults([2], 3, "ep03", state=True)
BRIDGE = common_faults([3, 4, 5], 6, "train-00000-000003", state=True)
BRIDGE_LONG = common_faults([3, 4, 5], 6, "episode_000003", state=False)
NOTED = {"placeholder_prompt": 10}


def alarms(episodes: Episodes, **options: object) -> list[Finding]:
    return [f for f in run_checks(digested(episodes), **options) if f.severity != "note"]  # type: ignore[arg-type]


def assert_named(fault: Fault, episodes: Episodes) -> None:
    notes = {} if "placeholder" in fault.name else NOTED
    found = alarms(fault.plant(episodes), notes=notes)
    named = [f for f in found if f.check == fault.check and fault.where in f.where]
    assert named, [str(f) for f in found]
    # one fault, not a page of them
    assert {f.check for f in found} <= {fault.check, "units"}, [str(f) for f in found]


def test_sound_recordings_raise_no_alarm(blocks: Episodes) -> None:
    assert not [str(f) for f in alarms(blocks)]


@pytest.mark.parametrize("name", ["bridge", "bridge_long"])
def test_real_recordings_raise_no_alarm(name: str, request: pytest.FixtureRequest) -> None:
    assert not [str(f) for f in alarms(request.getfixturevalue(name), notes=NOTED)]


@pytest.mark.parametrize("folder", ["language_table", "vla_foundry_wds", "droid_multiview"])
def test_small_real_recordings_raise_no_alarm(folder: str, real_data) -> None:
    assert not [str(f) for f in alarms(recorded(real_data / folder))]


@pytest.mark.parametrize("fault", BLOCKS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_named(fault: Fault, blocks: Episodes) -> None:
    assert_named(fault, blocks)


@pytest.mark.parametrize("fault", BRIDGE, ids=lambda fault: fault.name)
def test_a_fault_planted_into_real_episodes_is_named(fault: Fault, bridge: Episodes) -> None:
    assert_named(fault, bridge)


@pytest.mark.parametrize("fault", BRIDGE_LONG, ids=lambda fault: fault.name)
def test_a_fault_planted_into_real_episodes_without_state_is_named(fault: Fault, bridge_long: Episodes) -> None:
    assert_named(fault, bridge_long)


def lags(episodes: Episodes, delay: float | None = None) -> dict[str, Finding]:
    found = run_checks(digested(episodes), notes=NOTED, delay=delay)
    return {f.check: f for f in found if f.check.startswith("lag-") and "steps" in f.facts}


@pytest.mark.parametrize("steps", [-3, -2, -1, 1, 2, 3])
@pytest.mark.parametrize(
    ("name", "check", "delay"),
    [
        ("blocks", "lag-actions-state", 0.0),
        ("bridge", "lag-actions-state", 0.08),
        ("bridge_long", "lag-actions-video", 0.31),
    ],
)
def test_shifted_actions_are_found_to_the_step(
    name: str, check: str, delay: float, steps: int, request: pytest.FixtureRequest
) -> None:
    episodes: Episodes = request.getfixturevalue(name)
    sound = lags(episodes)[check].facts["steps"]
    late = late_actions(steps)(episodes)
    found = lags(late, delay=delay)[check]
    assert found.severity == "warning"
    assert found.facts["steps"] - sound == pytest.approx(-steps, abs=0.45)
    # without the robot's delay only what no robot does is told: moving before it is told to, or far too late
    unknown = {f.check: f.severity for f in lags(late).values()}
    assert ("warning" in unknown.values()) == (abs(steps) > 1 or (name, steps) in NAMED_ALONE)


NAMED_ALONE = {("blocks", 1), ("bridge", 1), ("bridge_long", -1)}
"""Shifts by one step that leave the range of natural delays."""


def test_two_episodes_are_too_few_to_tell_a_lag_or_a_flip(blocks: Episodes) -> None:
    found = list(run_checks(digested(late_actions(3)(blocks[:2]))))
    assert worst(found) == "note"
    assert any("can't be told" in f.text for f in found if f.check == "lag-actions-state")
    assert any("can't be told" in f.text for f in found if f.check == "view-orientation")


def test_actions_of_other_episodes_have_no_lag(blocks: Episodes) -> None:
    from dataclasses import replace

    moved = [
        replace(one, actions=other.actions, state=other.state)
        for one, other in zip(blocks, [*blocks[1:], blocks[0]], strict=True)
    ]
    found = {f.check: f for f in run_checks(digested(moved))}
    assert found["lag-state-video"].severity == "note"
    assert "can't be told" in found["lag-state-video"].text


def test_a_rate_that_drifts_is_named() -> None:
    from dataclasses import replace

    def stretched(rows: np.ndarray) -> np.ndarray:
        places = np.minimum(np.arange(len(rows)) * 0.985, len(rows) - 1)
        low = places.astype(int)
        part = (places - low)[:, None]
        return (rows[low] * (1 - part) + rows[np.minimum(low + 1, len(rows) - 1)] * part).astype(np.float32)

    episodes = made_up(count=12, frames=240)
    assert not [f for f in alarms(episodes) if f.check == "drift"]
    drifting = [replace(e, actions=stretched(e.actions), state=stretched(e.state)) for e in episodes]  # type: ignore[arg-type]
    assert "drift" in {f.check for f in alarms(drifting)}


def test_actions_that_end_early_are_named(blocks: Episodes) -> None:
    from dataclasses import replace

    short = [replace(e, actions=e.actions[:40], state=e.state[:41]) for e in blocks[:1]]  # type: ignore[index]
    assert "durations" in {f.check for f in alarms([*short, *blocks[1:]])}


def test_a_view_that_is_padding_everywhere_is_a_note_and_the_only_one_an_error(blocks: Episodes) -> None:
    from dataclasses import replace

    from wam_video.data.video import ArrayView

    def blanked(episode, names):
        blank = {
            name: ArrayView(np.zeros((60, 32, 32, 3), np.uint8), view.times) if name in names else view
            for name, view in episode.views.items()
        }
        return replace(episode, views=blank)

    one = [f for f in run_checks(digested([blanked(e, ["side"]) for e in blocks])) if f.check == "dead-camera"]
    assert [f.severity for f in one] == ["note"]
    both = [f for f in run_checks(digested([blanked(e, ["top", "side"]) for e in blocks])) if f.check == "dead-camera"]
    assert [f.severity for f in both] == ["error", "error"]


def test_constant_actions_are_named(blocks: Episodes) -> None:
    assert "constant-channels" in {f.check for f in alarms(numbers("actions", [0, 1, 2, 3], np.ones_like)(blocks))}


def test_missing_and_single_instructions_are_notes(blocks: Episodes) -> None:
    for texts, check in ((("",), "text-missing"), (("push the block",), "text-single")):
        found = {f.check: f.severity for f in run_checks(digested(prompts(texts)(blocks)))}
        assert found[check] == "note"


@pytest.mark.parametrize("text", ["Task 3", "placeholder", "TODO", "n/a", "none", "task_12", "<instruction>"])
def test_placeholders_are_told(text: str, blocks: Episodes) -> None:
    assert "text-placeholder" in {f.check for f in alarms(prompts((text,))(blocks[:3]))}


@pytest.mark.parametrize(
    "text", ["test the lamp", "put the demo cup on the plate", "open the task box", "no, the red one"]
)
def test_real_instructions_are_no_placeholders(text: str, blocks: Episodes) -> None:
    assert "text-placeholder" not in {f.check for f in alarms(prompts((text,))(blocks[:3]))}


def test_findings_are_ordered_from_the_worst_and_read_as_one_line() -> None:
    findings = [Finding(check="c", severity=s, where="w", text="t") for s in ("note", "error", "warning")]
    assert [f.severity for f in ordered(findings)] == ["error", "warning", "note"]
    assert worst(findings) == "error"
    assert worst([]) == "note"
    assert str(findings[1]) == "ERROR c w: t"


def test_an_episode_of_small_motions_has_no_degrees_for_radians(blocks: Episodes) -> None:
    names = ("dx", "dy", "dz", "gripper")
    spec = replace(blocks[0].embodiment, action_names=names, action_units=("m", "m", "m", "normalised"), state_names=())
    small = numbers("actions", [0, 2], lambda values: values / 57, [3])(blocks)
    assert not [str(f) for f in alarms([replace(episode, embodiment=spec) for episode in small]) if f.check == "units"]
    unnamed = replace(spec, action_names=())  # where no name says what it is, the factor alone has to do
    assert [f for f in alarms([replace(episode, embodiment=unnamed) for episode in small]) if f.check == "units"]
