"""Exported networks as shared libraries: what NAME.h promises, called through C's interface."""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
from pathlib import Path
from threading import Barrier, Thread

import pytest
import torch
from torch import nn

from starfire_cli.errors import StarfireError
from starfire_cli.sparse.export.driver import ARGUMENT, BUSY, MEMORY
from starfire_cli.sparse.export.header import example, header
from starfire_cli.sparse.export.module import Description
from starfire_cli.sparse.plan import Choice, ExecutionPlan, Maps
from starfire_cli.sparse.tracing import TracedNetwork
from tests.helpers.exported import COMPILER, Library, export_small
from tests.tiny import Net

pytest.importorskip("llvmlite")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler")
SIDE = 12
_CHECK = """
#include <stdlib.h>
#include "net.h"
int main(void) {
    for (int own = 0; own < 2; own++)
        for (int images = 0; images < 6; images++) {
            int64_t size = net_memory(THREADS);
            char *memory = own ? malloc(size) : NULL;
            float *pixels = malloc(4 * 3 * 12 * 12 * (images + 1)), *logits = malloc(4 * 5 * images + 1);
            net_network *network;
            for (int i = 0; i < 3 * 12 * 12 * images; i++) pixels[i] = i % 7 / 7.0f;
            if (net_create(&network, THREADS, memory, size) || net_run(network, pixels, images, logits)) return 1;
            for (int i = 0; i < 5 * images; i++) if (!(logits[i] * logits[i] < 1e6f)) return 2;
            net_free(network);
            free(memory), free(pixels), free(logits);
        }
    return 0;
}
"""


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    made = Net(5).eval()
    with torch.no_grad():
        made.conv2.weight *= torch.rand_like(made.conv2.weight) > 0.6
    return made


@pytest.fixture(scope="module")
def alone(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Library:
    return Library(export_small(model, SIDE, "native"), tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def threaded(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Library:
    return Library(export_small(model, SIDE, "native", threads=True), tmp_path_factory.mktemp("threaded"))


def run(library: Library, images: torch.Tensor, threads: int = 1) -> torch.Tensor:
    code, network = library.create(threads)
    assert code == 0
    logits = torch.full((len(images), 5), float("nan"))
    assert library.run(network, images, len(images), logits) == 0
    library.free(network)
    return logits


@pytest.mark.parametrize("batch", [1, 2, 7])
@torch.no_grad()
def test_logits_are_the_network_s(model: nn.Module, alone: Library, batch: int) -> None:
    images = torch.rand(batch, 3, SIDE, SIDE)
    assert torch.allclose(run(alone, images), model(images), rtol=1e-5, atol=1e-6)


def test_the_same_loops_give_the_same_bits_in_process(tmp_path: Path) -> None:
    torch.manual_seed(1)
    layers = [nn.Conv2d(3, 9, 5, padding=2), nn.ReLU(), nn.Conv2d(9, 6, 3, stride=2), nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)).eval()
    images = torch.rand(3, 3, SIDE, SIDE)
    network = TracedNetwork(model)
    shapes = network.shapes((1, 3, SIDE, SIDE))
    operations = network.operations(shapes)
    assert all(o.work.kinds() == ("taps",) for o in operations if o.work), "there is one loop for each"
    choices = [Choice(name=o.name, how="taps" if o.work or o.folded else "torch", seconds={}) for o in operations]
    with torch.inference_mode():
        plan = ExecutionPlan(network, (1, 3, SIDE, SIDE), operations, Maps(operations, shapes), choices)
        expected = torch.cat([plan.run(image[None]) for image in images])
    assert torch.equal(run(Library(export_small(model, SIDE, "native"), tmp_path), images), expected)


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_threads_give_the_same_bits(threaded: Library, batch: int) -> None:
    images = torch.rand(batch, 3, SIDE, SIDE)
    assert torch.equal(run(threaded, images, threads=3), run(threaded, images, threads=1))


def test_memory_of_the_caller(alone: Library) -> None:
    need = alone.memory(1)
    memory = (ctypes.c_char * (need + 1)).from_buffer_copy(b"\xff" * (need + 1))
    at = ctypes.c_void_p(ctypes.addressof(memory) + 1)  # aligned by nothing
    code, network = alone.create(1, at, need)
    assert code == 0
    images, logits = torch.rand(1, 3, SIDE, SIDE), torch.zeros(1, 5)
    assert alone.run(network, images, 1, logits) == 0
    assert torch.equal(logits, run(alone, images))
    alone.free(network)
    assert alone.run(network, images, 1, logits) == ARGUMENT, "it was freed"


def test_errors_are_codes(alone: Library, threaded: Library) -> None:
    images, logits = torch.rand(1, 3, SIDE, SIDE), torch.zeros(1, 5)
    memory = ctypes.create_string_buffer(1000)
    assert alone.memory(2) == alone.memory(0) == threaded.memory(65) == threaded.memory(-1) == 0
    for threads in (0, 2, -1):
        assert alone.create(threads)[0] == ARGUMENT
    code, network = alone.create(1, memory, 1000)
    assert (code, network.value) == (MEMORY, None)
    code, network = alone.create()
    assert alone.run(ctypes.c_void_p(), images, 1, logits) == ARGUMENT
    assert alone.run(network, images, -1, logits) == ARGUMENT
    assert alone.run(network, images, 1 << 62, logits) == alone.run(network, images, (1 << 63) - 1, logits) == ARGUMENT
    assert alone.run(network, None, 1, logits) == alone.run(network, images, 1, None) == ARGUMENT
    assert alone.run(network, None, 0, None) == 0
    alone.free(ctypes.c_void_p())
    alone.free(network)


def test_a_network_in_use_is_busy(alone: Library) -> None:
    code, network = alone.create()
    assert code == 0
    ctypes.c_int32.from_address((network.value or 0) + 16).value = 1  # as another thread would have left it meanwhile
    images, logits = torch.rand(1, 3, SIDE, SIDE), torch.zeros(1, 5)
    assert alone.run(network, images, 1, logits) == BUSY
    ctypes.c_int32.from_address((network.value or 0) + 16).value = 0
    assert alone.run(network, images, 1, logits) == 0
    alone.free(network)


def test_networks_of_several_threads_at_a_time(threaded: Library) -> None:
    images = torch.rand(6, 3, SIDE, SIDE)
    expected, found, ready = run(threaded, images), [], Barrier(4)

    def work() -> None:
        ready.wait()
        found.extend(run(threaded, images, threads=2) for _ in range(5))

    workers = [Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 20 and all(torch.equal(one, expected) for one in found)


@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm")
@pytest.mark.parametrize("threads", [False, True])
def test_libc_is_all_it_needs(alone: Library, threaded: Library, threads: bool) -> None:
    command = ["nm", str((threaded if threads else alone).object_file)]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    symbols = [line.split()[-2:] for line in found.splitlines()]
    pthreads = {"pthread_create", "pthread_join", "sched_yield"} if threads else set()
    assert {name for kind, name in symbols if kind == "U"} == {"malloc", "free", "memset"} | pthreads
    functions = {f"net_{name}" for name in ("info", "memory", "create", "run", "free")}
    assert {name for kind, name in symbols if kind.isupper() and kind != "U"} == functions, "others may be linked, too"


def test_the_description(alone: Library, threaded: Library) -> None:
    assert struct.unpack("<6i", alone.info(24)) == (1, 3, SIDE, SIDE, 5, 1)
    assert struct.unpack("<6i", threaded.info(24))[5] == 64
    assert alone.info(120)[24:] == struct.pack("<6f", 0.1, 0.2, 0.3, 1, 2, 3) + b"ab" * 32 + bytes(8)


def test_all_levels_of_x86_in_one_file(model: nn.Module, alone: Library, tmp_path: Path) -> None:
    import platform

    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("not an x86-64")
    images = torch.rand(2, 3, SIDE, SIDE)
    found = run(Library(export_small(model, SIDE, "x86-64"), tmp_path), images)
    assert torch.allclose(found, run(alone, images), rtol=1e-5, atol=1e-6)


def test_the_header_and_the_example_compile_without_a_warning(model: nn.Module, alone: Library, tmp_path: Path) -> None:
    assert COMPILER is not None
    identity = Description(name="net", image=(3, SIDE, SIDE), outputs=5, mean=(0, 0, 0), std=(1, 1, 1), digest="")
    (tmp_path / "net.h").write_text(header(identity, threads=False))
    (tmp_path / "example.c").write_text(example(identity, "cc"))
    strict = ["-Wall", "-Wextra", "-pedantic", "-Werror", "-std=c99", "-fsanitize=undefined"]
    build = [COMPILER, *strict, "-o", "example", "example.c", str(alone.object_file)]
    subprocess.run(build, cwd=tmp_path, check=True)
    done = subprocess.run(["./example"], cwd=tmp_path, check=True, capture_output=True, text=True)
    with torch.no_grad():
        expected = int(model(torch.full((1, 3, SIDE, SIDE), 0.5)).argmax())
    assert done.stdout.splitlines()[-1] == f"class {expected}"
    assert subprocess.run(["./example", "/dev/null"], cwd=tmp_path, capture_output=True, check=False).returncode == 1


@pytest.mark.slow
@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize(
    "checker", [("valgrind", "--error-exitcode=9", "--leak-check=full"), ()], ids=["valgrind", "sanitizers"]
)
def test_memory_errors(model: nn.Module, tmp_path: Path, checker: tuple[str, ...], threads: bool) -> None:
    """Neither reads nor writes what it should not, in memory that the caller gives to the byte."""
    if checker and not shutil.which(checker[0]):
        pytest.skip("no valgrind")
    identity = Description(name="net", image=(3, SIDE, SIDE), outputs=5, mean=(0, 0, 0), std=(1, 1, 1), digest="")
    (tmp_path / "net.h").write_text(header(identity, threads=threads))
    (tmp_path / "net.o").write_bytes(export_small(model, SIDE, "x86-64", threads=threads))
    (tmp_path / "check.c").write_text(_CHECK.replace("THREADS", "3" if threads else "1"))
    flags = [] if checker else ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    assert COMPILER is not None
    subprocess.run([COMPILER, "-g", *flags, "-o", "check", "check.c", "net.o", "-pthread"], cwd=tmp_path, check=True)
    subprocess.run([*checker, "./check"], cwd=tmp_path, check=True, capture_output=True)


def test_weights_that_are_no_numbers_are_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 100, 2))
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(StarfireError, match="0: 1 of its weights are NaN or infinite"):
        export_small(model)


def test_networks_without_weights_are_refused() -> None:
    with pytest.raises(StarfireError, match="no convolution or linear layer"):
        export_small(nn.Sequential(nn.AvgPool2d(2), nn.Flatten()))


def test_networks_with_control_flow_are_refused() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            return x if x.sum() > 0 else -x

    with pytest.raises(StarfireError, match="trace"):
        export_small(Branching())
