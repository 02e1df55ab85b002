"""Writes docs/cli.md, the reference of all commands, from the declarations that `--help` prints.

It reads the commands' own signatures rather than rendered help, whose boxes change with every release of typer.
`python docs/generate_cli.py` writes the page, `--check` fails if it is stale.
"""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

PAGE = Path(__file__).with_name("cli.md")
sys.path.insert(0, str(PAGE.parents[1]))

from starfire_cli.cli import commands  # noqa: E402 - the checkout, whatever is installed

HEAD = """# Command reference

<!-- Written by docs/generate_cli.py from the commands' own declarations; `make docs` renews it. -->

Every option of every command; `starfire COMMAND --help` prints the same. `starfire --version` prints the version.
Errors are one line on stderr; exit codes: 0 done, 1 it cannot be done, 2 the options make no sense, 3 a file
contradicts itself (where a command says so), 130 and 143 interrupted. With `STARFIRE_TRACEBACK=1` in the environment,
errors come with a traceback.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(section(name, command) for name, command in commands().items())])


def section(name: str, command: Callable[..., object]) -> str:
    """One command: what its docstring says, its arguments, and a table for each group of options."""
    hints = typing.get_type_hints(command, include_extras=True)
    arguments: list[tuple[str, str]] = []
    panels: dict[str, list[tuple[str, str]]] = {}
    for parameter in inspect.signature(command).parameters.values():
        if hints[parameter.name] is typer.Context:
            continue
        kind, info = typing.get_args(hints[parameter.name])[:2]
        if info.hidden:
            continue
        if type(info).__name__ == "ArgumentInfo":
            label = (info.metavar or parameter.name.upper()).strip("[]")
            needed = parameter.default is parameter.empty
            arguments.append((label if needed else f"[{label}]", info.help or ""))
        else:
            row = (flags(parameter.name, kind, info), f"{info.help or ''}{default(parameter.default, info)}")
            panels.setdefault(info.rich_help_panel or "Options", []).append(row)
    usage = " ".join(["starfire", name, *(["[OPTIONS]"] if panels else []), *(label for label, _ in arguments)])
    text = inspect.cleandoc(command.__doc__ or "").partition("\f")[0].strip()
    lines = [f"## starfire {name}", "", text, "", "```", usage, "```", ""]
    if arguments:
        lines += table("argument", [(f"`{label}`", help_text) for label, help_text in arguments])
    for panel, rows in panels.items():
        lines += [f"### {name}: {panel}", "", *table("option", rows)]
    return "\n".join(lines)


def flags(name: str, kind: Any, info: Any) -> str:
    """`-b`, `--batch-size N`: every way to give one option."""
    flag = bool in (kind, *typing.get_args(kind))
    # In `Annotated[..., typer.Option("--name", "-n")]` typer keeps the first name where a default would be.
    names = [n for n in (info.default, *(info.param_decls or ())) if isinstance(n, str) and n.startswith("-")]
    if not names:
        plain = name.replace("_", "-")
        names = [f"--{plain}/--no-{plain}" if flag else f"--{plain}"]
    names.sort(key=lambda n: n.startswith("--"))
    if not flag:
        names[-1] += f" {info.metavar or wanted(kind)}"
    return ", ".join(f"`{n}`" for n in names).replace("|", "\\|")


def wanted(kind: Any) -> str:
    """What stands for a value of this type."""
    origin, inside = typing.get_origin(kind), [k for k in typing.get_args(kind) if k is not type(None)]
    if origin is typing.Literal:
        return "|".join(map(str, inside))
    if origin in (typing.Union, types.UnionType, list):
        return wanted(inside[0])
    return {int: "N", float: "X", Path: "PATH"}.get(kind, "TEXT")


def default(value: Any, info: Any) -> str:
    """What happens without the option, where that is shown."""
    if not info.show_default or value is None or value is inspect.Parameter.empty or value is False:
        return ""
    return f" [default: {'on' if value is True else value}]"


def table(head: str, rows: list[tuple[str, str]]) -> list[str]:
    """A Markdown table of two columns, and an empty line."""
    cells = [f"| {left} | {' '.join(right.split()).replace('|', '&#124;')} |" for left, right in rows]
    return [f"| {head} | |", "|---|---|", *cells, ""]


def main() -> int:
    """Write the page, or check it."""
    text = page()
    if "--check" not in sys.argv:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        print(f"{PAGE.name} is stale: the commands' options changed; `make docs` renews it", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
