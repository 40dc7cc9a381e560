"""Checkpoints of earlier releases load, to the bit, and their runs go on.

`golden/version1` was written by the commit before `STATE_VERSION` became 2: `tiny_trainer(tiny_config("golden", steps=3))` was run with
`CheckpointCallback(100)`, then, resumed, to step 5 without saving; `step-0000005.safetensors` has its parameters of at most 256 numbers
at that step. A release that raises `STATE_VERSION` adds a folder here in the same way and never touches the others.
"""

import base64
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.unit.training.fakes import differing, tiny_trainer, weights
from wam_video.config import load
from wam_video.training import callbacks as hooks
from wam_video.training.config import TrainConfig
from wam_video.training.trainer import Trainer

GOLDEN = Path(__file__).with_name("golden")


def go_on(folder: Path, steps: int) -> Trainer:
    """Return the trainer of the run in a folder, under the configuration that its first checkpoint holds."""
    saved = json.loads((folder / "checkpoints" / "step-0000003" / "state.json").read_text())["config"]
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(saved | {"steps": steps, "output_dir": str(folder)}))
    return tiny_trainer(load(TrainConfig, [file]))


@pytest.mark.parametrize("version", sorted(path.name for path in GOLDEN.iterdir()))
def test_the_checkpoint_of_an_older_release_loads_to_the_bit_and_goes_on(tmp_path: Path, version: str) -> None:
    shutil.copytree(GOLDEN / version / "checkpoints", tmp_path / "checkpoints")
    old = tmp_path / "checkpoints" / "step-0000003"
    trainer = go_on(tmp_path, 5)
    assert (trainer.progress.step, trainer.progress.next_index) == (3, 12)
    optimizer = {
        tuple(key.rsplit("/", 1)[::-1]): value for key, value in load_file(old / "optimizer.safetensors").items()
    }
    saved = load_file(old / "model.safetensors")
    saved |= {f"ema {name}": value for name, value in load_file(old / "ema.safetensors").items()}
    saved |= {" ".join(key): value for key, value in optimizer.items()}
    loaded = weights(trainer)
    names = saved.keys() - dict(trainer.engine.module.named_buffers()).keys()
    assert len(names) == 5 * len(
        dict(trainer.engine.module.named_parameters())
    )  # with two moments and a count of steps
    assert not differing({name: saved[name] for name in names}, loaded)
    state = json.loads((old / "rng-0.json").read_text())["torch"]
    assert torch.get_rng_state().numpy().tobytes() == base64.b64decode(state)
    trainer.run([hooks.CheckpointCallback(5)])
    for name, value in load_file(GOLDEN / version / "step-0000005.safetensors").items():
        torch.testing.assert_close(weights(trainer)[name], value, atol=1e-6, rtol=0)
    written = json.loads((tmp_path / "checkpoints" / "step-0000005" / "state.json").read_text())
    assert {"config", "code", "data"} < written.keys() and {"wam_video", "torch", "python"} < written["code"].keys()
    assert not differing(weights(go_on(tmp_path, 5)), weights(trainer))
