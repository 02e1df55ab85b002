"""Exports checkpoints for other tools: safetensors, torch.nn.utils.prune, sparse bitmasks, ONNX (docs/compress.md)."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import torch
from torch import nn

from starfire_cli.errors import StarfireError
from starfire_cli.formats.atomic import atomic_write
from starfire_cli.formats.checkpoint import file as files
from starfire_cli.formats.checkpoint.interchange import WRITERS
from starfire_cli.formats.onnx_graph import missing_package, write_graph
from starfire_cli.formats.run import find_checkpoint
from starfire_cli.networks.restore import RestoredModel, restore_model
from starfire_cli.records.compress import Note, Outcome, Written
from starfire_cli.workflows.compress.request import CompressRequest
from starfire_cli.workflows.compress.run import output_path

_CLOSE = 1e-4  # of the largest logit: what float32 sums in another order may differ by


def export(request: CompressRequest) -> Iterator[Outcome]:
    """Writes a checkpoint of any format in the form `request.to`; yields notes and at last the result.

    Raises:
        BadOption, StarfireError: no such form, no model known (ONNX), or the file does not compute the same.
    """
    request.check()
    form, out = request.to, request.out
    assert form is not None, "who asks for no form wants no export"
    path = find_checkpoint(request.checkpoint)
    checkpoint = files.load(path, weights=request.weights)
    yield from (Note(text=note) for note in checkpoint.notes)
    masks = checkpoint.masks or {}
    started = perf_counter()
    difference = None
    if form == "onnx":
        output = output_path(path, out, ".onnx", ".onnx")
        network = restore_model(
            checkpoint, torch.device("cpu"), model=request.model, mean=request.mean, std=request.std
        )
        yield from (Note(text=note) for note in network.notes if note not in checkpoint.notes)
        difference = _write_onnx(output, network)
        if difference is None:
            yield Note(text='not checked: onnxruntime is not installed (pip install "starfire-cli[onnx]")')
    else:
        suffix, write = WRITERS[form]
        output = output_path(path, out, suffix, suffix)
        if form != "safetensors" and not masks:
            yield Note(text=f"{path} has no masks: --to {form} writes dense tensors only")
        write(output, checkpoint.state, masks)
    yield Written(
        input=path,
        output=output,
        form=form,
        bytes=output.stat().st_size,
        tensors=len(checkpoint.state),
        masks=len(masks),
        seconds=perf_counter() - started,
        difference=difference,
    )


def _write_onnx(output: Path, network: RestoredModel) -> float | None:
    """Exports the network from pixels in [0, 1] to logits; returns onnxruntime's largest difference from our logits.

    None where onnxruntime is not there to ask.
    """
    if problem := missing_package():
        raise StarfireError(f"--to onnx: {problem}")
    model, size = network.model, network.image_size
    pixels = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / "model.onnx"
        write_graph(model, pixels, temporary)
        data = temporary.read_bytes()
    difference = _difference(data, model, pixels)
    if difference is not None and not difference <= _CLOSE:
        raise StarfireError(f"{output} was not written: onnxruntime's logits differ by {difference:.2g} of the largest")
    with atomic_write(output, need=len(data)) as file:
        file.write(data)
    return difference


@torch.no_grad()
def _difference(data: bytes, model: nn.Module, pixels: torch.Tensor) -> float | None:
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"pixels": pixels.numpy()})
    ours = model(pixels)
    return float((torch.from_numpy(logits) - ours).abs().max() / ours.abs().max().clamp_min(1e-30))
