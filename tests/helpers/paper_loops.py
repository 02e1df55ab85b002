"""The paper's algorithms as literal loops over Python numbers: the oracle for the masks.

`paper_*` follow the printed pseudocode to the letter (strictly greater than the cutoff value). `decided_*` follow the
counts and the tie-break that docs/method.md settles on. Weights and masks are nested lists, [k][c] lists of R * S.
"""

from __future__ import annotations

import math
from fractions import Fraction

Kernels = list[list[list[float]]]
Alive = list[list[list[bool]]]


def paper_window(theta: Kernels, threshold: float, max_non_zero: int | None) -> Alive:
    """Algorithm 3."""
    mask: Alive = [[[] for _ in theta[0]] for _ in theta]
    for c in range(len(theta[0])):
        for k in range(len(theta)):
            window = [abs(w) for w in theta[k][c]]
            size = len(window)
            cutoff_index = int(size * threshold)
            n = cutoff_index if max_non_zero is None else max(cutoff_index, size - max_non_zero - 1)
            cutoff_value = sorted(window)[n]
            mask[k][c] = [w > cutoff_value for w in window]
    return mask


def paper_ck(theta: Kernels, threshold: float) -> list[list[bool]]:
    """Algorithm 1, as mask[k][c]."""
    mask = [[True] * len(theta[0]) for _ in theta]
    for c in range(len(theta[0])):
        kernel_max = [max(abs(w) for w in theta[k][c]) for k in range(len(theta))]
        cutoff_value = sorted(kernel_max)[int(len(kernel_max) * threshold)]
        for k in range(len(theta)):
            mask[k][c] = kernel_max[k] > cutoff_value
    return mask


def exact(number: float | Fraction) -> Fraction:
    """A threshold as the short decimal or fraction that was meant."""
    return number if isinstance(number, Fraction) else Fraction(str(number))


def decided_count(n: int, threshold: Fraction, max_nonzero: int | None = None, progress: Fraction = Fraction(1)) -> int:
    """ceil(n t), or what a cap asks for if that is more."""
    by_cap = 0 if max_nonzero is None else math.ceil((n - max_nonzero) * progress)
    return min(n, max(math.ceil(n * threshold), by_cap))


def first_to_go(scores: list[float], alive: list[bool], count: int) -> list[bool]:
    """What stays of one set of competitors: the dead go first, then the small, then those of lower index."""
    order = sorted(range(len(scores)), key=lambda i: (alive[i], abs(scores[i]), i))
    gone = set(order[:count])
    return [alive[i] and i not in gone for i in range(len(scores))]


def decided_window(theta: Kernels, alive: Alive, count: int) -> Alive:
    """In every window, `count` go."""
    return [[first_to_go(theta[k][c], alive[k][c], count) for c in range(len(theta[0]))] for k in range(len(theta))]


def decided_ck(theta: Kernels, alive: Alive, count: int, groups: int = 1) -> Alive:
    """Of the kernels that read one input channel, `count` go whole; in a group only its own kernels compete."""
    left = [[list(window) for window in row] for row in alive]
    K, per_group = len(theta), len(theta) // groups
    for first in range(0, K, per_group):
        ks = range(first, first + per_group)
        for c in range(len(theta[0])):
            kernel_max = [
                max((abs(w) for w, a in zip(theta[k][c], alive[k][c], strict=True) if a), default=0) for k in ks
            ]
            stays = first_to_go(kernel_max, [any(alive[k][c]) for k in ks], count)
            for k, stay in zip(ks, stays, strict=True):
                if not stay:
                    left[k][c] = [False] * len(left[k][c])
    return left


def decided_intra(
    theta: Kernels, alive: Alive, t: Fraction, share: Fraction, max_nonzero: int | None, groups: int = 1
) -> Alive:
    """Algorithm 4 at the era's end: windows lose share * t (or what the cap asks), kernels what is lacking."""
    size = len(theta[0][0])
    in_window = decided_count(size, share * t, max_nonzero if size == 9 else None)
    reached = Fraction(in_window, size)
    q = (t - reached) / (1 - reached) if t > reached else Fraction(0)
    left = decided_window(theta, alive, in_window)
    return decided_ck(theta, left, decided_count(len(theta) // groups, q), groups)


def decided_fine(weights: list[list[float]], alive: list[list[bool]], count: int) -> list[list[bool]]:
    """All weights of a linear layer compete, but the largest of each row stays (of equals, the last)."""
    rows, columns = len(weights), len(weights[0])
    cells = {(o, i): abs(weights[o][i]) for o in range(rows) for i in range(columns)}
    living = {at for at in cells if alive[at[0]][at[1]]}
    stays = set()
    for o in range(rows):
        row = [at for at in living if at[0] == o]
        if row:
            stays.add(max(row, key=lambda at: (cells[at], at)))
    gone = _gone_first(cells, living, stays, count)
    return [[alive[o][i] and (o, i) not in gone for i in range(columns)] for o in range(rows)]


def decided_block(weights: list[list[float]], alive: list[list[bool]], n: int, count: int) -> list[list[bool]]:
    """n x n tiles compete by the sum of what is alive in them; each neuron keeps the strongest tile it lives in."""
    rows, columns = len(weights), len(weights[0])
    sums: dict[tuple[int, int], float] = {}
    living, stays = set(), set()
    for o in range(rows):
        for i in range(columns):
            tile = (o // n, i // n)
            sums[tile] = sums.get(tile, 0) + (abs(weights[o][i]) if alive[o][i] else 0)
            if alive[o][i]:
                living.add(tile)
    for o in range(rows):
        lives_in = [(o // n, i // n) for i in range(columns) if alive[o][i]]
        if lives_in:
            stays.add(max(lives_in, key=lambda tile: (sums[tile], tile)))
    gone = _gone_first(sums, living, stays, count)
    return [[alive[o][i] and (o // n, i // n) not in gone for i in range(columns)] for o in range(rows)]


def _gone_first(
    scores: dict[tuple[int, int], float], living: set[tuple[int, int]], stays: set[tuple[int, int]], count: int
) -> set[tuple[int, int]]:
    order = sorted(living - stays, key=lambda at: (scores[at], at))
    return set(order[: max(0, count - (len(scores) - len(living)))])
