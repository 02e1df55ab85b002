"""The loops of operations that torch does where networks run in process: over maps as `sparse/layout.py` lays them out.

In most of them a task is a channel; in `moved` it is a number, in `normed` a vector.
"""

from __future__ import annotations

from typing import Literal

from starfire_cli.sparse.emit import Code
from starfire_cli.sparse.export.activations import Activation, constant
from starfire_cli.sparse.layout import FLOAT, Layout
from starfire_cli.sparse.loops import FIELDS

Combination = Literal["add", "sub", "mul"]


def pointwise(
    layout: Layout,
    *,
    activation: Activation | None = None,
    combine: Combination | None = None,
    other_plane: int | None = None,
    affine: bool = False,
) -> Code:
    """Each number of a map by itself: scaled, combined with another map, put through an activation.

    Args:
        layout: of input and output.
        activation: what is done last; None for nothing.
        combine: what is done with the map `other`, in the same layout.
        other_plane: bytes from one channel of `other` to the next, where it has one number a channel.
        affine: whether each channel is first multiplied by one of `weights`, and one of `bias` added.
    """
    code = Code(FIELDS, layout.lanes)
    f, vector = code.field, code.vector
    source, target, other = code.region("in"), code.region("out"), code.region("other")
    mask, weights, bias = (code.pointer(f[name]) for name in ("mask", "weights", "bias"))
    with code.loop("%begin", "%end") as c:
        plane, out = (code.at(start, code.mul(c, FLOAT * layout.plane)) for start in (source, target))
        if other_plane is None:
            beside, each = code.at(other, code.mul(c, FLOAT * layout.plane)), ""
        else:
            beside, each = "", code.splat(code.load("float", code.at(other, code.mul(c, other_plane))))
        scale = shift = ""
        if affine:
            scale, shift = (
                code.splat(code.load("float", code.let(f"getelementptr float, ptr {array}, i64 {c}")))
                for array in (weights, bias)
            )
        with code.loop(0, layout.height) as y:
            row = code.mul(y, FLOAT * layout.row)
            for v in range(layout.vectors):
                place = code.add(row, FLOAT * layout.lanes * v)
                value = code.load(vector, code.at(plane, place))
                if affine:
                    value = code.call("fma", value, scale, shift)
                if combine is not None:
                    second = each or code.load(vector, code.at(beside, place))
                    value = code.let(f"f{combine} {vector} {value}, {second}")
                if activation is not None:
                    value = activation(code, value)
                value = code.masked(value, code.load(code.bits, code.at(mask, place)))
                code.store(vector, value, code.at(out, place))
    return code


def pooled(*, lanes: int, largest: bool, plane: int) -> Code:
    """Pooling with any windows: of each output the inputs are listed, from `segments[o]` on in `offsets`.

    `blocks` is the number of outputs of a channel, `starts_out` where they go; a mean is multiplied by `weights[o]`.

    Args:
        lanes: floats in a vector; here one by one is gone through.
        largest: the largest of the inputs in place of their mean.
        plane: bytes from one channel of the input to the next.
    """
    code = Code(FIELDS, lanes)
    f = code.field
    source, target = code.region("in"), code.region("out")
    names = ("segments", "offsets", "starts_out", "weights")
    segments, offsets, starts, weights = (code.pointer(f[name]) for name in names)
    start = "0xFFF0000000000000" if largest else "0.0"
    total = code.variable("float", start)
    with code.loop("%begin", "%end") as c:
        channel = code.at(source, code.mul(c, plane))
        out = code.at(target, code.mul(c, f["out_plane"]))
        with code.loop(0, f["blocks"]) as o:
            total.set(start)
            with code.loop(code.offset_at(segments, o), code.offset_at(segments, code.add(o, 1))) as j:
                value = code.load("float", code.at(channel, code.offset_at(offsets, j)))
                if largest:
                    above = code.let(f"fcmp ugt float {value}, {total.get()}")
                    total.set(code.let(f"select i1 {above}, float {value}, float {total.get()}"))
                else:
                    total.set(code.let(f"fadd float {total.get()}, {value}"))
            found = total.get()
            if not largest:
                share = code.load("float", code.let(f"getelementptr float, ptr {weights}, i64 {o}"))
                found = code.let(f"fmul float {found}, {share}")
            code.store("float", found, code.at(out, code.offset_at(starts, o)))
    return code


def moved(*, lanes: int) -> Code:
    """Numbers from where `starts_in` says to where `starts_out` says, both in bytes."""
    code = Code(FIELDS, lanes)
    f = code.field
    source, target = code.region("in"), code.region("out")
    starts_in, starts_out = code.pointer(f["starts_in"]), code.pointer(f["starts_out"])
    with code.loop("%begin", "%end") as i:
        value = code.load("float", code.at(source, code.offset_at(starts_in, i)))
        code.store("float", value, code.at(target, code.offset_at(starts_out, i)))
    return code


def normed(layout: Layout, *, channels: int, eps: float) -> Code:
    """Each pixel's channels less their mean, over their standard deviation; times `weights`, plus `bias`.

    A task is a vector of a row.

    Args:
        layout: of input and output.
        channels: how many.
        eps: what is added to the variance.
    """
    code = Code(FIELDS, layout.lanes)
    f, vector = code.field, code.vector
    source, target = code.region("in"), code.region("out")
    mask, weights, bias = (code.pointer(f[name]) for name in ("mask", "weights", "bias"))
    total = code.variable(vector, "zeroinitializer")
    share = constant(code, 1 / channels)
    with code.loop("%begin", "%end") as task:
        row = code.mul(code.let(f"sdiv i64 {task}, {layout.vectors}"), FLOAT * layout.row)
        place = code.add(row, code.mul(code.let(f"srem i64 {task}, {layout.vectors}"), FLOAT * layout.lanes))
        start, out = code.at(source, place), code.at(target, place)

        def each(c: str) -> str:
            return code.load(vector, code.at(start, code.mul(c, FLOAT * layout.plane)))

        total.set("zeroinitializer")
        with code.loop(0, channels) as c:
            total.set(code.let(f"fadd {vector} {total.get()}, {each(c)}"))
        mean = code.let(f"fmul {vector} {total.get()}, {share}")
        total.set("zeroinitializer")
        with code.loop(0, channels) as c:
            apart = code.let(f"fsub {vector} {each(c)}, {mean}")
            total.set(code.call("fma", apart, apart, total.get()))
        variance = code.call("fma", total.get(), share, constant(code, eps))
        scale = code.let(f"fdiv {vector} {constant(code, 1.0)}, {code.call('sqrt', variance)}")
        kept = code.load(code.bits, code.at(mask, place))
        with code.loop(0, channels) as c:
            factor, shift = (
                code.splat(code.load("float", code.let(f"getelementptr float, ptr {array}, i64 {c}")))
                for array in (weights, bias)
            )
            value = code.let(f"fmul {vector} {code.let(f'fsub {vector} {each(c)}, {mean}')}, {scale}")
            value = code.masked(code.call("fma", value, factor, shift), kept)
            code.store(vector, value, code.at(out, code.mul(c, FLOAT * layout.plane)))
    return code
