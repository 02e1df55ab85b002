"""Every value is checked before anything is done with it: all options of all commands."""

from __future__ import annotations

import math
import sys
from typing import Any, get_args, get_type_hints

import pytest
import torch
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from starfire_cli.attacks._sizes import parse_sizes
from starfire_cli.cli import build_app, commands, explain
from starfire_cli.errors import BadOption
from starfire_cli.numbers import parse_input, parse_number, parse_whole
from starfire_cli.pruning import CONV_METHODS
from starfire_cli.runtime import pick_device
from starfire_cli.workflows.train.request import TrainRequest
from starfire_cli.workflows.train.settings import fill

ROOT: Any = typer.main.get_command(build_app())  # once: it takes a while


def every_option() -> list[tuple[tuple[str, ...], str, type]]:
    """(command with what it needs, option or "" for an argument, type of its value) of all commands."""
    found: list[tuple[tuple[str, ...], str, type]] = []
    for name, function in commands().items():
        words = name.split()
        command = ROOT.commands[words[0]]
        command = command.commands[words[1]] if len(words) > 1 else command
        hints = get_type_hints(function)
        needed = [p.name for p in command.params if p.param_type_name == "argument" and p.required]
        for param in command.params:
            kinds = get_args(hints[param.name]) or (hints[param.name],)
            kind = next(k for k in (bool, int, float, object) if k in kinds or k is object)
            if param.param_type_name == "argument":
                before = needed.index(param.name) if param.name in needed else 0
                found.append(((*words, *["x"] * before), "", kind))
            elif not param.is_flag:
                found.append(((*words, *["x"] * len(needed)), param.opts[0], kind))
    return found


OPTIONS = every_option()
FLOATS = [(words, option) for words, option, kind in OPTIONS if kind is float]
WHOLES = [(words, option) for words, option, kind in OPTIONS if kind is int]


def refused(*words: str) -> str:
    """The one line that a command answers with exit code 2, before it does anything."""
    with pytest.raises((BadOption, typer.TyperException)) as caught:
        ROOT.main(args=list(words), prog_name="starfire", standalone_mode=False)
    text, code = explain(caught.value)
    assert code == 2 and "\n" not in text
    return text


def test_the_options_are_found() -> None:
    assert len(OPTIONS) > 120 and len(FLOATS) > 10 and len(WHOLES) > 25
    assert len({words[0] for words, _, _ in OPTIONS}) == 10


@pytest.mark.parametrize("text", ["", " "])
def test_an_empty_value_is_never_a_default(text: str) -> None:
    for words, option, _ in OPTIONS:
        err = refused(*words, *([option] if option else []), text)
        assert f"{text!r} is empty" in err and option in err, (words, option)


@pytest.mark.parametrize("text", ["nan", "-inf", "1e39"])
def test_no_float_that_cannot_be_computed_with(text: str) -> None:
    for words, option in FLOATS:
        err = refused(*words, f"{option}={text}")
        assert option in err and (f"{float(text):g}" in err or text in err), (words, option)


@pytest.mark.parametrize("text", [str(2**63), "1e9", "nan", "9" * 5000])
def test_no_whole_number_that_torch_cannot_hold(text: str) -> None:
    for words, option in WHOLES:
        assert option in refused(*words, f"{option}={text}"), (words, option)


@pytest.mark.parametrize(("option", "text"), [("--workers", "100000"), ("--image-size", "1000000000")])
def test_what_would_take_the_whole_machine(option: str, text: str) -> None:
    commands = [words for words, other, _ in OPTIONS if other == option]
    assert len(commands) > 2
    for words in commands:
        assert f"{option} {text} is out of range" in refused(*words, f"{option}={text}")


@pytest.mark.parametrize(
    "words",
    [
        ("train", "--lr-drops", "3,,4"),
        ("train", "--lr-drops", "3,4,"),
        ("train", "--lr-drops", ","),
        ("train", "--lr-drops", "3,nan"),
        ("train", "--lr-drops", "3;4"),
        ("train", "--betas", "0.9,nan"),
        ("train", "--betas", "0.9,0.9,"),
        ("train", "--betas", "0.9"),
        ("prune-mask", "x", "--sweep", "0.1,,0.2"),
        ("prune-mask", "x", "--sweep", "0:inf:0.1"),
        ("prune-mask", "x", "--sweep", "0:1:1e-30"),
        ("plot", "--table", "1", "--at", "1,,2"),
        ("plot", "--table", "1", "--at", "99999999999999999999"),
        ("bench", "x", "-b", "1,"),
        ("bench", "x", "-b", "9" * 5000),
        ("bench", "x", "--input", "3x²x²"),
        ("attack", "x", "--step-size", "nan"),
        ("attack", "x", "--std", "1e-300"),
        ("attack", "x", "--mean", "nan"),
    ],
    ids=lambda words: " ".join(words)[:40],
)
def test_lists_are_read_to_the_end(words: tuple[str, ...]) -> None:
    assert repr(words[-1]) in refused(*words)


@pytest.mark.parametrize("text", ["0,,0.1", "0.1,", "1e-999999999", "1e999999999", "9" * 5000, "0:1:1e-300", "0/0"])
def test_sizes_of_a_perturbation_take_no_time(text: str) -> None:
    with pytest.raises(BadOption, match=r"--eps '"):
        parse_sizes(text, "l2")


@pytest.mark.parametrize("text", ["3x0x0", "3x²x²", "3x" + "9" * 5000 + "x2", "3x4", "x", "3x-1x-1", "3x16x17"])
def test_an_image_that_is_none(text: str) -> None:
    with pytest.raises(BadOption, match=r"--input '"):
        parse_input(text)


@pytest.mark.parametrize("spec", ["window:max_nonzero=99999999999999999999", "ck:p=1e1", "window:max_nonzero=nan"])
def test_options_of_a_spec(spec: str) -> None:
    with pytest.raises(BadOption, match=r"pruning method '"):
        CONV_METHODS.build(spec)


@pytest.mark.parametrize("name", ["meta", "hpu", "xla", "vulkan", "privateuseone", "", "cpu:x", "gpu"])
def test_a_device_that_computes_nothing(name: str) -> None:
    with pytest.raises(BadOption, match=f"--device '{name}' .*cpu"):
        pick_device(name)
    assert pick_device("cpu") == torch.device("cpu")


FIELDS = ["lr", "min_lr", "weight_decay", "norm_weight_decay", "clip_grad", "momentum", "ema", "warmup", "target"]


@pytest.mark.parametrize("field", [*FIELDS, "label_smoothing", "val_fraction", "lr_drop_factor"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_requests_from_python_are_checked_alike(field: str, value: float) -> None:
    with pytest.raises(BadOption, match=f"--{field.replace('_', '-')} "):
        fill(TrainRequest(**{field: value}), "digits", None)  # type: ignore[arg-type]


@settings(max_examples=10)
@given(st.floats(), st.floats())
def test_numbers_and_fractions(above: float, below: float) -> None:
    for text, value in ((repr(above), above), (f"{above!r}/{below!r}", above / below if below else math.nan)):
        if abs(value) <= 3.4e38:
            assert parse_number(text) == value
        else:
            with pytest.raises(ValueError, match="is not a number"):
                parse_number(text)


@given(st.integers(-(2**70), 2**70))
def test_whole_numbers(value: int) -> None:
    if abs(value) <= sys.maxsize:
        assert parse_whole(f" {value} ") == value
    else:
        with pytest.raises(ValueError, match="whole number"):
            parse_whole(str(value))
