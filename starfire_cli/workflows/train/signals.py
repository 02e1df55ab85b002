"""Stop signals: notes the first Ctrl-C or SIGTERM for the training loop; a second Ctrl-C ends the process at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from starfire_cli.distributed.ranks import Ranks


class Signals:
    """A context in which SIGINT and SIGTERM are remembered in `number` and training goes on to a safe point.

    `agreed` is the signal on which all ranks stop; `pending` asks. `stopped` says whether the run has.
    """

    def __init__(self) -> None:
        self.number = 0
        self.agreed = 0
        self.stopped = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():  # elsewhere python allows no handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def pending(self, ranks: Ranks) -> int:
        """The signal that one of the ranks has had, 0 for none; every rank asks at the same steps."""
        self.agreed = ranks.stop(self.number)
        return self.agreed

    def stop(self) -> None:
        """The run ends here, before its last epoch."""
        self.stopped = True

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number
