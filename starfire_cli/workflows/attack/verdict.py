"""What the tallies say: points with intervals, two networks held against each other, and reasons for doubt."""

from __future__ import annotations

import dataclasses

import numpy as np

from starfire_cli.attacks import Size
from starfire_cli.formats.robustness import Bits
from starfire_cli.records.attack import NetworkResult, PairPoint, RobustPoint
from starfire_cli.workflows.attack.confidence import bootstrap, mcnemar, wilson
from starfire_cli.workflows.attack.sweep import ATTACK, CLEAN, AttackTally, Tallies

_BLIND = 0.01  # share of zero gradients beyond which an accuracy is in doubt
_SURE = 0.05  # p-value below which a difference counts as seen


def point(tally: AttackTally, size: Size, clean: AttackTally, right: Bits | None = None) -> RobustPoint:
    """One row: `tally` at `size`, or other bits (`right`) of the same images."""
    bits = tally.right if right is None else right
    correct, images = int(bits.sum()), tally.images
    low, high = wilson(correct, images)
    return RobustPoint(
        eps=size.eps,
        label=size.label,
        images=images,
        correct=correct,
        top1=correct / images,
        top5=float(tally.right5.mean()) if right is None else float("nan"),
        low=low,
        high=high,
        drop=float(clean.right.mean()) - correct / images,
        blind=None if tally.blind is None else float(tally.blind.mean()),
        images_per_second=images / tally.seconds if tally.seconds else 0.0,
    )


def points(tallies: Tallies, name: str, sizes: tuple[Size, ...]) -> tuple[RobustPoint, ...]:
    """The rows of one attack; size 0 is no attack."""
    clean = tallies[CLEAN][0.0]
    return tuple(point(clean if s.eps == 0 else tallies[name][s.eps], s, clean) for s in sizes)


def transferred(tallies: Tallies, other: Tallies, sizes: tuple[Size, ...]) -> tuple[RobustPoint, ...]:
    """The other network's rows on the images made against this one."""
    clean = other[CLEAN][0.0]
    rows = []
    for size in sizes:
        tally = clean if size.eps == 0 else tallies[ATTACK][size.eps]
        bits = clean.right if size.eps == 0 else tally.transfer
        if bits is not None:
            rows.append(point(tally, size, clean, bits))
    return tuple(rows)


def pairs(first: Tallies, second: Tallies, sizes: tuple[Size, ...], seed: int) -> tuple[PairPoint, ...]:
    """The two networks at every size, image by image."""
    rows = []
    for size in sizes:
        a, b = (t[CLEAN][0.0] if size.eps == 0 else t[ATTACK][size.eps] for t in (first, second))
        change = a.right.astype(np.int8) - b.right.astype(np.int8)
        low, high = bootstrap(change, seed=seed)
        drop = change - (first[CLEAN][0.0].right.astype(np.int8) - second[CLEAN][0.0].right.astype(np.int8))
        drop_low, drop_high = bootstrap(-drop, seed=seed)
        only_first, only_second = int((change > 0).sum()), int((change < 0).sum())
        p_exact, p_mid = mcnemar(only_first, only_second)
        rows.append(
            PairPoint(
                eps=size.eps,
                label=size.label,
                first=float(a.right.mean()),
                second=float(b.right.mean()),
                difference=float(change.mean()),
                low=low,
                high=high,
                only_first=only_first,
                only_second=only_second,
                p_exact=p_exact,
                p_mid=p_mid,
                drop_difference=0.0 - float(drop.mean()),
                drop_low=drop_low,
                drop_high=drop_high,
            )
        )
    return tuple(rows)


def doubts(tallies: Tallies, sizes: tuple[Size, ...], attack: str, controls: tuple[str, ...]) -> tuple[str, ...]:
    """Signs of gradient masking, where gradients mislead the attack and the accuracy flatters the network."""
    clean, nonzero = tallies[CLEAN][0.0], [s for s in sizes if s.eps]
    rows = [(s.label, tallies[ATTACK][s.eps]) for s in nonzero]
    found = []
    blind = max((float(t.blind.mean()) for _, t in rows if t.blind is not None), default=0.0)
    if blind > _BLIND:
        found.append(
            f"gradient masking: {blind:.1%} of the images have an input gradient of exactly zero "
            f"(saturated logits?), and an attack that follows gradients leaves them as they are"
        )
    for (smaller, before), (larger, after) in zip([("0", clean), *rows], rows, strict=False):
        if _surely_fewer(before.right, after.right):
            found.append(
                f"gradient masking? accuracy rises from {before.right.mean():.2%} at eps {smaller} to "
                f"{after.right.mean():.2%} at {larger}: a larger eps allows all that a smaller one does"
            )
            break
    for control in controls:
        for size in reversed(nonzero):
            ours, theirs = tallies[ATTACK][size.eps].right, tallies[control][size.eps].right
            if control != "noise" and _surely_fewer(theirs, ours):
                found.append(
                    f"gradient masking: {attack} is weaker than one step of {control} at eps {size.label} "
                    f"({ours.mean():.2%} against {theirs.mean():.2%} still right)"
                )
                break
            lost, lost_to_noise = clean.right.mean() - ours.mean(), clean.right.mean() - theirs.mean()
            if control == "noise" and _surely_fewer(theirs, clean.right) and lost_to_noise >= 0.9 * lost:
                found.append(
                    f"gradient masking? at eps {size.label} noise of the same size costs {lost_to_noise:.2%}, the "
                    f"attack {lost:.2%}: the gradients mislead, or any change of that size destroys the images"
                )
                break
    return tuple(found)


def _surely_fewer(first: Bits, second: Bits) -> bool:
    """Whether the first are right less often than the second by more than chance."""
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    return only_first < only_second and mcnemar(only_first, only_second)[1] < _SURE


def as_plain(row: RobustPoint) -> dict[str, object]:
    """A row for JSON; what was not measured is left out."""
    plain: dict[str, object] = {
        "eps": row.eps,
        "top1": row.top1,
        "top5": row.top5,
        "correct": row.correct,
        "images": row.images,
        "low": row.low,
        "high": row.high,
        "drop": row.drop,
        "zero_gradients": row.blind,
        "images_per_second": round(row.images_per_second, 1),
    }
    return {k: v for k, v in plain.items() if v is not None and v == v}


def pair_as_plain(row: PairPoint) -> dict[str, object]:
    """The same for a pair."""
    return {k: v for k, v in dataclasses.asdict(row).items() if k != "label"}


def document(result: NetworkResult) -> dict[str, object]:
    """The part of the document that one network fills."""
    return {
        "checkpoint": str(result.path),
        "title": result.title,
        "images": result.clean.images,
        "clean_top1": result.clean.top1,
        "clean_top5": result.clean.top5,
        "points": [as_plain(row) for row in result.points],
        "controls": {name: [as_plain(row) for row in rows] for name, rows in result.controls.items()},
        "warnings": list(result.warnings),
        **({"transfer": [as_plain(row) for row in result.transfer]} if result.transfer else {}),
    }
