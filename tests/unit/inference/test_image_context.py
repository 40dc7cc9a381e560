"""Image-to-video networks in the pipeline: what is told of the first frame reaches the answer, once, and nothing else does."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from wam_video.errors import CheckpointError
from wam_video.inference.pipeline import WAMPipeline
from wam_video.models.image_context import ImageContext, condition_of_chunk, first_frames
from wam_video.models.image_encoder import image_processor
from wam_video.tensors import Mode
from wam_video.testing import fake_batch, tiny_clip, tiny_pipeline

CAUSAL = {"attention": {"pattern": "causal", "chunk_frames": 1}}
WINDOWED = {"attention": {"pattern": "causal", "chunk_frames": 1, "window": 1, "sink_chunks": 0}}
OBSERVED = {"attention": {"actions_see_video": "observed"}}
CASES = {
    "one_chunk": {},
    "causal": {"model": CAUSAL},
    "window": {"model": WINDOWED, "num_future_frames": 4},
    "wan_causal": {"model": CAUSAL, "codec": "wan", "num_future_frames": 8},
    "observed": {"model": OBSERVED},
}


def pipeline(case: str = "one_chunk", **options: Any) -> WAMPipeline:
    return tiny_pipeline(**{"image": True} | CASES[case] | options)


def request(pipe: WAMPipeline, mode: str, batch: int = 2, **changes: Any) -> dict[str, Any]:
    rng, window = np.random.default_rng(0), pipe.processor.window
    frames = window.num_context_frames + (window.num_future_frames if mode == "inverse" else 0)
    values: dict[str, Any] = dict(
        mode=mode,
        video=rng.integers(0, 256, (batch, 1, frames, 16, 16, 3), dtype=np.uint8),
        prompt="push the block",
        embodiment="arm",
        generator=list(range(batch)),
        num_inference_steps=2,
        output_type="pt",
    )
    if mode == "forward":
        values["actions"] = rng.normal(size=(batch, window.action_horizon, 2))
    return values | changes


def recorded(pipe: WAMPipeline, monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Any], Any]]:
    """Arguments and results of the network from now on."""
    calls: list[tuple[dict[str, Any], Any]] = []
    forward = pipe.transformer.forward

    def watched(**values: Any) -> Any:
        calls.append((values, out := forward(**values)))
        return out

    monkeypatch.setattr(pipe.transformer, "forward", watched)
    return calls


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mode", list(Mode))
def test_every_mode_is_answered_and_the_picture_is_read_once(case: str, mode: Mode) -> None:
    pipe, seen = pipeline(case), []
    if case == "observed" and mode is Mode.INVERSE:
        return  # its actions are blind to the future, as without a picture
    pipe.image_encoder.register_forward_hook(lambda *_: seen.append(1))
    out = pipe(**request(pipe, mode.value, guidance_scale=2.0))
    values = [x for x in (out.actions, out.video) if x is not None]
    assert values and all(bool(x.isfinite().all()) for x in values)
    assert len(seen) == 1, "two steps, two guidance passes, several chunks: one reading"
    alone = request(pipe, mode.value, guidance_scale=2.0)
    alone |= {key: alone[key][1:] for key in ("video", "actions", "generator") if key in alone}
    again = pipe(**alone)
    for name in ("actions", "video"):
        if (value := getattr(out, name)) is not None:
            torch.testing.assert_close(value[1:], getattr(again, name), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_network_is_told_what_a_hand_would_tell_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = pipeline(codec="wan")
    calls = recorded(pipe, monkeypatch)
    given = request(pipe, "policy", batch=1, num_inference_steps=1)
    given["video"][0, 0, 0] = (200, 30, 90)  # one colour: enlarged noise is a level off here and there with Pillow
    pipe(**given)
    (values, answer), vae = calls[0], pipe.vae
    first = torch.from_numpy(given["video"][:, 0, 0]).permute(0, 3, 1, 2).float() / 127.5 - 1
    grey = torch.cat([first[:, :, None], torch.zeros(1, 3, 8, 16, 16)], dim=2)  # 5 context and 4 future frames
    mean, std = (torch.tensor(vae.config[f"latents_{name}"])[:, None, None, None] for name in ("mean", "std"))
    latents = (vae.encode(grey).latent_dist.mode() - mean) / std
    mask = torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(1, 4, 3, *latents.shape[-2:])
    condition = torch.cat([mask, latents], dim=1)[:, None]
    pixels = pipe.image_processor(Image.fromarray(given["video"][0, 0, 0]), return_tensors="pt").pixel_values
    tokens = pipe.image_encoder(pixels, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(values["condition"], condition, atol=1e-5, rtol=0)
    torch.testing.assert_close(values["image_embeds"], tokens, atol=1e-5, rtol=0)
    direct = pipe.transformer(**values | {"condition": condition, "image_embeds": tokens})
    torch.testing.assert_close(direct.actions, answer.actions, atol=1e-5, rtol=0)
    for name, other in (("condition", condition.roll(1, dims=2)), ("image_embeds", tokens.flip(-1))):
        assert (pipe.transformer(**values | {name: other}).actions - answer.actions).abs().max() > 1e-4, name


@pytest.mark.parametrize("image", [True, False])
@pytest.mark.parametrize("case", ["one_chunk", "causal"])
def test_a_frame_that_fills_no_latent_acts_through_the_condition_alone(image: bool, case: str) -> None:
    pipe = pipeline(case, codec="wan", image=image)
    given = request(pipe, "policy")
    given["video"] = given["video"][:, :, -1:]  # one of the four frames of a latent: as latents they are unknown
    out = pipe(**given).actions
    moved = pipe(**given | {"video": 255 - given["video"]}).actions
    assert torch.equal(out, moved) != image


@pytest.mark.parametrize("case", ["one_chunk", "causal", "wan_causal"])
def test_only_the_first_frame_is_told(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = pipeline(case)
    batch, calls = fake_batch(pipe), recorded(pipe, monkeypatch)
    told, observe = [], pipe.transformer.observe
    monkeypatch.setattr(
        pipe.transformer, "observe", lambda cache, **v: told.append(v["condition"]) or observe(cache, **v)
    )
    made, encode = [], ImageContext.__call__
    monkeypatch.setattr(ImageContext, "__call__", lambda self, *a: made.append(encode(self, *a)) or made[-1])

    def answer(frame: int | None) -> tuple[torch.Tensor, list[torch.Tensor]]:
        calls.clear(), told.clear(), made.clear()
        video = batch.video.clone()
        if frame is not None:
            video[:, :, :, frame] = 255 - video[:, :, :, frame]
        out = pipe.predict(
            replace(batch, video=video), "forward", generator=[0, 1, 2, 3], num_inference_steps=1, output_type="pt"
        )
        return out.video, [made[0]["condition"], made[0]["image_embeds"], *told, *(v["condition"] for v, _ in calls)]

    out, facts = answer(None)
    for frame, reaches, is_told in ((0, True, True), (1, True, False), (batch.num_context_frames, False, False)):
        moved, now = answer(frame)
        assert torch.equal(out, moved) != reaches, frame
        assert all(torch.equal(a, b) for a, b in zip(facts, now, strict=True)) != is_told, frame


def test_what_is_missing_is_neither_told_nor_told_as_given() -> None:
    pipe = pipeline(views=2)
    context = torch.randn(3, 2, 3, 2, 16, 16).clamp(-1, 1)
    mask = torch.ones(3, 2, 2, dtype=torch.bool)
    mask[1, 1], mask[2, 0, 0] = False, False  # one camera is not there; the oldest frame of another
    frames, known = first_frames(context, mask)
    assert torch.equal(frames[2, 0], context[2, 0, :, 1]) and torch.equal(frames[2, 1], context[2, 1, :, 0])
    assert known.tolist() == [[True, True], [True, False], [True, True]] and not frames[1, 1].any()
    read = pipe.image_context()
    told = read(context, mask, 4)
    assert told["condition"][:, :, 0, 0, 0, 0].tolist() == [[1, 1], [1, 0], [1, 1]]
    assert not told["condition"][:, :, 0, 1:].any()
    alone = read(context[1:2, :1], mask[1:2, :1], 4)
    torch.testing.assert_close(alone["image_embeds"], told["image_embeds"][1:2], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(alone["condition"], told["condition"][1:2, :1])


def test_a_longer_stream_goes_on_with_the_last_condition() -> None:
    condition = torch.arange(4.0).reshape(1, 1, 1, 4, 1, 1)
    assert condition_of_chunk(condition, 2, 4).flatten().tolist() == [2, 3, 3, 3]
    assert condition_of_chunk(condition, 1, 0).shape[3] == 0 and condition_of_chunk(None, 0, 1) is None


@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_a_folder_holds_the_encoder_and_its_processor(fit: str, tmp_path: Path) -> None:
    pipe = pipeline()
    pipe.register_modules(image_processor=image_processor(pipe.image_encoder, fit))
    pipe.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "image_encoder" / "model.safetensors").is_file()
    assert (tmp_path / "model" / "image_processor" / "preprocessor_config.json").is_file()
    loaded = WAMPipeline.from_pretrained(tmp_path / "model")
    for mode in Mode:
        a, b = (p(**request(p, mode.value)) for p in (pipe, loaded))
        for name in ("actions", "video"):
            x, y = getattr(a, name), getattr(b, name)
            assert (x is None and y is None) or torch.equal(x, y), (mode, name)


def test_how_pictures_are_made_square_is_the_folders() -> None:
    pipe = pipeline()
    wide = torch.rand(1, 1, 3, 1, 16, 32) * 2 - 1
    mask = torch.ones(1, 1, 1, dtype=torch.bool)
    tokens = []
    for fit in ("crop", "stretch"):
        pipe.register_modules(image_processor=image_processor(pipe.image_encoder, fit))
        tokens.append(pipe.image_context()(wide, mask, 2)["image_embeds"])
    assert (tokens[0] - tokens[1]).abs().max() > 1e-3


def test_folders_without_an_encoder_load_as_before(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path)
    assert WAMPipeline.from_pretrained(tmp_path).image_encoder is None


def test_parts_that_are_missing_or_of_another_model_are_refused(tmp_path: Path) -> None:
    pipe = pipeline()
    parts = dict(pipe.components)
    for changes, message in (
        (
            {"image_encoder": None, "image_processor": None},
            "reads an image context 32 wide, but there is no image_encoder",
        ),
        ({"image_processor": None}, "an image_encoder, but no image_processor"),
        ({"transformer": tiny_pipeline().transformer}, "transformer reads no image context"),
    ):
        with pytest.raises(CheckpointError, match=message) as error:
            WAMPipeline(**parts | changes)
        assert "\n" not in str(error.value)
    with pytest.raises(CheckpointError, match="20 condition_channels, the first frame makes 49"):
        pipeline(model={"condition_channels": 20})
    processor = image_processor(tiny_clip(), "crop")
    processor.image_mean = [0.5, 0.5, 0.5]
    with pytest.raises(CheckpointError, match="image_processor has image_mean"):
        WAMPipeline(**parts | {"image_processor": processor})
    pipe.save_pretrained(tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "image_encoder")
    with pytest.raises(CheckpointError, match=r"image_encoder/config\.json is missing"):
        WAMPipeline.from_pretrained(tmp_path / "model")
