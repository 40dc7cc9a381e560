"""A session's answer computed the long way: every frame encoded anew, every chunk read at once, no cache, no state kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from wam_video.flow.modes import POLICY_PATHS, Role, path_grid
from wam_video.flow.path import expand_clock, to_velocity
from wam_video.flow.solvers import ClockPattern, Clocks, State, guided, sample
from wam_video.inference.noise import draw_noise
from wam_video.inference.pipeline import WAMPipeline
from wam_video.models import video_codec
from wam_video.models.attention import WAMCrossAttention
from wam_video.models.chunks import History
from wam_video.models.tokens import join
from wam_video.models.transformer import WAMTransformer
from wam_video.tensors import to_unit_range


@dataclass
class Episode:
    """What one robot saw and did since its reset."""

    body: str
    frames: list[np.ndarray] = field(default_factory=list)
    """Each `v h w c`."""
    actions: list[np.ndarray] = field(default_factory=list)
    """Each `da`, in physical units."""
    prompts: list[str] = field(default_factory=list)
    """That under which each chunk was observed."""


@contextmanager
def told(model: WAMTransformer, texts: dict[str, torch.Tensor], chunks: list[str], now: str) -> Iterator[None]:
    """Let the clean tokens of chunk i read `texts[chunks[i]]`, all others that of `now`, instead of one prompt for all."""
    every = [model.prompts(text, None) for text in texts.values()]
    places = torch.tensor([list(texts).index(prompt) for prompt in [*chunks, now]])
    expert = set() if model.expert is None else {id(block.attn2) for block in model.expert.blocks}
    choice: dict[bool, torch.Tensor] = {}
    run, cross = model.run_blocks, WAMCrossAttention.forward

    def run_blocks(groups: Any, *args: Any, **options: Any) -> Any:
        names = [["video"], [name for name in groups if name != "video"]] if expert else [list(groups)]
        for side, part in enumerate(names):
            present = [groups[name] for name in part if name in groups]
            if present:
                meta = join(present).meta
                choice[bool(side)] = places[torch.where(meta.noisy == 1, len(chunks), meta.chunk)[0]]
        return run(groups, *args, **options)

    def forward(self: WAMCrossAttention, x: torch.Tensor, _: Any) -> torch.Tensor:
        side = id(self) in expert
        outs = torch.stack([cross(self, x, self.context(*prompts[side])) for prompts in every])
        index = choice[side].expand(x.shape[1])
        return outs[index, :, torch.arange(x.shape[1])].transpose(0, 1)

    model.run_blocks, WAMCrossAttention.forward = run_blocks, forward
    try:
        yield
    finally:
        del model.run_blocks
        WAMCrossAttention.forward = cross


class Recomputed:
    """Decides for an episode from scratch."""

    def __init__(self, pipe: WAMPipeline, window: int | None = None) -> None:
        self.pipe, self.model, self.codec = pipe, pipe.transformer, pipe.vae
        self.rule = self.model.attention if window is None else replace(self.model.attention, window=window)
        times = pipe.processor.window
        self.factor = video_codec.temporal_factor(self.codec)
        self.context = video_codec.num_latents(self.codec, times.num_context_frames)
        total = video_codec.num_latents(self.codec, times.num_frames)
        self.size = self.rule.chunk_frames
        self.per = times.action_horizon // ((total - self.context) // self.size)

        self.encoded: dict[str, torch.Tensor] = {}

    def text(self, prompt: str) -> torch.Tensor:
        if prompt not in self.encoded:
            self.encoded[prompt] = self.pipe.encode_prompts([prompt])[0]
        return self.encoded[prompt]

    @torch.no_grad()
    def act(
        self, episode: Episode, state: np.ndarray, prompt: str, *, seed: int, path: str, steps: int, scale: Any = 1.0
    ) -> torch.Tensor:
        """Return the actions of the chunk after the last whole one, in physical units."""
        rule, self.model.attention = self.model.attention, self.rule
        try:
            return self._act(episode, state, prompt, seed, path, steps, scale)
        finally:
            self.model.attention = rule

    def _act(
        self, episode: Episode, state: np.ndarray, prompt: str, seed: int, path: str, steps: int, scale: Any
    ) -> torch.Tensor:
        processor, window = self.pipe.processor, self.pipe.processor.window
        body = processor.indices([episode.body])
        after = (len(episode.frames) - window.num_context_frames) // (self.size * self.factor)
        frames = np.stack(episode.frames[: window.num_context_frames + after * self.size * self.factor], axis=1)
        video = torch.from_numpy(frames).permute(0, 4, 1, 2, 3)[None]
        clean = video_codec.encode(self.codec, to_unit_range(video))
        spec = POLICY_PATHS[path]
        here = 0 if spec.video is Role.ABSENT else self.size
        noise_video, noise = draw_noise(
            [torch.Generator().manual_seed(seed)],
            (*clean.shape[1:3], self.context + here, *clean.shape[4:]),
            (self.per, processor.max_action_dim),
        )
        start = State(video=noise_video[:, :, :, self.context :], actions=noise)
        pattern = ClockPattern(
            video_free=torch.ones(1, here, dtype=torch.bool),
            video_held=torch.zeros(1, here),
            actions_free=torch.ones(1, self.per, dtype=torch.bool),
            actions_held=torch.zeros(1, self.per),
        )
        known = torch.zeros(1, after * self.per, processor.max_action_dim)
        dim = processor.action_dim(episode.body)
        for i, action in enumerate(episode.actions[: after * self.per]):
            known[0, i, :dim] = torch.from_numpy(action)
        known = processor.normalize_actions(known, body) if after else known
        fixed = self._fixed(clean, known, after, body, state)
        scales = (scale, scale) if isinstance(scale, float) else (scale["video"], scale["actions"])

        def velocity(point: State, clocks: Clocks, prompts: list[str], now: str) -> State:
            texts = {each: self.text(each) for each in dict.fromkeys([*prompts, now])}
            with told(self.model, texts, prompts, now):
                return self._velocity(point, clocks, fixed, after)

        def vector(point: State, clocks: Clocks) -> State:
            one = velocity(point, clocks, episode.prompts[: after + 1], prompt)
            if scales == (1.0, 1.0):
                return one
            return guided(one, velocity(point, clocks, [""] * (after + 1), ""), *scales)

        config = self.pipe.scheduler.path(steps)
        end = sample(vector, start, pattern, path_grid(spec, config), solver=self.pipe.scheduler.config["solver"])
        return processor.denormalize_actions(end.actions, body)[0, :, :dim]

    def _fixed(
        self, clean: torch.Tensor, known: torch.Tensor, after: int, body: torch.Tensor, state: np.ndarray
    ) -> dict[str, Any]:
        processor, window = self.pipe.processor, self.pipe.processor.window
        rate = processor.spec(processor.config["embodiments"][int(body)]["name"]).action_rate
        past = torch.arange(1 - window.num_context_frames, 1).double()[:: self.factor] * window.context_stride_s
        ahead = torch.arange(1, (after + 1) * self.size + 1).double() * self.factor * window.future_stride_s
        times = torch.cat([past, ahead])[None].float()
        values = torch.zeros(1, after + 1, processor.max_state_dim)
        values[0, -1, : len(state)] = torch.from_numpy(state)
        mask = torch.zeros(values.shape, dtype=torch.bool)
        mask[0, -1, : len(state)] = True
        values[:, -1] = processor.normalize_state(values[:, -1], body)
        history = History(
            latents=clean[:, :, :, self.context :],
            t_video=torch.zeros(1, after * self.size),
            times=times[:, self.context : self.context + after * self.size],
            first=self.context,
            actions=known if self.rule.action_history else None,
            t_action=torch.zeros(1, known.shape[1]) if self.rule.action_history else None,
        )
        return {
            "clean": clean[:, :, :, : self.context],
            "times": times,
            "rest": dict(
                action_times=(torch.arange((after + 1) * self.per).double() / rate)[None].float(),
                state=values,
                state_mask=mask,
                embodiment=body,
                num_context=self.context,
                history=history if after else None,
                text_embeds=self.text(""),
            ),
        }

    def _velocity(self, point: State, clocks: Clocks, fixed: dict[str, Any], after: int) -> State:
        """Ask the network for all chunks, of which the earlier ones are zeros that the last can't see."""
        here = point.video.shape[3]
        blank = point.video.new_zeros(*point.video.shape[:3], after * self.size if here else 0, *point.video.shape[4:])
        latents = torch.cat([fixed["clean"], blank, point.video], dim=3)
        out = self.model(
            latents=latents,
            t_video=torch.cat([torch.zeros(1, self.context), torch.ones(1, blank.shape[3]), clocks.video], dim=1),
            latent_times=fixed["times"][:, : latents.shape[3]],
            actions=torch.nn.functional.pad(point.actions, (0, 0, after * self.per, 0)),
            t_action=torch.nn.functional.pad(clocks.actions, (after * self.per, 0), value=1.0),
            **fixed["rest"],
        )
        kinds = self.model.prediction_kinds
        clock = expand_clock(clocks.video, point.video, 3)
        video = to_velocity(out.video[:, :, :, latents.shape[3] - here :], point.video, clock, kinds[0])
        actions = out.actions[:, after * self.per :]
        return State(
            video=video, actions=to_velocity(actions, point.actions, expand_clock(clocks.actions, actions, 1), kinds[1])
        )
