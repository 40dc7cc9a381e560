"""Counts on paper against what they count: the meta model's parameters, torch's counter, pairs counted one by one."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from wam_video.errors import ConfigError
from wam_video.models.chunks import History, chunk_ids
from wam_video.models.flops import (
    EXPERT,
    NetworkShape,
    cache_bytes,
    cached_step,
    count_parameters,
    forward_flops,
    prefill,
    teacher_forced,
    whole,
)
from wam_video.models.masks import AttentionConfig, Modality, TokenMeta, dense_mask, join_meta
from wam_video.models.tokens import TokenLayout, side_meta, video_meta
from wam_video.models.transformer import WAMTransformer

BODIES = [{"name": "arm", "action_dim": 7, "state_dim": 9}, {"name": "hand", "action_dim": 3, "state_dim": 0}]
FASTWAM = {"attention": {"video_sees_actions": False, "actions_see_video": "observed"}}
BLIND = {"attention": {"video_sees_actions": False}}
IMAGE = 11
"""Image tokens of a network with an image context."""
WAN_14B = dict(
    num_layers=40, num_attention_heads=40, attention_head_dim=128, ffn_dim=13824, text_dim=4096, num_registers=0
)


def network(**changes: object) -> WAMTransformer:
    with torch.device("meta"):
        return WAMTransformer(**{"embodiments": BODIES, "num_views": 2, "text_dim": 48, **changes})


def counted(
    model: WAMTransformer, *, views: int, grid: tuple[int, int, int], actions: int, text: int, state: bool
) -> int:
    """Operations of a forward on the meta device; attention is then matrix products, which the counter knows."""
    frames = grid[0]
    with torch.device("meta"):
        inputs = dict(
            latents=torch.empty(1, views, model.config.in_channels, *grid),
            t_video=torch.empty(1, frames),
            latent_times=torch.empty(1, frames),
            text_embeds=torch.empty(1, text, model.config.text_dim),
            embodiment=torch.zeros(1, dtype=torch.long),
        )
        if actions:
            times = torch.empty(1, actions)
            inputs |= dict(actions=torch.empty(1, actions, 7), t_action=times, action_times=times)
        if model.config.image_dim:
            inputs |= dict(image_embeds=torch.empty(1, IMAGE, model.config.image_dim))
        if model.config.condition_channels:
            inputs |= dict(condition=torch.empty(1, views, model.config.condition_channels, *grid))
        if state:
            inputs |= dict(state=torch.empty(1, 9), state_mask=torch.ones(1, 9, dtype=torch.bool))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("changes", "views", "grid", "actions", "text"),
    [
        ({}, 1, (3, 8, 8), 8, 16),
        ({}, 2, (2, 4, 6), 0, 16),
        ({"input_octaves": 3, "num_registers": 0}, 1, (2, 4, 4), 24, 5),
        ({"patch_size": (1, 1, 1), "in_channels": 48, "out_channels": 16, "ffn_dim": 96}, 2, (3, 4, 4), 5, 200),
        ({"action_coupling": "gated"}, 1, (3, 6, 6), 9, 20),
        ({"expert": {"dim": 40, "ffn_dim": 72}}, 2, (3, 6, 6), 9, 20),
        ({"expert": {"dim": 24, "ffn_dim": 72}, **FASTWAM, "action_embedding": "mlp_time"}, 1, (4, 4, 4), 16, 30),
        (
            {"expert": {"dim": 64, "ffn_dim": 20, "cross_attention": False}, **BLIND, "input_octaves": 1},
            1,
            (3, 4, 8),
            7,
            33,
        ),
        ({"expert": {"dim": 32, "ffn_dim": 64}, "image_dim": 80, "added_kv_proj_dim": 128}, 1, (3, 4, 8), 7, 33),
        ({"condition_channels": 20, "image_dim": 80, "added_kv_proj_dim": 128}, 1, (3, 4, 8), 7, 33),
        ({"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 96, "freq_dim": 64}, 1, (5, 6, 10), 3, 77),
    ],
)
@pytest.mark.parametrize("state", [True, False])
def test_forward_operations_are_those_of_the_counter(
    changes: dict, views: int, grid: tuple[int, int, int], actions: int, text: int, state: bool
) -> None:
    model = network(**changes)
    shape = NetworkShape.of(model.config)
    call = whole(shape.layout(views=views, grid=grid, actions=actions), text, IMAGE if shape.image_dim else 0)
    call = type(call)(**{**vars(call), "state": state})
    real = counted(model, views=views, grid=grid, actions=actions, text=text, state=state)
    assert forward_flops(shape, call).total == pytest.approx(real, rel=1e-3)


def test_the_parts_add_up_to_the_model_and_name_every_parameter() -> None:
    model = network(input_octaves=2)
    counts = count_parameters(model)
    assert sum(counts.values()) == sum(p.numel() for p in model.parameters())
    assert "other" not in counts
    attention = 4 * (128 * 128 + 128) + 2 * 128
    assert counts["self-attention"] == 4 * attention
    assert counts["feed-forward"] == 4 * (2 * 128 * 512 + 512 + 128)


def test_the_14b_shape_costs_what_was_published_for_it() -> None:
    """DreamZero's geometry: 880 tokens a frame, window of 9 frames, 2 of them and 25 tokens computed; 769 context tokens."""
    shape = NetworkShape.of(network(num_views=1, **WAN_14B).config)
    layout = shape.layout(views=1, grid=(9, 44, 80), actions=24)
    call = cached_step(layout, 7, 769)
    flops = forward_flops(shape, call)
    assert (call.queries, call.queries + call.past) == (1785, 7945)
    assert flops.total / 1e12 == pytest.approx(55.4, abs=0.05)
    assert flops.linear / 1e12 == pytest.approx(42.7, abs=0.05)
    assert flops.self_attention / 1e12 == pytest.approx(11.6, abs=0.05)
    assert cache_bytes(shape, tokens=7920, context=0) == 7920 * 819_200


def test_a_cached_step_and_its_prefill_compute_every_token_once() -> None:
    shape = NetworkShape.of(network().config)
    layout = shape.layout(views=2, grid=(5, 4, 6), actions=6)
    full, first, step = whole(layout, 9), prefill(layout, 3, 9), cached_step(layout, 3, 9)
    assert first.queries + step.queries == full.queries
    both = forward_flops(shape, first).linear + forward_flops(shape, step).linear
    assert both == forward_flops(shape, full).linear
    later = prefill(layout, 3, 9, fresh=1)
    assert (later.queries, later.past) == (layout.per_frame, 2 * layout.per_frame)


@pytest.mark.parametrize(("frames", "chunk"), [(5, 2), (9, 2), (4, 3), (4, 1)])
def test_the_pairs_of_a_stream_are_the_visible_ones(frames: int, chunk: int) -> None:
    shape = NetworkShape.of(network().config)
    layout = shape.layout(views=1, grid=(frames, 2, 4), actions=3)
    call = teacher_forced(layout, chunk, 4)
    extra = layout.num_tokens - layout.num_video
    chunks = (frames - 1) // chunk
    clean = [0] * layout.per_frame + [i + 1 for i in range(chunks - 1) for _ in range(chunk * layout.per_frame)]
    noisy = [i + 1 for i in range(chunks) for _ in range(chunk * layout.per_frame + extra)]
    pairs = sum(key <= query for query in clean for key in clean)
    pairs += sum(key < query for query in noisy for key in clean)
    pairs += sum(key == query for query in noisy for key in noisy)
    assert call.queries == len(clean) + len(noisy)
    assert call.attended == pairs
    with pytest.raises(ConfigError, match="chunks of"):
        teacher_forced(layout, frames, 4)


def test_latents_that_fill_no_whole_patch_are_refused() -> None:
    shape = NetworkShape.of(network().config)
    with pytest.raises(ConfigError, match="latent grid"):
        shape.layout(views=1, grid=(3, 5, 4), actions=0)


RULES = [
    {},
    {"state_sees": "self", "chunk_frames": 2},
    {"video_sees_actions": False, "actions_see_video": "observed"},
    {"action_history": True, "window": 1, "sink_chunks": 1},
]


def causal_inputs(model: WAMTransformer, frames: int, actions: int, text: int) -> dict[str, object]:
    """A window of chunks after one context frame, on the meta device."""
    size = model.attention.chunk_frames
    chunks = (frames - 1) // size
    with torch.device("meta"):
        times, clocks = torch.empty(1, chunks * actions), torch.empty(1, frames)
        latents, given = torch.empty(1, 1, 16, frames, 4, 6), frames - size
        keeps, past = model.attention.action_history, (chunks - 1) * actions
        history = History(
            latents=latents[:, :, :, 1:given],
            t_video=clocks[:, 1:given],
            times=clocks[:, 1:given],
            first=1,
            actions=torch.empty(1, past, 7) if keeps else None,
            t_action=times[:, :past] if keeps else None,
        )
        return dict(
            latents=latents,
            t_video=clocks,
            latent_times=clocks,
            text_embeds=torch.empty(1, text, 48),
            embodiment=torch.zeros(1, dtype=torch.long),
            actions=torch.empty(1, chunks * actions, 7),
            t_action=times,
            action_times=times,
            state=torch.empty(1, chunks, 9),
            state_mask=torch.ones(1, chunks, 9, dtype=torch.bool),
            history=history,
        )


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("options", [{}, {"action_embedding": "mlp_time", "embodiment_hidden_dim": 24}])
def test_a_teacher_forced_call_is_what_the_counter_counts(rule: dict[str, object], options: dict[str, object]) -> None:
    attention = {"pattern": "causal", "chunk_frames": 1} | rule
    model = network(attention=attention, num_views=1, num_layers=2, **options)
    inputs = causal_inputs(model, frames=5, actions=6, text=12)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs)
    shape = NetworkShape.of(model.config)
    layout = shape.layout(views=1, grid=(5, 4, 6), actions=6)
    call = teacher_forced(layout, model.attention.chunk_frames, 12, rule=model.attention)
    everything = replace(call, pairs=None)  # what is invisible is computed too without a block mask
    assert forward_flops(shape, everything).total == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert call.attended < everything.attended


def test_cached_calls_are_what_the_counter_counts() -> None:
    model = network(attention={"pattern": "causal", "chunk_frames": 2}, num_views=1, num_layers=2)
    shape = NetworkShape.of(model.config)
    layout = shape.layout(views=1, grid=(3, 4, 6), actions=6)
    with torch.device("meta"):
        frames = dict(latents=torch.empty(1, 1, 16, 1, 4, 6), t_video=torch.empty(1, 1), latent_times=torch.empty(1, 1))
        body = torch.zeros(1, dtype=torch.long)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            cache = model.new_cache(
                text_embeds=torch.empty(1, 12, 48), latent_shape=(1, 16, 4, 6), num_context=1, max_chunks=1
            )
            cache = model.observe(cache, embodiment=body, **frames)
        assert forward_flops(shape, prefill(layout, 1, 12)).total == pytest.approx(counter.get_total_flops(), rel=0.01)
        two = dict(latents=torch.empty(1, 1, 16, 2, 4, 6), t_video=torch.empty(1, 2), latent_times=torch.empty(1, 2))
        times = torch.empty(1, 6)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(
                **two,
                embodiment=body,
                actions=torch.empty(1, 6, 7),
                t_action=times,
                action_times=times,
                state=torch.empty(1, 9),
                state_mask=torch.ones(1, 9, dtype=torch.bool),
                num_context=0,
                cache=cache,
            )
    assert forward_flops(shape, cached_step(layout, 1, 12)).total == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("reads", [True, False])
def test_a_policy_call_is_a_pass_of_the_trunk_and_steps_of_the_expert(reads: bool) -> None:
    expert = {"dim": 40, "ffn_dim": 72, "cross_attention": reads}
    model = network(num_views=1, num_layers=2, expert=expert, **FASTWAM)
    shape = NetworkShape.of(model.config)
    layout = shape.layout(views=1, grid=(2, 4, 6), actions=6)
    with torch.device("meta"):
        body, times = torch.zeros(1, dtype=torch.long), torch.empty(1, 6)
        with FlopCounterMode(display=False) as first, torch.no_grad():
            cache = model.new_cache(
                text_embeds=torch.empty(1, 12, 48), latent_shape=(1, 16, 4, 6), num_context=2, max_chunks=1
            )
            frames = dict(t_video=torch.empty(1, 2), latent_times=torch.empty(1, 2))
            cache = model.observe(cache, embodiment=body, latents=torch.empty(1, 1, 16, 2, 4, 6), **frames)
        none = dict(t_video=torch.empty(1, 0), latent_times=torch.empty(1, 0))
        none |= dict(state=torch.empty(1, 9), state_mask=torch.ones(1, 9, dtype=torch.bool), num_context=0, cache=cache)
        acts = dict(actions=torch.empty(1, 6, 7), t_action=times, action_times=times)
        with FlopCounterMode(display=False) as step, torch.no_grad():
            model(latents=torch.empty(1, 1, 16, 0, 4, 6), embodiment=body, **none, **acts)
    assert forward_flops(shape, prefill(layout, 2, 12)).total == pytest.approx(first.get_total_flops(), rel=0.001)
    planned = forward_flops(shape, cached_step(layout, 2, 12)).total
    assert planned == pytest.approx(step.get_total_flops(), rel=0.001)
    assert planned < forward_flops(shape, whole(layout, 12)).total / 4
    assert count_parameters(model)[EXPERT] == sum(p.numel() for p in model.expert.parameters())
    assert sum(count_parameters(model).values()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("rule", RULES)
def test_the_pairs_of_a_rule_are_those_of_its_mask(rule: dict[str, object]) -> None:
    config = AttentionConfig.read({"pattern": "causal", "chunk_frames": 1} | rule)
    layout = TokenLayout(views=1, frames=5, height=1, width=2, state=1, actions=2, registers=1)
    tokens = _tokens(layout, config)
    mask = dense_mask(tokens, tokens, config)
    call = teacher_forced(layout, config.chunk_frames, 4, rule=config)
    assert call.queries == mask.shape[-1] and call.attended == int(mask.sum())


def _tokens(layout: TokenLayout, config: AttentionConfig) -> TokenMeta:
    """The stream, token by token, as the network has it."""
    ids = chunk_ids(config, frames=5, num_context=1, actions=layout.actions * (4 // config.chunk_frames))
    clean = ids.frames[:, 1 : 5 - config.chunk_frames]
    past = ids.actions[:, : (ids.count - 1) * layout.actions] if config.action_history else ids.actions[:, :0]
    return join_meta(
        [
            video_meta(clean, torch.zeros_like(clean), None, 2, 1),
            video_meta(ids.frames, ids.noisy, None, 2, 1),
            side_meta(ids.chunks, Modality.STATE),
            side_meta(past, Modality.ACTION, noisy=False),
            side_meta(ids.actions, Modality.ACTION),
            side_meta(ids.chunks, Modality.REGISTER),
        ]
    )
