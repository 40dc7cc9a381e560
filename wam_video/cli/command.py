"""What all commands share: how a failure becomes a message and an exit code, and whose words reach the terminal.

0 done, 1 the work failed, 2 the request was wrong (one line, no traceback: what, the value, what is allowed, what to do).
"""

import os
import sys
from collections.abc import Callable, Sequence

from wam_video.errors import ToldError, WamError

DONE, FAILED, WRONG_REQUEST, INTERRUPTED = 0, 1, 2, 130

Body = Callable[[Sequence[str] | None], int | None]
"""A command: takes its arguments (None: those of the process) and returns an exit code, or None for done."""


def run(body: Body, argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; a user's mistake becomes one line on stderr.

    Example: `if __name__ == "__main__": sys.exit(run(main))` at the end of a command's module.
    """
    try:
        return body(argv) or DONE
    except ToldError:
        return WRONG_REQUEST
    except WamError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_REQUEST
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output (`| head`) has gone; keep the interpreter from flushing into it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


def quiet_libraries() -> None:
    """Keep diffusers' and transformers' bars and warnings off the terminal, which are about their parts of our work.

    What matters of them, such as a tensor that a file lacks, we check and tell ourselves. Downloads show a bar on a terminal.
    Importing them takes seconds: call this after the arguments are understood.
    """
    import diffusers
    import huggingface_hub
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        huggingface_hub.utils.disable_progress_bars()
