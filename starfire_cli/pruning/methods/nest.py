"""NeST: a network that grows from a sparse seed and is then pruned (Dai, Yin and Jha, 2019, arXiv 1711.02017)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from starfire_cli.errors import BadOption
from starfire_cli.pruning.axes import Axes, Change, Rewire
from starfire_cli.pruning.layer_units import LayerUnits
from starfire_cli.pruning.methods import METHODS
from starfire_cli.pruning.methods._network import check_every, check_fraction, check_positive
from starfire_cli.pruning.moment import Moment
from starfire_cli.pruning.neuron_growth import NeuronGrowth
from starfire_cli.pruning.removal import Rise, share_out
from starfire_cli.pruning.scores import score


@dataclass(frozen=True, kw_only=True)
class Seed:
    """A random sparse network; of the neurons between two linear layers some are dormant.

    Args:
        neurons: which can wake.
        sparsity: of each layer at a moment.
    """

    neurons: NeuronGrowth
    sparsity: Callable[[Moment], float]
    monotone: bool = field(default=True, init=False)
    reads: frozenset[str] = field(default=frozenset(), init=False)

    def apply(self, layers: Mapping[str, LayerUnits], moment: Moment) -> dict[str, Change]:
        alive = {key: units.alive for key, units in layers.items()}
        for first, second in self.neurons.pairs:
            every_H = torch.ones_like(alive[first][:, 0])
            rests_H = moment.choose(first, every_H, int(self.neurons.share * len(every_H)), "dormant")
            alive[first] = alive[first] & ~rests_H[:, None]
            alive[second] = alive[second] & ~rests_H[None]
        changes = {}
        for key, dead in share_out("uniform", layers, self.sparsity(moment), final=moment.target).items():
            units = layers[key]
            alive_U = units.flat(alive[key])
            due = min(dead, alive_U.numel() - 1) - int(torch.count_nonzero(~alive_U))
            rests_U = moment.choose(key, alive_U, due, "seed", order=units.order)
            changes[key] = Change(alive_U=alive_U & ~rests_U)
        return changes


@dataclass(frozen=True, kw_only=True)
class Growth:
    """In a growth phase dormant neurons wake, and of each layer's dead weights those of the largest average gradient.

    Args:
        neurons: which wake, and with which weights.
        sparsity: of each layer at a moment.
        passed: the share of the growth phase that is over at a moment; None where there is none.
        step: a weight comes back as minus this times its average gradient.
    """

    neurons: NeuronGrowth
    sparsity: Callable[[Moment], float]
    passed: Callable[[Moment], float | None]
    step: float
    monotone: bool = field(default=False, init=False)
    reads: frozenset[str] = field(default=frozenset({"momentum"}), init=False)

    def apply(self, layers: Mapping[str, LayerUnits], moment: Moment) -> dict[str, Change]:
        passed = self.passed(moment)
        if passed is None or any(units.momentum is None for units in layers.values()):
            return {}
        untouchable = self.neurons.untouchable(layers)
        values = {key: torch.zeros_like(units.weight) for key, units in layers.items()}
        for (first, second), born in self.neurons.wake(layers, passed, moment).items():
            values[first] += born.first
            values[second] += born.second
        changes = {}
        for key, dead in share_out("uniform", layers, self.sparsity(moment), final=moment.target).items():
            units = layers[key]
            assert units.momentum is not None
            born_U = units.flat(values[key]) != 0
            alive_U = units.alive_U | born_U
            open_U = ~alive_U & ~untouchable[key] if key in untouchable else ~alive_U
            due = units.count - dead - int(torch.count_nonzero(alive_U))
            back_U = units.largest(score("momentum", units), open_U, due)
            grown = torch.where(units.spread(back_U), units.momentum * -self.step, values[key])
            changes[key] = Change(alive_U=alive_U | back_U, values=grown)
        return changes


@METHODS.register("nest", "network")
@dataclass(frozen=True, kw_only=True)
class NeST:
    """Grows from a sparse seed by the gradients of dead weights, then prunes by magnitude; both again for each phase.

    Growth: connections of the largest |average gradient| of each layer (over about ten steps) come back with a step
    along it; between two linear layers dormant neurons wake by the bridging gradient. Pruning: the smallest
    |w gamma / sigma| of each layer, where a BatchNorm follows, else |w|; what goes may come back in a later growth
    phase only. Growth percentiles follow from `grown`, and the target takes the place of the paper's stop, when
    retraining no longer recovers the accuracy. Not here: feature-map growth of convolutions by trial, partial-area
    convolutions, and the widening of layers (dormant neurons are there from the start). Published: LeNet-300-100 and
    LeNet-5 with 1/70 and 1/74 of the parameters, AlexNet 1/15.7, VGG-16 1/30 (first version: 1/33).

    Args:
        seed: the sparsity to begin with; default: half of what the target leaves alive.
        grown: the sparsity that growth ends at; default: three quarters of the target.
        phases: of growth and pruning.
        share: of a phase that is growth.
        neurons: the share of the neurons between two linear layers that are dormant in the seed.
        ratio: the share of all pairs of inputs and outputs, of the largest bridging gradient, that new neurons connect.
        strength: the mean |w| of a new neuron's weights, over that of the layer's (the paper: above 0.3).
        step: of a new connection's weight along its gradient.
        every: steps between evaluations; default 100, or a twentieth of the era where that is less.
    """

    seed: float | None = None
    grown: float | None = None
    phases: int = 1
    share: float = 0.5
    neurons: float = 0.5
    ratio: float = 0.1
    strength: float = 0.4
    step: float = 0.1
    every: int | None = None

    def __post_init__(self) -> None:
        for name in ("seed", "grown"):
            if (value := getattr(self, name)) is not None:
                check_fraction(name, value)
        if self.phases < 1:
            raise BadOption(f"phases={self.phases} is out of range; 1 or more, each of growth and pruning")
        check_fraction("share", self.share)
        check_positive("share", self.share)
        check_fraction("neurons", self.neurons)
        check_fraction("ratio", self.ratio)
        check_positive("strength", self.strength)
        check_positive("step", self.step)
        check_every(self.every)

    def axes(self) -> Axes:
        neurons = NeuronGrowth(share=self.neurons, ratio=self.ratio, strength=self.strength)
        prune = Rise(
            score="effective",
            reach=lambda moment: self.sparsity(moment) / moment.target if moment.target else 0.0,
            pauses=lambda moment: self._growing(moment) is not None,
        )
        return Axes(
            start=Seed(neurons=neurons, sparsity=lambda moment: self._ends(moment.target)[0]),
            stages=(
                Growth(neurons=neurons, sparsity=self.sparsity, passed=self._growing, step=self.step),
                Rewire(removal=prune),
            ),
            every=self.every,
            span=(0.0, 0.75),
            penalty=neurons,
            periods=2 * self.phases,
        )

    def sparsity(self, moment: Moment) -> float:
        """The sparsity that is due: it falls from the seed's, or the last phase's, and rises to the target."""
        seed, grown = self._ends(moment.target)
        phase, place = self._place(moment)
        if place <= self.share:
            start = moment.target if phase else seed
            return start + (grown - start) * place / self.share
        return grown + (moment.target - grown) * (place - self.share) / (1 - self.share)

    def _growing(self, moment: Moment) -> float | None:
        place = self._place(moment)[1]
        return place / self.share if place <= self.share else None

    def _place(self, moment: Moment) -> tuple[int, float]:
        """The phase, from 0, and the share of it that is over. Its last evaluation still belongs to it."""
        number = max(0, math.ceil(moment.passed * self.phases - 1e-9) - 1)
        return number, moment.passed * self.phases - number

    def _ends(self, target: float) -> tuple[float, float]:
        """The sparsity of the seed, and that of the grown network. Raises BadOption where they are out of order."""
        seed = 1 - (1 - target) / 2 if self.seed is None else self.seed
        grown = 0.75 * target if self.grown is None else self.grown
        if grown > min(seed, target):
            raise BadOption(
                f"growth from seed={seed:g} to grown={grown:g} and pruning to --target {target:g} run backwards; grown "
                f"is at most {min(seed, target):g}"
            )
        return seed, grown
