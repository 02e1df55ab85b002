"""Lottery tickets by iterative magnitude pruning with rewinding (Frankle and Carbin, 2019, arXiv 1803.03635)."""

from __future__ import annotations

from dataclasses import dataclass

from starfire_cli.pruning.axes import Axes, Rewire
from starfire_cli.pruning.methods import METHODS
from starfire_cli.pruning.methods._network import check_choice
from starfire_cli.pruning.moment import Moment
from starfire_cli.pruning.removal import Rise
from starfire_cli.pruning.rounds import Rounds


@METHODS.register("lottery", "network")
@dataclass(frozen=True, kw_only=True)
class Lottery:
    """Trains to the end, prunes a share of what lives by |w|, sets the rest back to where it was, and trains again.

    Each round is a training of `--epochs`; there is one more than there are prunings. Late rewinding: Frankle et al.,
    2019, arXiv 1903.01611; learning-rate rewinding: Renda et al., 2020, arXiv 2003.02389. Published: tickets of
    ResNet-20 on CIFAR-10 match the dense network down to about 20 % of its weights if rewound to step 500 to 1000.

    Args:
        rounds: prunings; default: as many as the target needs at p a time. The last goes to the target, whatever that
            takes: rounds=1 prunes once.
        p: the share of the live weights that a pruning takes. The paper takes half as much of the output layer of its
            fully connected networks; here it is one share for all.
        pool: "global" (as the papers for convolutional networks) or "layer".
        rewind: "weights" (BatchNorm included, optimizer fresh) or "lr": weights are kept, the schedule is repeated.
        rewind_at: where a further round begins, weights, learning rate and data alike: a step of the first round
            ("500"), an epoch ("2ep") or 0, the initialisation.
        control: of the last round, which trains "reinit" (the ticket's mask, weights initialised anew) or "shuffle"
            (the mask shuffled within each layer, weights as rewound) in place of the ticket.
    """

    rounds: int | None = None
    p: float = 0.2
    pool: str = "global"
    rewind: str = "weights"
    rewind_at: str = "0"
    control: str = "none"

    def __post_init__(self) -> None:
        check_choice("pool", self.pool, ("global", "layer"))
        self._rounds()

    def axes(self) -> Axes:
        allocation = "uniform" if self.pool == "layer" else self.pool
        return Axes(stages=(Rewire(removal=Rise(allocation=allocation, reach=self.reach)),), rounds=self._rounds())

    def reach(self, moment: Moment) -> float:
        """The part of the target that is due at a step. The era begins at the end of the first round."""
        done = max(0, moment.step - 1) // max(1, moment.era.first_step)
        return self._rounds().sparsity(done, moment.target) / moment.target

    def _rounds(self) -> Rounds:
        return Rounds(fraction=self.p, count=self.rounds, rewind=self.rewind, at=self.rewind_at, control=self.control)
