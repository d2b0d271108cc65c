"""Every error as one line on stderr and an exit code; never a traceback."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import typer
from typer.core import TyperGroup

from zipvl_serving.errors import InputError, ZipvlError, one_line

TRACEBACK_VARIABLE = "ZIPVL_TRACEBACK"
INTERRUPTED = 130


class GuardedGroup(TyperGroup):
    """A command group whose commands may raise ZipvlError; a wrong option is one line too, not typer's box."""

    def main(self, *args: Any, **extra: Any) -> Any:
        standalone = extra.pop("standalone_mode", True)
        extra["standalone_mode"] = False
        if not standalone:
            return super().main(*args, **extra)
        try:
            sys.exit(super().main(*args, **extra) or 0)
        except Exception as error:
            if not hasattr(error, "format_message"):
                raise
            # Without a command there is no message: the help has been printed.
            message = error.format_message() or "no command given; --help lists them"
            typer.echo("error: " + " ".join(message.split()), err=True)
            sys.exit(InputError.exit_code)

    def invoke(self, ctx: Any) -> Any:
        try:
            with _interruptible():
                return super().invoke(ctx)
        except ZipvlError as error:
            fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            fail("interrupted; nothing half-written was left behind", INTERRUPTED)
        except BrokenPipeError:
            # The reader of stdout has gone (`| head`); writing the last buffer to it would fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except OSError as error:
            fail(f"{error.filename or 'system'}: {error.strerror or error}", 1)
        except MemoryError:
            fail("out of memory", 1)
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if type(error).__module__.startswith(("click", "typer")):
                raise
            if os.environ.get(TRACEBACK_VARIABLE):
                traceback.print_exc()
            text = one_line(error)[:300]
            fail(f"internal: {type(error).__name__}: {text} (a bug; {TRACEBACK_VARIABLE}=1 shows where)", 1)


def fail(message: str, code: int) -> None:
    """Print the one line and leave."""
    typer.echo("error: " + " ".join(message.split("\n")), err=True)
    raise typer.Exit(code)


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP clean up like Ctrl-C does, and none gets lost.

    Python drops an exception that is raised in a weakref callback, and the exporter of torch spends much of its time in
    those: an interrupt that was dropped is raised again a moment later.
    """

    def on_dropped(dropped: Any) -> None:
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            threading.Timer(0.01, _thread.interrupt_main, [signal.SIGTERM]).start()
        else:
            hook(dropped)

    hook, sys.unraisablehook = sys.unraisablehook, on_dropped
    handlers = {number: signal.signal(number, _terminate) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook


def _terminate(signum: int, frame: FrameType | None) -> None:
    """SIGTERM and SIGHUP clean up like Ctrl-C does."""
    raise KeyboardInterrupt
