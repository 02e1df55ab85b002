"""A network that was pruned in a loop of one's own, and its file."""

from __future__ import annotations

from pathlib import Path

import pytest

import starfire_cli as starfire
from starfire_cli.workflows.attach.attached import AttachedPruner
from tests.workflows.attach.loops import made, trained


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> tuple[AttachedPruner, Path]:
    """The pruner, and where it was saved."""
    model, optimizer = made()
    pruner = starfire.attach(model, optimizer, method="gmp", target=0.6, era_steps=(2, 10))
    trained(model, optimizer)
    return pruner, starfire.save(tmp_path_factory.mktemp("saved") / "model.pt", pruner)
