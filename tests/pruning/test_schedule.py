from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starfire_cli.errors import BadOption
from starfire_cli.pruning.schedule import RAMPS, Era, parse_era

eras = st.builds(
    lambda first, length, ramp, every: Era(first_step=first, last_step=first + length, ramp=ramp, mask_every=every),
    st.integers(0, 50),
    st.integers(0, 60),
    st.sampled_from(sorted(RAMPS)),
    st.integers(1, 70),
)


@given(era=eras)
def test_progress_rises_from_nothing_to_everything(era: Era) -> None:
    along = [era.progress(step) for step in range(era.last_step + 20)]
    assert along == sorted(along)
    assert all(0 <= p <= 1 for p in along)
    if era.first_step < era.last_step:
        assert all(p == 0 for p in along[: era.first_step + 1])
    assert all(p == 1 for p in along[era.last_step :])
    assert all(p < 1 for p in along[: era.last_step])


@given(era=eras)
def test_masks_are_evaluated_in_the_era_and_always_at_its_last_step(era: Era) -> None:
    at = [step for step in range(1, era.last_step + 20) if era.evaluates_at(step)]
    if era.last_step:
        assert at[-1] == era.last_step
        assert all(step > era.first_step for step in at[:-1])
        assert all(b - a <= era.mask_every for a, b in pairwise(at))
    if era.mask_every == 1:
        assert at == list(range(max(1, era.first_step + 1), era.last_step + 1)) or era.first_step == era.last_step


@pytest.mark.parametrize(
    ("ramp", "quarter", "half", "three_quarters"),
    [
        ("linear", 0.25, 0.5, 0.75),
        # Zhu and Gupta (2017), equation 1: s_f + (s_i - s_f) (1 - x)^3
        ("cubic", 1 - 27 / 64, 1 - 1 / 8, 1 - 1 / 64),
        ("cosine", (1 - math.sqrt(0.5)) / 2, 0.5, (1 + math.sqrt(0.5)) / 2),
    ],
)
def test_ramps_by_hand(ramp: str, quarter: float, half: float, three_quarters: float) -> None:
    era = Era(first_step=100, last_step=500, ramp=ramp)
    assert [era.progress(s) for s in (200, 300, 400)] == pytest.approx([quarter, half, three_quarters])


@pytest.mark.parametrize(
    ("text", "epochs", "steps", "expected"),
    [("0:10", 40, 1563, (0, 15630)), ("2.5:7", 15, 12, (30, 84)), ("0:0.5", 1, 3, (0, 2)), ("1:2", 2, 1, (1, 2))],
)
def test_an_era_in_epochs(text: str, epochs: int, steps: int, expected: tuple[int, int]) -> None:
    assert parse_era(text, epochs, steps) == expected


@pytest.mark.parametrize(
    "text", ["", "3", "3:", "a:b", "1:2:3", "5:3", "3:3", "-1:3", "0:41", "nan:3", "0:inf", "0:0.0001"]
)
def test_an_era_that_makes_no_sense_is_quoted(text: str) -> None:
    with pytest.raises(BadOption) as error:
        parse_era(text, 40, 100)
    assert repr(text) in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(BadOption, match="cubic"):
        Era(first_step=0, last_step=1, ramp="cubik")
    with pytest.raises(BadOption, match="backwards"):
        Era(first_step=5, last_step=4)
    with pytest.raises(BadOption, match="--mask-every 0"):
        Era(first_step=0, last_step=4, mask_every=0)


@given(era=eras, shares=st.lists(st.integers(1, 19), unique=True, max_size=3))
def test_the_clock_doubles_where_it_should(era: Era, shares: list[int]) -> None:
    """Against a loop over steps that counts down to the next evaluation."""
    era = replace(era, doublings=tuple(sorted(share / 20 for share in shares)))
    doubled = [era.first_step + round(share * (era.last_step - era.first_step)) for share in era.doublings]
    wait, every, due = era.mask_every, era.mask_every, set()
    for step in range(era.first_step + 1, era.last_step + 1):
        wait -= 1
        if wait == 0:
            due.add(step)
            wait = every
        for _ in range(doubled.count(step)):
            every *= 2
            wait = every
    if era.first_step not in doubled:  # an era too short for its shares
        assert {step for step in range(era.last_step + 5) if era.on_clock(step)} == due
