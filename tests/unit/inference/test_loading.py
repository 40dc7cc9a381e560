"""A checkpoint folder comes back to the bit; one that is incomplete or altered is refused in one line that names the file."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES, _get_custom_components_and_folders
from huggingface_hub import ModelCard

from wam_video.errors import CheckpointError
from wam_video.inference import loading
from wam_video.inference.pipeline import WAMPipeline
from wam_video.testing import fake_batch, tiny_pipeline

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "model"
    tiny_pipeline().save_pretrained(path)
    return path


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def quiet(pipeline: WAMPipeline) -> WAMPipeline:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("codec", ["pixel", "wan"])
def test_a_round_trip_is_equal_to_the_bit(codec: str, tmp_path: Path) -> None:
    before = quiet(tiny_pipeline(codec=codec, views=2))
    before.save_pretrained(tmp_path / "a")
    after = quiet(WAMPipeline.from_pretrained(tmp_path / "a"))
    for name in ("transformer", "vae", "text_encoder"):
        old, new = getattr(before, name).state_dict(), getattr(after, name).state_dict()
        assert old.keys() == new.keys()
        assert all(torch.equal(old[key], new[key]) for key in old), name
    assert dict(after.processor.config)["stats_hash"] == dict(before.processor.config)["stats_hash"]
    batch = fake_batch(before, 2)
    for mode in ("policy", "forward", "joint"):
        a, b = before.predict(batch, mode, generator=3), after.predict(batch, mode, generator=3)
        for x, y in ((a.actions, b.actions), (a.video, b.video)):
            assert (x is None and y is None) or np.array_equal(x, y)
    after.save_pretrained(tmp_path / "b")
    for file in (tmp_path / "a").rglob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes()


def test_the_facade_alone_is_enough_to_load_in_a_fresh_process(folder: Path) -> None:
    code = f"from wam_video import WAMPipeline; print(type(WAMPipeline.from_pretrained({str(folder)!r}).vae).__name__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.strip().endswith("PixelCodec"), result.stderr


def test_the_hash_of_a_model_changes_with_any_byte_of_it(copy: Path) -> None:
    before = loading.model_hash(copy)
    (copy / "README.md").write_text("words")
    (copy / "rollout_pusht.json").write_text("{}")
    assert loading.model_hash(copy) == before
    flip_statistics(copy)
    assert loading.model_hash(copy) != before


def test_the_index_names_our_package_and_the_hub_check_accepts_it(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "WAMPipeline"
    ours = {name for name, entry in index.items() if isinstance(entry, list) and entry[0] == "wam_video"}
    assert ours == {"transformer", "vae", "scheduler", "processor"}
    files = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    custom, folders = _get_custom_components_and_folders("owner/name", index, files)
    assert not custom
    parts = {"transformer", "vae", "text_encoder", "tokenizer", "scheduler", "processor"}
    assert set(folders) == parts | {"image_encoder", "image_processor"}, "as diffusers lists parts that may be null"
    assert (
        index["image_encoder"] == index["image_processor"] == [None, None]
        and {p.name for p in folder.iterdir() if p.is_dir()} == parts
    )
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl", ".py"))]


def test_the_hub_check_would_refuse_an_unregistered_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    monkeypatch.delitem(LOADABLE_CLASSES, "wam_video")
    with pytest.raises(ValueError, match="wam_video"):
        _get_custom_components_and_folders("owner/name", index, [])


def test_a_hub_id_is_fetched_as_a_folder_without_code_or_pickles(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def fetch(repo_id: str, **options) -> str:
        asked.update(options, repo_id=repo_id)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    WAMPipeline.from_pretrained("owner/name", revision="v1")
    assert asked == {"repo_id": "owner/name", "revision": "v1", "allow_patterns": ["*.json", "*.safetensors"]}


@pytest.mark.parametrize("name", ["owner/name", "./nowhere", "/no/such/model", "a/b/c"])
def test_a_model_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(CheckpointError, match=name) as caught:
        WAMPipeline.from_pretrained(name, local_files_only=True)
    assert "\n" not in str(caught.value)


def test_half_precision_is_asked_for_as_in_diffusers(folder: Path) -> None:
    pipeline = quiet(WAMPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16))
    whole = quiet(WAMPipeline.from_pretrained(folder))
    assert pipeline.transformer.patch_embedding.weight.dtype is torch.bfloat16
    assert pipeline.transformer.scale_shift_table.dtype is torch.float32
    batch = fake_batch(whole, 2)
    a, b = (p.predict(batch, "joint", generator=0, output_type="latent").video for p in (pipeline, whole))
    assert 0 < (a - b).abs().mean() < 0.05 * b.abs().mean(), "the same but for rounding"


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer_config.json",
        "scheduler/scheduler_config.json",
        "processor/processor_config.json",
    ],
)
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    expected = name if name.endswith(".json") else str(Path(name).parent)
    with pytest.raises(CheckpointError, match=expected) as caught:
        WAMPipeline.from_pretrained(copy)
    assert "\n" not in str(caught.value)


def flip_statistics(copy: Path) -> None:
    file = copy / "processor" / "processor_config.json"
    text = file.read_text()
    number = str(json.loads(text)["stats"]["arm"]["actions"]["mean"][0])
    at = text.index(number) + number.index(".") + 1
    file.write_text(text[:at] + ("1" if text[at] != "1" else "2") + text[at + 1 :])


def cut_weights(copy: Path) -> None:
    file = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def flip_a_weight(copy: Path, name: str = "transformer/diffusion_pytorch_model.safetensors") -> None:
    data = bytearray((copy / name).read_bytes())
    data[-3] ^= 1
    (copy / name).write_bytes(bytes(data))


def drop_a_tensor(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    (copy / "checksums.json").unlink()  # a folder from before weights were hashed
    file = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["blocks.0.attn1.to_q.weight"]
    save_file(tensors, file)


def edit(name: str, key: str, value: object) -> Callable[[Path], None]:
    def apply(copy: Path) -> None:
        content = json.loads((copy / name).read_text())
        content[key] = value
        (copy / name).write_text(json.dumps(content))

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_statistics, "hash"),
        (cut_weights, "diffusion_pytorch_model.safetensors can't be read"),
        (flip_a_weight, "transformer/diffusion_pytorch_model.safetensors has sha256 .* checksums.json says"),
        (
            lambda copy: flip_a_weight(copy, "text_encoder/model.safetensors"),
            "text_encoder/model.safetensors has sha256",
        ),
        (edit("checksums.json", "sha256", None), "checksums.json has no 'sha256'"),
        (edit("checksums.json", "sha256", {"vae/more.safetensors": "0"}), "vae/more.safetensors is missing"),
        (drop_a_tensor, "transformer.*blocks.0.attn1.to_q.weight"),
        (lambda copy: (copy / "vae" / "config.json").write_text("{"), "vae/config.json can't be read"),
        (edit("model_index.json", "_class_name", "WanPipeline"), "WanPipeline"),
        (edit("model_index.json", "transformer", [None, None]), "has no 'transformer'"),
        (edit("transformer/config.json", "ffn_dim", 96), "copy/transformer can't be loaded"),
        (edit("scheduler/scheduler_config.json", "solver", "rk45"), "rk45"),
        (edit("vae/config.json", "patch_size", 8), "vae has 192 latent channels, transformer reads 48"),
        (
            edit(
                "transformer/config.json", "embodiments", [{"name": n, "action_dim": 2, "state_dim": 2} for n in "ab"]
            ),
            "transformer",
        ),
    ],
)
def test_an_altered_checkpoint_is_refused_in_one_line(
    copy: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(copy)
    with pytest.raises(CheckpointError, match=message) as caught:
        WAMPipeline.from_pretrained(copy)
    assert "\n" not in str(caught.value)


def test_altered_weights_load_where_that_is_asked_for(copy: Path) -> None:
    flip_a_weight(copy)
    assert WAMPipeline.from_pretrained(copy, verify=False).transformer is not None
    with pytest.raises(CheckpointError, match="sha256"):
        WAMPipeline.from_pretrained(copy)
    part = WAMPipeline.from_pretrained(copy, verify=False).transformer
    assert WAMPipeline.from_pretrained(copy, transformer=part).transformer is part
    (copy / "checksums.json").unlink()
    assert WAMPipeline.from_pretrained(copy).transformer is not None, "a folder from before weights were hashed"


def test_hashes_are_of_what_was_saved_and_come_before_an_upload(folder: Path, tmp_path: Path) -> None:
    pipeline = WAMPipeline.from_pretrained(folder)
    uploaded: list[set[str]] = []
    pipeline._upload_folder = lambda where, *_, **__: uploaded.append({p.name for p in Path(where).iterdir()})
    with torch.no_grad():
        next(iter(pipeline.transformer.parameters())).add_(1)
    pipeline.save_pretrained(tmp_path / "again")
    old, new = (json.loads((f / "checksums.json").read_text())["sha256"] for f in (folder, tmp_path / "again"))
    assert old.keys() == new.keys()
    assert {name.partition("/")[0] for name in old if old[name] != new[name]} == {"transformer"}
    WAMPipeline.from_pretrained(tmp_path / "again")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusers.pipelines.pipeline_utils.create_repo", lambda *_, **__: SimpleNamespace(repo_id="a/b"))
        patch.setattr(
            "diffusers.pipelines.pipeline_utils.load_or_create_model_card", lambda *_, **__: ModelCard("words")
        )
        patch.setattr("diffusers.pipelines.pipeline_utils.populate_model_card", lambda card: card)
        pipeline.save_pretrained(str(tmp_path / "pushed"), push_to_hub=True)
    assert "checksums.json" in uploaded[0]


def test_parts_of_two_models_do_not_go_together() -> None:
    one, other = tiny_pipeline(), tiny_pipeline(action_free=True)
    with pytest.raises(CheckpointError, match="transformer has 2 embodiments, processor 3"):
        WAMPipeline(**{**one.components, "processor": other.processor})
    with pytest.raises(CheckpointError, match="vae has 4 latent channels, transformer reads 48"):
        WAMPipeline(**{**one.components, "vae": tiny_pipeline(codec="wan").vae})
    with pytest.raises(CheckpointError, match="processor has 2 views, transformer at most 1"):
        WAMPipeline(**{**one.components, "processor": tiny_pipeline(views=2).processor})
