"""The Python module that goes with an exported network: it loads the library by ctypes, without torch."""

from __future__ import annotations

from starfire_cli.sparse.export.module import Description

_TEXT = '''"""The network NAME, written by `starfire export`; it needs libNAME.so and NAME.json, nothing else.

    from NAME import Network

    network = Network()
    logits = network(pixels)  # float32 in [0, 1], (N, CHANNELS, HEIGHT, WIDTH): a numpy array or any other buffer
    print([network.labels[row.index(max(row))] for row in logits])
"""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from threading import Lock
from typing import Any

CHANNELS, HEIGHT, WIDTH, OUTPUTS = SHAPE
_ERRORS = {-1: "a wrong argument", -2: "out of memory", -3: "this processor lacks instructions it needs", -4: "busy"}


class Network:
    """The network, created once; threads that call it at the same time wait for one another.

    Args:
        threads: that run it.
        folder: where libNAME.so and NAME.json are; beside this file by default.
    """

    def __init__(self, threads: int = 1, folder: str | Path | None = None) -> None:
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
        """The logits of each image."""
        view = memoryview(pixels)
        size = 4 * CHANNELS * HEIGHT * WIDTH
        if view.format != "f" or not view.c_contiguous or view.nbytes % size:
            raise TypeError(f"pixels must be float32, (N, {CHANNELS}, {HEIGHT}, {WIDTH}), without gaps")
        images = view.nbytes // size
        if not images:
            return []
        kind = ctypes.c_char * view.nbytes
        data = kind.from_buffer_copy(view.cast("B")) if view.readonly else kind.from_buffer(view)
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


def python_module(identity: Description) -> str:
    """NAME.py."""
    shape = ", ".join(map(str, (*identity.image, identity.outputs)))
    text = _TEXT.replace("(N, CHANNELS, HEIGHT, WIDTH)", f"(N, {', '.join(map(str, identity.image))})", 1)
    return text.replace("SHAPE", shape).replace("NAME", identity.name)
