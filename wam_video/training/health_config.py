"""What a run watches over itself (`health`, `pace`, `watchdog`, `stopping`)."""

from dataclasses import dataclass

from wam_video.errors import ConfigError, one_of


@dataclass(frozen=True, kw_only=True)
class HealthConfig:
    """What a run watches over itself, and what it does about it."""

    spike: str = "warn"
    """When a step's loss, of video or of actions, jumps: `warn`; `skip` the update, which costs one exchange and one wait for
    the device a step; `off`. Steps skipped in a row count towards `max_bad_steps`."""
    spike_threshold: float = 12.0
    """A jump lies so many robust standard deviations (1.48 median absolute deviations) above the median of the last steps."""
    spike_window: int = 200
    """So many steps; it is not judged before a quarter of them."""
    straggler_ratio: float = 1.5
    """A process whose own work in a step takes so many times the median process's is named; 0: none is."""
    straggler_intervals: int = 3
    """After so many log intervals in a row."""
    hang_seconds: float = 1800.0
    """When, once training has begun, no step, validation or checkpoint ends for so long, the stacks are written to
    `<output>/hang-rank<r>.txt` and the process exits with code 70; 0: never."""
    collective_timeout_s: float = 2700.0
    """How long a process waits for the others in an exchange before it gives up with code 1. Above `hang_seconds`, every process
    says where it hangs before."""
    grace_seconds: float = 300.0
    """After a request to stop (SIGTERM, SIGUSR1, SIGINT): how long the step under way and the checkpoint may take; then the
    process goes without one."""
    peak_tflops: float | None = None
    """Of one device in the precision of the run, for the share of it that is used (`mfu`); None: of a known GPU, else left out."""

    def __post_init__(self) -> None:
        if self.spike not in ("off", "warn", "skip"):
            raise ConfigError(one_of("health.spike", self.spike, ("off", "warn", "skip")))
        for name, low in (("spike_threshold", 1), ("spike_window", 8), ("straggler_intervals", 1)):
            if not getattr(self, name) >= low:
                raise ConfigError(f"health.{name} is {getattr(self, name)}; allowed: {low} or more")
        if self.straggler_ratio != 0 and not self.straggler_ratio > 1:
            raise ConfigError(f"health.straggler_ratio is {self.straggler_ratio}; allowed: above 1, or 0 for none")
        if not self.hang_seconds >= 0:
            raise ConfigError(f"health.hang_seconds is {self.hang_seconds}; allowed: 0 (never) or more")
        for name in ("collective_timeout_s", "grace_seconds", "peak_tflops"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"health.{name} is {value}; allowed: above 0")
