"""Frames of large videos are decoded when they are taken: the same frames, no more of them than needed, whatever is asked first."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest

from tests.unit.data.conftest import toy_episode, write_shards
from wam_video.data import reader
from wam_video.data.lazy_video import LazyVideo
from wam_video.data.loader import DataConfig, DatasetConfig, WindowDataset
from wam_video.data.video import encode_mp4, open_video
from wam_video.data.windows import WindowConfig
from wam_video.errors import DataError


@pytest.fixture(scope="module")
def mp4():
    noise = np.random.default_rng(0).integers(0, 255, (80, 6, 10, 3), np.uint8)
    return encode_mp4(np.kron(noise, np.ones((1, 8, 8, 1), np.uint8)), fps=10)


def test_frames_are_those_of_the_whole_video_in_any_order(mp4):
    whole = open_video(mp4, decoder="pyav").get(range(80))
    rng = np.random.default_rng(1)
    video = LazyVideo(mp4, "v")
    assert (video.shape, len(video)) == (whole.shape, 80)
    for _ in range(12):
        indices = rng.integers(0, 80, 7)
        assert np.array_equal(video.take(indices), whole[indices])
    out = np.empty((2, *whole.shape[1:]), np.uint8)
    video.take([79, 200], axis=0, out=out, mode="clip")
    assert np.array_equal(out, whole[[79, 79]])
    assert np.array_equal(video.whole(), whole)


def test_a_window_costs_its_frames_and_those_since_their_keyframe(mp4):
    video = LazyVideo(mp4, "v")
    video.take(range(21, 30))
    assert video.decoded == 30 - 16
    video.take(range(16, 30))
    assert video.decoded == 30 - 16
    video.take([3, 70])
    assert video.decoded == 30 - 16 + 4 + 7


def test_what_is_broken_is_told_where_it_is_needed(mp4):
    with pytest.raises(DataError, match="'v' can't be decoded"):
        LazyVideo(mp4[:300], "v")
    with av.open(io.BytesIO(mp4)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    start, size = packets[45]
    cut = bytearray(mp4)
    cut[start : start + size] = b"\xff" * size
    video = LazyVideo(bytes(cut), "v")
    assert video.take(range(8)).shape[0] == 8
    with pytest.raises(DataError, match="'v'"):
        video.take([47])


def make(folder, **options):
    config = DataConfig(datasets={"d": DatasetConfig(path=str(folder))}, window=WindowConfig(), **options)
    return WindowDataset(config, 3)


def test_batches_are_the_same_bits_and_do_not_depend_on_what_was_asked_before(tmp_path, monkeypatch):
    folder = write_shards(tmp_path / "s", [toy_episode(i, frames=60) for i in range(3)], clip_frames=60, val_fraction=0)
    eager = make(folder)
    wanted = [eager.batch(range(s, s + 6)) for s in range(0, 60, 6)]
    assert eager._sets[0].load(0, eager._cache, "auto").video["front"].__class__ is np.ndarray
    monkeypatch.setattr(reader, "LAZY_BYTES", 0)
    for order in (range(10), reversed(range(10))):
        lazy = make(folder)
        for step in order:
            found = lazy.batch(range(6 * step, 6 * step + 6))
            assert found.keys == wanted[step].keys
            assert np.array_equal(found.video, wanted[step].video)
    assert lazy._sets[0].load(0, lazy._cache, "auto").video["front"].__class__ is LazyVideo


def test_held_out_windows_are_decoded_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "LAZY_BYTES", 0)
    folder = write_shards(tmp_path / "s", [toy_episode(i) for i in range(4)], val_fraction=0.5)
    held_out = make(folder).held_out()
    assert held_out._sets[0].load(0, held_out._cache, "auto").video["front"].__class__ is np.ndarray


def _raw(size, count):
    """A bare H.264 stream that says its size with each of its keyframes."""
    sink = io.BytesIO()
    with av.open(sink, "w", format="h264") as container:
        options = {"x264-params": "keyint=1:bframes=0:repeat-headers=1:threads=1"}
        stream = container.add_stream("libx264", rate=10, options=options)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for number in range(count):
            frame = np.full((size, size, 3), 40 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return sink.getvalue()


def test_a_frame_of_another_size_is_an_error_that_names_the_video():
    sink = io.BytesIO()
    with av.open(io.BytesIO(_raw(64, 2) + _raw(32, 2)), format="h264") as raw, av.open(sink, "w", format="mp4") as film:
        stream = film.add_stream_from_template(raw.streams.video[0])
        for number, packet in enumerate(p for p in raw.demux(video=0) if p.size):
            packet.stream, packet.time_base = stream, Fraction(1, 10_000)
            packet.pts = packet.dts = 1000 * number
            film.mux(packet)
    video = LazyVideo(sink.getvalue(), "v")
    assert video.take([0, 1]).shape == (2, 64, 64, 3)
    with pytest.raises(DataError, match="'v' has a frame of 32x32"):
        video.take([3])
