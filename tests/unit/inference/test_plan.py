"""Operations, memory and latency of a decision."""

import pytest
import torch

from wam_video.errors import ConfigError
from wam_video.flow.modes import POLICY_PATHS
from wam_video.inference.plan import DecisionConfig, decision_layout, plan_decision
from wam_video.models.devices import get_device
from wam_video.models.flops import NetworkShape
from wam_video.models.masks import AttentionConfig
from wam_video.models.transformer import WAMTransformer


def shape_of(**changes: object) -> NetworkShape:
    with torch.device("meta"):
        return NetworkShape.of(WAMTransformer(**{"num_registers": 0, **changes}).config)


def test_a_decision_at_14b_is_the_published_1_9_petaflop() -> None:
    """DreamZero: 16 steps with guidance over 2 new frames of a window of 9, 769 context tokens."""
    shape = shape_of(num_layers=40, num_attention_heads=40, attention_head_dim=128, ffn_dim=13824, text_dim=4096)
    layout = shape.layout(views=1, grid=(9, 44, 80), actions=24)
    config = DecisionConfig(calls=16, context=7, fresh=2, text=769, guidance=True, cached=True, efficiency=1.0)
    plan = plan_decision(shape, layout, 14_288_619_591, config, get_device("h100"))
    assert plan.decision_flops / 1e15 == pytest.approx(1.88, abs=0.01)
    assert plan.call_time.compute_s / 2 == pytest.approx(0.056, abs=0.001)
    assert plan.latency_s == plan.peak_latency_s
    assert plan.weight_bytes == 2 * 14_288_619_591


def test_leaving_the_future_video_out_leaves_only_the_context_frames() -> None:
    layout = shape_of().layout(views=2, grid=(4, 8, 8), actions=8)
    absent = decision_layout(layout, POLICY_PATHS["absent"], 2)
    assert (absent.frames, absent.views, absent.actions) == (2, 2, 8)
    assert decision_layout(layout, POLICY_PATHS["unknown"], 2).frames == 4
    with pytest.raises(ConfigError, match="context is 5"):
        decision_layout(layout, POLICY_PATHS["absent"], 5)


def test_robots_served_at_once_share_the_reading_of_weights() -> None:
    shape = shape_of(num_layers=8, num_attention_heads=16, attention_head_dim=64, ffn_dim=4096)
    layout = shape.layout(views=1, grid=(2, 4, 4), actions=8)
    one, two = (
        plan_decision(shape, layout, 10**8, DecisionConfig(calls=4, batch_size=n, efficiency=1.0), get_device("h100"))
        for n in (1, 2)
    )
    assert one.call_time.bound == "memory"
    assert one.latency_s == two.latency_s
    assert two.call_time.compute_s == pytest.approx(2 * one.call_time.compute_s)


def test_new_frames_are_frames_of_the_context_in_a_cache() -> None:
    for wrong in ({"fresh": 2, "context": 1, "cached": True}, {"fresh": 1, "context": 2}, {"fresh": 0, "cached": True}):
        with pytest.raises(ConfigError, match="fresh is"):
            DecisionConfig(**wrong)


def test_a_decision_with_an_expert_is_one_trunk_pass_and_its_steps() -> None:
    """FastWAM: Wan2.2 5B, an expert of 1024 beside 3072, 32 actions, ten steps."""
    rule = {"video_sees_actions": False, "actions_see_video": "observed"}
    sizes = dict(num_layers=30, num_attention_heads=24, attention_head_dim=128, ffn_dim=14336, text_dim=4096)
    shape = shape_of(expert={"dim": 1024, "ffn_dim": 4096}, attention=rule, in_channels=48, **sizes)
    attention = AttentionConfig.read(rule)
    layout = decision_layout(shape.layout(views=1, grid=(9, 14, 28), actions=32), POLICY_PATHS["unknown"], 1, attention)
    config = DecisionConfig(calls=10, text=512).for_network(attention)
    plan = plan_decision(shape, layout, 6_020_000_000, config, get_device("h100"))
    assert plan.expert_steps and config.cached and layout.frames == 1
    assert (plan.trunk_queries, plan.queries, plan.keys) == (98, 33, 131)
    assert plan.decision_flops == plan.prefill_flops + 10 * plan.call_flops
    assert plan.call_flops < plan.prefill_flops / 10
    one_tower = plan_decision(
        shape_of(attention=rule, in_channels=48, **sizes), layout, 5_000_000_000, config, get_device("h100")
    )
    assert one_tower.prefill_flops < plan.prefill_flops and not one_tower.expert_steps
    assert one_tower.call_flops > 3 * plan.call_flops  # its actions go through the trunk's layers
    assert plan.call_time.memory_s < one_tower.call_time.memory_s / 3
