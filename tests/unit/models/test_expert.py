"""The action expert: who sees whom to the bit, one pass of the trunk and then only the expert, weights from the trunk."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel

from wam_video.errors import ConfigError
from wam_video.models.chunks import History
from wam_video.models.expert import ExpertConfig, narrowed
from wam_video.models.kv_cache import KVCache
from wam_video.models.parts import part_of
from wam_video.models.transformer import WAMTransformer

B, V, C, T, H, W, TA, CONTEXT = 2, 2, 4, 4, 4, 6, 4, 2
BODIES = [{"name": "arm", "action_dim": 3, "state_dim": 2}, {"name": "hand", "action_dim": 5, "state_dim": 2}]
EXPERT = {"dim": 10, "ffn_dim": 20}
OPEN, JOINT = {}, {"video_sees_actions": False}
FASTWAM = {"video_sees_actions": False, "actions_see_video": "observed"}
OBSERVED = {"actions_see_video": "observed"}
CAUSAL = {"pattern": "causal", "chunk_frames": 1}


def build(rule: dict[str, Any], **options: Any) -> WAMTransformer:
    torch.manual_seed(0)
    sizes = dict(num_layers=2, num_attention_heads=2, attention_head_dim=12, ffn_dim=48, text_dim=16, num_registers=2)
    sizes |= {"expert": EXPERT, "attention": rule}
    model = WAMTransformer(embodiments=BODIES, num_views=V, in_channels=C, **(sizes | options))
    with torch.no_grad():  # nothing may hide behind an output layer that starts at zero
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def inputs(**changes: Any) -> dict[str, Any]:
    g = torch.Generator().manual_seed(1)
    values = dict(
        latents=torch.randn(B, V, C, T, H, W, generator=g),
        t_video=torch.cat([torch.zeros(B, CONTEXT), torch.rand(B, T - CONTEXT, generator=g)], dim=1),
        latent_times=torch.tensor([[-0.2, 0.0, 0.4, 0.8]]).expand(B, -1),
        text_embeds=torch.randn(B, 6, 16, generator=g),
        embodiment=torch.tensor([0, 1]),
        actions=torch.randn(B, TA, 5, generator=g),
        t_action=torch.rand(B, TA, generator=g),
        action_times=torch.arange(TA)[None].expand(B, -1) * 0.2,
        state=torch.randn(B, 2, generator=g),
        state_mask=torch.ones(B, 2, dtype=torch.bool),
        num_context=CONTEXT,
    )
    return values | changes


def moved(name: str, frames: slice = slice(None)) -> dict[str, Any]:
    """The inputs with one of them perturbed; of latents, only some frames."""
    values = inputs()
    other = values[name].clone()
    where = other[:, :, :, frames] if name == "latents" else other
    where += torch.rand(where.shape, generator=torch.Generator().manual_seed(3))
    return values | {name: other}


PAST, FUTURE = slice(0, CONTEXT), slice(CONTEXT, T)
# What a perturbation of (past video, future video, actions, state) moves of (past video, future video, actions).
SEEN = {
    "open": (OPEN, {"past": "vfa", "future": "vfa", "actions": "vfa", "state": "vfa"}),
    "joint": (JOINT, {"past": "vfa", "future": "vfa", "actions": "a", "state": "a"}),
    "observed": (OBSERVED, {"past": "vfa", "future": "f", "actions": "fa", "state": "fa"}),
    "fastwam": (FASTWAM, {"past": "vfa", "future": "f", "actions": "a", "state": "a"}),
}


@torch.no_grad()
@pytest.mark.parametrize("what", ["past", "future", "actions", "state"])
@pytest.mark.parametrize("options", [{}, {"action_coupling": "gated"}, {"expert": None}], ids=["full", "gated", "one"])
@pytest.mark.parametrize("rule", SEEN)
def test_the_invisible_moves_nothing_and_the_visible_does(rule: str, options: dict[str, Any], what: str) -> None:
    attention, effects = SEEN[rule]
    model = build(attention, **options)
    base = model(**inputs())
    name, frames = {"past": ("latents", PAST), "future": ("latents", FUTURE)}.get(what, (what, slice(None)))
    out = model(**moved(name, frames))
    parts = {"v": (base.video[:, :, :, PAST], out.video[:, :, :, PAST]), "a": (base.actions, out.actions)}
    parts["f"] = base.video[:, :, :, FUTURE], out.video[:, :, :, FUTURE]
    for part, (before, after) in parts.items():
        if part in effects[what]:
            assert not torch.allclose(before, after), part
        else:
            assert torch.equal(before, after), part


@torch.no_grad()
@pytest.mark.parametrize("rule", [CAUSAL, CAUSAL | FASTWAM, CAUSAL | JOINT, CAUSAL | {"action_history": True}])
def test_chunks_leak_nothing_of_later_ones(rule: dict[str, Any]) -> None:
    model, base = build(rule), inputs()
    g = torch.Generator().manual_seed(5)
    keeps = model.attention.action_history
    history = dict(
        latents=torch.randn(B, V, C, 1, H, W, generator=g),
        t_video=torch.zeros(B, 1),
        times=base["latent_times"][:, CONTEXT : CONTEXT + 1],
        first=CONTEXT,
        actions=torch.randn(B, 2, 5, generator=g) if keeps else None,
        t_action=torch.zeros(B, 2) if keeps else None,
    )
    a = model(**base, history=History(**history))
    later = moved("latents", slice(T - 1, T)) | {"actions": base["actions"].clone()}
    later["actions"][:, 2:] += 1
    b = model(**later, history=History(**history))
    assert torch.equal(a.video[:, :, :, :-1], b.video[:, :, :, :-1]) and torch.equal(a.actions[:, :2], b.actions[:, :2])
    assert not torch.allclose(a.actions[:, 2:], b.actions[:, 2:])
    c = model(**base, history=History(**history | {"latents": history["latents"] + 1}))
    assert torch.equal(a.actions[:, :2], c.actions[:, :2]) and not torch.allclose(a.actions[:, 2:], c.actions[:, 2:])


def observe(model: WAMTransformer, values: dict[str, Any]) -> KVCache:
    cache = model.new_cache(
        text_embeds=values["text_embeds"], latent_shape=(V, C, H, W), num_context=CONTEXT, max_chunks=4
    )
    return model.observe(
        cache,
        latents=values["latents"][:, :, :, PAST],
        t_video=values["t_video"][:, PAST],
        latent_times=values["latent_times"][:, PAST],
        embodiment=values["embodiment"],
        view_mask=values.get("view_mask"),
    )


def after(values: dict[str, Any], start: int) -> dict[str, Any]:
    """The inputs of a call with a cache: the frames from `start` on, and what is no video."""
    parts = {"latents": values["latents"][:, :, :, start:], "text_embeds": None, "num_context": 0}
    return values | parts | {name: values[name][:, start:] for name in ("t_video", "latent_times")}


@torch.no_grad()
@pytest.mark.parametrize("view_mask", [None, torch.tensor([[True, False], [True, True]])], ids=["all", "absent"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"expert": EXPERT | {"cross_attention": False}},
        {"expert": None},
        {"action_embedding": "mlp_time", "action_rope": "index", "action_norm_out": False, "num_registers": 0},
        {"image_dim": 12, "added_kv_proj_dim": 24},
    ],
    ids=["prompt", "no_prompt", "one_tower", "own_axes", "image"],
)
@pytest.mark.parametrize("rule", [FASTWAM, OBSERVED])
def test_the_expert_alone_on_cached_frames_is_the_whole_network(
    rule: dict[str, Any], options: dict[str, Any], view_mask: torch.Tensor | None
) -> None:
    model, values = build(rule, **options), inputs(view_mask=view_mask)
    image = {"image_embeds": torch.randn(B, 3, 12)} if "image_dim" in options else {}
    whole = model(**values, **image)
    cache = model.new_cache(
        text_embeds=values["text_embeds"], latent_shape=(V, C, H, W), num_context=CONTEXT, max_chunks=1, **image
    )
    seen = {name: values[name][:, PAST] for name in ("t_video", "latent_times")}
    seen |= {"embodiment": values["embodiment"], "view_mask": view_mask}
    cache = model.observe(cache, latents=values["latents"][:, :, :, PAST], **seen)
    alone = model(**after(values, T), cache=cache)
    assert alone.video is None
    assert (alone.actions - whole.actions).abs().max() <= 1e-6
    rest = model(**after(values, CONTEXT), cache=cache)  # the future imagined on top of the same cache
    assert (rest.actions - whole.actions).abs().max() <= 1e-6
    views = slice(0, 1) if view_mask is not None else slice(None)
    assert (rest.video[:, views] - whole.video[:, views, :, FUTURE]).abs().max() <= 2e-6
    other = observe(model, moved("latents", PAST) | {"view_mask": view_mask}) if not image else cache
    if not image:  # the control: what was observed is read
        assert not torch.allclose(model(**after(values, T), cache=other).actions, whole.actions, atol=1e-3)


@torch.no_grad()
def test_the_trunk_computes_nothing_while_the_expert_iterates() -> None:
    model, values, calls = build(FASTWAM), inputs(), {"trunk": 0, "expert": 0}
    model.blocks[1].ffn.register_forward_hook(lambda *_: calls.update(trunk=calls["trunk"] + 1))
    model.expert.blocks[1].ffn.register_forward_hook(lambda *_: calls.update(expert=calls["expert"] + 1))
    cache = observe(model, values)
    for _ in range(5):
        model(**after(values, T), cache=cache)
    assert calls == {"trunk": 1, "expert": 5}


def test_a_cache_is_refused_where_observed_frames_see_the_others() -> None:
    with pytest.raises(ConfigError, match="actions_see_video 'observed'"):
        observe(build(JOINT), inputs())


@pytest.mark.parametrize("rule", [OPEN, JOINT, FASTWAM, CAUSAL])
@pytest.mark.parametrize("cross_attention", [True, False])
def test_gradients_reach_every_parameter_and_checkpointing_changes_nothing(
    rule: dict[str, Any], cross_attention: bool
) -> None:
    model = build(rule, expert=EXPERT | {"cross_attention": cross_attention}).train()
    grads = []
    for checkpointing in (False, True):
        model.enable_gradient_checkpointing() if checkpointing else model.disable_gradient_checkpointing()
        model.zero_grad()
        out = model(**inputs(state_mask=torch.tensor([[True, True], [False, False]])))
        (out.video.square().mean() + out.actions.square().mean()).backward()
        grads.append({n: p.grad.clone() for n, p in model.named_parameters()})
    for name, grad in grads[0].items():
        assert grad.abs().sum() > 0, name
        torch.testing.assert_close(grad, grads[1][name], msg=name)


@torch.no_grad()
@pytest.mark.parametrize("init", ["random", "interpolate"])
def test_a_saved_network_is_the_same_network(init: str, tmp_path: Path) -> None:
    model = build(FASTWAM, expert=EXPERT | {"init": init})
    model.save_pretrained(tmp_path)
    again = WAMTransformer.from_pretrained(tmp_path)
    a, b = model(**inputs()), again(**inputs())
    assert torch.equal(a.video, b.video) and torch.equal(a.actions, b.actions)
    names = [name for name, _ in again.named_parameters() if part_of(name) == "expert"]
    assert {name.split(".")[0] for name in names} == {"expert"} and "expert.blocks.1.attn1.to_q.weight" in names


def test_the_expert_is_the_trunk_narrowed() -> None:
    torch.manual_seed(1)
    expert = {"dim": 24, "ffn_dim": 48, "init": "interpolate"}
    sizes = dict(num_layers=2, num_attention_heads=4, attention_head_dim=12, ffn_dim=96, text_dim=16)
    model = WAMTransformer(**sizes, expert=expert)
    wide = dict(model.named_parameters())
    assert {n.removeprefix("expert.") for n in wide if n.startswith("expert.")} < set(wide)
    for name, value in model.expert.named_parameters():
        source = wide[name]
        assert torch.isfinite(value).all()
        if value.ndim < 2 or "table" in name or value.shape == source.shape:
            continue
        x = torch.randn(4000, source.shape[1]), torch.randn(4000, value.shape[1])
        spread = [float((x[0] @ source.T).detach().std()), float((x[1] @ value.T).detach().std())]
        assert spread[1] == pytest.approx(spread[0], rel=0.05), name  # the variance of what it puts out is kept
    again = WAMTransformer(**sizes, expert=expert)
    again.load_state_dict(model.state_dict())
    again.expert.reset_parameters(again)
    state = again.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_interpolation_is_linear_along_rows_and_columns() -> None:
    rows = torch.linspace(-1, 1, 9)
    plane = rows[:, None] + 2 * rows[None]
    small = narrowed("to_q.weight", plane, torch.Size((9, 5)))
    fit = torch.linspace(-1, 1, 9)[:, None] + 2 * torch.linspace(-1, 1, 5)[None]
    torch.testing.assert_close(small, fit * (plane.std() / fit.std()) * (9 / 5) ** 0.5)
    six = torch.cat([torch.full((4,), float(k)) for k in range(6)])  # six vectors side by side don't mix
    assert narrowed("time_proj.bias", six, torch.Size((12,))).unique().numel() == 6
    constant = torch.ones(8)
    assert torch.equal(narrowed("norm2.weight", constant, torch.Size((4,))), torch.ones(4))


@torch.no_grad()
@pytest.mark.parametrize("init", ["random", "interpolate"])
def test_a_wan_with_an_expert_keeps_its_video_to_the_bit(init: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    shape = dict(num_attention_heads=2, attention_head_dim=24, ffn_dim=64, freq_dim=32, text_dim=16, num_layers=2)
    WanTransformer3DModel(rope_max_seq_len=32, in_channels=C, out_channels=C, **shape).save_pretrained(
        tmp_path / "transformer"
    )
    options = dict(embodiments=BODIES, num_views=V, expert=EXPERT | {"init": init}, num_registers=2)
    models = [
        WAMTransformer.from_wan(tmp_path, attention=JOINT, generator=torch.Generator().manual_seed(7), **options)
        for _ in range(2)
    ]
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    bare, values = WAMTransformer.from_wan(tmp_path, embodiments=BODIES, num_views=V), inputs()
    alone = {name: values[name] for name in ("latents", "t_video", "latent_times", "text_embeds", "embodiment")}
    torch.nn.init.normal_(models[0].get_parameter("no_state"))
    assert torch.equal(models[0](**values).video, bare(**alone).video)
    gated = WAMTransformer.from_wan(tmp_path, **options)
    assert gated.config.action_coupling == "gated" and torch.equal(gated(**values).video, bare(**alone).video)
    fastwam = WAMTransformer.from_wan(tmp_path, attention=FASTWAM, **options)
    assert torch.equal(fastwam(**values).video, fastwam(**values | {"actions": None}).video)


def test_settings_of_an_expert_are_checked() -> None:
    for wrong, message in (
        ({"dim": 7, "ffn_dim": 8}, "model.expert.dim is 7"),
        ({"ffn_dim": 8}, "neither dim and width"),
        ({"dim": 8, "width": 0.5}, "both dim and width"),
        ({"width": 3}, "model.expert.width is 3"),
        ({"dim": 8, "ffn_dim": 8, "init": "copy"}, "model.expert.init"),
        ({"dim": 8, "ffn_dim": 8, "widht": 3}, "under model.expert."),
    ):
        with pytest.raises(ConfigError, match=message):
            WAMTransformer(expert=wrong)


@pytest.mark.parametrize(("trunk", "dim"), [(3072, 1024), (128, 42), (5120, 1706)])
def test_a_width_is_a_share_of_the_trunks(trunk: int, dim: int) -> None:
    config = ExpertConfig.read({"width": 0.3333}, trunk)
    assert config is not None and (config.dim, config.ffn_dim) == (dim, 4 * dim)


@torch.no_grad()
@pytest.mark.parametrize("rule", [FASTWAM, OBSERVED, CAUSAL | FASTWAM])
def test_block_masks_hide_what_dense_ones_do(rule: dict[str, Any]) -> None:
    model = build(rule)
    dense = model(**inputs())
    model.set_attention_backend("flex")
    try:
        blocks = model(**inputs())
    finally:
        model.set_attention_backend("native")  # diffusers keeps the last choice for all networks
    assert (dense.video - blocks.video).abs().max() <= 1e-5 and (dense.actions - blocks.actions).abs().max() <= 1e-5
