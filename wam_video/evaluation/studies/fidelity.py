"""Visual fidelity: how close is the generated video to the recording, step by step, camera by camera, and beside what?

Below stand what costs nothing (the last seen frame again) and what must not help (another moment's actions); above stands
what a compressed copy of the recording itself loses. Context frames are never counted.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from wam_video.data.optical_flow import load_opencv
from wam_video.errors import MissingDependencyError, first_line
from wam_video.evaluation import frechet, perceptual
from wam_video.evaluation.frame_scores import METRICS, UNITS, FrameMetric, clip_frames, column_rows, frame_sums, score
from wam_video.evaluation.frechet import ClipFeatures, Gaussian, frechet_distance
from wam_video.evaluation.intervals import Estimate, estimate
from wam_video.evaluation.recompress import through_codec, through_h264
from wam_video.evaluation.scores import Answer, Row
from wam_video.evaluation.studies.ledger import Part, walk
from wam_video.evaluation.study import Findings, StudyWords, Subject, answer, missing, question
from wam_video.inference.checks import unanswered
from wam_video.tensors import Batch, Mode

_NAME = "fidelity"
_GENERATED = {"forward": Mode.FORWARD, "video": Mode.VIDEO, "joint": Mode.JOINT}
_SHUFFLED, _COPY, _CODEC, _H264 = "forward_shuffled", "copy_last", "codec", "h264"

_WORDS = StudyWords(
    title="Fidelity: how close are the pictures?",
    sentence="Every mode that draws video, against the recording, on future frames only. The last seen frame shown again "
    "is what costs nothing; the recording, compressed, is as good as it gets. Only 'forward' is told what is done, so only it "
    "can be held to the recording; 'video' and 'joint' may choose another future.",
    metrics={
        "psnr_moving": "Pixels that move, dB (longer is better)",
        "psnr": "Whole picture, dB (longer is better)",
        "ssim": "Structure, SSIM (longer is better)",
        "flow_epe_moving": "Wrong motion where something moves, pixels a step (shorter is better)",
        "flow_epe": "Wrong motion anywhere, pixels a step (shorter is better)",
        "lpips": "Looks different, LPIPS (shorter is better)",
        "fvd": "Distance of the clips, FVD (shorter is better)",
    },
    conditions={
        "forward": "forward: told the actions",
        _SHUFFLED: "forward, told another moment's",
        "video": "video: knows no actions",
        "joint": "joint: imagines both",
        _COPY: "last frame shown again",
        _CODEC: "recording through the model's codec",
        _H264: "recording, compressed once more",
    },
)

_QUESTIONS = (
    question("fidelity_uses_actions", "psnr_moving", (_NAME, "forward"), (_NAME, _SHUFFLED),
             asks="Do the true actions make the picture better?", flag="forward draws as well from another moment's actions"),
    question("fidelity_beats_copy", "psnr_moving", (_NAME, "forward"), (_NAME, _COPY),
             asks="Are moving pixels closer than in the last frame?", flag="forward is no closer than the last frame again"),
    question("fidelity_moves_right", "flow_epe_moving", (_NAME, "forward"), (_NAME, _COPY),
             asks="Do things move as recorded, rather than not at all?", flag="forward's motion is no better than none"),
    question("fidelity_keeps_structure", "ssim", (_NAME, "forward"), (_NAME, _COPY),
             asks="Is the whole picture's structure closer, too?",
             flag="forward loses more structure than the last frame again: what stands still is not kept"),
    question("fidelity_beats_video", "psnr_moving", (_NAME, "forward"), (_NAME, "video"),
             asks="Does knowing the actions help, against guessing?", flag="forward draws no better than video, which knows no actions"),
    question("fidelity_below_ceiling", "psnr_moving", (_NAME, _H264), (_NAME, "forward"),
             asks="Is it less exact than a compressed recording?", flag="forward is as exact as the recording: the future leaks in"),
    question("fidelity_video_below_ceiling", "psnr_moving", (_NAME, _H264), (_NAME, "video"),
             asks="Is 'video', which can't know, less exact than that?", flag="video is as exact as the recording: the future leaks in"),
    question("fidelity_joint_below_ceiling", "psnr_moving", (_NAME, _H264), (_NAME, "joint"),
             asks="Is 'joint', which can't know, less exact than that?", flag="joint is as exact as the recording: the future leaks in"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Networks:
    """How the files of `--weights` become functions."""

    lpips: Callable[[str | Path], FrameMetric] = perceptual.load_lpips
    fvd: Callable[[str | Path], ClipFeatures] = frechet.load_i3d
    min_clip_frames: int = frechet.MIN_FRAMES


@dataclass(kw_only=True)
class _Found:
    """What is kept of all windows."""

    sums: dict[str, list[Float[Tensor, "b k v f"]]] = field(default_factory=dict)
    clips: dict[str, list[Float[Tensor, "n d"]]] = field(default_factory=dict)
    """Features of the clips, the recorded ones under `recorded`."""
    times: list[float] = field(default_factory=list)


class Fidelity:
    """PSNR, SSIM, moving pixels and optical flow for each mode that draws video; LPIPS and FVD where weights are given."""

    name = _NAME
    words = _WORDS

    def __init__(self, networks: Networks | None = None) -> None:
        self._networks = networks or Networks()

    def run(self, subject: Subject) -> Findings:
        """Measure.

        Raises:
            CheckpointError: A file of `--weights` can't be used.
        """
        if subject.pipe.processor.window.num_future_frames < 1:
            return missing(self.name, "the model draws no future frames")
        findings = Findings()
        metrics = self._frame_metrics(subject, findings)
        features = self._clip_features(subject, findings)
        found = self._measure(subject, _modes(subject, findings), metrics, features)
        views = subject.group.spec.views[: subject.pipe.processor.num_views]
        for condition, parts in found.sums.items():
            sums = torch.cat(parts)
            found_rows = column_rows(sums, subject.group.episodes, views, found.times, subject.bootstrap)
            findings.rows += [self._row(subject, condition, e, **column) for column, e in found_rows]
        self._add_fvd(subject, found, findings)
        findings.answers = _answers(subject, {k: torch.cat(v) for k, v in found.sums.items()})
        return findings

    def _frame_metrics(self, subject: Subject, findings: Findings) -> FrameMetric | None:
        try:
            load_opencv()
        except MissingDependencyError as error:
            findings.left_out.append(("flow_epe", first_line(error)))
        path = subject.options.weights.get("lpips")
        if path is None:
            findings.left_out.append(("lpips", perceptual.HOW_TO_GET))
        return None if path is None else self._networks.lpips(path)

    def _clip_features(self, subject: Subject, findings: Findings) -> ClipFeatures | None:
        path, needed = subject.options.weights.get("fvd"), self._networks.min_clip_frames
        frames = subject.pipe.processor.window.num_future_frames
        if path is None:
            findings.left_out.append(("fvd", frechet.HOW_TO_GET))
        elif frames < needed:
            findings.left_out.append(("fvd", f"the model draws {frames} frames at once; a clip needs {needed}"))
            path = None
        return None if path is None else self._networks.fvd(path)

    def _measure(
        self, subject: Subject, modes: Mapping[str, Mode], metric: FrameMetric | None, features: ClipFeatures | None
    ) -> _Found:
        """Draw, compare and forget the pixels, batch by batch."""
        found = _Found()
        for part in walk(subject):
            batch, recorded = part.batch, clip_frames(part.batch.video)
            future = recorded[:, :, batch.num_context_frames :]
            for condition, video in self._videos(subject, modes, part).items():
                sums = frame_sums(video, recorded, batch, metric)
                found.sums.setdefault(condition, []).append(sums)
                _add_features(found, condition, video, batch, features)
            _add_features(found, "recorded", future, batch, features)
            found.times = [round(t, 6) for t in batch.frame_times[0, batch.num_context_frames :].tolist()]
        return found

    def _videos(
        self, subject: Subject, modes: Mapping[str, Mode], part: Part
    ) -> dict[str, Float[Tensor, "b v f 3 h w"]]:
        """Return the future frames of each condition, in [0, 1]."""
        batch, donor = part.batch, part.donor
        runs = {condition: (mode, batch) for condition, mode in modes.items()}
        if "forward" in modes and donor is not None:
            runs[_SHUFFLED] = (
                Mode.FORWARD,
                replace(batch, actions=donor.actions, action_mask=donor.action_mask),
            )
        videos = {}
        for condition, (mode, altered) in runs.items():
            video = subject.sampler(mode, altered, part.seeds).video
            if video is not None:
                videos[condition] = video.float().cpu()
        recorded, k = clip_frames(batch.video), batch.num_context_frames
        videos[_COPY] = recorded[:, :, k - 1 : k].expand_as(recorded[:, :, k:])
        for condition, copy in ((_CODEC, through_codec(subject.pipe.vae, recorded)), (_H264, through_h264(recorded))):
            if copy is not None:
                videos[condition] = copy[:, :, k:]
        return videos

    def _add_fvd(self, subject: Subject, found: _Found, findings: Findings) -> None:
        """Compare the sets of clips; no interval: clips drawn twice would make every covariance narrower."""
        if not found.clips:
            return
        truth = torch.cat(found.clips["recorded"])
        count, width = truth.shape
        if count < width:
            findings.left_out.append(
                (
                    "fvd",
                    f"{count} clips are fewer than the {width} features of the network; give at least --windows {width}",
                )
            )
            return
        for condition, parts in found.clips.items():
            if condition != "recorded":
                value = frechet_distance(Gaussian.of(torch.cat(parts)), Gaussian.of(truth))
                episodes = len(set(subject.group.episodes))
                e = Estimate(value=value, low=None, high=None, num_windows=count, num_episodes=episodes)
                findings.rows.append(self._row(subject, condition, e, metric="fvd"))

    def _row(
        self,
        subject: Subject,
        condition: str,
        found: Estimate,
        *,
        metric: str,
        view: str | None = None,
        time_s: float | None = None,
    ) -> Row:
        return Row(
            embodiment=subject.group.spec.name,
            mode=self.name,
            condition=condition,
            metric=metric,
            unit=UNITS.get(metric, ""),
            view=view,
            time_s=time_s,
            estimate=found,
        )


def _modes(subject: Subject, findings: Findings) -> dict[str, Mode]:
    """Return the modes that draw video and can be asked of this model and body; say which can't."""
    refused = unanswered(subject.pipe.transformer.attention)
    chosen = {}
    for condition, mode in _GENERATED.items():
        if mode in refused:
            findings.left_out.append((f"{_NAME} of {condition}", "the model's attention can't answer this mode"))
        elif mode is not Mode.VIDEO and not subject.group.spec.action_dim:
            findings.left_out.append((f"{_NAME} of {condition}", "the recordings hold no actions"))
        else:
            chosen[condition] = mode
    return chosen


def _add_features(
    found: _Found, condition: str, video: Float[Tensor, "b v f 3 h w"], batch: Batch, features: ClipFeatures | None
) -> None:
    """Keep the features of every camera's clip, one clip at a time so that the batch can't change them."""
    if features is None:
        return
    known = batch.frame_mask[:, :, batch.num_context_frames - 1 :].all(dim=-1)
    rows = [features(video[i, j]) for i, j in known.nonzero().tolist()]
    if rows:
        found.clips.setdefault(condition, []).append(torch.stack(rows))


def _answers(subject: Subject, sums: Mapping[str, Tensor]) -> list[Answer]:
    answers = []
    for check in _QUESTIONS:
        pair = (check.better[1], check.worse[1] if check.worse else "")
        if any(condition not in sums for condition in pair):
            continue
        sign = 1.0 if METRICS[check.metric] else -1.0

        def statistic(x: Tensor, metric: str = check.metric, sign: float = sign) -> Tensor:
            both = [score(part.sum(dim=-2))[metric] for part in x.unbind(dim=-4)]
            return (sign * (both[0] - both[1]))[..., None]

        stacked: Sequence[Tensor] = [sums[condition] for condition in pair]
        (advantage,) = estimate(torch.stack(list(stacked), dim=1), subject.group.episodes, statistic, subject.bootstrap)
        if advantage.value is not None:
            answers.append(answer(subject.group.spec.name, check, advantage))
    return answers
