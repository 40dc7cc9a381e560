"""Ways in which a process ends itself: it hangs, or has no time left. Each in a process of its own."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from wam_video.training.stopping import StopRequest
from wam_video.training.watchdog import HUNG

HEAD = """
import ctypes, os, signal, sys, threading, time
from pathlib import Path
from wam_video.log import setup_logging
from wam_video.training.watchdog import Watchdog
from wam_video.training.stopping import StopRequest
setup_logging()
folder = Path(sys.argv[1])
"""


def play(folder: Path, script: str) -> tuple[int, str]:
    result = subprocess.run(
        [sys.executable, "-c", HEAD + script, str(folder)], capture_output=True, text=True, timeout=120
    )
    return result.returncode, result.stderr


def test_nobody_barks_while_there_are_beats_and_nothing_is_left_behind(tmp_path: Path) -> None:
    script = """
with Watchdog(folder, 0, 1.0) as watchdog:
    for step in range(4):
        time.sleep(0.5)
        watchdog.beat(step)
time.sleep(1.5)
"""
    code, said = play(tmp_path, script)
    assert (code, said) == (0, "")
    assert list(tmp_path.iterdir()) == []


def test_a_hang_is_dumped_with_every_thread_and_ends_the_process(tmp_path: Path) -> None:
    script = """
def loader_that_hangs():
    time.sleep(60)
threading.Thread(target=loader_that_hangs, daemon=True).start()
with Watchdog(folder / "new", 3, 0.5) as watchdog:
    watchdog.beat(17)
    time.sleep(60)
"""
    began = time.monotonic()
    code, said = play(tmp_path, script)
    assert code == HUNG == 70
    assert time.monotonic() - began < 50
    assert len(said.splitlines()) == 1, said
    assert "rank 3 hangs" in said
    assert "after step 17" in said
    stacks = (tmp_path / "new" / "hang-rank3.txt").read_text()
    assert "loader_that_hangs" in stacks
    assert "rank 3: nothing was finished" in stacks


def test_an_interpreter_that_stands_still_is_ended_from_beneath(tmp_path: Path) -> None:
    script = """
with Watchdog(folder, 0, 1.0):
    time.sleep(0.5)
    ctypes.PyDLL(None).sleep(60)  # keeps the interpreter's lock
"""
    code, said = play(tmp_path, script)
    assert code == 1
    assert "Timeout" in said
    assert "<string>" in said


def test_a_save_that_takes_longer_than_the_grace_period_is_left(tmp_path: Path) -> None:
    script = """
with StopRequest(0.5) as request:
    os.kill(os.getpid(), signal.SIGTERM)
    assert request.is_made()
    time.sleep(60)
"""
    code, said = play(tmp_path, script)
    assert code == 75
    assert "SIGTERM: saving a checkpoint and stopping" in said
    assert "health.grace_seconds=0.5; going without" in said


def test_a_stop_in_time_and_a_second_interrupt(tmp_path: Path) -> None:
    script = """
with StopRequest(1.0) as request:
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
time.sleep(1.5)
print(request.exit_code)
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    sys.exit(33)
"""
    code, said = play(tmp_path, script)
    assert code == 33, said
    assert said.count("saving a checkpoint") == 1


def test_handlers_are_put_back_when_nobody_asked() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    with StopRequest(1.0) as request:
        assert not request.is_made()
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == before
