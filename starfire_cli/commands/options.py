"""Options about how a result is shown, which several commands share."""

from __future__ import annotations

from starfire_cli.options import Option
from starfire_cli.workflows.options import OUTPUT_PANEL

JSON = Option(flags=("--json",), panel=OUTPUT_PANEL, help="Print the result as one JSON object on stdout.")
