import json

import pytest
import torch

from wam_video.data.loader import DataConfig, DatasetConfig, WindowDataset
from wam_video.data.processor import WAMProcessor
from wam_video.data.windows import WindowConfig
from wam_video.errors import CheckpointError, ConfigError, DataError


@pytest.fixture(scope="module")
def dataset(shards, plain_shards, toys, tmp_path_factory):
    wide = toys.write(
        tmp_path_factory.mktemp("wide") / "out", [toys.episode(9, dim=5, name="wide", views=("a", "b"))], val_fraction=0
    )
    datasets = {str(p.parent.name): DatasetConfig(path=str(p)) for p in (shards, plain_shards, wide)}
    return WindowDataset(DataConfig(datasets=datasets, window=WindowConfig(max_views=3, action_horizons={"toy": 4})))


@pytest.fixture
def processor(dataset):
    return WAMProcessor.from_dataset(dataset)


def test_it_knows_the_bodies_of_the_dataset(processor, dataset):
    assert [processor.index(name) for name in dataset.embodiments] == [0, 1, 2]
    assert processor.indices(["wide", "clip", "wide"]).tolist() == [2, 0, 2]
    assert (processor.max_action_dim, processor.max_state_dim, processor.num_views) == (5, 5, 2)
    assert processor.action_dim("toy") == 3
    assert processor.spec("wide") == dataset.embodiments["wide"]
    assert processor.window == dataset.window
    assert (processor.window.height, processor.window.width) == (16, 16)


@pytest.mark.parametrize("kind", ["quantile", "mean_std", "min_max"])
def test_normalising_there_and_back_loses_nothing_and_padding_stays_zero(dataset, kind):
    processor = WAMProcessor.from_dataset(dataset, kind)
    batch = dataset.batch(range(48))
    ids = processor.indices(batch.embodiments)
    there = processor.normalize_actions(batch.actions, ids)
    back = processor.denormalize_actions(there, ids)
    real = batch.action_mask
    assert torch.allclose(back[real], batch.actions[real], rtol=1e-5, atol=0.02)
    assert there[real].abs().max() < 4
    dims = torch.tensor([processor.action_dim(name) for name in batch.embodiments])
    padded = (torch.arange(5) >= dims[:, None])[:, None].expand_as(there)
    assert (there[padded] == 0).all()
    assert (processor.denormalize_actions(there + 7, ids)[padded] == 0).all()
    state = processor.normalize_state(batch.state, ids)
    assert state[batch.state_mask].abs().max() < 4
    assert there.dtype == state.dtype == torch.float32


def test_each_body_is_normalised_by_its_own_statistics(processor, dataset):
    same = torch.full((2, 1, 5), 500.0)
    toy, wide = processor.normalize_actions(same, processor.indices(["toy", "wide"]))
    stats = dataset.stats["toy"]["actions"]
    expected = (500 - (stats["q01"][0] + stats["q99"][0]) / 2) / ((stats["q99"][0] - stats["q01"][0]) / 2)
    assert toy[0, 0].item() == pytest.approx(expected, rel=1e-4)
    assert toy[0, 0] != wide[0, 0]


def test_saving_and_loading_gives_the_same_processor(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["processor_config.json"]
    loaded = WAMProcessor.from_pretrained(tmp_path)
    assert loaded.window == processor.window
    assert loaded.config.stats_hash == processor.config.stats_hash
    assert loaded.spec("wide") == processor.spec("wide")
    x = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([0, 1, 2])
    assert torch.equal(loaded.normalize_actions(x, ids), processor.normalize_actions(x, ids))
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "processor_config.json").read_bytes() == (
        tmp_path / "processor_config.json"
    ).read_bytes()


def test_it_knows_how_recordings_were_resized_also_after_loading(processor, tmp_path):
    assert processor.fit("toy") == "stretch", "as the shards were written"
    processor.save_pretrained(tmp_path)
    assert WAMProcessor.from_pretrained(tmp_path).fit("toy") == "stretch"
    path = tmp_path / "processor_config.json"
    content = json.loads(path.read_text())
    content["fit"]["toy"] = "squeeze"
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="fit of 'toy' is 'squeeze'; allowed: crop, pad, stretch"):
        WAMProcessor.from_pretrained(tmp_path)
    del content["fit"]
    path.write_text(json.dumps(content))
    assert WAMProcessor.from_pretrained(tmp_path).fit("toy") == "pad", "a folder from before it was stored"


def test_altered_statistics_are_an_error_that_names_both_hashes(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"
    content = json.loads(path.read_text())
    content["stats"]["toy"]["actions"]["mean"][0] += 0.001
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=f"the checkpoint says {processor.config.stats_hash[:16]}") as caught:
        WAMProcessor.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_unknown_embodiment_lists_the_known_ones(processor):
    with pytest.raises(ConfigError, match=r"embodiment is 'toi'; allowed: clip, toy, wide\. Did you mean 'toy'"):
        processor.indices(["toi"])


def test_a_wrong_width_is_refused(processor):
    with pytest.raises(DataError, match=r"actions is 3 wide.*padded to 5"):
        processor.normalize_actions(torch.zeros(1, 2, 3), torch.tensor([0]))


def test_missing_statistics_or_bodies_are_refused(dataset):
    toy = {"name": "toy", "action_dim": 3, "state_dim": 0, "views": ["front"], "fps": 10, "action_rate": 20}
    with pytest.raises(CheckpointError, match="hold 0 dimensions of actions of embodiment 'toy', which has 3"):
        WAMProcessor([toy], {})
    with pytest.raises(CheckpointError, match="hold 3 dimensions of actions of embodiment 'toy', which has 4"):
        WAMProcessor([toy | {"action_dim": 4}], dataset.stats)
    with pytest.raises(ConfigError, match="each name once"):
        WAMProcessor([toy, toy], dataset.stats)
    with pytest.raises(ConfigError, match="processor window"):
        WAMProcessor([toy], dataset.stats, window={"horizon": 3})
    with pytest.raises(ConfigError, match="normalization is 'none'"):
        WAMProcessor([toy], dataset.stats, "none")
