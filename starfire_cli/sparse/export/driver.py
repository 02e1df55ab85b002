"""The functions of an exported network that programs call, in LLVM's assembly: what NAME.h declares.

A network that was created begins with `HEADER` bytes: the mark at 0, what malloc gave at 8, at 16 whether it is busy,
at 20 its level, at 24 its threads; from 32 on what its threads are working on. Behind it the threads have what they
need to share out the work (`threading.py`), and each of them the memory of one image on its way.
"""

from __future__ import annotations

from dataclasses import dataclass

from starfire_cli.sparse.export.targets import ExportTarget
from starfire_cli.sparse.layout import FLOAT

HEADER = 128  # bytes
ALIGNED = 64
COUNTER = 128  # bytes from one counter to the next, so that no two threads write to one line of a cache
MARK = 0x5DAF1E0C0DE  # of a network that was created and not freed
ARGUMENT, MEMORY, PROCESSOR, BUSY = -1, -2, -3, -4  # what functions return where they cannot do what they should


@dataclass(frozen=True, kw_only=True)
class Interface:
    """Facts about a network that the driver needs.

    Args:
        name: an identifier of C.
        image: (C, H, W).
        outputs: numbers for each image.
        memory: bytes of maps, the same for all levels.
        levels: how many there are.
        threads: threads at most.
        steps: of the longest program.
    """

    name: str
    image: tuple[int, int, int]
    outputs: int
    memory: int
    levels: int
    threads: int
    steps: int

    @property
    def pixels(self) -> int:
        """Bytes of an image."""
        C, H, W = self.image
        return FLOAT * C * H * W

    @property
    def maps(self) -> int:
        """Bytes from one thread's maps to the next one's."""
        return -(-self.memory // ALIGNED) * ALIGNED

    @property
    def counters(self) -> int:
        """Bytes of counters for each thread, and once more for all."""
        return COUNTER * self.steps if self.threads > 1 else 0

    @property
    def slots(self) -> int:
        """Bytes of each thread's own record."""
        return ALIGNED if self.threads > 1 else 0


def driver(interface: Interface, target: ExportTarget, *, exported: str, run: str) -> str:
    """The functions, and what they need.

    Args:
        interface: of the network.
        target: where they run.
        exported: LLVM's attributes of functions that others may call; with `{name}` for the function's own name.
        run: the body of `@run_images(ptr %net, ptr %pixels, i64 %images, ptr %logits)`, whole.
    """
    name, word = interface.name, f"i{target.pointer}"
    most = (2 ** (target.pointer - 1) - 1) // max(interface.pixels, FLOAT * interface.outputs)  # that memory could hold
    heap = not target.is_wasm

    def public(function: str) -> str:
        return exported.format(name=f"{name}_{function}")

    lines = [
        f"declare void @llvm.memset.p0.{word}(ptr, i8, {word}, i1)",
        *([f"declare ptr @malloc({word})", "declare void @free(ptr)"] if heap else []),
        f"""
define i64 @{name}_memory(i32 %threads) {public("memory")} {{
  %some = icmp sge i32 %threads, 1
  %few = icmp sle i32 %threads, {interface.threads}
  %counted = and i1 %some, %few
  %wide = zext i32 %threads to i64
  %maps = mul i64 %wide, {interface.maps + interface.counters + interface.slots}
  %all = add i64 %maps, {HEADER + ALIGNED + interface.counters}
  %there = icmp sle i64 %all, {(1 << (target.pointer - 1)) - 1}
  %fits = and i1 %counted, %there
  %found = select i1 %fits, i64 %all, i64 0
  ret i64 %found
}}

define i32 @{name}_create(ptr %network, i32 %threads, ptr %memory, i64 %bytes) {public("create")} {{
entry:
  %nowhere = icmp eq ptr %network, null
  br i1 %nowhere, label %argument, label %empty
empty:
  store ptr null, ptr %network
  %need = call i64 @{name}_memory(i32 %threads)
  %none = icmp eq i64 %need, 0
  br i1 %none, label %argument, label %choose
choose:
  %level = call i32 @level()
  %cannot = icmp slt i32 %level, 0
  br i1 %cannot, label %processor, label %room
room:
  %own = icmp eq ptr %memory, null
  br i1 %own, label %take, label %given
given:
  %enough = icmp sge i64 %bytes, %need
  br i1 %enough, label %there, label %memory.short
take:
{_taken(word) if heap else "  br label %memory.short"}
there:
  %start = phi ptr [%memory, %given]{", [%got, %take]" if heap else ""}
  %malloced = phi ptr [null, %given]{", [%got, %take]" if heap else ""}
  %address = ptrtoint ptr %start to {word}
  %up = add {word} %address, {ALIGNED - 1}
  %even = and {word} %up, {-ALIGNED}
  %skip = sub {word} %even, %address
  %net = getelementptr i8, ptr %start, {word} %skip
  %rest = sub i64 %need, {ALIGNED}
{_as_word("rest", "size", word)}
  call void @llvm.memset.p0.{word}(ptr %net, i8 0, {word} %size, i1 false)
  store i64 {MARK}, ptr %net
  %p1 = getelementptr i8, ptr %net, i64 8
  store ptr %malloced, ptr %p1
  %p3 = getelementptr i8, ptr %net, i64 20
  store i32 %level, ptr %p3
  %p4 = getelementptr i8, ptr %net, i64 24
  store i32 %threads, ptr %p4
  store ptr %net, ptr %network
  ret i32 0
argument:
  ret i32 {ARGUMENT}
memory.short:
  ret i32 {MEMORY}
processor:
  ret i32 {PROCESSOR}
}}

define i32 @{name}_run(ptr %net, ptr %pixels, i64 %images, ptr %logits) {public("run")} {{
entry:
  %nothing = icmp eq ptr %net, null
  br i1 %nothing, label %argument, label %marked
marked:
  %mark = load i64, ptr %net
  %strange = icmp ne i64 %mark, {MARK}
  %below = icmp ugt i64 %images, {most}
  %no.pixels = icmp eq ptr %pixels, null
  %no.logits = icmp eq ptr %logits, null
  %either = or i1 %no.pixels, %no.logits
  %some = icmp sgt i64 %images, 0
  %missing = and i1 %either, %some
  %wrong = or i1 %strange, %below
  %bad = or i1 %wrong, %missing
  br i1 %bad, label %argument, label %claim
claim:
  %flag = getelementptr i8, ptr %net, i64 16
  %pair = cmpxchg ptr %flag, i32 0, i32 1 acquire monotonic
  %got = extractvalue {{ i32, i1 }} %pair, 1
  br i1 %got, label %work, label %busy
work:
  call void @run_images(ptr %net, ptr %pixels, i64 %images, ptr %logits)
  store atomic i32 0, ptr %flag release, align 4
  ret i32 0
argument:
  ret i32 {ARGUMENT}
busy:
  ret i32 {BUSY}
}}

define void @{name}_free(ptr %net) {public("free")} {{
entry:
  %nothing = icmp eq ptr %net, null
  br i1 %nothing, label %done, label %marked
marked:
  %mark = load i64, ptr %net
  %ours = icmp eq i64 %mark, {MARK}
  br i1 %ours, label %release, label %done
release:
  store i64 0, ptr %net
  %p1 = getelementptr i8, ptr %net, i64 8
  %malloced = load ptr, ptr %p1
{"  call void @free(ptr %malloced)" if heap else ""}
  br label %done
done:
  ret void
}}
""",
        run,
    ]
    return "\n".join(lines)


def run_alone(interface: Interface, function: str = "run_images") -> str:
    """`run_images` for one thread: image after image, by the program of the network's level."""
    return f"""
define internal void @{function}(ptr %net, ptr %pixels, i64 %images, ptr %logits) nounwind {{
entry:
  %p = getelementptr i8, ptr %net, i64 20
  %level = load i32, ptr %p
  %maps = getelementptr i8, ptr %net, i64 {HEADER + interface.slots + 2 * interface.counters}
  br label %loop
loop:
  %i = phi i64 [0, %entry], [%i1, %next]
{image_calls(interface, after="next")}
next:
  %i1 = add i64 %i, 1
  br label %loop
done:
  ret void
}}
"""


def image_calls(interface: Interface, *, after: str) -> str:
    """The run of image %i by the program of %level with a thread's %maps, and on to `after`; behind the last to `done`.

    It needs %pixels, %images and %logits, too.
    """
    cases = " ".join(f"i32 {level}, label %image{level}" for level in range(interface.levels))
    calls = "\n".join(
        f"image{level}:\n  call void @image_{level}(ptr %maps, ptr %out, ptr %image)\n  br label %{after}"
        for level in range(interface.levels)
    )
    return f"""  %more = icmp slt i64 %i, %images
  br i1 %more, label %body, label %done
body:
  %in = mul i64 %i, {interface.pixels}
  %image = getelementptr i8, ptr %pixels, i64 %in
  %to = mul i64 %i, {FLOAT * interface.outputs}
  %out = getelementptr i8, ptr %logits, i64 %to
  switch i32 %level, label %done [ {cases} ]
{calls}"""


def _taken(word: str) -> str:
    return f"""{_as_word("need", "ask", word)}
  %got = call ptr @malloc({word} %ask)
  %refused = icmp eq ptr %got, null
  br i1 %refused, label %memory.short, label %there"""


def _as_word(value: str, name: str, word: str) -> str:
    change = "add i64 0," if word == "i64" else "trunc i64"
    return f"  %{name} = {change} %{value}" + ("" if word == "i64" else f" to {word}")
