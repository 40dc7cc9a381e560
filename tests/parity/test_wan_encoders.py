"""Wan's encoders against diffusers and transformers: video as it arrives, first-frame condition, CLIP image, UMT5 text."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline, WanPipeline
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPVisionConfig, CLIPVisionModel, PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from wam_video.errors import ConfigError
from wam_video.models.image_encoder import encode_image
from wam_video.models.streaming_codec import encode_frames
from wam_video.models.text import encode_text
from wam_video.models.video_codec import Codec, PixelCodec, encode, first_frame_condition

TINY = dict(base_dim=4, num_res_blocks=1, temperal_downsample=[False, True, True])
WAN22 = dict(is_residual=True, in_channels=12, out_channels=12, patch_size=2, scale_factor_spatial=16)


def vae(kind: str) -> AutoencoderKLWan:
    """Wan2.1's kind of VAE, or Wan2.2's: residual down blocks and 2x2 patches."""
    torch.manual_seed(0)
    statistics = dict(latents_mean=[0.1, -0.1, 0.2, 0.0], latents_std=[0.5, 1.0, 0.8, 1.2])
    return AutoencoderKLWan(
        z_dim=4, dim_mult=[1, 2, 2, 2], **TINY, **statistics, **(WAN22 if kind == "wan2.2" else {})
    ).eval()


CODECS: dict[str, Any] = {
    "wan2.1": lambda: vae("wan2.1"), "wan2.2": lambda: vae("wan2.2"), "pixel": lambda: PixelCodec(patch_size=8)
}  # fmt: skip


def video(frames: int = 13, views: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.rand(2, views, 3, frames, 32, 48, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def stream(codec: Codec, frames: torch.Tensor, cuts: list[int]) -> torch.Tensor:
    state, latents = None, []
    for chunk in frames.split(cuts, dim=3):
        new, state = encode_frames(codec, chunk, state)
        latents.append(new)
    return torch.cat(latents, dim=3)


@torch.no_grad()
@pytest.mark.parametrize("kind", CODECS)
def test_frames_as_they_arrive_encode_as_at_once(kind: str) -> None:
    codec, frames = CODECS[kind](), video()
    whole = encode(codec, frames)
    for cuts in ([13], [1] * 13, [1, 4, 4, 4], [3, 7, 1, 2], [6, 7]):
        out = stream(codec, frames, cuts)
        assert out.shape == whole.shape, cuts
        assert (out - whole).abs().max() <= 1e-5, cuts
    if kind != "pixel":  # the control: without the state the second chunk is another video's first
        restarted, _ = encode_frames(codec, frames[:, :, :, 5:10])
        assert (restarted - whole[:, :, :, 2:4]).abs().max() > 1e-2


@torch.no_grad()
def test_the_state_is_a_value_and_the_codec_keeps_nothing() -> None:
    codec, frames = vae("wan2.1"), video()
    first, state = encode_frames(codec, frames[:, :, :, :5])
    kept = [None if f is None else f.clone() for f in state.features]
    attributes = {name: id(value) for name, value in vars(codec).items()}
    left, _ = encode_frames(codec, frames[:, :, :, 5:9], state)
    encode_frames(codec, video(4, seed=9), state)  # another branch, and other streams in between
    encode_frames(codec, video(5, views=1, seed=8))
    again, _ = encode_frames(codec, frames[:, :, :, 5:9], state)
    assert torch.equal(left, again) and first.shape[3] == 2 and state.num_latents == 2
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(kept, state.features, strict=True))
    assert attributes == {name: id(value) for name, value in vars(codec).items()}


@torch.no_grad()
def test_frames_that_fill_no_latent_wait() -> None:
    codec, frames = vae("wan2.2"), video(5)
    first, state = encode_frames(codec, frames[:, :, :, :3])
    none, state = encode_frames(codec, frames[:, :, :, 3:4], state)
    second, state = encode_frames(codec, frames[:, :, :, 4:], state)
    assert (first.shape[3], none.shape[3], second.shape[3]) == (1, 0, 1) and none.shape[2:] == (4, 0, 2, 3)
    torch.testing.assert_close(torch.cat([first, second], 3), encode(codec, frames), atol=1e-5, rtol=0)


def test_a_stream_refuses_frames_of_another_shape_and_tiling() -> None:
    codec, frames = vae("wan2.1"), video(5)
    _, state = encode_frames(codec, frames)
    with pytest.raises(ConfigError, match="start another stream"):
        encode_frames(codec, frames[:1], state)
    with pytest.raises(ConfigError, match="multiples of 8"):
        encode_frames(codec, frames[..., :5], state)
    codec.enable_tiling()
    with pytest.raises(ConfigError, match="disable_tiling"):
        encode_frames(codec, frames)


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 9])
def test_first_frame_condition_equals_diffusers(frames: int) -> None:
    codec, image = vae("wan2.1"), video(1, views=1)[:, 0, :, 0]
    pipeline = WanImageToVideoPipeline(
        tokenizer=None, text_encoder=None, vae=codec, scheduler=FlowMatchEulerDiscreteScheduler()
    )
    condition = first_frame_condition(codec, image[:, None], frames)
    assert condition.shape == (2, 1, 8, (frames - 1) // 4 + 1, 4, 6)
    for row in range(2):
        _, reference = pipeline.prepare_latents(
            image[row : row + 1], 1, 4, 32, 48, frames, torch.float32, torch.device("cpu"), torch.Generator()
        )
        assert (condition[row] - reference).abs().max() <= 1e-5


def clip() -> CLIPVisionModel:
    torch.manual_seed(0)
    return CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=28,
            patch_size=7,
        )
    ).eval()


@torch.no_grad()
@pytest.mark.parametrize("size", [(40, 64), (61, 33), (28, 28)])
def test_image_context_equals_diffusers(size: tuple[int, int]) -> None:
    encoder = clip()
    noise = np.random.default_rng(0).integers(0, 256, (size[0] // 4 + 1, size[1] // 4 + 1, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize(size[::-1], Image.Resampling.BICUBIC)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    pipeline = WanImageToVideoPipeline(
        tokenizer=None, text_encoder=None, vae=vae("wan2.1"), scheduler=FlowMatchEulerDiscreteScheduler(),
        image_processor=processor, image_encoder=encoder,
    )  # fmt: skip
    reference = pipeline.encode_image(picture, torch.device("cpu"))
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
    out = encode_image(encoder, pixels)
    assert out.shape == reference.shape == (1, 17, 32)
    assert (out - reference).abs().max() <= 1e-5
    stretched = encode_image(encoder, pixels, fit="stretch")
    assert size[0] == size[1] or (stretched - reference).abs().max() > 0.02
    with pytest.raises(ConfigError, match="fit is 'pad'; allowed: crop, stretch"):
        encode_image(encoder, pixels, fit="pad")


@torch.no_grad()
def test_umt5_text_equals_diffusers() -> None:
    torch.manual_seed(0)
    words = ["<pad>", "</s>", "<unk>", "push", "the", "block", "fold", "towel"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=12
    )
    encoder = UMT5EncoderModel(
        UMT5Config(vocab_size=8, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.0)
    ).eval()
    prompts = ["push the block", "fold", " ".join(["towel"] * 30)]
    pipeline = WanPipeline(
        tokenizer=fast, text_encoder=encoder, vae=vae("wan2.1"), scheduler=FlowMatchEulerDiscreteScheduler()
    )
    reference = pipeline._get_t5_prompt_embeds(prompts, max_sequence_length=12)
    out = encode_text(fast, encoder, prompts)
    assert out.shape == reference.shape == (3, 12, 16)
    assert (out - reference).abs().max() <= 1e-6
    assert out[0, 4:].eq(0).all() and out[0, :4].ne(0).any(-1).all() and out[2].ne(0).any(-1).all()
