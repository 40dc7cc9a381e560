import io
import json
import pickle
import tarfile
from dataclasses import replace

import numpy as np
import pytest

from wam_video.data.manifest import load_manifest, verify_manifest
from wam_video.data.reader import allowed_suffix, load_clip
from wam_video.data.verify import verify
from wam_video.errors import DataError


@pytest.fixture
def folder(toys, tmp_path):
    return toys.write(tmp_path / "shards", [toys.episode(i) for i in range(2)])


def load_first(folder):
    return load_clip(folder, *load_manifest(folder).split("train")[0])


class Bomb:
    def __reduce__(self):
        return (print, ("executed",))


def npy(array, allow_pickle=False):
    sink = io.BytesIO()
    np.save(sink, array, allow_pickle=allow_pickle)
    return sink.getvalue()


def member(members, suffix):
    return next(name for name in members if name.endswith(suffix))


def put(suffix, content):
    return lambda members: members.update({member(members, suffix): content(members[member(members, suffix)])})


def add(name, content=b"x"):
    return lambda members: members.update({name.format(key=member(members, ".json").removesuffix(".json")): content})


def change_json(**values):
    return put(".json", lambda content: json.dumps(json.loads(content) | values).encode())


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (add("{key}.extra.pkl", pickle.dumps(Bomb())), r"\.extra\.pkl' is not allowed"),
        (add("{key}.pyd"), "is not allowed"),
        (add("../{key}.json"), "does not belong"),
        (add("/etc/{key}.json"), "does not belong"),
        (add("other.json", b"{}"), "does not belong"),
        (put(".mp4", lambda content: content[: len(content) // 2]), r"front\.mp4.*truncated"),
        (put(".mp4", lambda content: b""), r"front\.mp4"),
        (put("actions.npy", lambda content: npy(np.array([Bomb()]), allow_pickle=True)), "is no numeric"),
        (put("actions.npy", lambda content: content[:-8]), "is no numeric"),
        (put("actions.npy", lambda content: npy(np.array(["a"]))), "only numbers"),
        (put("actions.npy", lambda content: npy(np.full((48, 3), np.nan, np.float32))), "48 finite rows"),
        (put("state.npy", lambda content: npy(np.zeros((48, 3), np.float32))), "49 finite rows"),
        (put(".json", lambda content: b"{"), "json is broken"),
        (put(".json", lambda content: b"[]"), "json is broken"),
        (change_json(schema_version=99), "schema version is 99"),
        (change_json(num_frames=25), "truncated"),
        (lambda members: members.pop(member(members, ".json")), "no json member"),
    ],
)
def test_a_bad_member_is_one_line_that_names_shard_and_sample(toys, folder, edit, message, capsys):
    toys.rewrite_first_sample(folder, edit)
    verify_manifest(folder, load_manifest(folder))  # the manifest does not save us: it was made for these bytes
    with pytest.raises(DataError, match=message) as caught:
        load_first(folder)
    key = load_manifest(folder).split("train")[0][1].key
    assert key in str(caught.value)
    assert "toy-train-000000.tar" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_a_link_or_device_is_refused(toys, folder, kind):
    key = load_manifest(folder).split("train")[0][1].key
    info = tarfile.TarInfo(f"{key}.text.npy")
    info.type, info.linkname = kind, "/etc/passwd"
    toys.rewrite_first_sample(folder, lambda members: None, extra=[info])
    with pytest.raises(DataError, match="link or no plain file"):
        load_first(folder)


def test_a_member_that_comes_twice_is_refused(toys, folder):
    key = load_manifest(folder).split("train")[0][1].key
    toys.rewrite_first_sample(folder, lambda members: None, extra=[tarfile.TarInfo(f"{key}.json")])
    with pytest.raises(DataError, match="comes twice"):
        load_first(folder)


@pytest.mark.parametrize("member_index", [0, 1, 3])
def test_a_broken_header_is_an_error_and_never_a_shorter_sample(folder, member_index):
    manifest = load_manifest(folder)
    shard, sample = manifest.split("train")[0]
    path = folder / shard.name
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        header = tar.getmembers()[member_index].offset
    data[header + 150] ^= 0xFF  # within the checksum
    path.chmod(0o644)
    path.write_bytes(data)
    with pytest.raises(DataError, match="corrupt") as caught:
        load_clip(folder, shard, sample)
    assert sample.key in str(caught.value)
    with pytest.raises(DataError, match="sha256"):
        verify_manifest(folder, manifest)


def test_a_shard_that_is_cut_short_is_named(folder):
    manifest = load_manifest(folder)
    shard, sample = manifest.split("train")[-1]
    path = folder / shard.name
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[: sample.offset + 100])
    with pytest.raises(DataError, match=r"toy-train-000000\.tar' ends within sample"):
        load_clip(folder, shard, sample)
    with pytest.raises(DataError, match=r"toy-train-000000\.tar' has \d+ bytes; the manifest says"):
        verify_manifest(folder, manifest, hashes=False)


def test_a_missing_shard_is_named(folder):
    manifest = load_manifest(folder)
    (folder / manifest.shards[0].name).unlink()
    with pytest.raises(DataError, match="is missing"):
        verify_manifest(folder, manifest)
    with pytest.raises(DataError, match="can't be read"):
        load_clip(folder, manifest.shards[0], manifest.shards[0].samples[0])


def test_the_manifest_survives_a_round_trip_and_refuses_what_it_does_not_know(toys, folder):
    manifest = load_manifest(folder)
    assert manifest.embodiments["toy"].views == ("front",)
    path = folder / "manifest.json"
    content = path.read_text()
    for edit, message in (
        (lambda m: m.update(schema_version=2), "schema version is 2; this library reads up to 1"),
        (lambda m: m.pop("shards"), "missing or wrong"),
        (lambda m: m.pop("schema_version"), "not a manifest"),
        (lambda m: m["shards"][0].update(name="../../etc/passwd.tar"), "not the name of a tar"),
    ):
        path.write_text(content)
        toys.edit_json(path, edit)
        with pytest.raises(DataError, match=message):
            load_manifest(folder)
    path.write_text(content[:100])
    with pytest.raises(DataError, match="not a manifest"):
        load_manifest(folder)
    with pytest.raises(DataError, match=r"holds no manifest\.json"):
        load_manifest(folder.parent)


def test_only_listed_suffixes_are_ever_decoded():
    good = [
        "front.mp4",
        "actions.npy",
        "state.npy",
        "reward.npy",
        "text.npy",
        "json",
        "latents.front.npy",
        "source.actions.npy",
    ]
    bad = [
        "mp4",
        ".mp4",
        "a.b.mp4",
        "latents",
        "latents.npy",
        "source.front.npy",
        "source",
        "pkl",
        "actions.pkl",
        "actions.npy.pkl",
        "py",
        "",
        "npy",
        "pth",
        "cls",
    ]
    assert all(map(allowed_suffix, good))
    assert not any(map(allowed_suffix, bad))


def test_members_reserved_for_pre_encoding_are_carried_and_never_opened(toys, folder, capsys):
    before = load_first(folder)
    key = load_manifest(folder).split("train")[0][1].key
    bomb = {"latents.front.npy": npy(np.array([Bomb()], dtype=object), allow_pickle=True), "text.npy": b"no array"}
    toys.rewrite_first_sample(
        folder, lambda members: members.update({f"{key}.{name}": data for name, data in bomb.items()})
    )
    after = load_first(folder)
    assert after.info == before.info
    assert all(np.array_equal(after.video[view], before.video[view]) for view in before.video)
    assert np.array_equal(after.actions, before.actions)
    assert list(verify(folder)) == []
    assert "executed" not in capsys.readouterr().out


def test_views_are_decoded_in_the_order_asked_and_only_these(toys, tmp_path):
    folder = toys.write(tmp_path / "two", [toys.episode(0, views=("front", "wrist"))], val_fraction=0)
    entry = load_manifest(folder).split("train")[0]
    assert list(load_clip(folder, *entry).video) == ["front", "wrist"]
    assert list(load_clip(folder, *entry, views=["wrist", "absent", "front"]).video) == ["wrist", "front"]
    assert list(load_clip(folder, *entry, views=["wrist"]).video) == ["wrist"]
    assert replace(load_clip(folder, *entry), video={}).nbytes > 0
