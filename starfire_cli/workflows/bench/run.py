"""Times a network on this CPU, dense and from its live weights, by all engines (docs/bench.md)."""

from __future__ import annotations

import importlib.metadata
import os
import tempfile
from collections.abc import Collection, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor, nn

from starfire_cli import runtime
from starfire_cli.errors import BadOption, StarfireError
from starfire_cli.formats.checkpoint import file as files
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.formats.run import find_checkpoint
from starfire_cli.models import count_macs
from starfire_cli.networks.restore import RestoredModel, restore_model
from starfire_cli.numbers import parse_input, parse_list, parse_whole
from starfire_cli.options import check
from starfire_cli.records.bench import BatchTimings, BenchProgress, EngineChoice, LayerTiming, Setting, Timing
from starfire_cli.sparse import Rivals, SparseNetwork, missing, sparsify
from starfire_cli.text import reason
from starfire_cli.workflows.bench.engines import COMPILED, ENGINES, ONNX, PLAIN, BenchJob, Engine, Graph, Run
from starfire_cli.workflows.bench.request import BenchRequest
from starfire_cli.workflows.bench.rounds import time_in_rounds

_TAKING_PART = ("numpy", "llvmlite", "onnxruntime", "openvino")
_BUSY = 0.7  # processes that run or want to, on average over the last minute
_INSIDE = "net."  # a network lies in `Normalized`


def bench(
    request: BenchRequest, *, engines: Collection[str] | None = None
) -> Iterator[BenchProgress | Setting | BatchTimings]:
    """Times every engine; yields the setting, and then the timings, a batch size at a time.

    A way that fails is reported with its reason; only the plain dense network has to run.

    Args:
        request: what was asked for.
        engines: the names of those that take part; None for all. The plain dense network always does.

    Raises:
        BadOption, StarfireError: one line: what cannot be done, and what would work.
    """
    check(request)
    batches, side = _batches(request.batch), _side(request.image)
    if not 0 < request.seconds < float("inf"):
        raise BadOption(f"--seconds {request.seconds:g} is no time; 3 is the default")
    network, notes = _network(request)
    before = torch.get_num_threads()
    torch.set_num_threads(request.threads or before)
    try:
        chosen = [
            engine
            for engine in ENGINES
            if (request.compile or engine.name != COMPILED) and (engines is None or engine.name in {PLAIN, *engines})
        ]
        yield from _bench(request, network, notes, batches, side or network.image_size, chosen)
    finally:
        torch.set_num_threads(before)


def _bench(
    request: BenchRequest,
    network: RestoredModel,
    notes: list[str],
    batches: tuple[int, ...],
    side: int,
    engines: list[Engine],
) -> Iterator[BenchProgress | Setting | BatchTimings]:
    model = network.model
    try:
        macs = count_macs(model, side)
    except Exception as error:  # noqa: BLE001 - a model may raise anything for an input it does not take
        raise StarfireError(f"the network does not take images of 3x{side}x{side}: {reason(error)}") from None
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and name in macs}
    bare = [
        LayerTiming(
            name=name,
            shape=tuple(layer.weight.shape),
            live=int(torch.count_nonzero(layer.weight)),
            how="torch",
            seconds={},
            macs=macs[name],
        )
        for name, layer in layers.items()
    ]
    if all(layer.density == 1 for layer in bare):
        notes.append("no weight is zero, so there is nothing to be saved")
    if (busy := _load()) > _BUSY:
        notes.append(
            f"this machine has been busy (load {busy:.1f}): nothing below can be trusted, and engines whose threads "
            "wait for one another, such as torch, suffer most"
        )
    yield Setting(
        path=network.path,
        title=network.title,
        input=(3, side, side),
        batches=batches,
        threads=torch.get_num_threads(),
        processor=runtime.processor(),
        versions=_versions(),
        macs=sum(macs.values()),
        macs_left=sum(layer.macs_left for layer in bare),
        notes=tuple(notes),
    )
    with tempfile.TemporaryDirectory() as folder:
        graph = Graph(model, side, Path(folder) / "model.onnx")
        sparse = _sparse(model, graph if any(engine.name == ONNX for engine in engines) else None)
        for batch in batches:
            pixels = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
            job = BenchJob(model=model, images=pixels, threads=torch.get_num_threads(), graph=graph, sparse=sparse)
            timings = yield from _timings(job, engines, request.seconds)
            ran = any(timing.sparse and timing.problem is None for timing in timings)
            if not ran or not isinstance(sparse, SparseNetwork):
                yield BatchTimings(batch=batch, timings=timings)
                continue
            layers_found, engine = _layers(sparse, pixels, bare), sparse.engine(tuple(pixels.shape))
            chosen = EngineChoice(name=engine.name, seconds=dict(engine.seconds), images=engine.images)
            yield BatchTimings(batch=batch, timings=timings, layers=layers_found, engine=chosen)


def _timings(
    job: BenchJob, engines: list[Engine], seconds: float
) -> Generator[BenchProgress, None, tuple[Timing, ...]]:
    """Prepares every engine, and times those that are ready; returns one `Timing` each."""
    batch = f"{len(job.images)} image{'s' if len(job.images) > 1 else ''} a call"
    found: dict[str, Timing] = {}
    runs: dict[str, Run] = {}
    expected: Tensor | None = None
    for engine in engines:
        timing = Timing(name=engine.name, label=engine.label, sparse=engine.sparse)
        problem = engine.missing(job)
        if problem is not None:
            found[engine.name] = replace(timing, problem=problem)
            continue
        yield BenchProgress(text=f"{batch}: {engine.label} is made ready")
        started = perf_counter()
        try:
            run = engine.ready(job)
            given = run().detach().clone()
            ready = perf_counter() - started
            run()  # once more: some engines settle in their second call
            expected = given if expected is None else expected
            difference = _difference(given, expected)
        except Exception as error:  # noqa: BLE001 - other people's engines may raise anything
            if engine.name == PLAIN:
                raise StarfireError(f"the dense network does not run: {reason(error)}") from None
            found[engine.name] = replace(timing, problem=reason(error))
            continue
        runs[engine.name] = run
        found[engine.name] = replace(timing, ready=ready, difference=difference)
    yield BenchProgress(text=f"{batch}: {len(runs)} ways take turns, {seconds:g} s or more each")
    for name, taken in time_in_rounds(runs, seconds).items():
        timing = found[name]
        found[name] = replace(timing, problem=taken) if isinstance(taken, str) else replace(timing, rounds=taken)
    if found[PLAIN].problem is not None:
        raise StarfireError(f"the dense network does not run: {found[PLAIN].problem}")
    return tuple(found.values())


def _difference(given: Tensor, expected: Tensor) -> float:
    if given.shape != expected.shape:
        raise StarfireError(f"its output is {tuple(given.shape)}, the dense network's {tuple(expected.shape)}")
    return float((given - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def _layers(sparse: SparseNetwork, images: Tensor, bare: list[LayerTiming]) -> tuple[LayerTiming, ...]:
    """The loop that the sparse network chose for each layer; layers without a sparse loop are unchanged."""
    chosen = {choice.name: choice for choice in sparse.choices(tuple(images.shape))}
    found = []
    for layer in bare:
        name = layer.name.removeprefix(_INSIDE)
        if layer.name in chosen:
            choice = chosen[layer.name]
            layer = replace(layer, how=choice.how, seconds=dict(choice.seconds))
        found.append(replace(layer, name=name))
    return tuple(found)


def _sparse(model: nn.Module, graph: Graph | None) -> SparseNetwork | str:
    """The sparse network, or the reason that there is none. By ONNX Runtime it runs only from a graph."""
    try:
        return missing() or sparsify(model, rivals=Rivals(onnxruntime=graph.opened if graph else None))
    except StarfireError as error:
        return str(error)


def _network(request: BenchRequest) -> tuple[RestoredModel, list[str]]:
    """The network, and the assumptions made."""
    checkpoint = files.load(find_checkpoint(request.checkpoint), weights=request.weights)
    notes: list[str] = []
    mean, std = request.mean, request.std
    if not _says_normalisation(checkpoint) and mean is None and std is None:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        notes.append("the file does not say how its images were normalised; mean 0 and std 1 cost the same")
    network = restore_model(
        checkpoint,
        torch.device("cpu"),
        model=request.model,
        num_classes=request.num_classes,
        image_size=_side(request.image),
        mean=mean,
        std=std,
    )
    return network, [*network.notes, *notes]


def _says_normalisation(checkpoint: Checkpoint) -> bool:
    data = checkpoint.meta.data
    return data.mean is not None or data.std is not None


def _batches(text: str) -> tuple[int, ...]:
    """Parses `1,16` to numbers, each once. Raises BadOption."""
    numbers = parse_list("--batch", text, parse_whole, "1,16")
    if not all(0 < number <= 1 << 14 for number in numbers):
        raise BadOption(f"--batch {text!r} is no list of numbers of images, such as 1,16; up to {1 << 14} work")
    return tuple(dict.fromkeys(numbers))


def _side(text: str | None) -> int | None:
    """Parses `3x224x224` or `224` to pixels a side. Raises BadOption."""
    if text is None:
        return None
    found = parse_input(f"3x{text}x{text}" if text.strip().isdecimal() else text)
    assert found is not None
    channels, side = found
    if channels != 3:
        raise BadOption(f"--input {text!r} has {channels} channels; networks here take 3, such as 3x224x224")
    return side


def _load() -> float:
    """The system's load of the last minute; this process has hardly added to it."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):  # not known on Windows
        return 0.0


def _versions() -> dict[str, str]:
    found = runtime.versions()
    for package in _TAKING_PART:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
