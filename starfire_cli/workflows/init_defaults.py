"""Fills a request from what the checkpoint of its `--init` records, so that the run begins with the same."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from starfire_cli.data import DataInfo
from starfire_cli.data.finding import names_own, only_asked, url_of
from starfire_cli.data.sets.folder import differences
from starfire_cli.errors import BadOption, StarfireError
from starfire_cli.formats.checkpoint.meta_reader import LONGEST
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.networks.model_spec import trusted_spec, untrusted_text
from starfire_cli.numbers import RGB
from starfire_cli.text import printable
from starfire_cli.workflows.train.request import TrainRequest

# Of a request, what the checkpoint's record fills in where the user gave nothing.
_FILLED = ("model", "data", "image_size", "mean", "std", "val_fraction", "split_seed")


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """A request whose gaps a checkpoint's record has filled, and where each value came from.

    Args:
        request: the request.
        checkpoint: whose record it was.
        filled: the fields that it filled.
        given: the fields that the user gave.
    """

    request: TrainRequest
    checkpoint: Checkpoint
    filled: frozenset[str]
    given: frozenset[str]

    def describe(self, request: TrainRequest, info: DataInfo) -> list[str]:
        """The origin of model, data, image size, mean and std, in one line; then what else is to be known.

        Args:
            request: as its recipe has filled it.
            info: the data that were opened.

        Raises StarfireError where the data that the checkpoint names have other classes by now.
        """
        path = self.checkpoint.path
        classes = self.checkpoint.meta.data.classes
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
        if unusable := self.checkpoint.meta.unusable:
            lines.append(f"{path} records what makes no sense and is left aside: {', '.join(unusable)}")
        if "data" in self.given and classes and len(classes) == len(info.classes) and classes != info.classes:
            lines.append(f"the classes are called otherwise than in {path}, and as many: the classifier is kept")
        return lines


def known_data(checkpoint: Checkpoint, spec: str | None) -> DataInfo | None:
    """A checkpoint's record of the data `spec`; None where it is of other data, or makes no sense."""
    if checkpoint.meta.data.spec != spec or checkpoint.meta.unusable:
        return None
    return checkpoint.meta.data.info()


def fill_from(checkpoint: Checkpoint, request: TrainRequest, given: frozenset[str]) -> Defaults:
    """Fill the gaps of a request with what the checkpoint of its `--init` records.

    Args:
        checkpoint: the file of `--init`.
        request: what was asked for.
        given: the fields that the user gave explicitly; those that differ from the default count as given, too.

    Raises BadOption where the file names code as its model or a URL or code as its data, which only users may.
    """
    usual = {field.name: field.default for field in fields(TrainRequest)}
    own = {name for name in _FILLED if name in given or getattr(request, name) != usual[name]}
    meta = checkpoint.meta
    model, data = _model_of(checkpoint), meta.data
    if "model" not in own and model is None and meta.model.spec is not None:
        raise BadOption(untrusted_text(checkpoint, meta.model.spec))
    if "data" not in own and data.spec is not None and names_own(data.spec):
        raise BadOption(
            f"{checkpoint.path} names the data {data.spec}, whose code is not run because a file says so; --data "
            f"{data.spec} runs it"
        )
    if "data" not in own and data.spec is not None and url_of(data.spec) is not None:
        raise BadOption(
            f"{checkpoint.path} names the data {data.spec}, and no URL is opened because a file says so; "
            f"--data {data.spec} opens it"
        )
    known: dict[str, Any] = {
        "model": model,
        "data": data.spec,
        "image_size": meta.image_size,
        "mean": data.mean,
        "std": data.std,
        "val_fraction": data.val_fraction,
        "split_seed": data.split_seed,
    }
    filled = {name: known[name] for name in _FILLED if name not in own and known[name] is not None}
    if "data" not in filled:  # how other data are split is no business of the file's
        filled.pop("val_fraction", None)
        filled.pop("split_seed", None)
    return Defaults(
        request=replace(request, **filled),
        checkpoint=checkpoint,
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
        url: whether the user named the data, which then may be a URL or code.
        batch_size: to give, where the usual one does not work.
    """
    words = ["starfire", "train", "--init", str(checkpoint.path), "--method", "dense"]
    data = checkpoint.meta.data.spec
    lacking = []
    if _model_of(checkpoint) is None:
        words += ["--model", spec] if spec is not None else []
        lacking += ["--model"] if spec is None else []
    if data is None or (only_asked(data) and not url):
        lacking.append("--data")
    elif only_asked(data):
        words += ["--data", data]
    if batch_size is not None:
        words += ["--batch-size", str(batch_size)]
    return words, lacking


def _model_of(checkpoint: Checkpoint) -> str | None:
    """The spec that may be built (see `trusted_spec`)."""
    spec = trusted_spec(checkpoint)
    return spec if spec and len(spec) <= LONGEST else None


def _shown(numbers: RGB) -> str:
    texts = [f"{number:.4g}" for number in numbers]
    return texts[0] if len(set(texts)) == 1 else ",".join(texts)
