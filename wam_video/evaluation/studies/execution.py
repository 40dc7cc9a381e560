"""Execution: planned chunks carried out in the simulator, without looking again, beside what the model expected to see."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from wam_video.data.simulation import Environment
from wam_video.evaluation.clips import strip
from wam_video.evaluation.metrics import video_scores, video_sums
from wam_video.evaluation.moments import batch_of, look_ahead, look_back
from wam_video.evaluation.open_loop import donors, window_seed
from wam_video.evaluation.studies.ledger import Figure, Ledger, refused
from wam_video.evaluation.studies.stage import NotRepeatableError, Performance, Situation, Stage, StageConfig
from wam_video.evaluation.studies.tracking import place_sums
from wam_video.evaluation.study import Film, Findings, StudyWords, Subject, missing, question
from wam_video.inference.inputs import horizon
from wam_video.tensors import Mode

_NAME = "execution"
_MODES = (Mode.POLICY, Mode.JOINT)
_FILMS = 2
_PROGRESS, _SUCCESS, _STATE = 0, 1, 2
_BODY, _THINGS = 0, 1

_PSNR = Figure(metric="psnr_moving", unit="dB", score=lambda s: video_scores(s)["psnr_moving"])


def _mean(
    metric: str, unit: str, place: int, factor: float, *, root: bool = False, more_is_better: bool = True
) -> Figure:
    def score(sums: Float[Tensor, "*n k 2"]) -> Float[Tensor, "*n"]:
        mean = sums[..., place, 0] / sums[..., place, 1]
        return factor * (mean.sqrt() if root else mean)

    return Figure(metric=metric, unit=unit, score=score, more_is_better=more_is_better)


_GAIN = _mean("progress", "%", _PROGRESS, 100.0)
_AWAY = _mean("state_error", "std", _STATE, 1.0, root=True, more_is_better=False)
_BODY_ERROR = _mean("body_error", "%", _BODY, 100.0, more_is_better=False)
_THING_ERROR = _mean("thing_error", "%", _THINGS, 100.0, more_is_better=False)


class Execution:
    """The study `execution`."""

    name = _NAME
    words = StudyWords(
        title="Execution: does the simulator show what the model planned and imagined?",
        sentence=(
            "At moments of the expert's episodes from new starts, policy and joint plan one chunk of actions, which the simulator then "
            "carries out without looking again. Plan adherence is how near the imagined video (policy: forward with its own plan) is to "
            "what then happened, beside what the model imagines for another moment's plan and the last frame again; where the simulator "
            "tells where things are, they are also looked for in the imagined pictures by their colours. Progress is what was "
            "gained during the chunk; success counts where the expert reaches the goal with its next chunk; the state error is the "
            "distance of the body from where the expert would have led it."
        ),
        metrics={
            "psnr_moving": "Plan adherence: imagined against executed, PSNR of moving pixels, dB (longer is better)",
            "body_error": "Body in the imagined pictures against the simulator's, % of the picture (shorter is better)",
            "thing_error": "Things in the imagined pictures against the simulator's, % of the picture (shorter is better)",
            "progress": "Progress gained during one chunk, % of the task (longer is better)",
            "success": "Goal reached where one chunk is left for the expert, % (longer is better)",
            "state_error": "State against the expert's, standard deviations (shorter is better)",
        },
        conditions={
            "policy": "policy",
            "joint": "joint",
            "policy_other": "policy, another moment's plan",
            "joint_other": "joint, another moment's plan",
            "policy_copy": "last frame again, against policy's",
            "joint_copy": "last frame again, against joint's",
            "executed": "what happened, found by colour (floor)",
            "expert": "the scripted expert",
            "hold": "holding still",
            "random": "random actions",
        },
    )

    def run(self, subject: Subject) -> Findings:
        """Measure; see `study.Study`."""
        unable = refused(subject)
        modes = [mode for mode in _MODES if mode not in unable]
        if subject.open_environment is None:
            return missing(_NAME, "needs --env with a simulator of this body")
        if not subject.group.spec.action_dim or not modes:
            return missing(_NAME, "the model plans no actions for this body")
        world = subject.open_environment()
        try:
            if differs := _differences(subject, world):
                return missing(_NAME, f"the simulator's {differs} are not those of the data; see --env-option")
            return _Trial(subject, world, modes, imagines=Mode.FORWARD not in unable).run()
        except NotRepeatableError:
            return missing(_NAME, "the same actions from the same start lead somewhere else in this simulator")
        finally:
            world.close()


def _differences(subject: Subject, world: Environment) -> str:
    known, here = subject.group.spec, world.spec
    return ", ".join(
        what
        for what in ("action_dim", "state_dim", "action_rate", "views")
        if getattr(known, what) != getattr(here, what)
    )


@dataclass(kw_only=True)
class _Plan:
    """What a mode wants to do at every situation, and what it expects to see; None where it can't tell."""

    actions: Float[Tensor, "n ta da"]
    video: Float[Tensor, "n v f 3 h w"] | None
    other: Float[Tensor, "n v f 3 h w"] | None = None
    """What the model imagines for another situation's plan."""
    performances: list[Performance] = field(default_factory=list[Performance])


class _Trial:
    """One model in one world."""

    def __init__(self, subject: Subject, world: Environment, modes: Sequence[Mode], *, imagines: bool) -> None:
        self.subject, self.spec, self.modes, self.imagines = subject, subject.group.spec, modes, imagines
        self.window = subject.pipe.processor.window
        self.horizon = horizon(self.window, self.spec.name)
        self.ahead = look_ahead(self.window, self.spec)
        back = look_back(self.window, self.spec)
        self.stage = Stage(world, StageConfig(seed=subject.seed, horizon=self.horizon, back=back))
        self.world = world

    def run(self) -> Findings:
        """Find situations, plan, carry out, compare."""
        total, short = self.subject.options.episodes, list[str]()
        self.situations: list[Situation] = []
        for index in range(total):
            found = self.stage.situations(index)
            self.situations += found
            if not found:
                short.append(str(index))
            self.subject.on_progress(index + 1, 2 * total)
        if not self.situations:
            return missing(_NAME, f"no simulated episode is long enough for a plan of {self.horizon} actions")
        episodes = [s.episode for s in self.situations]
        self.partner = donors(episodes)
        self.video = Ledger(_NAME, self.spec.name, episodes, self.subject.bootstrap)
        self.deeds = Ledger(_NAME, self.spec.name, episodes, self.subject.bootstrap)
        self.places = Ledger(_NAME, self.spec.name, episodes, self.subject.bootstrap)
        if short:
            self.deeds.leave_out(
                f"execution: episodes {', '.join(short)}", f"over before {self.horizon} actions could be planned"
            )
        plans = {mode.value: self._plan(mode) for mode in self.modes}
        self._act(plans)
        for mode, plan in plans.items():
            self._compare(mode, plan)
        self._report(plans)
        shown = sorted({(2 * i + 1) * len(episodes) // (2 * _FILMS) for i in range(_FILMS)})
        parts = [ledger.findings for ledger in (self.video, self.places, self.deeds)]
        return Findings(
            rows=[row for part in parts for row in part.rows],
            answers=[answer for part in parts for answer in part.answers],
            left_out=[pair for part in parts for pair in part.left_out],
            films=[film for i in shown if (film := self._film(i, plans)) is not None],
        )

    def _ask_model(
        self, mode: Mode, actions: Float[Tensor, "n ta da"] | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return actions and video of a mode at every situation."""
        made = []
        for start in range(0, len(self.situations), self.subject.batch_size):
            places = range(start, min(start + self.subject.batch_size, len(self.situations)))
            moments = [self.situations[i].moment for i in places]
            if actions is not None:
                chunks = actions[start : places.stop].numpy()
                moments = [replace(m, actions=chunk) for m, chunk in zip(moments, chunks, strict=True)]
            batch = batch_of(moments, self.window, self.spec, _NAME)
            made.append(self.subject.sampler(mode, batch, [window_seed(self.subject.seed, m.key) for m in moments]))
        chunks, videos = ([getattr(m, what) for m in made] for what in ("actions", "video"))
        return (None if chunks[0] is None else torch.cat(chunks).float().cpu()), (
            None if videos[0] is None else torch.cat(videos).float().cpu()
        )

    def _plan(self, mode: Mode) -> _Plan:
        actions, video = self._ask_model(mode)
        assert actions is not None, "policy and joint give actions"
        actions = actions[:, : self.horizon, : self.spec.action_dim]
        plan = _Plan(actions=actions, video=video)
        if self.imagines and self.ahead:
            if mode is Mode.POLICY:
                plan.video = self._ask_model(Mode.FORWARD, actions)[1]
            if self.partner:
                plan.other = self._ask_model(Mode.FORWARD, actions[self.partner])[1]
        return plan

    def _act(self, plans: dict[str, _Plan]) -> None:
        """Carry out every plan, and what controls do."""
        width = self.spec.state_dim
        stats = self.subject.pipe.processor.config["stats"].get(self.spec.name, {}).get("state")
        scale = torch.tensor(stats["std"] if stats and width else [0.0] * width, dtype=torch.float64)
        for i, situation in enumerate(self.situations):
            expert = None if situation.rest is None else self._perform(situation, situation.rest)
            done: dict[str, Performance] = {} if expert is None else {"expert": expert}
            for name, plan in plans.items():
                plan.performances.append(self._perform(situation, plan.actions[i].numpy(), film=True))
                done[name] = plan.performances[-1]
                if self.partner:
                    done[f"{name}_other"] = self._perform(situation, plan.actions[self.partner[i]].numpy())
            rng = np.random.default_rng(window_seed(self.subject.seed, situation.moment.key))
            done["hold"] = self.stage.perform(situation, lambda step: self.world.hold())
            done["random"] = self.stage.perform(situation, lambda step, rng=rng: self.world.random(rng))
            for name, performance in done.items():
                self.deeds.add(name, _deed_sums(situation, performance, expert, scale)[None])
            self.subject.on_progress(len(self.situations) + i + 1, 2 * len(self.situations))

    def _perform(self, situation: Situation, actions: np.ndarray, *, film: bool = False) -> Performance:
        return self.stage.perform(situation, lambda step: actions[step], film=self.ahead if film else ())

    def _compare(self, mode: str, plan: _Plan) -> None:
        """Add the errors of what was imagined against what then happened."""
        if plan.video is None:
            return
        views = self.spec.views[: plan.video.shape[1]]
        for i, (situation, performance) in enumerate(zip(self.situations, plan.performances, strict=True)):
            last = _pixels([situation.moment.pictures[0]], views)[:, 0]
            black = {view: np.zeros_like(situation.moment.pictures[0][view]) for view in views}
            true = _pixels([performance.frames.get(step, black) for step in self.ahead], views)
            known = torch.tensor([step in performance.frames for step in self.ahead]).expand(1, len(views), -1)

            shown = {mode: plan.video[i], f"{mode}_copy": last[:, None].expand_as(true)}
            if plan.other is not None:
                shown[f"{mode}_other"] = plan.other[i]
            for condition, video in shown.items():
                self.video.add(condition, video_sums(video[None], true[None], last[None], known))
            if any(s.scene for s in self.situations):
                shown |= {"executed": true} if mode == self.modes[0].value else {}
                for condition, video in shown.items():
                    self.places.add(condition, self._places(situation, performance, video)[None])

    def _places(self, situation: Situation, performance: Performance, video: Tensor) -> Float[Tensor, "2 2"]:
        """Look for body and things in a video of what follows a situation."""
        now = situation.scene
        if now is None or now.view not in self.spec.views[: len(video)]:
            return torch.zeros(2, 2, dtype=torch.float64)
        pixels = (video[self.spec.views.index(now.view)] * 255).round().clamp(0, 255).to(torch.uint8)
        film = np.concatenate(
            [situation.moment.pictures[0][now.view][None], rearrange(pixels, "f c h w -> f h w c").numpy()]
        )
        return place_sums(film, self.ahead, now, performance.scenes)

    def _report(self, plans: dict[str, _Plan]) -> None:
        conditions = list(Execution.words.conditions)
        curves = [
            replace(
                _PSNR,
                time_s=round(step / self.spec.action_rate, 6),
                score=lambda s, i=i: video_scores(s[..., i : i + 1])["psnr_moving"],
            )
            for i, step in enumerate(self.ahead)
            if step <= self.horizon
        ]
        self.video.rows([_PSNR, *curves], conditions)
        if any(s.scene for s in self.situations):
            self.places.rows([_BODY_ERROR, _THING_ERROR], conditions)
        else:
            self.places.leave_out("execution: body and thing error", "the simulator does not tell where things are")
        self.deeds.rows([_GAIN], conditions)
        if any(s.is_last for s in self.situations):
            for condition in (c for c in conditions if c in self.deeds):
                reached, of = self.deeds.sums(condition)[:, _SUCCESS].sum(dim=0).tolist()
                self.deeds.rate("success", condition, round(reached), round(of))
        else:
            self.deeds.leave_out("execution: success", "the expert reached the goal in no episode that was simulated")
        if "expert" not in self.deeds:
            self.deeds.leave_out("execution: expert and state error", "the simulator has no scripted expert")
        else:
            self.deeds.rows([_AWAY], [c for c in conditions if c != "expert"])
        if self.partner is None:
            self.deeds.leave_out("execution: another moment's plan", "there is a single moment")
        for mode in plans:
            if mode not in self.video:
                self.video.leave_out(f"execution: plan adherence of {mode}", "the model imagines no video of its plan")
            self._ask(mode)

    def _ask(self, mode: str) -> None:
        def check(what: str, metric: str, worse: str, asks: str, flag: str) -> None:
            ledger, figure = {
                "psnr_moving": (self.video, _PSNR),
                "body_error": (self.places, _BODY_ERROR),
                "progress": (self.deeds, _GAIN),
            }[metric]
            better = (_NAME, mode)
            ledger.ask(
                question(f"execution_{mode}_{what}", metric, better, (_NAME, worse), asks=asks, flag=flag), figure
            )

        check(
            "adheres", "psnr_moving", f"{mode}_other",
            f"Does what {mode} imagined belong to its own plan?", f"what {mode} imagines does not belong to its plan",
        )  # fmt: skip
        check(
            "beats_copy", "psnr_moving", f"{mode}_copy",
            f"Is what {mode} imagined nearer to what happened than the last frame again?",
            f"what {mode} imagined is no better than the last frame again",
        )  # fmt: skip
        check(
            "knows_where", "body_error", f"{mode}_copy",
            f"Is the body that {mode} imagines where the simulator has it, rather than where it was?",
            f"{mode} imagines the body no nearer to where it goes than where it was",
        )  # fmt: skip
        check(
            "gets_farther", "progress", "hold",
            f"Does {mode}'s plan get farther than holding still?", f"{mode}'s plans get no farther than holding still",
        )  # fmt: skip
        check(
            "fits", "progress", f"{mode}_other",
            f"Does {mode}'s plan get farther than another moment's?", f"{mode}'s plans fit no better than another moment's",
        )  # fmt: skip

    def _film(self, i: int, plans: dict[str, _Plan]) -> Film | None:
        """Show a situation: what happened, and beside it what was imagined, first view."""
        situation, steps = self.situations[i], [s for s in self.ahead if s <= self.horizon]
        now = torch.from_numpy(situation.moment.pictures[0][self.spec.views[0]].copy())
        panels, made, names = [], [], []
        for mode, plan in plans.items():
            if plan.video is None:
                continue
            seen = [plan.performances[i].frames[s][self.spec.views[0]] for s in steps]
            panels.append(torch.stack([now, *(torch.from_numpy(x.copy()) for x in seen)]))
            imagined = (plan.video[i, 0, : len(steps)] * 255).round().clamp(0, 255).to(torch.uint8)
            panels.append(torch.cat([now[None], rearrange(imagined, "f c h w -> f h w c")]))
            made += [False, True]
            names += [f"{mode}: what happened", f"{mode}: imagined"]
        if not panels or not steps:
            return None
        return Film(
            caption=f"{situation.moment.key}: {' | '.join(names)}",
            frames=torch.from_numpy(strip(panels, 1, made)),
            seconds_a_frame=steps[-1] / len(steps) / self.spec.action_rate,
        )


def _pixels(frames: Sequence, views: Sequence[str]) -> Float[Tensor, "v f 3 h w"]:
    stacked = np.stack([[picture[view] for picture in frames] for view in views])
    return rearrange(torch.from_numpy(stacked), "v f h w c -> v f c h w").float() / 255


def _deed_sums(
    situation: Situation, done: Performance, expert: Performance | None, scale: Float[Tensor, " ds"]
) -> Float[Tensor, "3 2"]:
    """Return progress gained, success (at last moments only) and squared distance from the expert's states, with counts."""
    sums = torch.zeros(3, 2, dtype=torch.float64)
    sums[_PROGRESS] = torch.tensor([done.progress - situation.progress, 1.0])
    if situation.is_last:
        sums[_SUCCESS] = torch.tensor([float(done.success), 1.0])
    varies = scale > 0
    if expert is not None and bool(varies.any()):
        away = (torch.from_numpy(done.states - expert.states).double()[:, varies] / scale[varies]).square()
        sums[_STATE] = torch.tensor([float(away.sum()), float(away.numel())], dtype=torch.float64)
    return sums
