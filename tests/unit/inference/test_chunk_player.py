"""Chunks that follow each other in time, by numbers: action k of the chunk that was asked for at step s is s + k."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import numpy as np
import pytest

from wam_video.errors import ConfigError
from wam_video.inference.chunk_player import Before, ChunkPlayer, PlayConfig
from wam_video.inference.real_time import RealTimePolicy, ask_session
from wam_video.testing import tiny_pipeline


def chunk(start: float, steps: int = 8) -> np.ndarray:
    return (start + np.arange(steps, dtype=np.float32))[:, None]


def play(
    takes: list[int], steps: int, chunks: list[np.ndarray] | None = None, **options: Any
) -> tuple[list[float], ChunkPlayer]:
    """Carry out `steps`; decision k comes after `takes[k]` of them. By default chunks say where the robot will be."""
    player, heard, due, done = ChunkPlayer(PlayConfig(**options)), [], None, 0.0
    for now in range(steps):
        if player.is_due:
            before = player.ask()
            number = player.counts["asked"] - 1
            asked_at = done
            due = now + takes[number]
        if player.waiting and due is not None and now >= due:
            player.receive(chunks[number] if chunks else chunk(asked_at))
            if player.is_due:
                before = player.ask()  # noqa: F841
        heard.append(float(player.step(np.full(1, -1, np.float32))[0]))
        done = done + (heard[-1] >= 0)
    return heard, player


def test_decisions_in_time_are_seamless() -> None:
    heard, player = play([0, 2, 2, 2, 2], 17, delay=2, execute=4)
    assert heard == list(range(17))
    assert player.counts["late"] == 0 and set(player.seams) == {1.0} and len(player.seams) == 4 - 1


def test_the_plan_before_is_told() -> None:
    player = ChunkPlayer(PlayConfig(delay=2, execute=4))
    player.ask()
    player.receive(chunk(0))
    for _ in range(4):
        assert not player.is_due
        player.step()
    before = player.ask()
    assert (before.executed, before.committed[:, 0].tolist(), before.planned[:, 0].tolist()) == (4, [4, 5], [6, 7])


def test_hold_stops_and_enters_the_new_chunk_where_the_old_was_left() -> None:
    heard, player = play([0, 4, 0, 0], 12, delay=2, execute=4, late="hold")
    assert heard == [0, 1, 2, 3, 4, 5, -1, -1, 6, 7, 8, 9]
    assert (player.counts["late"], player.counts["held"]) == (1, 2)


def test_continue_goes_further_than_was_committed() -> None:
    new = chunk(100)
    heard, player = play([0, 3, 9], 9, [chunk(0), new, new], delay=2, execute=4, late="continue")
    assert heard[:9] == [0, 1, 2, 3, 4, 5, 6, 103, 104], "the step after the two committed ones came of the old chunk"
    assert (player.counts["late"], player.counts["continued"]) == (1, 1)


def test_slow_goes_through_the_positions_between() -> None:
    new = chunk(100)
    heard, player = play([0, 4, 9], 9, [chunk(0), new, new], delay=2, execute=4, late="slow")
    assert heard == [0, 1, 2, 3, 4, 5, 6, 6.5, 103]
    assert (player.counts["late"], player.counts["slowed"]) == (1, 2)


def test_a_plan_that_ends_holds() -> None:
    heard, player = play([0, 9], 10, delay=0, execute=8, late="continue")
    assert heard[:8] == list(range(8)) and heard[8:] == [-1, -1] and player.counts["held"] == 2


def test_a_seam_is_blended_over_so_many_actions() -> None:
    heard, player = play([0, 1, 1], 9, [chunk(0), chunk(10) + 5], delay=1, execute=4, blend=2)
    assert heard[:5] == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(heard[5:9], [5 + 11 / 3, 6 + 11 * 2 / 3, 18, 19][:4], atol=1e-5)
    assert player.seams[0] < 16 - 4


def test_a_seam_is_whole_where_the_old_chunk_ends_before_the_blend() -> None:
    """Of three actions to blend over the old chunk has two: the second is the last, and nearly all the new chunk's."""
    heard, _ = play([0, 2, 9], 9, [chunk(0), chunk(10), chunk(0)], delay=2, execute=4, blend=3)
    np.testing.assert_allclose(heard[6:9], [6 + 6 / 3, 7 + 6 * 2 / 3, 14], atol=1e-5)


def test_an_ensemble_is_the_mean_of_all_chunks_that_know_a_step() -> None:
    """Steps 2 to 5 are in two chunks, 4 and 5 in three; the oldest that knows a step counts 1 (Zhao et al. 2023)."""
    said = [np.full((6, 1), value, np.float32) for value in (0.0, 10.0, 100.0)]
    heard, _ = play([0, 0, 0], 6, said, delay=0, execute=2, ensemble=0.5)
    w = np.exp(-0.5 * np.arange(3))
    wanted = [0, 0, *[10 * w[1] / (w[0] + w[1])] * 2, *[(10 * w[1] + 100 * w[2]) / w.sum()] * 2]
    np.testing.assert_allclose(heard, wanted, rtol=1e-5)
    heard, _ = play([0, 0, 0], 6, said, delay=0, execute=2, ensemble=1000.0)
    np.testing.assert_allclose(heard, 0, atol=1e-5)  # the oldest alone, and no division by nothing


def test_what_was_carried_out_is_told_and_not_what_the_new_chunk_would_have_done() -> None:
    player = ChunkPlayer(PlayConfig(delay=2, execute=4, blend=1))
    player.ask()
    player.receive(chunk(0))
    for _ in range(4):
        player.step()
    player.ask()
    heard = [float(player.step()[0]) for _ in range(2)]
    player.receive(chunk(100))  # knows nothing of the two
    heard += [float(player.step()[0]) for _ in range(2)]
    before = player.ask()
    assert before.done[:, 0].tolist() == heard == [4, 5, (6 + 102) / 2, 103]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ensemble": 0.1, "blend": 2}, "one of the two"),
        ({"ensemble": -1.0}, "ensemble is -1.0"),
        ({"late": "wait"}, "late is 'wait'"),
        ({"delay": 4, "execute": 2}, "at least the delay"),
        ({"slow": 1.0}, "slow is 1.0"),
    ],
)
def test_what_can_not_be_is_told(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        PlayConfig(**options)


def test_a_slow_decision_does_not_stop_the_robot() -> None:
    go, begun, asked = Event(), Event(), []

    def ask(observation: int, before: Before) -> np.ndarray:
        asked.append((observation, before.executed, len(before.committed)))
        if len(asked) == 2:
            begun.set()
            assert go.wait(10)
        return chunk(observation)

    with RealTimePolicy(ask, PlayConfig(delay=1, execute=2, late="continue")) as policy:
        heard = [float(policy.step(lambda now=now: now)[0]) for now in range(5)]
        assert begun.wait(10)
        assert heard == [0, 1, 2, 3, 4] and asked == [(0, 0, 0), (2, 2, 1)]
        facts = policy.facts()
        go.set()
        assert (facts["late"], facts["continued"]) == (1, 2)


def test_a_failed_decision_is_told_and_asked_for_again() -> None:
    calls = []

    def ask(observation: int, before: Before) -> np.ndarray:
        calls.append(observation)
        if len(calls) == 1:
            raise ConfigError("no camera")
        return chunk(observation)

    with ThreadPoolExecutor(1) as pool, RealTimePolicy(ask, PlayConfig(), pool=pool) as policy:
        with pytest.raises(ConfigError, match="no camera"):
            policy.step(lambda: 0)
        assert float(policy.step(lambda: 7)[0]) == 7


def test_a_session_is_told_what_is_committed() -> None:
    session = tiny_pipeline().stream(embodiment="arm", prompt="push")
    rng = np.random.default_rng(0)

    def observe() -> dict[str, Any]:
        return {"frames": rng.integers(0, 256, (1, 1, 16, 16, 3), dtype=np.uint8), "state": np.ones(2, np.float32)}

    with RealTimePolicy(
        ask_session(session, generator=0, continuation="guided"), PlayConfig(delay=1, execute=2)
    ) as policy:
        before = [policy.step(observe) for _ in range(2)]
        old = policy.player._chunk.copy()
        policy.step(observe)
        policy._take(wait=True)
        assert not np.allclose(policy.player._chunk, old)
        np.testing.assert_array_equal(policy.player._chunk[0], old[2])
        assert len(before) == 2
