"""Checks of a trace: refuses networks of which torch.fx loses what their Python does in every pass."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from starfire_cli.errors import StarfireError
from starfire_cli.pruning.channels.graph import LeafTracer, Traced, fitting_image

_OURS = {"_parameters", "_buffers", "_modules", "training"}


def check_python(model: nn.Module) -> None:
    """Check that tracing draws no random number and changes nothing of the network: both would be done once only.

    Args:
        model: in the mode that it is traced in; left as it is.

    Raises StarfireError with the reason.
    """
    twin = copy.deepcopy(model)
    before = dict(_state(twin))
    with _random_numbers_kept():
        drawn = _generators()
        try:
            graph = LeafTracer().trace(twin)
        except Exception as error:  # noqa: BLE001 - tracing runs a user's code
            raise StarfireError(f"torch.fx cannot trace the model: {str(error).splitlines()[0]}") from None
        if _generators() != drawn:
            raise StarfireError("the network draws random numbers in Python, which a trace of it would draw only once")
    after = dict(_state(twin))
    changed = next((name for name in {**before, **after} if before.get(name) != after.get(name)), None)
    if changed is None and any(_writes(node) for node in graph.nodes):
        changed = "own tensors"
    if changed is not None:
        raise StarfireError(f"the network changes its {changed} in every pass, which a trace of it would not")


def check_gradients(traced: Traced) -> None:
    """Check that parameters have the same gradients through the graph as through the model, `torch.no_grad` included.

    Raises StarfireError with the reason.
    """
    try:
        image = fitting_image(traced)
        parameters = {name: p for name, p in traced.model.named_parameters() if p.requires_grad}
        expected, found = (_gradients(module, image, parameters) for module in (traced.model, traced.root))
    except Exception:  # noqa: BLE001 - it takes another kind of image, or gives no tensor; nothing can be said
        return
    largest = max([0.0, *(float(gradient.abs().max()) for gradient in expected.values() if gradient is not None)])
    for name, gradient in expected.items():
        other = found[name]
        if gradient is None and other is None:
            continue
        if gradient is None or other is None or not torch.allclose(gradient, other, rtol=1e-5, atol=1e-7 * largest):
            raise StarfireError(
                f"torch.fx reads this model as something else: {name} would get another gradient, as where a part is "
                "computed under torch.no_grad"
            )


def _gradients(module: nn.Module, image: Tensor, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor | None]:
    with torch.enable_grad():
        result: Tensor = module(image.clone())
        if not result.requires_grad or not parameters:
            return dict.fromkeys(parameters)
        weighed = (result * torch.linspace(-1, 2, result.numel(), dtype=result.dtype).view_as(result)).sum()
        return dict(
            zip(parameters, torch.autograd.grad(weighed, [*parameters.values()], allow_unused=True), strict=True)
        )


def _state(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """(name, what tells whether it has changed) of all that a network holds."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name not in _OURS:
                yield f"{path}.{name}".lstrip("."), (id(value), len(value) if isinstance(value, list | dict) else 0)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        yield name, (id(tensor), tensor._version)


def _writes(node: fx.Node) -> bool:
    """Whether a node changes a tensor of the network."""
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    named = node.op in ("call_method", "call_function") and name.endswith("_") and not name.startswith("__")
    first = node.args[0] if node.args else None
    return (named or name == "setitem") and isinstance(first, fx.Node) and first.op == "get_attr"


def _generators() -> tuple[bytes, bytes, object]:
    return torch.get_rng_state().numpy().tobytes(), np.random.get_state()[1].tobytes(), random.getstate()  # type: ignore[index]


@contextmanager
def _random_numbers_kept() -> Iterator[None]:
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
