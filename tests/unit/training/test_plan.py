"""Memory, traffic and time of training: closed forms, and the bytes that autograd really saves."""

import pytest
import torch

from wam_video.errors import ConfigError
from wam_video.models.devices import get_device
from wam_video.models.flops import NetworkShape, forward_flops, whole
from wam_video.models.transformer import WAMTransformer
from wam_video.training.plan import (
    ShardingConfig,
    StepConfig,
    activation_bytes,
    block_activations,
    plan_training,
    state_memory,
    step_traffic,
    training_flops,
)

P = 1_000_000
BODY = [{"name": "arm", "action_dim": 7, "state_dim": 7}]


def states(strategy: str, gpus: int, **changes: object) -> float:
    """Bytes a parameter on a device for weights, gradients and optimizer."""
    memory = state_memory(P, 0, ShardingConfig(strategy=strategy, gpus=gpus, **changes))
    return (memory.weights + memory.gradients + memory.optimizer) / P


@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero2", "zero3", "fsdp2"])
def test_one_device_holds_sixteen_bytes_a_parameter(strategy: str) -> None:
    assert states(strategy, 1) == 16


def test_each_stage_shards_what_it_says() -> None:
    assert states("ddp", 8) == 16
    assert states("zero1", 8) == 4 + 12 / 8
    assert states("zero2", 8) == 2 + 14 / 8
    assert states("zero3", 8) == states("fsdp2", 8) == 16 / 8
    assert states("fsdp2", 64, hybrid=True) == 16 / 8
    assert states("fsdp2", 64) == 16 / 64


def test_offloaded_states_leave_the_device_and_come_up_on_the_host() -> None:
    kept = state_memory(P, 0, ShardingConfig(strategy="zero3", gpus=4))
    away = state_memory(P, 0, ShardingConfig(strategy="zero3", gpus=4, offload="all"))
    assert away.weights == away.optimizer == 0
    assert away.host == kept.weights + kept.optimizer
    assert kept.total - away.total == away.host


def test_the_average_is_whole_on_every_device_unless_weights_are_sharded() -> None:
    assert state_memory(P, 0, ShardingConfig(strategy="zero2", gpus=8)).average == 4 * P
    assert state_memory(P, 0, ShardingConfig(strategy="zero3", gpus=8)).average == 4 * P / 8


def test_traffic_is_that_of_ring_collectives() -> None:
    def sent(strategy: str, gpus: int, **changes: object) -> tuple[float, float]:
        accum = changes.pop("grad_accum", 1)
        traffic = step_traffic(P, ShardingConfig(strategy=strategy, gpus=gpus, **changes), grad_accum=accum)
        return traffic.node / P, traffic.network / P

    assert sent("ddp", 1) == (0, 0)
    assert sent("ddp", 4) == (2 * 4 * 3 / 4, 0)
    assert sent("ddp", 4, grad_accum=8) == sent("ddp", 4)
    assert sent("zero1", 4) == (4 * 3 / 4, 0)
    assert sent("zero3", 4) == (6 * 3 / 4, 0)
    assert sent("zero3", 4, grad_accum=2) == (12 * 3 / 4, 0)
    assert sent("zero3", 16) == (0, 6 * 15 / 16)
    assert sent("fsdp2", 16, hybrid=True) == (8 * 7 / 8, 2 * 4 / 8 * 1 / 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy": "zero4"}, "Did you mean 'zero"),
        ({"gpus": 0}, "gpus is 0"),
        ({"gpus": 12}, "whole nodes"),
        ({"hybrid": True}, "hybrid is set"),
        ({"offload": "optimizer"}, "strategy is 'ddp'"),
        ({"strategy": "zero2", "offload": "all"}, "offload is 'all'"),
    ],
)
def test_what_no_engine_can_do_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ShardingConfig(**changes)


def saved_bytes(model: WAMTransformer, *, frames: int, actions: int, text: int) -> int:
    """Bytes that autograd keeps for the backward pass under bf16 autocast, but for parameters and their casts."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    shapes = {tuple(p.shape) for p in model.parameters()} | {
        tuple(p.T.shape) for p in model.parameters() if p.ndim == 2
    }
    seen: dict[int, torch.Tensor] = {}  # holds the tensors, so that no address is used twice

    def pack(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in weights and tuple(x.shape) not in shapes:
            seen[x.untyped_storage().data_ptr()] = x
        return x

    times = torch.zeros(1, actions)
    inputs = dict(
        latents=torch.randn(1, 1, 16, frames, 8, 8),
        t_video=torch.rand(1, frames),
        latent_times=torch.zeros(1, frames),
        text_embeds=torch.randn(1, text, 64),
        embodiment=torch.zeros(1, dtype=torch.long),
        actions=torch.randn(1, actions, 7),
        t_action=times,
        action_times=times,
    )
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), torch.autocast("cpu", torch.bfloat16):
        model(**inputs)
    return sum(x.untyped_storage().nbytes() for x in seen.values())


@pytest.mark.parametrize(
    ("options", "frames", "actions", "text", "ffn"),
    [
        ({}, 3, 8, 16, 500),
        ({}, 5, 3, 40, 260),
        ({"action_coupling": "gated"}, 3, 20, 16, 300),
        ({"expert": {"dim": 40, "ffn_dim": 52}}, 3, 18, 16, 300),
        ({"expert": {"dim": 40, "ffn_dim": 52, "cross_attention": False}}, 3, 18, 16, 300),
        ({"expert": {"dim": 28, "ffn_dim": 72}, "attention": {"video_sees_actions": False}}, 5, 25, 30, 300),
    ],
)
def test_activations_are_what_autograd_saves(options: dict, frames: int, actions: int, text: int, ffn: int) -> None:
    torch.manual_seed(0)
    sizes = dict(embodiments=BODY, num_attention_heads=4, attention_head_dim=24, ffn_dim=ffn, **options)
    models = [WAMTransformer(num_layers=layers, **sizes) for layers in (1, 5)]
    shape = NetworkShape.of(models[1].config)
    call = whole(shape.layout(views=1, grid=(frames, 8, 8), actions=actions), text)
    one, five = (saved_bytes(model, frames=frames, actions=actions, text=text) for model in models)
    assert block_activations(shape, call, bf16_weights=False) == pytest.approx((five - one) / 4, rel=0.01)
    planned = activation_bytes(shape, call, batch_size=1, bf16_weights=False, checkpointing=False)
    assert planned == pytest.approx(five, rel=0.05)


def test_checkpointing_costs_a_forward_of_the_blocks_and_saves_their_insides() -> None:
    with torch.device("meta"):
        shape = NetworkShape.of(WAMTransformer(embodiments=BODY, num_layers=12).config)
    call = whole(shape.layout(views=1, grid=(4, 16, 16), actions=8), 16)
    forward = forward_flops(shape, call)
    assert training_flops(shape, call) == 3 * forward.total
    assert training_flops(shape, call, checkpointing=True) == 4 * forward.total - forward.ends
    kept, less = (
        activation_bytes(shape, call, batch_size=2, bf16_weights=False, checkpointing=on) for on in (False, True)
    )
    assert less < kept / 5


def test_a_step_takes_its_work_over_the_peak() -> None:
    with torch.device("meta"):
        shape = NetworkShape.of(WAMTransformer(embodiments=BODY).config)
    call = whole(shape.layout(views=1, grid=(4, 64, 64), actions=8), 16)
    step = StepConfig(batch_size=4, grad_accum=2, efficiency=0.5)
    plan = plan_training(shape, call, {"all": P}, ShardingConfig(gpus=8), step, get_device("h100"))
    assert plan.global_batch_size == 64
    assert plan.time.compute_s == pytest.approx(8 * 3 * forward_flops(shape, call).total / (0.5 * 989.5e12))
    assert plan.time.communication_s == pytest.approx(2 * 4 * P * 7 / 8 / 450e9)
    assert plan.to_dict()["memory"]["total"] == plan.memory.total
