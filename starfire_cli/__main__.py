"""Runs `starfire` as `python -m starfire_cli`."""

from __future__ import annotations

import sys

from starfire_cli.cli import main

if __name__ == "__main__":
    sys.exit(main())
