"""The scripts in docs run as they stand there, and what they save is pruned."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

import starfire_cli as starfire

DOCS = Path(__file__).resolve().parents[1] / "docs"


def script(page: str, title: str) -> str:
    text = DOCS.joinpath(page).read_text(encoding="utf-8")
    (code,) = re.findall(rf'```python title="{re.escape(title)}"\n(.*?)```', text, re.DOTALL)
    return code


@pytest.mark.filterwarnings("default")  # of the packages that the scripts show
@pytest.mark.parametrize(
    ("page", "title", "needs", "saved", "sparsity"),
    [
        ("library.md", "plain_loop.py", None, "model.pt", 0.6),
        ("library.md", "resume.py", None, "resumed.pt", 0.75),
        ("lightning.md", "lightning_digits.py", "lightning", "lightning.pt", 0.55),
        ("timm.md", "timm_digits.py", "timm", "timm.pt", 0.5),
        ("huggingface.md", "huggingface_digits.py", "transformers", "huggingface.pt", 0.79),
        pytest.param("segmentation.md", "fcn_and_ssdlite.py", None, "fcn.pt", 0.6, marks=pytest.mark.slow),
    ],
)
def test_scripts_run_as_they_stand(tmp_path, monkeypatch, capsys, page, title, needs, saved, sparsity):
    if needs is not None:
        pytest.importorskip(needs)
    monkeypatch.chdir(tmp_path)
    exec(compile(script(page, title), title, "exec"), {"__name__": "__main__"})
    found = starfire.inspect(saved)
    assert found.consistent and found.masks_present
    masked = [layer for layer in found.layers if layer.masked]
    dead = sum(layer.zeros for layer in masked) / sum(layer.weights for layer in masked)
    assert sparsity <= dead <= sparsity + 0.1
    assert f"{dead:.2%}" in capsys.readouterr().out


def test_the_notebook_runs_and_shows_tables_and_pictures(tmp_path, monkeypatch):
    """Cell by cell, as Jupyter would; what a cell ends with is shown as HTML."""
    monkeypatch.chdir(tmp_path)
    cells = json.loads(DOCS.joinpath("example.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict[str, object] = {}
    shown = []
    for cell in cells:
        if cell["cell_type"] != "code":
            continue
        assert not cell["outputs"], "the notebook is kept without outputs"
        body = ast.parse("".join(cell["source"])).body
        last = body.pop() if isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), "cell", "exec"), names)
        if last is not None:
            shown.append(eval(compile(ast.Expression(last.value), "cell", "eval"), names)._repr_html_())
    assert [page[:6] for page in shown] == ["<table"] * 4 + ["<img a"]
    assert names["pruner"].sparsity >= 0.55
    assert starfire.load("digits.safetensors").keys() == names["model"].state_dict().keys()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:target=.* comes to")
def test_the_bits_of_starfire_train(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(script("library.md", "like_train.py"), "like_train.py", "exec"), {"__name__": "__main__"})
    assert "the same bits" in capsys.readouterr().out
