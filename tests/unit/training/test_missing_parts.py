"""A pretrained part that is not there, or is no such part, is one line that names the key."""

from pathlib import Path
from typing import Any

import pytest

from wam_video.errors import CheckpointError
from wam_video.training.build import build_codec, build_image_encoder, build_text
from wam_video.training.config import CodecConfig, ImageEncoderConfig, TextConfig

PARTS: dict[str, Any] = {
    "codec.path": lambda path: build_codec(CodecConfig(kind="wan", path=path)),
    "text.path": lambda path: build_text(TextConfig(kind="pretrained", path=path), seed=0),
    "image_encoder.path": lambda path: build_image_encoder(ImageEncoderConfig(kind="clip", path=path)),
}


@pytest.mark.parametrize("key", PARTS)
@pytest.mark.parametrize("there", [True, False])
def test_one_line_names_the_key_and_the_path(key: str, there: bool, tmp_path: Path) -> None:
    path = tmp_path / "part"
    if there:
        path.mkdir()
        (path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError) as caught:
        PARTS[key](str(path))
    told = str(caught.value)
    why = "can't be loaded" if there else "is no folder"
    assert told.startswith(f"{key} {str(path)!r} {why}")
    assert "\n" not in told


def test_what_can_be_no_hub_id_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "wam_video.training.build.AutoencoderKLWan.from_pretrained", lambda *_, **__: pytest.fail("asked")
    )
    with pytest.raises(CheckpointError, match="no folder and no hub id"):
        build_codec(CodecConfig(kind="wan", path="nope"))
