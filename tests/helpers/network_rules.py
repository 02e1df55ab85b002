"""The methods of the whole network as literal loops over Python numbers: the oracle for masks and for what comes back.

Written from the papers' words; of the package only the random draws are used (`Moment.choose`, `Moment.generator`),
which are ours. Weights are flat lists in the order of the axes, counts are exact fractions, ties go by index.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from starfire_cli.pruning.moment import Moment
from starfire_cli.pruning.schedule import Era


@dataclass(kw_only=True)
class View:
    """One layer as a rule sees it.

    Args:
        key: the layer's.
        shape: of its weight.
        weight: after the optimizer's step, or in its place.
        before: the weights before that step.
        gradient: of all weights, also dead ones.
        average: 0.9 times the last one plus the gradient, at every step.
        alive: what lives; rules change it.
        born: what restarts in an evaluation, and with which value.
    """

    key: str
    shape: tuple[int, ...]
    weight: list[float]
    before: list[float]
    gradient: list[float]
    average: list[float]
    alive: list[bool]
    born: dict[int, float] = field(default_factory=dict)

    def live(self) -> list[int]:
        return [i for i, alive in enumerate(self.alive) if alive]

    def dead(self) -> list[int]:
        return [i for i, alive in enumerate(self.alive) if not alive]

    def kill(self, places: Iterable[int]) -> None:
        for i in places:
            self.alive[i] = False

    def revive(self, places: Iterable[int], *, kept: Iterable[int] = ()) -> None:
        """From the value 0, but for those that are `kept`."""
        for i in places:
            self.alive[i] = True
            if i not in kept:
                self.born[i] = 0.0

    def weakest(self, among: list[int], count: int) -> list[int]:
        return sorted(among, key=lambda i: (abs(self.weight[i]), i))[: max(0, count)]


Views = list[View]


@dataclass(kw_only=True)
class Setting:
    """When and how far: the target, the era's steps, those between evaluations, the seed."""

    target: Fraction
    first: int
    last: int
    every: int
    seed: int
    memory: dict[str, Any] = field(default_factory=dict)

    def passed(self, step: int) -> Fraction:
        return Fraction(min(step, self.last) - self.first, self.last - self.first)

    def cosine(self, start: float, end: float, step: int) -> float:
        return end + (start - end) * (1 + math.cos(math.pi * float(self.passed(step)))) / 2

    def draws(self, step: int) -> Moment:
        era = Era(first_step=self.first, last_step=self.last)
        return Moment(step=step, era=era, target=float(self.target), seed=self.seed)

    def choose(self, view: View, among: list[int], count: int, what: str, step: int) -> list[int]:
        candidates = torch.tensor([i in set(among) for i in range(len(view.alive))])
        return self.draws(step).choose(view.key, candidates, count, what).nonzero().flatten().tolist()


Act = Callable[[Setting, Views, int], None]


@dataclass(kw_only=True)
class Rule:
    """A method: what happens before the first step, and at an evaluation."""

    begin: Act = lambda setting, views, step: None
    evaluate: Act | None = None
    replaces_step: bool = False
    at_the_end: bool = False  # whether the era's last step is an evaluation, on the clock or not
    dense_first: bool = False


def share(count: int, fraction: float) -> int:
    """A fraction rounded down; a product that is a whole number but for the last digit counts as that."""
    return max(0, min(math.floor(round(count * fraction, 9)), count - 1))


# Who is due how much


def uniform_counts(views: Views, sparsity: Fraction) -> list[int]:
    return [min(math.ceil(len(view.alive) * sparsity), len(view.alive) - 1) for view in views]


def renyi_counts(views: Views, sparsity: Fraction, final: Fraction, *, kernel: bool) -> list[int]:
    """Density in proportion to sum over product of the dimensions; the most over 1 becomes dense, and again.

    Of what is rounded the largest remainders go first, but nowhere more than in the end.
    """
    sizes = [len(view.alive) for view in views]
    dims = [view.shape if kernel else view.shape[:2] for view in views]
    raw = [Fraction(sum(d), math.prod(d)) for d in dims]
    dense: set[int] = set()
    while True:
        rest = [n for n in range(len(views)) if n not in dense]
        alive = (1 - sparsity) * sum(sizes) - sum(sizes[n] for n in dense)
        factor = alive / sum(raw[n] * sizes[n] for n in rest)
        top = max(raw[n] for n in rest)
        if top * factor <= 1:
            break
        dense |= {n for n in rest if raw[n] == top}
    dead = [Fraction(0) if n in dense else (1 - factor * raw[n]) * sizes[n] for n in range(len(views))]
    total, already = math.ceil(sum(sizes) * sparsity), [len(view.dead()) for view in views]
    counts = [max(already[n], math.floor(dead[n])) for n in range(len(views))]
    most = [max(already[n], 0 if n in dense else sizes[n] - 1) for n in range(len(views))]
    if sparsity != final:
        most = renyi_counts(views, final, final, kernel=kernel)
        counts = list(map(min, counts, most))
    while sum(counts) < min(total, sum(most)):
        counts[min((counts[n] - dead[n], n) for n in range(len(views)) if counts[n] < most[n])[1]] += 1
    while sum(counts) > total:
        counts[min((dead[n] - counts[n], n) for n in range(len(views)) if counts[n] > already[n])[1]] -= 1
    return counts


def counts_of(allocation: str, views: Views, sparsity: Fraction, final: Fraction) -> list[int]:
    if allocation == "uniform":
        return uniform_counts(views, sparsity)
    return renyi_counts(views, sparsity, final, kernel=allocation == "erk")


def prune_to(views: Views, counts: list[int]) -> None:
    for view, dead in zip(views, counts, strict=True):
        view.kill(view.weakest(view.live(), min(dead - len(view.dead()), len(view.live()) - 1)))


def prune_globally(views: Views, scores: list[list[float]], sparsity: Fraction) -> None:
    """All live weights in one sorted list, but for the strongest of each layer (of equals the last)."""
    rows = []
    for n, view in enumerate(views):
        best = max(view.live(), key=lambda i: (scores[n][i], i))
        rows += [(scores[n][i], n, i) for i in view.live() if i != best]
    due = math.ceil(sum(len(view.alive) for view in views) * sparsity) - sum(len(view.dead()) for view in views)
    for _, n, i in sorted(rows)[: max(0, due)]:
        views[n].alive[i] = False


def magnitudes(views: Views) -> list[list[float]]:
    return [[abs(w) for w in view.weight] for view in views]


def random_start(allocation: str, sparsity: Fraction | None = None) -> Act:
    def act(setting: Setting, views: Views, step: int) -> None:
        share = setting.target if sparsity is None else sparsity
        counts = counts_of(allocation, views, share, share)
        for view, dead in zip(views, counts, strict=True):
            view.kill(setting.choose(view, view.live(), dead, "start", step))

    return act


def swap(view: View, count: int, grow: Callable[[View, int], list[int]], *, keeps: bool) -> None:
    """The weakest go, as many of all that is dead then come back."""
    was = view.live()
    view.kill(view.weakest(was, count))
    view.revive(grow(view, count), kept=was if keeps else ())


def by_gradient(view: View, count: int) -> list[int]:
    return sorted(view.dead(), key=lambda i: (-abs(view.gradient[i]), i))[:count]


# Methods


def gmp(pool: str = "layer", initial: str = "0") -> Rule:
    def evaluate(setting: Setting, views: Views, step: int) -> None:
        start = Fraction(initial)
        sparsity = setting.target + (start - setting.target) * (1 - setting.passed(step)) ** 3
        if pool == "global":
            prune_globally(views, magnitudes(views), sparsity)
        else:
            prune_to(views, counts_of("uniform" if pool == "layer" else pool, views, sparsity, setting.target))

    return Rule(evaluate=evaluate, at_the_end=True)


def narang(q: float | None = None, ramp_at: str = "0.5") -> Rule:
    def evaluate(setting: Setting, views: Views, step: int) -> None:
        length = setting.last - setting.first
        ramp = Fraction(ramp_at) * length  # steps after the first
        theta = Fraction(2) / (2 * ramp + 3 * (length - ramp))  # of q, a step
        i = step - setting.first
        slope = theta * i if i <= ramp else theta * ramp + Fraction(3, 2) * theta * (i - ramp)
        for view in views:
            if q is None and view.key not in setting.memory:
                live = sorted(abs(view.weight[i]) for i in view.live())
                setting.memory[view.key] = live[max(1, min(len(live), round(setting.target * len(live)))) - 1]
            threshold = np.float32(float(slope * Fraction(q if q is not None else setting.memory[view.key])))
            low = [i for i in view.live() if np.float32(abs(view.weight[i])) < threshold]
            view.kill(view.weakest(low, min(len(low), len(view.live()) - 1)))

    return Rule(evaluate=evaluate, at_the_end=True)


def set_(fraction: float = 0.3, by_sign: bool = True, anneal: str = "constant", allocation: str = "erk") -> Rule:
    def evaluate(setting: Setting, views: Views, step: int) -> None:
        part = fraction if anneal == "constant" else setting.cosine(fraction, 0.0, step)
        for view in views:
            positive = [i for i in view.live() if view.weight[i] > 0]
            rest = [i for i in view.live() if view.weight[i] <= 0]
            sides = [positive, rest] if by_sign else [view.live()]
            gone = [i for side in sides for i in view.weakest(side, share(len(side), part))]
            view.kill(gone)
            view.revive(setting.choose(view, view.dead(), len(gone), "grow", step))

    return Rule(begin=random_start(allocation), evaluate=evaluate, dense_first=allocation == "uniform")


def rigl(fraction: float = 0.3, allocation: str = "erk") -> Rule:
    def evaluate(setting: Setting, views: Views, step: int) -> None:
        for view in views:
            swap(view, share(len(view.live()), setting.cosine(fraction, 0.0, step)), by_gradient, keeps=True)

    return Rule(
        begin=random_start(allocation), evaluate=evaluate, replaces_step=True, dense_first=allocation == "uniform"
    )


def granet(initial: str = "0", fraction: float = 0.5, end: float = 0.005) -> Rule:
    def evaluate(setting: Setting, views: Views, step: int) -> None:
        start = Fraction(initial)
        sparsity = setting.target + (start - setting.target) * (1 - setting.passed(step)) ** 3
        prune_globally(views, magnitudes(views), sparsity)
        for view in views:
            view.weight = [w if alive else 0.0 for w, alive in zip(view.weight, view.alive, strict=True)]
            swap(view, share(len(view.live()), setting.cosine(fraction, end, step)), by_gradient, keeps=True)

    begin = random_start("erk", Fraction(initial)) if Fraction(initial) else Rule().begin
    return Rule(begin=begin, evaluate=evaluate, at_the_end=True)


def static(allocation: str = "erk") -> Rule:
    return Rule(begin=random_start(allocation), dense_first=allocation == "uniform")


def snip(pool: str = "global") -> Rule:
    def begin(setting: Setting, views: Views, step: int) -> None:
        scores = [[abs(w * g) for w, g in zip(view.weight, view.gradient, strict=True)] for view in views]
        if pool == "global":
            prune_globally(views, scores, setting.target)
            return
        for view, score, dead in zip(views, scores, uniform_counts(views, setting.target), strict=True):
            view.kill(sorted(view.live(), key=lambda i: (score[i], i))[:dead])

    return Rule(begin=begin)


def shares(setting: Setting, step: int, due: list[float], places: list[int], total: int) -> list[int]:
    """Rounded shares; a random layer takes what rounding is off by; what finds no place is shared out again."""
    generator = setting.draws(step).generator("", "shares")
    counts = [0] * len(due)
    while sum(counts) < total:
        left = total - sum(counts)
        able = [n for n in range(len(due)) if counts[n] < places[n]]
        whole = sum(due[n] for n in able)
        more = {n: round(left * due[n] / whole) for n in able}
        if sum(more.values()) != left:
            n = able[int(generator.integers(len(able)))]
            more[n] = max(0, more[n] + left - sum(more.values()))
        for n in able:
            counts[n] += min(more[n], places[n] - counts[n], total - sum(counts))
    return counts


def dsr(unit: str = "weight", moves: float = 0.08, threshold: float = 1e-3) -> Rule:
    def parts(view: View) -> list[list[int]]:
        """The weights of each unit."""
        size = 1 if unit == "weight" else math.prod(view.shape[2:])
        return [list(range(n * size, (n + 1) * size)) for n in range(len(view.alive) // size)]

    def begin(setting: Setting, views: Views, step: int) -> None:
        for view in views:
            units = parts(view)
            dead = min(math.ceil(len(units) * setting.target), len(units) - 1)
            among = torch.ones(len(units), dtype=torch.bool)
            gone = setting.draws(step).choose(view.key, among, dead, "start")
            view.kill(i for n in gone.nonzero().flatten().tolist() for i in units[n])

    def evaluate(setting: Setting, views: Views, step: int) -> None:
        limit = setting.memory.setdefault("threshold", threshold)
        live, gone = [], []
        for view in views:
            means = [sum(abs(view.weight[i]) for i in unit) / len(unit) for unit in parts(view)]
            mine = [n for n, unit in enumerate(parts(view)) if view.alive[unit[0]]]
            low = [n for n in mine if np.float32(means[n]) < np.float32(limit)]
            if len(low) == len(mine):
                low.remove(max(low, key=lambda n: (means[n], n)))
            live.append(mine)
            gone.append(low)
        wanted = moves if moves >= 1 else moves * sum(map(len, live))
        moved = sum(map(len, gone))
        setting.memory["threshold"] = (
            limit / 2 if moved > 1.1 * wanted else limit * 2 if moved < 0.9 * wanted else limit
        )
        sizes = [len(parts(view)[0]) for view in views]
        for size in dict.fromkeys(sizes):
            group = [n for n in range(len(views)) if sizes[n] == size]
            total = sum(len(gone[n]) for n in group)
            free = {n: sorted(set(range(len(parts(views[n])))) - set(live[n])) for n in group}
            if sum(map(len, free.values())) < total:
                free = {n: sorted({*free[n], *gone[n]}) for n in group}
            due = [float(len(live[n]) - len(gone[n])) for n in group]
            counts = shares(setting, step, due, [len(free[n]) for n in group], total)
            for n, count in zip(group, counts, strict=True):
                units = parts(views[n])
                among = torch.tensor([place in set(free[n]) for place in range(len(units))])
                back = setting.draws(step).choose(views[n].key, among, count, "grow").nonzero().flatten().tolist()
                views[n].kill(i for place in gone[n] for i in units[place])
                views[n].revive(i for place in back for i in units[place])

    return Rule(begin=begin, evaluate=evaluate, dense_first=True)


def snfs(fraction: float = 0.5, allocation: str = "uniform") -> Rule:
    def evaluate(setting: Setting, views: Views, step: int) -> None:
        part = setting.cosine(fraction, 0.0, step)
        due = [math.fsum(abs(view.average[i]) for i in view.live()) / len(view.live()) for view in views]
        lost = [share(len(view.live()), part) for view in views]
        for view, count in zip(views, lost, strict=True):
            view.kill(view.weakest(view.live(), count))
        counts = shares(setting, step, due, [len(view.dead()) for view in views], sum(lost))
        for view, count in zip(views, counts, strict=True):
            view.revive(sorted(view.dead(), key=lambda i: (-abs(view.average[i]), i))[:count])

    return Rule(begin=random_start(allocation), evaluate=evaluate, dense_first=allocation == "uniform")


def deepr(allocation: str = "uniform", **_: float) -> Rule:
    def evaluate(setting: Setting, views: Views, step: int) -> None:
        for view in views:
            dormant = view.dead()
            crossed = [i for i in view.live() if view.before[i] * view.weight[i] <= 0][: len(dormant)]
            woken = setting.choose(view, dormant, len(crossed), "wake", step)
            signs = setting.draws(step).generator(view.key, "sign").integers(0, 2, size=len(woken))
            view.kill(crossed)
            for i, positive in zip(woken, signs, strict=True):
                view.alive[i] = True
                view.born[i] = float(np.float32(1e-12 if positive else -1e-12))

    return Rule(begin=random_start(allocation), evaluate=evaluate, dense_first=allocation == "uniform")


def srigl(fraction: float = 0.3, salient: float = 0.3, allocation: str = "erk") -> Rule:
    def begin(setting: Setting, views: Views, step: int) -> None:
        for view, dead in zip(views, counts_of(allocation, views, setting.target, setting.target), strict=True):
            rows = rows_of(view)
            each, more = divmod(len(view.alive) - dead, len(rows))
            for k, row in enumerate(rows):
                among = torch.ones(len(row), dtype=torch.bool)
                if dead:
                    kept = setting.draws(step).choose(view.key, among, each + (k < more), f"start {k}")
                    view.kill(i for i, keep in zip(row, kept.tolist(), strict=True) if not keep)

    def evaluate(setting: Setting, views: Views, step: int) -> None:
        for view in views:
            update(view, setting.cosine(fraction, 0.0, step), ablate=view is not views[-1])

    def update(view: View, part: float, *, ablate: bool) -> None:
        rows, was = rows_of(view), view.live()
        drop = share(len(was), part)
        keep = len(was) - drop
        top = set(was) - set(view.weakest(was, drop))
        top |= set(sorted(range(len(view.alive)), key=lambda i: (-abs(view.gradient[i]), i))[:drop])
        stays = list(range(len(rows)))
        if ablate:
            useful = [sum(i in top for i in row) for row in rows]
            fan_in = round(len(was) / sum(any(view.alive[i] for i in row) for row in rows))
            stays = [k for k in stays if useful[k] >= max(1, salient * fan_in)]
            least = math.ceil(len(was) / len(rows[0]))
            if len(stays) < least:
                stays = sorted(sorted(range(len(rows)), key=lambda k: (-useful[k], k))[:least])
        living = [i for k in stays for i in rows[k] if view.alive[i]]
        kept = set(living) - set(view.weakest(living, len(living) - keep))
        each, more = divmod(len(was), len(stays))
        view.kill(was)
        for place, k in enumerate(stays):
            wanted = each + (place < more)
            mine = [i for i in rows[k] if i in kept]
            mine = sorted(set(mine) - set(view.weakest(mine, len(mine) - wanted)))
            others = sorted(
                (i for i in rows[k] if i not in mine and i not in kept), key=lambda i: -abs(view.gradient[i])
            )
            view.revive([*mine, *others[: wanted - len(mine)]], kept=was)

    return Rule(begin=begin, evaluate=evaluate, replaces_step=True, dense_first=allocation == "uniform")


def rows_of(view: View) -> list[list[int]]:
    size = len(view.alive) // view.shape[0]
    return [list(range(k * size, (k + 1) * size)) for k in range(view.shape[0])]


def ac_dc(pool: str = "global", phases: int = 7) -> Rule:
    def evaluate(setting: Setting, views: Views, step: int) -> None:
        phase = math.floor(setting.passed(step) * phases)
        if phase == setting.memory.get("phase", 0):
            return
        setting.memory["phase"] = phase
        if phase % 2 == 0:
            for view in views:
                view.revive(view.dead())
        elif pool == "global":
            prune_globally(views, magnitudes(views), setting.target)
        else:
            prune_to(views, uniform_counts(views, setting.target))

    return Rule(evaluate=evaluate, at_the_end=True)


def deep_compression(s: float | None = None) -> Rule:
    def evaluate(setting: Setting, views: Views, step: int) -> None:
        deviations = [float(np.std([view.weight[i] for i in view.live()])) for view in views]
        if s is None:
            scores = [
                [float(np.float32(abs(w)) / np.float32(deviation)) for w in view.weight]
                for view, deviation in zip(views, deviations, strict=True)
            ]
            prune_globally(views, scores, setting.target * setting.passed(step))
            return
        for view, deviation in zip(views, deviations, strict=True):
            limit = np.float32(s * float(setting.passed(step)) * deviation)
            low = [i for i in view.live() if np.float32(abs(view.weight[i])) < limit]
            view.kill(view.weakest(low, min(len(low), len(view.live()) - 1)))

    return Rule(evaluate=evaluate, at_the_end=True)


RULES: dict[str, Callable[..., Rule]] = {
    "ac-dc": ac_dc,
    "deep-compression": deep_compression,
    "deepr": deepr,
    "dsr": dsr,
    "gmp": gmp,
    "granet": granet,
    "narang": narang,
    "rigl": rigl,
    "set": set_,
    "snfs": snfs,
    "snip": snip,
    "srigl": srigl,
    "static": static,
}
