"""Loops as LLVM's assembly, written down by few words. Variables live in memory; LLVM's passes find them registers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_ADDRESS = """define internal ptr @address(i64 %at) alwaysinline nounwind {
  %there = inttoptr i64 %at to ptr
  ret ptr %there
}"""


class Code:
    """A function under construction: `void f(ptr args, ptr passing, ptr kept, ptr image, i64 begin, i64 end)`.

    Values are LLVM's own names for them, as text. `args` points to as many i64 as there are `fields`, `passing` and
    `kept` to the two regions of memory that maps lie in, `image` to what came from outside.

    Args:
        fields: of its arguments, in order.
        lanes: floats in a vector.
    """

    def __init__(self, fields: Sequence[str], lanes: int) -> None:
        self.lanes = lanes
        self.vector = f"<{lanes} x float>"
        self.bits = f"<{lanes} x i32>"
        self._head: list[str] = []
        self._lines: list[str] = []
        self._declared: set[str] = set()
        self._count = 0
        self.field = {f: self.load("i64", self.at("%args", 8 * i), align=8) for i, f in enumerate(fields)}

    def let(self, right: str) -> str:
        """Assign an expression to a new value."""
        self._count += 1
        self._lines.append(f"  %v{self._count} = {right}")
        return f"%v{self._count}"

    def do(self, line: str) -> None:
        """Emit an instruction without a value."""
        self._lines.append("  " + line)

    def declare(self, line: str) -> None:
        """Declare what LLVM brings."""
        self._declared.add(line)

    def at(self, pointer: str, offset: str | int) -> str:
        """`pointer` plus `offset` bytes."""
        return pointer if offset == 0 else self.let(f"getelementptr i8, ptr {pointer}, i64 {offset}")

    def in_register(self, pointer: str) -> str:
        """The pointer, computed once: else each load adds up its address anew, which is one more operation."""
        return self.let(f'call ptr asm "", "=r,0"(ptr {pointer})')

    def pointer(self, value: str) -> str:
        """The pointer to a table, of which an argument tells the place: an address, or what `@address` makes of it."""
        return self.let(f"call ptr @address(i64 {value})")

    def region(self, name: str) -> str:
        """The address of the map called `name`, in the region that the argument `name_region` selects."""
        is_kept = self.let(f"icmp ne i64 {self.field[name + '_region']}, 0")
        return self.at(self.let(f"select i1 {is_kept}, ptr %kept, ptr %passing"), self.field[name])

    def load_first(self, count: int, pointer: str) -> str:
        """Load a vector's first `count` floats; the others are zero."""
        if count >= self.lanes:
            return self.load(self.vector, pointer)
        name, on = f"@llvm.masked.load.v{self.lanes}f32.p0", f"<{self.lanes} x i1>"
        self._declared.add(f"declare {self.vector} {name}(ptr, i32, {on}, {self.vector})")
        mask = ", ".join("i1 true" if i < count else "i1 false" for i in range(self.lanes))
        return self.let(
            f"call {self.vector} {name}(ptr {pointer}, i32 4, {on} <{mask}>, {self.vector} zeroinitializer)"
        )

    def load(self, kind: str, pointer: str, align: int = 4) -> str:
        return self.let(f"load {kind}, ptr {pointer}, align {align}")

    def store(self, kind: str, value: str, pointer: str, align: int = 4) -> None:
        self.do(f"store {kind} {value}, ptr {pointer}, align {align}")

    def offset_at(self, array: str, index: str) -> str:
        """Entry `index` of an array of int32, as i64."""
        value = self.load("i32", self.let(f"getelementptr i32, ptr {array}, i64 {index}"))
        return self.let(f"sext i32 {value} to i64")

    def store_first(self, count: int, value: str, pointer: str) -> None:
        """Store a vector's first `count` floats."""
        if count >= self.lanes:
            return self.store(self.vector, value, pointer)
        name, on = f"@llvm.masked.store.v{self.lanes}f32.p0", f"<{self.lanes} x i1>"
        self._declared.add(f"declare void {name}({self.vector}, ptr, i32, {on})")
        mask = ", ".join("i1 true" if i < count else "i1 false" for i in range(self.lanes))
        return self.do(f"call void {name}({self.vector} {value}, ptr {pointer}, i32 4, {on} <{mask}>)")

    def variable(self, kind: str, value: str) -> Variable:
        """A new variable with its first value."""
        self._count += 1
        name = f"%m{self._count}"
        self._head.append(f"  {name} = alloca {kind}")
        found = Variable(self, kind, name)
        found.set(value)
        return found

    def prefetch(self, pointer: str, *, written: bool = False) -> None:
        """Ask for the line of memory at `pointer`, which need not be anybody's."""
        self._declared.add("declare void @llvm.prefetch.p0(ptr, i32, i32, i32)")
        self.do(f"call void @llvm.prefetch.p0(ptr {pointer}, i32 {int(written)}, i32 3, i32 1)")

    def add(self, a: str | int, b: str | int) -> str:
        return self.let(f"add i64 {a}, {b}")

    def mul(self, a: str | int, b: str | int) -> str:
        return self.let(f"mul i64 {a}, {b}")

    def splat(self, scalar: str) -> str:
        """A vector with a float in every lane."""
        one = self.let(f"insertelement {self.vector} poison, float {scalar}, i32 0")
        zeros = f"<{self.lanes} x i32> zeroinitializer"
        return self.let(f"shufflevector {self.vector} {one}, {self.vector} poison, {zeros}")

    def call(self, intrinsic: str, *values: str) -> str:
        """Call an LLVM intrinsic of vectors, such as `fma`."""
        kind = self.vector
        name = f"@llvm.{intrinsic}.v{self.lanes}f32"
        self._declared.add(f"declare {kind} {name}({', '.join([kind] * len(values))})")
        return self.let(f"call {kind} {name}({', '.join(f'{kind} {v}' for v in values)})")

    def relu(self, value: str) -> str:
        """ReLU; NaN stays NaN. One instruction on x86, where LLVM's own `maximum` takes three."""
        below = self.let(f"fcmp olt {self.vector} {value}, zeroinitializer")
        on = f"<{self.lanes} x i1>"
        return self.let(f"select {on} {below}, {self.vector} zeroinitializer, {self.vector} {value}")

    def minimum(self, value: str, limit: str) -> str:
        """The smaller of the two; NaN stays NaN."""
        above = self.let(f"fcmp ogt {self.vector} {value}, {limit}")
        return self.let(f"select <{self.lanes} x i1> {above}, {self.vector} {limit}, {self.vector} {value}")

    def min_i64(self, a: str, b: str) -> str:
        """The smaller of two i64."""
        self._declared.add("declare i64 @llvm.smin.i64(i64, i64)")
        return self.let(f"call i64 @llvm.smin.i64(i64 {a}, i64 {b})")

    def even(self, left: str, right: str) -> str:
        """Lanes 0, 2, 4, ... of two consecutive vectors."""
        picked = ", ".join(f"i32 {2 * i}" for i in range(self.lanes))
        kind = f"<{self.lanes} x i32>"
        return self.let(f"shufflevector {self.vector} {left}, {self.vector} {right}, {kind} <{picked}>")

    def gather(self, start: str, where: str) -> str:
        """The floats at the offsets `where` from `start`."""
        kind = f"<{self.lanes} x ptr>"
        name = f"@llvm.masked.gather.v{self.lanes}f32.v{self.lanes}p0"
        on, vector = f"<{self.lanes} x i1>", self.vector
        self._declared.add(f"declare {vector} {name}({kind}, i32, {on}, {vector})")
        ones = ", ".join(["i1 true"] * self.lanes)
        places = self.let(f"getelementptr float, ptr {start}, {self.bits} {where}")
        return self.let(f"call {vector} {name}({kind} {places}, i32 4, {on} <{ones}>, {vector} poison)")

    def sum(self, value: str, start: str) -> str:
        """The sum of all lanes and `start`, added in any order."""
        name = f"@llvm.vector.reduce.fadd.v{self.lanes}f32"
        self._declared.add(f"declare float {name}(float, {self.vector})")
        return self.let(f"call reassoc float {name}(float {start}, {self.vector} {value})")

    def masked(self, value: str, mask: str) -> str:
        """`value` where the lanes of `mask` (all bits or none) are set, +0.0 elsewhere."""
        bits = self.let(f"bitcast {self.vector} {value} to {self.bits}")
        kept = self.let(f"and {self.bits} {bits}, {mask}")
        return self.let(f"bitcast {self.bits} {kept} to {self.vector}")

    @contextmanager
    def loop(self, start: str | int, end: str | int) -> Iterator[str]:
        """Repeat the block for each i64 from `start` to before `end`."""
        number = self.variable("i64", str(start))
        label = f"loop{self._count}"
        self.do(f"br label %{label}")
        self._lines.append(f"{label}:")
        i = number.get()
        self.do(f"br i1 {self.let(f'icmp slt i64 {i}, {end}')}, label %{label}.body, label %{label}.end")
        self._lines.append(f"{label}.body:")
        yield i
        number.set(self.add(i, 1))
        self.do(f"br label %{label}")
        self._lines.append(f"{label}.end:")

    @contextmanager
    def when(self, condition: str) -> Iterator[None]:
        """Run the block where the i1 `condition` holds."""
        self._count += 1
        label = f"when{self._count}"
        self.do(f"br i1 {condition}, label %{label}, label %{label}.end")
        self._lines.append(f"{label}:")
        yield
        self.do(f"br label %{label}.end")
        self._lines.append(f"{label}.end:")

    def equal(self, a: str | int, b: str | int) -> str:
        return self.let(f"icmp eq i64 {a}, {b}")

    @property
    def declarations(self) -> frozenset[str]:
        """The intrinsics that it calls, each declared by a line of assembly."""
        return frozenset(self._declared)

    def function(self, name: str, attributes: str = "nounwind") -> str:
        """The function as assembly, under a name and with LLVM's attributes; it calls `@address`."""
        args = "ptr noalias %args, ptr %passing, ptr %kept, ptr %image, i64 %begin, i64 %end"
        start = f"define void @{name}({args}) {attributes} {{"
        return "\n".join([start, "entry:", *self._head, *self._lines, "  ret void", "}", ""])

    def text(self) -> str:
        """A module with the function as `f`, whose tables lie where its arguments say."""
        return "\n".join([*sorted(self._declared), _ADDRESS, self.function("f")])


class Variable:
    """A mutable variable of a function."""

    def __init__(self, code: Code, kind: str, name: str) -> None:
        self._code, self._kind, self._name = code, kind, name

    def get(self) -> str:
        return self._code.let(f"load {self._kind}, ptr {self._name}")

    def set(self, value: str) -> None:
        self._code.do(f"store {self._kind} {value}, ptr {self._name}")
