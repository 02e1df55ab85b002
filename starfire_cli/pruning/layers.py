"""Finds the prunable parameters of a model, and the kind of each."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from torch import Tensor, nn
from torch.nn.utils import parametrize

from starfire_cli.errors import BadOption
from starfire_cli.pruning.state_layers import SortedState, sort_state
from starfire_cli.pruning.ties import overlapping, parameters_of, ties_of

Kind = Literal["window", "pointwise", "linear"]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One prunable parameter.

    Args:
        name: the module's name ("layer1.0.conv1"); what globs match and tables show.
        key: the parameter's key in the state dict ("layer1.0.conv1.weight"); what masks are called by.
        kind: "window" (R * S > 1), "pointwise" (a 1 x 1 convolution) or "linear".
        shape: (K, C, R, S) or (O, I); C counts the channels of one group.
        groups: the convolution's groups.
    """

    name: str
    key: str
    kind: Kind
    shape: tuple[int, ...]
    groups: int = 1

    @property
    def weights(self) -> int:
        """The number of weights of the parameter."""
        return math.prod(self.shape)

    @property
    def window(self) -> int:
        """R * S, the number of weights of one kernel (1 for pointwise and linear layers)."""
        return math.prod(self.shape[2:])

    @property
    def depthwise(self) -> bool:
        """Whether each input channel has one kernel only."""
        return self.groups > 1 and self.shape[1] == 1


def layers_of_model(model: nn.Module, *, untied: Collection[str] = ()) -> tuple[list[Layer], list[tuple[str, str]]]:
    """The prunable layers of a model in its own order, and (name, reason) of weights that cannot be pruned.

    Of tied weights the first is the layer; names in `untied` count as tensors of their own all the same.
    """
    layers: list[Layer] = []
    left_out: list[tuple[str, str]] = []
    parameters = parameters_of(model)
    ties, overlaps = ties_of(parameters), overlapping(parameters)
    seen: dict[str, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, parametrize.ParametrizationList):
            continue  # what it computes is listed with its module
        if not isinstance(module, nn.Conv2d | nn.Linear):
            left_out += [
                (f"{name}.{key}".lstrip("."), f"{type(module).__name__} is neither Conv2d nor Linear")
                for key in _matrices(module)
            ]
            continue
        if parametrize.is_parametrized(module, "weight") or "weight" not in module._parameters:
            left_out.append((name, "its weight is computed by a parametrization"))
            continue
        key = f"{name}.weight".lstrip(".")
        if key in overlaps:
            left_out.append((name, shares_memory(overlaps[key])))
            continue
        root = key if key in untied else ties.get(key, key)
        if root in seen:
            left_out.append((name, f"shares its weight with {seen[root]}"))
            continue
        seen[root] = name
        groups = module.groups if isinstance(module, nn.Conv2d) else 1
        layers.append(_layer(name or "weight", key, tuple(module.weight.shape), groups))
    return layers, left_out


def _matrices(module: nn.Module) -> list[str]:
    """The module's own parameters of two axes or more, those that are computed by a parametrization included."""
    found = [key for key, parameter in module.named_parameters(recurse=False) if parameter.ndim >= 2]
    if parametrize.is_parametrized(module):
        computed = dict(module.parametrizations.items())  # type: ignore[operator, union-attr]
        found += [key for key, way in computed.items() if any(p.ndim >= 2 for p in way.parameters(recurse=False))]
    return found


def shares_memory(other: str) -> str:
    """The reason why a weight that overlaps another is not pruned."""
    return f"shares a part of its memory with {other}, which its mask would not fit"


def layers_of_state(state: Mapping[str, Tensor], found: SortedState | None = None) -> list[Layer]:
    """The prunable layers of a bare state dict in its own order, as `sort_state` tells them (or `found` has).

    A convolution counts as one of one group, since shapes do not tell. Of tied tensors the first is the layer, if each
    of its names may be one; tensors that overlap in another way are none.
    """
    found = found or sort_state(state)
    ties, overlaps = ties_of(state), overlapping(state)
    none = {ties.get(key, key) for key, _ in found.left_out}
    return [
        _layer(key.removesuffix(".weight"), key, tuple(state[key].shape), 1)
        for key in found.layers
        if key not in ties and key not in overlaps and key not in none
    ]


def select(
    layers: Sequence[Layer], *, only: Iterable[str] = (), keep_dense: Iterable[str] = ()
) -> tuple[list[Layer], list[tuple[str, str]]]:
    """The layers left after `--only` and `--keep-dense` globs (on name or key), and (name, reason) of the others.

    Raises BadOption for a glob that matches nothing.
    """
    only, keep_dense = list(only), list(keep_dense)
    for option, globs in (("--only", only), ("--keep-dense", keep_dense)):
        for glob in globs:
            if not any(_matches(layer, glob) for layer in layers):
                names = ", ".join(layer.name for layer in layers[:6]) + (", ..." if len(layers) > 6 else "")
                raise BadOption(f"{option} {glob!r} matches no prunable layer; there are {len(layers)}: {names}")
    chosen: list[Layer] = []
    left_out: list[tuple[str, str]] = []
    for layer in layers:
        keeper = next((g for g in keep_dense if _matches(layer, g)), None)
        if keeper is not None:
            left_out.append((layer.name, f"--keep-dense {keeper}"))
        elif only and not any(_matches(layer, g) for g in only):
            left_out.append((layer.name, f"not in --only {','.join(only)}"))
        else:
            chosen.append(layer)
    return chosen, left_out


def _layer(name: str, key: str, shape: tuple[int, ...], groups: int) -> Layer:
    kind: Kind = "linear" if len(shape) == 2 else "pointwise" if shape[2:] == (1, 1) else "window"
    return Layer(name=name, key=key, kind=kind, shape=shape, groups=groups)


def _matches(layer: Layer, glob: str) -> bool:
    return fnmatchcase(layer.name, glob) or fnmatchcase(layer.key, glob)
