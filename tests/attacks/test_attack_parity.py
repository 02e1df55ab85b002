"""Parity of FGSM and PGD with two public attack libraries: the same pixels, and so the same verdict, image by image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from starfire_cli.attacks import ATTACKS
from starfire_cli.attacks._draws import AttackDraws
from starfire_cli.attacks._gradient import frozen
from starfire_cli.models import Normalized, build_model
from tests.helpers.attack_toy import trained, val

SIZES = [0.004, 8 / 255, 0.3]


def needed(name: str) -> Any:
    # torchattacks pins an old `requests`; pip install --no-deps torchattacks
    return pytest.importorskip(name, reason=f"compares with {name}, which is not installed")


def subject(name: str, count: int = 8) -> tuple[nn.Module, Tensor, Tensor]:
    """A trained network with all digits, or a ResNet-20 with statistics of its own and `count` images of noise."""
    if name == "digits":
        return (trained(), *val())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Normalized(build_model("resnet20", num_classes=10), (0.5, 0.4, 0.3), (0.25, 0.2, 0.3))
        images = torch.rand(count, 3, 32, 32)
        model.train()(images)
        return model.eval(), images, model(images).argmax(1).roll(1)


def ours(spec: str, model: nn.Module, images: Tensor, labels: Tensor) -> list[Tensor]:
    made = ATTACKS.build(spec).sweep(
        model, images, labels, eps=SIZES, draws=AttackDraws(seed=0, index_N=torch.arange(len(images)))
    )
    return [each.images_NCHW for each in made]


@pytest.mark.parametrize("name", ["digits", "resnet20"])
@pytest.mark.parametrize(
    ("spec", "theirs"),
    [
        ("fgsm", lambda t, m, e: t.FGSM(m, eps=e)),
        (f"pgd:steps=4,step_size={2 / 255},random_start=no", lambda t, m, e: t.PGD(m, e, 2 / 255, 4, False)),
        ("pgd:steps=4,step_size=0.05,random_start=no,norm=l2", lambda t, m, e: t.PGDL2(m, e, 0.05, 4, False, 1e-30)),
    ],
)
def test_torchattacks(name: str, spec: str, theirs: Any) -> None:
    library = needed("torchattacks")
    model, images, labels = subject(name, 8 if spec == "fgsm" else 3)
    with frozen(model):
        found = ours(spec, model, images, labels)
        for eps, mine in zip(SIZES, found, strict=True):
            same_pixels(spec, model, mine, theirs(library, model, eps)(images, labels), labels)


@pytest.mark.parametrize("name", ["digits", "resnet20"])
@pytest.mark.parametrize(
    ("spec", "theirs"),
    [
        ("fgsm", lambda a: a.LinfFastGradientAttack()),
        ("fgsm:norm=l2", lambda a: a.L2FastGradientAttack()),
        (
            f"pgd:steps=4,step_size={2 / 255},random_start=no",
            lambda a: a.LinfPGD(abs_stepsize=2 / 255, steps=4, random_start=False),
        ),
        (
            "pgd:steps=4,step_size=0.05,random_start=no,norm=l2",
            lambda a: a.L2PGD(abs_stepsize=0.05, steps=4, random_start=False),
        ),
    ],
)
def test_foolbox(name: str, spec: str, theirs: Any) -> None:
    library = needed("foolbox")
    model, images, labels = subject(name, 8 if spec == "fgsm" else 3)
    with frozen(model):
        found = ours(spec, model, images, labels)
        wrapped = library.PyTorchModel(model, bounds=(0, 1), device="cpu")
        _, clipped, _ = theirs(library.attacks)(wrapped, images, labels, epsilons=SIZES)
        for mine, other in zip(found, clipped, strict=True):
            same_pixels(spec, model, mine, other, labels)


def same_pixels(spec: str, model: nn.Module, mine: Tensor, theirs: Tensor, labels: Tensor) -> None:
    if "l2" in spec:
        # They divide in another order; where a step ends at a kink of the network, the last bit grows.
        apart = (mine - theirs).abs().flatten(1).amax(1)
        assert apart.median() < 2e-6 and apart.amax() < 1e-3
    else:
        assert torch.equal(mine, theirs)
    with torch.no_grad():
        assert torch.equal(model(mine).argmax(1) == labels, model(theirs).argmax(1) == labels)


def test_foolbox_as_a_member_is_the_library() -> None:
    library = needed("foolbox")
    model, images, labels = subject("digits")
    images, labels = images[:16], labels[:16]
    with frozen(model):
        made = ATTACKS.build("foolbox:attack=LinfDeepFoolAttack,steps=5").sweep(
            model, images, labels, eps=[0.05, 0.2], draws=AttackDraws(seed=5, index_N=torch.arange(16))
        )
        wrapped = library.PyTorchModel(model, bounds=(0, 1), device="cpu")
        _, theirs, _ = library.attacks.LinfDeepFoolAttack(steps=5)(wrapped, images, labels, epsilons=[0.05, 0.2])
        assert all(torch.equal(mine.images_NCHW, other) for mine, other in zip(made, theirs, strict=True))


@pytest.mark.parametrize(
    ("norm", "eps", "parts"),
    [
        ("linf", 0.1, "apgd-ce"),
        pytest.param("linf", 0.05, None, marks=pytest.mark.slow),
        pytest.param("l2", 1.0, "apgd-ce+apgd-t", marks=pytest.mark.slow),
    ],
)
def test_autoattack_as_a_member_is_the_library(norm: str, eps: float, parts: str | None) -> None:
    library = needed("pyautoattack")
    model, images, labels = subject("digits")
    images, labels, state = images[:12], labels[:12], torch.get_rng_state()
    spec = f"autoattack:norm={norm}" + (f",parts={parts}" if parts else "")
    with frozen(model):
        (mine,) = ATTACKS.build(spec).sweep(
            model, images, labels, eps=[eps], draws=AttackDraws(seed=5, index_N=torch.arange(12))
        )
        named = {"linf": "Linf", "l2": "L2"}[norm]
        other = library.AutoAttack(model, norm=named, eps=eps, seed=5, version="standard")
        if parts:
            other.attacks_to_run = parts.split("+")
        found, _ = other.run_standard_evaluation(images, labels, batch_size=12)
    torch.set_rng_state(state)
    assert torch.equal(mine.images_NCHW, found) and not torch.equal(found, images)
