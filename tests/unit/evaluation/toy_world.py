"""A world in which everything can be known: a white square that moves by each action, and models of it, right and broken."""

from collections.abc import Sequence

import torch

from wam_video.data.schema import EmbodimentSpec
from wam_video.evaluation.open_loop import Generated, Group
from wam_video.tensors import Batch, Mode

SIDE, SIZE, CONTEXT, FUTURE = 24, 6, 2, 3
SPEC = EmbodimentSpec(
    name="toy", action_dim=2, state_dim=2, views=("top",), fps=5.0, action_rate=5.0,
    action_names=("right", "down"), action_units=("px", "px"),
)  # fmt: skip


def render(position: torch.Tensor) -> torch.Tensor:
    """Draw the square at `[..., 2]` rounded pixel positions: uint8 `... 3 h w`."""
    grid = torch.arange(SIDE)
    x, y = position.round()[..., 0, None], position.round()[..., 1, None]
    column, row = (grid >= x) & (grid < x + SIZE), (grid >= y) & (grid < y + SIZE)
    image = (row[..., :, None] & column[..., None, :]).to(torch.uint8) * 200 + 20
    return image[..., None, :, :].expand(*image.shape[:-2], 3, SIDE, SIDE)


def locate(frames: torch.Tensor) -> torch.Tensor:
    """Find the square in uint8 `... 3 h w` frames."""
    bright = frames[..., 0, :, :] > 100
    x = bright.any(-2).to(torch.uint8).argmax(-1)
    return torch.stack([x, bright.any(-1).to(torch.uint8).argmax(-1)], dim=-1).float()


def episode_of(index: int) -> str:
    return f"e{index // 4}"


def fetch(indices: Sequence[int]) -> Batch:
    """Windows of the world; each is a function of its index."""
    starts, actions = [], []
    for i in indices:
        g = torch.Generator().manual_seed(1000 + i)
        starts.append(torch.randint(6, SIDE - SIZE - 6, (2,), generator=g).float())
        actions.append(torch.randint(-2, 3, (FUTURE, 2), generator=g).float())
    start, action = torch.stack(starts), torch.stack(actions)
    path = torch.cat([start[:, None].expand(-1, CONTEXT, -1), start[:, None] + action.cumsum(1)], dim=1)
    b, f = len(indices), CONTEXT + FUTURE
    return Batch(
        video=render(path)[:, None].movedim(2, 3).contiguous(),
        frame_mask=torch.ones(b, 1, f, dtype=torch.bool),
        frame_times=(torch.arange(f).float() - CONTEXT + 1).expand(b, -1) / 5,
        num_context_frames=CONTEXT,
        actions=action,
        action_mask=torch.ones(b, FUTURE, 2, dtype=torch.bool),
        action_times=torch.arange(FUTURE).float().expand(b, -1) / 5,
        state=start,
        state_mask=torch.ones(b, 2, dtype=torch.bool),
        prompts=("push",) * b,
        embodiments=("toy",) * b,
        datasets=("toyset",) * b,
        keys=tuple(f"clip{i}@0" for i in indices),
        indices=torch.tensor(indices),
    )


def make_group(n: int = 40) -> Group:
    return Group(
        spec=SPEC,
        indices=tuple(range(n)),
        episodes=tuple(episode_of(i) for i in range(n)),
        action_mean=torch.zeros(2),
        action_scale=torch.full((2,), 2.0**0.5),
        previous_actions=torch.ones(n, 2),
    )


class ToyModel:
    """Knows the world; `broken` names what it gets wrong."""

    def __init__(self, broken: str = "") -> None:
        self.broken = broken
        self.calls: list[tuple[Mode, int]] = []

    def __call__(self, mode: Mode, batch: Batch, seeds: Sequence[int]) -> Generated:
        self.calls.append((mode, len(batch)))
        guess = torch.stack([self._noise(seed) for seed in seeds])
        now = locate(batch.video[:, 0, :, CONTEXT - 1])
        actions = guess
        if mode is Mode.INVERSE and self.broken != "inverse_ignores_video":
            path = locate(batch.video[:, 0].movedim(2, 1)[:, CONTEXT - 1 :])
            actions = path.diff(dim=1)
        if mode is Mode.FORWARD and self.broken != "forward_ignores_actions":
            actions = batch.actions
        if mode is Mode.POLICY:  # good, not perfect: the recorded actions are no function of what it sees
            actions = fetch(batch.indices.tolist()).actions + 0.7 * guess
        if self.broken == "leaks_future" and mode in (Mode.POLICY, Mode.VIDEO):
            actions = locate(batch.video[:, 0].movedim(2, 1)[:, CONTEXT - 1 :]).diff(dim=1)
        if (
            self.broken == "other_statistics" and mode is not Mode.VIDEO
        ):  # of a body whose actions are larger and biased
            actions = 2.5 * actions + 1.0 if mode is not Mode.FORWARD else ((actions - 1.0) / 2.5).round()
        moves = torch.zeros_like(actions) if self.broken == "frozen" else actions
        if self.broken == "joint_disagrees" and mode is Mode.JOINT:
            moves = torch.stack([self._noise(seed + 1) for seed in seeds])
        video = render(now[:, None] + moves.cumsum(1))[:, None].float() / 255
        gives_video = mode in (Mode.FORWARD, Mode.VIDEO, Mode.JOINT)
        gives_actions = mode in (Mode.POLICY, Mode.INVERSE, Mode.JOINT)
        return Generated(actions=actions if gives_actions else None, video=video if gives_video else None)

    @staticmethod
    def _noise(seed: int) -> torch.Tensor:
        return torch.randint(-2, 3, (FUTURE, 2), generator=torch.Generator().manual_seed(seed % 2**31)).float()
