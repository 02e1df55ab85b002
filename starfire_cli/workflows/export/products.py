"""The files of an export: of a library for C and Python, or of a module for browsers and Node."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

from starfire_cli.sparse.export.bindings import python_module
from starfire_cli.sparse.export.header import example, header
from starfire_cli.sparse.export.javascript import script
from starfire_cli.sparse.export.network import Exported
from starfire_cli.sparse.export.page import page
from starfire_cli.sparse.export.targets import ExportTarget
from starfire_cli.sparse.export.wasm import link
from starfire_cli.workflows.export import checking
from starfire_cli.workflows.export.checking import Reference
from starfire_cli.workflows.export.linking import link_command, linked

About = Mapping[str, object]


@dataclass(kw_only=True)
class Product:
    """Files that are going to be written.

    Args:
        files: their content by name.
        difference: of the logits from the network's, as a share of the largest; None where it was not run here.
        command: what links the object file, where nothing here could.
        notes: what the user should know.
    """

    files: dict[str, bytes]
    difference: float | None = None
    command: str | None = None
    notes: list[str] = field(default_factory=list)


def file_names(target: ExportTarget, name: str, *, demo: bool) -> list[str]:
    """The names of all files that there may be."""
    if target.is_wasm:
        return [f"{name}.wasm", f"{name}.js", f"{name}.json", *([f"{name}.html"] if demo else [])]
    return [f"{name}.o", f"lib{name}.so", f"{name}.h", "example.c", f"{name}.py", f"{name}.json"]


def library(found: Exported, target: ExportTarget, about: About, expected: Reference, *, threads: bool) -> Product:
    """A library with what C and Python need to call it. Raises StarfireError where it does not work."""
    identity = found.identity
    name = identity.name
    command = link_command(target.linkers, name, threads=threads)
    made = Product(files={f"{name}.o": found.file.code})
    shared, problem = linked(found.file.code, command, name)
    if shared is None:
        made.notes.append(f"lib{name}.so was not linked: {problem}")
        made.command = shlex.join(command)
    else:
        made.files[f"lib{name}.so"] = shared
        if target.runs_here:
            made.difference = checking.difference(shared, name, expected)
    build = f"{command[0]} -O2 -o example example.c {name}.o{' -pthread' if threads else ''} && ./example"
    made.files |= {
        f"{name}.h": header(identity, threads=threads).encode(),
        "example.c": example(identity, build).encode(),
        f"{name}.py": python_module(identity, threads=threads).encode(),
        f"{name}.json": _json(about),
    }
    return made


def module(found: Exported, about: About, expected: Reference, *, demo: bool) -> Product:
    """A module of WebAssembly with the script that calls it. Raises StarfireError where it does not work."""
    identity = found.identity
    name, code, text = identity.name, link(found.file.code), script(identity, about)
    made = Product(files={f"{name}.wasm": code, f"{name}.js": text.encode(), f"{name}.json": _json(about)})
    if demo:
        title = f"{name}: {about['title']}"
        made.files[f"{name}.html"] = page(name, title, text, code).encode(errors="replace")
    made.difference = checking.difference_in_node(code, text, name, expected)
    return made


def _json(about: About) -> bytes:
    return (json.dumps(about, indent=2) + "\n").encode()
