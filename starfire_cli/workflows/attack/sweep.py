"""One network, one attack, every size, every image: the loop, and the tally that survives being stopped."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from starfire_cli.attacks import Adversarial, Attack
from starfire_cli.attacks._draws import AttackDraws
from starfire_cli.attacks._gradient import frozen
from starfire_cli.data import Split
from starfire_cli.errors import StarfireError
from starfire_cli.formats.robustness import Bits, pack, unpack

CLEAN = "clean"
ATTACK = "attack"
_SLACK = 1e-4  # by which float32 may put an image beyond eps, in l2 over many pixels


@dataclass
class AttackTally:
    """Right or wrong, image by image, at one size; the first `done` images are known."""

    images: int
    done: int = 0
    seconds: float = 0.0
    right: Bits = field(init=False)
    right5: Bits = field(init=False)
    blind: Bits | None = None
    transfer: Bits | None = None

    def __post_init__(self) -> None:
        self.right, self.right5 = np.zeros(self.images, dtype=np.bool_), np.zeros(self.images, dtype=np.bool_)

    def cut(self, images: int) -> None:
        """Keep the first `images` only."""
        self.images, self.done = images, min(self.done, images)
        self.right, self.right5 = self.right[:images], self.right5[:images]
        self.blind = None if self.blind is None else self.blind[:images]
        self.transfer = None if self.transfer is None else self.transfer[:images]

    def as_plain(self) -> dict[str, Any]:
        """For JSON."""
        bits = {"right": self.right, "right5": self.right5, "blind": self.blind, "transfer": self.transfer}
        plain = {name: pack(value) for name, value in bits.items() if value is not None}
        return {"done": self.done, "seconds": round(self.seconds, 3), **plain}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], images: int) -> AttackTally:
        """The inverse of `as_plain`. Raises KeyError, TypeError or ValueError for anything else."""
        tally = cls(images, done=int(plain["done"]), seconds=float(plain["seconds"]))
        if not 0 <= tally.done <= images:
            raise ValueError(f"{tally.done} of {images} images")
        tally.right, tally.right5 = unpack(plain["right"], images), unpack(plain["right5"], images)
        tally.blind = unpack(plain["blind"], images) if "blind" in plain else None
        tally.transfer = unpack(plain["transfer"], images) if "transfer" in plain else None
        return tally


Tallies = dict[str, dict[float, AttackTally]]


@dataclass(kw_only=True)
class Sweep:
    """Everything that is asked of one network.

    Args:
        model: from pixels to logits.
        split: the images.
        attacks: by name; `ATTACK` is the one that was asked for, the others are its controls.
        sizes: each above 0.
        seed: of whatever the attacks draw.
        loaded: images a batch of `split`.
        chunk: images at a time, at most `loaded`; halved where memory runs out.
        autocast: the precision of every forward pass.
        other: a second network that is shown the images made against this one.
        tallies: what is known already; filled as the sweep goes on.
    """

    model: nn.Module
    split: Split
    attacks: Mapping[str, Attack]
    sizes: tuple[float, ...]
    seed: int
    loaded: int
    chunk: int
    autocast: Callable[[], AbstractContextManager[object]]
    other: nn.Module | None
    tallies: Tallies
    notes: dict[str, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        images = len(self.split)
        self.tallies.setdefault(CLEAN, {}).setdefault(0.0, AttackTally(images))
        for name in self.attacks:
            for size in self.sizes:
                tally = self.tallies.setdefault(name, {}).setdefault(size, AttackTally(images))
                if name != ATTACK:
                    continue
                if self.other is not None and tally.transfer is None:
                    self.tallies[name][size] = AttackTally(images, transfer=np.zeros(images, dtype=np.bool_))
                if self.other is None and tally.done < images:
                    tally.transfer = None  # the rest of the images will not be shown to the other network

    def wanted(self) -> list[AttackTally]:
        """The tallies that this sweep is about; there may be others, from earlier ones."""
        asked = [self.tallies[name][size] for name in self.attacks for size in self.sizes]
        return [self.tallies[CLEAN][0.0], *asked]

    def run(self) -> Iterator[int]:
        """Do what is missing; yields how many images times sizes are done, after every few of them."""
        first = min(tally.done for tally in self.wanted()) // self.loaded
        if first * self.loaded >= len(self.split):
            return
        at = first * self.loaded
        with frozen(self.model), frozen(self.other or nn.Identity()), _exact_convolutions():
            for images, labels in self.split.batches(0, start=first):
                offset = 0
                while offset < len(images):
                    part = slice(offset, offset + self.chunk)
                    try:
                        yield from self._chunk(images[part], labels[part], at + offset)
                    except torch.OutOfMemoryError:
                        if self.chunk == 1:
                            raise
                        self.chunk //= 2
                        torch.cuda.empty_cache()
                        continue
                    offset += len(images[part])
                at += len(images)

    def settle(self) -> None:
        """Cut every tally to the images that came: fewer than the split announced, if corrupt ones were left out."""
        come = min(tally.done for tally in self.wanted())
        for by_size in self.tallies.values():
            for tally in by_size.values():
                tally.cut(come)

    def _chunk(self, images: Tensor, labels: Tensor, first: int) -> Iterator[int]:
        end = first + len(images)
        place = slice(first, end)
        clean = self.tallies[CLEAN][0.0]
        if clean.done < end:
            began = time.perf_counter()
            clean.right[place], clean.right5[place] = self._score(self.model, images, labels)
            clean.done, clean.seconds = end, clean.seconds + time.perf_counter() - began
            yield sum(tally.done for tally in self.wanted())
        draws = AttackDraws(seed=self.seed, index_N=torch.arange(first, end, device=images.device))
        for name, attack in self.attacks.items():
            todo = [size for size in self.sizes if self.tallies[name][size].done < end]
            if not todo:
                continue
            made = attack.sweep(self.model, images, labels, eps=todo, draws=draws)
            spent = 0.0
            for size in todo:
                began = time.perf_counter()
                with self.autocast():
                    found = next(made)
                self._check(found.images_NCHW, images, size, attack.norm)
                tally = self.tallies[name][size]
                tally.right[place], tally.right5[place] = self._score(self.model, found.images_NCHW, labels)
                spent += time.perf_counter() - began
                self._keep(tally, place, found, labels, transfer=name == ATTACK)
                tally.done = end
                yield sum(each.done for each in self.wanted())
            # An attack may do for all sizes at once what costs most, so each carries its share.
            for size in todo:
                self.tallies[name][size].seconds += spent / len(todo)

    def _keep(self, tally: AttackTally, place: slice, found: Adversarial, labels: Tensor, *, transfer: bool) -> None:
        if found.blind_N is not None:
            if tally.blind is None:
                tally.blind = np.zeros(tally.images, dtype=np.bool_)
            tally.blind[place] = found.blind_N.cpu().numpy()
        if transfer and self.other is not None and tally.transfer is not None:
            tally.transfer[place] = self._score(self.other, found.images_NCHW, labels)[0]
        self.notes.update(dict.fromkeys(found.notes))

    @torch.inference_mode()
    def _score(self, model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Bits, Bits]:
        with self.autocast():
            logits = model(images)
        logits = logits.float()
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        both = torch.stack([ranked[:, 0], ranked.any(1)]).cpu().numpy()
        return both[0], both[1]

    def _check(self, found: Tensor, images: Tensor, size: float, norm: str) -> None:
        """What is counted must be an image no further than `size` from the original, whoever made it."""
        change = (found - images).flatten(1)
        far = change.abs().amax() if norm == "linf" else torch.linalg.vector_norm(change, dim=1).amax()
        low, high = torch.aminmax(found)
        if not (far <= size * (1 + _SLACK) + 1e-6 and low >= 0 and high <= 1):
            raise StarfireError(
                f"the attack gave images that it may not give at eps {size:g}: change {far:g} in {norm}, "
                f"pixels from {low:g} to {high:g}; this is a bug in the attack"
            )


@contextlib.contextmanager
def _exact_convolutions() -> Iterator[None]:
    """No TF32: by default a GPU rounds the inputs of convolutions to 10 bits, and a sign is all that FGSM looks at."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
