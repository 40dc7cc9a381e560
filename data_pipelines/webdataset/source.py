"""Yields the samples of other people's WebDatasets, one an episode."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from data_pipelines.options import build_options, episode_name, safe_name
from data_pipelines.recording import Body, RecordingConfig, as_rows, check_finite, check_rows, units
from data_pipelines.webdataset.layouts import Content, is_clip, is_foundry, read_clip, read_foundry
from data_pipelines.webdataset.tars import Sample, read_samples, tar_files
from wam_video.data.schema import EmbodimentSpec, Episode
from wam_video.data.sources import SkippedEpisode
from wam_video.errors import ConfigError, DataError, one_of


@dataclass(frozen=True, kw_only=True)
class WebDatasetConfig(RecordingConfig):
    """Options of the source; `fps` replaces what videos state, or the rate of a table's steps."""

    action_keys: tuple[str, ...] = ()
    """vla_foundry: columns that make up the action, in this order; the commanded poses and grippers by default."""


class WebDatasetSource:
    """A tar, or a folder of tars, with clips or with frames and tables. See `WebDatasetConfig` and README.md."""

    name: ClassVar[str] = "webdataset"
    looks_like: ClassVar[str] = "*.tar files whose samples hold mp4, or frames and lowdim.npz (WebDataset)"

    def __init__(self, path: str | Path, **options: Any) -> None:
        self.root = Path(path)
        self.config = build_options(WebDatasetConfig, self.name, options)
        self._tars = tar_files(self.root)
        if not self._tars:
            raise DataError(f"{self.root}: no tar there; give {self.looks_like}")
        self._body = Body()

    @classmethod
    def matches(cls, path: str | Path) -> bool:
        """Return whether the first sample of the first tar at `path` holds what is read."""
        for tar in tar_files(Path(path))[:1]:
            for sample in read_samples(tar):
                return isinstance(sample, Sample) and (is_clip(sample.members) or is_foundry(sample.members))
        return False

    @cached_property
    def _declared(self) -> dict[str, int]:
        """How many samples `manifest.jsonl` says each tar has."""
        declared: dict[str, int] = {}
        for tar in self._tars:
            for path in (tar.parent / "manifest.jsonl", tar.parent.parent / "manifest.jsonl"):
                if path.is_file() and not declared:
                    declared = _read_manifest(path)
        return declared

    @property
    def len_hint(self) -> int | None:
        """How many samples the manifest declares, if there is one."""
        counts = [self._declared.get(tar.stem) for tar in self._tars]
        return None if None in counts else sum(count or 0 for count in counts)

    @property
    def licence(self) -> str:
        """Nothing: these tars state no terms."""
        return ""

    @property
    def notes(self) -> tuple[str, ...]:
        """Tars that the manifest declares and that are not there."""
        missing = set(self._declared) - {tar.stem for tar in self._tars}
        return (f"shards_missing:{len(missing)}",) if missing else ()

    def episodes(self) -> Iterator[Episode | SkippedEpisode]:
        """Yield every sample of every tar in order, or why it can't be used."""
        for tar in self._tars:
            count = 0
            for sample in read_samples(tar):
                if isinstance(sample, DataError):
                    yield SkippedEpisode(episode_id=episode_name(tar.stem, "rest"), reason=str(sample))
                    continue
                count += 1
                episode_id = episode_name(f"{tar.stem}-{safe_name(sample.key)}")
                try:
                    yield self._episode(sample, episode_id, f"{tar}: {sample.key}")
                except ConfigError:
                    raise
                except DataError as error:
                    yield SkippedEpisode(episode_id=episode_id, reason=str(error))
            stated = self._declared.get(tar.stem, count)
            if stated != count:
                reason = f"{tar}: holds {count} samples; manifest.jsonl says {stated}"
                yield SkippedEpisode(episode_id=episode_name(tar.stem, "declared"), reason=reason)

    def _episode(self, sample: Sample, episode_id: str, where: str) -> Episode:
        content = self._understand(sample, where)
        notes = [*content.notes, *(f"member_left_out:{safe_name(kind)}" for kind in dict.fromkeys(sample.left_out))]
        actions, state, reached = content.actions, content.state, []
        if content.action_rate == content.fps:
            rows = as_rows(check_rows(content.num_frames, "it"), content.fps, actions, state)
            actions, state, reached = rows.actions, rows.state, list(rows.notes)
        views = self._chosen(content)
        prompts = content.prompts or ((self.config.prompt,) if self.config.prompt else ())
        return Episode(
            episode_id=episode_id,
            embodiment=self._body.same(self._spec(content, actions, state, tuple(views))),
            views=views,
            actions=actions,
            state=state,
            prompts=prompts,
            notes=(*notes, *reached, *(() if prompts else ("no_prompt",))),
            extra={**content.extra, "key": sample.key},
        )

    def _understand(self, sample: Sample, where: str) -> Content:
        if is_foundry(sample.members):
            content = read_foundry(sample.members, where, self.config.fps, self.config.action_keys)
            if not self.config.fps:
                content.notes.append(f"rate_not_recorded:{content.action_rate:g}_taken")
            return _between(content)
        if is_clip(sample.members):
            return read_clip(sample.members, where, self.config.fps)
        raise DataError(
            f"{where}: holds neither mp4 nor frames with lowdim.npz, but {', '.join(sample.members) or 'nothing'}"
        )

    def _chosen(self, content: Content) -> dict[str, Any]:
        for name in self.config.views:
            if name not in content.views:
                raise ConfigError(one_of("view", name, content.views))
        return {name: content.views[name] for name in self.config.views or content.views}

    def _spec(self, content: Content, actions: Any, state: Any, views: tuple[str, ...]) -> EmbodimentSpec:
        action_dim = 0 if actions is None else actions.shape[1]
        return EmbodimentSpec(
            name=self.config.embodiment or safe_name(self.root.resolve().name.removesuffix(".tar").lower()),
            action_dim=action_dim,
            state_dim=0 if state is None else state.shape[1],
            views=views,
            fps=content.fps,
            action_rate=content.action_rate if action_dim else 0.0,
            action_names=content.action_names if len(content.action_names) == action_dim else (),
            action_units=units(self.config.action_units, (), action_dim),
            description="WebDataset of others; what the actions are is the dataset's business",
        )


def _between(content: Content) -> Content:
    """Return a foundry sample with a state after its last action; its table has one row for each of both."""
    if content.actions is None or len(content.actions) < 2:
        raise DataError("its table has fewer than 2 steps after its first frame")
    for name, column in (("actions", content.actions), ("state", content.state)):
        if column is not None:
            check_finite(name, column)
    content.actions = content.actions[:-1].astype("float32")
    content.state = None if content.state is None else content.state.astype("float32")
    content.notes += ["last_action_without_frame"]
    if content.action_rate == content.fps:
        kept = content.num_frames - 1  # what follows the last frame can't be seen
        content.notes += (
            [f"steps_after_last_frame:{len(content.actions) - kept}"] if len(content.actions) > kept else []
        )
        content.actions = content.actions[:kept]
        content.state = None if content.state is None else content.state[: kept + 1]
    return content


def _read_manifest(path: Path) -> dict[str, int]:
    declared = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            declared[Path(str(row["shard"])).name.removesuffix(".tar")] = int(row["num_sequences"])
        except (ValueError, KeyError, TypeError):
            return {}  # another project's file of that name
    return declared
