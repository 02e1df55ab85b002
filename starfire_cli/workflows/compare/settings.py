"""The settings of a comparison, which the same command has again and another one must not change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from starfire_cli.errors import BadOption
from starfire_cli.labels import DENSE
from starfire_cli.pruning import METHODS, TRAINING_METHODS
from starfire_cli.text import printable
from starfire_cli.workflows.compare.cells import BaseRequest
from starfire_cli.workflows.compare.request import CompareRequest, parse_methods
from starfire_cli.workflows.train.settings import pruning_of

_FREE = frozenset({"workers", "eval_batch_size", "save_every"})
"""Options of train that a comparison may change on its way: nothing that is measured depends on them."""


def method_specs(request: CompareRequest, base: BaseRequest) -> tuple[str, ...]:
    """The methods' specs without what is default, dense first. Raises BadOption."""
    specs = []
    for text in parse_methods(request.methods):
        name = text.partition(":")[0]
        if name in METHODS.names() and name not in TRAINING_METHODS.names():
            raise BadOption(
                f"--methods {text}: {name} compresses a network that is trained (starfire prune-mask CHECKPOINT "
                f"--method {name}); compare trains, with: {', '.join(TRAINING_METHODS.names())}"
            )
        asked = replace(base.request, method=text, max_nonzero=None, fc=type(base.request).fc)
        specs.append(pruning_of(asked).method_spec)
    return tuple(dict.fromkeys(sorted(specs, key=lambda spec: spec != DENSE)))


def untargeted(methods: Sequence[str], base: BaseRequest) -> frozenset[str]:
    """Those of the methods' specs that look at no target: one run says the same at all of them."""
    asked = {spec: replace(base.request, method=spec, max_nonzero=None, fc=type(base.request).fc) for spec in methods}
    return frozenset(spec for spec, own in asked.items() if pruning_of(own).shown_target is None)


def settings_of(request: CompareRequest, base: BaseRequest, methods: Sequence[str]) -> dict[str, Any]:
    """The settings that decide the cells' results; the same command has the same."""
    config = base.request.as_config()
    return {
        "methods": list(methods),
        "target": list(request.target),
        "seeds": list(request.seeds),
        "equal": request.equal,
        "checkpoint": request.checkpoint,
        **{name: config[name] for name in sorted(base.given - _FREE) if name in config},
    }


GROWING = ("methods", "target", "seeds")
"""Settings that may get more values."""


def check_same(
    old: Mapping[str, Any], new: Mapping[str, Any], folder: Path, *, growing: Sequence[str] = GROWING
) -> None:
    """Raises BadOption naming the first setting that differs from those that a comparison began with.

    Args:
        old: of the comparison.
        new: of this call.
        folder: of the comparison.
        growing: settings that may get more values.
    """
    for name in dict.fromkeys([*old, *new]):
        before, now = old.get(name), new.get(name)
        if name in growing and isinstance(before, list) and isinstance(now, list):
            missing = [value for value in before if value not in now]
            if missing:
                raise BadOption(
                    f"--{name} {_text(now)} lacks {_text(missing)}, which the comparison in {folder} has; more may be "
                    "added, or --out DIR begins another"
                )
        elif before != now:
            flag = f"--{name.replace('_', '-')}"
            given = f"{flag} {_text(now)}" if now is not None else f"no {flag}"
            has = _text(before) if before is not None else f"no {flag}"
            raise BadOption(
                f"{given} contradicts the comparison in {folder}, which has {has}; leave it so, or begin another with "
                "--out DIR"
            )


def _text(value: object) -> str:
    return printable(",".join(map(str, value)) if isinstance(value, list | tuple) else str(value), 80)
