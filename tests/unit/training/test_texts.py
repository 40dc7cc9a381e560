"""Prompts that were encoded before training give the run that encodes them itself, to the bit, and only that encoder's."""

import pytest
import torch
from safetensors.torch import save_file

from tests.unit.data.conftest import toy_episode, write_shards
from tests.unit.training.fakes import differing, tiny_config, tiny_trainer, weights
from wam_video.cli.main import main as command
from wam_video.data.loader import DataConfig, DatasetConfig
from wam_video.data.windows import WindowConfig
from wam_video.errors import DataError
from wam_video.models.text import build_byte_t5, encode_text
from wam_video.training import sample
from wam_video.training.config import TextConfig
from wam_video.training.feed import ShardFeed
from wam_video.training.texts import NAME, StoredTexts, prompts_of, write_texts

PARTS = {"d_model": 16, "num_layers": 1, "num_heads": 2, "max_length": 12}


@pytest.fixture
def shards(tmp_path):
    return write_shards(tmp_path / "shards", [toy_episode(i) for i in range(2)])


def data(folder):
    return DataConfig(datasets={"a": DatasetConfig(path=str(folder))}, window=WindowConfig(action_horizon=4))


def test_rows_are_the_encoders_to_the_bit(shards):
    tokenizer, encoder = build_byte_t5(**PARTS)
    prompts = prompts_of(shards)
    assert prompts == ["", "move it", "push it", "shove it"]
    assert write_texts(shards, [*prompts, "longer than twelve letters"], tokenizer, encoder) == 5
    stored = StoredTexts.open(data(shards), tokenizer, encoder)
    for prompt in (*prompts, "longer than twelve letters"):
        with torch.no_grad():  # as training does; attention has another kernel where gradients are wanted
            assert torch.equal(stored.get(prompt), encode_text(tokenizer, encoder, [prompt])[0]), prompt
    assert stored.get("unknown") is None
    assert stored.missing(["", "unknown"]) == ["unknown"]


def test_another_encoder_is_refused_and_none_is_none(shards):
    assert StoredTexts.open(data(shards), *build_byte_t5(**PARTS)) is None
    write_texts(shards, [""], *build_byte_t5(**PARTS))
    for other in ({"seed": 1}, {"max_length": 13}):
        with pytest.raises(DataError, match=r"dataset 'a'.*encode the prompts again"):
            StoredTexts.open(data(shards), *build_byte_t5(**{**PARTS, **other}))


def test_a_run_from_stored_prompts_is_the_run_that_encodes_them_and_never_asks_the_encoder(
    shards, tmp_path, monkeypatch
):
    def run(name):
        text = TextConfig(**PARTS, prompt_dropout=0.3)
        config = tiny_config(tmp_path / name, data=data(shards), text=text, steps=3)
        trainer = tiny_trainer(config, ShardFeed(config.data, config.seed))
        trainer.run([])
        return weights(trainer)

    plain = run("plain")
    arguments = ["text.d_model=16", "text.num_layers=1", "text.num_heads=2", "text.max_length=12"]
    assert command(["data", "encode", str(shards), "--texts", "--config", *arguments]) == 0
    assert (shards / NAME).is_file()
    monkeypatch.setattr(sample, "encode_text", lambda *_: pytest.fail("the encoder was asked"))
    assert not differing(plain, run("stored"))


@pytest.mark.parametrize("kept", [5, 200])
def test_a_file_that_is_cut_short_or_not_ours_is_named(shards, kept):
    write_texts(shards, ["", "push it"], *build_byte_t5(**PARTS))
    whole = (shards / NAME).read_bytes()
    (shards / NAME).write_bytes(whole[:kept])
    with pytest.raises(DataError, match=r"dataset 'a': .*texts.safetensors' is broken .* or remove the file"):
        StoredTexts.open(data(shards), *build_byte_t5(**PARTS))
    save_file({"foreign": torch.zeros(1)}, shards / NAME)
    with pytest.raises(DataError, match=r"is broken \('__encoder__'\)"):
        StoredTexts.open(data(shards), *build_byte_t5(**PARTS))


def test_a_disk_that_does_not_take_the_file_is_told_and_the_one_before_stays(shards, monkeypatch):
    parts = build_byte_t5(**PARTS)
    write_texts(shards, [""], *parts)
    before = (shards / NAME).read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DataError, match="No space left on device; make room"):
        write_texts(shards, ["", "push it"], *parts)
    assert (shards / NAME).read_bytes() == before
    assert not list(shards.glob("*.tmp"))
