import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.unit.training.fakes import differing, tiny_config, tiny_trainer, weights
from wam_video.errors import CheckpointError
from wam_video.training import state
from wam_video.training.engines import Fragment
from wam_video.training.pieces import AVERAGE, WEIGHT, Pieces, check_shapes, key_of
from wam_video.training.trainer import Trainer


def fragment(start: int, stop: int) -> Fragment:
    return Fragment(name="a.w", start=start, stop=stop)


def pieces_of(folder: Path, *cuts: int) -> Pieces:
    """Write ten numbers, cut up at these places, a file each."""
    for number, (start, stop) in enumerate(zip((0, *cuts), (*cuts, 10), strict=True)):
        tensors = {key_of(fragment(start, stop), WEIGHT): torch.arange(start, stop).float()}
        if not start:
            tensors["a.w/step"] = torch.tensor(3.0)
        save_file(tensors, folder / f"model-{number:05d}.safetensors")
    return Pieces(folder, 2)


@pytest.mark.parametrize("cuts", [(), (5,), (1, 2, 9)])
@pytest.mark.parametrize(("start", "stop"), [(0, 10), (0, 1), (3, 7), (9, 10), (2, 9)])
def test_any_range_is_read_from_however_many_pieces(
    tmp_path: Path, cuts: tuple[int, ...], start: int, stop: int
) -> None:
    pieces = pieces_of(tmp_path, *cuts)
    assert torch.equal(pieces.read(fragment(start, stop), WEIGHT), torch.arange(start, stop).float())
    assert pieces.scalar("a.w", "step") == 3
    assert pieces.table() == {"a.w": ([], ["step"])}


def test_a_hole_is_named(tmp_path: Path) -> None:
    pieces_of(tmp_path, 4, 6)
    (tmp_path / "model-00001.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"nothing for elements 4 to 8 of a\.w/weight"):
        Pieces(tmp_path, 2).read(fragment(2, 8), WEIGHT)
    with pytest.raises(CheckpointError, match=r"elements 0 to 10 of a\.w/ema"):
        Pieces(tmp_path, 2).read(fragment(0, 10), AVERAGE)


def test_another_model_is_refused_by_the_name_that_differs(tmp_path: Path) -> None:
    check_shapes({"a": [2, 3]}, {"a": torch.Size([2, 3])}, tmp_path)
    for own in ({"a": [3, 2]}, {"a": [2, 3], "b": [1]}, {"b": [2, 3]}):
        with pytest.raises(
            CheckpointError, match=f"another model: {'a' if 'a' in own and len(own) == 1 else '[ab]'} differs"
        ):
            check_shapes({"a": [2, 3]}, own, tmp_path)


def as_version_1(trainer: Trainer, folder: Path, engine: str = "ddp") -> None:
    """Write what versions before 2 wrote: whole tensors by name."""
    folder.mkdir()
    module, optimizer = trainer.engine.module, trainer.engine.optimizer
    named = dict(module.named_parameters()) | dict(module.named_buffers())
    entries = {
        f"{name}/{key}": value
        for name, p in module.named_parameters()
        for key, value in optimizer.state.get(p, {}).items()
    }
    averages = trainer.ema.state_dict()
    for stem, tensors in (("model", named), ("ema", averages), ("optimizer", entries)):
        save_file({n: t.detach().clone() for n, t in tensors.items()}, folder / f"{stem}.safetensors")
    rest = {"engine": engine, "num_processes": 1, "step": 2, "next_index": 8, "bad_steps": 0}
    (folder / "state.json").write_text(json.dumps({"version": 1, **rest}))


def test_checkpoints_of_version_1_are_read_to_the_bit(tmp_path: Path) -> None:
    old, new = tiny_trainer(tiny_config(tmp_path / "a", steps=2)), tiny_trainer(tiny_config(tmp_path / "b", seed=1))
    old.run([])
    as_version_1(old, tmp_path / "old")
    assert differing(weights(old), weights(new)) != []
    progress = state.load(tmp_path / "old", new.engine, new.ema)
    assert (progress.step, progress.next_index) == (2, 8)
    assert differing(weights(old), weights(new)) == []
    as_version_1(old, tmp_path / "deepspeed", "deepspeed")
    with pytest.raises(CheckpointError, match="start from its exported weights"):
        state.load(tmp_path / "deepspeed", new.engine, new.ema)
