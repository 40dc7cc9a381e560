"""Processes that share the tokens of a sample say and learn what one process does."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.unit.models.test_kv_cache import BODIES, C, V, forced, window
from wam_video.errors import ConfigError
from wam_video.models.sequence_parallel import SequenceGroup
from wam_video.models.transformer import WAMTransformer

SETTINGS: dict[str, dict[str, Any]] = {
    "open": {},
    "gated": {"action_coupling": "gated"},
    "blind with an expert": {
        "attention": {"video_sees_actions": False, "actions_see_video": "observed"},
        "expert": {"dim": 24, "ffn_dim": 32},
    },
    "causal": {"attention": {"pattern": "causal", "chunk_frames": 2, "action_history": True}},
}


def network(name: str) -> WAMTransformer:
    torch.manual_seed(0)
    small = dict(num_layers=2, num_attention_heads=4, attention_head_dim=12, ffn_dim=48, text_dim=16, in_channels=C)
    model = WAMTransformer(embodiments=BODIES, num_views=V, **{**small, **SETTINGS[name]})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.train()


def learn(name: str, group: SequenceGroup | None, *, checkpointing: bool) -> dict[str, torch.Tensor]:
    """Return the outputs and the gradients of one call."""
    model = network(name)
    if checkpointing:
        model.enable_gradient_checkpointing()
    if group is not None:
        model.share_sequences(group)
    w = window()
    changes: dict[str, Any] = {}
    if not model.attention.causal:
        state = w["state"][:, :1]
        changes = {"history": None, "state": state, "state_mask": torch.ones_like(state, dtype=torch.bool)}
    made = forced(model, w, view_mask=torch.tensor([[True] * V, [True] * (V - 1) + [False]]), **changes)
    loss = made.video.square().mean() + made.actions.square().mean()
    (loss / (1 if group is None else group.size)).backward()
    gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    return {"video": made.video.detach(), "actions": made.actions.detach()} | gradients


def process(rank: int, size: int, folder: str, names: tuple[str, ...], checkpointing: bool) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=60))
    group = SequenceGroup(dist.group.WORLD)
    for name in names:
        found = learn(name, group, checkpointing=checkpointing)
        for key, value in found.items():
            if key not in ("video", "actions"):
                dist.all_reduce(value)
        torch.save(found, f"{folder}/{name}-{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(("size", "checkpointing"), [(2, True), (4, False)])
def test_sharing_tokens_changes_neither_outputs_nor_the_sum_of_gradients(
    size: int, checkpointing: bool, tmp_path: Path
) -> None:
    names = tuple(SETTINGS)
    mp.start_processes(process, (size, str(tmp_path), names, checkpointing), nprocs=size, start_method="fork")
    for name in names:
        alone = learn(name, None, checkpointing=False)
        for rank in range(size):
            found = torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True)
            assert found.keys() == alone.keys()
            for key, value in alone.items():
                torch.testing.assert_close(found[key], value, atol=2e-5, rtol=1e-4, msg=f"{name}: {key}")


class Three(SequenceGroup):
    def __init__(self) -> None:
        self.size, self.rank = 3, 1


def test_what_can_not_be_shared_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"sequence_parallel is 3, but the network has 4 heads"):
        network("open").share_sequences(Three())
    assert Three().shares(8) == [3, 3, 2]
    assert Three().own(torch.arange(8), 0).tolist() == [3, 4, 5]
