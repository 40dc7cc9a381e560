"""Whose words reach the terminal."""

import re

_OURS = re.compile(r"\d\d:\d\d:\d\d (INFO|WARNING|ERROR) .*")


def strangers(stderr: str) -> list[str]:
    """Lines of a command's stderr that are not our logger's."""
    return [line for line in re.split(r"[\r\n]+", stderr) if line and not _OURS.fullmatch(line)]
