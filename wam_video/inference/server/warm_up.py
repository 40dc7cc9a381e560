"""Deciding for robots that are not there, before anybody is let in: what takes long only once is over when the first one asks."""

from math import ceil
from time import perf_counter

import numpy as np

from wam_video.inference.server.dialects import Answer, Asked
from wam_video.inference.server.policy import Policy


def warm_up(policy: Policy, rows: int, *, every_shape: bool = False) -> float:
    """Decide for one robot and for many, and return the seconds that it took. All rows are new again after that.

    Args:
        policy: Which nobody uses yet.
        rows: Robots decided for together, at most.
        every_shape: For a compiled network: as many robots as there may be, each number of them from an empty memory to a full
            one, and new robots beside one whose memory is full. A decision with `guided` continuation, which takes gradients,
            is not among them.
    """
    began = perf_counter()
    rows = min(rows, policy.config.max_sessions)
    for count in range(1, rows + 1) if every_shape else sorted({1, rows}):
        _live(policy, range(count), _decisions(policy) if every_shape else 1)
        _forget(policy, range(count))
    if every_shape and policy.chunks and policy.config.max_sessions > 1:
        _live(policy, range(1), _decisions(policy))
        for count in range(1, rows + 1):
            others = range(1, count + 1) if count < policy.config.max_sessions else range(count)
            _live(policy, others, 1)
            _forget(policy, others if others[0] else others[1:])
        _forget(policy, range(1))
    return perf_counter() - began


def _live(policy: Policy, rows: range, decisions: int) -> None:
    """Have some robots ask so many times, carrying out what they are told."""
    for _ in range(decisions):
        asked = [(row, _request(policy, policy.begun(row))) for row in rows]
        for answer in policy.decide(asked):
            if not isinstance(answer, Answer):
                raise answer


def _forget(policy: Policy, rows: range) -> None:
    for row in rows:
        policy.reset(row)


def _request(policy: Policy, begun: bool) -> Asked:
    size = (policy.window.height or 64, policy.window.width or 64)
    steps, frames = _pace(policy)
    count = frames if begun else policy.window.num_context_frames
    return Asked(
        frames=tuple(np.zeros((count, *size, 3), np.uint8) for _ in policy.views),
        state=None if policy.state_range is None else policy.state_range.mean(0).astype(np.float32),
        executed=steps,
    )


def _pace(policy: Policy) -> tuple[int, int]:
    """Return the actions that a robot carries out between two decisions, and the frames that it sees meanwhile."""
    if not policy.chunks:
        return policy.config.execute or policy.horizon, 1
    steps = policy.config.execute or min(round(policy.per_chunk * policy.ratio), policy.horizon)
    return steps, round(steps / policy.ratio)


def _decisions(policy: Policy) -> int:
    """Return the decisions after which the memory of a robot keeps its shape."""
    if not policy.chunks:
        return policy.window.num_context_frames
    # a chunk each, and two more: the context, whose size is another, is dropped then
    return ceil((policy.session.remembers + 2) * policy.per_chunk / max(_pace(policy)[1], 1))
