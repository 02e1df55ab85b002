"""Runs ONNX graphs by ONNX Runtime on this CPU."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from starfire_cli.errors import StarfireError
from starfire_cli.formats.onnx_graph import missing_package, write_graph

Run = Callable[[Tensor], Tensor]


def open_session(path: Path, *, threads: int, images: int | None = None) -> Run:
    """Open a session that runs the graph in a file.

    Args:
        path: of a graph with one input and one output.
        threads: that may be used.
        images: of every call; None if their number varies.

    Returns:
        A function from float32 images (N, C, H, W) to the output. It works in any thread, but not after a fork.

    Raises:
        StarfireError: ONNX Runtime is not installed. It raises its own errors otherwise.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise StarfireError('onnxruntime is not installed (pip install "starfire-cli[onnx]")')
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    if images is not None:
        batch = onnx.load(path, load_external_data=False).graph.input[0].type.tensor_type.shape.dim[0].dim_param
        if batch:
            options.add_free_dimension_override_by_name(batch, images)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda pixels: torch.from_numpy(session.run(None, {name: pixels.detach().contiguous().numpy()})[0])


def export_and_open(build: Callable[[], nn.Module], images: Tensor, threads: int) -> Run:
    """Export a network to ONNX Runtime, for images like these: one at a time, or any number.

    Args:
        build: makes the network; not called where a package is missing.
        images: (N, C, H, W), float32.
        threads: that may be used.

    Raises:
        StarfireError: a package is missing. Exporters raise anything else.
    """
    if importlib.util.find_spec("onnxruntime") is None or missing_package() is not None:
        raise StarfireError('ONNX Runtime is not at hand (pip install "starfire-cli[onnx]")')
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_graph(build(), torch.zeros(2, *images.shape[1:]), path)
        return open_session(path, threads=threads, images=1 if len(images) == 1 else None)
