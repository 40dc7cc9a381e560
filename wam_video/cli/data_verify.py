"""`wam-video data verify`: is every byte there, and is what they say right?"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from wam_video.cli.command import DONE, FAILED
from wam_video.cli.options import check_page
from wam_video.errors import ConfigError

if TYPE_CHECKING:
    from wam_video.data.checks import Finding
    from wam_video.data.manifest import Manifest

SUSPECT = 3
"""Exit code: nothing is broken, and something is most likely wrong."""

_EPILOG = """\
examples:
  wam-video data verify shards/mine
  wam-video data verify shards/mine --report verify.html
  wam-video data verify shards/mine --strict --delay 0.1

One line a finding, `SEVERITY check where: text`. A note is worth knowing, a warning is most likely a fault (actions shifted
against the picture, a view upside down, a dead camera, a gripper's sign, degrees for radians, an episode twice, ...), an
error makes data unusable. Exit codes: 0 nothing above a note, 3 warnings, 1 errors (or warnings with --strict), 2 a wrong
request.

Robots follow their actions late, by up to 0.4 s or two steps in sound recordings, so a shift by one step can't be told from a
slower robot; give the robot's --delay, e.g. as a sound recording's note names it, to have shifts of one step named."""


def add_verify(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command's parser."""
    sub = commands.add_parser(
        "verify",
        help="decode everything, find what is broken or wrong with a dataset (exit code by severity)",
        description="Check every byte against the manifest, and find what people get wrong.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.set_defaults(command=_verify)
    sub.add_argument("shards", type=Path, metavar="SHARDS", help="folder that `convert` wrote")
    sub.add_argument(
        "--report", type=Path, metavar="PAGE.html", help="write a page with pictures, and findings.json beside it"
    )
    sub.add_argument("--no-hashes", action="store_true", help="decode only, do not compare the shards' hashes")
    sub.add_argument("--no-checks", action="store_true", help="only what is broken, not what is wrong")
    sub.add_argument("--strict", action="store_true", help="warnings fail too (exit code 1)")
    sub.add_argument(
        "--delay", type=float, metavar="S", help="seconds by which the robot follows its actions (default: any natural)"
    )


def _verify(arguments: argparse.Namespace) -> int:
    from wam_video.data.manifest import load_manifest

    if arguments.delay is not None and not 0 <= arguments.delay <= 5:
        raise ConfigError(f"--delay is {arguments.delay}; allowed: 0 to 5 seconds")
    if arguments.report is not None:
        check_page("--report", arguments.report)
    manifest = load_manifest(arguments.shards)
    findings = []
    for finding in _findings(arguments, manifest):
        findings.append(finding)
        print(finding, flush=True)
    counts = {severity: sum(f.severity == severity for f in findings) for severity in ("error", "warning", "note")}
    samples = sum(len(shard.samples) for shard in manifest.shards)
    alarms = counts["error"] + counts["warning"]
    verdict = f"{counts['error']} error(s), {counts['warning']} warning(s)" if alarms else "nothing is wrong"
    notes = f", {counts['note']} note(s)" if counts["note"] else ""
    print(f"{arguments.shards}: {len(manifest.shards)} shard(s), {samples} sample(s): {verdict}{notes}")
    if arguments.report is not None:
        from wam_video.data.checks.page import write_report

        listed = write_report(arguments.shards, manifest, findings, arguments.report)
        print(f"page: {arguments.report}, findings: {listed}")
    if counts["error"] or (arguments.strict and counts["warning"]):
        return FAILED
    return SUSPECT if counts["warning"] else DONE


def _findings(arguments: argparse.Namespace, manifest: "Manifest") -> "list[Finding]":
    """Return what is broken and, from the same pass over the clips, what is wrong."""
    from wam_video.data.checks import Digests, Finding, run_checks
    from wam_video.data.verify import verify

    digests = None if arguments.no_checks else Digests()
    found = []
    for problem in verify(
        arguments.shards,
        hashes=not arguments.no_hashes,
        on_clip=None
        if digests is None
        else lambda sample, clip: digests.add(sample.embodiment, sample.episode_id, clip),
    ):
        where = f"{problem.shard} {problem.key}".strip()
        found.append(Finding(check="integrity", severity="error", where=where, text=problem.text))
    if digests is not None:
        found += run_checks(digests.bodies(manifest.embodiments), notes=manifest.notes, delay=arguments.delay)
    return found
