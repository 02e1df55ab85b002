"""The one error for damaged files: every exception but our own, interrupts, and what the system refuses."""

from __future__ import annotations

import builtins
import errno
import json
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from starfire_cli.damage import Damaged, DamagedFile, reading
from starfire_cli.errors import BadOption, Mismatch, StarfireError

PATH = Path("a/model.pt")
EXCEPTIONS = [
    kind
    for kind in vars(builtins).values()
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, OSError | UnicodeError | Warning)
    if not issubclass(kind, BaseExceptionGroup | ImportError) and kind is not NameError  # ours, see below
]


@pytest.mark.parametrize("kind", EXCEPTIONS, ids=lambda kind: kind.__name__)
def test_every_exception_becomes_one_line_and_keeps_its_cause(kind: type[Exception]) -> None:
    error = kind("two\nlines \x1b[31m")
    with pytest.raises(DamagedFile, match=rf"{PATH}.*damaged") as caught, reading(PATH):
        raise error
    assert caught.value.__cause__ is error
    assert str(caught.value).isprintable()


def nest(depth: int) -> object:
    return json.loads("[" * depth)


PROVOKED: dict[str, Callable[[], object]] = {
    "struct": lambda: struct.unpack("<Q", b"abc"),
    "zlib": lambda: zlib.decompress(b"abc"),
    "tar": lambda: tarfile.TarInfo.frombuf(b"abc", "utf-8", "strict"),
    "json": lambda: json.loads("{"),
    "text": lambda: b"\xff".decode(),
    "surrogate": lambda: "\ud800".encode(),
    "depth": lambda: nest(100_000),
    "digits": lambda: int("1" * 5000),
    "float": lambda: int(float("inf")),
    "overflow": lambda: (2.0**60).__pow__(2**10),
    "shape": lambda: np.frombuffer(b"abc", "<f4"),
    "torch": lambda: torch.zeros(3).reshape(4),
    "key": lambda: {}["shape"],  # type: ignore[index]
    "a name without a number": lambda: raised(OSError("cannot identify image file")),
    "an offset": lambda: raised(OSError(errno.EINVAL, "Invalid argument")),
}


def raised(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("name", PROVOKED)
def test_what_libraries_say_of_bad_content_is_damage(name: str) -> None:
    with pytest.raises(DamagedFile, match=f"^{PATH} is damaged: 'conv': ."), reading(PATH, "'conv'"):
        PROVOKED[name]()


@pytest.mark.parametrize(
    "take",
    [
        lambda: bytearray(1 << 62),
        lambda: torch.empty(1 << 55),
        lambda: np.empty(1 << 58),
        lambda: raised(OSError(errno.ENOMEM, "no")),
    ],
)
def test_memory_that_is_not_there_is_asked_for_by_the_file_or_lacked_by_the_machine(take: Callable[[], object]) -> None:
    with pytest.raises(DamagedFile, match="damaged, or too large for this machine"), reading(PATH):
        take()


@pytest.mark.parametrize("error", [StarfireError("so"), BadOption("so"), Mismatch("so"), DamagedFile("so")])
def test_our_own_words_pass_unchanged(error: StarfireError) -> None:
    with pytest.raises(StarfireError) as caught, reading("outer"), reading("inner"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_interrupts_pass(kind: type[BaseException]) -> None:
    with pytest.raises(kind), reading(PATH):
        raise kind


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EIO, errno.EMFILE, errno.ESTALE])
def test_what_the_system_refuses_is_not_called_damage(number: int) -> None:
    with pytest.raises(StarfireError, match=f"^cannot read {PATH}: .") as caught, reading(PATH):
        raise OSError(number, "Some reason", str(PATH))
    assert not isinstance(caught.value, DamagedFile)


def test_a_finding_of_ours_is_repeated_without_its_class() -> None:
    with pytest.raises(DamagedFile, match=f"^{PATH} is damaged: line 3: 7 is no shape$"), reading(PATH, "line 3"):
        raise Damaged("7 is no shape")


@pytest.mark.parametrize("error", [NameError("name 'x' is not defined"), ModuleNotFoundError("No module named 'x'")])
def test_mistakes_that_no_content_provokes_are_not_called_damage(error: Exception) -> None:
    with pytest.raises(type(error)), reading("a.pt"):
        raise error
