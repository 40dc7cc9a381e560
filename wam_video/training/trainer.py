"""The loop: batches in, noisy samples, losses, updates; everything else hangs on callbacks."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from wam_video.config import to_dict
from wam_video.data.processor import WAMProcessor
from wam_video.data.stream import DataWorkerError
from wam_video.errors import CheckpointError, DataError
from wam_video.flow.loss import LossTerms, loss_terms
from wam_video.log import get_logger
from wam_video.models.teacher import AlignmentTerms
from wam_video.tensors import Batch, Prediction
from wam_video.training import checkpoint, state
from wam_video.training.activations import compile_blocks
from wam_video.training.adapters import seed_dropout
from wam_video.training.baseline import Assembly, assemble
from wam_video.training.build import Parts
from wam_video.training.config import TrainConfig
from wam_video.training.ema import EMA
from wam_video.training.engines import Engine
from wam_video.training.feed import Feed
from wam_video.training.health import Guard, TrainingFailedError, poison
from wam_video.training.metrics import Tracker
from wam_video.training.optim import build_optimizer, freeze, learning_rate, lr_scales, set_learning_rate
from wam_video.training.pace import Pace, Wishes
from wam_video.training.provenance import code_versions, tell_changes
from wam_video.training.run import Callback, StepResult
from wam_video.training.sample import Sampler, SamplerConfig, TextCache, TrainingSample, is_video_absent
from wam_video.training.saving import Saver, SaverConfig, SavingFailedError
from wam_video.training.sequence import share
from wam_video.training.tally import Tally
from wam_video.training.teacher import Lesson
from wam_video.training.texts import StoredTexts
from wam_video.training.whole import WholeParts
from wam_video.training.work import StepWork

_LOG = get_logger(__name__)


class Trainer:
    """A run: builds the parts, resumes if there is something to resume, and steps until told to stop.

    Args:
        config: The run.
        feed: The data.
        engine: Processes and devices.
        should_stop: Asked before each step; one process that says yes stops all of them cleanly.
        fault: Called at the named points of a save.
    """

    def __init__(
        self,
        config: TrainConfig,
        feed: Feed,
        engine: Engine,
        *,
        should_stop: Callable[[], bool] = lambda: False,
        fault: checkpoint.FaultPoint = checkpoint.no_fault,
    ) -> None:
        self.config = config
        self.engine = engine
        self.progress = state.Progress()
        self._feed = feed
        self.interrupted = False
        """True on every process once one was asked to stop: then only a checkpoint is written."""
        self._should_stop = should_stop
        self._trackers: Sequence[Tracker] = ()
        self._started = time.perf_counter()
        self._validation: list[Batch] | None = None
        processor = feed.processor(config.normalization)
        assembly = assemble(config, feed.embodiments, processor)
        self.parts: Parts = assembly.parts
        self.teacher, module = assembly.teacher, assembly.module.train()
        self.parts.text_encoder.eval()  # trained or not: dropout would tie a step's bits to the global random state
        self.parts.codec.to(engine.device)  # type: ignore[arg-type]
        self.parts.text_encoder.to(engine.device)  # type: ignore[arg-type]
        if self.parts.image_encoder is not None:
            self.parts.image_encoder.to(engine.device)  # type: ignore[arg-type]
        self.whole = WholeParts(self.parts, module, is_main=engine.is_main)
        share(config, self.parts.transformer)
        scales = lr_scales(config, [name for name, _ in module.named_parameters()])
        freeze(module, scales)
        if config.compile:
            compile_blocks(self.parts.transformer)
        engine.prepare(module, partial(build_optimizer, config.optim, scales=scales))
        self.ema = EMA(config.ema, engine.weights)
        self.sampler = _sampler(config, assembly, processor)
        self.prediction_kinds = assembly.prediction_kinds
        store = checkpoint.CheckpointStore(self.output / "checkpoints", keep_last=config.keep_last, fault=fault)
        self._saver = Saver(SaverConfig.of(config), store, engine)
        self._facts: dict[str, Any] = {
            "config": to_dict(config),
            "code": code_versions(),
            "samples_per_step": self.samples_per_step,
            "data": {"stats_hash": processor.config["stats_hash"]},
        }
        self._facts |= {"base": self.parts.base_hash, "teacher": self.teacher and self.teacher.fingerprint}
        self._saver.open()
        with engine.together():
            self._resume()
        self.start_step = self._saved = self.progress.step
        self.tally = Tally(sorted(config.data.datasets), engine.device)
        self.pace = Pace(engine.device)
        self._work = StepWork(self.parts.transformer)
        self._wishes = Wishes(engine.device)
        self._guard = Guard(config, engine, self.tally, self.progress)

    @property
    def output(self) -> Path:
        """The run's folder."""
        return Path(self.config.output_dir)

    @property
    def samples_per_step(self) -> int:
        """Windows in a step over all processes."""
        return self.config.batch_size * self.config.grad_accum * self.engine.data_processes

    def elapsed_s(self) -> float:
        """Return the seconds since the loop of this process started."""
        return time.perf_counter() - self._started

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send numbers to the trackers (of the main process)."""
        for tracker in self._trackers:
            tracker.log(values, step)

    def save(self) -> None:
        """Write a checkpoint of where the run is, or begin to (`async_save`)."""
        self._saved = self.progress.step
        self._saver.save(self.progress.step, lambda: state.snapshot(self.engine, self.ema, self.progress, self._facts))

    def validation_batches(self) -> list[Batch]:
        """Return the held-out windows, read once."""
        if self._validation is None:
            self._validation = self._feed.validation(self.config.eval_windows, self.config.batch_size)
        return self._validation

    def run(self, callbacks: Sequence[Callback], trackers: Sequence[Tracker] = ()) -> None:
        """Train until the last step, the time limit or a request to stop.

        Raises:
            TrainingFailedError: `max_bad_steps` steps in a row were not finite, or another process has no data.
            DataError: The data can't be used; there is a checkpoint, unless processes on CUDA devices could not agree on one.
            DataWorkerError: A process that decodes is gone; likewise.
            SavingFailedError: `max_failed_saves` saves in a row failed, or the last one of the run.
        """
        self._trackers = trackers
        self._started = time.perf_counter()
        try:
            self._loop(callbacks)
            for callback in callbacks:
                callback.on_end(self)
            self._saver.finish()
        finally:
            self._saver.close()

    def _loop(self, callbacks: Sequence[Callback]) -> None:
        batches: Iterator[Batch] | None = None
        stop = False
        while self.progress.step < self.config.steps and not stop:
            if batches is None:
                batches = self._feed.batches(
                    self.config.batch_size, self.progress.next_index, self.engine.data_rank, self.engine.data_processes
                )
            result = self._step(batches)
            stop = result is None
            if result is not None:
                for callback in callbacks:
                    callback.on_step(self, result)
                self._saver.poll()

    def _step(self, batches: Iterator[Batch]) -> StepResult | None:
        """Do one optimizer step; None if it is time to stop, for which one process's word is enough."""
        step = self.progress.step
        self.pace.begin()
        samples, lessons, failure = self._samples(batches, step)
        counts = torch.zeros(3, device=self.engine.device)
        for sample, lesson in zip(samples, lessons, strict=True):
            counts[:2] += torch.stack([sample.video_count.sum(), sample.action_count.sum()])
            counts[2] += 0 if lesson is None else lesson.count
        wishes = counts.new_tensor([self._is_time_up(), self._should_stop(), failure is not None])
        counts, wishes = self.engine.sum(torch.cat([counts, wishes])).split([3, 3])
        time_is_up, self.interrupted, is_dry = self._wishes.read(wishes)
        if is_dry or failure is not None:
            self._give_up(failure, together=is_dry or self.engine.num_processes == 1)
        if time_is_up or self.interrupted:
            return None
        self.pace.met()
        lr = learning_rate(self.config.optim, step, self.config.steps)
        set_learning_rate(self.engine.optimizer, lr)
        seed_dropout(self.config, step, self.engine.rank)
        sums, jumps = self.tally.zeros(), []
        for number, (sample, lesson) in enumerate(zip(samples, lessons, strict=True)):
            jumps += self._accumulate(sample, lesson, counts, sums, last=number == len(samples) - 1)
        applied, norm = self.engine.update()
        if applied:
            self.ema.update(step)
        self.pace.end()
        self._count_step(applied)
        if not applied:
            self._guard.tell(samples, sums, jumps, norm)
        return StepResult(step=step + 1, sums=sums, grad_norm=norm, lr=lr, applied=applied)

    def _samples(
        self, batches: Iterator[Batch], step: int
    ) -> tuple[list[TrainingSample], list[Lesson | None], Exception | None]:
        """Make all the samples of a step, for their counts are needed before the first is used; or say why there are none."""
        absent = is_video_absent(self.config.density, self.config.seed, step)
        samples, lessons, wait_s, frames = [], [], 0.0, 0
        for _ in range(self.config.grad_accum):
            before = time.perf_counter()
            try:
                batch = next(batches)
            except (DataError, DataWorkerError) as error:
                return [], [], error
            wait_s += time.perf_counter() - before
            frames += int(batch.frame_mask.sum())
            samples.append(self.sampler(batch, self.engine.device, absent_video=absent))
            with torch.autocast(self.engine.device.type, torch.bfloat16, enabled=self.engine.precision == "bf16"):
                lessons.append(self.teacher and self.teacher(batch, samples[-1]))
        self.pace.meet(wait_s, frames)
        return samples, lessons, None

    def _give_up(self, failure: Exception | None, *, together: bool) -> NoReturn:
        """End the run for want of data, here or on another process; a checkpoint comes first where all know of it.

        Where they learn it a step late (CUDA), the others are in a step that this process is not in.
        """
        if together and self.progress.step not in (0, self._saved):
            with suppress(SavingFailedError):  # told already
                self.save()
                self._saver.finish()
        raise failure or TrainingFailedError(
            "another process can't read its data, and says why; this one has saved its part"
        )

    def _accumulate(
        self, sample: TrainingSample, lesson: Lesson | None, counts: Float[Tensor, " 3"], sums: Tensor, *, last: bool
    ) -> list[str]:
        """Add the gradient of one micro-batch, and to `sums` what it came to; return which losses of the step jumped."""
        kinds = self.prediction_kinds
        with self.engine.micro_batch(last=last):
            video, actions, *predicted = self.engine.forward(sample, taught=lesson is not None)
            prediction = Prediction(video=video, actions=actions)
            terms = loss_terms(self.config.loss, prediction, sample.noisy, kinds, sample.num_context)
            alignment = None if lesson is None else lesson.terms(predicted[0])
            sums += self.tally.sums(sample, terms, alignment)
            self.pace.worked(self._work.flops(sample), last=last)
            jumps = self._guard.jumps(sums) if last else []
            loss = poison(self._loss(terms, alignment, counts)) * (float("nan") if jumps else 1.0)
            self.engine.backward(loss, last=last)
        return jumps

    def _loss(self, terms: LossTerms, alignment: AlignmentTerms | None, counts: Float[Tensor, " 3"]) -> Tensor:
        """Return a micro-batch's share of the step's loss: sums over the counts of the whole step."""
        video = self.config.loss.video_weight * terms.video_sum.sum() / counts[0].clamp(min=1)
        loss = video + self.config.loss.action_weight * terms.action_sum.sum() / counts[1].clamp(min=1)
        return (
            loss
            if alignment is None
            else loss - self.config.teacher.weight * alignment.cosine_sum / counts[2].clamp(min=1)
        )

    def _count_step(self, applied: bool) -> None:
        self.progress.step += 1
        self.progress.next_index += self.samples_per_step
        self.progress.bad_steps = 0 if applied else self.progress.bad_steps + 1

    def _is_time_up(self) -> bool:
        return self.config.max_minutes is not None and self.elapsed_s() >= 60 * self.config.max_minutes

    def _resume(self) -> None:
        folder = self._saver.newest()
        if folder is None:
            return
        saved: dict[str, Any] = checkpoint.read_state(folder)
        tell_changes(saved.get("code", {}), self._facts["code"])
        before: dict[str, Any] = saved["config"]
        if saved.get("samples_per_step") == self.samples_per_step:  # the same windows, divided otherwise
            before = before | {key: self._facts["config"][key] for key in ("batch_size", "grad_accum")}
        checkpoint.check_same_run(before, self._facts["config"], to_dict(TrainConfig()), folder)
        if saved["data"] != self._facts["data"]:
            raise DataError(
                f"the data of {str(self.output)!r} have changed: statistics {saved['data']['stats_hash']} then, "
                f"{self._facts['data']['stats_hash']} now; put them back or give another output_dir"
            )
        if saved.get("base", "") != self._facts["base"]:
            raise CheckpointError(
                f"init_from {self.config.init_from!r} has other weights than when {str(self.output)!r} was started; "
                "put them back or give another output_dir"
            )
        if saved.get("teacher") != self._facts["teacher"]:
            raise CheckpointError(
                f"the teacher {self.config.teacher.model!r} has other weights than when {str(self.output)!r} was started; "
                "put them back or give another output_dir"
            )
        self.progress = state.load(folder, self.engine, self.ema)
        _LOG.info("resuming %s from step %d (another output_dir starts afresh)", self.output, self.progress.step)


def _sampler(config: TrainConfig, assembly: Assembly, processor: WAMProcessor) -> Sampler:
    parts = assembly.parts
    settings = SamplerConfig(
        seed=config.seed,
        density=config.density,
        loss=config.loss,
        prompt_dropout=config.text.prompt_dropout,
        attention=assembly.attention,
    )
    text = None
    if not config.text.train:
        stored = StoredTexts.open(config.data, parts.tokenizer, parts.text_encoder)
        text = TextCache(parts.tokenizer, parts.text_encoder, stored=stored)
    return Sampler(settings, parts.codec, processor, text, assembly.image)
