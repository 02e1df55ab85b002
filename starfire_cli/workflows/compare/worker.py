"""A process that runs one cell: its job comes on stdin, its progress goes to stdout, a JSON object a line.

It stops, and saves, when stdin closes: then whoever started it is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from typing import Any, TextIO

from starfire_cli.errors import StarfireError
from starfire_cli.records.compare import CellDone, CellProgress, CompareNote
from starfire_cli.records.train import Stopped
from starfire_cli.text import reason

_SAVING = 300.0  # seconds for a checkpoint that is being written


def main() -> int:
    """Run the cell that stdin describes; returns the exit code."""
    job = json.loads(sys.stdin.readline())
    # Libraries print what they like; that goes to stderr.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    threading.Thread(target=_watch, daemon=True).start()
    try:
        from starfire_cli.workflows.compare.cell import CellJob, run_cell
        from starfire_cli.workflows.compare.memory import gpu_memory, peak_memory

        for record in run_cell(CellJob.from_plain(job)):
            match record:
                case CellProgress():
                    figures = {"done": record.done, "total": record.total, "text": record.text}
                    _say(out, kind="progress", memory=record.memory, gpu=record.gpu, **figures)
                case CompareNote():
                    _say(out, kind="note", text=record.text)
                case Stopped():
                    _say(out, kind="stopped", signal=record.signal)
                case CellDone():
                    _say(out, kind="done", memory=peak_memory(), gpu=gpu_memory())
    except StarfireError as error:
        _say(out, kind="failed", problem=reason(error, 2000))
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 - whoever started us says what went wrong
        _say(out, kind="failed", problem=f"{type(error).__name__}: {reason(error, 1000)}")
        return 1
    return 0


def _say(out: TextIO, **message: Any) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more; `_watch` knows
        out.write(json.dumps(message) + "\n")
        out.flush()


def _watch() -> None:
    """Stop as on SIGTERM when stdin closes."""
    while os.read(0, 1024):  # not through sys.stdin, whose lock would be held while the interpreter ends
        pass
    if sys.platform == "win32":  # where `kill` ends a process unheard
        signal.raise_signal(signal.SIGTERM)
    else:
        os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(_SAVING)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
