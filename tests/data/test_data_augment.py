from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from starfire_cli.data import AUGMENTATIONS
from starfire_cli.data.draws import Draws
from starfire_cli.data.images.resample import by_matrices, centre_crop, crop_resize, resize, scale_short
from starfire_cli.errors import BadOption
from tests.helpers.data_layouts import picture

EVERY = [
    "none",
    "shift:pixels=1",
    "crop-flip",
    "crop-flip:padding=0,cutout=7",
    "rrc-flip",
    "rrc-flip:scale=0.5",
    "affine",
]


def pictures(count: int, height: int, width: int) -> Tensor:
    return torch.stack([torch.from_numpy(np.array(picture(i, height, width))).permute(2, 0, 1) for i in range(count)])


def planned(spec: str, count: int, size: int, out: int, epoch: int = 1) -> dict[str, Tensor]:
    return AUGMENTATIONS.build(spec).plan(Draws(0, epoch, np.arange(count)), size, out)


def test_crop_flip_is_torchvisions_pad_crop_and_mirror() -> None:
    images, plan = pictures(40, 32, 32), planned("crop-flip", 40, 32, 32)
    given = AUGMENTATIONS.build("crop-flip").apply(images, plan, 32)
    for image, result, top, left, flip in zip(
        images, given, *(plan[k].tolist() for k in ("top", "left", "flip")), strict=True
    ):
        expected = tv.crop(tv.pad(image, [4]), top, left, 32, 32)
        assert torch.equal(result, tv.horizontal_flip(expected) if flip else expected)
    assert set(planned("crop-flip", 500, 32, 32)["top"].tolist()) == set(range(9))


def test_shift_never_mirrors() -> None:
    images, plan = pictures(30, 20, 20), planned("shift:pixels=3", 30, 20, 20)
    given = AUGMENTATIONS.build("shift:pixels=3").apply(images, plan, 20)
    for image, result, top, left in zip(images, given, plan["top"].tolist(), plan["left"].tolist(), strict=True):
        assert torch.equal(result, tv.crop(tv.pad(image, [3]), top, left, 20, 20))


def test_cutout_blacks_one_square_and_nothing_else() -> None:
    images = torch.full((50, 3, 16, 16), 200, dtype=torch.uint8)
    spec = "crop-flip:padding=0,flip=0,cutout=5"
    plan = planned(spec, 50, 16, 16)
    given = AUGMENTATIONS.build(spec).apply(images, plan, 16)
    for result, y, x in zip(given, plan["y"].tolist(), plan["x"].tolist(), strict=True):
        expected = torch.full((3, 16, 16), 200, dtype=torch.uint8)
        expected[:, max(0, y - 2) : y + 3, max(0, x - 2) : x + 3] = 0
        assert torch.equal(result, expected)


@pytest.mark.parametrize(("size", "out"), [(64, 64), (96, 16), (32, 48), (20, 224)])
def test_resized_crops_are_torchvisions(size: int, out: int) -> None:
    images, boxes = pictures(40, size, size), planned("rrc-flip", 40, size, out)["boxes"]
    given, by_product = crop_resize(images, boxes, out), by_matrices(images, boxes, out)
    for image, result, (top, left, tall, wide, flip) in zip(images, given, boxes.tolist(), strict=True):
        expected = tv.resized_crop(image, top, left, tall, wide, [out, out], InterpolationMode.BILINEAR, antialias=True)
        assert torch.equal(result, tv.horizontal_flip(expected) if flip else expected)
    assert torch.equal(by_product, given)  # what a GPU runs


@given(st.integers(1, 80), st.integers(1, 80), st.floats(0.05, 1), st.floats(1, 3))
def test_boxes_lie_inside_and_obey_their_limits(height: int, width: int, scale: float, ratio: float) -> None:
    spec = f"rrc-flip:scale={scale},ratio={ratio}"
    heights, widths = np.full(50, height), np.full(50, width)
    boxes = AUGMENTATIONS.build(spec).boxes(Draws(0, 0, np.arange(50)), heights, widths)
    top, left, tall, wide, flip = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (tall > 0).all() and (wide > 0).all()
    assert (top + tall <= height).all() and (left + wide <= width).all() and set(flip.tolist()) <= {0, 1}


def test_boxes_have_the_distribution_of_torchvisions() -> None:
    count, image = 4000, torch.empty(3, 90, 120)
    own = AUGMENTATIONS.build("rrc-flip").boxes(Draws(0, 0, np.arange(count)), np.full(count, 90), np.full(count, 120))
    torch.manual_seed(0)
    scale, ratio = (0.08, 1.0), (3 / 4, 4 / 3)
    peers = np.array([RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(count)])
    for column in range(4):  # Kolmogorov-Smirnov, p = 1e-3
        grid = np.arange(0, 121)
        shares = [np.searchsorted(np.sort(boxes[:, column]), grid, side="right") / count for boxes in (own, peers)]
        assert np.abs(shares[0] - shares[1]).max() < 1.95 * (2 / count) ** 0.5
    assert 0.47 < own[:, 4].mean() < 0.53


def test_a_box_that_never_fits_is_the_centre_of_an_allowed_shape() -> None:
    wide = AUGMENTATIONS.build("rrc-flip:scale=1").boxes(Draws(0, 0, np.arange(9)), np.full(9, 20), np.full(9, 200))
    assert (wide[:, :4] == [0, 86, 20, 27]).all()  # 20 x 4/3, centred, as torchvision falls back to


def test_affine_moves_by_its_matrix() -> None:
    plan = planned("affine:degrees=30,translate=0.2,scale=0.3", 200, 28, 28)
    theta = plan["theta"].double()
    growth = 1 / torch.linalg.det(theta[:, :, :2]).sqrt()
    assert growth.min() > 0.7 and growth.max() < 1.3 and growth.std() > 0.1
    angle = torch.atan2(theta[:, 0, 1], theta[:, 0, 0]).rad2deg()
    assert 25 < angle.abs().max() <= 30.001
    # A point of the result comes from where rotation, growth and shift of torchvision's affine put it.
    image = torch.zeros(1, 3, 41, 41, dtype=torch.uint8)
    image[:, :, 20, 20] = 255
    shifted = {"theta": torch.tensor([[[1.0, 0, -2 * 3 / 41], [0, 1, -2 * -5 / 41]]])}
    moved = AUGMENTATIONS.build("affine").apply(image, shifted, 41)
    assert torch.equal(moved, tv.affine(image, 0, [3, -5], 1.0, [0.0, 0.0]))


@pytest.mark.parametrize("spec", EVERY)
def test_a_batch_is_augmented_image_by_image(spec: str) -> None:
    augment, images = AUGMENTATIONS.build(spec), pictures(12, 24, 24)
    plan = planned(spec, 12, 24, 24)
    together = augment.apply(images, plan, 24)
    assert together.dtype == torch.uint8 and together.shape == (12, 3, 24, 24)
    for i in (0, 5, 11):
        alone = augment.apply(images[i : i + 1], {k: v[i : i + 1] for k, v in plan.items()}, 24)
        assert torch.equal(alone[0], together[i])
    assert spec == "none" or not torch.equal(together, images)


@pytest.mark.parametrize("name", AUGMENTATIONS.names())
def test_every_augmentation_says_what_it_does_with_large_images(name: str) -> None:
    heights, widths = np.array([30, 40, 50]), np.array([60, 40, 35])
    try:
        boxes = AUGMENTATIONS.build(name).boxes(Draws(0, 0, np.arange(3)), heights, widths)
    except BadOption as error:
        assert name == "affine" and "rrc-flip" in str(error)  # noqa: PT017 - the others must not raise
        return
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 0] + boxes[:, 2] <= heights).all()
    assert (boxes[:, 1] + boxes[:, 3] <= widths).all() and (boxes[:, 2:4] > 0).all()


IMPOSSIBLE = """crop-flip:padding=-1 crop-flip:flip=2 crop-flip:ratio=0 rrc-flip:scale=0 rrc-flip:ratio=0.5
rrc-flip:flip=-1 affine:degrees=-1 affine:translate=2 affine:scale=1 none:ratio=2 shift:pixels=0 crop-flip:pad=4
mixup"""


@pytest.mark.parametrize("spec", IMPOSSIBLE.split())
def test_impossible_augmentations_are_refused(spec: str) -> None:
    with pytest.raises(BadOption, match=spec.split(":")[0]):
        AUGMENTATIONS.build(spec)


@pytest.mark.parametrize(("height", "width"), [(31, 47), (47, 31), (40, 40), (20, 90)])
def test_validation_scaling_is_torchvisions(height: int, width: int) -> None:
    image = pictures(1, height, width)[0]
    expected = tv.center_crop(tv.resize(image, [32], antialias=True), [28, 28])
    assert torch.equal(centre_crop(scale_short(image, 32), 28), expected)
    square = pictures(2, 40, 40)
    assert torch.equal(resize(square, 32), tv.resize(square, [32, 32], antialias=True))
