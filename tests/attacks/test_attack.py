"""Attacks move images by what they say, and leave the network as they found it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from copy import deepcopy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from starfire_cli.attacks import ATTACKS, adversary, parse_sizes, with_options
from starfire_cli.attacks._draws import AttackDraws
from starfire_cli.attacks._gradient import blind, frozen, input_gradient
from starfire_cli.errors import BadOption
from tests.helpers.attack_toy import net, trained, val

NEEDS = {"autoattack": "pyautoattack", "foolbox": "foolbox"}
OWN = ("fgsm", "fgsm:random_start=true", "pgd:steps=3", "noise")


def draws(count: int, seed: int = 0) -> AttackDraws:
    return AttackDraws(seed=seed, index_N=torch.arange(count))


def batch(count: int = 24) -> tuple[nn.Module, Tensor, Tensor]:
    images, labels = val()
    return trained(), images[:count], labels[:count]


def swept(
    spec: str, model: nn.Module, images: Tensor, labels: Tensor, sizes: list[float], seed: int = 0
) -> list[Tensor]:
    with frozen(model):
        made = ATTACKS.build(spec).sweep(model, images, labels, eps=sizes, draws=draws(len(images), seed))
        return [each.images_NCHW for each in made]


def right(model: nn.Module, images: Tensor, labels: Tensor) -> int:
    with torch.no_grad():
        return int((model.eval()(images).argmax(1) == labels).sum())


@contextlib.contextmanager
def counted(model: nn.Module) -> Iterator[dict[str, int]]:
    """How many images go forwards through `model`, and how many gradients come back to the pixels."""
    seen = {"forward": 0, "backward": 0}

    def forward(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen["forward"] += len(inputs[0])
        if inputs[0].requires_grad:
            inputs[0].register_hook(lambda gradient: seen.update(backward=seen["backward"] + len(gradient)))

    handle = model.register_forward_pre_hook(forward)
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize("name", ATTACKS.names())
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_every_attack_stays_in_its_ball_and_leaves_no_trace(name: str, norm: str) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"attack {name} is an extra")
    model, images, labels = batch(6)
    model.train()
    model.net[4].eval()  # a BatchNorm that is kept fixed in training must stay so
    some = list(model.parameters())[::2]
    for parameter in some:
        parameter.requires_grad_(False)
    flags = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    generator, before = torch.get_rng_state(), images.clone()
    spec = {
        "foolbox": f"foolbox:steps=5,attack={'LInfFMNAttack' if norm == 'linf' else 'L2FMNAttack'}",
        "autoattack": f"autoattack:parts=apgd-ce,norm={norm}",
    }.get(name, f"{name}:norm={norm}")
    sizes = [0.02, 0.3]
    try:
        for size, found in zip(sizes, swept(spec, model, images, labels, sizes), strict=True):
            change = (found - images).flatten(1)
            length = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
            assert (length <= size * (1 + 1e-5) + 1e-6).all()
            assert found.amin() >= 0 and found.amax() <= 1
            assert found.shape == images.shape and not found.requires_grad
        assert ([m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]) == flags
        assert all(p.grad is None for p in model.parameters())
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
        assert torch.equal(torch.get_rng_state(), generator)
        assert torch.equal(images, before)
    finally:
        model.eval().requires_grad_(True)


def test_fgsm_is_its_formula() -> None:
    model, images, labels = batch()
    pixels = images.clone().requires_grad_(True)
    cross_entropy(model.eval()(pixels), labels).backward()  # the mean, as in the tutorial
    assert pixels.grad is not None
    model.zero_grad()
    for size, found in zip([0.01, 0.1, 1.0], swept("fgsm", model, images, labels, [0.01, 0.1, 1.0]), strict=True):
        assert torch.equal(found, (images + size * pixels.grad.sign()).clamp(0, 1))


def test_fgsm_with_a_random_start_is_fast_adversarial_training() -> None:
    """Wong et al. 2020, algorithm 3, from the same start."""
    model, images, labels = batch()
    eps = 8 / 255
    (found,) = swept("fgsm:random_start=true", model, images, labels, [eps])
    delta = (2 * draws(len(images)).uniform((3, 16, 16)) - 1) * eps
    start = (images + delta).clamp(0, 1).requires_grad_(True)
    with frozen(model):
        (gradient,) = torch.autograd.grad(cross_entropy(model(start), labels), start)
    delta = (start.detach() - images + 1.25 * eps * gradient.sign()).clamp(-eps, eps)
    torch.testing.assert_close(found, (images + delta).clamp(0, 1))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_is_its_loop(norm: str) -> None:
    model, images, labels = batch(8)
    eps, steps, size = 0.1, 4, 0.04
    (found,) = swept(f"pgd:norm={norm},steps=4,step_size=0.04,random_start=no", model, images, labels, [eps])
    at = images.clone()
    with frozen(model):
        for _ in range(steps):
            for i in range(len(at)):  # one image at a time: the gradient must not depend on its neighbours
                one = at[i : i + 1].clone().requires_grad_(True)
                (g,) = torch.autograd.grad(cross_entropy(model(one), labels[i : i + 1]), one)
                change = one.detach() + size * (g.sign() if norm == "linf" else g / g.norm()) - images[i]
                if norm == "linf":
                    change = change.clamp(-eps, eps)
                elif change.norm() > eps:
                    change = change * eps / change.norm()
                at[i] = (images[i] + change).clamp(0, 1)[0]
    if norm == "linf":
        assert (found - at).abs().gt(1e-6).float().mean() < 0.01  # signs of gradients that are nearly zero
    else:
        torch.testing.assert_close(found, at, atol=1e-5, rtol=0)


def test_fgsm_takes_one_gradient_for_all_sizes() -> None:
    model, images, labels = batch()
    with counted(model) as seen:
        assert len(swept("fgsm", model, images, labels, [0.01, 0.02, 0.03, 0.04, 0.05, 0.06])) == 6
    assert seen == {"forward": len(images), "backward": len(images)}


def test_stronger_attacks_are_stronger() -> None:
    model, images, labels = batch(300)
    found = {spec: right(model, *(swept(spec, model, images, labels, [0.1])[0], labels)) for spec in OWN}
    again = right(model, swept("pgd:steps=3,restarts=3", model, images, labels, [0.1])[0], labels)
    assert again <= found["pgd:steps=3"] < found["noise"]
    assert (
        right(model, swept("pgd:steps=20", model, images, labels, [0.1])[0], labels) <= found["fgsm"] < found["noise"]
    )


def test_restarts_attack_only_what_stands_and_never_undo() -> None:
    model, images, labels = batch(100)
    (once,) = swept("pgd:steps=2", model, images, labels, [0.15])
    with counted(model) as seen:
        (thrice,) = swept("pgd:steps=2,restarts=3", model, images, labels, [0.15])
    fooled = model(once).argmax(1) != labels
    assert torch.equal(once[fooled], thrice[fooled])
    assert ((model(thrice).argmax(1) != labels) >= fooled).all()
    assert fooled.any() and seen["backward"] <= 2 * (100 + 2 * int((~fooled).sum()))


@pytest.mark.parametrize("spec", OWN)
def test_what_an_image_gets_does_not_depend_on_its_batch(spec: str) -> None:
    model, images, labels = batch(20)
    (whole,) = swept(spec, model, images, labels, [0.1])
    attack, pick = ATTACKS.build(spec), torch.tensor([17, 3, 8])
    with frozen(model):
        (part,) = attack.sweep(model, images[pick], labels[pick], eps=[0.1], draws=AttackDraws(seed=0, index_N=pick))
    assert (part.images_NCHW - whole[pick]).abs().gt(1e-6).float().mean() < 0.01
    if spec != "fgsm":
        assert not torch.equal(whole, swept(spec, model, images, labels, [0.1], seed=1)[0])


def test_gradient_is_of_the_sum_and_in_full_precision() -> None:
    model, images, labels = batch()
    with frozen(model):
        together = input_gradient(model, images, labels)
        alone = torch.cat([input_gradient(model, x[None], y[None]) for x, y in zip(images, labels, strict=True)])
    torch.testing.assert_close(together, alone)
    half, pixels = deepcopy(model).half(), images.half().requires_grad_(True)
    with frozen(half):
        of_sum = input_gradient(half, images.half(), labels)
        (of_mean,) = torch.autograd.grad(cross_entropy(half(pixels), labels), pixels)
    lost_by_sum, lost_by_mean = ((g == 0).float().mean() for g in (of_sum, of_mean))
    assert 2 * lost_by_sum < lost_by_mean  # what a mean in half precision costs


def test_gradient_takes_inference_tensors() -> None:
    model, images, labels = batch(2)
    with torch.inference_mode():
        loaded = images + 0
    with frozen(model):
        assert torch.equal(input_gradient(model, loaded, labels), input_gradient(model, images, labels))


def test_blind_images_are_found() -> None:
    gradient = torch.ones(4, 3, 2, 2)
    gradient[1], gradient[2, 0, 0, 0], gradient[3, 0] = 0, torch.nan, 0
    assert blind(gradient).tolist() == [False, True, True, False]
    model, images, labels = batch()
    model.net[9].by.fill_(1e4)  # saturated: the softmax is exactly one-hot
    try:
        with frozen(model):
            (made,) = ATTACKS.build("pgd:steps=2,random_start=no").sweep(
                model, images, labels, eps=[0.1], draws=draws(len(images))
            )
        assert made.blind_N is not None and made.blind_N.float().mean() > 0.5
        assert torch.equal(made.images_NCHW[made.blind_N], images[made.blind_N])
    finally:
        model.net[9].by.fill_(1.0)


def test_a_gradient_that_is_not_finite_moves_nothing() -> None:
    class Nan(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x.flatten(1).sum(1) * torch.nan, x.flatten(1).sum(1)], 1)

    images = torch.rand(3, 3, 4, 4)
    for norm in ("linf", "l2"):
        (made,) = ATTACKS.build(f"fgsm:norm={norm}").sweep(
            Nan(), images, torch.zeros(3, dtype=torch.int64), eps=[0.1], draws=draws(3)
        )
        assert torch.equal(made.images_NCHW, images) and made.blind_N is not None and made.blind_N.all()


def test_l2_follows_even_the_faintest_gradient() -> None:
    class Faint(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x.flatten(1).sum(1) * 1e-30, 0 * x.flatten(1).sum(1)], 1)

    images = torch.full((2, 3, 4, 4), 0.5)
    (made,) = ATTACKS.build("fgsm:norm=l2").sweep(
        Faint(), images, torch.zeros(2, dtype=torch.int64), eps=[0.4], draws=draws(2)
    )
    torch.testing.assert_close((made.images_NCHW - images).flatten(1).norm(dim=1), torch.full((2,), 0.4))


@given(st.integers(0, 2**62), st.integers(0, 2**40), st.integers(0, 7))
def test_draws_depend_on_seed_index_and_stream_only(seed: int, index: int, stream: int) -> None:
    one = AttackDraws(seed=seed, index_N=torch.tensor([index])).uniform((5,), stream)
    many = AttackDraws(seed=seed, index_N=torch.tensor([index + 2, index, index + 1])).uniform((5,), stream)
    assert torch.equal(one[0], many[1]) and not torch.equal(many[0], many[1]) and not torch.equal(many[2], many[1])
    assert not torch.equal(one, AttackDraws(seed=seed + 1, index_N=torch.tensor([index])).uniform((5,), stream))
    assert not torch.equal(one, AttackDraws(seed=seed, index_N=torch.tensor([index])).uniform((5,), stream + 1))
    assert ((one >= 0) & (one < 1)).all()


def test_draws_are_evenly_and_independently_spread() -> None:
    u = draws(300).uniform((3, 16, 16)).double().flatten(1)
    n = u.numel()
    for power in (1, 2, 3, 4):
        assert abs(float((u**power).mean()) - 1 / (power + 1)) < 4 / math.sqrt(n)
    counts = torch.histc(u, bins=64, min=0, max=1)
    assert float(((counts - n / 64) ** 2 / (n / 64)).sum()) < 63 + 5 * math.sqrt(2 * 63)
    for other in (
        u.roll(1, 0),
        u.roll(1, 1),
        u.roll(16, 1),
        draws(300, seed=1).uniform((3, 16, 16)).double().flatten(1),
    ):
        assert abs(float(((u - 0.5) * (other - 0.5)).mean() * 12)) < 4.5 / math.sqrt(n)
    gauss = draws(300).normal((3, 16, 16)).double()
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        assert abs(float((gauss**power).mean()) - moment) < 4 * math.sqrt(100 / n)


@pytest.mark.parametrize("spec", ["fgsm:eps=8/255", "pgd:eps=8/255,steps=2", "pgd:eps=0.5,norm=l2,steps=2"])
def test_adversary_for_training(spec: str) -> None:
    _, images, labels = batch(16)
    torch.manual_seed(0)
    model = net(10).train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    generator = torch.get_rng_state()
    made = adversary(spec, seed=3)
    first = made.perturb(model, images, labels, step=7)
    assert torch.equal(first, adversary(spec, seed=3).perturb(model, images, labels, step=7))
    for other in (
        made.perturb(model, images, labels, step=8),
        made.perturb(model, images, labels, step=7, places_N=torch.arange(16) + 16),
        adversary(spec, seed=4).perturb(model, images, labels, step=7),
    ):
        assert not torch.equal(first, other)
    for rank in range(3):  # an image's start is its own, whoever has it
        share = torch.arange(rank, 16, 3)
        part = made.perturb(model, images[share], labels[share], step=7, places_N=share)
        torch.testing.assert_close(part, first[share], rtol=0, atol=1e-6)
    assert not first.requires_grad and model.training and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and torch.equal(torch.get_rng_state(), generator)
    eps = made.attack.eps
    change = (first - images).flatten(1)
    assert (change.abs().amax() if "l2" not in spec else change.norm(dim=1).amax()) <= eps + 1e-6


def test_adversary_under_autocast_leaves_the_training_step_alone() -> None:
    """Autocast keeps cast copies of weights; the attack must not leave stale ones behind."""
    _, images, labels = batch(16)
    torch.manual_seed(0)
    model = net(10).train()
    model[6] = nn.Identity()  # dropout would draw
    made = adversary("pgd:eps=8/255,steps=2")

    def gradients(*, attacked: bool) -> list[Tensor]:
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if attacked:
                made.perturb(model, images, labels, step=0)
            loss = cross_entropy(model(images).float(), labels)
        loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain, beside = gradients(attacked=False), gradients(attacked=True)
    assert len(plain) == len(beside) > 0
    assert all(torch.equal(a, b) for a, b in zip(plain, beside, strict=True))


def test_training_starts_at_random_and_measuring_does_not() -> None:
    assert adversary("fgsm").attack.random_start is True  # type: ignore[attr-defined]
    assert adversary("fgsm:random_start=no").attack.random_start is False  # type: ignore[attr-defined]
    assert ATTACKS.build("fgsm").random_start is None  # type: ignore[attr-defined]
    _, images, labels = batch(4)
    assert torch.equal(adversary("fgsm:eps=0").perturb(trained(), images, labels, step=0), images)


@pytest.mark.parametrize(
    ("text", "norm", "sizes"),
    [
        ("0,0.01,0.05", "linf", [0, 0.01, 0.05]),
        ("0.05, 0.01 ,0.01,0", "linf", [0, 0.01, 0.05]),
        ("8/255", "linf", [8 / 255]),
        ("0:0.1:0.01", "linf", [0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1]),
        ("0:8/255:2/255,1", "linf", [0, 2 / 255, 4 / 255, 6 / 255, 8 / 255, 1]),
        ("0:0.1:0.03", "linf", [0, 0.03, 0.06, 0.09]),
        ("0,2.5", "l2", [0, 2.5]),
        ("1e-3", "linf", [0.001]),
    ],
)
def test_sizes(text: str, norm: str, sizes: list[float]) -> None:
    assert [size.eps for size in parse_sizes(text, norm)] == sizes


def test_sizes_are_shown_as_they_were_written() -> None:
    assert [s.label for s in parse_sizes("0:8/255:4/255,0.05,1/3", "linf")] == ["0", "4/255", "8/255", "0.05", "85/255"]


@given(st.integers(1, 400), st.integers(0, 50))
def test_ranges_end_where_they_say(count: int, first: int) -> None:
    sizes = parse_sizes(f"0.{first:03}:0.{first + count:03}:0.001", "linf")
    assert [s.eps for s in sizes] == [float(f"0.{first + k:03}") for k in range(count + 1)]


@pytest.mark.parametrize(
    ("text", "norm", "says"),
    [
        ("1.5", "linf", r"--eps '1.5': eps=1.5 is outside \[0, 1\]"),
        ("0,8", "linf", r"8/255\?"),
        ("-0.1", "linf", r"outside \[0, 1\]"),
        ("-1", "l2", "eps=-1 is no length"),
        ("x", "linf", "'x' is no size; 0.01, 8/255"),
        ("nan", "linf", "no size"),
        ("1/0", "linf", "no size"),
        ("", "linf", "names no size"),
        ("0:0.1", "linf", "no range; start:end:step"),
        ("0:0.1:0", "linf", "no range"),
        ("0.2:0.1:0.01", "linf", "no range"),
        ("0:1:1e-9", "linf", "at most 1000"),
    ],
)
def test_sizes_that_mean_nothing(text: str, norm: str, says: str) -> None:
    with pytest.raises(BadOption, match=says):
        parse_sizes(text, norm)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("fgsm:eps=2", "outside"),
        ("fgsm:norm=l1", "norm='l1' is not known; there are: linf, l2"),
        ("fgsm:step_size=0", "step_size=0 is no step"),
        ("pgd:steps=0", "steps=0 is too few"),
        ("pgd:restarts=0", "restarts=0 is too few"),
        ("pgd:restarts=2,random_start=no", "would repeat one start"),
        ("pgd:step_size=-1", "step_size=-1 is no step"),
        ("noise:eps=-1", "outside"),
        ("autoattack:version=huge", "unknown version 'huge'; there are: plus, rand, standard"),
        ("autoattack:parts=apgd-ce+nix", "unknown part 'nix'"),
        ("autoattack:parts=fab,version=plus", "both choose"),
        ("foolbox:steps=0", "steps=0 is too few"),
    ],
)
def test_attacks_that_mean_nothing(spec: str, says: str) -> None:
    with pytest.raises(BadOption, match=says):
        ATTACKS.build(spec)


def test_flags_take_the_place_of_options() -> None:
    made = with_options(ATTACKS.build("pgd:steps=5,restarts=2"), steps=7, norm=None, step_size=0.1, restarts=None)
    assert ATTACKS.spec(made) == "pgd:steps=7,step_size=0.1,restarts=2"
    with pytest.raises(BadOption, match="--restarts, --steps: attack fgsm has no such option; it has: eps, norm"):
        with_options(ATTACKS.build("fgsm"), steps=3, restarts=1)
    with pytest.raises(BadOption, match="steps=0"):
        with_options(ATTACKS.build("pgd"), steps=0)
