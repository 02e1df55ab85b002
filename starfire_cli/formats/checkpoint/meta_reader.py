"""Reads the metadata of a checkpoint: plain values become the records of `meta`, and every field is checked."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from starfire_cli.damage import DamagedFile
from starfire_cli.formats.checkpoint.meta import DataMeta, Meta, MetricsMeta, ModelMeta, PruningMeta
from starfire_cli.formats.plain_values import check_plain
from starfire_cli.numbers import RGB
from starfire_cli.pruning.channels.recipe import ShrinkRecipe

T = TypeVar("T")

LONGEST = 4096  # characters of a path or a spec
_PARTS = ("model", "data", "pruning", "metrics", "request")


def read_meta(values: Mapping[str, Any], path: Path) -> Meta:
    """The metadata of a file.

    Args:
        values: plain values, by name.
        path: of the file, for the error.

    Raises Damaged or DamagedFile where they are no plain values, or a part of them is no set of names and values.
    """
    check_plain(values, "metadata")
    for name in _PARTS:
        if not isinstance(values.get(name) or {}, dict):
            raise DamagedFile(f"{path}: its metadata are damaged: {name} is no set of names and values")
    model, data, pruning, metrics = (_Fields(values.get(name) or {}) for name in _PARTS[:4])
    return Meta(
        model=ModelMeta(
            spec=model.get("spec", lambda value: _is(str, value)),
            num_classes=model.get("num_classes", lambda value: _whole(value, 1, 1 << 24)),
            image_size=model.get("image_size", _side),
            shrink=model.get("shrink", _recipe) if model.values.get("shrink") else {},
            unusable=tuple(name for name in model.unusable if name == "image_size"),
            values=model.values,
        ),
        data=DataMeta(
            spec=data.get("spec", _text),
            classes=data.get("classes", lambda value: tuple(map(_text, _list(value)))),
            image_size=data.get("image_size", _side),
            resize=data.get("resize", _side),
            mean=data.get("mean", lambda value: _channels(value, 0.0)),
            std=data.get("std", lambda value: _channels(value, sys.float_info.min)),
            val_fraction=data.get("val_fraction", _fraction),
            split_seed=data.get("split_seed", lambda value: _whole(value, 0, 1 << 63)),
            name=data.get("name", lambda value: _is(str, value)),
            augment=data.get("augment", lambda value: _is(str, value)),
            values=data.values,
            unusable=tuple(name for name in data.unusable if name not in ("name", "augment")),
        ),
        pruning=PruningMeta(
            method=pruning.get("method", lambda value: _is(str, value)),
            fc=pruning.get("fc", lambda value: _is(str, value)),
            target=pruning.get("target", _number),
            era=pruning.get("era", lambda value: tuple(map(_number, _list(value)))),
            era_steps=pruning.get("era_steps", _steps),
        ),
        metrics=MetricsMeta(
            val_top1=metrics.get("val_top1", lambda value: _is(float, value)),
            val_top5=metrics.get("val_top5", lambda value: _is(float, value)),
            sparsity_prunable=metrics.get("sparsity_prunable", lambda value: _is(float, value)),
            sparsity_total=metrics.get("sparsity_total", lambda value: _is(float, value)),
            epoch=metrics.get("epoch", lambda value: _whole(value, 0, 1 << 63)),
        ),
        request=values.get("request") or None,
        steps_per_epoch=_Fields(values).get("steps_per_epoch", lambda value: _whole(value, 0, 1 << 63)),
        values=values,
    )


class _Fields:
    """A part of the metadata, and which of the fields that were read make no sense."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self.unusable: list[str] = []

    def get(self, name: str, read: Callable[[Any], T]) -> T | None:
        value = self.values.get(name)
        if value is None:
            return None
        try:
            return read(value)
        except (TypeError, ValueError, OverflowError):
            self.unusable.append(name)
            return None


def _is(kind: type[T], value: Any) -> T:
    if not isinstance(value, kind):
        raise ValueError(value)
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST or "\0" in value:
        raise ValueError(value)
    return value


def _list(value: Any) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(value)
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(value)
    return value


def _whole(value: Any, low: int, high: int) -> int:
    """`low` to below `high`."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value < high:
        raise ValueError(value)
    return value


def _side(value: Any) -> int:
    return _whole(value, 2, (1 << 14) + 1)  # of one pixel, torch cannot make any


def _channels(value: Any, least: float) -> RGB:
    red, green, blue = (_number(number) for number in _list(value))
    if not all(least <= number <= 1 for number in (red, green, blue)):
        raise ValueError(value)
    return float(red), float(green), float(blue)


def _fraction(value: Any) -> float:
    if not isinstance(value, float) or not 0 < value < 1 or not math.isfinite(value):
        raise ValueError(value)
    return value


def _steps(value: Any) -> tuple[int, int]:
    first, last = (int(step) for step in _list(value))
    return first, last


def _recipe(value: Any) -> ShrinkRecipe:
    if not isinstance(value, dict) or not all(isinstance(cut, dict) for cut in value.values()):
        raise ValueError(value)
    return value
