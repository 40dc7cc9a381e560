"""A run that is killed at random moments ends where an undisturbed one does; `soak.py` does it 200 times."""

from pathlib import Path

import pytest

from tests.soak.soak import history, is_sound, soak
from tests.unit.data.conftest import toy_episode, write_shards


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("async_save", [False, True])
def test_a_run_that_is_killed_at_random_moments_ends_where_an_undisturbed_one_does(
    tmp_path: Path, async_save: bool
) -> None:
    shards = write_shards(tmp_path / "shards", [toy_episode(i) for i in range(3)])
    found = soak(tmp_path, shards, kills=4, async_save=async_save)
    assert is_sound(found), found
    assert found["kills"] == 4


def test_a_sample_that_is_lost_or_comes_twice_is_noticed(tmp_path: Path) -> None:
    log = tmp_path / "samples.jsonl"
    log.write_text(
        '{"start": 0}\n{"step": 1, "samples": ["0:a"]}\n{"step": 2, "samples": ["1:b"]}\n'
        '{"start": 1}\n{"step": 2, "samples": ["1:b"]}\n'
    )
    assert history(log) == ([["0:a"], ["1:b"]], 3, True)
    log.write_text(log.read_text() + '{"start": 2}\n{"step": 3, "samples": ["1:b"]}\n{"start": 1}\n')
    assert history(log)[0] == [["0:a"]]
    log.write_text(log.read_text() + '{"step": 2, "samples": ["2:c"]}\n')
    assert not history(log)[2]
    good = {"same_samples_at_every_step": True, "tensors_compared": 3, "tensors_that_differ": []}
    assert is_sound(good | {"samples_lost": 0, "samples_twice": 0})
    for worse in ({"samples_lost": 1}, {"samples_twice": 1}, {"tensors_that_differ": ["a"]}, {"tensors_compared": 0}):
        assert not is_sound(good | {"samples_lost": 0, "samples_twice": 0} | worse)
