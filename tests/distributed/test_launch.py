"""Every launch configuration really starts what it says, and learns what plain data parallelism does; the scripts do what they say."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.unit.data.conftest import toy_episode, write_shards
from tests.unit.training.fakes import MODEL

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
KINDS = {"cpu_two_processes": "ddp", "multi_gpu": "ddp", "fsdp2": "fsdp", "fsdp2_hybrid": "fsdp"}
KINDS |= {
    path.stem: "deepspeed" for path in (LAUNCH / "accelerate").glob("deepspeed_*.yaml") if "nvme" not in path.stem
}
IN_CI = ("deepspeed_zero3", "fsdp2")
pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def run_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration file of a tiny run on small shards."""
    folder = tmp_path_factory.mktemp("launch")
    shards = write_shards(folder / "shards", [toy_episode(i) for i in range(3)])
    window = {"action_horizon": 4}
    run = {
        **{
            "batch_size": 2,
            "model": MODEL,
            "codec": {"patch_size": 8},
            "trackers": [],
            "eval_every": 0,
            "log_every": 1,
        },
        "text": {"d_model": 16, "num_layers": 1, "num_heads": 2, "max_length": 16},
        "data": {"datasets": {"toy": {"path": str(shards)}}, "window": window},
        "optim": {"lr": 1e-3, "warmup_steps": 2, "schedule": "constant"},
        **{"save_every": 1000, "mixed_precision": "no"},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    return path


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


STARTED: "list[subprocess.Popen[str]]" = []


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()


def start(command: list[str], **environment: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | ENVIRONMENT | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    STARTED.append(process)
    return process


def finish(process: "subprocess.Popen[str]", code: int = 0) -> str:
    output, _ = process.communicate(timeout=1200)
    assert process.returncode == code, output[-6000:]
    return output


def launch(name: str, config: Path, output: Path, steps: int, **machines: int) -> "subprocess.Popen[str]":
    options = {"num_processes": 2, "main_process_port": free_port(), "mixed_precision": "no", **machines}
    if machines:
        options["main_process_ip"] = "127.0.0.1"
    flags = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    head = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"launch/accelerate/{name}.yaml"]
    return start([*head, *flags, "-m", "wam_video.cli.train", str(config), f"output_dir={output}", f"steps={steps}"])


def losses(output: Path) -> list[tuple[float, float]]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [(entry["loss_video"], entry["loss_action"]) for entry in lines if "loss_video" in entry]


def same_curve(one: list[tuple[float, float]], other: list[tuple[float, float]], steps: int) -> None:
    assert len(one) == len(other) == steps
    for step, (a, b) in enumerate(zip(one, other, strict=True)):
        assert a == pytest.approx(b, abs=1e-4), f"step {step}"


@pytest.fixture(scope="module")
def reference(run_config: Path) -> Any:
    """Loss curves of two DDP processes, by steps."""
    found: dict[int, list[tuple[float, float]]] = {}

    def curve(steps: int) -> list[tuple[float, float]]:
        if steps not in found:
            output = run_config.parent / f"ddp-{steps}"
            told = finish(launch("cpu_two_processes", run_config, output, steps))
            assert "ddp engine, 2 process(es) on cpu" in told
            found[steps] = losses(output)
        return found[steps]

    return curve


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        *(pytest.param(name, 8) for name in IN_CI),
        *(pytest.param(name, 50, marks=pytest.mark.long) for name in KINDS if name != "cpu_two_processes"),
    ],
)
def test_every_configuration_starts_two_processes_that_learn_what_ddp_does(
    run_config: Path, reference: Any, tmp_path: Path, name: str, steps: int
) -> None:
    if name.startswith("deepspeed"):
        pytest.importorskip("deepspeed")
    told = finish(launch(name, run_config, tmp_path / "run", steps))
    assert f"{KINDS[name]} engine, 2 process(es) on cpu" in told
    same_curve(losses(tmp_path / "run"), reference(steps), steps)


def test_the_files_of_the_launcher_say_what_their_names_do() -> None:
    for path in (LAUNCH / "accelerate").glob("deepspeed_*.yaml"):
        config = yaml.safe_load(path.read_text())
        name = path.stem.removeprefix("deepspeed_")
        assert config["deepspeed_config"]["deepspeed_config_file"] == f"launch/deepspeed/{name}.json"
        zero = json.loads((LAUNCH / "deepspeed" / f"{name}.json").read_text())["zero_optimization"]
        assert zero["stage"] == int(name[4])
        where = next((device for device in ("cpu", "nvme") if device in name), None)
        assert zero.get("offload_optimizer", {}).get("device") == where
        assert zero.get("offload_param", {}).get("device") == (where if zero["stage"] == 3 else None)
    for name in ("fsdp2", "fsdp2_hybrid"):
        config = yaml.safe_load((LAUNCH / "accelerate" / f"{name}.yaml").read_text())
        assert (config["distributed_type"], config["fsdp_config"]["fsdp_version"]) == ("FSDP", 2)


@pytest.mark.long
@pytest.mark.parametrize("name", ["cpu_two_processes", "fsdp2"])
def test_two_machines_of_one_process_each_learn_what_ddp_does(
    run_config: Path, reference: Any, tmp_path: Path, name: str
) -> None:
    """Two launches meet on a loopback address, as those of two machines would."""
    port = free_port()
    machines = [
        launch(name, run_config, tmp_path / "run", 8, num_machines=2, machine_rank=rank, main_process_port=port)
        for rank in (0, 1)
    ]
    told = [finish(machine) for machine in machines]
    assert f"{KINDS[name]} engine, 2 process(es) on cpu" in told[0]
    same_curve(losses(tmp_path / "run"), reference(8), 8)


@pytest.mark.long
def test_hybrid_sharding_over_two_machines_learns_what_two_times_two_processes_do(
    run_config: Path, tmp_path: Path
) -> None:
    port = free_port()
    machines = [
        launch(
            "fsdp2_hybrid", run_config, tmp_path / "hybrid", 4,
            num_processes=4, num_machines=2, machine_rank=rank, main_process_port=port,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    told = [finish(machine) for machine in machines]
    assert "fsdp engine, 4 process(es) on cpu" in told[0]
    finish(launch("multi_gpu", run_config, tmp_path / "ddp", 4, num_processes=4))
    same_curve(losses(tmp_path / "hybrid"), losses(tmp_path / "ddp"), 4)


# The scripts, with a stand-in for Python that notes how it is called and starts one worker that lives until it is told to end.

FAKE_PYTHON = r"""#!/usr/bin/env bash
echo "start rank=${NODE_RANK:-${SLURM_NODEID:-${JOB_COMPLETION_INDEX:-}}} $*" >>"$RECORD"
if [ -n "${FAKE_CODES:-}" ]; then
  turn=$(wc -l <"$RECORD"); read -ra codes <<<"$FAKE_CODES"; exit "${codes[turn - 1]}"
fi
bash -c 'trap "echo saved >>\"$RECORD\"; exit 0" TERM; echo working >>"$RECORD"; for ((i = 0; i < 2000; i++)); do sleep 0.05; done' &
trap '' TERM
wait
"""
FAKE_SSH = """#!/usr/bin/env bash
while [[ $1 == -* ]]; do shift 2; done
echo "ssh $1" >>"$RECORD"; shift
cd /; exec env -u ENGINE -u PROCESSES -u NODES bash -c "$*"
"""
FAKE_SRUN = """#!/usr/bin/env bash
while [[ $1 == -* ]]; do shift; done
tasks=()
for ((id = 0; id < SLURM_NNODES; id++)); do SLURM_NODEID=$id setsid "$@" & tasks+=($!); done
trap 'kill -USR1 "${tasks[@]}"' USR1
code=0
for task in "${tasks[@]}"; do
  while got=0; wait "$task" || got=$?; kill -0 "$task" 2>/dev/null; do :; done
  [ "$got" -le "$code" ] || code=$got
done
exit "$code"
"""
FAKE_SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then echo node7; echo node8; else echo "scontrol $*" >>"$RECORD"; fi
"""


@pytest.fixture
def fakes(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Programs of a cluster on PATH, and the file that they write into."""
    for name, text in (
        ("python", FAKE_PYTHON),
        ("ssh", FAKE_SSH),
        ("srun", FAKE_SRUN),
        ("scontrol", FAKE_SCONTROL),
    ):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    record = str(tmp_path / "record")
    yield {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHON": str(tmp_path / "bin" / "python"),
        "RECORD": record,
        **{"ENGINE": "fsdp2", "PROCESSES": "4"},
    }
    for process in psutil.process_iter():  # a session of its own hides a worker from whoever ends the script
        with suppress(psutil.Error):
            if process.environ().get("RECORD") == record:
                process.kill()


def record(fakes: Mapping[str, str]) -> list[str]:
    path = Path(fakes["RECORD"])
    return path.read_text().splitlines() if path.is_file() else []


def wait_for(fakes: Mapping[str, str], line: str, count: int) -> None:
    deadline = time.monotonic() + 60
    while sum(entry.startswith(line) for entry in record(fakes)) < count:
        assert time.monotonic() < deadline, record(fakes)
        time.sleep(0.02)


def script(name: str, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
    return start(["bash", f"launch/{name}", *arguments], **environment)


def started(entry: str, rank: str, processes: int, nodes: int, host: str) -> None:
    words = entry.split()
    assert words[:4] == ["start", f"rank={rank}", "-m", "accelerate.commands.launch"]
    words = words[4 : words.index("-m", 4)]
    options = dict(zip(words[::2], words[1::2], strict=True))
    assert options["--num_processes"] == str(processes)
    assert options["--config_file"] == "launch/accelerate/fsdp2.yaml"
    if nodes > 1:
        assert (options["--num_machines"], options["--machine_rank"]) == (str(nodes), rank)
        assert options["--main_process_ip"] == host


def test_a_machine_starts_again_after_failures_and_no_more_often_than_it_may(fakes: dict[str, str]) -> None:
    told = finish(script("single_node.sh", "a.yaml", "steps=5", **fakes, FAKE_CODES="1 1 0", RESTARTS="2"))
    assert "exit code 1; starting again, 2 restart(s) left" in told
    lines = record(fakes)
    assert len(lines) == 3
    assert lines[0].endswith("-m wam_video.cli.train a.yaml steps=5")
    started(lines[0], "", 4, 1, "")
    Path(fakes["RECORD"]).unlink()
    finish(script("single_node.sh", "a.yaml", **fakes, FAKE_CODES="3 3 3", RESTARTS="1"), 3)
    assert len(record(fakes)) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_machine_that_is_told_to_stop_lets_its_workers_save_and_says_75(fakes: dict[str, str], number: int) -> None:
    process = script("single_node.sh", "a.yaml", **fakes, RESTARTS="5")
    wait_for(fakes, "working", 1)
    process.send_signal(number)
    finish(process, 75)
    assert record(fakes)[1:] == ["working", "saved"]


@pytest.mark.parametrize("name", ["single_node.sh", "multi_node_ssh.sh", "slurm.sbatch"])
def test_what_is_not_set_is_named(name: str) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    result = subprocess.run(["bash", LAUNCH / name, "a.yaml"], env=environment, capture_output=True, text=True)
    assert result.returncode != 0
    wanted = {"single_node.sh": "ENGINE", "multi_node_ssh.sh": "HOSTS", "slurm.sbatch": "SLURM_SUBMIT_DIR"}
    assert wanted[name] in result.stderr


def test_every_host_is_reached_by_ssh_with_its_number_and_all_are_told_to_stop(fakes: dict[str, str]) -> None:
    hosts = {"HOSTS": "me@nodeA nodeB", "REPOSITORY": str(ROOT), "MAIN_PORT": "29411"}
    process = script("multi_node_ssh.sh", "a.yaml", "prompt=fold the towel", **fakes, **hosts)
    wait_for(fakes, "working", 2)
    lines = sorted(line for line in record(fakes) if line.startswith("start"))
    for rank, line in enumerate(lines):
        started(line, str(rank), 8, 2, "nodeA")
        assert line.endswith("a.yaml prompt=fold the towel")
    process.send_signal(signal.SIGTERM)
    finish(process, 75)
    assert record(fakes).count("saved") == 2
    assert not list(ROOT.glob(".launch-*"))


def slurm(fakes: Mapping[str, str], **more: str) -> "subprocess.Popen[str]":
    job = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_NNODES": "2", "SLURM_JOB_ID": "41", "SLURM_JOB_NODELIST": "node[7-8]"}
    return script("slurm.sbatch", "a.yaml", **fakes, **job, **more)


def test_a_slurm_job_that_is_preempted_saves_and_queues_again(fakes: dict[str, str]) -> None:
    process = slurm(fakes)
    wait_for(fakes, "working", 2)
    for rank, line in enumerate(sorted(line for line in record(fakes) if line.startswith("start"))):
        started(line, str(rank), 8, 2, "node7")
    process.send_signal(signal.SIGUSR1)
    told = finish(process, 75)
    assert "stopped at a checkpoint" in told
    assert record(fakes).count("saved") == 2
    assert record(fakes)[-1] == "scontrol requeue 41"


def test_a_slurm_job_that_fails_or_is_done_does_not_queue_again(fakes: dict[str, str]) -> None:
    for code in (0, 1):
        finish(slurm(fakes, FAKE_CODES=f"{code} {code} {code} {code}"), code)
        assert not [line for line in record(fakes) if line.startswith("scontrol")]


def kubernetes(**values: str) -> list[dict[str, Any]]:
    text = (LAUNCH / "kubernetes.yaml").read_text()
    for name, value in values.items():
        text = text.replace(f"${{{name}}}", value)
    assert "${" not in text.split("apiVersion", 1)[1]
    return list(yaml.safe_load_all(text))


def test_a_kubernetes_job_starts_each_pod_with_its_number(fakes: dict[str, str]) -> None:
    values = {"NAME": "wam", "IMAGE": "i:1", "NODES": "2", "PROCESSES": "4", "ENGINE": "fsdp2", "CLAIM": "lab"}
    service, job = kubernetes(**values, ARGUMENTS="a.yaml steps=5")
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert (job["spec"]["completions"], job["spec"]["completionMode"]) == (2, "Indexed")
    pod = job["spec"]["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    resumes = job["spec"]["podFailurePolicy"]["rules"][0]
    assert (resumes["action"], resumes["onExitCodes"]["values"]) == ("Ignore", [75])
    (container,) = pod["containers"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    for index in ("0", "1"):
        here = fakes | environment | {"JOB_COMPLETION_INDEX": index, "RESTARTS": "0", "FAKE_CODES": "0 0"}
        finish(start(container["command"], **here))
    for rank, line in enumerate(record(fakes)):
        started(line, str(rank), 8, 2, "wam-0.wam")
        assert line.endswith("wam_video.cli.train a.yaml steps=5")


@pytest.mark.long
def test_two_hosts_over_ssh_really_train_and_one_pod_does(
    run_config: Path, reference: Any, tmp_path: Path, fakes: dict[str, str]
) -> None:
    """The scripts with the real Python; ssh runs the command here."""
    real = fakes | {"PYTHON": sys.executable, "ENGINE": "cpu_two_processes", "MAIN_PORT": str(free_port())}
    hosts = {"HOSTS": "127.0.0.1 localhost", "PROCESSES": "1", "REPOSITORY": str(ROOT)}
    arguments = [str(run_config), "steps=8"]
    told = finish(script("multi_node_ssh.sh", *arguments, f"output_dir={tmp_path / 'ssh'}", **(real | hosts)))
    assert "ddp engine, 2 process(es) on cpu" in told
    same_curve(losses(tmp_path / "ssh"), reference(8), 8)
    told = finish(script("single_node.sh", *arguments, f"output_dir={tmp_path / 'pod'}", **(real | {"PROCESSES": "2"})))
    assert "ddp engine, 2 process(es) on cpu" in told
    same_curve(losses(tmp_path / "pod"), reference(8), 8)
