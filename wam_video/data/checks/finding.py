"""What a check has to say: how bad it is, where, in words, in numbers, and what to draw of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

Severity = Literal["note", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("note", "warning", "error")
"""From worth knowing, through most likely wrong, to can't be used."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Curves:
    """Lines over a common axis."""

    title: str
    axis: str
    lines: Mapping[str, tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]]
    """Label -> x and y."""
    marks: tuple[float, ...] = ()
    """Places on the axis to mark."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Bars:
    """A histogram of numbers with the bounds that they should keep."""

    title: str
    values: Float[np.ndarray, " n"]
    bounds: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Sheet:
    """Frames of one view of several episodes, one row each."""

    title: str
    view: str
    episodes: tuple[str, ...]
    """The one that is meant first, then siblings to compare it with."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Finding:
    """One thing that a check found."""

    check: str
    """Its name, e.g. `dead-camera`."""
    severity: Severity
    where: str
    """Body, and episode, view or channel within it; or a shard's name."""
    text: str
    """One sentence: what, the value, what would be right, what to do."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """JSON-able numbers behind the text."""
    figures: tuple[Curves | Bars | Sheet, ...] = ()

    def __str__(self) -> str:
        return f"{self.severity.upper()} {self.check} {self.where}: {self.text}"

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, without figures."""
        return {
            "check": self.check,
            "severity": self.severity,
            "where": self.where,
            "text": self.text,
            "facts": dict(self.facts),
        }


def worst(findings: Sequence[Finding]) -> Severity:
    """Return the highest severity among findings; `note` if there are none."""
    found = {finding.severity for finding in findings}
    for severity in reversed(SEVERITIES):
        if severity in found:
            return severity
    return "note"


def ordered(findings: Sequence[Finding]) -> list[Finding]:
    """Return findings from the worst to the least, otherwise in their order."""
    return sorted(findings, key=lambda finding: -SEVERITIES.index(finding.severity))
