"""The settings that a checkpoint samples with: the `scheduler/` folder of a pipeline. It holds numbers, no state."""

from collections.abc import Mapping, Sequence

from diffusers.configuration_utils import ConfigMixin, register_to_config  # pyright: ignore[reportUnknownVariableType]
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from wam_video.errors import ConfigError, one_of
from wam_video.flow.continuation import check_continuation
from wam_video.flow.modes import POLICY_PATHS, PathConfig, path_grid
from wam_video.flow.reuse import ReuseConfig
from wam_video.flow.solvers import Solver

GUIDED = ("video", "actions")


class WAMScheduler(SchedulerMixin, ConfigMixin):
    """How paths across the noise square are cut and walked when a call does not say otherwise.

    A diffusers scheduler by its base class, so that it is saved and loaded like one; the steps themselves are taken by
    `flow.solvers.sample`, which keeps nothing between calls.

    Args:
        num_inference_steps: Steps of a whole path (`flow.modes.path_grid`); `heun` evaluates the network twice a step.
        solver: `euler`, `heun` or `ab2`.
        shift_video: Moves the video clock towards noise (`flow.path.shift_time`); 1 leaves it.
        shift_action: The same for actions.
        action_lead: Where both are generated, the actions are done after 1 / `action_lead` of the path.
        video_steps: Where both are generated, so many more steps make the video before the actions begin; 0: side by side.
        video_stop: Clock at which `policy_path` "joint" leaves the video that it imagines.
        guidance_scale: Classifier-free guidance by prompt, one number or `{"video": ..., "actions": ...}`; 1 is none.
        policy_path: What `policy` does with the future video: `unknown`, `absent` or `joint` (imagined as far as the actions
            need it).
        continuation: What becomes of actions that are committed already: `prefix` (for models trained with
            `density.prefix`), `guided` or `replace` (`flow.continuation`).
        guidance_interval: Clocks, from and to, at which guidance is computed; each modality has its own clock (Kynkaanniemi et al.
            2024, arXiv 2404.07724).
        reuse_tolerance: Relative change of the velocity below which a step takes the last one again (`flow.reuse`); 0: never.
        reuse_most: Steps in turn that do.

    Raises:
        ConfigError: A value is out of range.
    """

    order = 1

    @register_to_config
    def __init__(  # noqa: PLR0913 - diffusers turns the arguments into scheduler_config.json, one by one
        self,
        num_inference_steps: int = 8,
        solver: str = "euler",
        shift_video: float = 1.0,
        shift_action: float = 1.0,
        action_lead: float = 1.0,
        video_steps: int = 0,
        video_stop: float = 0.0,
        guidance_scale: float | dict[str, float] = 1.0,
        policy_path: str = "unknown",
        continuation: str = "prefix",
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        reuse_tolerance: float = 0.0,
        reuse_most: int = 1,
    ) -> None:
        check_solver(solver)
        check_policy_path(policy_path)
        check_continuation(continuation)
        check_interval(guidance_interval)
        ReuseConfig(tolerance=reuse_tolerance, most=reuse_most)
        guidance_scales(guidance_scale)
        for what, shift in (("shift_video", shift_video), ("shift_action", shift_action)):
            if not shift > 0:
                raise ConfigError(f"{what} is {shift}; allowed: above 0 (1 leaves the clock as it is)")
        PathConfig(
            num_inference_steps=num_inference_steps,
            action_lead=action_lead,
            video_steps=video_steps,
            video_stop=video_stop,
        )

    def path(self, num_inference_steps: int | None = None) -> PathConfig:
        """Return how a path is cut, with the checkpoint's number of steps or the given one."""
        return PathConfig(
            num_inference_steps=self.config["num_inference_steps"]
            if num_inference_steps is None
            else num_inference_steps,
            shift_video=self.config["shift_video"],
            shift_action=self.config["shift_action"],
            action_lead=self.config["action_lead"],
            video_steps=self.config["video_steps"],
            video_stop=self.config["video_stop"],
        )

    def reuse(self, tolerance: float | None = None) -> ReuseConfig:
        """Return when a velocity is used again, with the checkpoint's tolerance or the given one."""
        return ReuseConfig(
            tolerance=self.config["reuse_tolerance"] if tolerance is None else tolerance,
            most=self.config["reuse_most"],
        )

    def facts(self, num_inference_steps: int | None = None, policy_path: str | None = None) -> dict[str, object]:
        """Return how a policy samples, for records: path and solver, steps and the clocks on the way.

        Raises:
            ConfigError: There is no such path.
        """
        path, walk = check_policy_path(policy_path or self.config["policy_path"]), self.path(num_inference_steps)
        return {
            "policy_path": path,
            "num_inference_steps": walk.num_inference_steps,
            "solver": self.config["solver"],
            **({"reuse_tolerance": tolerance} if (tolerance := self.config["reuse_tolerance"]) else {}),
            "path": [[round(float(x), 6) for x in point] for point in path_grid(POLICY_PATHS[path], walk)],
        }


def check_solver(name: str) -> str:
    """Return `name` if there is such a solver.

    Raises:
        ConfigError: There is none.
    """
    if name not in Solver.__args__:
        raise ConfigError(one_of("solver", name, Solver.__args__))
    return name


def check_policy_path(name: str) -> str:
    """Return `name` if there is such a way to act.

    Raises:
        ConfigError: There is none.
    """
    if name not in POLICY_PATHS:
        raise ConfigError(one_of("policy_path", name, POLICY_PATHS))
    return name


def check_interval(interval: Sequence[float]) -> tuple[float, float]:
    """Return an interval of clocks.

    Raises:
        ConfigError: It is none.
    """
    if len(interval) != 2 or not 0 <= interval[0] <= interval[1] <= 1:
        raise ConfigError(f"guidance_interval is {list(interval)}; allowed: two clocks, 0 <= from <= to <= 1")
    return float(interval[0]), float(interval[1])


def guidance_scales(scale: float | Mapping[str, float]) -> tuple[float, float]:
    """Return the guidance scales of video and of actions; a modality that a mapping leaves out is not guided.

    Raises:
        ConfigError: An unknown modality, or a negative scale.
    """
    if isinstance(scale, Mapping):
        for key in scale:
            if key not in GUIDED:
                raise ConfigError(one_of("guidance_scale key", key, GUIDED))
        scales = tuple(float(scale.get(part, 1.0)) for part in GUIDED)
    else:
        scales = (float(scale), float(scale))
    if not all(value >= 0 for value in scales):
        raise ConfigError(
            f"guidance_scale is {scale}; allowed: 0 or more (1 is none), or one for each of 'video', 'actions'"
        )
    return scales[0], scales[1]
