"""Small recordings whose every frame and action says where it belongs, and shards made of them."""

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wam_video.data.encode import WriterConfig
from wam_video.data.manifest import hash_file, load_manifest, save_manifest
from wam_video.data.schema import EmbodimentSpec, Episode
from wam_video.data.video import ArrayView
from wam_video.data.writer import ShardWriter


def toy_episode(
    number: int,
    *,
    frames: int = 40,
    fps: float = 10,
    rate: float = 20,
    dim: int = 3,
    name: str = "toy",
    views: Sequence[str] = ("front",),
) -> Episode:
    """Frame i has brightness 3 i + 20; action i is (i, i + 0.1, ...) + 1000 * number and the state the same less 0.5."""
    count = max(0, round((frames - 1) * rate / fps)) if dim else 0
    rows = (
        np.arange(count + 1, dtype=np.float32)[:, None] + 1000 * number + np.arange(max(dim, 1), dtype=np.float32) / 10
    )
    video = np.broadcast_to((20 + 3 * np.arange(frames, dtype=np.uint8))[:, None, None, None], (frames, 24, 32, 3))
    spec = EmbodimentSpec(
        name=name, action_dim=dim, state_dim=dim, views=tuple(views), fps=fps, action_rate=rate if dim else 0
    )
    return Episode(
        episode_id=f"ep{number:03d}",
        embodiment=spec,
        views={view: ArrayView(video, np.arange(frames) / fps) for view in views},
        actions=rows[:count] if dim else None,
        state=rows - 0.5 if dim else None,
        prompts=("push it", "shove it", "move it"),
    )


def write_shards(folder: Path, episodes: Sequence[Episode], **options: object) -> Path:
    settings = {"dataset": "toy", "height": 16, "width": 16, "fit": "stretch", "clip_frames": 24, **options}
    with ShardWriter(folder, WriterConfig(**settings)) as writer:  # type: ignore[arg-type]
        for episode in episodes:
            writer.write(episode)
    return folder


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six episodes of one embodiment, in two clips each."""
    return write_shards(tmp_path_factory.mktemp("toy") / "shards", [toy_episode(i) for i in range(6)])


@pytest.fixture(scope="session")
def plain_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three episodes of video without actions."""
    episodes = [toy_episode(i, dim=0, name="clip") for i in range(3)]
    return write_shards(tmp_path_factory.mktemp("plain") / "shards", episodes, dataset="plain")


Edit = Callable[[dict[str, bytes]], object]


def rewrite_first_sample(folder: Path, edit: Edit, *, extra: Sequence[tarfile.TarInfo] = ()) -> None:
    """Change the members of the first training sample, with a manifest that matches the new bytes: a hostile or broken shard."""
    manifest = load_manifest(folder)
    shard = next(s for s in manifest.shards if s.split == "train")
    path, first = folder / shard.name, shard.samples[0]
    data = path.read_bytes()
    members: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(data[first.offset : first.offset + first.bytes])) as tar:
        for info in tar:
            members[info.name] = tar.extractfile(info).read()  # type: ignore[union-attr]
    edit(members)
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in extra:
            tar.addfile(info)
        used = tar.offset
    sample = sink.getvalue()[:used]
    grown = used - first.bytes
    path.chmod(0o644)
    path.write_bytes(data[: first.offset] + sample + data[first.offset + first.bytes :])
    samples = (replace(first, bytes=used), *(replace(s, offset=s.offset + grown) for s in shard.samples[1:]))
    altered = replace(shard, samples=samples, bytes=path.stat().st_size, sha256=hash_file(path))
    save_manifest(replace(manifest, shards=tuple(altered if s is shard else s for s in manifest.shards)), folder)


def edit_json(path: Path, edit: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


class Toys:
    """The helpers above, for tests: `importlib` import mode has no imports between test modules."""

    episode = staticmethod(toy_episode)
    write = staticmethod(write_shards)
    rewrite_first_sample = staticmethod(rewrite_first_sample)
    edit_json = staticmethod(edit_json)


@pytest.fixture(scope="session")
def toys() -> type[Toys]:
    return Toys
