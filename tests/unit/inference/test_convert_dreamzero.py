"""A released DreamZero checkpoint as a folder of ours: the same numbers, every tensor accounted for, or one line why not."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionModel, UMT5EncoderModel

from tests.parity.test_dreamzero import inputs
from tests.unit.inference.dreamzero_fixture import (
    PARITY,
    RANK,
    TAG,
    lora_weights,
    parity,
    release_weights,
    write_release,
)
from wam_video.cli.command import run
from wam_video.cli.convert import main
from wam_video.inference import convert_dreamzero
from wam_video.inference.pipeline import WAMPipeline
from wam_video.models.transformer import WAMTransformer

pytestmark = pytest.mark.skipif(not PARITY.is_file(), reason=f"no reference tensors at {PARITY}")
ADAPTED = ["blocks.0.self_attn.q", "blocks.1.ffn.2"]


@pytest.fixture(scope="module")
def full() -> dict[str, torch.Tensor]:
    return release_weights()


@pytest.fixture(scope="module")
def release(full: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("hub") / "DreamZero-Toy", full)


@pytest.fixture(scope="module")
def converted(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("ours") / "toy"
    assert run(main, ["dreamzero", str(release), "--output", str(output)]) == 0
    return output


@torch.no_grad()
def test_both_velocities_are_those_of_the_release(converted: Path) -> None:
    sizes, tensors = parity()
    network = WAMTransformer.from_pretrained(converted / "transformer").eval()
    values = inputs(sizes, tensors)
    values["latent_times"] = values["latent_times"] * 0.8  # four frames at 5 a second
    values["history"] = type(values["history"])(**(vars(values["history"]) | {"times": values["history"].times * 0.8}))
    out = network(**values)
    assert out.video is not None and out.actions is not None
    torch.testing.assert_close(out.video[:, 0], tensors["out.video_velocity"], atol=1e-5, rtol=0)
    torch.testing.assert_close(out.actions, tensors["out.action_velocity"], atol=1e-5, rtol=0)


def test_the_folder_loads_and_knows_bodies_and_statistics(converted: Path) -> None:
    pipe = WAMPipeline.from_pretrained(converted)
    spec = pipe.processor.spec(TAG)
    assert (spec.action_dim, spec.state_dim, spec.action_rate, spec.fps) == (5, 7, 15.0, 5.0)
    # metadata.json lists the gripper first; conf.yaml says that the network has the joints first
    assert spec.action_names[0] == "joint.0 relative to the state" and spec.action_names[4] == "grip.0"
    assert spec.state_names[0] == "grip.0"
    stats = pipe.processor.config["stats"][TAG]
    assert stats["actions"]["q01"] == pytest.approx([1.0, 1.1, 1.2, 1.3, 1.0])
    assert len(pipe.processor.config["stats_hash"]) == 64
    window = pipe.processor.window
    assert (window.num_future_frames, window.action_horizon, window.height, window.width) == (32, 96, 352, 640)
    assert pipe.scheduler.config.num_inference_steps == 16 and pipe.transformer.attention.chunk_frames == 2
    assert json.loads((converted / "conversion.json").read_text())["relative_actions"] == ["joint"]


def test_encoders_keep_their_numbers(converted: Path, full: dict[str, torch.Tensor]) -> None:
    text = UMT5EncoderModel.from_pretrained(converted / "text_encoder")
    theirs = full["action_head.text_encoder.blocks.1.ffn.fc1.weight"]
    assert torch.equal(text.encoder.block[1].layer[1].DenseReluDense.wi_1.weight, theirs)
    assert torch.equal(text.encoder.embed_tokens.weight, full["action_head.text_encoder.token_embedding.weight"])
    image = dict(CLIPVisionModel.from_pretrained(converted / "image_encoder").named_parameters())
    rows = full["action_head.image_encoder.model.visual.transformer.1.attn.to_qkv.weight"].chunk(3)
    for part, row in zip("qkv", rows, strict=True):
        (found,) = (value for name, value in image.items() if name.endswith(f"layers.1.self_attn.{part}_proj.weight"))
        assert torch.equal(found, row)
    codec = AutoencoderKLWan.from_pretrained(converted / "vae")
    theirs = full["action_head.vae.model.decoder.upsamples.4.shortcut.weight"]
    assert torch.equal(codec.decoder.up_blocks[1].resnets[0].conv_shortcut.weight, theirs)


@torch.no_grad()
def test_the_folder_acts_from_its_first_frame_and_picture(converted: Path) -> None:
    processor = WAMPipeline.from_pretrained(converted).processor
    window = dict(processor.config["window"]) | {"height": 32, "width": 64, "num_future_frames": 16}
    small = processor.from_config(dict(processor.config) | {"window": window | {"action_horizon": 48}})
    pipe = WAMPipeline.from_pretrained(converted, processor=small)
    assert not pipe.image_processor.do_center_crop, "the whole canvas"
    rng, seen = np.random.default_rng(0), []
    pipe.image_encoder.register_forward_hook(lambda *_: seen.append(1))
    video = rng.integers(0, 256, (1, 1, 32, 64, 3), dtype=np.uint8)
    texts = dict(prompt_embeds=torch.randn(1, 8, 24), negative_prompt_embeds=torch.zeros(1, 8, 24))
    given = dict(state=np.zeros(7, np.float32), generator=0, num_inference_steps=2, **texts)
    out = pipe(mode="policy", video=video, **given).actions
    assert out.shape == (1, 48, 5) and np.isfinite(out).all() and len(seen) == 1
    assert not np.array_equal(out, pipe(mode="policy", video=255 - video, **given).actions)


def test_files_of_weights_may_be_many(
    release: Path, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert_dreamzero, "SHARD_BYTES", 200_000)
    convert_dreamzero.convert(release, tmp_path / "many")
    assert len(list((tmp_path / "many" / "transformer").glob("*.safetensors"))) > 2
    one, many = (WAMTransformer.from_pretrained(f / "transformer").state_dict() for f in (converted, tmp_path / "many"))
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_a_lora_is_added_to_its_base(
    release: Path, converted: Path, full: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    lora = lora_weights(ADAPTED, full)
    run_folder = write_release(tmp_path / "run", lora, pretrained="./checkpoints/DreamZero-Toy/", shards=1)
    assert run(main, ["dreamzero", str(run_folder), "--base", str(release), "--output", str(tmp_path / "out")]) == 0
    base, ours = (WAMTransformer.from_pretrained(f / "transformer").state_dict() for f in (converted, tmp_path / "out"))
    start = "action_head.model.base_model.model.blocks.0.self_attn.q."
    delta = lora[f"{start}lora_B.default.weight"] @ lora[f"{start}lora_A.default.weight"] * 2  # alpha / rank
    torch.testing.assert_close(ours["blocks.0.attn1.to_q.weight"], base["blocks.0.attn1.to_q.weight"] + delta)
    assert torch.equal(ours["blocks.1.attn1.to_q.weight"], base["blocks.1.attn1.to_q.weight"])
    torch.testing.assert_close(ours["action_embedder.layer1.bias"], base["action_embedder.layer1.bias"] + 1)


def test_a_lora_with_its_base_inside_needs_none(full: dict[str, torch.Tensor], converted: Path, tmp_path: Path) -> None:
    start, peft = "action_head.model.", "action_head.model.base_model.model."
    inside = {name.replace(start, peft): value for name, value in full.items()}
    for name in ADAPTED:
        inside[f"{peft}{name}.base_layer.weight"] = inside.pop(f"{peft}{name}.weight")
        inside[f"{peft}{name}.base_layer.bias"] = inside.pop(f"{peft}{name}.bias")
    inside |= {name: value for name, value in lora_weights(ADAPTED, full).items() if ".lora_" in name}
    convert_dreamzero.convert(write_release(tmp_path / "run", inside), tmp_path / "out")
    base, ours = (WAMTransformer.from_pretrained(f / "transformer").state_dict() for f in (converted, tmp_path / "out"))
    changed = {name for name in base if not torch.equal(base[name], ours[name])}
    assert changed == {"blocks.0.attn1.to_q.weight", "blocks.1.ffn.net.2.weight"}


Spoil = Callable[[dict[str, torch.Tensor]], None]
CUT: dict[str, tuple[Spoil, str]] = {
    "missing": (lambda w: w.pop("action_head.model.blocks.1.ffn.0.bias"), "lacks 1 tensors of transformer"),
    "strange": (lambda w: w.update({"backbone.x": torch.zeros(1)}), "'backbone.x', which is no part"),
    "strange_dit": (lambda w: w.update({"action_head.model.z": torch.zeros(1)}), "no tensor of DreamZero's"),
    "strange_text": (lambda w: w.update({"action_head.text_encoder.z": torch.zeros(1)}), "no tensor of Wan's"),
    "missing_vae": (lambda w: w.pop("action_head.vae.model.conv2.bias"), "lacks 1 tensors of vae"),
    "shape": (lambda w: w.update({"action_head.model.head.head.bias": torch.zeros(3)}), "of two networks"),
    "half_lora": (
        lambda w: w.update(
            {"action_head.model.base_model.model.blocks.0.self_attn.q.lora_A.default.weight": torch.zeros(RANK, 64)}
        ),
        "lora_B of 'blocks.0.self_attn.q.weight' missing",
    ),
}


@pytest.mark.parametrize("case", CUT)
def test_what_does_not_add_up_is_refused_in_one_line_and_nothing_is_left(
    case: str, full: dict[str, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, (spoil, message) = dict(full), CUT[case]
    spoil(weights)
    folder = write_release(tmp_path / "in", weights)
    assert run(main, ["dreamzero", str(folder), "--output", str(tmp_path / "out")]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(error) == 1 and message in error[0], error
    assert {p.name for p in tmp_path.iterdir()} == {"in"}


def test_a_lora_on_the_wrong_base_is_refused(release: Path, full: dict[str, torch.Tensor], tmp_path: Path) -> None:
    def answer(pretrained: str | None, base: Path | None) -> str:
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        write_release(folder, lora_weights(ADAPTED, full), pretrained=pretrained, shards=1)
        with pytest.raises((convert_dreamzero.CheckpointError, convert_dreamzero.ConfigError)) as error:
            convert_dreamzero.convert(folder, tmp_path / "out", base=base)
        assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()
        return str(error.value)

    assert "is not 'DreamZero-AgiBot'" in answer("x/DreamZero-AgiBot", release)
    assert "give that checkpoint with --base" in answer("x/DreamZero-Toy", None)
    assert "LoRA on a plain Wan" in answer(None, release)


def test_a_base_that_is_not_needed_or_a_folder_that_exists_is_refused(release: Path, tmp_path: Path) -> None:
    with pytest.raises(convert_dreamzero.ConfigError, match="leave --base out"):
        convert_dreamzero.convert(release, tmp_path / "out", base=release)
    with pytest.raises(convert_dreamzero.ConfigError, match="exists"):
        convert_dreamzero.convert(release, tmp_path)


def test_a_failure_half_way_leaves_nothing(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []

    def fails(tensors: dict[str, torch.Tensor], path: Path, **options: dict[str, str]) -> None:
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        written.append(path)
        save_file(tensors, path, **options)

    monkeypatch.setattr(convert_dreamzero, "save_file", fails)
    with pytest.raises(convert_dreamzero.CheckpointError, match="No space left"):
        convert_dreamzero.convert(release, tmp_path / "out")
    assert written and not list(tmp_path.iterdir())


def test_an_index_that_lies_is_refused(full: dict[str, torch.Tensor], tmp_path: Path) -> None:
    folder = write_release(tmp_path / "in", full)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    for change, message in (
        ({"action_head.model.none": "model-00001-of-00002.safetensors"}, "lacks 'action_head.model.none'"),
        ({"x": "../model.safetensors"}, "outside its folder"),
    ):
        path.write_text(json.dumps({"weight_map": index["weight_map"] | change}))
        with pytest.raises(convert_dreamzero.CheckpointError, match=message):
            convert_dreamzero.convert(folder, tmp_path / "out")
    assert load_file(folder / "model-00001-of-00002.safetensors")  # untouched
