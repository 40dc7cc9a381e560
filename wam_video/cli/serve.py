"""`wam-video serve`: let a checkpoint drive robots over a websocket; openpi's, RoboArena's and DreamZero's clients as they are."""

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wam_video.cli.command import DONE, quiet_libraries, run
from wam_video.cli.options import add_speed, check_output, parse_options, torch_device
from wam_video.errors import ConfigError
from wam_video.log import get_logger, setup_logging

if TYPE_CHECKING:
    from wam_video.inference.pipeline import WAMPipeline
    from wam_video.inference.server.app import ServerConfig
    from wam_video.inference.server.policy import PolicyConfig

_EXAMPLE = """\
examples:
  wam-video serve --model model_cards/wam-tiny-pusht
  wam-video serve --model runs/mine/export --dialect roboarena --map observation/exterior_image_0_left=front --execute 8
  wam-video serve --model runs/mine/export --dtype bfloat16 --compile graphs --quantize fp8 --max-batch 2
  wam-video serve --model runs/mine/export --host 0.0.0.0 --token-file ~/.wam-token --max-sessions 32

  from wam_video.inference.client import Client
  robot = Client("ws://127.0.0.1:8000")
  robot.infer({"images": {"top": frame}, "state": state, "prompt": "push the T"})["actions"]

ws://HOST:PORT speaks the dialect of --dialect; /openpi, /roboarena and /dreamzero after it speak theirs. GET /healthz and
/metrics (Prometheus) are on the same port. A client that leaves out 'executed' has carried out all actions that it was given.
A request may hold one frame of each camera or several, the newest last; what the checkpoint reads is in the metadata."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    result = argparse.ArgumentParser(
        prog="wam-video serve",
        description=__doc__,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_policy(result)
    _add_clients(result)
    _add_limits(result)
    return result


def _add_policy(result: argparse.ArgumentParser) -> None:
    add = result.add_argument_group("policy").add_argument
    add("--model", required=True, metavar="FOLDER|HUB_ID", help="checkpoint")
    add("--adapter", metavar="FOLDER|HUB_ID", help="adapter that was trained on that checkpoint")
    add("--embodiment", metavar="NAME", help="the model's name of the body; may be left out if there is only one")
    add("--prompt", default="", metavar="TEXT", help="instruction of robots that bring none")
    add("--steps", type=int, metavar="N", help="steps from noise to data (default: the checkpoint's own)")
    add("--path", metavar="NAME", help="what becomes of the future video: unknown, absent, joint (default: its own)")
    add(
        "--guidance-scale",
        type=float,
        metavar="W",
        help="guidance by prompt, 1 is none (default: the checkpoint's own)",
    )
    add("--execute", type=int, metavar="N", help="give robots only the first N actions of a chunk (default: all)")
    add("--clip", action="store_true", help="keep actions within the range of the training data (default: only tell)")
    add(
        "--gaps",
        default="restart",
        metavar="WHAT",
        help="a causal network misses frames between two requests: restart its memory (default), or refuse",
    )
    add(
        "--continuation",
        metavar="NAME",
        help="how a chunk goes on from the actions that a request says are 'committed': prefix, guided, replace (default: its own)",
    )
    add("--seed", type=int, default=0, metavar="N", help="of the noise (default 0)")
    add_speed(add)
    add("--device", metavar="DEVICE", help="cpu, cuda, ... (default: cuda where there is one)")


def _add_clients(result: argparse.ArgumentParser) -> None:
    add = result.add_argument_group("clients").add_argument
    add("--host", default="127.0.0.1", metavar="H", help="address (default 127.0.0.1); any other needs a token")
    add("--port", type=int, default=8000, metavar="P", help="port (default 8000); 0 takes a free one and says which")
    add("--token", metavar="T", help="that clients must show; others on this machine can read it: better --token-file")
    add("--token-file", type=Path, metavar="FILE", help="file that holds the token")
    add("--tls-cert", type=Path, metavar="FILE", help="certificate chain (PEM): clients then connect to wss://")
    add("--tls-key", type=Path, metavar="FILE", help="its private key (default: in the same file)")
    add(
        "--dialect",
        default="openpi",
        metavar="NAME",
        help="openpi (default), roboarena or dreamzero, for URLs without a path",
    )
    add("--map", action="append", default=[], metavar="KEY=VIEW", help="key of a request that holds a view; repeatable")
    add("--record", type=Path, metavar="DIR", help="write what robots live through as shards, when the server stops")
    add("--state-keys", default="", metavar="KEY,KEY", help="keys of a request that make up the state, in this order")
    add(
        "--action-space",
        default="joint_position",
        metavar="NAME",
        help="told to RoboArena's clients (default joint_position)",
    )


def _add_limits(result: argparse.ArgumentParser) -> None:
    add = result.add_argument_group("limits").add_argument
    add("--max-sessions", type=int, default=16, metavar="N", help="robots at a time (default 16)")
    add("--max-batch", type=int, default=8, metavar="N", help="robots decided for together (default 8)")
    add(
        "--batch-window-ms",
        type=float,
        default=5.0,
        metavar="MS",
        help="how long a request waits for others (default 5)",
    )
    add(
        "--idle-s",
        type=float,
        default=600.0,
        metavar="S",
        help="forget a session that is not used for so long (default 600)",
    )
    add(
        "--max-rate",
        type=float,
        default=50.0,
        metavar="HZ",
        help="requests a second of a client; others wait (default 50)",
    )
    add("--max-mb", type=float, default=16.0, metavar="MB", help="size of a request (default 16)")


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C; return the exit code."""
    arguments = parser().parse_args(argv)
    setup_logging()
    from wam_video.inference.server.app import check_exposed  # torch: not before --help has answered

    token = _token(arguments)
    if arguments.record is not None:
        check_output(arguments.record)
    check_exposed(arguments.host, token)
    policy, server = _configs(arguments, token)
    quiet_libraries()
    pipe, facts = _load(arguments)
    asyncio.run(_serve(pipe, policy, server, arguments, facts))
    return DONE


def _token(arguments: argparse.Namespace) -> str | None:
    if arguments.token_file is None:
        return arguments.token
    if arguments.token is not None:
        raise ConfigError("--token and --token-file are both given; give one")
    try:
        return arguments.token_file.expanduser().read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--token-file {str(arguments.token_file)!r} can't be read ({error}); give a text file"
        ) from error


def _configs(a: argparse.Namespace, token: str | None) -> tuple["PolicyConfig", "ServerConfig"]:
    from wam_video.inference.server.app import ServerConfig
    from wam_video.inference.server.dialects import MappingConfig
    from wam_video.inference.server.policy import PolicyConfig
    from wam_video.inference.server.sockets import SocketConfig
    from wam_video.inference.server.worker import WorkerConfig

    for name, low, high in (
        ("port", 0, 65535),
        ("max_sessions", 1, 4096),
        ("max_batch", 1, 4096),
        ("batch_window_ms", 0, 10_000),
        ("idle_s", 0.1, 1e9),
        ("max_rate", 0.01, 1e6),
        ("max_mb", 0.01, 4096),
    ):
        if not low <= getattr(a, name) <= high:
            raise ConfigError(f"--{name.replace('_', '-')} is {getattr(a, name)}; allowed: {low} to {high}")
    policy = PolicyConfig(
        embodiment=a.embodiment,
        prompt=a.prompt,
        num_inference_steps=a.steps,
        path=a.path,
        guidance_scale=a.guidance_scale,
        seed=a.seed,
        execute=a.execute,
        clip=a.clip,
        gaps=a.gaps,
        continuation=a.continuation,
        max_sessions=a.max_sessions,
    )
    server = ServerConfig(
        socket=SocketConfig(
            host=a.host,
            port=a.port,
            token=token,
            max_bytes=int(a.max_mb * 2**20),
            max_connections=4 * a.max_sessions,
            tls_cert=a.tls_cert,
            tls_key=a.tls_key,
        ),
        worker=WorkerConfig(batch_window_s=a.batch_window_ms / 1000, max_batch=a.max_batch),
        mapping=MappingConfig(
            images=parse_options(a.map, "--map"),
            state=tuple(key for key in a.state_keys.split(",") if key),
            action_space=a.action_space,
        ),
        dialect=a.dialect,
        idle_s=a.idle_s,
        max_rate=a.max_rate,
    )
    return policy, server


def _load(arguments: argparse.Namespace) -> tuple["WAMPipeline", dict[str, Any]]:
    """Return the policy, and what clients are told of how it is run."""
    from wam_video.inference.pipeline import WAMPipeline
    from wam_video.inference.speed import SpeedConfig, speed_up

    device = torch_device(arguments.device)
    speed = SpeedConfig(compile=arguments.compile, quantization=arguments.quantize, dtype=arguments.dtype)
    pipe = WAMPipeline.from_pretrained(arguments.model)
    if arguments.adapter is not None:
        pipe.load_adapter(arguments.adapter, merge=speed.changes_network)
    pipe.to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe, {"model": arguments.model, "speed": speed_up(pipe, speed)}


async def _serve(
    pipe: "WAMPipeline",
    policy: "PolicyConfig",
    config: "ServerConfig",
    arguments: argparse.Namespace,
    facts: dict[str, Any],
) -> None:
    from wam_video.inference.server.app import PolicyServer
    from wam_video.inference.server.policy import Policy
    from wam_video.inference.server.record import Recorder
    from wam_video.inference.server.warm_up import warm_up

    served, model = Policy(pipe, policy), arguments.model
    recorder = None if arguments.record is None else Recorder(arguments.record, served)
    server = PolicyServer(served, config, facts, recorder)
    log = get_logger(__name__)
    seconds = warm_up(served, config.worker.max_batch, every_shape=arguments.compile != "none")  # nobody is let in yet
    await server.start()
    where = f"{'ws' if config.socket.tls_cert is None else 'wss'}://{config.socket.host}:{server.port}"
    log.info("warmed up in %.1f s; serving %s on %s", seconds, model, where)
    await _until_stopped()
    log.info("stopping: nobody is let in, what was asked is answered")
    await server.stop()


async def _until_stopped() -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        with suppress(NotImplementedError):  # Windows
            loop.add_signal_handler(name, stop.set)
    await stop.wait()


if __name__ == "__main__":
    sys.exit(run(main))
