"""Numpy's shortcut where little is due gives the masks of literal loops, and writes what it must."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from starfire_cli.pruning import _threads
from starfire_cli.pruning._threads import in_threads
from starfire_cli.pruning.kernels import KERNELS, NAN, MaskJob
from starfire_cli.pruning.kernels._patterns import LinearCounts, read_counts
from starfire_cli.pruning.kernels.cpu.few import prune_few
from starfire_cli.pruning.kernels.cpu.select import magnitudes, smallest, unsigned
from starfire_cli.pruning.layers import Kind, Layer
from starfire_cli.pruning.units import Budget
from tests.helpers.cuts import conv_cuts, linear_cuts
from tests.helpers.paper_loops import decided_ck, decided_fine, decided_window, first_to_go

KINDS = ("normal", "few", "equal", "subnormal", "zeros", "huge")
LAYOUTS = ("contiguous", "channels_last", "turned")


def values(kind: str, shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    normal = torch.randn(shape, generator=draw)
    return {
        "normal": normal,
        "few": torch.randint(-2, 3, shape, generator=draw).float() * -1.0,  # -0.0, too
        "equal": torch.full(shape, -0.25),
        "subnormal": normal * 1e-42,
        "zeros": normal * 0.0,
        "huge": normal.sign() * 3.3e38,
    }[kind]


def laid_out(x: Tensor, layout: str) -> Tensor:
    if layout == "turned":
        return x.transpose(0, 1).transpose(-1, -2).contiguous().transpose(-1, -2).transpose(0, 1)
    return x.to(memory_format=torch.channels_last) if layout == "channels_last" and x.ndim == 4 else x


def job_of(
    shape: tuple[int, ...],
    budget: Budget,
    *,
    kind: str = "normal",
    layout: str = "contiguous",
    dtype: torch.dtype = torch.float32,
    dead: float = 0.0,
    groups: int = 1,
    seed: int = 0,
) -> MaskJob:
    """A layer that is partly dead, and beside it NaN and -0.0 where it lives, in other types and strides."""
    draw = torch.Generator().manual_seed(seed)
    alive = laid_out(torch.rand(shape, generator=draw) >= dead, layout)
    weight = laid_out(values(kind, shape, draw).to(dtype), layout).masked_fill(~alive, 0)
    beside = ((torch.nan, dtype), (-0.0, torch.bfloat16), (1.0, torch.float64), (1, torch.bool))
    others = [torch.full(shape, x, dtype=t).masked_fill(~alive, 0) for x, t in beside]
    what: Kind = "linear" if len(shape) == 2 else "window" if shape[2] * shape[3] > 1 else "pointwise"
    layer = Layer(name="x", key="x.weight", kind=what, shape=shape, groups=groups)
    return MaskJob(
        layer=layer, weight=weight, alive=alive, budget=budget, others=(laid_out(others[0], layout), *others[1:])
    )


def copy_of(job: MaskJob) -> MaskJob:
    return replace(job, weight=job.weight.clone(), alive=job.alive.clone(), others=tuple(t.clone() for t in job.others))


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def expected(job: MaskJob) -> Tensor:
    """What is left, by literal loops."""
    counts = read_counts(job.budget)
    assert counts is not None
    if isinstance(counts, LinearCounts):
        return torch.tensor(decided_fine(job.weight.tolist(), job.alive.tolist(), counts.weights))
    theta, alive = job.weight.flatten(2).tolist(), job.alive.flatten(2).tolist()
    left = decided_window(theta, alive, counts.in_window) if counts.in_window else alive
    left = decided_ck(theta, left, counts.kernels, job.layer.groups) if counts.kernels else left
    return torch.tensor(left).reshape(job.layer.shape)


def check(job: MaskJob, *, shortcut: bool | None = None) -> None:
    """The outcome is that of the loops; `shortcut`: whether it must be numpy's."""
    left, done = expected(job), copy_of(job)
    count = prune_few(done)
    if shortcut is not None:
        assert (count is not None) == shortcut
    if count is None:  # whatever it has begun, the rules carry it to the same end
        count = int(KERNELS.build("torch").prune([done]))
    assert count == int((~left).sum())
    assert torch.equal(done.alive, left)
    for before, after in zip((job.weight, *job.others), (done.weight, *done.others), strict=True):
        assert torch.equal(bits(after), bits(before).masked_fill(~left, 0))


def worn(job: MaskJob, fewer: int) -> MaskJob:
    """The layer as it stood `fewer` units earlier, so that all but some columns are short of the same number."""
    before = copy_of(job)
    earlier = tuple(replace(cut, count=max(0, cut.count - fewer)) for cut in job.budget)
    KERNELS.build("torch").prune([replace(before, budget=earlier)])
    return before


@given(
    K=st.integers(1, 40),
    C=st.integers(1, 12),
    window=st.sampled_from([(1, 1), (3, 3), (1, 3), (5, 5)]),
    kind=st.sampled_from(KINDS),
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from([torch.float32, torch.float32, torch.float64, torch.bfloat16]),
    dead=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    share=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    groups=st.sampled_from([1, 1, 1, 2]),
    fewer=st.integers(0, 5),
    seed=st.integers(0, 9),
)
def test_convolutions(K, C, window, kind, layout, dtype, dead, share, groups, fewer, seed) -> None:  # type: ignore[no-untyped-def]
    budget = conv_cuts(round(share[0] * window[0] * window[1]), round(share[1] * K))
    shape = (K * groups, C, *window)
    job = job_of(shape, budget, kind=kind, layout=layout, dtype=dtype, dead=dead, groups=groups, seed=seed)
    check(worn(job, fewer))


@given(
    O=st.integers(1, 12),
    I=st.integers(1, 30),
    kind=st.sampled_from(KINDS),
    layout=st.sampled_from(LAYOUTS),
    dead=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    share=st.floats(0, 1),
    fewer=st.integers(0, 9),
    seed=st.integers(0, 9),
)
def test_linear_layers(O, I, kind, layout, dead, share, fewer, seed) -> None:  # type: ignore[no-untyped-def]
    job = job_of((O, I), linear_cuts(0, round(share * O * I), 1), kind=kind, layout=layout, dead=dead, seed=seed)
    check(worn(job, fewer))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("shape", "budget", "dead"),
    [
        ((130, 5, 3, 3), conv_cuts(4, 7), 0.3),
        ((130, 5, 1, 1), conv_cuts(0, 16), 0.0),
        ((1030, 2, 1, 1), conv_cuts(0, 100), 0.0),  # odd numbers of rows to halve
        ((3, 4, 1, 1), conv_cuts(0, 3), 0.0),  # all of it
        ((1, 4, 3, 3), conv_cuts(0, 1), 0.5),  # columns of one
        ((9, 4, 3, 3), conv_cuts(2, 2), 1.0),  # all dead
        ((9, 4, 3, 3), conv_cuts(0, 0), 0.5),
        ((6, 3, 9, 9), conv_cuts(3, 1), 0.0),
        ((20, 20), linear_cuts(0, 40, 1), 0.0),
        ((20, 1), linear_cuts(0, 9, 1), 0.0),  # every weight keeps its neuron alive
        ((20, 20), linear_cuts(0, 100, 1), 1.0),
    ],
)
@pytest.mark.parametrize("kind", ["normal", "few", "equal"])
def test_the_shortcut_is_taken(shape, budget, dead, kind, dtype, layout) -> None:  # type: ignore[no-untyped-def]
    check(job_of(shape, budget, kind=kind, dtype=dtype, dead=dead, layout=layout), shortcut=True)


@pytest.mark.parametrize(
    ("job", "reason"),
    [
        (job_of((64, 4, 1, 1), conv_cuts(0, 32)), "half of all"),
        (job_of((8, 4, 3, 3), conv_cuts(6, 0)), "six of nine"),
        (job_of((8, 4, 3, 3), conv_cuts(1, 1), groups=2), "groups compete apart"),
        (job_of((2, 2, 12, 12), conv_cuts(3, 0)), "more weights than a signed byte counts"),
        (job_of((8, 4, 3, 3), conv_cuts(1, 1), dtype=torch.bfloat16), "numpy does not know the type"),
        (job_of((8, 9), linear_cuts(0, 40, 1)), "more than an eighth"),
    ],
)
def test_what_is_left_to_the_rules(job: MaskJob, reason: str) -> None:
    check(job, shortcut=False)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("shape", [(40, 4, 3, 3), (40, 30)])
def test_nan_and_inf(shape: tuple[int, ...], bad: float) -> None:
    job = job_of(shape, conv_cuts(1, 1) if len(shape) == 4 else linear_cuts(0, 9, 1))
    job.weight.view(-1)[77] = bad
    done = copy_of(job)
    assert prune_few(done) == NAN
    assert torch.equal(bits(done.weight), bits(job.weight)) and torch.equal(done.alive, job.alive)


@given(
    N=st.integers(1, 200),
    C=st.integers(1, 5),
    levels=st.sampled_from([1, 2, 5, 1000]),
    dead=st.sampled_from([0.0, 0.2, 0.9]),
    data=st.data(),
)
@settings(max_examples=200)
def test_the_smallest_of_each_column(N: int, C: int, levels: int, dead: float, data: st.DataObject) -> None:
    draw = np.random.default_rng(data.draw(st.integers(0, 99)))
    score, alive = draw.integers(0, levels, (N, C)).astype(np.float32), draw.random((N, C)) >= dead
    wanted = np.array([data.draw(st.integers(0, int(n))) for n in alive.sum(0)])
    if not wanted.any():
        return
    left = alive.copy()
    left.reshape(-1)[smallest(unsigned(magnitudes((-score).view(np.int32), alive.view(np.int8))), wanted)] = False
    for c in range(C):
        count = int(wanted[c] + (~alive[:, c]).sum())
        assert left[:, c].tolist() == first_to_go(score[:, c].tolist(), alive[:, c].tolist(), count)


@pytest.fixture(params=["torch's own threads", "a pool"])
def two_threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.param == "a pool":
        monkeypatch.setattr(_threads, "_team", lambda: None)
    elif _threads._team() is None:
        pytest.skip("torch computes with another library here")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_threads_that_ask_for_threads_do_not_wait_for_themselves() -> None:
    inner = [(1 << 18, partial(int, n)) for n in range(4)]
    assert in_threads([(1 << 18, partial(in_threads, inner)) for _ in range(4)]) == [[0, 1, 2, 3]] * 4
    assert in_threads(inner) == [0, 1, 2, 3]


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("failure", [ValueError("x"), IndexError("x"), KeyboardInterrupt()])
def test_what_a_task_raises_is_raised_and_no_further_task_begun(failure: BaseException) -> None:
    begun = []

    def fails() -> None:
        begun.append(1)
        raise failure

    with pytest.raises(type(failure)):
        in_threads([(1 << 18, fails)] * 40)
    assert len(begun) <= 2
    assert in_threads([(1 << 18, partial(int, n)) for n in range(4)]) == [0, 1, 2, 3]


@pytest.mark.usefixtures("two_threads")
def test_tasks_run_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=60)
    idents = in_threads([(1 << 18, lambda: both.wait() >= 0 and threading.get_ident())] * 2)
    assert len(set(idents)) == 2 and threading.get_ident() in idents


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_tasks_run_in_the_caller_s_mode(mode: type) -> None:
    """torch's modes are of one thread each; without them a moving average cannot be written to."""
    both = threading.Barrier(2, timeout=60)

    def seen() -> tuple[int, bool, bool]:
        both.wait()
        return threading.get_ident(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    with mode():
        expected = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        found = in_threads([(1 << 18, seen)] * 2)
    assert len({ident for ident, *_ in found}) == 2
    assert all(tuple(modes) == expected for _, *modes in found)


def _in_a_child(answers: Connection) -> None:
    answers.send(in_threads([(1 << 18, partial(int, n)) for n in range(4)]))


@pytest.mark.usefixtures("two_threads")
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own() -> None:
    """It has none of OpenMP's, and would wait for them forever."""
    in_threads([(1 << 18, partial(int, n)) for n in range(4)])
    mine, its = Pipe()
    child = get_context("fork").Process(target=_in_a_child, args=(its,))
    child.start()
    try:
        assert mine.poll(60) and mine.recv() == [0, 1, 2, 3]
    finally:
        child.kill()
        child.join()


INTERRUPTED = """
import os, signal, sys, threading, time, torch
from starfire_cli.pruning import _threads
if sys.argv[1] == "a pool":
    _threads._team = lambda: None
torch.set_num_threads(2)
raised = lost = 0
ready = False
def interrupt(*_):
    raise KeyboardInterrupt
def send():  # one after the other, while there is somebody to catch it
    global ready, lost
    while True:
        time.sleep(0.001)
        patience = time.time() + 5
        while not ready:
            time.sleep(0.0001)
            if time.time() > patience:  # it was raised nowhere
                lost, ready = lost + 1, True
        ready = False
        os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, interrupt)
end = time.time() + 0.5
threading.Thread(target=send, daemon=True).start()
while True:
    try:
        ready = True
        while time.time() < end:
            _threads.in_threads([(1 << 18, lambda: time.sleep(0.0005))] * 4)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        break
    except KeyboardInterrupt:
        raised += 1
print(raised > 10, lost, hasattr(_threads._HERE, "busy"))
"""


@pytest.mark.parametrize("kind", ["torch's own threads", "a pool"])
def test_no_interrupt_is_lost(kind: str) -> None:
    """ctypes drops what is raised as a callback begins; then Ctrl-C would do nothing, now and then."""
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, kind], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True", "0", "False"], done.stdout + done.stderr
    assert not done.stderr
