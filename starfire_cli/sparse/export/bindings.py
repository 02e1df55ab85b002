"""The Python module that goes with an exported network: it loads the library by ctypes, without torch."""

from __future__ import annotations

from starfire_cli.sparse.export.module import THREADS, Description

_TEXT = '''"""The network NAME, written by `starfire export`; it needs libNAME.so and NAME.json, nothing else.

    from NAME import Network

    network = Network()
    logits = network(pixels)  # float32 in [0, 1], (N, CHANNELS, HEIGHT, WIDTH): a numpy array or other buffer
    print([network.labels[row.index(max(row))] for row in logits])
"""

from __future__ import annotations

import ctypes
import json
import operator
from pathlib import Path
from threading import Lock
from typing import Any

CHANNELS, HEIGHT, WIDTH, OUTPUTS = SHAPE
THREADS = MOST  # at most
_ERRORS = {-1: "a wrong argument", -2: "out of memory", -3: "this processor lacks instructions it needs", -4: "busy"}


class Network:
    """The network, created once; threads that call it at the same time wait for one another.

    Args:
        threads: that run it, 1 to THREADS.
        folder: where libNAME.so and NAME.json are; beside this file by default.

    Raises ValueError for another number of threads, RuntimeError where the library gives an error.
    """

    def __init__(self, threads: int = 1, folder: str | Path | None = None) -> None:
        if not 1 <= operator.index(threads) <= THREADS:
            raise ValueError(f"threads={threads}: NAME was exported for THREAD_RANGE")
        folder = Path(__file__).resolve().parent if folder is None else Path(folder)
        self.about = json.loads((folder / "NAME.json").read_text(encoding="utf-8"))
        self.labels: list[str] = self.about["labels"]
        self._library = ctypes.CDLL(str(folder / "libNAME.so"))
        self._library.NAME_create.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64]
        self._library.NAME_run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
        self._library.NAME_free.argtypes = [ctypes.c_void_p]
        self._library.NAME_free.restype = None
        self._lock, self._network = Lock(), ctypes.c_void_p()
        self._check(self._library.NAME_create(ctypes.byref(self._network), threads, None, 0))

    def __call__(self, pixels: Any) -> list[list[float]]:
        """The logits of each image. Raises TypeError for pixels of another shape or type."""
        wanted = f"float32 of shape (N, {CHANNELS}, {HEIGHT}, {WIDTH}) is wanted"
        try:
            view = memoryview(pixels)
        except TypeError:
            raise TypeError(f"pixels are a {type(pixels).__name__}; a numpy array or buffer, {wanted}") from None
        if view.format != "f" or view.ndim != 4 or view.shape[1:] != (CHANNELS, HEIGHT, WIDTH):
            raise TypeError(f"pixels are {getattr(pixels, 'dtype', repr(view.format))} of shape {view.shape}; {wanted}")
        images = view.shape[0]
        if not images:
            return []
        kind = ctypes.c_char * view.nbytes
        if view.c_contiguous and not view.readonly:
            data = kind.from_buffer(view)
        else:
            data = kind.from_buffer_copy(view.tobytes())
        logits = (ctypes.c_float * OUTPUTS * images)()
        with self._lock:
            self._check(self._library.NAME_run(self._network, data, images, logits))
        return [list(row) for row in logits]

    def __del__(self) -> None:
        if getattr(self, "_network", None):
            self._library.NAME_free(self._network)

    def _check(self, code: int) -> None:
        if code:
            raise RuntimeError(f"NAME: {_ERRORS.get(code, code)}")
'''


def python_module(identity: Description, *, threads: bool) -> str:
    """NAME.py."""
    shape = ", ".join(map(str, (*identity.image, identity.outputs)))
    text = _TEXT.replace("(N, CHANNELS, HEIGHT, WIDTH)", f"(N, {', '.join(map(str, identity.image))})", 1)
    most = f"1 to {THREADS} threads" if threads else "1 thread, without --threads"
    text = text.replace("THREAD_RANGE", most).replace("MOST", str(THREADS if threads else 1))
    return text.replace("SHAPE", shape).replace("NAME", identity.name)
