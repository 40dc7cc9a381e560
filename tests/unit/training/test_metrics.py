import json
import logging
import resource
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from wam_video.errors import ConfigError
from wam_video.flow.loss import LossTerms
from wam_video.training.metrics import HostedRun, JsonLines, drop_later, open_trackers, region_means, region_sums


def test_errors_are_averaged_within_each_region_of_the_square() -> None:
    sample = SimpleNamespace(t_video=torch.tensor([1.0, 0.0, 0.5, 0.5]), t_action=torch.tensor([0.5, 0.5, 0.0, 1.0]))
    terms = LossTerms(
        video_sum=torch.tensor([1.0, 0.0, 6.0, 8.0]),
        video_count=torch.tensor([2.0, 0.0, 2.0, 2.0]),
        action_sum=torch.tensor([3.0, 10.0, 0.0, 4.0]),
        action_count=torch.tensor([1.0, 2.0, 0.0, 2.0]),
    )
    means = region_means(region_sums(sample, terms))
    assert means == pytest.approx(
        {
            **{"loss_video": 15 / 6, "loss_forward": 3.0, "loss_video_only": 4.0, "loss_joint_video": 0.5},
            **{"loss_action": 17 / 5, "loss_policy": 3.0, "loss_inverse": 5.0, "loss_joint_action": 2.0},
        }
    )


def test_lines_of_steps_that_are_done_again_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 1}\n{"step": 2, "a": 2}\n{"step": 3, "a"')
    tracker = JsonLines(path, from_step=1)
    tracker.log({"a": 5.0}, 2)
    tracker.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"step": 1, "a": 1}, {"step": 2, "a": 5.0}]


def test_lines_are_dropped_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = '{"step": 1, "a": 1}\n{"step": 2, "a": 2}\n'
    path.write_text(lines)
    before = path.stat()
    drop_later(path, 2)
    assert path.stat().st_ino == before.st_ino, "nothing to drop, nothing to write"
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("gone")))
    with pytest.raises(OSError, match="gone"):
        drop_later(path, 1)
    assert path.read_text() == lines


def test_tensorboard_gets_the_scalars(tmp_path: Path) -> None:
    for tracker in open_trackers(["tensorboard"], tmp_path, {}, 0):
        tracker.log({"a": 5.0}, 2)
        tracker.close()
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_a_tracker_that_is_not_installed_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pip install no_such_tracker"):
        HostedRun("no_such_tracker", tmp_path, {})


def test_numbers_that_a_full_disk_does_not_take_are_told_once_and_end_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tracker,) = open_trackers([], tmp_path, {}, from_step=0)
    logging.getLogger("wam_video").propagate = True
    tracker.log({"loss": 1.0}, 1)
    room = (tmp_path / "metrics.jsonl").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        tracker.log({"loss": 2.0}, 2)
        tracker.log({"loss": 3.0}, 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    tracker.log({"loss": 4.0}, 4)
    tracker.close()
    alarm = "ALARM: JsonLines lost numbers of step 2 and maybe later ones: [Errno 27]"
    # by record: a handler that another test left behind sees each one twice
    assert len({id(record) for record in caplog.records if alarm in record.getMessage()}) == 1
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps[0] == 1 and steps[-1] == 4
