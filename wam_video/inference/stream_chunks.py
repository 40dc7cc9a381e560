"""Streams of a causal network: latents as frames arrive, keys and values of whole chunks, and the denoising of the next one.

A chunk is written into the `KVCache` as soon as its last frame is there (`observe`). What `act` has left to compute is the
chunk that comes next, which it never writes: real frames take its place.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from wam_video.errors import ConfigError
from wam_video.flow.continuation import Continuation
from wam_video.flow.modes import Role, path_grid
from wam_video.flow.solvers import ClockPattern, State
from wam_video.inference.commitment import Commitment
from wam_video.inference.inputs import horizon
from wam_video.inference.noise import draw_noise
from wam_video.inference.outputs import WAMOutput
from wam_video.inference.sampling import VelocityField, twice, walk
from wam_video.inference.stream_rows import Row, StreamRows
from wam_video.inference.stream_window import Decision, Observation, StreamSetup, Text
from wam_video.models import video_codec
from wam_video.models.kv_cache import KVCache
from wam_video.models.streaming_codec import encode_streams


class ChunkMemory(StreamRows):
    """The rows of a session with a causal network.

    Args:
        setup: What does not change.
        text: The prompts.

    Raises:
        ConfigError: The windows of this checkpoint don't go on as a stream.
    """

    def __init__(self, setup: StreamSetup, text: Text) -> None:
        super().__init__(setup)
        self._text, self._network = text, setup.transformer
        self._dtype = self._network.patch_embedding.weight.dtype
        self._cache: KVCache | None = None

    def reset(self, rows: Sequence[int]) -> None:
        """Forget everything of some rows but their prompts."""
        for index in rows:
            self._rows[index] = Row(rhythm=self._rows[index].rhythm)
        if self._cache is not None:
            self._cache = self._cache.reset(self.flags(rows))

    def prompt(self, text: Text, rows: Sequence[int]) -> None:
        """Use other prompts in some rows; what is in the cache stays as it was observed, under the prompts of then."""
        self._text = text
        self._tell(rows)

    # What arrives

    @torch.no_grad()
    def observe(self, seen: Observation) -> None:
        """Encode what arrived and write the chunks that it completes.

        Raises:
            ConfigError: It can't come next; nothing has changed then.
        """
        for place, index in enumerate(seen.rows):
            times = None if seen.times is None else seen.times[place]
            self._rows[index].check(index, self._window, seen.count, times)
        executed = [self._executed(seen, place) for place in range(len(seen.rows))]
        videos = [self._begin(index, video) for index, video in zip(seen.rows, seen.video, strict=True)]
        encoders = [self._rows[index].encoder for index in seen.rows]
        latents, encoders = encode_streams(self._setup.codec, videos, encoders)
        for place, index in enumerate(seen.rows):
            row = self._rows[index].arrived(latents[place], executed[place], encoders[place], seen.count)
            clock = None if row.clock is None else row.clock + seen.count * self._window.future_stride_s
            self._rows[index] = replace(row, clock=clock if seen.times is None else float(seen.times[place, -1]))
        states = {
            index: torch.stack([s, m.to(s)]) for index, s, m in zip(seen.rows, seen.state, seen.state_mask, strict=True)
        }
        while ready := [index for index in seen.rows if self._rows[index].complete]:
            first = [index for index in ready if not self._rows[index].chunks]
            self._write(first or ready)
            for index in first or ready:
                self._rows[index] = replace(self._rows[index].written(), state=states[index])

    def _executed(self, seen: Observation, place: int) -> Float[Tensor, "k da"]:
        """Return a row's actions since its last frame: those given, else those that `act` gave; NaN where it gave none."""
        index = seen.rows[place]
        row, spec = self._rows[index], self._setup.specs[index]
        wanted = row.next_steps(seen.count)
        if seen.actions is not None:
            given = seen.actions[place]
            if len(given) != wanted:
                raise ConfigError(
                    f"actions have {len(given)} steps; these {seen.count} frames come {wanted} steps after the last one of row "
                    f"{index}, at {spec.action_rate:g} actions a second: give exactly these, or none"
                )
            return given
        out = torch.full((wanted, max(self._setup.processor.max_action_dim, 1)), torch.nan)
        if row.plan is not None:
            planned = row.plan[row.done : row.done + wanted]
            out[: len(planned)] = planned
        if self._network.attention.action_history and spec.action_dim and bool(out.isnan().any()):
            raise ConfigError(
                f"actions are missing: this network remembers what was carried out, and act() gave row {index} less than these "
                f"{wanted} steps; give actions="
            )
        return out

    def _begin(self, index: int, video: Float[Tensor, "v 3 f h w"]) -> Float[Tensor, "v 3 f h w"]:
        """Return a row's next frames for the codec; the first ones follow black ones where older ones are missing."""
        row, count = self._rows[index], self._window.num_context_frames
        video = video.to(self._setup.device)
        if row.frames >= 0:
            return video
        missing = max(count - video.shape[2], 0)
        video = torch.nn.functional.pad(video, (0, 0, 0, 0, missing, 0), value=-1.0)
        mask = self._views[index][None, :, None] & (torch.arange(count) >= missing)
        known = video_codec.latent_mask(self._setup.codec, mask).any(1)[0]
        self._rows[index] = replace(row, known=known)
        if self._setup.image.reads:
            told = self._setup.image(video[None, :, :, :count], mask, self._window.num_frames)
            picture, condition = (None if one is None else one[0] for one in (told["image_embeds"], told["condition"]))
            self._rows[index] = replace(self._rows[index], picture=picture, condition=condition)
        return video

    def _write(self, rows: list[int]) -> None:
        """Write the next chunk of some rows, which is chunk 0 of all of them or of none."""
        row = self._rows[rows[0]]
        latents = torch.stack([x[:, :, : row.wanted] for x in (self._rows[i].waiting for i in rows) if x is not None])
        values = self.inputs(rows, row.wanted)
        clocks = torch.zeros(len(rows), row.wanted, device=latents.device)
        if row.chunks == 0:
            known = torch.stack([k for k in (self._rows[i].known for i in rows) if k is not None]).to(latents.device)
            clocks = (~known).to(clocks)
            if not bool(known.all()):  # as in training: noise where a frame is missing, the same for every row
                noise = draw_noise([torch.Generator().manual_seed(0)], tuple(latents.shape[1:]), (0, 1))[0]
                latents = torch.where(known[:, None, None, :, None, None], latents, noise.to(latents))
            self._cache = self._cache or self._new_cache(latents)
            self._tell(rows if self._setup.image.reads else [])
        elif self._network.attention.action_history:
            values |= self._history(rows)
        values |= {"latents": latents.to(self._dtype), "t_video": clocks}
        if self._setup.guided:
            values |= {name: None if value is None else twice(value) for name, value in values.items()}
        assert self._cache is not None, "chunk 0 comes first"
        places = self.places(rows)
        self._cache = self._cache.joined(self._network.observe(self._cache.part(places), **values), places)

    def _history(self, rows: list[int]) -> dict[str, Tensor]:
        """Return what was carried out during the next chunk."""
        per, bodies = self._rows[rows[0]].rhythm.per, self._setup.bodies(rows)
        done = torch.stack([self._rows[index].executed[:per] for index in rows])  # type: ignore[index]
        exists = self.exists(rows)
        actions = self._setup.processor.normalize_actions(torch.where(exists[..., None], done, 0.0), bodies)
        values = {
            "actions": torch.where(exists[..., None], actions, 0.0),
            "t_action": (~exists).float(),
            "action_times": self.action_times(rows),
        }
        return {name: value.to(self._setup.device) for name, value in values.items()}

    # What comes next

    @torch.no_grad()
    def act(self, order: Decision) -> WAMOutput:
        """Denoise the next chunk of some rows.

        Returns:
            Actions from now on, as tensors; the video if the path makes it and it is asked for.

        Raises:
            ConfigError: The actions of the chunk are past.
        """
        rows, setup = order.rows, self._setup
        for index in rows:
            if self._rows[index].done >= min(
                self._rows[index].rhythm.per, horizon(self._window, setup.embodiments[index])
            ):
                raise ConfigError(
                    f"row {index} has carried out all actions of its chunk; observe the frames that complete it before act()"
                )
        start, pattern, commitment, bend = self._start(order)
        inputs = self.inputs(rows, 0 if start.video is None else start.video.shape[3]) | {"image_embeds": None}
        inputs |= {"cache": self._cache and self._cache.part(self.places(rows)), "num_context": 0}
        inputs |= {"action_times": self.action_times(rows).to(setup.device), **self.states(rows)}
        field = VelocityField(self._network, inputs, None, order.sampling, guided=setup.guided)
        grid = path_grid(order.spec, order.sampling.path)
        end = walk(field, (start, pattern, bend), order.spec, grid, order.sampling)
        video = None
        if order.shows and end.video is not None:
            video = self._decode(rows, end.video)
        assert end.actions is not None, "a policy generates actions"
        return WAMOutput(actions=self._physical(rows, end.actions, commitment), video=video)

    def _start(self, order: Decision) -> tuple[State, ClockPattern, Commitment, Continuation | None]:
        """Return noise, and the actions that are carried out already or committed, which are given."""
        rows, rule, setup = order.rows, self._network.attention, self._setup
        first = self._rows[rows[0]]
        assert first.tail is not None, "a row that acts has observed"
        unseen = order.spec.video is Role.ABSENT or (
            order.spec.video is Role.UNKNOWN and rule.actions_see_video == "observed"
        )
        frames, device, past = 0 if unseen else rule.chunk_frames, setup.device, first.rhythm.context
        # the pipeline draws noise for the whole window: so a session begins as it does
        shape = (*first.tail.shape[:2], past + frames, *first.tail.shape[3:])
        chunk = first.rhythm.per, max(setup.processor.max_action_dim, 1)
        noise_video, noise_actions = draw_noise(order.generators, shape, chunk)
        plan, names = self._plan_before(order), [setup.embodiments[row] for row in rows]
        normal = setup.processor.normalize_actions(plan.actions, setup.bodies(rows))
        pattern = ClockPattern(
            video_free=torch.ones(len(rows), frames, dtype=torch.bool, device=device),
            video_held=torch.zeros(len(rows), frames, device=device),
            actions_free=(~plan.held & self.exists(rows)).to(device),
            actions_held=(~plan.held).float().to(device),
        )
        actions = torch.where(plan.held[..., None], normal, noise_actions).to(device)
        state = State(video=noise_video[:, :, :, past:].to(device), actions=actions)
        return state, pattern, plan, plan.bend(setup.processor, names, noise_actions, device)

    def _plan_before(self, order: Decision) -> Commitment:
        """Return what is known of the whole chunk: the actions that are past, then those that the caller says."""
        rows, per = [self._rows[index] for index in order.rows], self._rows[order.rows[0]].rhythm.per
        names = tuple(self._setup.embodiments[index] for index in order.rows)
        left = [min(horizon(self._window, name), per) - row.done for row, name in zip(rows, names, strict=True)]
        told = order.before.rows(names, self._setup.processor, left)
        return told.after([row.executed for row in rows], [row.done for row in rows], per)

    def _physical(
        self, rows: Sequence[int], actions: Float[Tensor, "n ta da"], known: Commitment
    ) -> Float[Tensor, "n ta da"]:
        """Remember the plan and return what of it is not past, in the robots' units."""
        processor, names = self._setup.processor, self._setup.embodiments
        actions = processor.denormalize_actions(actions.float().cpu(), self._setup.bodies(rows))
        actions = torch.where(known.committed[..., None], known.actions, actions)
        left = []
        for place, index in enumerate(rows):
            plan = actions[place, : min(actions.shape[1], horizon(self._window, names[index]))]
            self._rows[index] = replace(self._rows[index], plan=plan.clone())
            left.append(plan[self._rows[index].done :, : max(processor.action_dim(names[row]) for row in rows)])
        return torch.nn.utils.rnn.pad_sequence(left, batch_first=True)

    def _decode(self, rows: Sequence[int], latents: Float[Tensor, "n v c t h w"]) -> Float[Tensor, "n v f 3 h w"]:
        """Return imagined frames in [0, 1]; a causal codec reads the last observed latents before them."""
        videos = []
        for place, index in enumerate(rows):
            tail = self._rows[index].tail
            assert tail is not None, "a row that acts has observed"
            pixels = video_codec.decode(self._setup.codec, torch.cat([tail, latents[place]], dim=2)[None])
            before = 1 + (tail.shape[2] - 1) * self._rows[index].rhythm.factor
            has_view = self._views[index].to(pixels.device)[:, None, None, None, None]
            videos.append(((pixels[0, :, :, before:].float() + 1) / 2 * has_view).transpose(1, 2))
        return torch.stack(videos).cpu()

    # The cache

    def _new_cache(self, latents: Float[Tensor, "n v c t h w"]) -> KVCache:
        text, picture = self._context()
        _, views, channels, count, height, width = latents.shape
        return self._network.new_cache(
            text_embeds=text,
            latent_shape=(views, channels, height, width),
            num_context=count,
            max_chunks=self._keep + 1,  # more than are kept: the oldest makes room
            num_actions=self._rows[0].rhythm.per,
            image_embeds=picture,
            window=self._keep,
        )

    def _context(self) -> tuple[Tensor, Tensor | None]:
        """Return the prompts and images of all places of the cache; nothing is read of rows that have none yet."""
        text = self._text[0] if self._text[1] is None else torch.cat([self._text[0], self._text[1]])
        pictures = [row.picture for row in self._rows]
        like = next((picture for picture in pictures if picture is not None), None)
        if like is None:
            return text.to(self._dtype), None
        picture = torch.stack([torch.zeros_like(like) if one is None else one for one in pictures])
        return text.to(self._dtype), (twice(picture) if self._setup.guided else picture).to(self._dtype)

    @torch.no_grad()  # or each prompt would keep the graph of all before it
    def _tell(self, rows: Sequence[int]) -> None:
        """Put the prompts and images of some rows into the cache, once."""
        if self._cache is not None and rows:
            contexts = self._network.contexts(*self._context())
            self._cache = self._cache.with_contexts(contexts, self.flags(rows))
