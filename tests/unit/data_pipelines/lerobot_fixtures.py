"""Small LeRobot datasets in the documented layouts, with the oddities of files in the wild as switches."""

import io
import json
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

FPS = 10
SIZE = 32


def frame(episode: int, index: int) -> np.ndarray:
    """A frame whose mean brightness says which episode and frame it is: 16 + 8 * index + 2 * episode."""
    image = np.full((SIZE, SIZE, 3), 16 + 8 * index + 2 * episode, np.uint8)
    image[: SIZE // 2, : SIZE // 2] //= 2
    return image


def action(episode: int, index: int) -> list[float]:
    return [episode + index / 100, -index / 10, 0.5]


def write_mp4(path: Path, frames, codec: str = "libx264", fps: int = FPS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options={"crf": "4"} if codec == "libx264" else {"qscale": "2"})
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "yuv420p"
        for array in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")))
        container.mux(stream.encode(None))


def _write_json(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _write_lines(path: Path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _info(version: str, episodes: int, features: dict, data_path: str, video_path: str) -> dict:
    return {
        "codebase_version": version,
        "robot_type": "so101",
        "total_episodes": episodes,
        "chunks_size": 1000,
        "fps": FPS,
        "splits": {"train": f"0:{episodes}"},
        "data_path": data_path,
        "video_path": video_path,
        "features": features,
    }


def _vector(names=("a", "b", "c"), dtype="float32") -> dict:
    return {"dtype": dtype, "shape": [3], "names": list(names)}


def _camera(codec: str = "h264", shape=(SIZE, SIZE, 3), names=("height", "width", "channels")) -> dict:
    return {"dtype": "video", "shape": list(shape), "names": list(names), "info": {"video.codec": codec}}


def quirky_v21(root: Path, lengths=(6, 9, 5)) -> Path:
    """A hand-rolled v2.1: `chunk_index` template, no index or task_index, CHW shape, wrong codec, a dead camera."""
    features = {
        "observation.images.wrist.left": _camera("mp4v", (3, SIZE, SIZE), ("channel", "height", "width")),
        "observation.images.dead": _camera(),
        "observation.images.never_written": _camera(),
        "observation.state": _vector(),
        "action": _vector(),
    }
    data_path = "data/chunk-{chunk_index:03d}/episode_{episode_index:06d}.parquet"
    video_path = "videos/chunk-{chunk_index:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    _write_json(root / "meta/info.json", _info("v2.1", len(lengths), features, data_path, video_path))
    rows = [{"episode_index": e, "tasks": [f"fold cloth {e}"], "length": n} for e, n in enumerate(lengths)]
    _write_lines(root / "meta/episodes.jsonl", rows)
    _write_lines(root / "meta/tasks.jsonl", [{"task_index": e, "task": f"fold cloth {e}"} for e in range(len(lengths))])
    for e, n in enumerate(lengths):
        values = [action(e, i) for i in range(n)]
        table = pa.table(
            {
                "action": pa.array(values, pa.list_(pa.float64())),
                "observation.state": pa.array(values, pa.list_(pa.float64())),
                "timestamp": pa.array(np.arange(n) / FPS, pa.float32()),
                "frame_index": np.arange(n),
                "episode_index": np.full(n, e),
            }
        )
        path = root / f"data/chunk-000/episode_{e:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
        folder = root / "videos/chunk-000"
        name = f"episode_{e:06d}.mp4"
        write_mp4(folder / "observation.images.wrist.left" / name, [frame(e, i) for i in range(n)])
        write_mp4(folder / "observation.images.dead" / name, [np.zeros((SIZE, SIZE, 3), np.uint8)] * n)
    return root


def shared_v3(root: Path, lengths=(6, 9, 5), drift: float = 0.0, version: str = "v3.0", folder: str = "videos") -> Path:
    """A v3.0 as the official writer leaves it: all episodes in one Parquet and one mp4, task texts as a pandas index.

    `drift` seconds are added to each episode's `from_timestamp`, once per episode before it; `folder` renames `videos`.
    """
    features = {"image": _camera("h264"), "state": _vector(), "actions": _vector()}
    data_path = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    video_path = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    _write_json(root / "meta/info.json", _info(version, len(lengths), features, data_path, video_path))
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    (root / "data/chunk-000").mkdir(parents=True)
    task_table = pa.table({"task_index": [0, 1], "__index_level_0__": ["press the button", "open the door"]})
    pq.write_table(task_table, root / "meta/tasks.parquet")
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    episodes = {
        "episode_index": list(range(len(lengths))),
        "tasks": [["press the button"]] * len(lengths),
        "length": list(lengths),
        "data/chunk_index": [0] * len(lengths),
        "data/file_index": [0] * len(lengths),
        "videos/image/chunk_index": [0] * len(lengths),
        "videos/image/file_index": [0] * len(lengths),
        "videos/image/from_timestamp": [float(s / FPS + drift * e) for e, s in enumerate(starts)],
        "videos/image/to_timestamp": [float((s + n - 1) / FPS) for s, n in zip(starts, lengths, strict=True)],
        "stats/actions/mean": [[0.0] * 3] * len(lengths),
    }
    pq.write_table(pa.table(episodes), root / "meta/episodes/chunk-000/file-000.parquet")
    pairs = [(e, i) for e, n in enumerate(lengths) for i in range(n)]
    flat = pa.array([v for e, i in pairs for v in action(e, i)], pa.float32())
    table = {
        "actions": pa.FixedSizeListArray.from_arrays(flat, 3),
        "state": pa.FixedSizeListArray.from_arrays(flat, 3),
        "timestamp": pa.array([i / FPS for _, i in pairs], pa.float32()),
        "frame_index": [i for _, i in pairs],
        "episode_index": [e for e, _ in pairs],
        "index": list(range(len(pairs))),
        "task_index": [e % 2 for e, _ in pairs],
    }
    pq.write_table(pa.table(table), root / "data/chunk-000/file-000.parquet", row_group_size=lengths[0])
    write_mp4(root / folder / "image/chunk-000/file-000.mp4", [frame(e, i) for e, i in pairs], codec="mpeg4")
    return root


def images_v2(root: Path, length: int = 4) -> Path:
    """A v2.0 whose camera is PNGs inside the Parquet file."""
    features = {
        "observation.image": {"dtype": "image", "shape": [SIZE, SIZE, 3], "names": ["height", "width", "channel"]},
        "action": _vector(),
    }
    data_path = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    _write_json(root / "meta/info.json", {**_info("v2.0", 1, features, data_path, ""), "video_path": None})
    _write_lines(root / "meta/episodes.jsonl", [{"episode_index": 0, "tasks": ["push"], "length": length}])
    _write_lines(root / "meta/tasks.jsonl", [{"task_index": 0, "task": "push"}])
    images = []
    for i in range(length):
        sink = io.BytesIO()
        Image.fromarray(frame(0, i)).save(sink, format="PNG")
        images.append({"bytes": sink.getvalue(), "path": None})
    table = pa.table({"observation.image": images, "action": [action(0, i) for i in range(length)]})
    (root / "data/chunk-000").mkdir(parents=True)
    pq.write_table(table, root / "data/chunk-000/episode_000000.parquet")
    return root
