"""Networks exported for tests: run as steps in this process, or linked and called through C."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import torch
from torch import Tensor, nn

from starfire_cli.sparse import compiler
from starfire_cli.sparse.export.all_operators import OPERATORS
from starfire_cli.sparse.export.lowering import lower
from starfire_cli.sparse.export.network import export_network
from starfire_cli.sparse.export.program import program
from starfire_cli.sparse.export.targets import Level, find_target
from starfire_cli.sparse.machine import Program
from starfire_cli.sparse.pool import LoopWeightsCache, zeros
from starfire_cli.sparse.tracing import TracedNetwork

COMPILER = shutil.which("cc")


def run_steps(model: nn.Module, images: Tensor, *, lanes: int | None = None, threads: int = 1) -> Tensor:
    """The outputs of a network's exported program for images (N, C, H, W), its loops compiled in this process."""
    lanes = lanes or compiler.lanes()
    image = (images.shape[1], images.shape[2], images.shape[3])
    with torch.inference_mode():
        lowered = lower(TracedNetwork(model.eval()), image, lanes, OPERATORS)
        made = program(lowered, Level(name="test", cpu="", lanes=lanes), threads=threads, cache=LoopWeightsCache())
    ready = Program(made.steps)
    memory, found = zeros(1, made.memory // 4), torch.full((len(images), lowered.outputs), float("nan"))
    for image_CHW, row in zip(images.contiguous(), found, strict=True):
        ready.run_one(memory.data_ptr(), row.data_ptr(), image_CHW.data_ptr(), threads)
    return found


def export_small(model: nn.Module, side: int = 12, target: str = "native", *, threads: bool = False) -> bytes:
    """The object file of a network called `net` for images 3 x side x side."""
    found = export_network(
        model.eval(),
        find_target(target),
        name="net",
        image=(3, side, side),
        mean=(0.1, 0.2, 0.3),
        std=(1.0, 2.0, 3.0),
        digest="ab" * 32,
        threads=threads,
    )
    return found.file.code


class Library:
    """A linked network, called by its functions' names without `net_`."""

    def __init__(self, code: bytes, folder: Path) -> None:
        self.object_file = folder / "net.o"
        self.object_file.write_bytes(code)
        assert COMPILER is not None
        subprocess.run([COMPILER, "-shared", "-o", "libnet.so", "net.o", "-pthread"], cwd=folder, check=True)
        self._library = ctypes.CDLL(str(folder / "libnet.so"))
        self._library.net_memory.restype = ctypes.c_int64
        self._library.net_info.restype = ctypes.c_void_p

    def info(self, size: int) -> bytes:
        """The first bytes of the description."""
        return ctypes.string_at(self._library.net_info(), size)

    def memory(self, threads: int) -> int:
        return int(self._library.net_memory(threads))

    def create(self, threads: int = 1, memory: object = None, size: int = 0) -> tuple[int, ctypes.c_void_p]:
        """(the code, the network)."""
        network = ctypes.c_void_p()
        code = self._library.net_create(ctypes.byref(network), threads, memory, ctypes.c_int64(size))
        return code, network

    def run(self, network: ctypes.c_void_p, pixels: Tensor | None, images: int, logits: Tensor | None) -> int:
        where = [None if t is None else ctypes.c_void_p(t.data_ptr()) for t in (pixels, logits)]
        return int(self._library.net_run(network, where[0], ctypes.c_int64(images), where[1]))

    def free(self, network: ctypes.c_void_p) -> None:
        self._library.net_free(network)
