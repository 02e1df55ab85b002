"""Two processes cannot train one run, and a run that could not begin leaves its name free."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from starfire_cli.cli import main
from starfire_cli.errors import StarfireError
from starfire_cli.formats.run import Run
from starfire_cli.formats.run_lock import locked

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="record locks")

QUICK = ["--model", "tests.tiny:net", "--limit-train", "64", "--limit-val", "32", "-b", "32", "-j", "0", "-q"]

# Holds the lock, with a child that outlives a kill of its parent as a loader worker does.
HOLDER = """
import os, sys, time
from pathlib import Path
from starfire_cli.formats.run_lock import locked
with locked(Path(sys.argv[1]), "starfire train --name theirs"):
    child = os.fork()
    if child == 0:
        os.close(1)
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    sys.stdin.read()
    os.kill(child, 9)
    os.waitpid(child, 0)
"""


@contextmanager
def held(folder: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        try:
            yield holder
        finally:
            holder.kill()
            os.kill(child, signal.SIGKILL)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    assert main(["train", *QUICK, "-e", "2", "--out", str(out), "--name", "a", "--device", "cpu"]) == 0
    return out / "a"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_a_run_has_one_process_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    with held(tmp_path) as holder:
        with pytest.raises(StarfireError, match=f"process {holder.pid} on .*--name theirs") as caught, locked(tmp_path):
            pass
        assert str(tmp_path) in str(caught.value)
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        with locked(tmp_path) as there_is_one:  # at once, while the child is alive and after it has had the file open
            assert there_is_one
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("way", ["folder", "last.pt", "best.pt", "auto", "auto by name", "another path"])
def test_a_run_that_is_being_trained_is_not_resumed(
    trained: Path, tmp_path: Path, way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "link").symlink_to(trained)
    out = ["--out", str(trained.parent)]
    given = {"folder": [str(trained)], "auto": ["auto", *out], "auto by name": ["auto", *out, "--name", "a"]}
    given["another path"] = [str(tmp_path / "link")]
    words = given.get(way, [str(trained / way)])
    before = contents(trained)
    with held(trained) as holder:
        code = main(["train", "--resume", *words, "--model", "tests.tiny:net", "-e", "3"])
        said = capsys.readouterr().err
        assert code == 1 and f"is being trained by process {holder.pid} on " in said and said.count("\n") == 1
        assert contents(trained) == before
        # Who only reads is not kept waiting.
        assert main(["inspect", str(trained)]) == 0
        dry = ["train", "--resume", str(trained), "--model", "tests.tiny:net", "--dry-run"]
        assert main(dry) == 0


def test_one_process_cannot_train_a_run_twice_either(tmp_path: Path) -> None:
    with locked(tmp_path):
        for _ in range(2):  # to refuse once does not drop the lock
            with pytest.raises(StarfireError, match=f"process {os.getpid()} on "), locked(tmp_path):
                pass
        command = [sys.executable, "-c", HOLDER, str(tmp_path)]
        other = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        assert other.returncode and "is being trained by" in other.stderr
    with locked(tmp_path):
        pass


def test_whatever_the_lock_says_it_is_the_lock_that_counts(tmp_path: Path) -> None:
    damaged = [b"", b"{", b"[1]", b'{"pid": "x"}', b'{"pid": 1e999}', b"\xff", b"[" * 9000, bytes(10**6)]
    for left in damaged:  # as a killed process leaves it, which holds nothing
        (tmp_path / ".lock").write_bytes(left)
        with locked(tmp_path):
            pass
    with held(tmp_path):
        for left in damaged:
            (tmp_path / ".lock").write_bytes(left)
            with pytest.raises(StarfireError, match="is being trained by another process"), locked(tmp_path):
                pass


def test_a_file_system_without_locks_keeps_no_one_from_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", none)
    with locked(tmp_path) as there_is_one:
        assert not there_is_one


@contextmanager
def no_room(size: int) -> Iterator[None]:
    """The system refuses to let any file grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("size", [0, 1000, 8000], ids=["nothing", "no config", "no checkpoint"])
def test_a_run_without_room_leaves_its_name_free(tmp_path: Path, size: int, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", *QUICK, "-e", "1", "--out", str(tmp_path), "--name", "a", "--device", "cpu"]
    with no_room(size):
        assert main(command) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: cannot write") and said.count("\n") == 1
    if size < 8000:
        assert list(tmp_path.iterdir()) == []
    else:
        assert Run(tmp_path / "a").read_metrics() == []  # nothing was saved, so nothing is told of
    assert main(command) == 0
    assert len(Run(tmp_path / "a").read_metrics()) == 1


@pytest.mark.parametrize(
    "theirs", ["notes.txt", "last.pt", "best.pt", "a/b", "metrics.jsonl", "config.json", ".x.pt.host-1-0.tmp"]
)
def test_a_folder_with_anything_in_it_is_not_taken(
    tmp_path: Path, theirs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a" / theirs
    file.parent.mkdir(parents=True)
    file.write_text('{"model_type": "resnet"}\n')
    assert main(["train", *QUICK, "--out", str(tmp_path), "--name", "a"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [file]
    assert file.read_text() == '{"model_type": "resnet"}\n'
