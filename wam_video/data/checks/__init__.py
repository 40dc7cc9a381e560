"""What is wrong with a dataset before a GPU tells: checks over digests of its clips, each by the name under which it reports."""

from collections.abc import Callable, Iterable, Iterator, Mapping

from wam_video.data.checks.alignment import check_alignment
from wam_video.data.checks.cameras import check_dead, check_frozen
from wam_video.data.checks.channels import check_channels
from wam_video.data.checks.digest import Body, Digests
from wam_video.data.checks.episodes import check_duplicates, check_durations, check_text
from wam_video.data.checks.finding import SEVERITIES, Finding, Severity, ordered, worst
from wam_video.data.checks.units import check_gripper, check_units
from wam_video.data.checks.views import check_views

__all__ = ["CHECKS", "SEVERITIES", "Digests", "Finding", "Severity", "ordered", "run_checks", "worst"]

CHECKS: Mapping[str, Callable[[Body], Iterable[Finding]]] = {
    "alignment": check_alignment,
    "dead": check_dead,
    "frozen": check_frozen,
    "views": check_views,
    "channels": check_channels,
    "units": check_units,
    "gripper": check_gripper,
    "duplicates": check_duplicates,
    "durations": check_durations,
    "text": check_text,
}
"""Every check takes one body's digests and yields findings; a new one is a function and a line here."""


def run_checks(
    bodies: Iterable[Body], *, notes: Mapping[str, int] | None = None, delay: float | None = None
) -> Iterator[Finding]:
    """Run all checks over all bodies.

    Args:
        bodies: Digested episodes by embodiment.
        notes: What the conversion has noted already.
        delay: Seconds by which the robot is known to follow its actions.
    """
    for body in bodies:
        for name, check in CHECKS.items():
            if name == "alignment":
                yield from check_alignment(body, delay)
            elif name == "text":
                yield from check_text(body, known="placeholder_prompt" in (notes or {}))
            else:
                yield from check(body)
