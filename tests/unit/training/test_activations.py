from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.unit.training.fakes import MODEL, differing, tiny_config, tiny_trainer, weights
from wam_video.errors import ConfigError
from wam_video.training.activations import compile_blocks
from wam_video.training.trainer import Trainer

DEEP = {**MODEL, "num_layers": 3}
PRODUCTS = ("aten.mm", "aten.addmm", "aten.bmm")


class CountOperators(TorchDispatchMode):
    """Counts what is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func).rsplit(".", 1)[0]] += 1
        return func(*args, **(kwargs or {}))


def one_forward(trainer: Trainer) -> torch.Tensor:
    batch = next(trainer._feed.batches(4, 0, 0, 1))
    sample = trainer.sampler(batch, trainer.engine.device, absent_video=False)
    video, actions = trainer.engine.module(sample)
    return video.square().sum() + actions.square().sum()


def kept_bytes(trainer: Trainer) -> int:
    """Return the memory that a forward pass leaves taken."""
    one_forward(trainer).backward()
    with torch.profiler.profile(profile_memory=True) as profile:
        loss = one_forward(trainer)
    taken = sum(event.self_cpu_memory_usage for event in profile.events())
    loss.backward()
    return taken


def test_what_is_computed_again_changes_no_bit_and_memory_falls_in_this_order(tmp_path: Path) -> None:
    states, taken = {}, {}
    for kind in ("none", "selective", "full"):
        trainer = tiny_trainer(
            tiny_config(tmp_path / kind, gradient_checkpointing=kind, steps=2, grad_accum=2, model=DEEP)
        )
        trainer.run([])
        states[kind] = weights(trainer)
        taken[kind] = kept_bytes(trainer)
    assert differing(states["none"], states["selective"]) == differing(states["none"], states["full"]) == []
    assert taken["full"] < 0.8 * taken["selective"] < 0.8 * 0.8 * taken["none"]


def test_selective_computes_no_matrix_product_or_attention_twice(tmp_path: Path) -> None:
    counts = {}
    for kind in ("none", "selective", "full"):
        trainer = tiny_trainer(tiny_config(tmp_path / kind, gradient_checkpointing=kind, model=DEEP))
        with CountOperators() as counted:
            one_forward(trainer).backward()
        attention = sum(
            n for name, n in counted.counts.items() if "_scaled_dot_product" in name and "backward" not in name
        )
        counts[kind] = sum(counted.counts[name] for name in PRODUCTS), attention, sum(counted.counts.values())
    assert counts["selective"][:2] == counts["none"][:2]
    assert counts["selective"][2] > counts["none"][2]
    assert all(full > none for full, none in zip(counts["full"], counts["none"], strict=True))


def test_booleans_of_before_are_still_understood(tmp_path: Path) -> None:
    kinds: list[Any] = [True, False, "true", "selective"]
    said = [tiny_config(tmp_path, gradient_checkpointing=kind).gradient_checkpointing for kind in kinds]
    assert said == ["full", "none", "full", "selective"]
    with pytest.raises(ConfigError, match="gradient_checkpointing is 'half'"):
        tiny_config(tmp_path, gradient_checkpointing="half")


def test_compiling_and_choosing_what_to_keep_at_once_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="compile is true"):
        tiny_config(tmp_path, gradient_checkpointing="selective", compile=True)


@pytest.mark.compile
@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_compiled_blocks_are_one_graph_each_and_learn_the_same(tmp_path: Path, checkpointing: str) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain, compiled = (
        tiny_trainer(tiny_config(tmp_path / name, steps=3, model=DEEP, gradient_checkpointing=checkpointing))
        for name in ("plain", "compiled")
    )
    compile_blocks(compiled.parts.transformer, backend="aot_eager")  # no machine code, so that it is quick
    for trainer in (plain, compiled):
        trainer.run([])
    assert torch._dynamo.utils.counters["graph_break"] == Counter()  # fullgraph would have raised, too
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(compiled)[name], value, atol=1e-5, rtol=1e-4)


@pytest.mark.compile
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_run_with_compile_takes_a_step_in_machine_code(tmp_path: Path) -> None:
    torch._dynamo.reset()
    losses = []
    for on in (False, True):
        trainer = tiny_trainer(tiny_config(tmp_path / str(on), compile=on, steps=1))
        trainer.run([])
        losses.append(one_forward(trainer).detach())
    torch.testing.assert_close(losses[1], losses[0], atol=1e-4, rtol=1e-4)


def test_a_network_without_blocks_is_not_compiled() -> None:
    with pytest.raises(ConfigError, match="the network is a Linear"):
        compile_blocks(torch.nn.Linear(1, 1))
