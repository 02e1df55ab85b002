"""Writes docs/reference.md, the reference of the Python interface, from its signatures and docstrings.

`python docs/generate_reference.py` writes the page, `--check` fails if it is stale.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("reference.md")
sys.path.insert(0, str(PAGE.parents[1]))

import starfire_cli  # noqa: E402 - the checkout, whatever is installed
from starfire_cli import errors  # noqa: E402
from starfire_cli.records import attack, compress  # noqa: E402
from starfire_cli.records import inspect as inspected  # noqa: E402
from starfire_cli.records.attach import LayerSummary, PruningSummary  # noqa: E402
from starfire_cli.records.totals import LayerTotals  # noqa: E402
from starfire_cli.report.plot.drawn import Figures  # noqa: E402
from starfire_cli.workflows.attach.attached import AttachedPruner  # noqa: E402

HEAD = """# Python reference

<!-- Written by docs/generate_reference.py from the docstrings; `make docs` renews it. -->

Do from Python what the commands do, and prune in loops of your own.

```python
import starfire_cli as starfire

pruner = starfire.attach(model, optimizer, method="ck", target=0.8, era=(0.3, 0.6), total_steps=len(loader) * epochs)
...  # the training loop as it was: loss.backward(); optimizer.step()
starfire.save("model.pt", pruner)  # weights, masks and metadata: every command takes it

starfire.inspect("model.pt")  # how sparse it is, layer by layer
starfire.attack(model, test_loader, eps=[0, "8/255"])  # accuracy under attack
starfire.compress(pruner, "model.safetensors")  # as small as its information
starfire.load_model("model.pt", model="resnet50", sparse=True)  # run from the weights that are left
```

Importing `starfire_cli` loads nothing heavy; torch comes with the first call. A mistake raises `starfire_cli.errors.StarfireError` with one line that repeats what was given and says what would work: `BadOption` where an argument makes no sense, `Mismatch` where masks and weights contradict each other. Accuracies and sparsities are fractions. [In your own training loop](library.md) explains `attach` with scripts.
"""  # noqa: E501 - a paragraph of Markdown is a line

FUNCTIONS = {
    "Training": ("attach", "save"),
    "Checkpoints": ("load", "load_model", "inspect", "compress", "plot"),
    "Networks": ("attack", "sparsify", "warmup"),
}
CLASSES = {
    "What attach returns": (AttachedPruner, PruningSummary, LayerSummary),
    "Records": (
        *(inspected.Inspection, inspected.LayerFinding, inspected.Comparison, inspected.LayerDifference),
        *(attack.RobustAccuracy, attack.RobustPoint, compress.Compressed, compress.AccuracyChange, Figures),
    ),
    "Errors": (errors.StarfireError, errors.BadOption, errors.Mismatch),
}
HIDDEN = {
    "begin",
    "prepare",
    "finish",
    "mask_gradient",
    "refuse_moved",
    "uses_gradients",
    "settle",
}  # the hooks' own calls
_WIDE = 100


def page() -> str:
    """The whole page."""
    lines = [HEAD]
    for title, names in FUNCTIONS.items():
        lines += [f"## {title}", ""]
        for name in names:
            lines += function(f"starfire.{name}", getattr(starfire_cli, name), 3)
    for title, kinds in CLASSES.items():
        lines += [f"## {title}", ""]
        for kind in kinds:
            lines += described(kind)
    return "\n".join(lines).rstrip() + "\n"


def function(shown: str, target: Callable[..., Any], depth: int) -> list[str]:
    """A function: signature and docstring."""
    return [f"{'#' * depth} {shown}", "", "```python", signature(shown, target), "```", "", *text(target)]


def signature(shown: str, target: Callable[..., Any]) -> str:
    """The signature on one line, or with a parameter a line where that is too long."""
    found = inspect.signature(target)
    found = found.replace(parameters=[p for p in found.parameters.values() if p.name != "self"])
    plain = shown + str(found).replace("'", "")
    if len(plain) <= _WIDE:
        return plain
    parameters, star = [], False
    for parameter in found.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            parameters.append("    *,")
            star = True
        star = star or parameter.kind is parameter.VAR_POSITIONAL
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        mark = "*" if parameter.kind is parameter.VAR_POSITIONAL else ""
        parameters.append(f"    {mark}{parameter.name}: {parameter.annotation}{default},")
    return "\n".join([f"{shown}(", *parameters, f") -> {found.return_annotation}"])


def described(kind: type[Any]) -> list[str]:
    """A class: its docstring, then what is public of it."""
    lines = [f"### {kind.__name__}", "", *text(kind)]
    rows = []
    methods: list[str] = []
    inherited = LayerTotals if issubclass(kind, LayerTotals) else object
    for name, member in {**vars(inherited), **vars(kind)}.items():
        if name.startswith("_") or name in HIDDEN:
            continue
        if isinstance(member, property):
            rows.append(f"- `{name}`: {' '.join((inspect.getdoc(member.fget) or '').split())}")
        elif inspect.isfunction(member):
            methods += function(f"{kind.__name__}.{name}", member, 4)
    return [*lines, *(["Properties:", "", *rows, ""] if rows else []), *methods]


def text(target: Any) -> list[str]:
    """A docstring as Markdown: its sections become lists."""
    found = inspect.cleandoc(target.__doc__ or "")
    lines: list[str] = []
    for title, body in sections(found):
        if title:
            lines += [f"{title}:", ""]
            lines += [f"- {item}" for item in items(body)]
            lines.append("")
        else:
            lines += [*body, ""]
    return lines


def sections(docstring: str) -> Iterator[tuple[str, list[str]]]:
    """(title, lines) of each section; the text before them has no title."""
    title = ""
    body: list[str] = []
    for line in docstring.splitlines():
        if re.fullmatch(r"(Args|Attributes|Returns|Raises|Warns):", line):
            yield title, strip(body)
            title, body = {"Args": "Arguments"}.get(line[:-1], line[:-1]), []
        else:
            body.append(line)
    yield title, strip(body)


def items(body: list[str]) -> Iterator[str]:
    """The entries of a section, each on one line, with its name as code; `Returns` has one without."""
    entries: list[str] = []
    for line in inspect.cleandoc("\n".join(body)).splitlines():
        if (line.startswith(" ") and entries) or (line and entries and not re.match(r"[\w, *]+: ", line)):
            entries[-1] += f" {line.strip()}"
        elif line:
            entries.append(line)
    for entry in entries:
        found = re.match(r"([\w, *]+): (.*)", entry)
        names = found and all(re.fullmatch(r"\w+", name.strip()) for name in found[1].split(","))
        yield f"`{found[1]}`: {found[2]}" if found and names else entry


def strip(body: list[str]) -> list[str]:
    """The lines without empty ones at either end."""
    return "\n".join(body).strip("\n").splitlines()


def main() -> int:
    """Write the page, or check it."""
    found = page()
    if "--check" not in sys.argv:
        PAGE.write_text(found, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != found:
        print(f"{PAGE.name} is stale: docstrings or signatures changed; `make docs` renews it", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
