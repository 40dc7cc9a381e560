"""Against DreamZero's released network, whose weights, inputs and outputs were stored by running it: the same numbers."""

from typing import Any

import pytest
import torch
from safetensors import safe_open

from tests.conftest import ROOT
from wam_video.errors import CheckpointError
from wam_video.models.chunks import History
from wam_video.models.convert import DREAMZERO_ATTENTION, DREAMZERO_OPTIONS, dreamzero_key, dreamzero_keys
from wam_video.models.transformer import WAMTransformer

FOLDER = ROOT.parent / "shared" / "parity"
FILES = sorted(FOLDER.glob("dreamzero_*.safetensors"))

pytestmark = pytest.mark.skipif(not FILES, reason=f"no reference tensors at {FOLDER}")


@pytest.fixture(scope="module", params=FILES, ids=lambda path: path.stem)
def reference(request: pytest.FixtureRequest) -> tuple[dict[str, int], dict[str, torch.Tensor]]:
    """Sizes and tensors of a file."""
    with safe_open(request.param, "pt") as file:
        sizes = {key: int(value) for key, value in file.metadata().items() if value.isdigit()}
        return sizes, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping


def network(sizes: dict[str, int], tensors: dict[str, torch.Tensor]) -> WAMTransformer:
    image, width = tensors.get("in.clip"), sizes["dim"]
    channels = tensors["in.clean_latents"].shape[1]
    model = WAMTransformer(
        embodiments=[{"name": "all", "action_dim": sizes["action_dim"], "state_dim": sizes["state_dim"]}],
        in_channels=channels,
        condition_channels=tensors["weights.patch_embedding.weight"].shape[1] - channels,
        num_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        attention_head_dim=width // sizes["heads"],
        ffn_dim=sizes["ffn"],
        freq_dim=sizes["freq_dim"],
        text_dim=sizes["text_dim"],
        image_dim=None if image is None else image.shape[-1],
        added_kv_proj_dim=None if image is None else width,
        rope_rate=1.0,
        embodiment_hidden_dim=sizes["action_hidden"],
        attention=DREAMZERO_ATTENTION | {"chunk_frames": sizes["frames_per_block"]},
        **DREAMZERO_OPTIONS,  # type: ignore[arg-type]
    )
    theirs = {name.removeprefix("weights."): value for name, value in tensors.items() if name.startswith("weights.")}
    names = dreamzero_keys(theirs)
    missing, unexpected = model.load_state_dict({names[name]: v for name, v in theirs.items()}, strict=False)
    assert not unexpected
    assert set(missing) == {"no_state", "view_embedding", "registers"}  # registers: none of them
    return model.eval()


def inputs(sizes: dict[str, int], tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Our inputs for theirs: a window whose first frame is in both streams, as theirs has it."""
    noisy, clean = tensors["in.noisy_latents"][:, None], tensors["in.clean_latents"][:, None]
    batch, frames, actions = noisy.shape[0], noisy.shape[3], tensors["in.noisy_actions"].shape[1]
    condition = tensors.get("in.condition")
    read = frames - sizes["frames_per_block"]  # nobody reads the last clean block
    return dict(
        latents=noisy,
        t_video=tensors["in.t_video"],
        latent_times=torch.arange(frames, dtype=torch.float32).expand(batch, -1),
        text_embeds=tensors["in.text"],
        embodiment=torch.zeros(batch, dtype=torch.long),
        actions=tensors["in.noisy_actions"],
        t_action=tensors["in.t_action"],
        action_times=torch.arange(actions, dtype=torch.float32).expand(batch, -1),
        state=tensors["in.state"],
        state_mask=torch.ones_like(tensors["in.state"], dtype=torch.bool),
        condition=None if condition is None or condition.shape[1] == 0 else condition[:, None],
        image_embeds=tensors.get("in.clip"),
        history=History(
            latents=clean[:, :, :, :read],
            t_video=torch.zeros(batch, read),
            times=torch.arange(read, dtype=torch.float32).expand(batch, -1),
            first=0,
        ),
    )


@torch.no_grad()
def test_both_velocities_are_dreamzeros(reference: tuple[dict[str, int], dict[str, torch.Tensor]]) -> None:
    sizes, tensors = reference
    out = network(sizes, tensors)(**inputs(sizes, tensors))
    assert out.video is not None and out.actions is not None
    torch.testing.assert_close(out.video[:, 0], tensors["out.video_velocity"], atol=1e-5, rtol=0)
    torch.testing.assert_close(out.actions, tensors["out.action_velocity"], atol=1e-5, rtol=0)


@torch.no_grad()
def test_leaving_the_noisy_first_frame_out_changes_nothing_else(
    reference: tuple[dict[str, int], dict[str, torch.Tensor]],
) -> None:
    """It is a fifth of their noisy tokens, and nobody looks at it."""
    sizes, tensors = reference
    values = inputs(sizes, tensors)
    clean = tensors["in.clean_latents"][:, None]
    history = values["history"]
    values["latents"] = torch.cat([clean[:, :, :, :1], values["latents"][:, :, :, 1:]], dim=3)
    values["t_video"] = torch.cat([torch.zeros_like(values["t_video"][:, :1]), values["t_video"][:, 1:]], dim=1)
    later = history.latents[:, :, :, 1:]
    values["history"] = History(latents=later, t_video=history.t_video[:, 1:], times=history.times[:, 1:], first=1)
    out = network(sizes, tensors)(**values)
    assert out.video is not None and out.actions is not None
    torch.testing.assert_close(out.video[:, 0, :, 1:], tensors["out.video_velocity"][:, :, 1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(out.actions, tensors["out.action_velocity"], atol=1e-5, rtol=0)


def test_a_tensor_of_another_network_is_refused() -> None:
    for name in ("blocks.0.self_attn.z.weight", "action_encoder.W1.scale", "vae.conv1.weight"):
        with pytest.raises(CheckpointError, match="DreamZero"):
            dreamzero_key(name)
