"""Every byte and frame of a folder of shards against its manifest."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from wam_video.data.latents import OPTION
from wam_video.data.manifest import Manifest, SampleEntry, ShardEntry, load_manifest, verify_shard
from wam_video.data.normalize import compute_stats, load_stats, stats_hash
from wam_video.data.reader import Clip, load_clip
from wam_video.errors import DataError
from wam_video.log import progress


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong."""

    shard: str
    """Its file name, or that of another file of the folder."""
    key: str
    """Of the sample; empty where the whole file is meant."""
    text: str

    def __str__(self) -> str:
        return f"{self.shard}{f' {self.key}' if self.key else ''}: {self.text}"


def verify(
    folder: Path | str,
    *,
    hashes: bool = True,
    decoder: str = "auto",
    on_clip: Callable[[SampleEntry, Clip], None] | None = None,
) -> Iterator[Problem]:
    """Yield what is wrong with a folder of shards, having read and decoded all of it.

    Checks sizes and hashes of the shards, the members of every sample, lengths and shapes against manifest and embodiment,
    that all numbers are finite, that no shard is unknown to the manifest, and that `stats.json` is that of the train split.

    Args:
        folder: A folder that `convert` wrote.
        hashes: Also compare the sha256 of each shard.
        decoder: See `video.open_video`.
        on_clip: Called with every sound clip, so that whoever looks for more need not decode it again.

    Raises:
        DataError: There is no manifest, or it can't be read.
    """
    folder = Path(folder)
    manifest = load_manifest(folder)
    for name in sorted({path.name for path in folder.glob("*.tar")} - {shard.name for shard in manifest.shards}):
        yield Problem(shard=name, key="", text="is not in the manifest; remove it or convert the dataset again")
    readable = []
    for shard in manifest.shards:
        try:
            verify_shard(folder, shard, hashes=hashes)
        except DataError as error:
            yield Problem(shard=shard.name, key="", text=str(error))
        readable += [(shard, sample) for sample in shard.samples] if (folder / shard.name).is_file() else []
    broken = False
    for shard, sample in progress(readable, total=len(readable), what="samples"):
        for text in _sample_problems(folder, manifest, shard, sample, decoder, on_clip):
            broken = True
            yield Problem(shard=shard.name, key=sample.key, text=text)
    if not broken and len({shard.name for shard, _ in readable}) == len(manifest.shards):
        yield from _stats_problems(folder)


def _sample_problems(
    folder: Path,
    manifest: Manifest,
    shard: ShardEntry,
    sample: SampleEntry,
    decoder: str,
    on_clip: Callable[[SampleEntry, Clip], None] | None,
) -> Iterator[str]:
    spec = manifest.embodiments.get(sample.embodiment)
    if spec is None:
        yield f"embodiment {sample.embodiment!r} is not in the manifest"
        return
    latent_views = spec.views if OPTION in manifest.options else ()
    try:
        clip = load_clip(folder, shard, sample, decoder=decoder, latent_views=latent_views)
    except DataError as error:
        yield str(error)
        return
    for name, found, stated in (
        ("num_frames", clip.info.get("num_frames"), sample.num_frames),
        ("num_actions", clip.info.get("num_actions"), sample.num_actions),
        ("episode_id", clip.info.get("episode_id"), sample.episode_id),
        ("embodiment", clip.info.get("embodiment"), sample.embodiment),
    ):
        if found != stated:
            yield f"its json has {name} {found!r}, the manifest {stated!r}"
    if not clip.video and not clip.latents:
        yield "it has no video"
    for view in sorted(set(clip.video) - set(spec.views)):
        yield f"view {view!r} is not one of embodiment {spec.name!r}: {', '.join(spec.views)}"
    wrong = list(_array_problems(clip, sample, spec.action_dim, spec.state_dim))
    yield from wrong
    if on_clip is not None and not wrong:
        on_clip(sample, clip)


def _array_problems(clip: Clip, sample: SampleEntry, action_dim: int, state_dim: int) -> Iterator[str]:
    """Yield wrong widths and missing arrays; the reader has checked lengths and finiteness."""
    if clip.actions is None and sample.num_actions:
        yield f"it has no actions, the manifest says {sample.num_actions}"
    for name, array, dim in (("actions", clip.actions, action_dim), ("state", clip.state, state_dim)):
        if array is not None and array.shape[1] != dim:
            yield f"{name} have {array.shape[1]} dimensions, its embodiment {dim}"
    sizes = {frames.shape[1:3] for frames in clip.video.values()}
    if len(sizes) > 1:
        yield f"its views differ in size: {sorted(sizes)}"


def _stats_problems(folder: Path) -> Iterator[Problem]:
    try:
        stored = stats_hash(load_stats(folder))
    except DataError as error:
        yield Problem(shard="stats.json", key="", text=str(error))
        return
    if stored != stats_hash(compute_stats(folder)):
        text = f"is not that of the train split; run `wam-video data stats {folder}`"
        yield Problem(shard="stats.json", key="", text=text)
