"""BatchNorm with what follows it, a channel at a time: statistics, scaling, an addition, ReLU; and backward.

A channel goes through the near caches once: its statistics and its values are read from memory together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starfire_cli.sparse.emit import Code, Variable

_COMMON = (
    "plane",  # bytes from one channel to the next
    "pixels",  # of a channel
    "vectors",  # of a pixel
    "count",  # bits of a float: how many values the statistics are of
    "eps",  # bits of a float
    "images",  # address: float32, 1 for each image, 0 behind the last
    "mean", "variance", "weight", "bias",  # addresses: float32 (C,)
    "batch",  # 1: statistics are the batch's
)  # fmt: skip
FORWARD_FIELDS = ("source", "target", "other", *_COMMON)
BACKWARD_FIELDS = ("gradient", "source", "output", "target", "other", "weight_gradient", "bias_gradient", *_COMMON)
_ROW = 4  # vectors at a time; sums go on side by side, since each addition waits for the one before

Each = Callable[[str, int, str], None]  # what is done with a vector: its place in bytes, a number below _ROW, its mask


@dataclass(frozen=True, kw_only=True)
class NormKind:
    """The work of a BatchNorm loop.

    Args:
        add: another map is added.
        relu: negative values become zero.
        padded: whether the last vector of a pixel holds fewer images than lanes.
    """

    add: bool = False
    relu: bool = False
    padded: bool = False


def normalize(kind: NormKind, *, lanes: int) -> Code:
    """The loop forward: a task is a channel."""
    code = Code(FORWARD_FIELDS, lanes)
    f, vector = code.field, code.vector
    sums, rests = ([code.variable(vector, "zeroinitializer") for _ in range(_ROW)] for _ in range(2))
    count = _float(code, f["count"])
    with code.loop("%begin", "%end") as c:
        source, target, other = _planes(code, c, ("source", "target", "other"))
        at = _entries(code, c, ("mean", "variance", "weight", "bias"))
        with code.when(code.equal(f["batch"], 1)):
            _clear(sums)

            def add(place: str, i: int, _: str) -> None:
                x = code.load(vector, code.at(source, place))
                sums[i].set(code.let(f"fadd {vector} {sums[i].get()}, {x}"))

            _each(code, kind, add)
            rough = code.let(f"fdiv float {_total(code, sums)}, {count}")
            near = code.splat(rough)
            _clear([*sums, *rests])

            def square(place: str, i: int, on: str) -> None:
                x = code.let(f"fsub {vector} {code.load(vector, code.at(source, place))}, {near}")
                x = code.let(f"fmul {vector} {x}, {on}") if on else x
                rests[i].set(code.let(f"fadd {vector} {rests[i].get()}, {x}"))
                sums[i].set(code.call("fma", x, x, sums[i].get()))

            _each(code, kind, square)
            # A sum of many floats is off in its last digits, which the differences from it tell: of a channel that is
            # the same everywhere, as dead kernels leave it, BatchNorm would make noise of them.
            rest = code.let(f"fdiv float {_total(code, rests)}, {count}")
            code.store("float", code.let(f"fadd float {rough}, {rest}"), at["mean"])
            squares = code.let(f"fdiv float {_total(code, sums)}, {count}")
            variance = code.let(f"fsub float {squares}, {code.let(f'fmul float {rest}, {rest}')}")
            positive = code.let(f"fcmp ogt float {variance}, 0.0")
            code.store("float", code.let(f"select i1 {positive}, float {variance}, float 0.0"), at["variance"])
        scale, _ = _scaling(code, at)
        center, bias = (code.splat(code.load("float", at[name])) for name in ("mean", "bias"))

        def scaled(place: str, _: int, on: str) -> None:
            x = code.let(f"fsub {vector} {code.load(vector, code.at(source, place))}, {center}")
            value = code.call("fma", x, scale, bias)
            if kind.add:
                value = code.let(f"fadd {vector} {value}, {code.load(vector, code.at(other, place))}")
            if kind.relu:
                value = code.relu(value)
            value = code.let(f"fmul {vector} {value}, {on}") if on else value
            code.store(vector, value, code.at(target, place))

        _each(code, kind, scaled)
    return code


def normalize_backward(kind: NormKind, *, lanes: int, fork: int) -> Code:
    """The loop backward: a task is a channel. `target` may be `gradient`, or `other` where that is written.

    Args:
        kind: of the loop forward.
        lanes: floats in a vector.
        fork: the gradient of what was added: 0 left out, 1 written to `other`, 2 added to it.
    """
    code = Code(BACKWARD_FIELDS, lanes)
    f, vector = code.field, code.vector
    plain, crossed = ([code.variable(vector, "zeroinitializer") for _ in range(_ROW)] for _ in range(2))
    count = _float(code, f["count"])
    with code.loop("%begin", "%end") as c:
        gradient, source, output, target, other = _planes(code, c, ("gradient", "source", "output", "target", "other"))
        at = _entries(code, c, ("mean", "variance", "weight", "bias", "weight_gradient", "bias_gradient"))
        scale, deviation = _scaling(code, at)
        center, bias = (code.splat(code.load("float", at[name])) for name in ("mean", "bias"))

        def behind(place: str, x: str) -> str:
            """The gradient behind ReLU, at values whose differences from the mean are `x`."""
            found = code.load(vector, code.at(gradient, place))
            if not kind.relu:
                return found
            value = code.load(vector, code.at(output, place)) if kind.add else code.call("fma", x, scale, bias)
            dead = code.let(f"fcmp ole {vector} {value}, zeroinitializer")
            return code.let(f"select <{lanes} x i1> {dead}, {vector} zeroinitializer, {vector} {found}")

        _clear([*plain, *crossed])

        def add(place: str, i: int, _: str) -> None:
            x = code.let(f"fsub {vector} {code.load(vector, code.at(source, place))}, {center}")
            g = behind(place, x)
            plain[i].set(code.let(f"fadd {vector} {plain[i].get()}, {g}"))
            crossed[i].set(code.call("fma", g, x, crossed[i].get()))

        _each(code, kind, add)
        total, product = _total(code, plain), _total(code, crossed)
        code.store("float", code.let(f"fmul float {product}, {deviation}"), at["weight_gradient"])
        code.store("float", total, at["bias_gradient"])
        share = code.let(f"fdiv float 1.0, {count}")
        share = code.let(f"select i1 {code.equal(f['batch'], 1)}, float {share}, float 0.0")
        average = code.splat(code.let(f"fmul float {total}, {share}"))
        slope = code.let(f"fmul float {product}, {code.let(f'fmul float {deviation}, {deviation}')}")
        slope = code.splat(code.let(f"fneg float {code.let(f'fmul float {slope}, {share}')}"))

        def moved(place: str, _: int, on: str) -> None:
            x = code.let(f"fsub {vector} {code.load(vector, code.at(source, place))}, {center}")
            g = behind(place, x)
            value = code.let(f"fsub {vector} {g}, {average}")
            value = code.call("fma", x, slope, value)
            value = code.let(f"fmul {vector} {value}, {scale}")
            value = code.let(f"fmul {vector} {value}, {on}") if on else value
            if fork:
                there = code.at(other, place)
                given = code.let(f"fadd {vector} {code.load(vector, there)}, {g}") if fork == 2 else g
                code.store(vector, given, there)
            code.store(vector, value, code.at(target, place))

        _each(code, kind, moved)
    return code


def _each(code: Code, kind: NormKind, body: Each) -> None:
    """Repeat `body` for every vector of a channel."""
    f, size = code.field, 4 * code.lanes
    if kind.padded:
        images = code.pointer(f["images"])
        with code.loop(0, f["pixels"]) as pixel:
            row = code.mul(pixel, f["vectors"])
            with code.loop(0, f["vectors"]) as v:
                on = code.load(code.vector, code.at(images, code.mul(v, size)))
                body(code.mul(code.add(row, v), size), 0, on)
        return
    vectors = code.mul(f["pixels"], f["vectors"])
    rows = code.let(f"sdiv i64 {vectors}, {_ROW}")
    with code.loop(0, rows) as row:
        start = code.mul(row, size * _ROW)
        for i in range(_ROW):
            body(code.add(start, size * i), i, "")
    with code.loop(code.mul(rows, _ROW), vectors) as v:
        body(code.mul(v, size), 0, "")


def _planes(code: Code, c: str, names: Sequence[str]) -> list[str]:
    offset = code.mul(c, code.field["plane"])
    return [code.at(code.pointer(code.field[name]), offset) for name in names]


def _entries(code: Code, c: str, names: Sequence[str]) -> dict[str, str]:
    return {n: code.let(f"getelementptr float, ptr {code.pointer(code.field[n])}, i64 {c}") for n in names}


def _scaling(code: Code, at: dict[str, str]) -> tuple[str, str]:
    """A vector of the scale, and 1 / sqrt(variance + eps)."""
    code.declare("declare float @llvm.sqrt.f32(float)")
    shifted = code.let(f"fadd float {code.load('float', at['variance'])}, {_float(code, code.field['eps'])}")
    deviation = code.let(f"fdiv float 1.0, {code.let(f'call float @llvm.sqrt.f32(float {shifted})')}")
    scale = code.let(f"fmul float {code.load('float', at['weight'])}, {deviation}")
    return code.splat(scale), deviation


def _total(code: Code, sums: Sequence[Variable]) -> str:
    a, b, c, d = (total.get() for total in sums)
    left, right = code.let(f"fadd {code.vector} {a}, {b}"), code.let(f"fadd {code.vector} {c}, {d}")
    return code.sum(code.let(f"fadd {code.vector} {left}, {right}"), "0.0")


def _clear(sums: Sequence[Variable]) -> None:
    for total in sums:
        total.set("zeroinitializer")


def _float(code: Code, bits: str) -> str:
    return code.let(f"bitcast i32 {code.let(f'trunc i64 {bits} to i32')} to float")
