"""Inference engines for a network on this CPU: dense ones (torch, ONNX Runtime and others) and our sparse one."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from starfire_cli.errors import StarfireError
from starfire_cli.formats.onnx_graph import missing_package, write_graph
from starfire_cli.formats.onnx_session import Run as RunImages
from starfire_cli.formats.onnx_session import open_session
from starfire_cli.sparse import SparseNetwork
from starfire_cli.text import reason

Run = Callable[[], Tensor]


class Graph:
    """The network as an ONNX file, exported on first use.

    Args:
        model: to be exported.
        side: of its images, in pixels.
        path: of the file.
    """

    def __init__(self, model: nn.Module, side: int, path: Path) -> None:
        self._model, self._side, self._path = model, side, path
        self._problem: str | None = None

    def written(self) -> Path:
        """The file's path, exported on first use. Raises StarfireError; a failed export is not repeated."""
        if self._problem is None and not self._path.exists():
            self._problem = missing_package()
            try:
                if self._problem is None:
                    write_graph(self._model, torch.zeros(2, 3, self._side, self._side), self._path)
            except Exception as error:  # noqa: BLE001 - exporters raise anything
                self._problem = f"it cannot be exported to ONNX: {reason(error)}"
        if self._problem is not None:
            raise StarfireError(self._problem)
        return self._path

    def opened(self, _: Callable[[], nn.Module], images: Tensor, threads: int) -> RunImages:
        """Open the network in ONNX Runtime, in place of the sparse loops. Raises anything where it cannot."""
        return open_session(self.written(), threads=threads, images=1 if len(images) == 1 else None)


@dataclass(frozen=True, kw_only=True)
class BenchJob:
    """The network and inputs that every engine runs.

    Args:
        model: float32, in eval mode, on the CPU; not to be changed.
        images: (N, 3, H, W), float32.
        threads: that may be used.
        graph: the model for those who read ONNX.
        sparse: the model for those who make use of zeros, or why there is none.
    """

    model: nn.Module
    images: Tensor
    threads: int
    graph: Graph
    sparse: SparseNetwork | str


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One inference engine.

    Args:
        name: for programs; `label` for people.
        ready: makes everything ready, and returns what is timed; raises whatever it likes.
        missing: a line that says why it cannot even begin, such as a package that is not installed; None if it can.
        sparse: whether it makes use of zeros.
    """

    name: str
    label: str
    ready: Callable[[BenchJob], Run]
    missing: Callable[[BenchJob], str | None] = lambda job: None
    sparse: bool = False


def _contiguous(job: BenchJob) -> Run:
    return _in_inference(job.model, job.images)


def _channels_last(job: BenchJob) -> Run:
    # Images that lie in memory as this network likes them: that they must be laid out is not its time.
    model = copy.deepcopy(job.model).to(memory_format=torch.channels_last)
    return _in_inference(model, job.images.to(memory_format=torch.channels_last))


def _compiled(job: BenchJob) -> Run:
    # Frozen: BatchNorm is folded into weights and these lie as oneDNN likes them, as in the other engines.
    torch.compiler.reset()
    return _in_inference(torch.compile(job.model, dynamic=False, options={"freezing": True}), job.images)


def _onnxruntime(job: BenchJob) -> Run:
    run = open_session(job.graph.written(), threads=job.threads, images=len(job.images))
    return lambda: run(job.images)


def _openvino(job: BenchJob) -> Run:
    path = job.graph.written()
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    model.reshape(list(job.images.shape))
    settings = {
        "INFERENCE_NUM_THREADS": job.threads,
        "ENABLE_HYPER_THREADING": True,  # else it may use fewer threads than it was given
        "NUM_STREAMS": "1",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    pixels = [job.images.numpy()]
    return lambda: torch.from_numpy(request.infer(pixels, share_inputs=True, share_outputs=True)[0])


def _without(package: str, extra: str) -> Callable[[BenchJob], str | None]:
    def missing(job: BenchJob) -> str | None:
        if importlib.util.find_spec(package) is None:
            return f'{package} is not installed (pip install "starfire-cli[{extra}]")'
        return None

    return missing


def _no_sparse_network(job: BenchJob) -> str | None:
    return job.sparse if isinstance(job.sparse, str) else None


def _starfire(job: BenchJob) -> Run:
    assert not isinstance(job.sparse, str), "asked by `missing`"
    job.sparse.choices(tuple(job.images.shape))
    return _in_inference(job.sparse, job.images)


def _in_inference(model: Callable[[Tensor], Tensor], images: Tensor) -> Run:
    def run() -> Tensor:
        with torch.inference_mode():
            return model(images)

    return run


PLAIN = "torch"
ONNX = "onnxruntime"
COMPILED = "torch-compile"
ENGINES = (
    Engine(name=PLAIN, label="torch, contiguous", ready=_contiguous),
    Engine(name="torch-channels-last", label="torch, channels_last", ready=_channels_last),
    Engine(name=COMPILED, label="torch.compile, frozen", ready=_compiled),
    Engine(name=ONNX, label="ONNX Runtime", ready=_onnxruntime, missing=_without("onnxruntime", "onnx")),
    Engine(name="openvino", label="OpenVINO", ready=_openvino, missing=_without("openvino", "bench")),
    Engine(name="starfire", label="starfire, live weights", ready=_starfire, missing=_no_sparse_network, sparse=True),
)
"""In the order in which they are shown; the first is what the others' outputs are compared with."""
