"""A request passes few files on its way to the first step, and docs/architecture.md lists them."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import FrameType

from starfire_cli.workflows.train.loop import train
from starfire_cli.workflows.train.request import TrainRequest
from tests.helpers.together import PLAIN


def test_the_files_that_are_handed_a_request_are_those_of_the_docs(tmp_path: Path, root: Path) -> None:
    text = (root / "docs" / "architecture.md").read_text(encoding="utf-8")
    (section,) = re.findall(r"^## A request's way to the first step$(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    listed = re.findall(r"^\d+\. `([\w/]+\.py)`", section, re.MULTILINE)
    package, handed = str(root / "starfire_cli"), set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(package):
            return
        arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        if any(isinstance(frame.f_locals.get(name), TrainRequest) for name in arguments):
            handed.add(Path(code.co_filename).relative_to(package).as_posix())

    request = TrainRequest(**PLAIN | {"out": tmp_path, "epochs": 1, "era": "0:1"})
    before = sys.getprofile()
    sys.setprofile(note)
    try:
        assert list(train(request))
    finally:
        sys.setprofile(before)
    aside = {"workflows/train/request.py", "options.py"}  # its own methods, and the check of any request's ranges
    assert {f"workflows/train/{name}" for name in listed[1:-1]} == handed - aside
    assert listed[0] == "commands/train.py" and listed[-1] == "step.py"  # makes the request; takes the step
    assert len(listed) < 12
