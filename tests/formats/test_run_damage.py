"""Damage to the files of a run folder is told in one line, by `plot` and by `train --resume`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starfire_cli.damage import Damaged, DamagedFile
from starfire_cli.errors import StarfireError
from starfire_cli.formats.robustness import read_robustness
from starfire_cli.formats.run import Run
from starfire_cli.workflows.plot.run import collect_sources
from starfire_cli.workflows.plot.run_files import read_run
from starfire_cli.workflows.train.request import TrainRequest
from tests.helpers.plot_runs import config_of, rows_of, write_attack

DEEP = b"[" * 100_000
DAMAGED = [
    b"",
    b"{",
    b"[1]",
    b"7",
    b"null",
    b'"x"',
    DEEP,
    b'{"a":' * 50_000,
    b"\xff\xfe",
    bytes(300),
    b"\xef\xbb\xbf{}",
]
WRONG: list[Any] = [
    None,
    True,
    -1,
    0,
    1e308,
    10**400,
    "x",
    "",
    "\ud800",
    "\x1b[31m\n",
    [],
    {},
    [[1]],
    [None],
    {"a": {}},
]


@pytest.mark.parametrize("content", [*DAMAGED, b'{"a": 1' + b"0" * 5000 + b"}"], ids=lambda c: repr(c[:12]))
def test_a_damaged_config(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(DamagedFile, match=r"config\.json is damaged: ") as caught:
        Run(tmp_path).read_config()
    assert "\n" not in str(caught.value)
    with pytest.raises(StarfireError, match=r"config\.json is damaged: "):
        collect_sources([tmp_path])
    assert not Run(tmp_path).is_empty()


@pytest.mark.parametrize("content", [b"{", b"[1]", DEEP, b"\xff\xfe", bytes(300), b'{"a": 1} {"b": 2}'], ids=repr)
def test_a_damaged_row(tmp_path: Path, content: bytes) -> None:
    run = Run(tmp_path)
    run.metrics_path.write_bytes(b'{"epoch": 1}\n' + content + b'\n{"epoch": 2}\n')
    with pytest.raises(DamagedFile, match=r"metrics\.jsonl is damaged: line 2: .* is not a JSON object"):
        run.read_metrics()
    run.metrics_path.write_bytes(b'{"epoch": 1}\n' + content)  # torn
    assert run.read_metrics() == [{"epoch": 1}]


@pytest.mark.parametrize("value", ["3", None, [], {}])
def test_a_row_that_cannot_be_cut(tmp_path: Path, value: Any) -> None:
    run = Run(tmp_path)
    run.metrics_path.write_text(json.dumps({"epoch": value}) + "\n")
    before = run.metrics_path.read_bytes()
    with pytest.raises(DamagedFile, match=r"metrics\.jsonl is damaged: TypeError"):
        run.truncate_metrics(3)
    assert run.metrics_path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("content", DAMAGED, ids=lambda c: repr(c[:12]))
def test_a_damaged_result_of_attack(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "best.attack-fgsm.json"
    path.write_bytes(content)
    with pytest.raises(StarfireError, match=r"is damaged: |is no result of starfire attack$"):
        read_robustness(path)
    with pytest.raises(StarfireError, match=r"is damaged: .*; --fresh replaces it$|is there and no result of starfire"):
        read_robustness(path, to_write=True)
    (tmp_path / "config.json").write_text(json.dumps(config_of()))
    notes = collect_sources([tmp_path]).notes
    assert any(str(path) in note and "\n" not in note for note in notes)


def spots(document: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    return [at, *(spot for key, value in inside for spot in spots(value, (*at, key)))]


def replaced(document: Any, at: tuple[Any, ...], value: Any) -> Any:
    if not at:
        return value
    copy = dict(document) if isinstance(document, dict) else list(document)
    copy[at[0]] = replaced(copy[at[0]], at[1:], value)
    return copy


@given(st.data())
def test_wrong_types_anywhere_are_no_crash(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("run")
    write_attack(folder / "best.attack-fgsm.json")
    result = json.loads((folder / "best.attack-fgsm.json").read_text())
    config = config_of()
    documents = {"config.json": config, "metrics.jsonl": rows_of(config)[3], "best.attack-fgsm.json": result}
    name = data.draw(st.sampled_from(sorted(documents)))
    at = data.draw(st.sampled_from(spots(documents[name])))
    documents[name] = replaced(documents[name], at, data.draw(st.sampled_from(WRONG)))
    for file, document in documents.items():
        (folder / file).write_text(json.dumps(document) + "\n")
    said = ""
    try:
        read_run(folder)
        collect_sources([folder])
    except StarfireError as error:
        said = str(error)
    assert not said or (re.search("is damaged|no result", said) and "\n" not in said)


@pytest.mark.parametrize("value", WRONG, ids=lambda value: repr(value)[:12])
def test_a_request_of_other_types(value: Any) -> None:
    sound = TrainRequest(lr=0.1, lr_drops=(1.0,), keep_dense=("a",), seed=3).as_config()
    assert TrainRequest.from_config(sound) == TrainRequest(lr=0.1, lr_drops=(1.0,), keep_dense=("a",), seed=3)
    fitting = {"lr": (int, float), "seed": int, "method": str, "deterministic": bool, "lr_drops": list, "betas": ()}
    for field, kinds in fitting.items():
        optional = value is None and field in ("lr", "lr_drops")
        number = isinstance(value, bool) and field in ("lr", "seed")
        if optional or (isinstance(value, kinds) and not number and value not in ([[1]], [None])):
            assert TrainRequest.from_config({**sound, field: value})
        else:
            with pytest.raises(Damaged, match=f"its setting {field} is "):
                TrainRequest.from_config({**sound, field: value})
