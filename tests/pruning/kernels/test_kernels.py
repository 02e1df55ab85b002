"""All implementations of the mask kernels agree to the bit, on every shape, tie and memory format."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from starfire_cli.errors import BadOption, StarfireError
from starfire_cli.pruning import CONV_METHODS, LINEAR_METHODS, Budget, Cut, Goal, Method, Pruner, layers_of_model
from starfire_cli.pruning.budget import pruned
from starfire_cli.pruning.kernels import KERNELS, NAN, MaskJob, agrees, choose
from starfire_cli.pruning.kernels.torch import TorchKernels
from starfire_cli.pruning.layers import Layer
from starfire_cli.pruning.schedule import Era
from tests.helpers.cuts import conv_cuts, linear_cuts

CPU = torch.device("cpu")
pytest.importorskip("numba")


def job_of(
    weight: Tensor,
    budget: Budget,
    *,
    groups: int = 1,
    dead: float = 0.0,
    others: int = 2,
    seed: int = 0,
) -> MaskJob:
    """A layer of which the share `dead` is dead already; the others hold ones where it lives, of two types."""
    draw = torch.Generator().manual_seed(seed)
    alive = torch.ones_like(weight, dtype=torch.bool).copy_(torch.rand(weight.shape, generator=draw) >= dead)
    weight = torch.where(alive, weight, 0.0).to(weight.dtype) if dead else weight
    kind = "linear" if weight.ndim == 2 else "pointwise" if weight.shape[2:] == (1, 1) else "window"
    layer = Layer(name="x", key="x.weight", kind=kind, shape=tuple(weight.shape), groups=groups)  # type: ignore[arg-type]
    beside = tuple(torch.ones_like(weight, dtype=(weight.dtype, torch.float64)[i % 2]) * alive for i in range(others))
    return MaskJob(layer=layer, weight=weight, alive=alive, budget=budget, others=beside)


def copy_of(job: MaskJob) -> MaskJob:
    return replace(job, weight=job.weight.clone(), alive=job.alive.clone(), others=tuple(t.clone() for t in job.others))


def tensors(job: MaskJob) -> list[Tensor]:
    return [job.weight, job.alive, *job.others]


def same_bits(a: Tensor, b: Tensor) -> bool:
    ints = {2: torch.int16, 4: torch.int32, 8: torch.int64, 1: torch.uint8}[a.element_size()]
    return torch.equal(a.contiguous().view(ints), b.contiguous().view(ints))


def check(*jobs: MaskJob, name: str = "numba") -> None:
    """All tensors and counts come out as they do with torch, and only the dead are touched."""
    mine, reference = [copy_of(j) for j in jobs], [copy_of(j) for j in jobs]
    counts = KERNELS.build(name).prune(mine)
    assert counts.tolist() == KERNELS.build("torch").prune(reference).tolist()
    for before, a, b, count in zip(jobs, mine, reference, counts.tolist(), strict=True):
        assert all(same_bits(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))
        if count != NAN:
            assert count == int((~a.alive).sum())
            assert same_bits(a.weight[a.alive], before.weight[a.alive]) and not (a.alive & ~before.alive).any()


VALUES = st.sampled_from(["normal", "few", "equal", "subnormal", "zeros", "huge"])


def values(kind: str, shape: tuple[int, ...], seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    normal = torch.randn(shape, generator=draw)
    few = torch.randint(-2, 3, shape, generator=draw).float()  # -0.0 too, and many ties
    return {
        "normal": normal,
        "few": few * -1.0,
        "equal": torch.full(shape, -0.25),
        "subnormal": normal * 1e-42,
        "zeros": normal * 0.0,
        "huge": normal.sign() * 3.4e38,
    }[kind]


@given(
    K=st.integers(1, 13),
    C=st.integers(1, 70),
    window=st.sampled_from([(1, 1), (3, 3), (1, 3), (5, 5), (2, 2), (7, 7)]),
    groups=st.sampled_from([1, 1, 1, 2, 3]),
    kind=VALUES,
    dead=st.sampled_from([0.0, 0.3, 0.9]),
    share=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    layout=st.sampled_from(["contiguous", "channels_last", "transposed"]),
    dtype=st.sampled_from([torch.float32, torch.float32, torch.float64, torch.bfloat16]),
    others=st.integers(0, 3),
    seed=st.integers(0, 9),
)
@settings(max_examples=150)
def test_numba_does_what_torch_does(K, C, window, groups, kind, dead, share, layout, dtype, others, seed) -> None:  # type: ignore[no-untyped-def]
    weight = values(kind, (K * groups, C, *window), seed).to(dtype)
    if layout == "channels_last":
        weight = weight.to(memory_format=torch.channels_last)
    elif layout == "transposed":
        weight = weight.permute(1, 0, 3, 2).contiguous().permute(1, 0, 3, 2)
    budget = conv_cuts(round(share[0] * window[0] * window[1]), round(share[1] * K))
    check(job_of(weight, budget, groups=groups, dead=dead, others=others, seed=seed))


@given(
    O=st.integers(1, 30),
    I=st.integers(1, 70),
    kind=VALUES,
    dead=st.sampled_from([0.0, 0.3, 0.95]),
    share=st.floats(0, 1),
    tile=st.sampled_from([1, 1, 2]),
    transposed=st.sampled_from([False, False, True]),
    dtype=st.sampled_from([torch.float32, torch.float32, torch.float64]),
    seed=st.integers(0, 9),
)
@settings(max_examples=150)
def test_linear_layers_too(O, I, kind, dead, share, tile, transposed, dtype, seed) -> None:  # type: ignore[no-untyped-def]
    weight = values(kind, (I, O), seed).to(dtype).t() if transposed else values(kind, (O, I), seed).to(dtype)
    budget = linear_cuts(tiles=0 if tile == 1 else O * I // 9, weights=round(share * O * I), tile=tile)
    check(job_of(weight, budget, dead=dead, seed=seed))


@pytest.mark.parametrize("kind", ["normal", "few", "equal"])
def test_depthwise_kernels_that_compete_across_groups(kind: str) -> None:
    for weight in (values(kind, (70, 1, 3, 3), 0), values(kind, (70, 1, 1, 1), 0)):
        for count in (1, 7, 40, 70):
            check(job_of(weight, (Cut("RS", "", count),), groups=70, dead=0.1))
            check(job_of(weight, (Cut("", "KC", 1), Cut("RS", "", count)), groups=70))


PATTERNS = [
    ((8, 3, 3, 3), 2, conv_cuts(3, 2), True),
    ((8, 3, 3, 3), 2, (Cut("", "KC", 3),), True),
    ((8, 3, 1, 1), 1, (Cut("RS", "C", 3),), True),
    ((8, 1, 3, 3), 8, (Cut("RS", "", 3),), True),
    ((8, 3, 3, 3), 1, (Cut("RS", "", 3),), False),  # kernels of the layer
    ((8, 3, 3, 3), 1, conv_cuts(3, 2)[::-1], False),  # kernels before windows
    ((8, 3, 3, 3), 1, (Cut("RS", "C", 3), Cut("RS", "C", 4)), False),
    ((8, 3, 3, 3), 1, (Cut("RS", "C", 3, reduce="sum"),), False),
    ((8, 3, 3, 3), 1, (Cut("RS", "C", 3, keep="K"),), False),
    ((8, 3, 3, 3), 1, (Cut("CRS", "", 3),), False),
    ((8, 3, 3, 3), 1, (Cut("", "", 3, keep="K"),), False),
    ((8, 3, 3, 3), 1, (), False),
    ((8, 30), 1, linear_cuts(3, 40, 4), True),
    ((8, 30), 1, linear_cuts(3, 0, 4), True),
    ((8, 30), 1, linear_cuts(0, 40, 1), True),
    ((8, 30), 1, (Cut("", "", 40),), False),  # nothing is kept
    ((8, 30), 1, (Cut("", "", 4, keep="K", tile=2),), False),  # tiles by their largest weight
    ((8, 30), 1, (Cut("RS", "C", 3),), False),  # weights of an input
]


@pytest.mark.parametrize(("shape", "groups", "cuts", "known"), PATTERNS)
def test_the_patterns_that_fast_kernels_take(shape: tuple[int, ...], groups: int, cuts: Budget, known: bool) -> None:
    layer = job_of(torch.zeros(shape), cuts, groups=groups).layer
    assert {name: KERNELS.build(name).takes(layer, cuts) for name in ("torch", "numba", "triton")} == {
        "torch": True,
        "numba": known,
        "triton": known,
    }


@dataclass(frozen=True)
class Rows:
    """Of all rows of windows those of the smallest mean go, and of linear layers single weights."""

    def budget(self, layer: Layer, goal: Goal) -> Budget | None:
        if layer.kind == "linear":
            return (Cut("", "", pruned(layer.weights, goal.threshold), keep="K"),)
        cut = Cut("S", "", 0, reduce="mean")
        count = pruned(cut.competitors(layer.shape, layer.groups), goal.threshold)
        return (replace(cut, count=count),)


def test_what_fast_kernels_do_not_take_is_pruned_by_torch_beside_them() -> None:
    (one, a), (two, b) = (trained(name, Rows(), Rows()) for name in ("torch", "numba"))
    assert (one.kernels, two.kernels) == ("torch", "numba")
    assert one.digest() == two.digest() and one.zeros == two.zeros
    assert one.zeros == {"0.weight": 153, "2.weight": 90, "4.weight": 4032}  # of 72 rows of 3, 128 weights, 5760
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("K", "C"), [(64, 512), (513, 600), (2100, 40)])
def test_rows_longer_than_a_block(K: int, C: int, layout: torch.memory_format) -> None:
    weight = values("normal", (K, C, 3, 3), 1).to(memory_format=layout)
    for count in (1, 3, K // 2, K - 1):
        check(job_of(weight, conv_cuts(4, count), dead=0.2))
        check(job_of(weight, conv_cuts(0, count), others=0))


def worn(job: MaskJob, budget: Budget) -> MaskJob:
    """The layer as an earlier `budget` left it."""
    before = copy_of(job)
    KERNELS.build("torch").prune([replace(before, budget=budget)])
    return replace(before, budget=job.budget)


MANY = st.sampled_from([0, 1, 2, 3, 5, 9, 17, 40, 90, 300])  # none, few among so many, too many for a shortcut, all


@given(
    rows=st.sampled_from([1, 7, 63, 200, 300]),
    C=st.sampled_from([1, 3, 8, 21]),
    window=st.sampled_from([(1, 1), (1, 1), (3, 3)]),
    groups=st.sampled_from([1, 1, 2, 3]),
    kind=VALUES,
    dead=st.sampled_from([0.0, 0.0, 0.2, 0.9]),
    before=MANY,
    more=MANY,
    in_window=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    seed=st.integers(0, 9),
)
@settings(max_examples=200)
def test_a_layer_that_loses_more(rows, C, window, groups, kind, dead, before, more, in_window, layout, seed) -> None:  # type: ignore[no-untyped-def]
    weight = values(kind, (rows * groups, C, *window), seed).to(memory_format=layout)
    size = window[0] * window[1]
    earlier, later = (min(i, size) for i in (min(in_window), max(in_window)))
    job = job_of(weight, conv_cuts(later, min(before + more, rows)), groups=groups, dead=dead, seed=seed)
    check(worn(job, conv_cuts(earlier, min(before, rows))))


@given(
    O=st.sampled_from([1, 2, 40]),
    I=st.sampled_from([1, 31, 32, 33, 200]),
    kind=VALUES,
    dead=st.sampled_from([0.0, 0.3, 0.99]),
    before=st.floats(0, 1),
    more=st.sampled_from([0, 1, 2, 9, 100, 1000, 8000]),
    others=st.integers(0, 2),
    seed=st.integers(0, 9),
)
@settings(max_examples=200)
def test_a_linear_layer_that_loses_more(O, I, kind, dead, before, more, others, seed) -> None:  # type: ignore[no-untyped-def]
    earlier = round(before * O * I)
    budget = linear_cuts(tiles=0, weights=min(earlier + more, O * I), tile=1)
    job = job_of(values(kind, (O, I), seed), budget, dead=dead, others=others, seed=seed)
    check(worn(job, linear_cuts(tiles=0, weights=earlier, tile=1)))


@pytest.mark.parametrize("C", [511, 513, 1030])  # parts of 511 -> 512, 257 -> 264, 344 channels
@pytest.mark.parametrize("kind", ["normal", "few", "equal"])
def test_channels_that_miss_different_numbers(kind: str, C: int) -> None:
    for count in (30, 33, 60):
        check(job_of(values(kind, (100, C, 1, 1), 0), conv_cuts(0, count), dead=0.3))
        check(job_of(values(kind, (20, C, 3, 3), 0).to(memory_format=torch.channels_last), conv_cuts(4, 9), dead=0.3))


def test_several_layers_in_several_threads() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        jobs = [
            job_of(values("few", (8 + i, 5, 3, 3), i), conv_cuts(i % 9, i % 5), dead=0.1, seed=i) for i in range(40)
        ]
        jobs.append(job_of(values("few", (30, 20), 0), linear_cuts(tiles=0, weights=300, tile=1)))
        jobs.append(job_of(values("few", (300, 1000), 0), linear_cuts(tiles=0, weights=90_000, tile=1)))
        check(*jobs)
        with ThreadPoolExecutor(4) as pool:  # and from several threads at once
            for done in [pool.submit(check, *jobs) for _ in range(20)]:
                done.result()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["torch", "numba"])
def test_what_cannot_be_compared_is_left_alone(name: str, bad: float) -> None:
    weight = values("normal", (8, 4, 3, 3), 0)
    weight[7, 3, 2, 2] = bad
    job = job_of(weight, conv_cuts(3, 2), dead=0.0)
    fine = job_of(values("normal", (8, 4, 3, 3), 0), conv_cuts(3, 2))
    mine = [copy_of(job), copy_of(fine)]
    assert KERNELS.build(name).prune(mine).tolist() == [NAN, 4 * (2 * 9 + 6 * 3)]
    assert all(same_bits(x, y) for x, y in zip(tensors(mine[0]), tensors(job), strict=True))


@pytest.mark.parametrize("shape", [(30, 9, 3, 3), (300, 9, 1, 1), (30, 70), (300, 1000)])
def test_a_nan_at_the_very_end_is_seen_before_anything_is_written(shape: tuple[int, ...]) -> None:
    weight = values("normal", shape, 0)
    weight[(-1,) * len(shape)] = torch.nan
    if len(shape) == 4:
        weight = weight.to(memory_format=torch.channels_last)
    job = job_of(weight, conv_cuts(3, 2) if len(shape) == 4 else linear_cuts(tiles=0, weights=90, tile=1))
    mine = copy_of(job)
    assert KERNELS.build("numba").prune([mine]).tolist() == [NAN]
    assert all(same_bits(x, y) for x, y in zip(tensors(mine), tensors(job), strict=True))


@pytest.mark.parametrize("name", ["torch", "numba"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gradients_of_the_dead_are_silent(name: str, dtype: torch.dtype) -> None:
    kernels = KERNELS.build(name)
    shapes = [(5, 7), (4, 3, 3, 3), (4, 3, 3, 3), (2200, 1000)]
    gradients = [values("normal", shape, 0).to(dtype) for shape in shapes]
    gradients[0][:, :3] = torch.tensor([torch.inf, -torch.inf, torch.nan])
    gradients[1] = gradients[1].to(memory_format=torch.channels_last)
    alive = [torch.rand_like(g, dtype=torch.float32) < 0.4 for g in gradients]
    alive[2] = alive[2].to(memory_format=torch.channels_last)
    before = [g.clone() for g in gradients]
    kernels.mask_gradients(gradients, alive)
    for g, mask, old in zip(gradients, alive, before, strict=True):
        assert same_bits(g, torch.where(mask, old, 0))


def trained(kernels: str, conv: Method, fc: Method) -> tuple[Pruner, nn.Module]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 1), nn.Flatten(), nn.Linear(16 * 36, 10))
    model.to(memory_format=torch.channels_last)
    pruner = Pruner(
        model,
        layers_of_model(model)[0],
        conv=conv,
        linear=fc,
        target=0.7,
        era=Era(first_step=2, last_step=20),
        kernels=kernels,
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    pruner.attach(optimizer)
    for step in range(1, 25):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.rand(16, 3, 8, 8)), torch.randint(0, 10, (16,))).backward()
        pruner.after_backward()
        optimizer.step()
        pruner.after_step(step)
        pruner.verify()
    return pruner, model


@pytest.mark.parametrize("fc", ["fine", "two-tier:n=2"])
@pytest.mark.parametrize("conv", ["window", "ck", "intra", "inter"])
def test_training_is_the_same_to_the_bit(conv: str, fc: str) -> None:
    methods = CONV_METHODS.build(conv), LINEAR_METHODS.build(fc)
    (one, a), (two, b) = (trained(name, *methods) for name in ("torch", "numba"))
    assert (one.kernels, two.kernels) == ("torch", "numba")
    assert one.digest() == two.digest() and one.zeros == two.zeros and any(one.zeros.values())
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_choosing() -> None:
    assert choose("auto", CPU)[0] == "numba" and choose("torch", CPU)[0] == "torch"
    assert choose("auto", torch.device("meta"))[0] == "torch" and choose("auto", CPU, weights=270_000)[0] == "torch"
    with pytest.raises(BadOption, match=r"^--kernels numba does not run here: .* on cuda; --kernels auto"):
        choose("numba", torch.device("cuda"))
    with pytest.raises(BadOption, match=r"unknown kernels 'cuda'; there are: auto, numba, torch, triton"):
        choose("cuda", CPU)
    assert issubclass(BadOption, StarfireError)


class Wrong(TorchKernels):
    def prune(self, jobs):  # type: ignore[no-untyped-def]
        counts = super().prune(jobs)
        jobs[-1].alive[0, 0] ^= True
        return counts


class Broken(TorchKernels):
    def prune(self, jobs):  # type: ignore[no-untyped-def]
        raise RuntimeError("no such device")


def test_what_was_never_tried_here_is_tried_before_it_is_believed() -> None:
    assert agrees(KERNELS.build("numba"), CPU) and agrees(KERNELS.build("torch"), CPU)
    assert not agrees(Wrong(), CPU) and not agrees(Broken(), CPU)


def test_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("starfire_cli.pruning.kernels.numba.installed", lambda package: False)
    assert choose("auto", CPU)[0] == "torch"
    with pytest.raises(BadOption, match=r'pip install "starfire-cli\[fast\]"'):
        choose("numba", CPU)


SAME = """
import torch
from tests.pruning.kernels.test_kernels import conv_cuts, linear_cuts, check, job_of, values
for layout in (torch.contiguous_format, torch.channels_last):
    for kind in ("normal", "few"):
        check(job_of(values(kind, (40, 70, 3, 3), 0).to(memory_format=layout), conv_cuts(4, 20), dead=0.2))
        check(job_of(values(kind, (40, 70, 1, 1), 0), conv_cuts(0, 3), groups=2))
        check(job_of(values(kind, (300, 70, 1, 1), 0), conv_cuts(0, 4)))
        check(job_of(values(kind, (40, 70), 0), linear_cuts(0, 100, 1)))
from starfire_cli.pruning.kernels.cpu import loops as _loops
code = "".join(_loops.window.inspect_asm().values())
print("zmm" in code, "ymm" in code)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("cpu", "vectors"), [("x86-64-v3", "False True"), ("x86-64", "False False")])
def test_code_for_older_processors(cpu: str, vectors: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    environment = {**os.environ, "NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", SAME], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == vectors


DELAY = """
import torch
from starfire_cli.pruning.kernels import KERNELS
kernels = KERNELS.build("numba")
print(kernels.warmup_notice())
kernels.mask_gradients([torch.ones(3, 3)], [torch.ones(3, 3, dtype=torch.bool)])
print(kernels.warmup_notice())
"""


@pytest.mark.slow
def test_the_first_compilation_is_announced_once(tmp_path) -> None:  # type: ignore[no-untyped-def]
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", DELAY]
    runs = [subprocess.run(command, env=environment, capture_output=True, text=True, check=True) for _ in range(2)]
    lines = [run.stdout for run in runs]
    assert lines[0].startswith("numba compiles the loops for masks") and lines[0].endswith("\nNone\n")
    assert lines[1] == "None\nNone\n"
    assert KERNELS.build("torch").warmup_notice() is None
