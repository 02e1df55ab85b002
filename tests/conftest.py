"""Settings of all tests: one thread, this checkout also in subprocesses, the same hypothesis examples in CI."""

from __future__ import annotations

import gc
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]

# Before torch and numba are imported: the tests are small, and threads would only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "Agg"
if os.access("/dev/shm", os.W_OK) and shutil.disk_usage("/dev/shm").free > 4e9:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", "/dev/shm")  # thousands of checkpoints: no disk need hold them
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))

settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=8)
settings.register_profile("ci", settings.get_profile("here"), derandomize=True)
settings.register_profile("few", settings.get_profile("ci"), max_examples=3)  # where an example takes a second
settings.register_profile("thorough", settings.get_profile("here"), max_examples=500)  # --hypothesis-profile=thorough
settings.load_profile("ci" if os.environ.get("CI") else "here")


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session", autouse=True)
def quick_turns() -> None:
    """Have engines timed in short turns without rests: who is faster is nothing that a test asks."""
    from starfire_cli.sparse import rivals
    from starfire_cli.workflows.bench import rounds

    rivals._REST = rounds._REST = 0.0
    rivals._TURN = 0.002


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the test that takes minutes by itself, so that nobody waits for it in the end."""
    items.sort(key=lambda item: "test_in_a_process_of_its_own[interpreted]" not in item.nodeid)


def pytest_collection_finish() -> None:
    """Spare the garbage collector what was imported and collected, and most of its rounds: a tenth of all time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
