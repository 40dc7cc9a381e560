"""`pipe.stream()`: a session in which a robot tells what it sees and asks what to do, as long as it likes.

    session = pipe.stream(embodiment="droid", prompt="fold the towel")
    session.observe(frames, state)          # encoded and prefilled here, off the critical path
    actions = session.act().actions         # denoises, and does nothing else
    session.observe(frames, state)          # what came of it; actions=... where others were carried out

A session is an object of its own: any number of them share a pipeline, and nothing of one is on the network.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from wam_video.errors import ConfigError, one_of
from wam_video.flow.modes import POLICY_PATHS
from wam_video.flow.scheduler import WAMScheduler, check_interval, check_policy_path, check_solver, guidance_scales
from wam_video.inference.commitment import PlanBefore
from wam_video.inference.inputs import embodiments_of, frames_array, model_pixels, per_sample, state_of
from wam_video.inference.noise import Generators, make_generators
from wam_video.inference.outputs import WAMOutput
from wam_video.inference.per_row import one_each
from wam_video.inference.sampling import SamplingConfig
from wam_video.inference.stream_chunks import ChunkMemory
from wam_video.inference.stream_window import Decision, Observation, StreamSetup, Text, WindowMemory
from wam_video.models.video_codec import check_frame_size

Rows = Sequence[int] | None
"""Numbers of rows; None: all."""

Encode = Callable[..., Text]
"""`WAMPipeline.encode_prompts`."""


class StreamSession:
    """Rows, each a robot of its own, that observe and act; `WAMPipeline.stream` makes one.

    Time is one axis of seconds in each row. The first call of `observe` after the start or a reset brings the context: its
    frames are the last ones up to now, `context_stride_s` apart, and older ones that the checkpoint reads may be missing, as at
    the start of a recording. From then on frames come every `future_stride_s`, in calls of one or of many, and the actions
    between them are known by their number. A network without chunks reads frames `context_stride_s` apart throughout.

    What is remembered: a causal network keeps keys and values of the last `window` chunks (and its sinks), which slide without
    ever starting over. Only what was observed gets there: frames that were imagined are forgotten as soon as `act` returns, and
    the real ones take their place. A chunk is written when its last frame comes; frames before that wait, and do not change
    what `act` says, but for the actions carried out with them, which count as committed.

    Attributes:
        embodiments: The body of each row.
    """

    def __init__(self, setup: StreamSetup, scheduler: WAMScheduler, encode: Encode, text: Text) -> None:
        """Make a session.

        Args:
            setup: What does not change.
            scheduler: The checkpoint's settings.
            encode: How a prompt is encoded, the pipeline's.
            text: The prompts of the rows, encoded.

        Raises:
            ConfigError: The windows of this checkpoint don't go on as a stream.
        """
        self.embodiments = setup.embodiments
        self._setup, self._scheduler, self._encode, self._text = setup, scheduler, encode, text
        causal = setup.transformer.attention.causal
        self._memory = ChunkMemory(setup, text) if causal else WindowMemory(setup, text)
        self._sizes: dict[int, tuple[int, ...]] = {}

    def __len__(self) -> int:
        return len(self.embodiments)

    @property
    def remembers(self) -> int:
        """Chunks that each row keeps at most, its sinks included; 0 for a network without chunks."""
        return self._memory.remembers

    def observe(
        self, frames: Any, state: Any = None, actions: Any = None, *, times: Any = None, rows: Rows = None
    ) -> None:
        """Take in what was seen since the last call: encode it, and remember the chunks that it completes.

        Args:
            frames: uint8 `[n] v f h w 3` or float in [0, 1] `[n] v f 3 h w`: one or more, the newest last, of `n` rows.
            state: Proprioception at the last of them, `[n] ds` in physical units; None: unknown. The network reads that of
                the call in which a chunk began.
            actions: `[n] k da` in physical units: what was carried out since the frame before these. None: what `act` gave.
            times: Seconds of the frames on the robot's clock, `[n] f`, to check that they fit; None: they come as they should.
            rows: Whose they are.

        Raises:
            ConfigError: Something is of another size, width, length or rate than the checkpoint's; nothing has changed then.
        """
        chosen = self._chosen(rows)
        names = tuple(self.embodiments[row] for row in chosen)
        specs, processor = [self._setup.specs[row] for row in chosen], self._setup.processor
        array = frames_array(frames)
        video = self._pixels(array, chosen)
        values, mask = state_of(state, specs, names, processor)
        done = None
        if actions is not None:
            width = max(processor.max_action_dim, 1)
            given = one_each("actions", actions, [spec.action_dim for spec in specs], names, ndim=2)
            done = tuple(torch.nn.functional.pad(row, (0, width - row.shape[1])) for row in given)
        self._memory.observe(
            Observation(
                rows=chosen,
                video=video,
                times=None if times is None else _times(times, len(chosen), video.shape[3]),
                state=values,
                state_mask=mask,
                actions=done,
            )
        )
        self._sizes.update(dict.fromkeys(chosen, _size(array)))

    def act(  # noqa: PLR0913 - as of the pipeline's call
        self,
        *,
        rows: Rows = None,
        path: str | None = None,
        num_inference_steps: int | None = None,
        solver: str | None = None,
        generator: Generators = None,
        output_type: str = "np",
        decode: bool = True,
        committed_actions: Any = None,
        planned_actions: Any = None,
        continuation: str | None = None,
        reuse_tolerance: float | None = None,
    ) -> WAMOutput:
        """Say what to do from the last frame on. Nothing of it is remembered but the plan, as what is carried out by default.

        Args:
            rows: Who asks.
            path: What to do with the future video: `unknown`, `absent` or `joint`; None, here and below: the checkpoint's own.
            num_inference_steps: Steps of the path.
            solver: `euler`, `heun` or `ab2`.
            generator: As in `WAMPipeline.__call__`: a generator or seed, or a list of one a row.
            output_type: `np` or `pt`.
            decode: Whether to decode the video of a path that makes it; that takes longer than acting.
            committed_actions: `[n] d da`: what is carried out from now on while this decision is made; as in
                `WAMPipeline.__call__`, like the two below.
            planned_actions: `[n] k da`: the rest of the plan before.
            continuation: `prefix`, `guided` or `replace`.
            reuse_tolerance: As in `WAMPipeline.__call__`.

        Returns:
            Actions float32 `n ta da` in physical units, the first of which begins now: a chunk's, less those that are past
            where frames wait for it to be complete; zeros follow in rows of which less is left than of others. The video `n v f 3 h w` in [0, 1] of the chunk, if the path imagines it and
            goes on to its end (`video_stop` 0); else None.

        Raises:
            ConfigError: A row has observed nothing, its actions are past, or an option is unknown.
        """
        chosen = self._chosen(rows)
        if output_type not in ("np", "pt"):
            raise ConfigError(one_of("output_type", output_type, ("np", "pt")))
        for row in chosen:
            if not self._memory.begun(row):
                raise ConfigError(f"row {row} has observed nothing yet; call observe(frames, state) before act()")
            if self._setup.specs[row].action_dim == 0:
                raise ConfigError(
                    f"embodiment {self.embodiments[row]!r} has no actions; a session needs a body that acts"
                )
        config = self._scheduler.config
        name = check_policy_path(path or config["policy_path"])
        order = Decision(
            rows=chosen,
            spec=POLICY_PATHS[name],
            sampling=SamplingConfig(
                path=self._scheduler.path(num_inference_steps),
                solver=check_solver(solver or config["solver"]),
                guidance=self._setup.guidance,
                interval=check_interval(config["guidance_interval"]),
                reuse=self._scheduler.reuse(reuse_tolerance),
            ),
            generators=make_generators(generator, len(chosen)),
            decode=decode,
            before=PlanBefore(
                committed_actions=committed_actions,
                planned_actions=planned_actions,
                continuation=continuation or config["continuation"],
            ),
        )
        out = self._memory.act(order)
        out.calls = order.sampling.meter.computed
        if output_type == "pt":
            return out
        arrays = (None if x is None else torch.as_tensor(x).numpy() for x in (out.actions, out.video))
        return WAMOutput(**dict(zip(("actions", "video"), arrays, strict=True)), calls=out.calls)

    def prompt(
        self,
        prompt: str | Sequence[str] = "",
        *,
        rows: Rows = None,
        prompt_embeds: Float[Tensor, "n s dt"] | None = None,
    ) -> None:
        """Go on with another instruction.

        What a causal network remembers stays: the frames before were observed under the old prompt, and their keys and values
        hold what it made of them. Everything from here on, observed or denoised, reads the new one, whose own keys and values
        are computed now, once. To let the past be seen through the new prompt too, reset the rows and observe it again.

        Args:
            prompt: One for all rows, or one each.
            rows: Whose it is.
            prompt_embeds: Instead of `prompt`, encoded.

        Raises:
            ConfigError: The embeddings have another length than those before.
        """
        chosen = self._chosen(rows)
        text, empty = self._text
        prompts = per_sample("prompt", prompt, len(chosen))
        negative = None if empty is None or prompt_embeds is None else empty[:1]
        new = self._encode(
            prompts, guided=self._setup.guided, prompt_embeds=prompt_embeds, negative_prompt_embeds=negative
        )[0]
        if new.shape[1:] != text.shape[1:]:
            raise ConfigError(
                f"prompt_embeds are {tuple(new.shape[1:])} (tokens, width); those of this session are {tuple(text.shape[1:])}: pad "
                "them with zeros"
            )
        text = text.clone()
        text[list(chosen)] = new.to(text)
        self._text = text, empty
        self._memory.prompt(self._text, chosen)

    def reset(self, rows: Rows = None) -> None:
        """Begin anew in some rows: their time starts again at their next frame. They keep their prompts, the others every bit."""
        chosen = self._chosen(rows)
        self._memory.reset(chosen)
        for row in chosen:
            self._sizes.pop(row, None)

    def _chosen(self, rows: Rows) -> tuple[int, ...]:
        if rows is None:
            return tuple(range(len(self)))
        if not isinstance(rows, Sequence | np.ndarray):
            raise ConfigError(f"rows is {rows!r}; give a list of row numbers, or None for all")
        for row in rows:
            if isinstance(row, bool) or not isinstance(row, int | np.integer) or not 0 <= row < len(self):
                raise ConfigError(f"row {row!r} is unknown; allowed: 0 to {len(self) - 1}, the rows of this session")
        if not len(rows) or len(set(rows)) != len(rows):
            raise ConfigError(f"rows are {list(rows)}; give at least one, each once")
        return tuple(int(row) for row in rows)

    def _pixels(self, array: np.ndarray, rows: tuple[int, ...]) -> Float[Tensor, "n v 3 f h w"]:
        """Check frames and bring them to the model's size; cameras that none of these rows has are black."""
        processor, views = self._setup.processor, self._setup.view_mask
        wanted = int(views[list(rows)].sum(1).max())
        if array.shape[:2] != (len(rows), wanted):
            raise ConfigError(
                f"frames are of {array.shape[0]} rows and {array.shape[1]} views; allowed: {len(rows)} rows "
                f"(observe(..., rows=...) chooses) and {wanted} views"
            )
        for row in rows:
            if self._sizes.get(row, _size(array)) != _size(array):
                before, now = ("x".join(map(str, size)) for size in (self._sizes[row], _size(array)))
                raise ConfigError(
                    f"frames are {now}; those of row {row} were {before} before: resize them, or reset the row"
                )
        fits = [processor.fit(self.embodiments[row]) for row in rows]
        pixels = model_pixels(array, processor.window, fits)
        check_frame_size(self._setup.codec, *pixels.shape[-2:])
        return torch.nn.functional.pad(pixels, (0,) * 8 + (0, views.shape[1] - wanted), value=-1.0)


class Streams:
    """The part of `WAMPipeline` that makes sessions."""

    transformer: Any
    vae: Any
    scheduler: Any
    processor: Any
    encode_prompts: Any
    image_context: Any

    if TYPE_CHECKING:

        @property
        def _execution_device(self) -> Any: ...

    @torch.no_grad()
    def stream(
        self,
        *,
        embodiment: str | Sequence[str] | None = None,
        prompt: str | Sequence[str] = "",
        batch_size: int | None = None,
        guidance_scale: float | Mapping[str, float] | None = None,
        window: int | None = None,
        prompt_embeds: Float[Tensor, "b s dt"] | None = None,
        negative_prompt_embeds: Float[Tensor, "b s dt"] | None = None,
    ) -> StreamSession:
        """Return a session: `observe` what happens, `act`, and so on; see `StreamSession`.

        Args:
            embodiment: Name of the body, one for all rows or one each; may be left out where the model knows only one.
            prompt: Instruction, one for all rows or one each; `session.prompt` changes it.
            batch_size: Robots that one session serves, each in a row of its own; None: as many as the lists above have, or 1.
            guidance_scale: As in `__call__`, but for the whole session: with guidance every frame is also remembered as seen
                under the empty prompt. None: the checkpoint's own.
            window: Chunks that a causal network remembers; None: its own window, or without one as many as it was trained on.
            prompt_embeds: Instead of `prompt`, encoded.
            negative_prompt_embeds: The empty prompt, encoded; for guidance without a text encoder.

        Raises:
            ConfigError: The session can't be had with this checkpoint.
        """
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; allowed: 1 or more")
        if window is not None and window < 1:
            raise ConfigError(f"window is {window}; allowed: 1 or more chunks, or None")
        lists = [each for each in (embodiment, prompt, prompt_embeds) if each is not None and not isinstance(each, str)]
        batch = batch_size or (len(lists[0]) if lists else 1)
        scales = guidance_scales(self.scheduler.config["guidance_scale"] if guidance_scale is None else guidance_scale)
        setup = StreamSetup(
            transformer=self.transformer,
            codec=self.vae,
            processor=self.processor,
            image=self.image_context(),
            device=self._execution_device,
            embodiments=embodiments_of(embodiment, batch, self.processor),
            guidance=scales,
            window=window,
        )
        text = self.encode_prompts(
            per_sample("prompt", prompt, batch),
            guided=setup.guided,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
        )
        return StreamSession(setup, self.scheduler, self.encode_prompts, text)


def _size(array: np.ndarray) -> tuple[int, ...]:
    """Return height and width of a caller's frames."""
    return array.shape[-3:-1] if array.dtype == np.uint8 else array.shape[-2:]


def _times(given: Any, rows: int, frames: int) -> Float[np.ndarray, "n f"]:
    try:
        times = np.asarray(given, np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"times are no numbers ({error}); give seconds, '[n] f'") from error
    times = np.broadcast_to(times, (rows, frames)) if times.shape == (frames,) else times
    if times.shape != (rows, frames):
        raise ConfigError(f"times are of shape {times.shape}; {rows} rows of {frames} frames need {(rows, frames)}")
    return times
