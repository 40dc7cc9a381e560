"""`wam-video rollout` from a checkpoint folder to the page, in a world of the tests, in PushT and through gymnasium."""

import json
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests.unit.evaluation.line_world import SPEC, LineWorld
from wam_video.cli import rollout as command
from wam_video.cli.command import run
from wam_video.data import simulation
from wam_video.data.simulation import open_environment
from wam_video.errors import ConfigError
from wam_video.evaluation.agents import ModelAgent, ModelOptions
from wam_video.evaluation.rollout import Job, LoopConfig, roll
from wam_video.testing import tiny_pipeline

needs_pusht = pytest.mark.skipif(find_spec("gym_pusht") is None, reason="gym-pusht is missing")

MAPPING = """
imports: [gym_pusht]
arguments: {obs_type: pixels_agent_pos}
embodiment: pusht
rate: 10
views: {top: pixels}
state: agent_pos
progress: info.coverage
hold: state
max_steps: 5
prompt: push
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline(size=32, seed=3).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(simulation.BUILT_IN, "line", "tests.unit.evaluation.line_world:LineWorld")


def _run(*arguments: object) -> int:
    return run(command.main, [str(a) for a in arguments])


def _record(folder: Path) -> dict:
    return json.loads((folder / "rollout.json").read_text())


def _without_times(value: object) -> object:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if k not in ("timing", "command", "commit")}
    return [_without_times(v) for v in value] if isinstance(value, list) else value


def test_only_we_write_to_the_terminal(model: Path, tmp_path: Path, foreign_words: Callable[[], list[str]]) -> None:
    assert _run("--model", model, "--env", "line", "--episodes", 1, "--output", tmp_path / "out") == 0
    assert foreign_words() == []


def test_a_rollout_leaves_a_record_a_page_and_films(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert (
        _run(
            "--model",
            f"tiny={model}",
            "--env",
            "line:near,far",
            "--episodes",
            3,
            "--films",
            1,
            "--rows",
            2,
            "--output",
            out,
        )
        == 0
    )
    record = _record(out)
    tiny, expert, random, hold = record["policies"]
    assert [p["kind"] for p in record["policies"]] == ["model", "control", "control", "control"]
    assert expert["success"]["successes"] == 6
    assert hold["success"]["successes"] == 0
    assert tiny["clocks"]["policy_path"] == "unknown"
    assert tiny["clocks"]["path"][0] == [1.0, 1.0]
    assert tiny["stats_hash"]
    assert len(tiny["episodes"]) == 6 == len({e["start_id"] for e in tiny["episodes"]})
    assert [e["start_hash"] for e in tiny["episodes"]] == [e["start_hash"] for e in random["episodes"]]
    assert sorted(f.name for f in (out / "films").iterdir()) == ["tiny-far-1000-0000.mp4", "tiny-near-1000-0000.mp4"]
    page = (out / "report.html").read_text()
    assert "come &lt;home&gt;" in page
    assert "<home>" not in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    printed = capsys.readouterr().out
    assert "the scripted expert: 6 of 6 succeeded, 100 % [61, 100]" in printed


def test_the_same_rollout_again_differs_in_its_times_alone(model: Path, tmp_path: Path) -> None:
    for name in "ab":
        arguments = (
            "--model",
            f"tiny={model}",
            "--env",
            "line",
            "--episodes",
            2,
            "--films",
            1,
            "--controls",
            "random",
            "--disturb-light",
            1,
        )
        assert _run(*arguments, "--output", tmp_path / name) == 0
    assert _without_times(_record(tmp_path / "a")) == _without_times(_record(tmp_path / "b"))


def test_with_a_latency_the_model_is_told_what_will_have_been_done() -> None:
    done = []
    for told in (True, False):
        agent = ModelAgent("tiny", tiny_pipeline(size=32, seed=3), SPEC, ModelOptions(condition_on_committed=told))
        world = LineWorld()
        loop = LoopConfig(max_steps=6, execute=2, latency=2)
        (episode,) = roll([world], agent, [Job(task="near", index=0, filmed=True)], loop)
        assert episode.held == 2
        assert set(episode.imagined) == {2, 4, 6, 8}
        done.append(np.stack(world.actions))
    # the first decision has nothing to be told; the second, made at step 2, has
    np.testing.assert_array_equal(done[0][:4], done[1][:4])
    assert not np.allclose(done[0][4:], done[1][4:])


def test_a_decision_does_not_depend_on_the_other_rows() -> None:
    agent = ModelAgent("tiny", tiny_pipeline(size=32, seed=3), SPEC, ModelOptions())
    jobs = [Job(task="near", index=i, filmed=False) for i in range(3)]
    alone = roll([LineWorld()], agent, jobs, LoopConfig(rows=1))
    together = roll([LineWorld() for _ in jobs], agent, jobs, LoopConfig(rows=3))
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_allclose([o.reward for o in a.outcomes], [o.reward for o in b.outcomes], atol=1e-4)


def test_an_earlier_record_is_compared_with_on_equal_starts_only(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--model", f"tiny={model}", "--env", "line", "--episodes", 2, "--films", 0, "--controls")
    assert _run(*arguments, "--output", tmp_path / "a") == 0
    assert _run(*arguments, "--against", tmp_path / "a", "--output", tmp_path / "b") == 0
    (comparison,) = _record(tmp_path / "b")["comparisons"]
    assert (comparison["first"], comparison["verdict"]) == ("tiny (earlier)", "none")
    assert _run(*arguments, "--against", tmp_path / "a", "--disturb-start", 1, "--output", tmp_path / "c") == 2
    assert "not the same in both records" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", "lime"], "Did you mean 'line'?"),
        (["--env", "line", "--controls", "experts"], "control is 'experts'"),
        (["--env", "line", "--controls"], "nothing to roll out"),
        (["--env", "line", "--disturb-camera", "5"], "disturbance camera is 5"),
        (["--env", "gym:x"], "needs an id and a mapping"),
        (["--env", "line", "--against", "nowhere"], "can't be read"),
        (["--env", "line", "--late", "bogus"], "late is 'bogus'"),
        (["--env", "line", "--late-steps", "0"], "late steps is 0"),
        (["--env", "line", "--ensemble", "0.1", "--blend", "2"], "one of the two"),
        (["--env", "line", "--continuation", "guided", "--no-prefix"], "contradict each other"),
        (["--env", "line", "--real-time", "--deadline", "0.1"], "--deadline 0.1 is by the clock"),
    ],
)
def test_a_wrong_request_is_one_line_and_writes_nothing(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(*arguments, "--output", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@needs_pusht
def test_another_body_than_the_models_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("--model", f"tiny={model}", "--env", "pusht", "--output", tmp_path / "out") == 2
    assert "embodiment is 'pusht'" in capsys.readouterr().err


@needs_pusht
def test_the_scripted_pusher_beats_holding_still_in_pusht(tmp_path: Path) -> None:
    assert (
        _run(
            "--env", "pusht", "--episodes", 2, "--max-steps", 100, "--controls", "expert", "hold", "--output", tmp_path
        )
        == 0
    )
    expert, hold = _record(tmp_path)["policies"]
    assert expert["mean_best_progress"] > hold["mean_best_progress"] + 0.3


@needs_pusht
def test_a_pusht_world_draws_what_the_source_stores() -> None:
    from data_pipelines.pusht import PushTSource
    from data_pipelines.pusht.episode import draw_start

    (episode,) = PushTSource("pusht:", episodes=1, image_size=48, max_steps=3, skills="expert").episodes()
    world = open_environment("pusht", (48, 48))
    rng = np.random.default_rng([0, 0])
    rng.choice(1, p=[1.0])  # the source draws the skill first
    start = draw_start(rng)
    world.reset("pusht", [0])
    world._table = type(world.table)(*start)  # type: ignore[attr-defined]
    for stored, action in zip(list(episode.views["top"].frames())[:3], episode.actions, strict=True):  # type: ignore[arg-type]
        np.testing.assert_array_equal(world.frames()["top"], stored)
        world.step(action)


@needs_pusht
def test_a_gymnasium_environment_is_mapped_by_a_file(tmp_path: Path) -> None:
    file = tmp_path / "map.yaml"
    file.write_text(MAPPING)
    world = open_environment("gym:gym_pusht/PushT-v0", (40, 40), mapping=str(file))
    world.reset(world.tasks[0], [1])
    assert (world.spec.action_dim, world.spec.state_dim, world.tasks) == (2, 2, ("PushT-v0",))
    assert world.frames()["top"].shape == (40, 40, 3)
    before = world.fingerprint()
    outcome = world.step(world.hold())
    assert 0 <= outcome.progress <= 1
    assert not outcome.done
    world.reset(world.tasks[0], [1])
    assert world.fingerprint() == before
    assert (
        _run(
            "--env",
            "gym:gym_pusht/PushT-v0",
            "--env-option",
            f"mapping={file}",
            "--episodes",
            1,
            "--output",
            tmp_path / "out",
        )
        == 0
    )
    assert [p["name"] for p in _record(tmp_path / "out")["policies"]] == ["random", "hold"]  # there is no expert
    file.write_text(MAPPING.replace("top: pixels", "top: pixel"))
    with pytest.raises(ConfigError, match="Did you mean 'pixels'"):
        open_environment("gym:gym_pusht/PushT-v0", (40, 40), mapping=str(file))


def test_decisions_overlap_with_actions_and_late_ones_are_counted(model: Path, tmp_path: Path) -> None:
    common = (
        "--model",
        model,
        "--env",
        "line",
        "--episodes",
        2,
        "--films",
        0,
        "--controls",
        "--latency",
        1,
        "--execute",
        2,
    )
    facts = {}
    for name, more in {
        "prefix": ("--real-time",),
        "free": ("--real-time", "--no-prefix"),
        "guided": ("--continuation", "guided", "--blend", 1),
        "late": ("--late-share", 1, "--late-steps", 2, "--late", "hold"),
    }.items():
        assert _run(*common, *more, "--max-steps", 12, "--output", tmp_path / name) == 0
        facts[name] = _record(tmp_path / name)["policies"][0]["real_time"]
    assert facts["prefix"]["seams"] > 0 and facts["prefix"]["seam_jump"] != facts["free"]["seam_jump"]
    assert "late" not in facts["prefix"] and facts["late"]["late"] > 0
    assert facts["late"]["held"] > facts["prefix"]["held"]
    assert _run(*common, "--continuation", "guide", "--output", tmp_path / "x") == 2
