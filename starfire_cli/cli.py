"""The entry point `starfire`: finds the commands, and turns an error into one line and an exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

import starfire_cli
from starfire_cli import runtime
from starfire_cli.commands.checked import CheckedCommand
from starfire_cli.errors import BadOption, LostRank, Mismatch, StarfireError
from starfire_cli.output import reader_gone, steady_streams
from starfire_cli.text import printable

COMMANDS = ("train", "prune-mask", "inspect", "attack", "compress", "export", "bench", "compare", "plot", "data pack")
"""In the order in which `--help` shows them. Each is a function of the same name in a module of the same name; of two
words the first is the module, and a group of commands.
"""

GROUPS = {"data": "Prepare data sets for training."}

_LONGEST = 4000  # characters of an error
_FULL = (errno.ENOSPC, errno.EDQUOT)


def commands() -> dict[str, Callable[..., object]]:
    """The functions behind the commands whose module is there, by name; only the modules' heads are imported."""
    folder = Path(__file__).with_name("commands")
    found = {}
    for name in COMMANDS:
        stem, _, verb = name.replace("-", "_").partition(" ")
        if folder.joinpath(f"{stem}.py").exists():
            found[name] = getattr(import_module(f"starfire_cli.commands.{stem}"), verb or stem)
    return found


def build_app() -> typer.Typer:
    """The command line, with every command there is."""
    app = typer.Typer(
        name="starfire",
        help=starfire_cli.__doc__,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    groups = {name: typer.Typer(help=text, no_args_is_help=True) for name, text in GROUPS.items()}
    for name, command in commands().items():
        group, _, verb = name.partition(" ")
        (groups[group].command(verb, cls=CheckedCommand) if verb else app.command(name, cls=CheckedCommand))(command)
    for name, group_app in groups.items():
        app.add_typer(group_app, name=name)
    return app


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code.

    0: done; 1: it cannot be done; 2: the options make no sense; 3: a file contradicts itself and the command was asked
    to be strict; 130, 143: interrupted. With STARFIRE_TRACEBACK=1 errors are raised instead of explained.

    A command whose output goes nowhere (a full disk, a reader that has left) does all its work, and then returns 1.
    """
    with _no_backend(), steady_streams() as lost:
        code = _run(arguments)
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        if lost.error is None:
            return code
        if not reader_gone(lost.error):
            why = (lost.error.strerror or str(lost.error)).lower()
            print(f"error: what was to be printed is lost (stdout: {why}); all else is done", file=sys.stderr)
        return code or 1


@contextlib.contextmanager
def _no_backend() -> Iterator[None]:
    """Without a notebook's MPLBACKEND, with which matplotlib may not even be imported; pictures here need none."""
    chosen = os.environ.get("MPLBACKEND")
    os.environ["MPLBACKEND"] = "agg"
    try:
        yield
    finally:
        if chosen is None:
            del os.environ["MPLBACKEND"]
        else:
            os.environ["MPLBACKEND"] = chosen


def _run(arguments: list[str] | None) -> int:
    try:
        code = build_app()(args=arguments, prog_name="starfire", standalone_mode=False)
    except SystemExit as stop:
        code = stop.code
        if isinstance(code, str):
            print(printable(code, _LONGEST), file=sys.stderr)
            code = 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # the one place where nothing may get past
        _tell_torchrun(error)
        if os.environ.get("STARFIRE_TRACEBACK"):
            raise
        text, code = explain(error)
        rank, ranks = _place()
        if text and (rank == 0 or not _same_everywhere(error)):
            print(
                f"error: {f'rank {rank} of {ranks}: ' if ranks > 1 else ''}{printable(text, _LONGEST)}",
                file=sys.stderr,
                flush=True,
            )
        if isinstance(error, LostRank):
            time.sleep(2)  # so that whoever ended first is also seen first, and taken for the cause
    return code if isinstance(code, int) else 0


def _place() -> tuple[int, int]:
    """This process's rank, and of how many; one alone where the environment makes no sense."""
    try:
        world = runtime.world()
    except BadOption:
        return 0, 1
    return world.rank, world.size


def _same_everywhere(error: Exception) -> bool:
    """Whether every rank comes to this error, so that rank 0 says it for all."""
    return isinstance(error, BadOption | typer.TyperException) or getattr(error, "agreed", False)


def _tell_torchrun(error: Exception) -> None:
    """Leave the cause where torchrun looks for it (`torch.distributed.elastic`'s error file)."""
    if "TORCHELASTIC_ERROR_FILE" not in os.environ or isinstance(error, LostRank):
        return
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    get_error_handler().record_exception(error)


def explain(error: Exception) -> tuple[str, int]:
    """One line for the user, and the exit code."""
    if isinstance(error, StarfireError):
        code = 3 if isinstance(error, Mismatch) else 2 if isinstance(error, BadOption) else 1
        return _one_line(error), code
    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        where = context.command_path if context else "starfire"
        text = error.format_message()
        if not text and context is not None and context.parent is not None:  # a group alone; its help was printed
            text = f"{where}: which command?"
        return (f"{text} ({where} --help lists what there is)" if text else ""), error.exit_code
    if isinstance(error, typer.Abort):
        return "aborted", 1
    for cause in _chain(error):  # torch.save says "unexpected pos" and hides the full disk in the exception's context
        if isinstance(cause, OSError) and (cause is error or cause.errno in _FULL):
            return _os_error(cause), 1
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate" in str(error):
        return f"out of memory; a smaller --batch-size or model needs less ({_one_line(error)[:120]})", 1
    hint = "this is a bug; STARFIRE_TRACEBACK=1 shows where it happened"
    return f"{type(error).__name__}: {_one_line(error)} ({hint})", 1


def _os_error(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename is not None else ""
    if error.errno in _FULL:
        return f"{where}disk full; free some space or name another place"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{where}permission denied; name a place you may write to (or a file you may read)"
    return f"{where}{(error.strerror or _one_line(error)).lower()}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _one_line(error: BaseException) -> str:
    return "; ".join(line.strip() for line in str(error).splitlines() if line.strip()) or type(error).__name__


def _options(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=lambda on: _version(on)),
    ] = False,
) -> None:
    world = runtime.world()
    if world.size > 1 and context.invoked_subcommand not in (None, "train"):
        raise BadOption(
            f"starfire {context.invoked_subcommand} runs in one process, and {world.launcher} has started "
            f"{world.size}; start it without (only starfire train is for several)"
        )


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"starfire {starfire_cli.__version__}")
        raise typer.Exit
