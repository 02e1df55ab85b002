"""Writes what commands print into the pages: blocks between `<!-- output: COMMAND -->` and `<!-- end -->`.

`python docs/generate_outputs.py` runs the commands below one after the other in an empty folder and renews the blocks
(and, with `--pictures`, the terminal pictures in docs/pictures). `--check` fails where a block differs from what the
present version prints in more than its numbers, which are another processor's or another day's.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
WIDTH, HEIGHT = 110, 60  # columns and rows of the terminal in pictures

# In this order; what a page shows needs what stands above it.
COMMANDS = (
    "starfire train --method dense --name digits-dense",
    "starfire train --method ck --target 0.8 --name digits-ck",
    "starfire inspect runs/digits-ck",
    "starfire attack runs/digits-ck --eps 0,0.01,0.05",
    "starfire attack runs/digits-ck --against runs/digits-dense --eps 0,0.01,0.05",
    "starfire compress runs/digits-ck",
    "starfire plot runs/digits-ck",
    "starfire prune-mask runs/digits-dense --method window --target 0.6 --out pruned.pt --evaluate",
    "starfire prune-mask runs/digits-dense --method l1-filter --target 0.3 --shrink --out small.pt",
    "starfire train --method intra --target 0.6 --dry-run",
    "starfire train --method lottery --target 0.8 --epochs 10 --dry-run",
    "starfire data pack images packed --short-side 64 --shard-size 20",
    "starfire export runs/digits-ck --target x86-64-v3 --name digits --out digits",
    "starfire bench runs/digits-ck --batch 64 --seconds 0.2 --no-compile",
    "starfire compare --methods ck,window,dense --target 0.8 --epochs 2 --limit-train 256 --limit-val 100 --jobs 1 "
    "--no-latency",
)
# What these say differs from machine to machine by more than numbers: who is more robust, which engines there are, how
# often progress is told. Of them `--check` asks for the headings only.
UNSTEADY = frozenset(c for c in COMMANDS if re.search(r"--against|starfire (data|export|bench|compare) ", c))
PICTURES = {  # by file
    "train.svg": "starfire train --method ck --target 0.8 --name digits-ck-again",
    "inspect.svg": "starfire inspect runs/digits-ck",
}
BLOCK = re.compile(r"<!-- output: (?P<command>.+?)(?: \| first (?P<first>\d+))? -->\n.*?<!-- end -->", re.DOTALL)
RENEW = "python docs/generate_outputs.py"


def printed(command: str, folder: Path) -> str:
    """What the command prints into a pipe. Raises SystemExit where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "starfire_cli", *shlex.split(command)[1:]],
        cwd=folder,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{command}: exit code {done.returncode}\n{done.stdout}")
    printed_text = done.stdout.replace(f"{folder.resolve()}{os.sep}", "").strip("\n")
    lines = (line.rstrip() for line in printed_text.split("\n"))
    return "\n".join(line for line in lines if not line.startswith("note: this machine has been busy"))


def block(command: str, output: str, first: int | None) -> str:
    """The block of a page: the command and what it printed, or the `first` lines of that."""
    lines = output.split("\n")
    if first is not None and len(lines) > first + 1:
        lines = [*lines[:first], "..."]
    head = f"<!-- output: {command}" + (f" | first {first}" if first is not None else "") + " -->"
    return "\n".join((head, "```console", f"$ {command}", *lines, "```", "<!-- end -->"))


def headings(text: str) -> set[str]:
    """The lines without a figure, such as heads of tables; fences and marks of blocks are none."""
    lines = (
        re.sub(r"\s+", " ", line.strip()) for line in text.split("\n") if not re.match(r"```|<!--|\$ |\.\.\.$", line)
    )
    return {line for line in lines if line and not re.search(r"(^|[\s(])[-+]?\d", line)}


def without_numbers(text: str) -> str:
    """The text with what differs from machine to machine taken out: numbers, bars, gaps."""
    text = re.sub(r"  best$", "", text, flags=re.MULTILINE)
    text = re.sub(r"[█▉▊▋▌▍▎▏▁▂▃▄▅▆▇━╸╺-]+", "", text)
    text = re.sub(r"[+]?\d[\d.,]*(e[+]?\d+)?", "0", text)
    text = re.sub(r"\b0 (min|h)\b", "0 s", text)
    return re.sub(r"\b[0-9a-f]{8,}\b", "0", re.sub(r"[ \t]+", " ", text))


def pages() -> dict[Path, list[str]]:
    """The commands of each page that has blocks. Raises SystemExit for one that this script does not run."""
    found = {}
    for page in sorted(DOCS.glob("*.md")):
        commands = [match["command"] for match in BLOCK.finditer(page.read_text(encoding="utf-8"))]
        if unknown := set(commands) - set(COMMANDS):
            raise SystemExit(f"{page.name} shows {unknown.pop()!r}, which docs/generate_outputs.py does not run")
        if commands:
            found[page] = commands
    return found


def picture(command: str, folder: Path) -> str:
    """An SVG of the terminal's screen after the command."""
    import pyte
    from rich.console import Console
    from rich.style import Style
    from rich.terminal_theme import MONOKAI
    from rich.text import Text

    screen = pyte.Screen(WIDTH, HEIGHT)
    pyte.ByteStream(screen).feed(_on_terminal(command, folder))
    console = Console(record=True, width=WIDTH, file=open(os.devnull, "w", encoding="utf-8"), force_terminal=True)  # noqa: SIM115
    console.print(Text(f"$ {command}", style="bold"))
    last = max((y for y in range(HEIGHT) if screen.display[y].strip()), default=0)
    for y in range(last + 1):
        line = Text()
        for x in range(WIDTH):
            cell = screen.buffer[y][x]
            colour = None if cell.fg == "default" else _COLOURS.get(cell.fg, f"#{cell.fg}")
            line.append(cell.data, Style(color=colour, bold=cell.bold, italic=cell.italics))
        line.rstrip()
        console.print(line, no_wrap=True)
    svg = console.export_svg(title="starfire", theme=MONOKAI)
    return re.sub(r"\s*@font-face \{.*?\}\n", "\n", svg, flags=re.DOTALL)  # no font is fetched


_COLOURS = {"brown": "yellow"}  # pyte's names for what rich calls otherwise


def _on_terminal(command: str, folder: Path) -> bytes:
    """All that the command sends to a terminal."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-m", "starfire_cli", *shlex.split(command)[1:]],
        cwd=folder,
        env=_environment(),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    ):
        os.close(theirs)
        sent = b""
        while True:
            try:
                got = os.read(ours, 1 << 16)
            except OSError:  # Linux's way of saying that the other end is closed
                got = b""
            if not got:
                break
            sent += got
    os.close(ours)
    return sent


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "FORCE_COLOR")}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return kept | {"PYTHONPATH": path, "TERM": "xterm-256color", "OMP_NUM_THREADS": "2"}


def _renewed(found: re.Match[str], outputs: dict[str, str], kept: frozenset[str]) -> str:
    command, first = found["command"], found["first"]
    if command in kept and headings(found[0]) <= headings(outputs[command]):
        return found[0]
    return block(command, outputs[command], int(first) if first else None)


def make_images(folder: Path) -> None:
    """Fifty small pictures of noise, in a folder a class: what `starfire data pack` shows is made of."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for part, count in (("train", 20), ("val", 5)):
        for name in ("cat", "dog"):
            where = folder / part / name
            where.mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 256, (120, 160, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(where / f"{number:02d}.jpg")


def main(arguments: list[str]) -> int:
    """Renew the pages, or check them."""
    shown, stale = pages(), []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        make_images(folder / "images")
        needed = [c for c in COMMANDS if "--pictures" not in arguments or "train" in c]
        outputs = {command: printed(command, folder) for command in needed}
        if "--pictures" in arguments:
            for name, command in PICTURES.items():
                (DOCS / "pictures" / name).write_text(picture(command, folder), encoding="utf-8")
            return 0
        for page in shown:
            old = page.read_text(encoding="utf-8")
            new = BLOCK.sub(
                lambda m: _renewed(m, outputs, kept=UNSTEADY if "--check" in arguments else frozenset()), old
            )
            if "--check" not in arguments:
                page.write_text(new, encoding="utf-8")
            elif without_numbers(new) != without_numbers(old):
                stale.append(page.name)
    if stale:
        print(f"{', '.join(stale)} show what is no longer printed: run `{RENEW}`", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
