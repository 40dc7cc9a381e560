"""Long episodes of a square that is driven about, as windows of any strides; and models of it, right and broken."""

from collections.abc import Sequence
from types import SimpleNamespace

import torch

from tests.unit.evaluation.toy_world import SIDE, SIZE, SPEC, locate, render
from wam_video.data.windows import WindowConfig
from wam_video.evaluation.long_rollout import Stretch, make_grid
from wam_video.evaluation.open_loop import Generated
from wam_video.tensors import Batch

FPS = 5.0
NUM_EPISODES, NUM_FRAMES = 4, 61


class LongWorld:
    """Actions are moves of a step (0.2 s); a window's index is episode * 100 + frame.

    Args:
        window: What a model reads and draws.
        still: The first so many actions of an episode are none at all.
    """

    def __init__(self, window: WindowConfig, still: int = 0) -> None:
        self.window = window
        self.offsets = torch.tensor([round(t * FPS) for t in window.frame_times()])
        self.horizon = int(self.offsets[-1])
        self.paths, self.moves = [], []
        for i in range(NUM_EPISODES):
            g = torch.Generator().manual_seed(i)
            place, path, moves = torch.tensor([9.0, 9.0]), [], []
            for step in range(NUM_FRAMES):
                path.append(place)
                move = torch.randint(1, 3, (2,), generator=g) * (2 * torch.randint(0, 2, (2,), generator=g) - 1)
                aside = (place + move < 1) | (place + move > SIDE - SIZE - 1)
                move = torch.where(aside, -move, move).float() * (step >= still)
                moves.append(move)
                place = place + move
            self.paths.append(torch.stack(path))
            self.moves.append(torch.stack(moves))

    def stretch(self, episode: int) -> Stretch:
        return Stretch(
            episode=f"long/e{episode}",
            fetch=self.fetch,
            places=tuple(episode * 100 + round(t * make_grid(self.window).tick_s * FPS) for t in range(NUM_FRAMES)),
        )

    def fetch(self, indices: Sequence[int]) -> Batch:
        b, k = len(indices), self.window.num_context_frames
        video, mask, actions, known, state = [], [], [], [], []
        for index in indices:
            episode, frame = divmod(index, 100)
            frames, steps = frame + self.offsets, frame + torch.arange(self.horizon)
            video.append(render(self.paths[episode][frames.clamp(0, NUM_FRAMES - 1)]).movedim(0, 1)[None])
            mask.append(((frames >= 0) & (frames < NUM_FRAMES))[None])
            actions.append(self.moves[episode][steps.clamp(0, NUM_FRAMES - 1)])
            known.append((steps < NUM_FRAMES)[:, None].expand(-1, 2))
            state.append(self.paths[episode][frame])
        times = torch.from_numpy(self.window.frame_times()).float()
        return Batch(
            video=torch.stack(video),
            frame_mask=torch.stack(mask),
            frame_times=times.expand(b, -1),
            num_context_frames=k,
            actions=torch.stack(actions),
            action_mask=torch.stack(known),
            action_times=(torch.arange(self.horizon) / FPS).expand(b, -1),
            state=torch.stack(state),
            state_mask=torch.ones(b, 2, dtype=torch.bool),
            prompts=("push",) * b,
            embodiments=("toy",) * b,
            datasets=("long",) * b,
            keys=tuple(f"long/clip{i // 100}@{i % 100}" for i in indices),
            indices=torch.tensor(list(indices)),
        )

    @property
    def dataset(self) -> SimpleNamespace:
        """What a study asks of `WindowDataset`; windows in stored order."""
        stored = [e * 100 + f for e in range(NUM_EPISODES) for f in range(NUM_FRAMES - 1)]

        class Dataset:
            def __len__(self) -> int:
                return len(stored)

            def episodes(self, indices):
                return [f"long/e{stored[i] // 100}" for i in indices]

            def embodiment_names(self, indices):
                return [SPEC.name for _ in indices]

            def batch(inner, indices):  # noqa: N805
                return self.fetch([stored[i] for i in indices])

        return Dataset()

    def model(self, broken: str = "", noise: float = 0.0):
        """Reads where the square is and moves it by the actions; `noise` is added to all pixels, in steps of 1 / 255."""

        def sample(mode, batch, seeds):
            k = batch.num_context_frames
            now = locate(batch.video[:, 0, :, k - 1])
            path = torch.cat([now[:, None], now[:, None] + batch.actions.cumsum(dim=1)], dim=1)
            if broken == "ignores the actions":
                g = [torch.Generator().manual_seed(s % 2**31) for s in seeds]
                moves = torch.stack([torch.randint(-2, 3, batch.actions.shape[1:], generator=x) for x in g])
                path = torch.cat([now[:, None], now[:, None] + moves.cumsum(dim=1)], dim=1)
            frames = (
                path[:, self.offsets[k:]] if broken != "frozen" else now[:, None].expand(-1, len(self.offsets) - k, -1)
            )
            video = render(frames).float()[:, None]
            if broken == "wears away":  # what it reads goes into what it draws, a little darker every time
                video = 0.9 * batch.video[:, :, :, k - 1 : k].movedim(2, 3).float().minimum(video) + 0.1 * video
                video = (video - 6).clamp(min=0)
            if noise:
                g = [torch.Generator().manual_seed(s % 2**31) for s in seeds]
                video = video + noise * torch.stack([torch.randn(video.shape[1:], generator=x) for x in g])
            return Generated(actions=None, video=(video / 255).clamp(0, 1))

        return sample
