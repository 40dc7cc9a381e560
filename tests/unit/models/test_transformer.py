"""The network: layout, clocks by slot, embodiments, leaks, equality with diffusers' Wan where they overlap."""

from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel

from wam_video.errors import ConfigError
from wam_video.models.transformer import WAMTransformer

B, V, C, T, H, W, TA = 2, 2, 4, 3, 4, 6, 5
BODIES = [{"name": "arm", "action_dim": 3, "state_dim": 2}, {"name": "humanoid", "action_dim": 7, "state_dim": 0}]


def build(**options: Any) -> WAMTransformer:
    torch.manual_seed(0)
    defaults = dict(embodiments=BODIES, num_views=V, in_channels=C, num_layers=2, num_attention_heads=2)
    model = WAMTransformer(**(defaults | dict(attention_head_dim=12, ffn_dim=48, text_dim=16) | options))
    with torch.no_grad():  # nothing may hide behind an output layer that starts at zero
        for parameter in model.parameters():
            parameter.add_(
                0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    return model.eval()


def inputs(**changes: Any) -> dict[str, Any]:
    g = torch.Generator().manual_seed(1)
    values = dict(
        latents=torch.randn(B, V, C, T, H, W, generator=g),
        t_video=torch.rand(B, T, generator=g),
        latent_times=torch.tensor([[-0.2, 0.0, 0.4]]).expand(B, -1),
        text_embeds=torch.randn(B, 6, 16, generator=g),
        embodiment=torch.tensor([0, 1]),
        actions=torch.randn(B, TA, 7, generator=g),
        t_action=torch.rand(B, TA, generator=g),
        action_times=torch.arange(TA)[None].expand(B, -1) * 0.1,
        state=torch.randn(B, 2, generator=g),
        state_mask=torch.tensor([[True, True], [False, False]]),
        num_context=2,
    )
    return values | changes


@torch.no_grad()
def test_shapes_and_padded_dimensions_are_zero() -> None:
    out = build()(**inputs())
    assert out.video.shape == (B, V, C, T, H, W) and out.actions.shape == (B, TA, 7)
    assert out.actions[0, :, 3:].eq(0).all() and out.actions[0, :, :3].ne(0).all() and out.actions[1].ne(0).all()


@torch.no_grad()
def test_padded_dimensions_and_missing_state_are_never_read() -> None:
    model, values = build(), inputs()
    spoiled = values["actions"].clone()
    spoiled[0, :, 3:] = float("nan")
    state = values["state"].clone()
    state[1] = 1e6
    a, b = model(**values), model(**inputs(actions=spoiled, state=state))
    assert torch.equal(a.video, b.video) and torch.equal(a.actions, b.actions)


@torch.no_grad()
@pytest.mark.parametrize("octaves", [0, 3])
def test_octaves_keep_padded_dimensions_out(octaves: int) -> None:
    model, spoiled = build(input_octaves=octaves), inputs()["actions"].clone()
    spoiled[0, :, 3:] = 1e3
    a, b = model(**inputs()), model(**inputs(actions=spoiled))
    assert torch.equal(a.video, b.video) and torch.equal(a.actions, b.actions)
    moved = inputs()["actions"] + 0.25
    assert not torch.equal(model(**inputs(actions=moved)).video, a.video)


@torch.no_grad()
def test_every_input_that_counts_moves_both_outputs() -> None:
    model, base = build(), build()(**inputs())
    g = torch.Generator().manual_seed(2)
    for name in ("latents", "t_video", "text_embeds", "actions", "t_action", "state", "latent_times", "action_times"):
        values = inputs()
        values[name] = values[name] + torch.rand(values[name].shape, generator=g)
        out = model(**values)
        assert not torch.allclose(out.video[0], base.video[0]), name
        assert not torch.allclose(out.actions[0], base.actions[0]), name


@torch.no_grad()
def test_absent_actions_leave_no_tokens() -> None:
    out = build()(**inputs(actions=None))
    assert out.actions is None and out.video.shape == (B, V, C, T, H, W)


@torch.no_grad()
def test_tokens_of_an_absent_view_are_not_seen() -> None:
    model, mask = build(), torch.tensor([[True, False], [True, True]])
    values = inputs(view_mask=mask)
    latents = values["latents"].clone()
    latents[0, 1] = torch.randn(latents[0, 1].shape)
    a, b = model(**values), model(**inputs(view_mask=mask, latents=latents))
    assert torch.equal(a.actions, b.actions) and torch.equal(a.video[0, 0], b.video[0, 0])
    assert not torch.equal(a.video[0, 1], b.video[0, 1])  # the control: its own outputs do move


@torch.no_grad()
def test_per_slot_clocks_equal_the_same_clock_for_all() -> None:
    model, t = build(), torch.tensor([[0.3], [0.8]])
    values = inputs(actions=None, t_video=t.expand(-1, T))
    one = model(**values).video
    for b in range(B):
        alone = {k: v[b : b + 1] if isinstance(v, torch.Tensor) else v for k, v in values.items()}
        torch.testing.assert_close(model(**alone).video[0], one[b], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_adding_an_embodiment_leaves_the_others_alone() -> None:
    small, large = build(), build(embodiments=[*BODIES, {"name": "hand", "action_dim": 7, "state_dim": 2}])
    weights = small.state_dict()
    for name, value in large.state_dict().items():
        own = weights[name]
        large.state_dict()[name][tuple(slice(0, n) for n in own.shape)].copy_(
            own
        ) if own.shape != value.shape else value.copy_(own)
    a, b = small(**inputs()), large(**inputs())
    assert torch.equal(a.video, b.video) and torch.equal(a.actions, b.actions)


@torch.no_grad()
def test_residual_video_starts_as_a_copy_of_the_last_context_frame() -> None:
    torch.manual_seed(0)
    model = WAMTransformer(in_channels=C, num_views=V, text_dim=16, video_prediction="sample", residual_video=True)
    values = inputs(actions=None, state=None, embodiment=torch.zeros(B, dtype=torch.long))
    out = model(**values).video
    assert torch.equal(out, values["latents"][:, :, :, 1:2].expand_as(out))


@pytest.mark.parametrize("coupling", ["full", "gated"])
def test_gradients_reach_every_parameter_and_checkpointing_changes_nothing(coupling: str) -> None:
    model = build(action_coupling=coupling).train()
    grads = []
    for checkpointing in (False, True):
        model.enable_gradient_checkpointing() if checkpointing else model.disable_gradient_checkpointing()
        model.zero_grad()
        out = model(**inputs())
        (out.video.square().mean() + out.actions.square().mean()).backward()
        grads.append({n: p.grad.clone() for n, p in model.named_parameters()})
    for name, grad in grads[0].items():
        assert grad.abs().sum() > 0, name
        torch.testing.assert_close(grad, grads[1][name], msg=name)


@torch.no_grad()
def test_equals_diffusers_wan_when_only_video_is_there() -> None:
    """Blocks, conditioning, rotary positions and output are Wan's: same keys, same numbers (tests/parity has the rest)."""
    torch.manual_seed(3)
    shape = dict(num_attention_heads=2, attention_head_dim=24, ffn_dim=64, freq_dim=32, text_dim=16, num_layers=2)
    wan = WanTransformer3DModel(
        patch_size=(1, 2, 2), in_channels=C, out_channels=C, rope_max_seq_len=32, **shape
    ).eval()
    for name, parameter in wan.named_parameters():
        parameter.add_(0.02 * torch.randn_like(parameter)) if "norm" in name else None
    ours = WAMTransformer(in_channels=C, rope_rate=4.0, action_coupling="gated", **shape).eval()
    missing, unexpected = ours.load_state_dict(wan.state_dict(), strict=False)
    assert not unexpected
    assert {name.split(".")[0] for name in missing if not name.endswith("side_gate")} == {
        "action_embedder", "state_embedder", "no_state", "view_embedding", "registers", "action_proj_out"
    }  # fmt: skip
    latents, text, t = torch.randn(B, C, 5, 4, 6), torch.randn(B, 7, 16), torch.tensor([0.25, 0.875])
    reference = wan(latents, t * 1000, text, return_dict=False)[0]
    out = ours(
        latents=latents[:, None],
        t_video=t[:, None].expand(-1, 5),
        latent_times=torch.arange(5)[None].expand(B, -1) / 4,
        text_embeds=text,
        embodiment=torch.zeros(B, dtype=torch.long),
    ).video[:, 0]
    torch.testing.assert_close(out, reference, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_full_coupling_is_the_gated_one_where_nothing_is_hidden() -> None:
    """An open gate and the softmax over all keys differ; what doesn't pass the gate is the same in both."""
    full, gated = build(), build(action_coupling="gated")
    gated.load_state_dict(full.state_dict(), strict=False)
    a, b = full(**inputs()), gated(**inputs())
    assert not torch.allclose(a.video, b.video)
    for block in (
        *full.blocks[1:],
        *gated.blocks[1:],
    ):  # with one block, actions see the video before the gate touches it
        block.forward = lambda xs, *rest: xs
    torch.testing.assert_close(full(**inputs()).actions, gated(**inputs()).actions)


@pytest.mark.parametrize(
    "options", [{"video_prediction": "v"}, {"residual_video": True}, {"attention_head_dim": 5}, {"image_dim": 8}]
)
def test_impossible_options_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError):
        WAMTransformer(**options)


def test_saved_and_loaded_to_the_bit(tmp_path: Any) -> None:
    model = build()
    model.save_pretrained(tmp_path)
    loaded = WAMTransformer.from_pretrained(tmp_path)
    assert loaded.config == model.config or dict(loaded.config)["embodiments"] == BODIES
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
