"""Threads of an exported network, in LLVM's assembly: POSIX threads that live as long as one call.

One image is shared out among all of them, as in process (`sparse/machine.py`); of several each thread takes the next.
A thread that cannot be started is not waited for.
"""

from __future__ import annotations

from collections.abc import Sequence

from starfire_cli.sparse.export.driver import HEADER, Interface, image_calls
from starfire_cli.sparse.export.targets import ExportTarget
from starfire_cli.sparse.machine import shared_run

# Of the header: what is worked on.
_PIXELS, _IMAGES, _LOGITS, _NEXT = 32, 40, 48, 56
# Of each thread's record: the network, its number, and the system's handle.
_OWN, _HANDLE = 8, 16


def run_in_threads(interface: Interface, target: ExportTarget, tables: Sequence[tuple[int, int]]) -> str:
    """`run_images` for one thread or several; it needs `run_alone`'s as `@run_in_turn`, and `@step_L` of each level L.

    Args:
        interface: of the network.
        target: where it runs.
        tables: of each level: the byte in `@tables` where its rows of (step, 0, tasks, grain) begin, and their number.
    """
    word = f"i{target.pointer}"
    levels = range(len(tables))
    shares = "\n".join(_share(level) for level in levels)
    cases = " ".join(f"i32 {level}, label %one{level}" for level in levels)
    ones = "\n".join(
        f"one{level}:\n  %table{level} = getelementptr i8, ptr @tables, i64 {at}\n"
        f"  call void @share_{level}(ptr %table{level}, ptr %state, i64 {steps}, ptr %all.maps, ptr %logits, "
        "ptr %pixels, i64 %own, i64 %threads)\n  br label %done"
        for level, (at, steps) in enumerate(tables)
    )
    return f"""
declare i32 @pthread_create(ptr, ptr, ptr, ptr)
declare i32 @pthread_join({word}, ptr)
declare i32 @sched_yield()
{shares}
define internal ptr @work(ptr %record) nounwind {{
entry:
  %net = load ptr, ptr %record
  %p0 = getelementptr i8, ptr %record, i64 {_OWN}
  %own = load i64, ptr %p0
  %p1 = getelementptr i8, ptr %net, i64 20
  %level = load i32, ptr %p1
{_shared(interface)}
  %pixels = load ptr, ptr %p3
  %images = load i64, ptr %p4
  %logits = load ptr, ptr %p5
  %all.maps = getelementptr i8, ptr %state, i64 %counters
  %skip = mul i64 %own, {interface.maps}
  %maps = getelementptr i8, ptr %all.maps, i64 %skip
  %single = icmp eq i64 %images, 1
  br i1 %single, label %one, label %take
one:
  switch i32 %level, label %done [ {cases} ]
{ones}
take:
  %i = atomicrmw add ptr %next, i64 1 monotonic
{image_calls(interface, after="take")}
done:
  ret ptr null
}}

define internal void @run_images(ptr %net, ptr %pixels, i64 %images, ptr %logits) nounwind {{
entry:
{_shared(interface)}
  %alone = icmp eq i64 %threads, 1
  %nothing = icmp eq i64 %images, 0
  %simple = or i1 %alone, %nothing
  br i1 %simple, label %turns, label %share
turns:
  call void @run_in_turn(ptr %net, ptr %pixels, i64 %images, ptr %logits)
  ret void
share:
  store ptr %pixels, ptr %p3
  store i64 %images, ptr %p4
  store ptr %logits, ptr %p5
  store i64 0, ptr %next
  %first = getelementptr i8, ptr %net, i64 {HEADER}
  %size = trunc i64 %counters to i32
  call void @llvm.memset.p0.i32(ptr %state, i8 0, i32 %size, i1 false)
  %single = icmp eq i64 %images, 1
  %fewer = icmp slt i64 %images, %threads
  %some = select i1 %fewer, i64 %images, i64 %threads
  %wanted = select i1 %single, i64 %threads, i64 %some
  br label %start
start:
  %t = phi i64 [0, %share], [%t1, %begun]
  %more = icmp slt i64 %t, %wanted
  br i1 %more, label %fill, label %own
fill:
  %skip = mul i64 %t, {interface.slots}
  %record = getelementptr i8, ptr %first, i64 %skip
  store ptr %net, ptr %record
  %q = getelementptr i8, ptr %record, i64 {_OWN}
  store i64 %t, ptr %q
  %t1 = add i64 %t, 1
  %self = icmp eq i64 %t, 0
  br i1 %self, label %begun, label %create
create:
  %handle = getelementptr i8, ptr %record, i64 {_HANDLE}
  %error = call i32 @pthread_create(ptr %handle, ptr null, ptr @work, ptr %record)
  %failed = icmp ne i32 %error, 0
  br i1 %failed, label %own, label %begun
begun:
  br label %start
own:
  %ignored = call ptr @work(ptr %first)
  br label %join
join:
  %j = phi i64 [1, %own], [%j1, %wait]
  %open = icmp slt i64 %j, %t
  br i1 %open, label %wait, label %done
wait:
  %skip2 = mul i64 %j, {interface.slots}
  %record2 = getelementptr i8, ptr %first, i64 %skip2
  %handle2 = getelementptr i8, ptr %record2, i64 {_HANDLE}
  %thread = load {word}, ptr %handle2
  %ignored2 = call i32 @pthread_join({word} %thread, ptr null)
  %j1 = add i64 %j, 1
  br label %join
done:
  ret void
}}
"""


def _shared(interface: Interface) -> str:
    """The number of threads of %net, and where the arguments of a call and the counters lie that they share."""
    return f"""  %p2 = getelementptr i8, ptr %net, i64 24
  %narrow = load i32, ptr %p2
  %threads = sext i32 %narrow to i64
  %p3 = getelementptr i8, ptr %net, i64 {_PIXELS}
  %p4 = getelementptr i8, ptr %net, i64 {_IMAGES}
  %p5 = getelementptr i8, ptr %net, i64 {_LOGITS}
  %next = getelementptr i8, ptr %net, i64 {_NEXT}
  %records = mul i64 %threads, {interface.slots}
  %after = add i64 %records, {HEADER}
  %state = getelementptr i8, ptr %net, i64 %after
  %parts = add i64 %threads, 1
  %counters = mul i64 %parts, {interface.counters}"""


def _share(level: int) -> str:
    start = f"""define internal void @share_{level}(ptr %table, ptr %state, i64 %steps, ptr %passing, ptr %kept,
               ptr %image, i64 %own, i64 %threads) nounwind {{"""
    work = f"  call void @step_{level}(i64 %s, ptr %passing, ptr %kept, ptr %image, i64 %begin, i64 %end)"
    return shared_run(start, work, offer="@sched_yield")
