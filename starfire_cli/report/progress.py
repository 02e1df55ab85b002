"""A progress bar for library calls: on a terminal, in a notebook, and nowhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Update(Protocol):
    """The call that moves a bar."""

    def __call__(self, done: int, total: int) -> None:
        """So many of so many are done."""
        ...


@contextmanager
def progress(title: str, shown: bool | None = None) -> Iterator[Update]:
    """A bar on stderr or in a notebook's cell; None shows it only where somebody watches."""
    if shown is False:
        yield lambda done, total: None
    elif in_notebook():
        yield _notebook_bar(title)
    elif shown or sys.stderr.isatty():
        from rich.progress import Progress

        from starfire_cli.report.console import open_console

        with Progress(console=open_console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
    else:
        yield lambda done, total: None


def in_notebook() -> bool:
    """Whether the code runs in a cell of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


def _notebook_bar(title: str) -> Update:
    from IPython.display import HTML, display

    handle: Any = display(HTML(_bar(title, 0, 1)), display_id=True)

    def update(done: int, total: int) -> None:
        handle.update(HTML(_bar(title, done, total)))

    return update


def _bar(title: str, done: int, total: int) -> str:
    from html import escape

    return f"<progress value='{done}' max='{max(1, total)}'></progress> {escape(title)}: {done} of {total}"
