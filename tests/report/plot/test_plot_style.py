"""The colours can be told apart: on white, on a dark page, in the three kinds of colour blindness."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from starfire_cli.pruning.methods import CONV_METHODS, METHODS
from starfire_cli.report.plot import style

DARK = "#15181c"
# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
SEEN_BY = {
    "all": np.eye(3),
    "protanopes": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopes": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopes": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


def linear(colour: str) -> NDArray[np.float64]:
    c = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def contrast(a: str, b: str) -> float:
    """WCAG 2."""
    low, high = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (a, b))
    return (high + 0.05) / (low + 0.05)


def lab(colour: str, seen: NDArray[np.float64]) -> NDArray[np.float64]:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x = to_xyz @ np.clip(seen @ linear(colour), 0, 1) / [0.9505, 1, 1.089]
    f = np.where(x > 0.008856, np.cbrt(x), 7.787 * x + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("people", SEEN_BY)
def test_methods_and_kinds_differ_for_everyone(people: str) -> None:
    seen = SEEN_BY[people]
    kinds = [style.KINDS[kind][0] for kind in ("3x3", "1x1", "downsample", "linear")]
    for colours in (list(style.METHODS.values()), kinds):
        for a, b in combinations(colours, 2):
            assert np.linalg.norm(lab(a, seen) - lab(b, seen)) > 19, (a, b)


def test_all_methods_have_colours_and_markers_of_their_own() -> None:
    pruning = sorted({*CONV_METHODS.names(), *METHODS.taking("network", "channels").names()})
    colours = {name: style.method_colour(name) for name in pruning}
    assert len(pruning) > 25 and {*style.METHODS, *style.OTHERS} >= set(pruning)
    for a, b in combinations(pruning, 2):
        apart = [np.linalg.norm(lab(colours[a], seen) - lab(colours[b], seen)) for seen in SEEN_BY.values()]
        assert apart[0] > 14 and min(apart[1:]) > 6, (a, b)
    known = [*style.METHODS, *style.OTHERS]
    assert len(set(style.MARKERS)) == 20 == len({style.method_marker(name) for name in known[:20]})
    assert len({(style.method_colour(name), style.method_marker(name)) for name in known}) == len(known)


def test_colours_are_legible_on_white_and_on_a_dark_page() -> None:
    for colour in (
        *style.METHODS.values(),
        *style.OTHERS.values(),
        *style.SPARE,
        *(c for c, _ in style.KINDS.values()),
    ):
        if colour != style.INK:  # the page's own, which a dark page replaces
            assert contrast(colour, "#ffffff") >= 3, colour
            assert contrast(colour, DARK) >= 3, colour
    assert contrast(style.MUTED, "#ffffff") >= 4.5  # small text


@given(count=st.integers(2, 12), method=st.sampled_from(sorted(set(style.METHODS) - {"dense"})))
def test_tones_of_a_method_stay_legible_and_go_from_dark_to_light(count: int, method: str) -> None:
    tones = style.shades(style.METHODS[method], count)
    lights = [style.luminance(tone) for tone in tones]
    assert lights == sorted(lights)
    assert lights[0] < lights[-1]
    for tone in tones:
        assert contrast(tone, "#ffffff") >= 2.9
        assert contrast(tone, DARK) >= 2.9


def test_every_method_has_one_colour_however_it_is_written() -> None:
    for name in CONV_METHODS.names():
        texts = (
            name,
            f"{name}:max_nonzero=2",
            f"{name} 0.6",
            f"{name.upper()} 60 %",
            f"{name.title()}, share=0.4 60 %",
        )
        assert len({style.method_colour(text) for text in texts}) == 1


@given(text=st.text(max_size=80), limit=st.integers(5, 60))
def test_any_name_can_be_shown(text: str, limit: int) -> None:
    shown = style.literal_text(text, limit)
    assert "\n" not in shown
    assert len(shown.replace(r"\$", "$")) <= limit
    assert shown.count("$") == shown.count(r"\$")


def test_the_middle_of_a_long_name_is_left_out() -> None:
    assert style.shorten("layer4.2.downsample.0.conv", 12) == "layer4….conv"
    assert style.shorten("short", 12) == "short"
