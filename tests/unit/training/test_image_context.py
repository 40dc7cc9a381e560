"""Image-to-video networks in training: the first frame is told, the future never, and the folder that comes out acts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.training.fakes import MODEL, FakeFeed, tiny_config, tiny_trainer
from tests.unit.training.test_backbone import wan
from wam_video.cli.train import _export
from wam_video.errors import CheckpointError, ConfigError, DataError
from wam_video.flow.density import DensityConfig
from wam_video.flow.loss import LossConfig
from wam_video.inference.pipeline import WAMPipeline
from wam_video.tensors import Mode
from wam_video.testing import CLIP_DIM, fake_batch, tiny_clip, tiny_pipeline
from wam_video.training.build import Parts, TrainingModule
from wam_video.training.config import CodecConfig, ImageEncoderConfig
from wam_video.training.sample import Sampler, SamplerConfig, TextCache
from wam_video.training.trainer import Trainer

CHANNELS = 3 * 8 * 8 + 1
IMAGE = {"condition_channels": CHANNELS, "image_dim": CLIP_DIM, "added_kv_proj_dim": 16}
CAUSAL = {"pattern": "causal", "chunk_frames": 1}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("repo")
    torch.manual_seed(0)
    tiny_clip().save_pretrained(folder / "image_encoder")
    return str(folder)


def trainer(folder: Path, clip: str, model: dict[str, Any], **changes: Any) -> Trainer:
    encoder = ImageEncoderConfig(kind="clip", path=clip, subfolder="image_encoder", fit="stretch")
    values: dict[str, Any] = {"model": MODEL | IMAGE | model, "image_encoder": encoder, "steps": 2} | changes
    values.setdefault("optim", replace(tiny_config(folder).optim, warmup_steps=0, lr=1e-2))
    return tiny_trainer(tiny_config(folder, **values))


@pytest.mark.parametrize("attention", [None, CAUSAL])
@pytest.mark.parametrize("absent", [0.0, 1.0])
def test_a_run_trains_exports_and_its_folder_answers_every_mode(
    attention: dict | None, absent: float, clip: str, tmp_path: Path
) -> None:
    run = trainer(tmp_path / "run", clip, {"attention": attention}, density=DensityConfig(absent_video=absent))
    network = run.parts.transformer
    before = {name: value.clone() for name, value in network.state_dict().items()}
    encoder = {name: value.clone() for name, value in run.parts.image_encoder.state_dict().items()}
    run.run([])
    assert all(torch.equal(value, encoder[name]) for name, value in run.parts.image_encoder.state_dict().items())
    assert not any(name.startswith("image_encoder") for name, _ in run.engine.module.named_parameters())
    for name in ("condition_embedder.image_embedder.ff.net.2.weight", "blocks.0.attn2.add_k_proj.weight"):
        assert not torch.equal(network.state_dict()[name], before[name]), name
    moved = (network.patch_embedding.weight - before["patch_embedding.weight"]).abs()
    assert moved[:, 192:].max() > 0, "the channels of the condition are trained"
    _export(tmp_path / "model", run.parts, run.config)
    pipe = WAMPipeline.from_pretrained(tmp_path / "model")
    assert not pipe.image_processor.do_center_crop, "stretch, as it was trained"
    rng = np.random.default_rng(0)
    for mode in Mode:
        video = rng.integers(0, 256, (1, 2 + 2 * (mode is Mode.INVERSE), 16, 16, 3), dtype=np.uint8)
        actions = rng.normal(size=(4, 2)) if mode is Mode.FORWARD else None
        out = pipe(mode=mode.value, video=video, embodiment="arm", actions=actions, generator=0)
        assert all(np.isfinite(x).all() for x in (out.actions, out.video) if x is not None)


@pytest.mark.parametrize("absent", [False, True])
def test_a_sample_is_told_its_own_first_frame_and_nothing_after(absent: bool, clip: str, tmp_path: Path) -> None:
    run = trainer(tmp_path / "run", clip, {})
    batch = FakeFeed().batch([0, 1, 2, 3])

    def told(frame: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        video = batch.video.clone()
        if frame is not None:
            video[0, :, :, frame] = 255 - video[0, :, :, frame]
        sample = run.sampler(replace(batch, video=video), torch.device("cpu"), absent_video=absent)
        assert sample.condition is not None and sample.image_embeds is not None
        return sample.condition, sample.image_embeds

    for a, b, channels in zip(told(None), told(0), (CHANNELS, CLIP_DIM), strict=True):
        assert channels in a.shape and not torch.equal(a[0], b[0]) and torch.equal(a[1:], b[1:])
    for frame in (1, 2, 3):
        assert all(torch.equal(a, b) for a, b in zip(told(None), told(frame), strict=True)), frame


def test_training_and_the_pipeline_tell_the_same(clip: str, tmp_path: Path) -> None:
    run = trainer(tmp_path / "run", clip, {})
    _export(tmp_path / "model", run.parts, run.config)
    pipe, batch = WAMPipeline.from_pretrained(tmp_path / "model"), FakeFeed().batch([0, 1, 2, 3])
    sample = run.sampler(batch, torch.device("cpu"))
    context = batch.video[:, :, :, :2] / 127.5 - 1
    served = pipe.image_context()(context, batch.frame_mask[:, :, :2], 4)
    torch.testing.assert_close(served["condition"], sample.condition)
    torch.testing.assert_close(served["image_embeds"], sample.image_embeds)


@pytest.mark.parametrize("attention", [None, CAUSAL])
def test_bodies_without_actions_and_with_fewer_cameras_train_in_one_batch(attention: dict | None) -> None:
    pipe = tiny_pipeline(image=True, views=2, action_free=True, model={"attention": attention})
    config = SamplerConfig(density=DensityConfig(), loss=LossConfig(), attention=pipe.transformer.attention)
    text = TextCache(pipe.tokenizer, pipe.text_encoder)
    sampler = Sampler(config, pipe.vae, pipe.processor, text, pipe.image_context())
    parts = Parts(
        transformer=pipe.transformer,
        codec=pipe.vae,
        tokenizer=pipe.tokenizer,
        text_encoder=pipe.text_encoder,
        processor=pipe.processor,
    )
    sample = sampler(fake_batch(pipe, 3), torch.device("cpu"))
    has_view = torch.tensor([[True, True], [True, False], [True, False]])
    assert sample.condition is not None and torch.equal(sample.condition[:, :, 0, 0, 0, 0], has_view.float())
    video, actions = TrainingModule(parts, train_text=False)(sample)
    # what stands where a camera is missing reaches nobody
    other = replace(sample, condition=torch.where(has_view[:, :, None, None, None, None], sample.condition, 7.0))
    again, acts = TrainingModule(parts, train_text=False)(other)
    assert torch.equal(video[has_view], again[has_view]) and torch.equal(actions, acts)
    assert bool(video.isfinite().all()) and bool(actions.isfinite().all())


def test_latents_without_pixels_are_refused(clip: str, tmp_path: Path) -> None:
    run, batch = trainer(tmp_path / "run", clip, {}), FakeFeed().batch([0, 1])
    from wam_video.models.fingerprint import codec_hash

    encoded = replace(batch, latents=torch.zeros(2, 1, 192, 4, 2, 2), latents_codec=codec_hash(run.parts.codec))
    with pytest.raises(DataError, match="holds latents and no pixels, which an image-to-video"):
        run.sampler(encoded, torch.device("cpu"))


def test_a_network_with_condition_channels_alone_needs_no_encoder(tmp_path: Path) -> None:
    run = tiny_trainer(
        tiny_config(
            tmp_path / "run",
            model=MODEL | {"condition_channels": CHANNELS},
            steps=1,
            optim=replace(tiny_config(tmp_path).optim, warmup_steps=0),
        )
    )
    run.run([])
    sample = run.sampler(FakeFeed().batch([0]), torch.device("cpu"))
    assert sample.condition is not None and sample.image_embeds is None


def test_settings_that_do_not_go_together_are_refused(clip: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.image_dim is 32, but image_encoder\.kind is 'none'"):
        tiny_config(tmp_path, model=MODEL | IMAGE)
    with pytest.raises(ConfigError, match=r"image_encoder\.path is not set"):
        ImageEncoderConfig(kind="clip")
    with pytest.raises(ConfigError, match=r"image_encoder\.fit is 'pad'"):
        ImageEncoderConfig(fit="pad")
    with pytest.raises(ConfigError, match="image_encoder is 32 wide, transformer reads an image context 16 wide"):
        trainer(tmp_path, clip, {"image_dim": 16})
    with pytest.raises(ConfigError, match="5 condition_channels, the first frame makes 193"):
        trainer(tmp_path, clip, {"condition_channels": 5})
    with pytest.raises(CheckpointError, match=r"image_encoder.path .* is no folder and no hub id"):
        trainer(tmp_path, str(tmp_path / "nowhere"), {})


def test_a_pretrained_image_to_video_backbone_starts_a_run(clip: str, tmp_path: Path) -> None:
    folder = wan(tmp_path / "wan", in_channels=97, image_dim=CLIP_DIM, added_kv_proj_dim=16)  # 48 of latents, a mask
    encoder = ImageEncoderConfig(kind="clip", path=clip, subfolder="image_encoder")
    codec = CodecConfig(patch_size=4)
    config = tiny_config(tmp_path / "run", backbone=folder, model={}, codec=codec, image_encoder=encoder, steps=3)
    run = tiny_trainer(config)
    assert run.parts.transformer.config["condition_channels"] == 49
    run.run([])
    _export(tmp_path / "model", run.parts, run.config)
    pipe = WAMPipeline.from_pretrained(tmp_path / "model")
    assert np.isfinite(
        pipe("policy", np.zeros((1, 2, 16, 16, 3), np.uint8), embodiment="arm", generator=0).actions
    ).all()
