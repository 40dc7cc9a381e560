"""A weighted mixture of datasets without drift: which dataset a position draws from, and its how-manieth draw that is.

Datasets are split off one after the other: of the positions that are left, dataset i takes the share `r_i`, evenly, by the
rule "draw number floor(k * r_i + phase)". In whole numbers this is exact at any position, needs no state and no table.
"""

from collections.abc import Sequence

import numpy as np

from wam_video.errors import ConfigError

_ONE = 1 << 40


class Mixture:
    """Positions of the mixed stream to (dataset, draw of that dataset), as a pure function of (weights, seed)."""

    def __init__(self, weights: Sequence[float], seed: int = 0) -> None:
        """Prepare the shares.

        Args:
            weights: One a dataset, not negative, not all 0; only their ratios matter.
            seed: Shifts the pattern.

        Raises:
            ConfigError: No weight, a negative or infinite one, or all 0.
        """
        if not weights or any(not 0 <= w < float("inf") for w in weights) or sum(weights) <= 0:
            raise ConfigError(f"mixture weights are {list(weights)}; each must be at least 0 and one above 0")
        left = [sum(weights[i:]) for i in range(len(weights))]
        self._shares = [round(_ONE * w / rest) if rest > 0 else 0 for w, rest in zip(weights, left, strict=True)]
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, len(weights)])))
        self._phases = [int(x) for x in rng.integers(0, _ONE, len(weights))]

    def __call__(self, position: int) -> tuple[int, int]:
        """Return `(dataset, draw)` of a position; draws of each dataset count up from 0 without gaps.

        >>> [Mixture([1.0])(k) for k in range(3)]
        [(0, 0), (0, 1), (0, 2)]
        """
        for dataset, (share, phase) in enumerate(zip(self._shares, self._phases, strict=True)):
            before = (position * share + phase) // _ONE
            if ((position + 1) * share + phase) // _ONE > before:
                return dataset, before
            position -= before
        raise AssertionError("the last dataset with a weight takes all that is left")


class BucketMixture:
    """A mixture whose neighbours are of one geometry: runs of positions come from one bucket of datasets.

    Run q of `run` positions belongs to the bucket that a mixture of the buckets names for q; within the bucket its datasets
    are mixed over the bucket's own positions. With one bucket this is `Mixture` to the position.
    """

    def __init__(self, weights: Sequence[float], buckets: Sequence[int], run: int, seed: int = 0) -> None:
        """Prepare the shares.

        Args:
            weights: One a dataset, as for `Mixture`.
            buckets: Bucket of each dataset, from 0 without gaps.
            run: Neighbours from one bucket.
            seed: Shifts the patterns.

        Raises:
            ConfigError: As for `Mixture`; or `run` is below 1.
        """
        if run < 1:
            raise ConfigError(f"a run of {run} positions of one bucket can't be; allowed: 1 or more")
        members = [[d for d, b in enumerate(buckets) if b == bucket] for bucket in range(max(buckets) + 1)]
        shares = [sum(weights[d] for d in group) for group in members]
        self._run, self._members = run, members
        self._outer = Mixture(shares, seed)
        # a bucket without weight is never drawn; any weights do for it
        self._inner = [
            Mixture([weights[d] for d in group] if share else [1.0] * len(group), seed)
            for group, share in zip(members, shares, strict=True)
        ]

    def __call__(self, position: int) -> tuple[int, int]:
        """Return `(dataset, draw)` of a position."""
        run, place = divmod(position, self._run)
        bucket, turn = self._outer(run)
        dataset, draw = self._inner[bucket](turn * self._run + place)
        return self._members[bucket][dataset], draw
