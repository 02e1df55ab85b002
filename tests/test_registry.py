from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starfire_cli.errors import BadOption
from starfire_cli.pruning import CHANNEL_METHODS, CONV_METHODS, LINEAR_METHODS, METHODS, TRAINING_METHODS
from starfire_cli.pruning.methods.intra import Intra
from starfire_cli.registry import Family, parse_number, parse_value


def test_the_methods_of_the_paper_are_there() -> None:
    assert {"dense", "window", "ck", "intra", "inter"} <= set(CONV_METHODS.names())
    assert {"dense", "fine", "block", "two-tier"} <= set(LINEAR_METHODS.names())


@pytest.mark.parametrize("family", [CONV_METHODS, LINEAR_METHODS], ids=["conv", "linear"])
def test_every_member_can_be_built_and_written_down(family: Family[object]) -> None:
    for name in family.names():
        member = family.build(name)
        assert family.spec(member) == name
        assert family.build(family.spec(member)) == member
        assert member.__dataclass_params__.frozen  # type: ignore[attr-defined]
        assert (type(member).__doc__ or "").strip()
        for field in fields(member):  # type: ignore[arg-type]
            assert f"{field.name}:" in (type(member).__doc__ or ""), f"{name} does not say what {field.name} is"


@pytest.mark.parametrize(
    "text",
    [
        "window:max_nonzero=2",
        "intra:share=0.4",
        "intra:share=0.4,max_nonzero=3",
        "ck:depthwise=true",
        "inter:split=0.25",
    ],
)
def test_a_spec_is_the_text_that_builds_it(text: str) -> None:
    assert CONV_METHODS.spec(CONV_METHODS.build(text)) == text


@given(share=st.floats(0, 1), cap=st.one_of(st.none(), st.integers(1, 9)))
def test_specs_lose_nothing(share: float, cap: int | None) -> None:
    method = Intra(share=share, max_nonzero=cap)
    assert CONV_METHODS.build(CONV_METHODS.spec(method)) == method


@pytest.mark.parametrize(
    ("loose", "strict"),
    [
        (" window : max-nonzero = 2 ", "window:max_nonzero=2"),
        ("window:", "window"),
        ("window:max_nonzero=none", "window"),
        ("intra:share=1/4", "intra:share=0.25"),
        ("intra:share=0.5", "intra"),
        ("ck:depthwise=YES,", "ck:depthwise=true"),
    ],
)
def test_what_else_is_understood(loose: str, strict: str) -> None:
    assert CONV_METHODS.spec(CONV_METHODS.build(loose)) == strict


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("windw", "Did you mean 'window'?"),
        ("", "ck, dense, inter"),
        ("window:size=3", "options: max_nonzero=..."),
        ("ck:3", "'3' is not an option of ck"),
        ("dense:x=1", "options: none"),
        ("window:max_nonzero=two", "'two' is not a whole number"),
        ("window:max_nonzero=2.5", "is not a whole number"),
        ("intra:share=1/0", "is not a number"),
        ("ck:depthwise=maybe", "is not true or false"),
        ("../window", "there are"),
        ("_rules", "there are"),
    ],
)
def test_mistakes_are_quoted_and_answered_in_one_line(text: str, says: str) -> None:
    with pytest.raises(BadOption) as error:
        CONV_METHODS.build(text)
    message = str(error.value)
    assert says in message
    assert text.partition(":")[0] in message
    assert "\n" not in message


def test_a_family_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new file is a new member; those with an underscore are not."""
    family: Family[object] = Family("thing", "starfire_cli.things")
    monkeypatch.setattr("starfire_cli.registry.__file__", str(tmp_path / "registry.py"))
    folder = tmp_path / "things"
    folder.mkdir()
    for name in ("__init__", "_shared", "plain", "two_words"):
        (folder / f"{name}.py").write_text("")
    assert family.names() == ["plain", "two-words"]

    @family.register("plain")
    @dataclass(frozen=True, kw_only=True)
    class Plain:
        n: int = 1

    assert family.spec(Plain(n=2)) == "plain:n=2"


def test_a_part_of_a_family_is_what_its_files_register_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family: Family[object] = Family("thing", "starfire_cli.things")
    monkeypatch.setattr("starfire_cli.registry.__file__", str(tmp_path / "registry.py"))
    folder = tmp_path / "things"
    folder.mkdir()
    (folder / "plain.py").write_text('@THINGS.register("plain")\nclass Plain: ...\n')
    (folder / "wet.py").write_text('@THINGS.register("wet", "rain")\nclass Wet: ...\n')
    (folder / "any_day.py").write_text('@THINGS.register(\n    "any-day", "rain", "sun"\n)\nclass AnyDay: ...\n')
    rain, sun = family.taking("rain"), family.taking("sun", noun="thing for sunny days")
    assert (family.names(), rain.names(), sun.names()) == (["any-day", "plain", "wet"], ["any-day", "wet"], ["any-day"])
    with pytest.raises(BadOption, match="unknown thing for sunny days 'wet'; there are: any-day"):
        sun.build("wet")

    @family.register("any-day", "rain", "sun")
    @dataclass(frozen=True, kw_only=True)
    class AnyDay:
        n: int = 1

    assert rain.spec(AnyDay(n=2)) == sun.spec(AnyDay(n=2)) == "any-day:n=2"


def test_both_options_pick_from_one_family() -> None:
    assert METHODS.names() == sorted({*TRAINING_METHODS.names(), *LINEAR_METHODS.names(), *CHANNEL_METHODS.names()})
    assert CONV_METHODS.member("dense") is LINEAR_METHODS.member("dense") is METHODS.member("dense")
    with pytest.raises(
        BadOption, match=r"^unknown pruning method for linear layers 'window'; there are: .*block, .*fine"
    ):
        LINEAR_METHODS.build("window")
    with pytest.raises(BadOption, match=r"^unknown pruning method 'fine'; there are: .*ck, .*inter"):
        CONV_METHODS.build("fine")


def test_names_are_known_without_importing_torch() -> None:
    code = (
        "import sys; from starfire_cli.registry import Family;"
        "print(Family('x', 'starfire_cli.pruning.methods').taking('conv').names(), 'torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == f"{CONV_METHODS.names()} False"


@pytest.mark.parametrize(("text", "value"), [("0.01", 0.01), ("8/255", 8 / 255), ("-1", -1.0), ("1e-3", 0.001)])
def test_numbers(text: str, value: float) -> None:
    assert parse_number(text) == value


@pytest.mark.parametrize("text", ["", "x", "1/0", "1/", "/2", "1/2/3"])
def test_no_numbers(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{text!r} is not a number")):
        parse_number(text)


def test_values_as_their_annotation() -> None:
    assert parse_value("none", int | None, "x") is None
    assert parse_value("3", int | None, "x") == 3
    assert parse_value("1/2", float, "x") == 0.5
    assert parse_value("No", bool, "x") is False
    assert parse_value("a b", str, "x") == "a b"
