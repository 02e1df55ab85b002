"""Writes docs/methods.md, the page of all pruning methods, from their own files.

The tables of axes, and what the paper's Table 4 asks of each method, are read from the code; the paper's own answers
stand below as data, and where the two differ the page marks it. `python docs/generate_methods.py` writes the page,
`--check` fails if it is stale.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("methods.md")
sys.path.insert(0, str(PAGE.parents[1]))
