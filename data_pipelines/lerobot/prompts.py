"""The instruction of an episode: from annotation columns, the task index of its rows, or the episode table."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipelines.lerobot.layout import EpisodeRow, Layout

_PLACEHOLDER = re.compile(
    r"(un-?labell?ed\b.*|placeholder\b.*|todo\b.*|dummy\b.*|unknown|none|null|n/?a|no (task|instruction|language)\b.*|task|test|default)",
    re.IGNORECASE,
)


def find_prompts(
    layout: Layout, columns: Sequence[str], table: dict[str, list[Any]], episode: EpisodeRow
) -> tuple[tuple[str, ...], list[str]]:
    """Return the paraphrases of an episode's instruction, and notes on what was odd about them.

    Several instruction columns are paraphrases. Several texts within ONE column are tasks that follow each other, which a
    single clip-wide prompt can't say: the one with the most rows is kept.
    """
    notes: list[str] = []
    prompts = [text for column in columns if table.get(column) and (text := _most_rows(layout, table[column], notes))]
    if not prompts and "task_index" in table:
        prompts = [text] if (text := _most_rows(layout, table["task_index"], notes)) else []
    if not prompts and episode.tasks:
        prompts = [episode.tasks[0]]
        if len(episode.tasks) > 1:
            notes.append("several_tasks_in_episode")
    prompts = list(dict.fromkeys(text.strip() for text in prompts if text.strip()))
    if not prompts:
        notes.append("no_prompt")
    if any(_PLACEHOLDER.fullmatch(text) for text in prompts):
        notes.append("placeholder_prompt")
    return tuple(prompts), list(dict.fromkeys(notes))


def _most_rows(layout: Layout, values: Sequence[Any], notes: list[str]) -> str:
    """Return the text that most rows of a column carry; integers are looked up in the task table."""
    flat = np.asarray(values, dtype=object).reshape(-1)
    counts = Counter(value for value in flat if value is not None)
    if not counts:
        return ""
    if len(counts) > 1:
        notes.append("several_tasks_in_episode")
    best = counts.most_common(1)[0][0]
    if isinstance(best, str):
        return best
    if int(best) not in layout.tasks:
        notes.append("task_index_not_in_table")
        return ""
    return layout.tasks[int(best)]
