"""Runs one attack on one network for the sizes and images that its result file lacks, and updates the file."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starfire_cli.attacks import ATTACKS, Attack, Size
from starfire_cli.damage import DamagedFile, reading
from starfire_cli.data import Split
from starfire_cli.formats.atomic import check_writable
from starfire_cli.formats.robustness import PER_IMAGE, read_robustness, write_robustness
from starfire_cli.networks.restore import RestoredModel
from starfire_cli.records.attack import AttackProgress, NetworkResult
from starfire_cli.workflows.attack import verdict as verdict
from starfire_cli.workflows.attack.sweep import ATTACK, CLEAN, AttackTally, Sweep, Tallies

_SAVE_SECONDS = 5.0


def spec_of(attack: Attack) -> str:
    """The attack's spec without its eps, which the list of sizes replaces."""
    default = next(f.default for f in dataclasses.fields(attack) if f.name == "eps")  # type: ignore[arg-type]
    return ATTACKS.spec(dataclasses.replace(attack, eps=default))  # type: ignore[type-var]


def controls_of(attack: Attack) -> tuple[str, ...]:
    """The control attacks: noise of the same size, and one step of FGSM beside anything stronger."""
    name = spec_of(attack).partition(":")[0]
    return {"noise": (), "fgsm": ("noise",)}.get(name, ("noise", "fgsm"))


class SweepPlan:
    """The measurements planned for one network.

    Args:
        network: the network.
        attack: what attacks it.
        sizes: at which sizes; 0 is the clean accuracy.
        controls: whether controls are measured too.
        settings: what must be equal for earlier results to count.
        path: the file.
        fresh: earlier results do not count.
        facts: what the file says besides (command, versions, hardware).
        other: a second network that is shown the images made against this one.
    """

    def __init__(
        self,
        network: RestoredModel,
        attack: Attack,
        sizes: tuple[Size, ...],
        *,
        controls: bool,
        settings: dict[str, Any],
        path: Path,
        fresh: bool,
        facts: dict[str, Any],
        other: RestoredModel | None,
    ) -> None:
        self.network, self.sizes, self._other = network, sizes, other
        self.spec = spec_of(attack)
        self.controls = controls_of(attack) if controls else ()
        self._attacks = {ATTACK: attack}
        self._attacks |= {name: ATTACKS.build(f"{name}:norm={attack.norm}") for name in self.controls}
        self._settings = {"digest": network.digest, "attack": self.spec, **settings}
        self._settings |= {"mean": list(network.mean), "std": list(network.std)}
        self._facts, self._began = facts, time.perf_counter()
        self._shown_to = None if other is None else other.digest
        self.path = path
        check_writable(path)
        self.tallies: Tallies = {}
        self.attack_notes: dict[str, None] = {}
        earlier = read_robustness(self.path, fresh=fresh, to_write=True)
        self.notes = () if fresh or earlier is None else self._load_previous(earlier, settings["images"])

    def run(
        self,
        split: Split,
        *,
        seed: int,
        loaded: int,
        chunk: int,
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> Iterator[AttackProgress]:
        """Attacks at missing sizes and images, and saves every few seconds and at the end, even on errors."""
        sweep = Sweep(
            model=self.network.model,
            split=split,
            attacks=self._attacks,
            sizes=tuple(size.eps for size in self.sizes if size.eps),
            seed=seed,
            loaded=loaded,
            chunk=chunk,
            autocast=autocast,
            other=None if self._other is None else self._other.model,
            tallies=self.tallies,
            notes=self.attack_notes,
        )
        total = len(sweep.wanted()) * len(split)
        saved, known = time.perf_counter(), sum(tally.done for tally in sweep.wanted())
        done = known
        try:
            for done in sweep.run():
                yield AttackProgress(title=self.network.title, done=done, total=total)
                if time.perf_counter() - saved > _SAVE_SECONDS:
                    self.write({}, complete=False)
                    saved = time.perf_counter()
        finally:
            if known < done < total:
                self.write({}, complete=False)
        if done < total:  # corrupt images that were left out
            sweep.settle()

    def result(self, other: SweepPlan | None) -> NetworkResult:
        """All rows; `other` is the second network's plan where both saw the same images."""
        clean = self.tallies[CLEAN][0.0]
        return NetworkResult(
            path=self.network.path,
            title=self.network.title,
            clean=verdict.point(clean, Size(0.0, "0"), clean),
            points=verdict.points(self.tallies, ATTACK, self.sizes),
            controls={name: verdict.points(self.tallies, name, self.sizes) for name in self.controls},
            transfer=() if other is None else verdict.transferred(self.tallies, other.tallies, self.sizes),
            warnings=verdict.masking_signs(self.tallies, self.sizes, self.spec, self.controls),
            file=self.path,
        )

    def write(self, rows: dict[str, Any], *, complete: bool) -> dict[str, Any]:
        """Writes the file, and returns its contents without the images' bits."""
        document = {
            "checkpoint": str(self.network.path),
            "attack": self.spec,
            "complete": complete,
            **rows,
            "notes": list(self.attack_notes),
            "settings": self._settings,
            **({"shown_to": self._shown_to} if self._shown_to else {}),
            **self._facts,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - self._began, 3),
        }
        known = {
            name: {repr(size): tally.as_plain() for size, tally in by_size.items() if tally.done}
            for name, by_size in self.tallies.items()
        }
        write_robustness(self.path, document | {PER_IMAGE: known})
        return document

    def _load_previous(self, earlier: dict[str, Any], images: int) -> tuple[str, ...]:
        """Loads the tallies of an earlier run, if its settings were the same."""
        try:
            with reading(self.path):
                return self._resume_tallies(earlier, images)
        except DamagedFile:
            self.tallies.clear()
            self.attack_notes.clear()
            return (f"{self.path} is damaged; everything is attacked again",)

    def _resume_tallies(self, earlier: dict[str, Any], images: int) -> tuple[str, ...]:
        held = dict(earlier.get("settings") or {})
        differing = [key for key in self._settings if held.get(key) != self._settings[key]]
        if differing:
            words = {"digest": "other weights"}
            why = ", ".join(words.get(key, f"another {key.replace('_', ' ')}") for key in differing)
            return (f"{self.path} is about {why}; it is replaced",)
        for name, by_size in earlier[PER_IMAGE].items():
            self.tallies[name] = {float(size): AttackTally.from_plain(one, images) for size, one in by_size.items()}
        if self._shown_to in (None, earlier.get("shown_to")):
            self._shown_to = earlier.get("shown_to")
        else:
            for tally in self.tallies.get(ATTACK, {}).values():
                tally.transfer = None  # it was another network that saw these images
        self.attack_notes.update((str(note), None) for note in earlier.get("notes", []))
        done = sum(t.done for by_size in self.tallies.values() for t in by_size.values())
        return (f"{self.path} is taken up where it was left (--fresh starts over)",) if done else ()
