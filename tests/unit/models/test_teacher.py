import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.unit.models.fake_vit import FakeViT, fake_timm, write_weights
from wam_video.errors import CheckpointError, ConfigError, MissingDependencyError
from wam_video.models.teacher import Reading, TeacherConfig, TeacherEncoder, alignment_terms, load_teacher, read_block
from wam_video.testing import tiny_pipeline


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", fake_timm())


def test_the_loss_is_the_cosine_of_closed_form() -> None:
    features = torch.zeros(2, 1, 2, 1, 2, 3)
    features[..., 0] = 5.0
    predicted = torch.zeros_like(features)
    predicted[0, ..., 0], predicted[1, ..., 1] = 2.0, 2.0  # the same direction; at right angles
    predicted[0, 0, 1, 0, 1] = torch.tensor([-1.0, 0.0, 1.0])  # 135 degrees
    mask = torch.tensor([[[True, True]], [[True, False]]])
    terms = alignment_terms(predicted, features, mask)
    assert terms.count == 6
    torch.testing.assert_close(terms.cosine_sum, torch.tensor(3.0 - 0.5**0.5))


def test_what_is_masked_carries_no_loss_whatever_it_holds() -> None:
    features, predicted = torch.randn(4, 2, 3, 2, 2, 5), torch.randn(4, 2, 3, 2, 2, 5, requires_grad=True)
    mask = torch.ones(4, 2, 3, dtype=torch.bool)
    mask[1, 1], mask[2, :, 2] = False, False
    base = alignment_terms(predicted, features, mask)
    base.cosine_sum.backward()
    assert not predicted.grad[~mask].any() and predicted.grad[mask].any(-1).all()
    hidden = torch.where(mask[..., None, None, None], features, torch.nan)
    assert torch.equal(alignment_terms(predicted, hidden, mask).cosine_sum, base.cosine_sum)


def test_the_control_is_the_features_of_another_sample() -> None:
    features = torch.randn(4, 1, 1, 3, 3, 64)
    mask = torch.ones(4, 1, 1, dtype=torch.bool)
    terms = alignment_terms(features, features, mask)
    assert terms.cosine_sum / terms.count > 0.999
    assert (terms.shuffled_sum / terms.shuffled_count).abs() < 0.3
    alone = alignment_terms(features[:1], features[:1], mask[:1])
    assert alone.shuffled_count == 0 and alone.shuffled_sum == 0


def test_the_encoder_is_frozen_and_sees_each_frame_by_itself_with_its_own_statistics() -> None:
    model = FakeViT().train()
    encoder = TeacherEncoder(model, name="x", frames_per_pass=2)
    frames = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    found = encoder(frames, (4, 4))
    assert not found.requires_grad and not any(p.requires_grad for p in model.parameters()) and not model.training
    mean, std = (torch.tensor(model.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    by_hand = model.forward_features((frames.float() / 255 - mean) / std)[:, 1:].reshape(5, 4, 4, 8)
    torch.testing.assert_close(found, by_hand)
    assert encoder(frames[:0], (4, 4)).shape == (0, 4, 4, 8)


def test_features_keep_their_places_when_resized() -> None:
    encoder = TeacherEncoder(FakeViT(), name="x")
    frames = torch.zeros(1, 3, 32, 64, dtype=torch.uint8)
    frames[..., :32, 32:] = 255  # the right half
    coarse = encoder(frames, (1, 2))[0, 0]
    fine = encoder(frames, (4, 4))[0]
    # a bilinear filter that shrinks looks one cell over the edge, no further
    assert (coarse[1] - fine[0, 3]).norm() < (coarse[1] - fine[0, 0]).norm()
    assert (coarse[0] - fine[0, 0]).norm() < (coarse[0] - fine[0, 3]).norm()
    assert encoder(frames, (3, 7)).shape == (1, 3, 7, 8)


def test_a_block_is_read_for_one_pass_and_changes_nothing() -> None:
    network = tiny_pipeline(views=2).transformer
    inputs = {
        "latents": torch.randn(2, 2, network.config["in_channels"], 3, 4, 6),
        "t_video": torch.rand(2, 3),
        "latent_times": torch.arange(3.0).expand(2, 3),
        "text_embeds": torch.randn(2, 4, 16),
        "embodiment": torch.tensor([0, 1]),
    }
    before = network(**inputs)
    with read_block(network, network.blocks[1]) as reading:
        during = network(**inputs)
    assert torch.equal(before.video, during.video)
    tokens = reading.video_tokens(network.config["patch_size"])
    assert tokens.shape == (2, 2, 3, 2, 3, 24)
    assert not network.blocks[1]._forward_hooks and not network._forward_pre_hooks
    # a token stands where its patch of the latents does: moving one patch moves that token most
    moved = dict(inputs, latents=inputs["latents"].clone())
    moved["latents"][:, 1, :, 2, 2:, 4:] += 1e3
    with read_block(network, network.blocks[0]) as other:
        network(**moved)
    with read_block(network, network.blocks[0]) as same:
        network(**inputs)
    change = (other.video_tokens((1, 2, 2)) - same.video_tokens((1, 2, 2))).norm(dim=-1)[0]
    assert change.max() == change[1, 2, 1, 2]


def test_clean_copies_of_frames_come_before_the_frames_that_are_read() -> None:
    tokens = torch.arange(40.0)[None, :, None]  # 2 copies and 3 frames of 6 tokens, and 10 others
    reading = Reading(tokens=tokens, latents=(1, 1, 4, 3, 4, 6), copies=2)
    assert torch.equal(reading.video_tokens((1, 2, 2)).flatten(), torch.arange(12.0, 30.0))
    with pytest.raises(RuntimeError, match="40 tokens can't hold"):
        Reading(tokens=tokens, latents=(1, 1, 4, 6, 4, 6), copies=2).video_tokens((1, 2, 2))


def test_a_block_that_was_not_run_is_noticed() -> None:
    network = tiny_pipeline().transformer
    with read_block(network, network.blocks[0]) as reading:
        pass
    with pytest.raises(RuntimeError, match="not run"):
        reading.video_tokens((1, 2, 2))


@pytest.mark.usefixtures("timm")
def test_weights_come_from_a_file_and_have_a_fingerprint(tmp_path: Path) -> None:
    config = {"kind": "repa", "model": "fake_vit"}
    one, two = (
        load_teacher(TeacherConfig(**config, checkpoint=write_weights(tmp_path / f"{seed}.safetensors", seed)))
        for seed in (0, 1)
    )
    again = load_teacher(TeacherConfig(**config, checkpoint=str(tmp_path / "0.safetensors")))
    assert one.fingerprint() == again.fingerprint() != two.fingerprint()
    frames = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(one(frames, (4, 4)), again(frames, (4, 4)))


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": "fake_vitt"}, ConfigError, "Did you mean 'fake_vit'"),
        ({"model": "fake_vit"}, ConfigError, "no route to the hub; give its weights"),
        ({"model": "fake_vit", "checkpoint": "absent.safetensors"}, CheckpointError, "absent.safetensors"),
        ({"model": "fake_vit", "checkpoint": "other.safetensors"}, CheckpointError, "cls differs"),
        ({"model": "fake_cnn", "checkpoint": "vit.safetensors"}, ConfigError, "allowed: vision transformers"),
        ({"model": "fake_vit", "checkpoint": "vit.safetensors", "image_size": 8}, ConfigError, "one size only"),
    ],
)
def test_a_teacher_that_is_none_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict, error: type[Exception], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_weights(tmp_path / "vit.safetensors")
    save_file({"patch_embed.proj.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(error, match=message) as caught:
        load_teacher(TeacherConfig(kind="repa", **options))
    assert "\n" not in str(caught.value)


def test_a_missing_or_broken_timm_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = TeacherConfig(kind="repa", model="fake_vit")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingDependencyError, match=r"wam-video\[vision\]"):
        load_teacher(config)
    monkeypatch.delitem(sys.modules, "timm")
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="torchvision::nms") as caught:
        load_teacher(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [{"kind": "dino"}, {"model": None}, {"weight": 0.0}, {"layer": -1}, {"hidden": 0}, {"checkpoint": "a.pth"}],
)
def test_a_wrong_setting_names_its_key(options: dict) -> None:
    with pytest.raises(ConfigError, match=f"teacher.{next(iter(options))}"):
        TeacherConfig(**({"kind": "repa", "model": "fake_vit"} | options))


def test_the_block_is_there_or_the_range_is_told() -> None:
    assert TeacherConfig(layer=3).block(4) == 3
    assert TeacherConfig().block(28) == 9 and TeacherConfig().block(1) == 0
    with pytest.raises(ConfigError, match="allowed: 0 to 3"):
        TeacherConfig(layer=4).block(4)


def test_a_vision_transformer_of_timm_is_a_teacher(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", exc_type=ImportError)
    path = tmp_path / "vit.safetensors"
    model = timm.create_model("test_vit", pretrained=False)
    save_file(model.state_dict(), path)
    config = {"kind": "repa", "model": "test_vit", "checkpoint": str(path)}
    frames = torch.randint(0, 256, (3, 3, 48, 64), dtype=torch.uint8)
    encoder = load_teacher(TeacherConfig(**config))
    assert encoder(frames, (3, 4)).shape == (3, 3, 4, encoder.channels)
    small = load_teacher(TeacherConfig(**config, image_size=64))
    assert small(frames, (3, 4)).shape == (3, 3, 4, encoder.channels)
    assert not torch.equal(small(frames, (3, 4)), encoder(frames, (3, 4)))
    with pytest.raises(ConfigError, match="image_size is 65"):
        load_teacher(TeacherConfig(**config, image_size=65))
    with pytest.raises(ConfigError, match="test_vitt"):
        load_teacher(TeacherConfig(kind="repa", model="test_vitt"))
    with pytest.raises(ConfigError, match="allowed: vision transformers"):
        load_teacher(TeacherConfig(kind="repa", model="test_resnet", checkpoint=_weights(timm, tmp_path)))


def _weights(timm: object, folder: Path) -> str:
    path = folder / "resnet.safetensors"
    save_file(timm.create_model("test_resnet", pretrained=False, num_classes=0).state_dict(), path)
    return str(path)
