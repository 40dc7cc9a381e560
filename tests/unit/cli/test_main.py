"""The dispatcher: quick, lists what exists, hands over arguments, turns mistakes into one line and exit code 2."""

import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

import wam_video
from wam_video.cli import main as dispatcher
from wam_video.cli.command import run
from wam_video.errors import ConfigError


def test_help_lists_exactly_the_commands_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatcher.main(["--help"]) == 0
    rows = capsys.readouterr().out.split("commands:")[1].split("example:")[0].split("\n")
    listed = {row.split()[0] for row in rows if row.strip()}
    assert listed == {name for name in dispatcher.COMMANDS if find_spec(f"wam_video.cli.{name.replace('-', '_')}")}


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatcher.main(["--version"]) == 0
    assert capsys.readouterr().out == f"wam-video {wam_video.__version__}\n"


def test_no_command_shows_the_usage_and_is_a_wrong_request(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatcher.main([]) == 2
    assert "usage:" in capsys.readouterr().err


def test_an_unknown_command_suggests_the_nearest(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "available", lambda: {"train": "", "data": ""})
    assert dispatcher.main(["trian"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "'trian'" in message
    assert "Did you mean 'train'?" in message


def test_arguments_and_exit_code_pass_through(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    module = SimpleNamespace(main=lambda argv: seen.append(argv) or 1)
    monkeypatch.setattr(dispatcher, "available", lambda: {"train": ""})
    monkeypatch.setattr(dispatcher, "import_module", lambda name: module)
    assert dispatcher.main(["train", "a.yaml", "--dry-run"]) == 1
    assert seen == [["a.yaml", "--dry-run"]]


def test_a_users_mistake_is_one_line_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def body(_: object) -> int:
        raise ConfigError("steps is 0; allowed: 1 or more; pass --steps 8")

    assert run(body, []) == 2
    assert capsys.readouterr().err == "error: steps is 0; allowed: 1 or more; pass --steps 8\n"


def test_our_own_faults_keep_their_traceback() -> None:
    def body(_: object) -> int:
        raise KeyError("ours")

    with pytest.raises(KeyError, match="ours"):
        run(body, [])


def test_help_waits_for_nothing_heavy() -> None:
    code = "import sys; from wam_video.cli.main import main; main(['--help']); print(sorted(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = result.stdout.splitlines()[-1]
    assert not [name for name in ("torch", "numpy", "diffusers", "transformers", "av") if f"'{name}'" in modules]
