"""A conversion in units: two at once, killed ones, one that begins again, and clusters that refuse."""

import stat
from pathlib import Path

import numpy as np
import pytest

from tests.integration.test_data_cli import tree
from wam_video.data import tasks
from wam_video.data.convert import convert, plan
from wam_video.data.encode import WriterConfig
from wam_video.data.manifest import load_manifest
from wam_video.data.refine import RefineConfig
from wam_video.data.sources import open_source
from wam_video.data.spool import Recipe, Spool, assemble
from wam_video.data.tasks import EncodeUnit, submit
from wam_video.data.video import encode_mp4
from wam_video.data.writer import ShardWriter
from wam_video.errors import ConfigError, DataError

WRITER = WriterConfig(dataset="toy", height=16, width=16)


@pytest.fixture
def films(tmp_path: Path) -> Path:
    folder = tmp_path / "films"
    folder.mkdir()
    for number in range(3):
        frames = [np.full((16, 16, 3), 10 * number + i, np.uint8) for i in range(6)]
        (folder / f"film{number}.mp4").write_bytes(encode_mp4(frames, 10))
    return folder


def begin(films: Path, output: Path, writer: WriterConfig = WRITER) -> Spool:
    spool = Spool(output)
    options = {"multiview": "no"}
    spool.open(Recipe(source=str(films), format="video", writer=writer, recordings=3, per_unit=2, options=options))
    return spool


def encode(spool: Spool) -> None:
    for unit in range(2):
        EncodeUnit(str(spool.output))(None, unit)


def test_what_is_done_to_recordings_is_done_by_tasks_too(films: Path, tmp_path: Path) -> None:
    (films / "film3.mp4").write_bytes((films / "film0.mp4").read_bytes())
    noise = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3)).repeat(20, axis=0).astype(np.uint8)
    for number in (4, 5):
        (films / f"film{number}.mp4").write_bytes(encode_mp4(noise, 10))
    options = {"split_scenes": True, "drop_duplicates": True}
    source = open_source(films, "video", multiview="no")
    convert(source, tmp_path / "plain", WRITER, refining=RefineConfig(**options))
    manifest = load_manifest(tmp_path / "plain")
    assert {s.episode_id: s.reason[-5:] for s in manifest.skipped} == {"film3": "film0", "film5": "film4"}
    assert manifest.counts["total"]["samples"] == 3 + 2  # film4 has a cut
    spool = Spool(tmp_path / "out")
    named = {"source": str(films), "format": "video", "options": {"multiview": "no"}}
    spool.open(Recipe(**named, writer=WRITER, recordings=6, per_unit=5, refining=options))
    encode(spool)
    assemble(spool)
    assert tree(tmp_path / "out") == tree(tmp_path / "plain")


def plain(films: Path, output: Path) -> dict[str, bytes]:
    convert(open_source(films, "video", multiview="no"), output, WRITER)
    return tree(output)


def test_a_second_process_is_kept_out_until_the_first_ends(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "out")
    with spool.alone(), pytest.raises(DataError, match="another process converts"), Spool(tmp_path / "out").alone():
        pass
    with Spool(tmp_path / "out").alone():
        pass


def test_of_two_writers_at_once_the_second_is_told_and_the_first_is_not_harmed(tmp_path: Path, toys) -> None:
    first, second = (ShardWriter(tmp_path / "out", WriterConfig(dataset="toy", height=16, width=16)) for _ in range(2))
    with first:
        with pytest.raises(DataError, match="another conversion writes there"), second:
            pass
        first.write(toys.episode(0))
        first.write(toys.episode(1))
    assert load_manifest(tmp_path / "out").counts["total"]["episodes"] == 2


def test_an_assembling_that_was_killed_is_done_again(films: Path, tmp_path: Path) -> None:
    spool = begin(films, tmp_path / "out")
    encode(spool)
    half = spool.folder / "shards.partial"
    half.mkdir()
    (half / "toy-train-000000.tar").write_bytes(b"half")
    assemble(spool)
    assert tree(tmp_path / "out") == plain(films, tmp_path / "plain")


def test_shards_are_replaced_only_if_asked_and_only_shards(films: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    old = plain(films, output)
    spool = begin(films, output, WriterConfig(dataset="toy", height=32, width=32))
    encode(spool)
    with pytest.raises(DataError, match="--overwrite"):
        assemble(spool)
    assert tree(output) == old
    assemble(spool, overwrite=True)
    assert load_manifest(output).options["height"] == 32
    assert sorted(p.name for p in tmp_path.iterdir()) == ["films", "out", "out.spool"]
    other = tmp_path / "notes"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="no folder of shards"):
        convert(open_source(films, "video", multiview="no"), other, WRITER, overwrite=True)


def test_a_conversion_begins_again_where_an_earlier_one_ended(films: Path, tmp_path: Path) -> None:
    spool = begin(films, tmp_path / "out")
    encode(spool)
    for mark in ("completions/00000", "assemble/completions/00000"):
        path = spool.logs / mark
        path.parent.mkdir(parents=True)
        path.touch()
    assemble(spool)
    assert not spool.under_way
    spool = begin(films, tmp_path / "out")
    assert spool.under_way
    assert spool.finished() == set()
    assert not list(spool.logs.rglob("00000"))  # the executor would leave out what has such a mark


def test_files_of_others_are_no_units(films: Path, tmp_path: Path) -> None:
    spool = begin(films, tmp_path / "out")
    (spool.folder / "unit-copy.tar").write_bytes(b"")
    (spool.folder / ".unit-000001.host-1").write_bytes(b"half")
    assert spool.finished() == set()
    spool.remove_halves()
    assert not list(spool.folder.glob(".unit-*"))


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_that_is_not_positive_is_refused_in_a_rehearsal_too(limit: int, films: Path) -> None:
    with pytest.raises(ConfigError, match="limit is"):
        plan(open_source(films, "video", multiview="no"), limit=limit)


def test_a_cluster_that_is_not_there_or_refuses_leaves_nothing(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datatrove")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    output, options = tmp_path / "out", {"partition": "cpu", "time": "1:00:00"}
    recipe = Recipe(source=str(films), format="video", writer=WRITER, recordings=3, options={"multiview": "no"})
    with pytest.raises(ConfigError, match="sbatch"):
        submit(recipe, output, "slurm", workers=2, options=options)
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: cpu' >&2\nexit 1\n")
    sbatch.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:/usr/bin:/bin")
    with pytest.raises(DataError, match="sbatch ended with 1"):
        submit(recipe, output, "slurm", workers=2, options=options)
    assert not Spool(output).folder.exists()


def test_the_reason_of_a_failed_task_is_told(tmp_path: Path) -> None:
    log = tmp_path / "executor.log"
    log.write_text("wam_video.errors.DataError: of an earlier run\n")
    begin = log.stat().st_size
    assert tasks._reason(log, begin) == ""
    with log.open("a") as file:
        file.write("Traceback\nwam_video.errors.DataError: unit 1 can't be written: disk full\nmore\n")
    assert tasks._reason(log, begin) == ": unit 1 can't be written: disk full"
