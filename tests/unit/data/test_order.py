import itertools
import pickle

import numpy as np
import pytest

from wam_video.data.mixture import BucketMixture, Mixture
from wam_video.data.order import WindowOrder
from wam_video.errors import ConfigError

COUNTS = [13, 0, 8, 1, 40, 7]


@pytest.mark.parametrize("weights", [[1.0], [1, 1], [3, 1], [0.7, 0.2, 0.1], [1, 0, 2], [0, 5], [1e-3, 1, 10], [1] * 7])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_mixture_never_strays_from_its_weights(weights, seed):
    mixture = Mixture(weights, seed)
    share = np.array(weights) / np.sum(weights)
    counts = np.zeros(len(weights))
    for position in range(2000):
        dataset, draw = mixture(position)
        assert draw == counts[dataset]  # draws count up without gaps, so no window is lost or repeated
        counts[dataset] += 1
        assert np.abs(counts - (position + 1) * share).max() < 2.5


def test_far_positions_need_no_history():
    mixture = Mixture([0.3, 0.6, 0.1])
    far = 10**15
    draws = {}
    for position in range(far, far + 200):
        dataset, draw = mixture(position)
        assert draw == draws.get(dataset, draw - 1) + 1
        draws[dataset] = draw
    assert sorted(draws) == [0, 1, 2]
    assert draws[1] == pytest.approx(0.6 * far, rel=1e-9)


@pytest.mark.parametrize("weights", [[], [0, 0], [-1, 2], [float("nan")], [float("inf"), 1]])
def test_weights_that_make_no_sense_are_refused(weights):
    with pytest.raises(ConfigError, match="mixture weights"):
        Mixture(weights)


@pytest.mark.parametrize("group", [1, 3, 8, 100])
def test_every_window_comes_once_an_epoch(group):
    order = WindowOrder(COUNTS, 5, group)
    everything = {(clip, window) for clip, count in enumerate(COUNTS) for window in range(count)}
    epochs = [[order(draw) for draw in range(e * len(order), (e + 1) * len(order))] for e in range(3)]
    for epoch in epochs:
        assert len(epoch) == len(everything) == sum(COUNTS)
        assert set(epoch) == everything
    assert epochs[0] != epochs[1] != epochs[2]


def test_neighbours_share_a_clip_as_far_as_asked():
    draws = [WindowOrder([100] * 20, 0, 8)(k)[0] for k in range(2000)]
    switches = sum(a != b for a, b in itertools.pairwise(draws))
    assert 2000 / 8 * 0.8 < switches <= 20 * 13
    free = [WindowOrder([100] * 20, 0, 1)(k)[0] for k in range(500)]
    assert sum(a != b for a, b in itertools.pairwise(free)) > 450


def test_the_order_is_a_pure_function_of_seed_and_draw():
    order, again = WindowOrder(COUNTS, 5), WindowOrder(COUNTS, 5)
    forwards = [order(k) for k in range(200)]
    assert [again(k) for k in reversed(range(200))][::-1] == forwards
    assert [pickle.loads(pickle.dumps(order))(k) for k in range(200)] == forwards
    assert [WindowOrder(COUNTS, 6)(k) for k in range(200)] != forwards


def test_a_group_of_no_window_is_refused():
    with pytest.raises(ConfigError, match="windows_per_decode is 0"):
        WindowOrder(COUNTS, 0, 0)
    with pytest.raises(ConfigError, match="open_shards is -1"):
        WindowOrder(COUNTS, 0, open_shards=-1)


@pytest.mark.parametrize("open_shards", [1, 2, 5])
def test_shards_are_visited_in_sets_and_every_window_still_comes_once(open_shards):
    shards = np.repeat(np.arange(10), 6)
    order = WindowOrder([7] * 60, 3, 4, shards=shards, open_shards=open_shards)
    epochs = [[order(draw) for draw in range(e * len(order), (e + 1) * len(order))] for e in range(2)]
    sets = []
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch) == 420
        visited = list(dict.fromkeys(int(shards[clip]) for clip, _ in epoch))
        first_half = epoch[: 420 * open_shards // 10]
        assert {int(shards[clip]) for clip, _ in first_half} == set(visited[:open_shards])
        sets.append(frozenset(visited[:open_shards]))
    assert epochs[0] != epochs[1]
    assert [pickle.loads(pickle.dumps(order))(k) for k in range(99)] == [order(k) for k in range(99)]


def test_one_bucket_is_the_plain_mixture():
    plain, bucketed = Mixture([3, 1, 2], 7), BucketMixture([3, 1, 2], [0, 0, 0], 5, 7)
    assert [bucketed(k) for k in range(500)] == [plain(k) for k in range(500)]


@pytest.mark.parametrize("seed", [0, 3])
def test_buckets_change_only_between_runs_and_keep_the_weights(seed):
    mixture = BucketMixture([2, 1, 1, 0], [0, 1, 0, 1], 10, seed)
    draws = dict.fromkeys(range(4), 0)
    for run in range(400):
        names = [mixture(10 * run + place) for place in range(10)]
        assert len({(0, 1, 0, 1)[d] for d, _ in names}) == 1
        for dataset, draw in names:
            assert draw == draws[dataset]
            draws[dataset] += 1
    assert draws[3] == 0
    assert np.abs(np.array([draws[d] for d in range(3)]) / 4000 - [0.5, 0.25, 0.25]).max() < 0.01
