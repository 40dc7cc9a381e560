import io

import numpy as np
import pytest

from wam_video.data.video import ArrayView, FileView, encode_mp4, open_video, resize
from wam_video.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    y, x = np.mgrid[:48, :64]
    pattern = [
        np.stack([128 + 100 * np.sin((x + 2 * i) / 9), 128 + 100 * np.cos((y + i) / 7), (x + y + i) % 200], -1)
        for i in range(30)
    ]
    return np.stack(pattern).astype(np.uint8)


@pytest.fixture(scope="module")
def mp4(frames: np.ndarray) -> bytes:
    return encode_mp4(frames, 10)


def read_all(path, decoder):
    reader = open_video(path, decoder=decoder)
    return reader.get(range(len(reader)))


def test_the_same_frames_give_the_same_bytes(frames, mp4):
    assert encode_mp4(iter(frames), 10) == mp4
    assert encode_mp4(frames[:-1], 10) != mp4


@pytest.mark.parametrize(("height", "width"), [(16, 32), (32, 48), (32, 32)])
def test_small_frames_give_the_same_bytes_wherever_they_lie_in_memory(height, width):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (24, height, width, 3), dtype=np.uint8)
    held, made = [], set()
    for _ in range(12):
        held.append(np.empty(rng.integers(1, 50_000), np.uint8))
        made.add(encode_mp4(noise, 10))
    assert len(made) == 1


@pytest.mark.parametrize("width", [16, 24, 48, 64, 72])
def test_every_width_can_be_read(width):
    noise = np.random.default_rng(0).integers(0, 255, (3, 16, width, 3), dtype=np.uint8)
    data = encode_mp4(noise, 10)
    assert np.array_equal(open_video(data).get([0, 2]), open_video(data, decoder="pyav").get([0, 2]))


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_frames_come_back_in_the_order_asked(frames, mp4, decoder):
    if decoder == "decord":
        pytest.importorskip("decord")
    reader = open_video(mp4, decoder=decoder)
    everything = reader.get(range(30))
    assert (len(reader), reader.fps, everything.shape) == (30, 10.0, (30, 48, 64, 3))
    error = np.mean((everything.astype(float) - frames) ** 2)
    assert 10 * np.log10(255**2 / error) > 30
    assert np.array_equal(reader.get([29, 3, 3, 17, 0]), everything[[29, 3, 3, 17, 0]])
    with pytest.raises(DataError, match="frame 30 asked of 30"):
        reader.get([30])


def test_both_decoders_give_the_same_pixels(mp4):
    pytest.importorskip("decord")
    indices = [0, 7, 8, 9, 21, 29]
    assert np.array_equal(open_video(mp4, decoder="decord").get(indices), open_video(mp4, decoder="pyav").get(indices))


def test_keyframes_come_at_least_every_eight_frames_and_nothing_is_reordered(mp4):
    import av

    with av.open(io.BytesIO(mp4)) as container:
        packets = [p for p in container.demux(video=0) if p.pts is not None]
    keys = [i for i, p in enumerate(packets) if p.is_keyframe]
    assert keys[0] == 0
    assert max(np.diff([*keys, len(packets)])) <= 8
    assert [p.pts for p in packets] == sorted(p.pts for p in packets)
    assert all(p.pts == p.dts for p in packets)


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
@pytest.mark.parametrize("kept", [0, 200, 0.5, 0.8])
def test_a_truncated_video_is_a_one_line_error(mp4, tmp_path, decoder, kept):
    path = tmp_path / "cut.mp4"
    path.write_bytes(mp4[: int(kept if kept > 1 else kept * len(mp4))])
    with pytest.raises(DataError, match=r"cut\.mp4.*truncated") as caught:
        read_all(path, decoder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_a_damaged_video_is_told_in_our_line_only(mp4, tmp_path, decoder, capfd):
    start = mp4.index(b"mdat") + 500
    path = tmp_path / "cam.mp4"
    path.write_bytes(mp4[:start] + bytes(len(mp4) // 3) + mp4[start + len(mp4) // 3 :])
    with pytest.raises(DataError, match=r"cam\.mp4' can't be decoded \((?!\[\d\d:)\S") as caught:
        read_all(path, decoder)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == "", "libav wrote to the terminal by itself"


def test_decord_would_have_told_more(mp4, capfd):
    decord = pytest.importorskip("decord")
    start = mp4.index(b"mdat") + 500
    decord.logging.set_level(decord.logging.ERROR)
    reader = decord.VideoReader(io.BytesIO(mp4[:start] + bytes(len(mp4) // 3) + mp4[start + len(mp4) // 3 :]))
    with pytest.raises(decord.DECORDError):
        reader.get_batch(range(len(reader)))
    assert "h264" in capfd.readouterr().err


def test_a_missing_file_and_an_unknown_decoder_are_named(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.mp4' does not exist"):
        open_video(tmp_path / "nothing.mp4")
    with pytest.raises(ConfigError, match="decoder is 'ffmpeg'; allowed: auto, decord, pyav"):
        open_video(b"", decoder="ffmpeg")


def test_a_stretch_of_a_file_is_read_in_order_and_never_beyond_its_end(mp4, tmp_path):
    path = tmp_path / "all.mp4"
    path.write_bytes(mp4)
    view = FileView(path, 5, 20)
    assert np.allclose(view.times, np.arange(20) / 10)
    assert np.array_equal(np.stack(list(view.frames())), open_video(path).get(range(5, 25)))
    assert len(FileView(path, 28).times) == 2
    with pytest.raises(DataError, match=r"30 frames; frames 20\.\.39"):
        list(FileView(path, 20, 20).frames())


def test_frames_of_odd_or_changing_size_or_none_are_refused(frames):
    for bad in (frames[:, :47], [frames[0], frames[0][:24]], frames[:0]):
        with pytest.raises(DataError):
            encode_mp4(bad, 10)


def test_a_whole_ratio_is_the_mean_of_the_pixels(frames):
    small = resize(frames[0], 24, 32, "stretch")
    mean = frames[0].reshape(24, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(small - mean).max() <= 1  # the two passes each round


def test_padding_keeps_the_aspect_and_cropping_fills(frames):
    white = np.full((40, 80, 3), 255, np.uint8)
    padded = resize(white, 20, 20)
    assert padded[5:15].min() == 255
    assert padded[:5].max() == padded[15:].max() == 0
    assert resize(white, 20, 20, "crop").min() == 255
    left, right = np.split(white.copy(), 2, axis=1)
    halves = resize(np.concatenate([left * 0, right], axis=1), 20, 20, "crop")
    assert halves[:, :9].max() < 60 < 200 < halves[:, 11:].min()
    assert resize(white, 20, 20, "stretch").min() == 255
    with pytest.raises(ConfigError, match="fit is 'fill'"):
        resize(white, 20, 20, "fill")


def test_an_array_view_yields_its_frames(frames):
    assert np.array_equal(np.stack(list(ArrayView(frames, np.arange(30)).frames())), frames)


def test_av1_falls_to_pyav(real_data):
    path = next((real_data / "bridge_lerobot_v3").rglob("*.mp4"))
    reader = open_video(path)
    some = list(FileView(path, 100, 40).frames())
    assert len(reader) == 355
    assert np.array_equal(np.stack(some), reader.get(range(100, 140)))
