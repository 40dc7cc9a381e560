"""`wam-video data collect`: simulated episodes to shards, the same bytes whatever the number of processes."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from wam_video.cli import data as command
from wam_video.cli.command import run
from wam_video.data.manifest import load_manifest
from wam_video.data.verify import verify

needs_pusht = pytest.mark.skipif(find_spec("gym_pusht") is None, reason="gym-pusht is missing")


def _collect(*arguments: object) -> int:
    return run(command.main, ["collect", *(str(a) for a in arguments)])


@needs_pusht
def test_pusht_is_collected_with_the_same_bytes_by_one_and_two_processes(tmp_path: Path) -> None:
    options = ("--env", "pusht", "--episodes", 4, "--max-steps", 6, "--size", "32x32", "--name", "toy", "--seed", 5)
    for workers in (1, 2):
        assert _collect(*options, "--workers", workers, "--output", tmp_path / str(workers)) == 0
    one, two = ({f.name: f.read_bytes() for f in (tmp_path / n).iterdir()} for n in "12")
    assert one == two
    manifest = load_manifest(tmp_path / "1")
    assert sum(len(shard.samples) for shard in manifest.shards) == 4
    assert not list(verify(tmp_path / "1"))
    assert json.loads(one["manifest.json"])["options"]["options"]["seed"] == 5


@needs_pusht
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", "pusht", "--size", "32x48"], "simulated pictures are square"),
        (["--env", "pusht", "--noise", "0.1"], "option of source 'pusht' is 'noise'"),
        (["--env", "pushd"], "Did you mean 'pusht'?"),
        (["--env", "pusht", "--episodes", "0"], "option episodes of source 'pusht' is 0"),
    ],
)
def test_a_wrong_request_is_one_line_and_writes_nothing(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _collect(*arguments, "--output", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
