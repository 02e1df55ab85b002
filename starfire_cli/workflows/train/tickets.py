"""The rounds of a run of lottery tickets: how many there are, where each begins, and what is rewound to."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from starfire_cli.errors import BadOption
from starfire_cli.pruning import TRAINING_METHODS, NetworkMethod
from starfire_cli.pruning.methods.lottery import Lottery
from starfire_cli.pruning.rounds import Rounds
from starfire_cli.pruning.schedule import Era
from starfire_cli.workflows.train.request import TrainRequest
from starfire_cli.workflows.train.settings import Pruning


@dataclass(kw_only=True, eq=False)
class Tickets:
    """The rounds of a run, and the one under way. Epochs and steps of the run count on over all rounds.

    Args:
        rounds: the method's.
        trainings: rounds in all, each a training; all but the last end with a pruning.
        epochs: of a round.
        steps: of a round.
        steps_per_epoch: optimizer steps.
        first: the step of a round at which all rounds but the first begin.
        round: the one under way, from 1; changes.
        kept: the network's state at step `first` of the first round, on the CPU, where it is rewound to.
    """

    rounds: Rounds
    trainings: int
    epochs: int
    steps: int
    steps_per_epoch: int
    first: int
    round: int = 1
    kept: dict[str, Tensor] | None = None

    @property
    def era(self) -> Era:
        """From the end of the first round to the first step of the last, which has the ticket's mask."""
        return Era(first_step=self.steps, last_step=(self.trainings - 1) * self.steps + self.first + 1)

    @property
    def rewinds_weights(self) -> bool:
        """Whether weights are set back."""
        return self.rounds.rewind == "weights"

    @property
    def trained_epochs(self) -> int:
        """The epochs of all rounds, also those of which only the end is trained."""
        return self.trainings * self.epochs - (self.trainings - 1) * (self.first // self.steps_per_epoch)

    def is_over(self, epoch: int) -> bool:
        """Whether, after so many epochs of the run, another round is due to begin."""
        return self.round < self.trainings and epoch >= self.round * self.epochs

    def describe(self) -> str:
        """A line for the user."""
        rounds = f"{self.trainings} rounds of training, with a pruning after each but the last"
        return f"{rounds}: --epochs {self.epochs} is the length of one, {self.trainings * self.epochs} in all"

    def begin_step(self, number: int) -> int:
        """The step of the run at which a round begins."""
        return (number - 1) * self.steps + (self.first if number > 1 else 0)


def tickets_of(pruning: Pruning, epochs: int | None, steps_per_epoch: int) -> Tickets | None:
    """The rounds of a method, each of so many epochs; None where there is one training. Raises BadOption."""
    if not isinstance(pruning.conv, NetworkMethod) or (rounds := pruning.conv.axes().rounds) is None:
        return None
    assert epochs is not None
    steps = epochs * steps_per_epoch
    return Tickets(
        rounds=rounds,
        trainings=rounds.prunings(pruning.target) + 1,
        epochs=epochs,
        steps=steps,
        steps_per_epoch=steps_per_epoch,
        first=rounds.rewind_step(steps, steps_per_epoch),
    )


def rewind_in_epochs(spec: str, steps_per_epoch: int) -> str:
    """A method's spec for epochs of another length: the place that its rounds go back to is said in epochs."""
    method = TRAINING_METHODS.build(spec)
    if not isinstance(method, Lottery) or method.rewind_at.endswith("ep"):
        return spec
    return TRAINING_METHODS.spec(replace(method, rewind_at=f"{int(method.rewind_at) / steps_per_epoch!r}ep"))


def refuse_other_rounds(own: TrainRequest, epochs: int | None) -> None:
    """Raises BadOption where a run that is resumed would have rounds of another length."""
    method = TRAINING_METHODS.build(own.method)
    if isinstance(method, NetworkMethod) and method.axes().rounds is not None and epochs != own.epochs:
        raise BadOption(
            f"--epochs {epochs}: the rounds of --method {own.method} have {own.epochs} epochs each, and a run that is "
            "resumed keeps to that"
        )
