"""Yields the episodes of an RLDS dataset, one record of a TFRecord file each."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_pipelines.frames import EncodedImagesView
from data_pipelines.options import build_options, safe_name
from data_pipelines.recording import Body, RecordingConfig, Rows, as_rows, check_rows, choose_views, units, view_names
from data_pipelines.rlds.features import (
    Known,
    Leaf,
    action_leaves,
    instruction_leaves,
    known,
    read_json,
    read_leaves,
)
from data_pipelines.rlds.records import Value, parse_example, read_records
from wam_video.data.schema import EmbodimentSpec, Episode, ViewSource
from wam_video.data.sources import SkippedEpisode
from wam_video.errors import ConfigError, DataError, one_of

_NONE, _ALL = "none", "all"
_STATES = (("observation/state",), ("observation/proprio",))
_MARKERS = ("is_first", "is_last", "is_terminal", "discount", "reward")
_FILE = re.compile(r"^(?P<name>.+)-(?P<split>[^-]+)\.tfrecord(-(?P<shard>\d+)-of-(?P<count>\d+))?$")
_MAX_FACT_LETTERS = 500


@dataclass(frozen=True, kw_only=True)
class RldsConfig(RecordingConfig):
    """Options of the source."""

    split: str = _ALL
    """Read only this split of the dataset, e.g. `train`."""
    action_keys: tuple[str, ...] = ()
    """Leaves under `steps` that make up the action, in this order; `none` reads video only."""
    state_keys: tuple[str, ...] = ()
    """Leaves under `steps` that make up the state, in this order; `none` leaves it out."""


@dataclass(frozen=True, kw_only=True)
class _Shard:
    path: Path
    split: str
    number: int
    count: int


class RldsSource:
    """A TFDS version folder with `features.json` and TFRecord files. See `RldsConfig` and README.md."""

    name: ClassVar[str] = "rlds"
    looks_like: ClassVar[str] = "a folder with features.json and *.tfrecord-* files, or the one above it (RLDS, TFDS)"

    def __init__(self, path: str | Path, **options: Any) -> None:
        roots = _roots(Path(path))
        if len(roots) != 1:
            found = f"has {len(roots)} versions ({', '.join(r.name for r in roots)}); give one" if roots else "has none"
            raise DataError(f"{path}: {found} of: {self.looks_like}")
        self.root = roots[0]
        self.config = build_options(RldsConfig, self.name, options)
        self.leaves = read_leaves(self.root / "features.json")
        info = self.root / "dataset_info.json"
        self._info = read_json(info) if info.is_file() else {}
        self._shards = self._find_shards()
        self.dataset = str(self._info.get("name") or _FILE.fullmatch(self._shards[0].path.name)["name"])  # type: ignore[index]
        self._known = known(self.dataset)
        self._fps = self.config.fps or (self._known.fps if self._known else 0.0)
        if not self._fps:
            raise ConfigError(
                f"{self.root}: RLDS does not record the rate, and that of {self.dataset!r} is not known here; "
                "give it with --option fps=F (steps per second)"
            )
        self._views = choose_views(self._cameras(), self.config.views)
        self._actions = self._columns("action_keys", self.config.action_keys, self._usual("actions"))
        self._state = self._columns("state_keys", self.config.state_keys, self._usual("state"))
        self._body = Body()

    @classmethod
    def matches(cls, path: str | Path) -> bool:
        """Return whether `path` is, or holds, a version folder of TFDS with TFRecord files."""
        return bool(_roots(Path(path)))

    @property
    def len_hint(self) -> int | None:
        """How many records the dataset declares for the splits that are read."""
        declared = self._declared()
        counts = [declared.get((shard.split, shard.number)) for shard in self._shards]
        return None if None in counts else sum(count or 0 for count in counts)

    @property
    def licence(self) -> str:
        """What dataset_info.json states, which is seldom anything."""
        terms = self._info.get("redistributionInfo")
        return str(terms.get("license") or "") if isinstance(terms, dict) else ""

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """Oddities of the dataset as a whole, and the leaves that are not read."""
        texts = instruction_leaves(self.leaves)
        used = {*self._views.values(), *(f"steps/{key}" for key in (*self._actions, *self._state, *_MARKERS)), *texts}
        notes = [
            f"feature_left_out:{safe_name(path)}"
            for path, leaf in self.leaves.items()
            if path not in used and leaf.stepwise and not (leaf.kind == "image" and leaf.dtype == "uint8")
        ]
        if not self.config.fps:
            notes.append(f"rate_not_recorded:{self._fps:g}_taken")
        notes += [] if self._actions else ["no_action_feature"]
        notes += [] if self._state else ["no_state_feature"]
        for split in sorted({shard.split for shard in self._shards}):
            shards = [shard for shard in self._shards if shard.split == split]
            if missing := shards[0].count - len(shards):
                notes.append(f"shards_missing:{safe_name(split)}:{missing}")
        return tuple(notes)

    def episodes(self) -> Iterator[Episode | SkippedEpisode]:
        """Yield every record of every shard in order, or why it can't be used."""
        declared = self._declared()
        for shard in self._shards:
            number = -1
            for number, record in enumerate(read_records(shard.path)):
                episode_id = f"{safe_name(shard.split)}-{shard.number:05d}-{number:06d}"
                try:
                    if isinstance(record, DataError):
                        raise record
                    yield self._episode(parse_example(record), episode_id, f"{shard.path.name}, record {number}")
                except ConfigError:
                    raise
                except DataError as error:
                    yield SkippedEpisode(episode_id=episode_id, reason=str(error))
            stated = declared.get((shard.split, shard.number))
            if stated is not None and stated > number + 1:
                yield SkippedEpisode(
                    episode_id=f"{safe_name(shard.split)}-{shard.number:05d}-rest",
                    reason=f"{shard.path}: has {number + 1} records of the {stated} that dataset_info.json declares",
                )

    def _find_shards(self) -> list[_Shard]:
        shards = []
        for path in sorted(self.root.iterdir()):
            if match := _FILE.fullmatch(path.name):
                number, count = int(match["shard"] or 0), int(match["count"] or 1)
                shards.append(_Shard(path=path, split=match["split"], number=number, count=count))
        splits = sorted({shard.split for shard in shards})
        if self.config.split != _ALL and self.config.split not in splits:
            raise ConfigError(one_of("split", self.config.split, [*splits, _ALL]))
        return [shard for shard in shards if self.config.split in (_ALL, shard.split)]

    def _declared(self) -> dict[tuple[str, int], int]:
        """Return how many records each shard should have."""
        declared = {}
        for split in self._info.get("splits") or []:
            for number, length in enumerate(split.get("shardLengths") or []):
                declared[(str(split.get("name")), number)] = int(length)
        return declared

    def _cameras(self) -> dict[str, str]:
        keys = [
            p for p, leaf in self.leaves.items() if leaf.stepwise and leaf.kind == "image" and leaf.dtype == "uint8"
        ]
        if not keys:
            raise DataError(f"{self.root}: features.json has no images under 'steps'; a world action model needs video")
        return view_names(sorted(keys))

    def _usual(self, what: str) -> tuple[str, ...]:
        """Return the leaves that are known or usual for actions or state, if they are all there."""
        stated: tuple[str, ...] = getattr(self._known, what) if self._known else ()
        choices = [stated, *((action_leaves(self.leaves),) if what == "actions" else _STATES)]
        return next((keys for keys in choices if keys and all(f"steps/{key}" in self.leaves for key in keys)), ())

    def _columns(self, option: str, asked: tuple[str, ...], usual: tuple[str, ...]) -> tuple[str, ...]:
        if asked == (_NONE,):
            return ()
        tensors = [
            p.removeprefix("steps/") for p, leaf in self.leaves.items() if leaf.stepwise and leaf.kind == "tensor"
        ]
        for key in asked:
            if key not in tensors:
                raise ConfigError(one_of(option, key, [*tensors, _NONE]))
        return asked or usual

    def _episode(self, features: Mapping[str, Value], episode_id: str, where: str) -> Episode:
        notes: list[str] = []
        images = self._images(features, notes)
        count = check_rows(self._steps(features, images), "it")
        rows = as_rows(
            count,
            self._fps,
            self._matrix(features, self._actions, count),
            self._matrix(features, self._state, count),
            self._matrix(features, ("reward",), count) if "steps/reward" in features else None,
        )
        notes += _oddities(features, rows)
        views: dict[str, ViewSource] = {
            view: EncodedImagesView(images=frames, times=rows.times, where=f"{where}, {view}")
            for view, frames in images.items()
        }
        facts = _facts(features, self.leaves)
        prompts = self._prompts(features, notes)
        return Episode(
            episode_id=episode_id,
            embodiment=self._body.same(self._spec(rows)),
            views=views,
            actions=rows.actions,
            state=rows.state,
            prompts=prompts,
            reward=rows.reward,
            success=_success(self.dataset, facts),
            notes=(*rows.notes, *notes),
            extra={"episode_metadata": facts} if facts else {},
        )

    def _images(self, features: Mapping[str, Value], notes: list[str]) -> dict[str, list[bytes]]:
        images = {}
        for view, path in self._views.items():
            frames = features.get(path)
            if not isinstance(frames, list) or not any(frames):
                notes.append(f"empty_view:{view}")  # some datasets write '' for a camera that was off
            elif not all(frames):
                raise DataError(f"{path}: frame {[bool(f) for f in frames].index(False)} is empty")
            else:
                images[view] = frames
        if not images:
            raise DataError(f"has no frames in any of {', '.join(self._views)}")
        return images

    def _steps(self, features: Mapping[str, Value], images: Mapping[str, list[bytes]]) -> int:
        counts = {view: len(frames) for view, frames in images.items()}
        if "steps/is_first" in features:
            counts["is_first"] = len(features["steps/is_first"])
        if len(set(counts.values())) > 1:
            raise DataError(f"its columns differ in length ({counts}); steps are missing")
        return next(iter(counts.values()))

    def _matrix(self, features: Mapping[str, Value], keys: tuple[str, ...], count: int) -> np.ndarray | None:
        parts = []
        for key in keys:
            values = features.get(f"steps/{key}")
            if not isinstance(values, np.ndarray):
                raise DataError(f"steps/{key} has no numbers in this record")
            width = int(np.prod(self.leaves[f"steps/{key}"].shape))
            if width > 0 and len(values) != count * width:
                raise DataError(
                    f"steps/{key} has {len(values)} numbers for {count} steps of {width}; steps are missing"
                )
            parts.append(values.reshape(count, -1).astype(np.float32))
        return np.concatenate(parts, axis=1) if parts else None

    def _prompts(self, features: Mapping[str, Value], notes: list[str]) -> tuple[str, ...]:
        """Return the instructions; several leaves are paraphrases, of several texts in one the most frequent is kept."""
        prompts = []
        for path in instruction_leaves(self.leaves):
            texts = Counter(text for text in _texts(features.get(path), self.leaves[path]) if text)
            if len(texts) > 1:
                notes.append("several_tasks_in_episode")
            prompts += [text for text, _ in texts.most_common(1)]
        prompts = prompts or ([self.config.prompt] if self.config.prompt else [])
        notes += [] if prompts else ["no_prompt"]
        return tuple(dict.fromkeys(prompts))

    def _spec(self, rows: Rows) -> EmbodimentSpec:
        action_dim, state_dim = rows.dims
        facts = self._known or Known(fps=self._fps, robot=self.dataset)
        usual = self._actions == self._usual("actions") and len(facts.action_names) == action_dim
        return EmbodimentSpec(
            name=self.config.embodiment or safe_name(facts.robot or self.dataset),
            action_dim=action_dim,
            state_dim=state_dim,
            views=tuple(self._views),
            fps=self._fps,
            action_rate=self._fps if action_dim else 0.0,
            action_names=facts.action_names if usual else (),
            action_units=units(self.config.action_units, facts.action_units if usual else (), action_dim),
            description=(facts.description if usual else "") or f"RLDS dataset {self.dataset}",
        )


def _oddities(features: Mapping[str, Value], rows: Rows) -> list[str]:
    notes = []
    last = features.get("steps/is_last")
    if isinstance(last, np.ndarray) and len(last) and not last.any():
        notes.append("no_last_step")  # the episode was cut
    if rows.actions is not None and len(rows.actions) and np.abs(rows.actions[0, :6]).max() < 1e-6:
        notes.append("null_first_action")
    for path, values in features.items():
        if path.startswith("episode_metadata/has_image") and isinstance(values, np.ndarray) and not values.any():
            notes.append(f"flag_says_absent:{safe_name(path.rpartition('/')[2])}")
    return notes


def _facts(features: Mapping[str, Value], leaves: Mapping[str, Leaf]) -> dict[str, Any]:
    """Return what is said of the episode as a whole: short texts and single numbers."""
    facts: dict[str, Any] = {}
    for path, leaf in leaves.items():
        values = features.get(path)
        if leaf.stepwise or values is None or len(values) != 1:
            continue
        if isinstance(values, np.ndarray):
            facts[path.removeprefix("episode_metadata/")] = values[0].item()
        elif len(values[0]) <= _MAX_FACT_LETTERS:
            facts[path.removeprefix("episode_metadata/")] = values[0].decode("utf-8", "replace")
    return facts


def _texts(values: Value | None, leaf: Leaf) -> list[str]:
    if isinstance(values, list):
        return [value.decode("utf-8", "replace").strip() for value in values]
    width = int(np.prod(leaf.shape)) if leaf.shape else 0
    if values is None or width < 1 or len(values) % width:
        return []
    rows = np.clip(values, 0, 255).astype(np.uint8).reshape(-1, width)  # Language-Table: letters as numbers
    return [row.tobytes().rstrip(b"\0").decode("utf-8", "replace").strip() for row in rows]


def _success(dataset: str, facts: Mapping[str, Any]) -> bool | None:
    """Return what DROID says in the folder it recorded to; other datasets do not say."""
    path = str(facts.get("file_path") or facts.get("recording_folderpath") or "")
    if dataset.startswith("droid") and ("/success/" in path or "/failure/" in path):
        return "/success/" in path
    return None


def _roots(path: Path) -> list[Path]:
    """Return the version folders at `path`: itself, or those in it."""
    if not path.is_dir():
        return []
    folders = [path, *sorted(p for p in path.iterdir() if p.is_dir())]
    return [p for p in folders if (p / "features.json").is_file() and any(_FILE.fullmatch(f.name) for f in p.iterdir())]
