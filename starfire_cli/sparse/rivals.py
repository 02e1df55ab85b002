"""Dense engines that run a network as a whole where they are faster than its live weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter, sleep
from typing import Any

import torch
from torch import Tensor, fx, nn

from starfire_cli.sparse import choosing, machine
from starfire_cli.sparse.folding import FoldedLayer
from starfire_cli.sparse.patterns import Shape
from starfire_cli.sparse.plan import Choice, ExecutionPlan, Maps
from starfire_cli.sparse.tracing import TracedNetwork

OWN, ONNX = "starfire", "onnxruntime"
LAYOUTS = {"torch": torch.contiguous_format, "torch-channels-last": torch.channels_last}

Run = Callable[[Tensor], Any]
OpenEngine = Callable[[Callable[[], nn.Module], Tensor, int], Run]

_GAIN = 0.95  # of the loops' time: a rival that takes more is not worth its memory
_NO_RIVAL = 1 / 3  # of torch's time, layer by layer: no dense engine is so much faster than that,
_NO_RIVAL_SHORT = 0.15  # but for networks that torch runs in less than `_SHORT`, and much of it not to compute
_SHORT = 0.04  # seconds of an image
_NO_ONNX = 0.4  # of torch's time for the whole network, likewise
_CLOSE = 1e-4  # of the largest output
_LONG = 0.1  # seconds of a call to which it makes no difference what others have left in the caches
_IMAGES = 16  # at most, to time
_ROUNDS, _LEAST, _SECONDS = 12, 3, 0.5  # seconds that each engine gets at most, once it has had the least rounds
_TURN = 0.02  # seconds of a turn, or one call that counts
_REST = 0.02  # seconds before each turn: threads of the engine before look for work a while before they sleep


@dataclass(frozen=True, kw_only=True)
class Rivals:
    """The dense engines that may run a network as a whole: torch in both memory layouts, and what is given here.

    Args:
        onnxruntime: makes ONNX Runtime run a network, from a function that builds it, images of the shape to come and a
            number of threads; raises anything where it cannot.
    """

    onnxruntime: OpenEngine | None = None


@dataclass(frozen=True, kw_only=True)
class NetworkEngine:
    """The engine that runs a network for images of one shape.

    Args:
        name: `starfire` where each layer runs as chosen for it; `torch`, `torch-channels-last` or `onnxruntime` where
            one dense engine runs all.
        seconds: of a call, by the name of each engine that was timed; empty where there was none to compare.
        images: of each of these calls.
    """

    name: str
    seconds: Mapping[str, float]
    images: int


@dataclass(frozen=True, kw_only=True)
class ChosenEngine:
    """An engine, what runs it, and how each layer runs by it.

    Args:
        engine: its name and times.
        run: from images to the network's output; None for the loops' own plan.
        choices: for each operation.
    """

    engine: NetworkEngine
    run: Run | None
    choices: list[Choice]


def fastest(seconds: Mapping[str, float]) -> str:
    """The name of the engine to take: the fastest, if it is faster than the loops by more than what noise makes."""
    best = min(seconds, key=lambda name: seconds[name])
    return best if seconds[best] < _GAIN * seconds[OWN] else OWN


def worth_timing(own: float, layers: float) -> bool:
    """Whether a dense engine may take less than `own` seconds an image, if torch takes `layers` for all layers in turn.

    Dense engines are made and timed only then, since they need the dense weights meanwhile.
    """
    return own > layers * (_NO_RIVAL if layers > _SHORT else _NO_RIVAL_SHORT)


def worth_exporting(own: float, in_torch: float) -> bool:
    """Whether ONNX Runtime may take less than `own`, if torch takes so long; an export takes seconds, and memory."""
    return own > in_torch * _NO_ONNX


def choose_engine(
    network: TracedNetwork, images: Shape, own: ExecutionPlan, choices: Sequence[Choice], rivals: Rivals
) -> ChosenEngine:
    """Time the dense engines that may be faster than the loops, in turns with them, and choose the fastest.

    Args:
        network: what is computed.
        images: the shape of images that come, (N, C, H, W).
        own: the plan with a choice for each layer.
        choices: these.
        rivals: what takes part.
    """
    # One image and several are different cases: the number stays on its side.
    count = 1 if images[0] == 1 else max(2, min(images[0], own.at_once, _IMAGES))
    pixels = torch.rand((count, *images[1:]), generator=torch.Generator().manual_seed(0))
    expected = own.run(pixels)
    runs: dict[str, Run] = {OWN: own.run}
    seconds = _in_turns(runs, pixels)
    layers = sum(choice.seconds.get("dense", 0.0) for choice in choices)
    if not isinstance(expected, Tensor) or not worth_timing(seconds[OWN] / count, layers):
        return ChosenEngine(
            engine=NetworkEngine(name=OWN, seconds=seconds, images=count), run=None, choices=list(choices)
        )
    runs |= {name: plan.run for name, plan in _in_torch(network, images).items() if _agrees(plan.run(pixels), expected)}
    seconds = _least(seconds, _in_turns(runs, pixels))
    best = fastest(seconds)
    in_torch = min((taken for name, taken in seconds.items() if name != OWN), default=seconds[OWN])
    if rivals.onnxruntime is not None and worth_exporting(seconds[OWN], in_torch):
        runs = {OWN: own.run, best: runs[best]}  # the others' weights are not kept meanwhile
        if (run := _opened(rivals.onnxruntime, network, pixels, expected)) is not None:
            runs[ONNX] = run
            seconds = _least(seconds, _in_turns(runs, pixels))
            best = fastest({name: seconds[name] for name in runs})
    engine = NetworkEngine(name=best, seconds=seconds, images=count)
    run = None if best == OWN else runs[best]
    return ChosenEngine(engine=engine, run=run, choices=_choices(best, choices, network))


def dense_network(network: TracedNetwork) -> nn.Module:
    """The network with its convolutions and linear layers put back, BatchNorm folded into them."""
    twin = copy.deepcopy(network.root)
    nodes = {node.name: node for node in twin.graph.nodes}
    for number, (node, layer) in enumerate(network.folded.items()):
        call, end = nodes[node.name], nodes[layer.end.name]
        call.target = f"folded_{number}"
        twin.add_submodule(call.target, _layer(layer))
        if end is not call:
            end.replace_all_uses_with(call)
            twin.graph.erase_node(end)
    twin.recompile()
    return twin.eval()


def _layer(layer: FoldedLayer) -> nn.Module:
    live, window = layer.live, layer.window
    (K, C, R, S), weight = live.shape, live.dense()
    made: nn.Linear | nn.Conv2d
    if window is None:
        made, weight = nn.Linear(C, K, device="meta"), weight[:, :, 0, 0]
    else:
        made = nn.Conv2d(
            C * live.groups,
            K,
            (R, S),
            window.stride,
            window.padding,
            window.dilation,
            live.groups,
            device="meta",
        )
    made.weight = nn.Parameter(weight, requires_grad=False)
    made.bias = nn.Parameter(torch.from_numpy(live.bias), requires_grad=False)
    return made


def _in_torch(network: TracedNetwork, images: Shape) -> dict[str, ExecutionPlan]:
    """Plans by which torch does everything, by memory layout."""
    shapes = network.shapes(images)
    operations = network.operations(shapes, in_torch=shapes)
    maps = Maps(operations, shapes)
    choices = choosing.choose(operations, maps, alone=images[0] == 1, in_loops=False)
    weights: dict[fx.Node, Tensor] = {o.node: o.folded.live.dense() for o in operations if o.folded is not None}
    found = {}
    for name, layout in LAYOUTS.items():
        laid_out = {node: weight.contiguous(memory_format=layout) for node, weight in weights.items()}
        found[name] = ExecutionPlan(network, images, operations, maps, choices, dense=laid_out, layout=layout)
    return found


def _opened(opener: OpenEngine, network: TracedNetwork, pixels: Tensor, expected: Tensor) -> Run | None:
    """The network as another engine runs it; None where that is not at hand or computes something else."""
    try:
        with torch.inference_mode(False), torch.no_grad():
            run = opener(lambda: dense_network(network), pixels, machine.threads())
        return run if _agrees(run(pixels), expected) else None
    except Exception:  # noqa: BLE001 - a package is missing, or exporters raise anything
        return None


def _agrees(found: Any, expected: Tensor) -> bool:
    """Whether an output is the same but for rounding; not where either holds NaN."""
    if not isinstance(found, Tensor) or found.shape != expected.shape:
        return False
    return not expected.numel() or bool((found - expected).abs().max() <= _CLOSE * expected.abs().max())


def _choices(best: str, choices: Sequence[Choice], network: TracedNetwork) -> list[Choice]:
    if best == OWN:
        return list(choices)
    if best == ONNX:
        return [replace(choice, how="onnxruntime", tiling=None) for choice in choices]
    layers = {layer.name for layer in network.folded.values()}
    return [replace(c, how="dense" if c.name in layers else "torch", tiling=None) for c in choices]


def _least(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """The lesser time of each engine: an engine that will run alone may have been slowed down by another's threads."""
    return {name: min(times[name] for times in (one, other) if name in times) for name in {**one, **other}}


def _in_turns(runs: Mapping[str, Run], pixels: Tensor) -> dict[str, float]:
    """The median seconds of a call of each engine. They take turns, so that noise on the machine meets all alike."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    started = perf_counter()
    for number in range(_ROUNDS):
        if number >= _LEAST and perf_counter() - started > _SECONDS * len(runs):
            break
        for name, run in runs.items():
            sleep(_REST)
            taken[name] += _turn(run, pixels)
    return {name: median(calls) for name, calls in taken.items()}


def _turn(run: Run, pixels: Tensor) -> list[float]:
    """Seconds of some calls; the first does not count where calls are short, since caches hold what others left."""
    taken: list[float] = []
    spent = 0.0
    while not taken or spent < _TURN:
        began = perf_counter()
        run(pixels)
        seconds = perf_counter() - began
        if spent or seconds > _LONG:
            taken.append(seconds)
        spent += seconds
    return taken
