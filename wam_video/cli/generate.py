"""`wam-video generate`: run one mode of a model on a recording and write what it gives, beside what really happened."""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wam_video.cli.command import DONE, quiet_libraries, run
from wam_video.cli.options import check_output
from wam_video.errors import ConfigError, DataError
from wam_video.log import setup_logging

if TYPE_CHECKING:
    import numpy as np

    from wam_video.inference.outputs import WAMOutput
    from wam_video.inference.pipeline import WAMPipeline
    from wam_video.inference.recording import Recording

_EXAMPLE = """\
examples:
  wam-video generate --model runs/mine/model --mode policy --input shards/mine --output out
  wam-video generate --model runs/mine/model --mode forward --input shards/mine --episode 3 --start 1.5 --output out
  wam-video generate --model model --adapter runs/mine/adapter --mode policy --input shards/mine --output out
  wam-video generate --model runs/mine/model --mode video --input clip.mp4 --prompt "fold the towel" --output out

writes actions.npy (float32 [ta, da], the robot's own units) and/or video.mp4 (the future frames), comparison.mp4 (the
recording left, the model right) and summary.json (errors against the recording, beside simple controls)."""

_VIDEO_CRF = 12


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    result = argparse.ArgumentParser(
        prog="wam-video generate",
        description="Run one mode of a model on a recorded episode.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("--model", required=True, metavar="FOLDER|HUB_ID", help="checkpoint")
    add("--adapter", metavar="FOLDER|HUB_ID", help="adapter that was trained on that checkpoint")
    add("--mode", required=True, metavar="MODE", help="policy, forward, inverse, video or joint")
    add(
        "--input",
        required=True,
        metavar="SHARDS|EPISODE",
        help="folder of shards, a video, or any dataset with a source",
    )
    add("--output", required=True, type=Path, metavar="DIR", help="folder to make")
    add("--episode", metavar="K", help="number (held-out episodes of shards first) or id; default 0")
    add("--start", type=float, metavar="S", help="seconds in the episode of the last frame that is seen")
    add("--prompt", metavar="TEXT", help="instruction; default: the recording's")
    add("--actions", type=Path, metavar="A.npy", help="for forward, float32 [ta, da]; default: the recording's")
    add("--embodiment", metavar="NAME", help="the model's name of the body; default: the recording's")
    add("--steps", type=int, metavar="N", help="sampling steps; default: the checkpoint's")
    add("--guidance-scale", type=float, metavar="W", help="guidance by prompt, 1 is none; default: the checkpoint's")
    add("--seed", type=int, default=0, metavar="N", help="of the noise (default 0)")
    add("--device", default="auto", metavar="NAME", help="cpu, cuda, cuda:1, ...; default: a GPU if there is one")
    add("--overwrite", action="store_true", help="replace an output folder that is there already")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 1 the work failed, 2 the request was wrong."""
    arguments = parser().parse_args(argv)
    setup_logging()
    _check_output(arguments.output, arguments.overwrite)
    from wam_video.flow.modes import get_mode  # torch: not before --help has answered

    mode = get_mode(arguments.mode)
    from wam_video.inference.recording import Place, open_recording

    pipeline = _load(arguments.model, arguments.adapter, arguments.device)
    place = Place(episode=arguments.episode, start_s=arguments.start, embodiment=arguments.embodiment)
    recording = open_recording(arguments.input, place, pipeline.processor)
    inputs = recording.call_arguments(mode)
    if arguments.actions is not None:
        inputs["actions"] = _read_actions(arguments.actions)
    if arguments.prompt is not None:
        inputs["prompt"] = arguments.prompt
    began = time.perf_counter()
    output = pipeline(
        mode,
        **inputs,
        num_inference_steps=arguments.steps,
        guidance_scale=arguments.guidance_scale,
        generator=arguments.seed,
    )
    seconds = time.perf_counter() - began
    summary = _summary(arguments, pipeline, recording, inputs, output) | {"seconds": round(seconds, 4)}
    with _whole_or_nothing(arguments.output, arguments.overwrite) as folder:
        _write(folder, output, recording, pipeline, summary)
    print(_told(summary, arguments.output))
    return DONE


def _load(model: str, adapter: str | None, device: str) -> "WAMPipeline":
    import torch

    from wam_video.inference.pipeline import WAMPipeline

    quiet_libraries()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = WAMPipeline.from_pretrained(model)
    if adapter is not None:
        pipeline.load_adapter(adapter)
    try:
        pipeline.to(device)
    except (
        RuntimeError,
        ValueError,
        AssertionError,
    ) as error:  # torch has one for each way in which a device is not there
        raise ConfigError(f"--device is {device!r}, which can't be used here: {str(error).splitlines()[0]}") from error
    if not sys.stderr.isatty():
        pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _read_actions(path: Path) -> "np.ndarray":
    import numpy as np

    try:
        array = np.load(path, allow_pickle=False)
    except OSError as error:
        raise ConfigError(
            f"--actions {str(path)!r} can't be read ({error.strerror}); give a float32 .npy [ta, da]"
        ) from error
    except (ValueError, EOFError) as error:  # numpy's own words advise to unpickle the file
        raise ConfigError(f"--actions {str(path)!r} is no array of numbers; give a float32 .npy [ta, da]") from error
    if not isinstance(array, np.ndarray):
        raise ConfigError(f"--actions {str(path)!r} is an archive; give a single float32 .npy [ta, da]")
    return array


def _summary(
    arguments: argparse.Namespace,
    pipeline: "WAMPipeline",
    recording: "Recording",
    inputs: dict[str, Any],
    output: "WAMOutput",
) -> dict[str, Any]:
    from wam_video.inference.loading import model_hash, resolve
    from wam_video.inference.recording import compare

    summary = {
        "mode": arguments.mode,
        "seed": arguments.seed,
        "steps": pipeline.scheduler.path(arguments.steps).num_inference_steps,
        "solver": pipeline.scheduler.config.solver,
        "model": arguments.model,
        "model_hash": model_hash(pipeline.config["_name_or_path"]),
        "input": recording.source,
        "episode": recording.episode_id,
        "start_s": round(recording.start_s, 6),
        "embodiment": recording.embodiment,
        "prompt": inputs["prompt"],
        "errors": compare(recording, output, pipeline.processor),
    }
    if arguments.adapter is not None:
        summary |= {"adapter": arguments.adapter, "adapter_hash": model_hash(resolve(arguments.adapter))}
    if "actions" in inputs:
        summary["actions_from"] = "recording" if arguments.actions is None else str(arguments.actions)
    return summary


def _write(
    folder: Path, output: "WAMOutput", recording: "Recording", pipeline: "WAMPipeline", summary: dict[str, Any]
) -> None:
    import numpy as np

    if output.actions is not None:
        np.save(folder / "actions.npy", output.actions[0], allow_pickle=False)
    if output.video is not None:
        _write_videos(folder, np.asarray(output.video[0]), recording, pipeline.processor.window.future_stride_s)
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


def _write_videos(folder: Path, future: "np.ndarray", recording: "Recording", stride_s: float) -> None:
    import numpy as np
    import torch

    from wam_video.data.video import encode_mp4
    from wam_video.evaluation.clips import strip
    from wam_video.inference.recording import stack_views

    made = stack_views(np.rint(future * 255).astype(np.uint8).transpose(0, 1, 3, 4, 2))
    height, width = (side + side % 2 for side in made.shape[1:3])
    even = np.pad(made, ((0, 0), (0, height - made.shape[1]), (0, width - made.shape[2]), (0, 0)), mode="edge")
    (folder / "video.mp4").write_bytes(encode_mp4(even, fps=1 / stride_s, crf=_VIDEO_CRF))
    if recording.future_mask.any():
        given = recording.num_context_frames
        real = stack_views(recording.window.video[recording.window.frame_mask.any(1)])
        panels = [torch.from_numpy(x) for x in (real, np.concatenate([real[:given], made]))]
        frames = strip(panels, given, [False, True])
        (folder / "comparison.mp4").write_bytes(encode_mp4(frames, fps=1 / stride_s, crf=_VIDEO_CRF))


def _told(summary: dict[str, Any], folder: Path) -> str:
    """Return what a person wants to know, in a few lines."""
    lines = [f"{summary['mode']}: {summary['steps']} steps in {summary['seconds']:.2f} s -> {folder}"]
    for part, errors in summary["errors"].items():
        figures = ", ".join(f"{name} {value:.4g}" for name, value in errors.items() if value is not None)
        lines.append(f"  {part} against the recording: {figures}")
    return "\n".join(lines)


def _check_output(output: Path, overwrite: bool) -> None:
    check_output(output)
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        raise ConfigError(f"--output {str(output)!r} is not empty; give another folder, or --overwrite")


@contextmanager
def _whole_or_nothing(output: Path, overwrite: bool) -> Iterator[Path]:
    """Give a folder to write into; it becomes `output` if all goes well and leaves no trace otherwise."""
    partial = output.with_name(output.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        _check_output(output, overwrite)
        if output.is_dir():
            shutil.rmtree(output)
        partial.rename(output)
    except OSError as error:
        raise DataError(
            f"--output {str(output)!r} can't be written ({error.strerror or error}); make room or give another"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(run(main))
