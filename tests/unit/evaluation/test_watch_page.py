import json
from pathlib import Path

import pytest

from wam_video.cli import watch
from wam_video.cli.command import run
from wam_video.errors import DataError
from wam_video.evaluation.watch_page import watch_page, write_watch_page


def make_run(folder: Path, steps: int) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text("output_dir: x\nsteps: 4000\n")
    lines = [
        {
            **{
                "step": step,
                "loss_video": 1 / step,
                "loss_policy": 2.0,
                "dataset/a/video": 0.5,
                "dataset/b<i>/video": 0.6,
            },
            **{"clock/video/0.0-0.2": 0.1, "clock/video/0.2-0.4": 0.3, "spikes": 1.0, "samples_per_second": 12.0},
            **{"data_wait_share": 0.25, "step_s_p50": 1.0, "step_s_p95": 2.0, "mfu": 0.37, "memory_gb": 41.0},
            **{"data_wait_share/rank0": 0.2, "data_wait_share/rank1": 0.3, "slowest_ratio": 1.2},
        }
        for step in range(1, steps + 1)
    ]
    lines.insert(2, {"step": 2, "val_forward": 0.125, "val_forward_shuffled": 0.25})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"step": 99, "cut sho')
    bad = {"step": 3, "rank": 1, "samples": [{"key": "a/c@7", "index": 9}], "terms": ["loss_video"], "grad_norm": "nan"}
    (folder / "bad_batches.jsonl").write_text(json.dumps(bad) + "\n")
    (folder / "checkpoints" / "step-0000002").mkdir(parents=True)
    (folder / "checkpoints" / "step-0000002" / "COMMIT.json").write_text("{}")
    return folder


def test_a_page_tells_losses_speed_and_what_went_wrong_and_reads_itself_again(tmp_path: Path) -> None:
    page = watch_page(make_run(tmp_path / "run<1>", 1000))
    for told in (
        *("Training run&lt;1&gt;", "step 1000 of 4000 (25%)", "12 samples/s", "50 min left", "37% of the device"),
        *('http-equiv="refresh"', "b&lt;i&gt;", "0.125", "a/c@7", "step-0000002", "1 step(s) skipped", "1000 jump(s)"),
        *("rank1", "by clock, lately", "video, by dataset"),
    ):
        assert told in page, told
    assert "<i>" not in page
    assert "src=" not in page, "it needs nothing beside it"
    assert len(page) < 200_000, "long runs are thinned"


def test_a_run_that_has_just_begun_has_a_page_and_another_folder_has_none(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    assert "Nothing" not in watch_page(tmp_path)
    assert "None yet." in watch_page(tmp_path)
    with pytest.raises(DataError, match=r"holds no metrics\.jsonl"):
        write_watch_page(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_command_writes_it_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "run", 3)
    assert run(watch.main, [str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "watch.html")
    assert "hung once" not in (folder / "watch.html").read_text()
    (folder / "hang-rank1.txt").write_text("stacks")
    assert "hang-rank1.txt" in watch_page(folder)
    assert run(watch.main, [str(tmp_path / "none")]) == 2
