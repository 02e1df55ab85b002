"""`starfire` as a user sees it as a whole: help, one-line errors, exit codes."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from starfire_cli import __version__, cli
from starfire_cli.errors import BadOption, Mismatch, StarfireError


def starfire(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "starfire_cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, **options)  # type: ignore[call-overload,no-any-return]


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    """A command line whose one command raises what the test puts into its `error`."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.callback()(lambda: None)

    @app.command()
    def fail() -> None:
        raise app.error  # type: ignore[attr-defined]

    monkeypatch.setattr(cli, "build_app", lambda: app)
    monkeypatch.delenv("STARFIRE_TRACEBACK", raising=False)
    return app


class OutOfMemoryError(RuntimeError):
    """Called as torch's own is."""


def disk_full_as_torch_says_it() -> Exception:
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "best.pt.tmp")
        except OSError:
            raise RuntimeError("[enforce fail at inline_container.cc:783] . unexpected pos 64 vs 0")  # noqa: B904
    except RuntimeError as error:
        return error


def bug_while_handling_a_missing_file() -> Exception:
    try:
        try:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", "cache")
        except OSError:
            raise KeyError("mean")  # noqa: B904
    except KeyError as error:
        return error


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (StarfireError("no run in 'runs'"), 1, "no run in 'runs'"),
        (StarfireError("two\n  lines"), 1, "two; lines"),
        (BadOption("--lr -1: must be positive"), 2, "--lr -1: must be positive"),
        (Mismatch("conv1: 3 pruned weights are not zero"), 3, "conv1: 3 pruned weights are not zero"),
        (OSError(errno.ENOSPC, "No space left on device", "last.pt"), 1, "last.pt: disk full"),
        (disk_full_as_torch_says_it(), 1, "best.pt.tmp: disk full"),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), 1, "/root/x: permission denied"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), 1, "/x: permission denied"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x.pt"), 1, "x.pt: no such file or directory"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 1, "out of memory; a smaller --batch-size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, "out of memory"),
        (MemoryError(), 1, "out of memory"),
        (ZeroDivisionError("division by zero"), 1, "ZeroDivisionError: division by zero (this is a bug;"),
        (bug_while_handling_a_missing_file(), 1, "KeyError: 'mean' (this is a bug;"),
        (typer.Abort(), 1, "aborted"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_an_error_is_one_line_and_an_exit_code(
    raising: typer.Typer, capsys: pytest.CaptureFixture[str], error: Exception, code: int, says: str
) -> None:
    raising.error = error  # type: ignore[attr-defined]
    assert cli.main(["fail"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {says}")
    assert err.count("\n") == 1


def test_interrupts_and_exits(raising: typer.Typer, capsys: pytest.CaptureFixture[str]) -> None:
    for error, code in ((KeyboardInterrupt(), 130), (typer.Exit(143), 143), (typer.Exit(), 0), (SystemExit(5), 5)):
        raising.error = error  # type: ignore[attr-defined]
        assert cli.main(["fail"]) == code
    assert capsys.readouterr() == ("", "")


def test_who_wants_a_traceback_gets_one(raising: typer.Typer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STARFIRE_TRACEBACK", "1")
    raising.error = StarfireError("x")  # type: ignore[attr-defined]
    with pytest.raises(StarfireError):
        cli.main(["fail"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["trian"], "No such command 'trian'. Did you mean 'train'? (starfire --help lists what there is)"),
        (["train", "--targte", "0.5"], "No such option: --targte"),
        (["train", "--target", "half"], "Invalid value for '--target'"),
        (["train", "--target"], "--target"),
        (["train", "more"], "more"),
    ],
)
def test_options_that_do_not_exist(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert says in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert out == ""


def test_version_and_help() -> None:
    assert starfire("--version").stdout == f"starfire {__version__}\n"
    shown = starfire("--help")
    assert shown.returncode == 0
    for name in cli.commands():
        assert re.search(rf"\b{name.split()[0]}\b", shown.stdout)
    assert starfire().returncode == 2
    assert "Usage" in starfire().stdout


def names_in(pattern: str, text: str) -> set[str]:
    found = " ".join(re.findall(pattern, text, re.MULTILINE))
    return set(re.findall(r"--[a-z0-9-]+", found))


@pytest.mark.parametrize("name", cli.commands())
def test_the_reference_lists_what_help_shows(name: str, root: Path) -> None:
    shown = starfire(*name.split(), "--help", env={**os.environ, "COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"})
    assert shown.returncode == 0
    reference = (root / "docs" / "cli.md").read_text(encoding="utf-8")
    (section,) = re.findall(rf"^## starfire {name}$(.*?)(?=^## |\Z)", reference, re.MULTILINE | re.DOTALL)
    # In help, an option's line starts with its names; in the reference, so does its row of the table.
    offered = names_in(r"^│[ *]+((?:-{1,2}[a-z][\w-]*[, ]\s*)+)", shown.stdout) - {"--help"}
    listed = names_in(r"^\| (`-.*?) \|", section)
    assert offered
    assert offered == listed


def test_the_reference_is_not_stale(root: Path) -> None:
    done = subprocess.run([sys.executable, "docs/generate_cli.py", "--check"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_closed_pipe_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "starfire_cli", "train", "--help"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode == 1
    assert done.stderr == ""


def test_ctrl_c_ends_it_quietly() -> None:
    code = (
        "import sys, time, typer; from starfire_cli import cli; app = typer.Typer(); app.callback()(lambda: None)\n"
        "def wait():\n print('ready', flush=True); time.sleep(60)\n"
        "app.command()(wait); cli.build_app = lambda: app; sys.exit(cli.main(['wait']))"
    )
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n" + code
    )  # a background job has none
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err == b""


@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_command_without_options_is_read(command: str) -> None:
    found = typer.main.get_command(cli.build_app())
    assert found.commands[command].make_context(command, []).params  # type: ignore[attr-defined]
