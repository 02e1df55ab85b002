"""Reads what a checkpoint records about its network and data, so that a run with `--init` begins with the same."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from starfire_cli.data import DataInfo
from starfire_cli.data.finding import url_of
from starfire_cli.data.sets.folder import differences
from starfire_cli.errors import BadOption, StarfireError
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.networks.model_spec import model_meta, trusted_spec, untrusted_text
from starfire_cli.text import printable
from starfire_cli.values import Channels
from starfire_cli.workflows.train.request import TrainRequest

# Of a request, what the checkpoint's record fills in where the user gave nothing.
_FILLED = ("model", "data", "image_size", "mean", "std", "val_fraction", "split_seed")
_LONGEST = 4096  # characters of a path or a spec


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """The usable part of a checkpoint's metadata, which may be anybody's; None where it says nothing usable.

    Args:
        model: the spec of the network; never one that runs code.
        data: the spec of the data, which may be a URL.
        classes: their names.
        image_size: in pixels a side.
        mean: with which the network normalises pixels in [0, 1].
        std: likewise.
        val_fraction: the share of the images held out for validation.
        split_seed: decides which these are.
        unusable: what is there and makes no sense, by its name in the metadata.
    """

    model: str | None = None
    data: str | None = None
    classes: tuple[str, ...] | None = None
    image_size: int | None = None
    mean: Channels | None = None
    std: Channels | None = None
    val_fraction: float | None = None
    split_seed: int | None = None
    unusable: tuple[str, ...] = ()


def read_record(meta: Mapping[str, Any], model: str | None) -> Recorded:
    """What the metadata say, as far as it makes sense.

    Args:
        meta: of a checkpoint.
        model: the spec that may be built (see `trusted_spec`).
    """
    data = meta.get("data")
    data = data if isinstance(data, Mapping) else {}
    unusable = []

    def value(source: Mapping[str, Any], name: str, read: Callable[[Any], Any]) -> Any:
        found = source.get(name)
        if found is None:
            return None
        try:
            return read(found)
        except (TypeError, ValueError):
            unusable.append(name)
            return None

    network = meta.get("model")
    size = value(data, "image_size", _size)
    if size is None:
        size = value(network if isinstance(network, Mapping) else {}, "image_size", _size)
    return Recorded(
        model=model if model and len(model) <= _LONGEST else None,
        data=value(data, "spec", _text),
        classes=value(data, "classes", lambda names: tuple(map(_text, _plain_list(names)))),
        image_size=size,
        mean=value(data, "mean", lambda numbers: _channels(numbers, 0.0)),
        std=value(data, "std", lambda numbers: _channels(numbers, sys.float_info.min)),
        val_fraction=value(data, "val_fraction", _fraction),
        split_seed=value(data, "split_seed", _seed),
        unusable=tuple(dict.fromkeys(unusable)),
    )


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """A request whose gaps a checkpoint's record has filled, and where each value came from.

    Args:
        request: the request.
        checkpoint: whose record it was.
        record: what it says.
        filled: the fields that it filled.
        given: the fields that the user gave.
    """

    request: TrainRequest
    checkpoint: Checkpoint
    record: Recorded
    filled: frozenset[str]
    given: frozenset[str]

    def describe(self, request: TrainRequest, info: DataInfo) -> list[str]:
        """Where model, data, image size, mean and std come from, in one line; then what else is to be known.

        Args:
            request: as its recipe has filled it.
            info: the data that were opened.

        Raises StarfireError where the data that the checkpoint names have other classes by now.
        """
        path = self.checkpoint.path
        classes = self.record.classes
        if "data" in self.filled and classes is not None and info.classes != classes:
            problem = differences(classes, info.classes, "the checkpoint", "the data")
            raise StarfireError(f"the data that {path} names have changed: {problem}; --data {info.spec} takes them")
        shown = {
            "model": f"model {printable(request.model or '', 80)}",
            "data": f"data {printable(info.spec, 200)} ({len(info.classes)} classes)",
            "image_size": f"image size {info.image_size}",
            "mean": f"mean {_shown(info.mean)}",
            "std": f"std {_shown(info.std)}",
        }
        recipe = f"recipe {request.recipe}"
        elsewhere = {"model": recipe, "data": "the default, since nothing names them"}
        if request.image_size is not None:
            elsewhere["image_size"] = recipe
        origins: dict[str, list[str]] = {str(path): [], "the options": []}
        for name, text in shown.items():
            origin = elsewhere.get(name, "the data")
            if name in self.filled:
                origin = str(path)
            elif name in self.given:
                origin = "the options"
            origins.setdefault(origin, []).append(text)
        lines = ["; ".join(f"from {origin}: {', '.join(texts)}" for origin, texts in origins.items() if texts)]
        if self.record.unusable:
            lines.append(f"{path} records what makes no sense and is left aside: {', '.join(self.record.unusable)}")
        if "data" in self.given and classes and len(classes) == len(info.classes) and classes != info.classes:
            lines.append(f"the classes are called otherwise than in {path}, and as many: the classifier is kept")
        return lines


def known_data(checkpoint: Checkpoint, spec: str | None) -> DataInfo | None:
    """What a checkpoint records about the data `spec`; None where that is of other data, or makes no sense."""
    data = checkpoint.meta.get("data") or {}
    resize = data.get("resize")
    if data.get("spec") != spec or read_record(checkpoint.meta, None).unusable:
        return None
    try:
        if resize is not None:
            _size(resize)
        return DataInfo.from_meta(data)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def fill_from(checkpoint: Checkpoint, request: TrainRequest, given: frozenset[str]) -> Defaults:
    """Fill the gaps of a request with what the checkpoint of its `--init` records.

    Args:
        checkpoint: the file of `--init`.
        request: what was asked for.
        given: the fields that the user gave explicitly; those that differ from the default count as given, too.

    Raises BadOption where the file names code as its model or a URL as its data: only the user may ask for these.
    """
    usual = {field.name: field.default for field in fields(TrainRequest)}
    own = {name for name in _FILLED if name in given or getattr(request, name) != usual[name]}
    record = read_record(checkpoint.meta, trusted_spec(checkpoint))
    named = model_meta(checkpoint).get("spec")
    if "model" not in own and record.model is None and isinstance(named, str):
        raise BadOption(untrusted_text(checkpoint, named))
    if "data" not in own and record.data is not None and url_of(record.data) is not None:
        raise BadOption(
            f"{checkpoint.path} names the data {record.data}, and no URL is opened because a file says so; "
            f"--data {record.data} opens it"
        )
    filled = {name: getattr(record, name) for name in _FILLED if name not in own and getattr(record, name) is not None}
    if "data" not in filled:  # how other data are split is no business of the file's
        filled.pop("val_fraction", None)
        filled.pop("split_seed", None)
    return Defaults(
        request=replace(request, **filled),
        checkpoint=checkpoint,
        record=record,
        filled=frozenset(filled),
        given=frozenset(own),
    )


def fine_tuning(
    checkpoint: Checkpoint, *, spec: str | None, url: bool, batch_size: int | None
) -> tuple[list[str], list[str]]:
    """(words of the command that fine-tunes a pruned checkpoint, the options it still lacks).

    The command trains on what the file records, and names what `fill_from` would not take from it.

    Args:
        checkpoint: what was written.
        spec: of its network, where the user named it.
        url: whether the user named the data, which then may be a URL.
        batch_size: to give, where the usual one does not work.
    """
    words = ["starfire", "train", "--init", str(checkpoint.path), "--method", "dense"]
    record = read_record(checkpoint.meta, trusted_spec(checkpoint))
    lacking = []
    if record.model is None:
        words += ["--model", spec] if spec is not None else []
        lacking += ["--model"] if spec is None else []
    if record.data is None or (url_of(record.data) is not None and not url):
        lacking.append("--data")
    elif url_of(record.data) is not None:
        words += ["--data", record.data]
    if batch_size is not None:
        words += ["--batch-size", str(batch_size)]
    return words, lacking


def _text(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST or "\0" in value:
        raise ValueError(value)
    return value


def _plain_list(value: Any) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(value)
    return value


def _size(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 8 <= value < 1 << 14:
        raise ValueError(value)
    return value


def _channels(value: Any, least: float) -> Channels:
    red, green, blue = _plain_list(value)
    for number in (red, green, blue):
        if isinstance(number, bool) or not isinstance(number, int | float) or not least <= number <= 1:
            raise ValueError(value)
    return float(red), float(green), float(blue)


def _fraction(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, float) or not 0 < value < 1 or not math.isfinite(value):
        raise ValueError(value)
    return value


def _seed(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise ValueError(value)
    return value


def _shown(numbers: Channels) -> str:
    texts = [f"{number:.4g}" for number in numbers]
    return texts[0] if len(set(texts)) == 1 else ",".join(texts)
