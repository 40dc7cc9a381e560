"""What a robomimic-like HDF5 file says of itself: rate, robot, instruction, which way up its images are."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.hdf5 import attribute

DEFAULT_FPS = 20.0
"""Control rate of robosuite, and of all of LIBERO."""

ROBOSUITE_ACTIONS = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")
"""Of the OSC_POSE controller: a change of pose scaled to [-1, 1], and the gripper: -1 opens, 1 closes."""

_MAX_TEXT = 1 << 20
_SCENE = re.compile(r"^[A-Z][A-Z0-9_]*_SCENE\d+_")


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """Of one file."""

    fps: float
    robot: str
    libero: bool
    prompt: str
    upside_down: bool
    notes: tuple[str, ...]


def file_facts(data: Any, path: Path) -> FileFacts:
    """Read the attributes of the group `data`."""
    notes = []
    arguments = _json(attribute(data, "env_args"))
    keywords = arguments.get("env_kwargs")
    keywords = keywords if isinstance(keywords, dict) else {}
    problem = _json(attribute(data, "problem_info"))
    libero = bool(problem) or attribute(data, "bddl_file_name") is not None
    rate = keywords.get("control_freq")
    if not isinstance(rate, (int, float)) or not 0 < rate <= 1000:
        rate = DEFAULT_FPS
        notes.append(f"rate_not_recorded:{rate:g}_taken")
    robots = keywords.get("robots") or problem.get("robots")
    robot = robots[0] if isinstance(robots, list) and len(robots) == 1 else robots
    convention = attribute(data, "macros_image_convention")
    if libero and convention is None:
        notes.append("image_convention_not_recorded")
    prompt = _sentence(problem.get("language_instruction") or arguments.get("lang") or keywords.get("lang"))
    if libero and not prompt:
        prompt = _SCENE.sub("", path.stem.removesuffix("_demo")).replace("_", " ").strip()
        notes.append("prompt_from_file_name")
    return FileFacts(
        fps=float(rate),
        robot=robot if isinstance(robot, str) else "",
        libero=libero,
        prompt=prompt,
        upside_down=convention == "opengl" or (libero and convention is None),
        notes=tuple(notes),
    )


def demo_prompt(demo: Any) -> str:
    """Return the instruction that a demonstration has of its own (RoboCasa's `ep_meta`), or nothing."""
    return _sentence(_json(attribute(demo, "ep_meta")).get("lang"))


def _sentence(value: Any) -> str:
    """Return an instruction as text: files hold text, lists of words or of one text, and quotes within quotes."""
    if isinstance(value, list):
        value = " ".join(str(part) for part in value)
    return value.strip().strip("\"'").strip() if isinstance(value, str) else ""


def _json(text: Any) -> dict[str, Any]:
    if not isinstance(text, str) or len(text) > _MAX_TEXT:
        return {}
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
