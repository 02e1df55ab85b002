"""Commands survive what they print to: closed, full or broken streams, and encodings without a letter."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from starfire_cli.cli import main

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="shell redirections")

PRINT = """
import sys
from starfire_cli.output import steady_streams
with steady_streams() as lost:
    print("l\\u00e4yer \\u2192 \\u4e2d \\udcff", flush=True)
    print("second l\\u00e4yer", file=sys.stderr)
    print("third")
"""
LETTERS = "läyer → 中 \udcff"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8", "shift_jis", "ascii:strict"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_what_an_encoding_lacks_is_escaped(encoding: str, unbuffered: str) -> None:
    env = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run([sys.executable, "-c", PRINT], capture_output=True, env=env, check=False)
    name = encoding.partition(":")[0]
    assert done.returncode == 0
    assert done.stdout == f"{LETTERS}\nthird\n".encode(name, "backslashreplace")
    assert done.stderr == "second läyer\n".encode(name, "backslashreplace")


REDIRECTED = {
    "stdout closed": (">&-", 0, ""),
    "stderr closed": ("2>&- >/dev/null", 0, ""),
    "all closed": ("<&- >&- 2>&-", 0, ""),
    "stdout full": (">/dev/full", 1, "stdout: no space left on device"),
    "both full": (">/dev/full 2>/dev/full", 1, ""),
    "stderr full": (">/dev/null 2>/dev/full", 0, ""),
    "reader gone": ("| true", 1, ""),
}


def shell(command: str, where: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    said = ["bash", "-c", f'set -o pipefail; "$PYTHON" -m starfire_cli {command} {where}']
    return subprocess.run(
        said,
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable, **env},
        check=False,
    )


@pytest.mark.parametrize("case", REDIRECTED)
@pytest.mark.parametrize("unbuffered", ["", pytest.param("1", marks=pytest.mark.slow)])
def test_no_stream_is_needed(case: str, unbuffered: str, tmp_path: Path) -> None:
    where, code, says = REDIRECTED[case]
    done = shell("train --help", where, tmp_path, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == code, done.stderr
    assert says in done.stderr and (says or not done.stderr) and done.stderr.count("\n") <= 1


@pytest.mark.parametrize("where", ["<&- >/dev/full 2>&-"])
def test_a_run_outlives_its_display(where: str, tmp_path: Path) -> None:
    options = "--model tests.tiny:net --limit-train 64 --limit-val 32 -b 32 -j 0 -e 2 --era 0:1 --device cpu --name a"
    done = shell(f"train {options}", where, tmp_path)
    assert done.returncode == 1
    run = tmp_path / "runs" / "a"
    assert sorted(path.name for path in run.iterdir()) == ["best.pt", "config.json", "last.pt", "metrics.jsonl"]
    assert (run / "metrics.jsonl").read_text().count("\n") == 2


def test_the_descriptors_of_closed_streams_are_given_to_no_file(tmp_path: Path) -> None:
    code = (
        "from starfire_cli.output import steady_streams\n"
        f"with steady_streams():\n    f = open({str(tmp_path / 'x')!r}, 'w'); n = f.fileno(); f.close()\n"
        f"    open({str(tmp_path / 'n')!r}, 'w').write(str(n))"
    )
    done = subprocess.run(["bash", "-c", '"$0" -c "$1" <&- >&- 2>&-', sys.executable, code], check=False)
    assert done.returncode == 0 and int((tmp_path / "n").read_text()) > 2


@pytest.mark.parametrize(
    "backend",
    [
        "no-such-backend",
        *(pytest.param(b, marks=pytest.mark.slow) for b in ("module://matplotlib_inline.backend_inline", "tkagg")),
    ],
)
def test_a_notebook_s_backend_stops_no_command(backend: str) -> None:
    code = (
        "import os, sys; from starfire_cli import cli\n"
        "def draw(*_, **__):\n"
        "    import io; from matplotlib.figure import Figure; Figure().savefig(io.BytesIO(), format='png')\n"
        "cli.build_app = lambda: draw\n"
        "code = cli.main([]); assert os.environ['MPLBACKEND'] == sys.argv[1]; sys.exit(code)"
    )
    env = {**os.environ, "MPLBACKEND": backend}
    done = subprocess.run([sys.executable, "-c", code, backend], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_stop_within_an_epoch_says_what_it_came_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--model",
        "tests.tiny:net",
        "--limit-train",
        "64",
        "--limit-val",
        "32",
        "-b",
        "16",
        "-j",
        "0",
        "-e",
        "2",
    ]
    code = main(["train", *options, "--era", "0:1", "--device", "cpu", "--out", str(tmp_path), "--max-steps", "3"])
    out = capsys.readouterr().out
    assert code == 0
    said = re.search(r"^epoch 1/2 so far  loss (\d+\.\d+)  train (\d+\.\d+)%  [\d,]+ img/s$", out, re.MULTILINE)
    assert said and 0 < float(said[1]) < 10 and round(float(said[2]) * 48 / 100, 2).is_integer()
