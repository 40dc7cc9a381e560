"""A run that starts from a pretrained Wan network: only its folder is named, and what does not go with it is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel

from tests.unit.training.fakes import FakeFeed, tiny_config, tiny_trainer
from wam_video.errors import ConfigError
from wam_video.training.build import build_parts, count_parameters
from wam_video.training.config import CodecConfig


def wan(folder: Path, **changes: Any) -> str:
    torch.manual_seed(0)
    shape = dict(num_attention_heads=2, attention_head_dim=8, ffn_dim=32, freq_dim=16, text_dim=16, num_layers=1)
    WanTransformer3DModel(**shape | dict(in_channels=48, out_channels=48) | changes).save_pretrained(
        folder / "transformer"
    )
    return str(folder)


def config(tmp_path: Path, backbone: str, **changes: Any) -> Any:
    return tiny_config(tmp_path / "run", backbone=backbone, **dict(model={}, codec=CodecConfig(patch_size=4)) | changes)


def test_a_run_starts_from_its_weights(tmp_path: Path) -> None:
    trainer = tiny_trainer(config(tmp_path, wan(tmp_path / "wan")))
    theirs = WanTransformer3DModel.from_pretrained(tmp_path / "wan" / "transformer").state_dict()
    network = trainer.engine.module.transformer
    start = {name: value.clone() for name, value in network.state_dict().items()}
    assert theirs.keys() < start.keys() and all(torch.equal(start[name], theirs[name]) for name in theirs)
    assert count_parameters(trainer.config, FakeFeed().embodiments) == sum(p.numel() for p in network.parameters())
    trainer.run([])
    assert network.training and not torch.equal(network.blocks[0].attn1.side_gate, start["blocks.0.attn1.side_gate"])


@pytest.mark.parametrize(
    ("shape", "changes", "message"),
    [
        ({}, {"codec": CodecConfig(patch_size=8)}, "in_channels is 192; the Wan checkpoint has 48"),
        ({}, {"model": {"num_layers": 2}}, "num_layers is 2; the Wan checkpoint has 1"),
        ({"text_dim": 8}, {}, "text_dim is 16; the Wan checkpoint has 8"),
        ({"in_channels": 68}, {}, "has 20 condition_channels, the first frame makes 49"),
        ({"in_channels": 97, "image_dim": 32, "added_kv_proj_dim": 16}, {}, "no image_encoder to make it"),
    ],
)
def test_what_does_not_go_with_it_is_refused(shape: dict, changes: dict, message: str, tmp_path: Path) -> None:
    feed = FakeFeed()
    with pytest.raises(ConfigError, match=message):
        build_parts(
            config(tmp_path, wan(tmp_path / "wan", **shape), **changes), feed.embodiments, feed.processor("quantile")
        )
