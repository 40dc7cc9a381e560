import resource
from dataclasses import replace

import numpy as np
import pytest

from wam_video.data.encode import WriterConfig, encode_episode
from wam_video.data.manifest import load_manifest, verify_manifest
from wam_video.data.reader import load_clip
from wam_video.data.video import ArrayView
from wam_video.data.writer import ShardWriter
from wam_video.errors import ConfigError, DataError


def config(**options):
    return WriterConfig(**{"dataset": "toy", "height": 16, "width": 16, "fit": "stretch", "clip_frames": 24, **options})


def clips(folder, split):
    return [load_clip(folder, shard, sample) for shard, sample in load_manifest(folder).split(split)]


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def brightness(clip):
    return clip.video["front"].mean((1, 2, 3))


def test_clips_hold_every_frame_and_action_once_and_in_place(shards):
    everything = [*clips(shards, "train"), *clips(shards, "val")]
    for number in range(6):
        mine = sorted(
            (c for c in everything if c.info["episode_id"] == f"ep{number:03d}"), key=lambda c: c.info["clip_start_s"]
        )
        assert [c.info["clip_start_s"] for c in mine] == [0, 2.4]
        light = np.concatenate([brightness(c) for c in mine])
        assert np.abs(light - (20 + 3 * np.arange(40))).max() < 2
        actions = np.concatenate([c.actions for c in mine])
        assert np.array_equal(actions[:, 0], np.arange(78, dtype=np.float32) + 1000 * number)
        for clip in mine:
            assert len(clip.state) == len(clip.actions) + 1
            assert np.allclose(clip.actions, clip.state[:-1] + 0.5)
            # the first action starts with the first frame
            assert clip.actions[0, 0] - 1000 * number == pytest.approx(clip.info["clip_start_s"] * 20)


def test_resampling_takes_the_frame_nearest_in_time_and_keeps_the_actions(toys, tmp_path):
    folder = toys.write(tmp_path / "out", [toys.episode(0, frames=41, fps=20, rate=20)], fps=5, val_fraction=0)
    (clip,) = clips(folder, "train")
    assert (clip.info["fps"], clip.info["action_rate"]) == (5, 20)
    assert np.abs(brightness(clip) - (20 + 3 * 4 * np.arange(11))).max() < 2
    assert np.array_equal(clip.actions[:, 0], np.arange(40))


def test_rates_that_meet_rarely_still_cut_where_an_action_starts(toys, tmp_path):
    folder = toys.write(tmp_path / "out", [toys.episode(0, frames=61, fps=10, rate=15)], val_fraction=0, clip_frames=25)
    starts = [(c.info["clip_start_s"], c.actions[0, 0]) for c in clips(folder, "train")]
    assert starts[0] == (0, 0)
    assert len(starts) > 1
    assert all(action == pytest.approx(seconds * 15) for seconds, action in starts)


def test_overlap_repeats_frames_and_actions(toys, tmp_path):
    folder = toys.write(tmp_path / "out", [toys.episode(0)], val_fraction=0, clip_overlap_frames=8)
    first, second = clips(folder, "train")
    assert second.info["clip_start_s"] == pytest.approx(1.6)
    assert np.array_equal(first.actions[-16:], second.actions[:16])


def test_the_same_episodes_give_the_same_bytes(toys, shards, tmp_path):
    again = toys.write(tmp_path / "again", [toys.episode(i) for i in range(6)])
    assert contents(again) == contents(shards)


def test_encoding_apart_from_writing_changes_nothing(toys, shards, tmp_path):
    encoded = [encode_episode(toys.episode(i), config()) for i in reversed(range(6))]
    with ShardWriter(tmp_path / "out", config()) as writer:
        for item in reversed(encoded):
            writer.add(item)
    assert contents(tmp_path / "out") == contents(shards)


def test_shards_roll_and_the_manifest_matches_them(toys, tmp_path):
    folder = toys.write(tmp_path / "out", [toys.episode(i) for i in range(5)], shard_bytes=6000)
    manifest = load_manifest(folder)
    assert len(manifest.shards) > 2
    verify_manifest(folder, manifest)
    assert manifest.counts["total"]["episodes"] == 5
    assert manifest.counts["total"]["frames"] == 200
    assert len(clips(folder, "train")) + len(clips(folder, "val")) == 10


def test_plain_webdataset_reads_a_shard(shards):
    webdataset = pytest.importorskip("webdataset")
    manifest = load_manifest(shards)
    for shard in manifest.shards:
        found = list(webdataset.WebDataset(str(shards / shard.name), shardshuffle=False))
        assert [s["__key__"] for s in found] == [s.key for s in shard.samples]
        assert {k for k in found[0] if not k.startswith("__")} == {"front.mp4", "actions.npy", "state.npy", "json"}


@pytest.mark.parametrize("count", [2, 3, 5])
def test_few_episodes_still_give_both_splits(toys, tmp_path, count):
    folder = toys.write(tmp_path / "out", [toys.episode(i) for i in range(count)])
    manifest = load_manifest(folder)
    assert manifest.splits == ("train", "val")
    ids = {s: {e.episode_id for _, e in manifest.split(s)} for s in manifest.splits}
    assert not ids["train"] & ids["val"]
    verify_manifest(folder, manifest)
    assert clips(folder, "val")


def test_a_split_does_not_change_when_episodes_are_added(toys, tmp_path):
    few = load_manifest(toys.write(tmp_path / "few", [toys.episode(i, frames=4) for i in range(20)]))
    many = load_manifest(toys.write(tmp_path / "many", [toys.episode(i, frames=4) for i in range(30)]))
    train = {e.episode_id for _, e in many.split("train")}
    assert all(e.episode_id in train for _, e in few.split("train"))


def test_skips_and_notes_are_in_the_manifest(toys, tmp_path):
    black = replace(
        toys.episode(1), views={"front": ArrayView(np.zeros((40, 24, 32, 3), np.uint8), np.arange(40) / 10)}
    )
    with ShardWriter(tmp_path / "out", config()) as writer:
        writer.write(replace(toys.episode(0), notes=("odd",)))
        writer.write(black)
        writer.skip("ep9", "the video is missing")
    manifest = load_manifest(tmp_path / "out")
    assert [(s.episode_id, s.reason) for s in manifest.skipped] == [("ep9", "the video is missing")]
    assert manifest.notes["odd"] == 1
    assert manifest.notes["blank_view_front"] >= 1


def test_a_full_disk_is_one_line_and_leaves_nothing(toys, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, hard))
    try:
        with pytest.raises(DataError, match="free some space") as caught:
            toys.write(tmp_path / "out", [toys.episode(i) for i in range(6)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_leaves_nothing(toys, tmp_path, error):
    def episodes():
        yield toys.episode(0)
        raise error

    with pytest.raises(error):
        toys.write(tmp_path / "out", episodes())
    assert list(tmp_path.iterdir()) == []


def skip_all(folder):
    with ShardWriter(folder, config()) as writer:
        writer.skip("ep1", "it is blue")


def test_no_episode_is_an_error_that_quotes_the_first_skip(tmp_path):
    with pytest.raises(DataError, match=r"no episode.*it is blue"):
        skip_all(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_exists_is_kept(toys, shards):
    before = contents(shards)
    with pytest.raises(DataError, match="exists already"):
        toys.write(shards, [toys.episode(0)])
    assert contents(shards) == before


def test_a_bad_episode_is_named_and_writing_goes_on(toys, tmp_path):
    good = toys.episode(0)
    nan = good.actions.copy()
    nan[5, 1] = np.nan
    bad = {
        "NaN or infinity at row 5": replace(good, actions=nan),
        "state has shape": replace(good, state=good.state[:-1]),
        "actions has type float64": replace(good, actions=good.actions.astype(np.float64)),
        "it has no views": replace(good, views={}),
        "view 'back' is not one of": replace(good, views={"back": good.views["front"]}),
        "no dots": replace(good, episode_id="a.b"),
        "ends before frame": replace(
            good, views={"front": ArrayView(good.views["front"].array[:20], good.views["front"].times)}
        ),
        "must rise": replace(good, views={"front": ArrayView(good.views["front"].array, np.zeros(40))}),
    }
    with ShardWriter(tmp_path / "out", config(val_fraction=0)) as writer:
        for message, episode in bad.items():
            with pytest.raises(DataError, match=message) as caught:
                writer.write(episode)
            assert episode.episode_id in str(caught.value)
        writer.write(good)
        with pytest.raises(DataError, match="'ep000' came twice"):
            writer.write(good)
        with pytest.raises(DataError, match="embodiment 'toy' has other dims"):
            writer.write(toys.episode(1, dim=2))
    assert load_manifest(tmp_path / "out").counts["total"]["episodes"] == 1


def test_more_frames_than_were_recorded_are_not_invented(toys, tmp_path):
    with pytest.raises(DataError, match="recorded at 10 fps, less than the 20 asked"):
        toys.write(tmp_path / "out", [toys.episode(0)], fps=20)


@pytest.mark.parametrize(
    "wrong", [{"height": 15}, {"fit": "fill"}, {"gop": 9}, {"dataset": "a.b"}, {"clip_overlap_frames": 24}]
)
def test_a_wrong_writer_configuration_is_refused(wrong):
    with pytest.raises((ConfigError, DataError)):
        config(**wrong)


def test_a_clip_that_starts_late_or_views_of_other_lengths_are_cut_to_what_all_have(toys, tmp_path):
    one = toys.episode(0, views=("front", "wrist"))
    short = ArrayView(one.views["wrist"].array[:30], one.views["wrist"].times[:30])
    folder = toys.write(
        tmp_path / "out",
        [replace(one, views={"front": one.views["front"], "wrist": short})],
        val_fraction=0,
        clip_frames=99,
    )
    (clip,) = clips(folder, "train")
    assert {v.shape[0] for v in clip.video.values()} == {30}
    assert len(clip.actions) == 60
    assert load_manifest(folder).notes["actions_outlast_video"] == 1
