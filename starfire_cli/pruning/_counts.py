"""Counts of the dead weights of each layer, computed on the weights' device and read only when somebody asks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from starfire_cli.pruning.kernels import NAN


class Counts:
    """The dead weights of each layer.

    Args:
        keys: the layers'; none of their weights are dead.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._known = dict.fromkeys(keys, 0)
        self._pending: dict[str, tuple[Tensor, int]] = {}  # what has not been fetched: where it stands

    def expect(self, keys: Iterable[tuple[int, str]], counts: Tensor) -> None:
        """Note that the layers' counts, or `NAN`, will be in `counts`, at the places given with the keys."""
        self._pending.update({key: (counts, place) for place, key in keys})

    def set(self, key: str, count: int) -> None:
        """Store a layer's count."""
        self._pending.pop(key, None)
        self._known[key] = count

    def fetch(self) -> list[str]:
        """Wait for the device and read all pending counts; returns the layers that held NaN or inf, whose counts stay
        the last known.
        """
        fetched: dict[int, list[int]] = {}
        bad = []
        for key, (counts, place) in self._pending.items():
            if id(counts) not in fetched:
                fetched[id(counts)] = counts.tolist()
            count = fetched[id(counts)][place]
            if count == NAN:
                bad.append(key)
            else:
                self._known[key] = count
        self._pending.clear()
        return bad

    @property
    def known(self) -> dict[str, int]:
        """Dead weights by layer, as of the last `fetch`."""
        return self._known

    def tensor(self, device: torch.device) -> Tensor:
        """All counts as a tensor, int64, (layers,), on `device`, without waiting for it."""
        counts = _sent(list(self._known.values()), device)
        sources = {id(pending): pending for pending, _ in self._pending.values()}
        for number, pending in sources.items():
            pairs = [
                (n, at[1])
                for n, key in enumerate(self._known)
                if (at := self._pending.get(key)) and id(at[0]) == number
            ]
            to, where = _sent(pairs, device).unbind(1)
            counts[to] = pending.to(device)[where]
        return counts


def _sent(numbers: Sequence[object], device: torch.device) -> Tensor:
    """Whole numbers as int64 on `device`, without waiting for it: copies from pinned memory are asynchronous."""
    on_host = torch.tensor(numbers, dtype=torch.int64, pin_memory=device.type == "cuda")
    return on_host.to(device, non_blocking=True)
