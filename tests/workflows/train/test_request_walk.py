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
    package, handed = root / "starfire_cli", set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        file = Path(frame.f_code.co_filename)
        given = any(isinstance(value, TrainRequest) for value in frame.f_locals.values())
        if event == "call" and given and file.is_relative_to(package):
            handed.add(file.relative_to(package).as_posix())

    request = TrainRequest(**PLAIN | {"out": tmp_path, "epochs": 1, "era": "0:1"})
    before = sys.getprofile()
    sys.setprofile(note)
    try:
        assert list(train(request))
    finally:
        sys.setprofile(before)
    own = "workflows/train/request.py"  # methods of the request itself
    assert {f"workflows/train/{name}" for name in listed[1:-1]} == handed - {own}
    assert listed[0] == "commands/train.py" and listed[-1] == "step.py"  # makes the request; takes the step
    assert len(listed) < 12
