"""What each straight push does to the block, tried once in the simulator's own physics, and the choice between them.

The physics of PushT is quasi-static (no inertia between steps), so the outcome of a push in the block's frame does not
depend on where the block lies: one table of some 120 pushes serves every pose.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int

from data_pipelines.pusht import geometry as geo
from data_pipelines.pusht.simulator import load_simulator

APPROACH = 16.0
"""Distance between pusher and surface at which a push is lined up, px."""
STRIDE = 6.0
"""Spacing of the tabulated push lengths, px."""
MAX_LENGTHS = 26
"""Longest push: 26 * 6 = 156 px after contact."""
BLOCK_MARGIN = 14.0
"""Pushes that would bring the block closer than this to a wall are not planned: the table knows no walls."""


@dataclass(frozen=True, kw_only=True)
class PushTable:
    """Straight pushes in the block's frame."""

    contacts: Float[np.ndarray, "k 2"]
    """Pusher's centre when it touches, px."""
    directions: Float[np.ndarray, "k 2"]
    """Unit vectors."""
    moves: Float[np.ndarray, "k l 3"]
    """Block's change of pose (dx, dy, dangle) in its frame at the start, after (l + 1) * STRIDE px."""
    detours: geo.Detours
    """To where each push is lined up."""

    @property
    def starts(self) -> Float[np.ndarray, "k 2"]:
        """Where each push is lined up, in the block's frame."""
        return self.detours.targets


@dataclass(frozen=True, kw_only=True)
class Push:
    """A planned push: the way there and the straight line through the contact, in the workspace."""

    path: Float[np.ndarray, "p 2"]
    """Way points after the pusher's present position; the last but one lines up, the last ends the push."""
    error: float
    """Planned mean distance of the block's corners to the goal's afterwards, px."""


def _contact_points(spacing: float = 12.0) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "n 2"]]:
    """Return points of the T's outline and their inward normals."""
    points, normals = [], []
    for a, b in zip(geo.OUTLINE, np.roll(geo.OUTLINE, -1, axis=0), strict=True):
        length = np.linalg.norm(b - a)
        along = (b - a) / length
        for offset in np.linspace(6.0, length - 6.0, max(2, round((length - 12.0) / spacing) + 1)):
            points.append(a + along * offset)
            normals.append(np.array([-along[1], along[0]]))
    return np.array(points), np.array(normals)


def _try_push(contact: Float[np.ndarray, " 2"], direction: Float[np.ndarray, " 2"]) -> Float[np.ndarray, "l 3"]:
    """Push the block in an empty space, with the simulator's shapes and time step, and record its changes of pose."""
    simulator = load_simulator()
    space = simulator.pymunk.Space()
    space.damping = 0.0
    block, _ = simulator.env.add_tee(space, (0.0, 0.0), 0.0)
    block.position = (0.0, 0.0)
    pusher = simulator.env.add_circle(space, tuple(contact), geo.PUSHER_RADIUS)
    pusher.velocity = tuple(direction * 100.0)
    moves = []
    for _ in range(MAX_LENGTHS):
        for _ in range(round(STRIDE)):
            space.step(0.01)
        moves.append([*block.position, block.angle])
    return np.array(moves)


@lru_cache(maxsize=1)
def push_table() -> PushTable:
    """Tabulate the pushes (about 0.2 s, once a process)."""
    contacts, directions, moves = [], [], []
    for point, normal in zip(*_contact_points(), strict=True):
        for turn in (-0.5, 0.0, 0.5):
            direction = geo.rotation(turn) @ normal
            contact = point - normal * (geo.PUSHER_RADIUS + 0.5)
            start = contact - direction * APPROACH
            line = contact - direction * np.linspace(0, APPROACH, 9)[:, None]
            reachable = geo.surface_distance(line).min() >= geo.PUSHER_RADIUS - 0.1
            if reachable and geo.surface_distance(start) >= geo.CLEARANCE - 3.0:
                contacts.append(contact)
                directions.append(direction)
                moves.append(_try_push(contact, direction))
    at, along = np.array(contacts), np.array(directions)
    return PushTable(contacts=at, directions=along, moves=np.array(moves), detours=geo.Detours(at - along * APPROACH))


def apply_moves(pose: Float[np.ndarray, "*n 3"], moves: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
    """Compose changes of pose (in the block's frame) onto poses, broadcasting."""
    c, s = np.cos(pose[..., 2]), np.sin(pose[..., 2])
    x = pose[..., 0] + c * moves[..., 0] - s * moves[..., 1]
    y = pose[..., 1] + s * moves[..., 0] + c * moves[..., 1]
    return np.stack([x, y, pose[..., 2] + moves[..., 2]], axis=-1)


def corners(pose: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 8 2"]:
    """Return the block's corners in the workspace."""
    c, s = np.cos(pose[..., 2, None]), np.sin(pose[..., 2, None])
    x, y = geo.OUTLINE[:, 0], geo.OUTLINE[:, 1]
    return np.stack([pose[..., 0, None] + c * x - s * y, pose[..., 1, None] + s * x + c * y], axis=-1)


def pose_error(pose: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n"]:
    """Return the mean distance of the block's corners to the goal's, px."""
    return np.linalg.norm(corners(pose) - corners(geo.GOAL_POSE), axis=-1).mean(-1)


class Planner:
    """Choice of the next push.

    Args:
        table: The pushes.
        step_cost: px of pose error that one control step is worth.
        lookahead: How many of the best first pushes are judged by the best second push too; 0 judges one push only.
    """

    def __init__(self, table: PushTable, step_cost: float, lookahead: int) -> None:
        self.table = table
        self.step_cost = step_cost
        self.lookahead = lookahead
        self._push_steps = 0.3 * (np.arange(MAX_LENGTHS) + 1) * STRIDE / 8.0

    def _outcomes(
        self, pusher: Float[np.ndarray, " 2"], pose: Float[np.ndarray, " 3"]
    ) -> tuple[Float[np.ndarray, "k l 3"], Float[np.ndarray, "k l"], list[list[int]], Int[np.ndarray, " k"]]:
        table = self.table
        lengths, chains, last = table.detours.from_point(pusher, pose)
        after = apply_moves(pose, table.moves)
        ends = table.contacts[:, None] + table.directions[:, None] * ((np.arange(MAX_LENGTHS) + 1) * STRIDE)[:, None]
        possible = geo.in_bounds(geo.to_world(table.starts, pose))[:, None]
        possible = possible & geo.in_bounds(geo.to_world(ends.reshape(-1, 2), pose)).reshape(ends.shape[:2])
        reach = corners(after)
        inside = ((reach > BLOCK_MARGIN) & (reach < geo.WORKSPACE - BLOCK_MARGIN)).all((-1, -2))
        before = corners(pose)
        if not ((before > BLOCK_MARGIN) & (before < geo.WORKSPACE - BLOCK_MARGIN)).all():
            # Against a wall already: allow what brings the block back towards the middle.
            inside = np.abs(after[..., :2] - 256.0).max(-1) < np.abs(pose[:2] - 256.0).max() - 2.0
        steps = lengths[:, None] / 20.0 + 3.0 + self._push_steps
        steps = np.where(possible & inside, steps, np.inf)
        return after, steps, chains, last

    def candidates(self, pusher: Float[np.ndarray, " 2"], pose: Float[np.ndarray, " 3"], count: int) -> list[Push]:
        """Return up to `count` pushes of different contacts, best first; none if nothing is possible.

        Args:
            pusher: Centre of the pusher, px.
            pose: Of the block.
            count: How many.
        """
        after, steps, chains, last = self._outcomes(pusher, pose)
        score = pose_error(after) + self.step_cost * steps
        best_length = score.argmin(1)
        rows = np.arange(len(score))
        if self.lookahead:
            flat = np.argsort(score, axis=None, kind="stable")[: self.lookahead * 8 : 8]
            first, length = np.unravel_index(flat, score.shape)
            second = pose_error(apply_moves(after[first, length][:, None, None], self.table.moves))
            second = (second + self.step_cost * (9.0 + self._push_steps)).min((1, 2))
            judged = np.minimum(score[first, length], second + self.step_cost * steps[first, length])
            order = np.argsort(judged, kind="stable")
            picks = [(int(first[i]), int(length[i])) for i in order if np.isfinite(judged[i])]
        else:
            order = np.argsort(score[rows, best_length], kind="stable")
            picks = [(int(k), int(best_length[k])) for k in order[: 2 * count] if np.isfinite(score[k, best_length[k]])]
        pushes: dict[int, Push] = {}
        for k, length in picks:
            if k not in pushes and len(pushes) < count:
                pushes[k] = self._push(k, length, pose, chains, int(last[k]), float(pose_error(after[k, length])))
        return list(pushes.values())

    def random(
        self, pusher: Float[np.ndarray, " 2"], pose: Float[np.ndarray, " 3"], rng: np.random.Generator
    ) -> Push | None:
        """Return a random possible push of at least 36 px, or None if there is none; near contacts are likelier."""
        after, steps, chains, last = self._outcomes(pusher, pose)
        steps[:, :6] = np.inf
        longest = np.where(np.isfinite(steps).any(1), np.isfinite(steps).cumsum(1).argmax(1), -1)
        near = np.where(longest >= 0, steps.min(1), np.inf)
        if not np.isfinite(near).any():
            return None
        weight = np.exp(-(near - near.min()) / 8.0)
        k = int(rng.choice(len(weight), p=weight / weight.sum()))
        allowed = np.flatnonzero(np.isfinite(steps[k]))
        length = int(rng.choice(allowed[len(allowed) // 3 :]))
        return self._push(k, length, pose, chains, int(last[k]), float(pose_error(after[k, length])))

    def _push(
        self, k: int, length: int, pose: Float[np.ndarray, " 3"], chains: list[list[int]], last: int, error: float
    ) -> Push:
        table = self.table
        hubs = table.detours.hubs[chains[last]] if last >= 0 else np.zeros((0, 2))
        end = table.contacts[k] + table.directions[k] * (length + 1) * STRIDE
        path = geo.to_world(np.concatenate([hubs, table.starts[k][None], end[None]]), pose)
        return Push(path=np.clip(path, *geo.PUSHER_BOUNDS), error=error)
