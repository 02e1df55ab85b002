"""Recipes: complete sets of default hyperparameters, the paper's set-ups (sections 3 and 7.2) and two small ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from starfire_cli.errors import unknown


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A full set of training hyperparameters; every one can be overridden by the option of the same name.

    Args:
        about: one line for people.
        eras: default era FIRST:LAST in epochs by method name; "" holds for the methods not named.
        lr_drops: the epochs after which the learning rate falls to a tenth (schedule "step").
    """

    about: str
    model: str
    data: str
    epochs: int
    batch_size: int
    optimizer: str
    lr: float
    eras: Mapping[str, str]
    schedule: str = "step"
    lr_drops: tuple[float, ...] = ()
    warmup: float = 0.0
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    label_smoothing: float = 0.0
    image_size: int | None = None
    augment: str = "auto"
    max_nonzero: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))


_IMAGENET = Recipe(
    about="ResNet50 v1.5 on ImageNet (appendix 7.2.3)",
    model="resnet50",
    data="imagenet",
    epochs=100,
    batch_size=64,
    optimizer="sgd",
    lr=0.05,
    lr_drops=(30, 60, 90),
    eras={"window": "30:50", "": "40:60"},
    image_size=224,
)

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "digits": Recipe(
            about="ResNet-20 on the handwritten digits that ship inside scikit-learn: about 20 s on two cores",
            model="resnet20",
            data="digits",
            epochs=15,
            batch_size=64,
            optimizer="sgd",
            lr=0.1,
            schedule="cosine",
            warmup=1,
            nesterov=True,
            weight_decay=5e-4,
            eras={"": "3:9"},
            image_size=16,
        ),
        "cifar10": Recipe(
            about="ResNet-20 on CIFAR-10, a short modern schedule",
            model="resnet20",
            data="cifar10",
            epochs=40,
            batch_size=128,
            optimizer="sgd",
            lr=0.2,
            schedule="cosine",
            warmup=2,
            nesterov=True,
            weight_decay=5e-4,
            eras={"": "8:20"},
            image_size=32,
        ),
        "tiny-imagenet": Recipe(
            about="ResNet50 v1 on Tiny-ImageNet (appendix 7.2.1)",
            model="resnet50-v1",
            data="tiny-imagenet",
            epochs=40,
            batch_size=64,
            optimizer="adam",
            lr=1e-3,
            lr_drops=(30,),
            eras={"": "0:10"},
            image_size=224,
            max_nonzero={"window": 2},
        ),
        "imagenet-v1": replace(
            _IMAGENET,
            about="ResNet50 v1 on ImageNet (appendix 7.2.2)",
            model="resnet50-v1",
            epochs=90,
            batch_size=128,
            lr=0.1,
            lr_drops=(30, 60),
            eras={"window": "0:30", "": "40:60"},
        ),
        "imagenet-v1.5": _IMAGENET,
    }
)

# The recipe that goes with a data set when none is named; any other folder of images takes the last.
_BY_DATA = {
    "digits": "digits",
    "cifar10": "cifar10",
    "cifar100": "cifar10",
    "fashion-mnist": "cifar10",
    "mnist": "cifar10",
    "tiny-imagenet": "tiny-imagenet",
    "imagenet": "imagenet-v1.5",
}


def recipe_for(name: str | None, data: str, image_size: int | None = None) -> tuple[str, Recipe]:
    """The recipe called `name`, or the one that suits the data set; small images suit CIFAR's. Raises BadOption."""
    if name is None:
        small = image_size is not None and image_size <= 96
        name = _BY_DATA.get(data, "cifar10" if small else "imagenet-v1.5")
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return name, RECIPES[name]
