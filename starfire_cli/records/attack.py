"""Records of `starfire attack`: its progress, then robust accuracies, point by point."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starfire_cli.errors import BadOption
from starfire_cli.markup import RecordTable


@dataclass(frozen=True, kw_only=True)
class RobustPoint:
    """Robust accuracy of a network at one eps; accuracies are fractions.

    Args:
        eps: size of the perturbation, in pixels of [0, 1].
        label: the same as it was written (`8/255`).
        images: how many were attacked.
        correct: how many are still classified rightly.
        top1: their share.
        top5: how often the right class is among the first five guesses.
        low: lower end of the 95 % interval of `top1` (Wilson).
        high: upper end.
        drop: clean accuracy less `top1`.
        blind: share of the images whose input gradient was zero everywhere; None where nothing was followed.
        images_per_second: images attacked and classified a second at this eps.
    """

    eps: float
    label: str
    images: int
    correct: int
    top1: float
    top5: float
    low: float
    high: float
    drop: float
    blind: float | None
    images_per_second: float


@dataclass(frozen=True, kw_only=True)
class NetworkResult:
    """One network under attack.

    Args:
        path: its checkpoint.
        title: its name for people: method and target where they are known.
        clean: the accuracy without attack (eps 0).
        points: one for each eps, ascending.
        controls: the same for noise of the same size, and for FGSM beside a stronger attack, by name.
        transfer: accuracy of the other network on the images made against this one.
        warnings: why the numbers may flatter the network, one sentence each.
        file: where all this was written.
    """

    path: Path
    title: str
    clean: RobustPoint
    points: tuple[RobustPoint, ...]
    controls: dict[str, tuple[RobustPoint, ...]]
    transfer: tuple[RobustPoint, ...]
    warnings: tuple[str, ...]
    file: Path


@dataclass(frozen=True, kw_only=True)
class PairPoint:
    """Two networks on the same images at one eps; intervals are at 95 %, from a paired bootstrap.

    Args:
        eps: size of the perturbation.
        label: the same as it was written.
        first: accuracy of the network that was asked about.
        second: of the one it is held against.
        difference: first less second.
        low: lower end of the interval of `difference`.
        high: upper end.
        only_first: images that only the first gets right.
        only_second: images that only the second gets right.
        p_exact: McNemar's exact test that neither is better.
        p_mid: the same, mid-p.
        drop_difference: how much more the first loses from eps 0 to here than the second.
        drop_low: lower end of its interval.
        drop_high: upper end.
    """

    eps: float
    label: str
    first: float
    second: float
    difference: float
    low: float
    high: float
    only_first: int
    only_second: int
    p_exact: float
    p_mid: float
    drop_difference: float
    drop_low: float
    drop_high: float


@dataclass(frozen=True, kw_only=True)
class AttackStarted:
    """The start of an attack: a description, and a note for each result that is known already."""

    attack: str
    data: str
    images: int
    batch_size: int
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class AttackProgress:
    """Progress: `done` of `total` images times sizes, and the current network."""

    title: str
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class AttackReport:
    """The end: one or two networks, their comparison, and the document as written (without the images' bits)."""

    attack: str
    norm: str
    results: tuple[NetworkResult, ...]
    pairs: tuple[PairPoint, ...]
    document: dict[str, Any]
    saved: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


AttackRecord = AttackStarted | AttackProgress | AttackReport


@dataclass(frozen=True, kw_only=True, repr=False)
class RobustAccuracy:
    """The robust accuracy of a network in memory, as `starfire.attack` returns it; `print` shows it as a table.

    Args:
        attack: its spec.
        norm: "linf" or "l2".
        images: how many were attacked.
        points: one for each eps, ascending; eps 0 is without attack.
        controls: the same for noise of the same size, and for FGSM beside a stronger attack, by name.
        warnings: why the numbers may flatter the network, one sentence each.
        notes: what had to be done on the way.
    """

    attack: str
    norm: str
    images: int
    points: tuple[RobustPoint, ...]
    controls: dict[str, tuple[RobustPoint, ...]]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    def top1(self, eps: float | str) -> float:
        """The accuracy at one of the sizes, a number or as it was written (`8/255`), as a fraction.

        Raises BadOption for another size.
        """
        found = [point.top1 for point in self.points if eps in (point.eps, point.label)]
        if not found:
            raise BadOption(f"eps={eps!r} was not measured; there are: {', '.join(x.label for x in self.points)}")
        return found[0]

    def __repr__(self) -> str:
        return self._table().text()

    def _repr_html_(self) -> str:
        return self._table().html()

    def _table(self) -> RecordTable:
        return RecordTable(
            title=f"{self.attack}, {self.norm}, {self.images:,} images",
            head=("eps", "top-1", "95 % interval", *self.controls),
            rows=[
                (
                    point.label,
                    f"{point.top1:.2%}",
                    f"{point.low:.2%} to {point.high:.2%}",
                    *(f"{others[place].top1:.2%}" for others in self.controls.values()),
                )
                for place, point in enumerate(self.points)
            ],
            notes=(*self.warnings, *self.notes),
        )
