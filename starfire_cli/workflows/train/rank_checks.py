"""Checks, before ranks train together, that they were given the same request and found the same data."""

from __future__ import annotations

import dataclasses

import torch

from starfire_cli import runtime
from starfire_cli.distributed.ranks import Ranks
from starfire_cli.errors import BadOption, StarfireError
from starfire_cli.workflows.train.digest import content
from starfire_cli.workflows.train.request import TrainRequest
from starfire_cli.workflows.train.session import Session

# What a process may have for itself: where things lie on its machine, and by what means it computes. Only rank 0
# writes, so that `out` and `name` are its own; data and checkpoints are compared by what is in them.
OF_ONE = frozenset({"device", "workers", "kernels", "out", "name", "data", "init", "resume", "command"})
_TOLD = 3  # differences that are spelled out
_LONG = 60  # characters of a value that are shown


def check_requests(request: TrainRequest, ranks: Ranks) -> None:
    """Raises BadOption, on all ranks, where the options differ, and StarfireError where the software does."""
    versions = {name: version for name, version in runtime.versions().items() if name != "python"}
    _compare(ranks, versions, StarfireError, "do not run the same software", "install the same versions everywhere")
    given = {f"--{name}": str(getattr(request, name) is not None) for name in ("init", "resume")}
    _compare(ranks, _options(request) | given, BadOption, "were not given the same options", "give all the same")


def check_sessions(session: Session, ranks: Ranks) -> None:
    """Raises StarfireError, on all ranks, where data, network or checkpoint differ."""
    data = session.data
    found = {
        "data set": data.info.name,
        "classes": ", ".join(data.info.classes),
        "training images": f"{len(data.train):,}",
        "validation images": f"{len(data.val):,}",
        "steps an epoch": f"{data.train.steps:,} and {data.val.steps:,}",
        "image size": f"{data.info.image_size}",
        "augmentation": data.info.augment,
        "stored as": f"{data.info.stored} px, resized to {data.info.resize}",
    }
    for name, split in (("training", data.train), ("validation", data.val)):
        found |= {f"{what} of the {name} images": digest for what, digest in split.digests().items()}
    _compare(ranks, found, StarfireError, "do not see the same data", "copy one data set to all machines")
    network = {
        "device": session.network.device.type,
        "network": _network(session.network.net),
        "masks": _joined(session.pruner.digests().values()),
        "position": str(dataclasses.astuple(session.position)),
        "checkpoint": session.network.checkpoint_digest,
    }
    problem = "did not come to the same network"
    _compare(ranks, network, StarfireError, problem, "give all the same files and the same --model")
    _compare(ranks, _options(session.request), BadOption, "have not the same settings", "give all the same options")


def _options(request: TrainRequest) -> dict[str, str]:
    fields = (field.name for field in dataclasses.fields(request) if field.name not in OF_ONE)
    return {f"--{name.replace('_', '-')}": str(getattr(request, name)) for name in fields}


def _network(net: torch.nn.Module) -> str:
    shapes = [f"{name} {value.dtype} {tuple(value.shape)}" for name, value in net.state_dict().items()]
    return _joined([*shapes, *(f"{name} {type(module).__name__}" for name, module in net.named_modules())])


def _joined(texts: object) -> str:
    return content([*texts])  # type: ignore[misc]


def _compare(ranks: Ranks, values: dict[str, str], kind: type[StarfireError], problem: str, cure: str) -> None:
    told = ranks.gathered(values)
    differences = []
    for what in dict.fromkeys(key for values in told for key in values):
        by_value: dict[str, list[int]] = {}
        for rank, values in enumerate(told):
            by_value.setdefault(values.get(what, "nothing"), []).append(rank)
        if len(by_value) > 1:
            differences.append(f"{what}: {' and '.join(f'{_short(v)} on {_named(r)}' for v, r in by_value.items())}")
    if differences:
        more = f"; and {len(differences) - _TOLD} more" if len(differences) > _TOLD else ""
        error = kind(f"the {ranks.count} processes {problem}: {'; '.join(differences[:_TOLD])}{more}. Please {cure}")
        error.agreed = True
        raise error


def _short(value: str) -> str:
    if len(value) <= _LONG:
        return value or "nothing"
    return f"{value[: _LONG - 20]}... ({content(value)})"


def _named(ranks: list[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if ranks == list(range(ranks[0], ranks[-1] + 1)):
        return f"ranks {ranks[0]}-{ranks[-1]}"
    return f"ranks {','.join(map(str, ranks[:8]))}{'...' if len(ranks) > 8 else ''}"
