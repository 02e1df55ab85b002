"""Activation functions on vectors, as LLVM's assembly: each takes and gives the name of a vector.

The exponential is the classic reduction to [-ln 2 / 2, ln 2 / 2] and a polynomial (Cephes, `expf`), off by 1e-7 of its
value; the error function of GELU is formula 7.1.26 of Abramowitz and Stegun, off by 2e-7.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.nn import functional as F

from starfire_cli.sparse.emit import Code

Activation = Callable[[Code, str], str]

_SHIFT = 12582912.0  # 1.5 * 2^23: what is added to it is rounded to a whole number, which its lowest bits then hold


def constant(code: Code, value: float) -> str:
    """A vector with `value`, rounded to float32, in every lane."""
    (rounded,) = struct.unpack("<f", struct.pack("<f", value))
    (bits,) = struct.unpack("<Q", struct.pack("<d", rounded))  # LLVM writes floats as the double of that value
    return "<" + ", ".join([f"float 0x{bits:016X}"] * code.lanes) + ">"


def _binary(code: Code, operation: str, a: str, b: str) -> str:
    return code.let(f"{operation} {code.vector} {a}, {b}")


def clamped(code: Code, x: str, low: float, high: float) -> str:
    """x within [low, high]; NaN stays NaN."""
    on = f"<{code.lanes} x i1>"
    least = constant(code, low)
    below = code.let(f"fcmp olt {code.vector} {x}, {least}")
    return code.minimum(
        code.let(f"select {on} {below}, {code.vector} {least}, {code.vector} {x}"), constant(code, high)
    )


def exponential(code: Code, x: str) -> str:
    """e^x, for what float32 can hold: from -87 to 88."""
    x = clamped(code, x, -87.33, 88.02)
    shifted = code.call("fma", x, constant(code, 1.4426950408889634), constant(code, _SHIFT))
    n = _binary(code, "fsub", shifted, constant(code, _SHIFT))
    rest = code.call("fma", n, constant(code, -0.693359375), x)
    rest = code.call("fma", n, constant(code, 2.12194440e-4), rest)
    sum_ = constant(code, 1.9875691500e-4)
    for factor in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1, 1.0, 1.0):
        sum_ = code.call("fma", sum_, rest, constant(code, factor))
    bits = code.let(f"bitcast {code.vector} {shifted} to {code.bits}")
    ints = [f"<{', '.join([f'i32 {number}'] * code.lanes)}>" for number in (23, 127 << 23)]
    raised = code.let(f"add {code.bits} {code.let(f'shl {code.bits} {bits}, {ints[0]}')}, {ints[1]}")
    return _binary(code, "fmul", sum_, code.let(f"bitcast {code.bits} {raised} to {code.vector}"))


def _sigmoid(code: Code, x: str) -> str:
    one = constant(code, 1.0)
    power = exponential(code, code.let(f"fneg {code.vector} {x}"))
    return _binary(code, "fdiv", one, _binary(code, "fadd", one, power))


def _tanh(code: Code, x: str) -> str:
    one = constant(code, 1.0)
    power = exponential(code, _binary(code, "fmul", x, constant(code, 2.0)))
    part = _binary(code, "fdiv", constant(code, 2.0), _binary(code, "fadd", power, one))
    return _binary(code, "fsub", one, part)


def _relu6(code: Code, x: str) -> str:
    return code.minimum(code.relu(x), constant(code, 6.0))


def _hardsigmoid(code: Code, x: str) -> str:
    moved = _relu6(code, _binary(code, "fadd", x, constant(code, 3.0)))
    return _binary(code, "fdiv", moved, constant(code, 6.0))


def _times(inner: Activation, code: Code, x: str) -> str:
    return _binary(code, "fmul", x, inner(code, x))


def _half_erfc(code: Code, x: str) -> str:
    """The share of a normal distribution that is below x: GELU's factor."""
    scaled = _binary(code, "fmul", x, constant(code, 0.7071067811865476))
    size = code.call("fabs", scaled)
    one = constant(code, 1.0)
    t = _binary(code, "fdiv", one, code.call("fma", size, constant(code, 0.3275911), one))
    sum_ = constant(code, 1.061405429)
    for factor in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        sum_ = code.call("fma", sum_, t, constant(code, factor))
    square = _binary(code, "fmul", scaled, scaled)
    power = exponential(code, code.let(f"fneg {code.vector} {square}"))
    tail = _binary(code, "fmul", _binary(code, "fmul", _binary(code, "fmul", sum_, t), power), constant(code, 0.5))
    above = code.let(f"fcmp ogt {code.vector} {x}, zeroinitializer")
    upper = _binary(code, "fsub", one, tail)
    return code.let(f"select <{code.lanes} x i1> {above}, {code.vector} {upper}, {code.vector} {tail}")


def _leaky(slope: float, code: Code, x: str) -> str:
    below = code.let(f"fcmp olt {code.vector} {x}, zeroinitializer")
    small = _binary(code, "fmul", x, constant(code, slope))
    return code.let(f"select <{code.lanes} x i1> {below}, {code.vector} {small}, {code.vector} {x}")


_PLAIN: dict[Any, Activation] = {
    **dict.fromkeys((nn.ReLU, "relu", "relu_"), Code.relu),
    **dict.fromkeys((nn.ReLU6, "relu6"), _relu6),
    **dict.fromkeys((nn.Sigmoid, "sigmoid", "sigmoid_"), _sigmoid),
    **dict.fromkeys((nn.Hardsigmoid, "hardsigmoid"), _hardsigmoid),
    **dict.fromkeys((nn.Hardswish, "hardswish"), partial(_times, _hardsigmoid)),
    **dict.fromkeys((nn.SiLU, "silu"), partial(_times, _sigmoid)),
    **dict.fromkeys((nn.Tanh, "tanh", "tanh_"), _tanh),
}


def activation(module: nn.Module | None, function: str, options: dict[str, Any]) -> Activation | None:
    """The activation that a module is, or a function or method of a name; None where it is none of those here.

    Args:
        module: what is called; None for a function.
        function: its name, of torch or torch.nn.functional, or of a tensor's method.
        options: what it is given beside the tensor.
    """
    if module is not None:
        if isinstance(module, nn.LeakyReLU):
            return partial(_leaky, float(module.negative_slope))
        if isinstance(module, nn.GELU):
            return partial(_times, _half_erfc) if module.approximate == "none" else None
        return _PLAIN.get(type(module))
    options = {name: value for name, value in options.items() if name != "inplace"}
    if function == F.leaky_relu.__name__:
        return (
            partial(_leaky, float(options.get("negative_slope", 0.01)))
            if options.keys() <= {"negative_slope"}
            else None
        )
    if options:
        return None
    return partial(_times, _half_erfc) if function == "gelu" else _PLAIN.get(function)
