"""Errors of a training step in words of the user: out of memory, a lone image, a killed worker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from starfire_cli.data import DataOptions
from starfire_cli.data.images.workers import worker_failure
from starfire_cli.errors import StarfireError
from starfire_cli.formats.run import Run

if TYPE_CHECKING:
    from starfire_cli.workflows.train.session import Session


@contextmanager
def explaining_failures(session: Session) -> Iterator[None]:
    """Turn what torch raises in here into StarfireError that says what helps, and what is left of the run."""
    request = session.request
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise StarfireError(
            f"out of memory on {session.network.device} with --batch-size {request.batch_size}; a smaller one, "
            f"--accumulate 2 or --amp needs less. {last_good(session.run)}"
        ) from error
    except ValueError as error:  # beforehand nobody knows how many of a batch are corrupt (`lone_images.py`)
        if "more than 1 value per channel" not in str(error):
            raise
        raise StarfireError(
            f"step {session.position.step + 1} has one image left that is not corrupt, too few for BatchNorm; leave "
            f"corrupt images out of the data, or give another --batch-size. {last_good(session.run)}"
        ) from error
    except RuntimeError as error:  # torch tells of a killed worker inside whatever step is under way
        lost = worker_failure(error, request.workers, DataOptions().timeout)
        if lost is None:
            raise
        raise StarfireError(f"{lost}. {last_good(session.run)}") from error


def last_good(run: Run) -> str:
    """A sentence on the last good checkpoint of a run that has to stop."""
    if run.last.exists():
        return f"The last good checkpoint is whole: {run.last}"
    return "No checkpoint had been written yet."
