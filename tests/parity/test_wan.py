"""Against diffusers' Wan, with random weights that diffusers itself saves: the same numbers, and none of them lost on the way."""

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from wam_video.errors import CheckpointError, ConfigError
from wam_video.models.transformer import WAMTransformer

SHAPE = dict(num_attention_heads=2, attention_head_dim=24, ffn_dim=64, freq_dim=32, text_dim=16, num_layers=2)
KINDS = {
    "t2v": dict(in_channels=16, out_channels=16),
    "i2v": dict(in_channels=36, out_channels=16, image_dim=20, added_kv_proj_dim=48),
    "ti2v": dict(in_channels=48, out_channels=48),
}
SIZES = [(2, 5, 6, 10), (2, 3, 5, 7), (1, 1, 2, 2)]
"""Batch, latent frames, rows, columns; odd ones too: both cut the rest of a patch off."""
BODIES = [{"name": "arm", "action_dim": 3, "state_dim": 2}, {"name": "hand", "action_dim": 5, "state_dim": 0}]
WEIGHTS = "diffusion_pytorch_model.safetensors"


def wan(kind: str) -> WanTransformer3DModel:
    torch.manual_seed(3)
    model = WanTransformer3DModel(rope_max_seq_len=32, **SHAPE, **KINDS[kind]).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def repos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind; that of `i2v` is cut into shards."""
    root = tmp_path_factory.mktemp("wan")
    for kind in KINDS:
        wan(kind).save_pretrained(root / kind / "transformer", max_shard_size="60KB" if kind == "i2v" else "1GB")
    assert len(list((root / "i2v" / "transformer").glob("*.safetensors"))) > 3
    return {kind: root / kind for kind in KINDS}


def sample(kind: str, size: tuple[int, int, int, int], seed: int = 1) -> dict[str, Any]:
    """Inputs of diffusers' network: latents (with the condition behind them), text and image."""
    g = torch.Generator().manual_seed(seed)
    image = KINDS[kind].get("image_dim")
    return dict(
        hidden_states=torch.randn(size[0], KINDS[kind]["in_channels"], *size[1:], generator=g),
        encoder_hidden_states=torch.randn(size[0], 512 if image else 7, 16, generator=g),
        encoder_hidden_states_image=torch.randn(size[0], 9, image, generator=g) if image else None,
    )


def run(model: WAMTransformer, inputs: dict[str, Any], t: torch.Tensor, **more: Any) -> Any:
    """Our network on the inputs of diffusers'; `t` is `b t` in [0, 1]."""
    latents = inputs["hidden_states"][:, None]
    channels = model.config.in_channels
    condition = latents[:, :, channels:] if model.config.condition_channels else None
    batch, frames = latents.shape[0], latents.shape[3]
    times = torch.arange(frames)[None].expand(batch, -1) / model.config.rope_rate
    return model(
        latents=latents[:, :, :channels],
        condition=condition,
        t_video=t,
        latent_times=times,
        text_embeds=inputs["encoder_hidden_states"],
        image_embeds=inputs["encoder_hidden_states_image"],
        **dict(embodiment=torch.zeros(batch, dtype=torch.long)) | more,
    )


def with_actions(batch: int, seed: int = 5) -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)
    return dict(
        actions=torch.randn(batch, 6, 5, generator=g),
        t_action=torch.rand(batch, 6, generator=g),
        action_times=torch.arange(6)[None].expand(batch, -1) * 0.1,
        state=torch.randn(batch, 2, generator=g),
        state_mask=torch.ones(batch, 2, dtype=torch.bool),
    )


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clock", ["sample", "token"])
def test_equals_diffusers(kind: str, size: tuple, clock: str, repos: dict[str, Path]) -> None:
    ours, inputs = WAMTransformer.from_wan(repos[kind], embodiments=BODIES), sample(kind, size)
    batch, frames, height, width = size
    g = torch.Generator().manual_seed(2)
    if clock == "sample":
        t = torch.rand(batch, 1, generator=g).expand(-1, frames)
        timestep = t[:, 0] * 1000
    else:  # Wan2.2 TI2V: a clock a token, 0 on the first frame
        t = torch.rand(batch, frames, generator=g)
        t[:, 0] = 0
        timestep = (t * 1000).repeat_interleave((height // 2) * (width // 2), 1)
    reference = wan(kind)(timestep=timestep, return_dict=False, **inputs)[0]
    out = run(ours, inputs, t).video[:, 0]
    assert out.shape == reference.shape
    assert (out - reference).abs().max() <= 1e-5
    moved = run(ours, inputs, (t + 0.3) % 1).video[:, 0]
    assert (moved - reference).abs().max() > 1e-3  # the control: the clock is read


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_actions_state_and_registers_leave_video_unchanged_to_the_bit(kind: str, repos: dict[str, Path]) -> None:
    ours = WAMTransformer.from_wan(repos[kind], embodiments=BODIES, num_registers=4)
    for name in ("action_embedder.weight", "no_state", "action_proj_out.weight"):
        torch.nn.init.normal_(ours.get_parameter(name))
    for size in ((2, 5, 6, 10), (1, 3, 4, 6)):
        inputs, t = sample(kind, size), torch.rand(size[0], size[1])
        alone, joint = run(ours, inputs, t), run(ours, inputs, t, **with_actions(size[0]))
        assert torch.equal(alone.video, joint.video)
        other = run(ours, inputs, t, **with_actions(size[0], seed=6))
        assert torch.equal(alone.video, other.video) and not torch.equal(joint.actions, other.actions)
    for block in ours.blocks:
        block.attn1.side_gate.fill_(0.1)
    opened = run(ours, inputs, t, **with_actions(size[0]))
    assert not torch.equal(alone.video, opened.video)  # the control


def test_the_gate_learns_at_once_and_actions_read_the_video(repos: dict[str, Path]) -> None:
    ours = WAMTransformer.from_wan(repos["t2v"], embodiments=BODIES)
    inputs, t = sample("t2v", SIZES[0]), torch.rand(2, 5)
    torch.nn.init.normal_(ours.action_proj_out.weight)
    out = run(ours, inputs, t, **with_actions(2))
    (out.video.square().mean() + out.actions.square().mean()).backward()
    assert all(parameter.grad.abs().sum() > 0 for name, parameter in ours.named_parameters() if name != "no_state")
    assert ours.blocks[0].attn1.side_gate.grad.ne(0).all()
    moved = inputs | {"hidden_states": inputs["hidden_states"] + 0.5}
    assert not torch.allclose(run(ours, moved, t, **with_actions(2)).actions, out.actions)


@torch.no_grad()
def test_absent_views_stay_unseen_behind_the_gate(repos: dict[str, Path]) -> None:
    ours = WAMTransformer.from_wan(repos["t2v"], embodiments=BODIES, num_views=2)
    inputs, t = sample("t2v", SIZES[0]), torch.rand(2, 5)
    torch.nn.init.normal_(ours.action_proj_out.weight)
    latents = inputs["hidden_states"][:, None].expand(-1, 2, -1, -1, -1, -1).clone()
    values = dict(
        t_video=t, latent_times=torch.arange(5)[None].expand(2, -1) / 4.0, text_embeds=inputs["encoder_hidden_states"],
        embodiment=torch.zeros(2, dtype=torch.long), view_mask=torch.tensor([[True, False], [True, True]]),
    )  # fmt: skip
    values |= with_actions(2)
    one = ours(latents=latents, **values)
    latents[0, 1] += 1
    two = ours(latents=latents, **values)
    assert torch.equal(one.actions, two.actions) and torch.equal(one.video[0, 0], two.video[0, 0])
    latents[1, 1] += 1
    three = ours(latents=latents, **values)
    assert not torch.equal(one.actions[1], three.actions[1]) and not torch.equal(one.video[1, 0], three.video[1, 0])


def test_new_tensors_are_initialised_as_documented(repos: dict[str, Path], tmp_path: Path) -> None:
    g = torch.Generator()
    model = WAMTransformer.from_wan(
        repos["i2v"], embodiments=BODIES, num_views=2, num_registers=64, generator=g.manual_seed(1)
    )
    assert not any(value.is_meta for value in [*model.parameters(), *model.buffers()])
    zero = {name for name, value in model.named_parameters() if not value.any()}
    assert zero >= {"no_state", "view_embedding", "blocks.0.attn1.side_gate", "action_proj_out.weight"}
    assert model.action_embedder.weight.any() and abs(float(model.registers.detach().std()) * 48**0.5 - 1) < 0.1
    fresh = WAMTransformer(**model.config)
    for name, buffer in fresh.named_buffers():
        assert torch.equal(buffer, model.get_buffer(name)), name
    again = WAMTransformer.from_wan(
        repos["i2v"], embodiments=BODIES, num_views=2, num_registers=64, generator=g.manual_seed(1)
    )
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    model.save_pretrained(tmp_path)
    loaded = WAMTransformer.from_pretrained(tmp_path)
    assert {n: p.sum() for n, p in loaded.state_dict().items()} == {n: p.sum() for n, p in model.state_dict().items()}


def test_config_follows_the_folder(repos: dict[str, Path]) -> None:
    i2v, ti2v = (WAMTransformer.from_wan(repos[kind]).config for kind in ("i2v", "ti2v"))
    assert (i2v.in_channels, i2v.condition_channels, i2v.out_channels, i2v.image_dim) == (16, 20, 16, 20)
    assert (i2v.rope_rate, ti2v.rope_rate, i2v.action_coupling) == (4.0, 6.0, "gated")
    assert WAMTransformer.from_wan(repos["t2v"], rope_rate=5.0).config.rope_rate == 5.0
    assert WAMTransformer.from_wan(repos["t2v"], num_layers=2, patch_size=(1, 2, 2)).config.num_layers == 2
    assert WAMTransformer.from_wan(repos["t2v"] / "transformer", subfolder=None).config.in_channels == 16


@torch.no_grad()
def test_half_precision_keeps_what_must_stay_in_float32(repos: dict[str, Path]) -> None:
    ours = WAMTransformer.from_wan(repos["t2v"], embodiments=BODIES, torch_dtype=torch.bfloat16)
    theirs = WanTransformer3DModel.from_pretrained(repos["t2v"] / "transformer", torch_dtype=torch.bfloat16)
    for name, parameter in theirs.named_parameters():
        assert ours.get_parameter(name).dtype == parameter.dtype, name
    assert ours.action_embedder.weight.dtype == ours.registers.dtype == torch.bfloat16
    inputs = {k: None if v is None else v.bfloat16() for k, v in sample("t2v", SIZES[0]).items()}
    t = torch.rand(2, 1).expand(-1, 5)
    out = run(ours, inputs, t).video[:, 0].float()
    reference = theirs(timestep=t[:, 0] * 1000, return_dict=False, **inputs)[0].float()
    assert (out - reference).abs().max() < 0.05 * reference.abs().max()


class PeakBytes(TorchDispatchMode):
    """Follows how many bytes of CPU storage the operations inside have made and not yet freed."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(value, torch.Tensor) and not value.is_meta:
                storage = value.untyped_storage()
                key = storage.data_ptr()
                if storage.nbytes() and key not in self.alive:
                    self.alive[key] = storage.nbytes()
                    weakref.finalize(storage, self.alive.pop, key, None)
        self.peak = max(self.peak, sum(self.alive.values()))
        return out


def test_there_are_never_two_copies_in_memory(repos: dict[str, Path]) -> None:
    with PeakBytes() as naive:
        copies = [{k: v.clone() for k, v in wan("i2v").state_dict().items()} for _ in range(2)]
    with PeakBytes() as memory:
        model = WAMTransformer.from_wan(repos["i2v"], embodiments=BODIES)
    sizes = [value.nbytes for value in model.parameters()]
    assert naive.peak >= 2 * sum(v.nbytes for v in copies[0].values())  # the measure sees copies
    assert sum(sizes) * 0.9 <= memory.peak <= sum(sizes) + 2 * max(sizes)


def edit_config(**changes: Any) -> Any:
    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def edit_weights(change: Any) -> Any:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (edit_weights(lambda t: t.pop("blocks.1.attn2.to_q.bias")), r"lacks blocks\.1\.attn2\.to_q\.bias"),
        (edit_weights(lambda t: t.update({"vace.x": torch.zeros(1)})), r"has beside Wan's vace\.x"),
        (edit_weights(lambda t: t.update({"registers": torch.zeros(4, 48)})), "has beside Wan's registers"),
        (
            edit_weights(lambda t: t.update({"proj_out.bias": torch.zeros(3)})),
            r"proj_out\.bias \(3,\) instead of \(64,\)",
        ),
        (edit_config(_class_name="FluxTransformer2DModel"), "FluxTransformer2DModel.*allowed: 'WanTransformer3DModel'"),
        (edit_config(qk_norm="layer_norm"), "qk_norm 'layer_norm'; allowed: 'rms_norm_across_heads'"),
        (edit_config(pos_embed_seq_len=514), "pos_embed_seq_len 514"),
        (edit_config(vace_layers=[0, 1]), "'vace_layers', which is unknown"),
        (edit_config(num_layers=3), r"lacks blocks\.2\..* and \d+ more"),
        (edit_config(in_channels=8), "at least as many in as out"),
        (lambda folder: (folder / WEIGHTS).unlink(), f"{WEIGHTS} can't be read"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json can't be read"),
        (lambda folder: (folder / f"{WEIGHTS}.index.json").write_text('{"weight_map": {"a": "../x"}}'), "outside its"),
    ],
)
def test_a_folder_that_does_not_fit_is_named(spoil: Any, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "transformer"
    wan("t2v").save_pretrained(folder)
    spoil(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        WAMTransformer.from_wan(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_tensor_that_no_code_uses_is_passed_over(tmp_path: Path) -> None:
    wan("i2v").save_pretrained(tmp_path / "transformer")
    edit_weights(lambda t: t.update({"blocks.0.attn2.norm_added_q.weight": torch.ones(48)}))(tmp_path / "transformer")
    assert "blocks.0.attn2.norm_added_q.weight" not in WAMTransformer.from_wan(tmp_path).state_dict()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 1}, "num_layers is 1; the Wan checkpoint has 2"),
        ({"num_register": 1}, "Did you mean 'num_registers'"),
        ({"video_prediction": "sample"}, "video_prediction is 'sample'"),
        ({"residual_video": True}, "residual_video is True"),
        ({"action_coupling": "half"}, "action_coupling is 'half'; allowed: full, gated"),
    ],
)
def test_options_that_the_checkpoint_settles_are_refused(options: dict, message: str, repos: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=message):
        WAMTransformer.from_wan(repos["t2v"], **options)


def test_no_folder_and_no_network_is_one_line() -> None:
    with pytest.raises(CheckpointError, match="'nobody/no-such-wan' is no folder here and can't be fetched"):
        WAMTransformer.from_wan("nobody/no-such-wan")


@torch.no_grad()
def test_a_condition_that_is_missing_or_too_much_is_refused(repos: dict[str, Path]) -> None:
    ours, inputs, t = WAMTransformer.from_wan(repos["i2v"]), sample("i2v", SIZES[0]), torch.rand(2, 5)
    with pytest.raises(ConfigError, match="image_embeds is 0 wide; this network reads 20"):
        run(ours, inputs | {"encoder_hidden_states_image": None}, t)
    with pytest.raises(ConfigError, match="condition has 19 channels; this network reads 20"):
        run(ours, inputs | {"hidden_states": inputs["hidden_states"][:, :35]}, t)
