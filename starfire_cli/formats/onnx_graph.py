"""Writes networks as ONNX graphs."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import torch
from torch import nn


def missing_package() -> str | None:
    """A line for the user that names the first package that ONNX needs and that is not installed; None if none is."""
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            return f'{package} is not installed (pip install "starfire-cli[onnx]")'
    return None


def write_graph(model: nn.Module, pixels: torch.Tensor, path: Path) -> None:
    """Write the model as ONNX, for any number of images.

    Args:
        model: from pixels to logits, in eval mode.
        pixels: (N, 3, H, W), N at least 2, as an example; H and W are fixed in the graph.
        path: the file to write.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own about its exporter
        torch.onnx.export(
            model,
            (pixels,),
            path,
            input_names=["pixels"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
            verbose=False,
        )
