"""Checks whether a checkpoint's tensors fit a network, and loads them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping

from torch import Tensor, nn

from starfire_cli.errors import StarfireError, option
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.networks.tensor_names import COUNTER, match_names
from starfire_cli.pruning.ties import tie_as


def fit_weights(
    net: nn.Module, checkpoint: Checkpoint, spec: str | None, *, classes: int | None = None
) -> tuple[Checkpoint, list[str]]:
    """(the checkpoint under the network's names, the keys of its classifier where that has other classes).

    Args:
        net: the network.
        checkpoint: of any format.
        spec: of the network, for the error.
        classes: of the network; a classifier of another number is told apart from other differences. None: it is not.

    Raises StarfireError where anything else does not fit.
    """
    checkpoint = match_names(net, checkpoint)
    head = [] if classes is None else other_classes(net, checkpoint.state, classes)
    if not head:
        check_fit(net, checkpoint, spec, classes)
    return checkpoint, head


def load_weights(net: nn.Module, checkpoint: Checkpoint, *, but: Collection[str] = ()) -> None:
    """Copy the checkpoint's weights into a network that they fit, except those of the keys `but`.

    Raises StarfireError where one of two tensors would be lost, since they are one in the network.
    """
    if pairs := differing_ties(net, checkpoint):
        raise StarfireError(
            f"{checkpoint.path} does not fit the model: {differing_ties_text(*pairs[0])}, and one would be lost"
        )
    state = {key: tensor for key, tensor in checkpoint.state.items() if key not in but}
    net.load_state_dict(with_versions(net, state), strict=False)


def with_versions(net: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with the versions of the network's own modules, as `net.state_dict()` has them.

    Files keep tensors alone, and some modules, torchvision's MNASNet among them, load nothing without a version.
    """
    found = OrderedDict(state)
    found._metadata = getattr(net.state_dict(), "_metadata", {})  # type: ignore[attr-defined]  # torch's own place
    return found


def differing_ties(net: nn.Module, checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """Pairs of names that are one tensor in the network and differ in the checkpoint (see `match_names`)."""
    return tie_as(net.state_dict(), checkpoint.state)[1]


def differing_ties_text(first: str, name: str) -> str:
    """The sentence for a file that holds two different tensors where the network has one."""
    return f"{first} and {name} are one tensor in the model (tied weights) and differ in the file"


def misfit(net: nn.Module, state: Mapping[str, Tensor], but: Iterable[str] = ()) -> str | None:
    """The first difference between a network's tensors and a state dict's, and how many there are; None if they fit.

    Args:
        net: the network.
        state: by its keys, see `match_names`.
        but: keys whose shape may differ.
    """
    own, but = net.state_dict(), set(but)
    problems = [f"{key} is missing in the file" for key in own if key not in state and not key.endswith(COUNTER)]
    problems += [f"{key} is not part of the model" for key in state if key not in own]
    problems += [
        f"{key} is {tuple(state[key].shape)} in the file, {tuple(own[key].shape)} in the model"
        for key in own
        if key in state and own[key].shape != state[key].shape and key not in but
    ]
    if not problems:
        return None
    return problems[0] + (f" ({len(problems)} differences in all)" if len(problems) > 1 else "")


def other_classes(net: nn.Module, state: Mapping[str, Tensor], classes: int) -> list[str]:
    """The keys of the classifier, where it has `classes` in the network, another number in the file, and all else fits.

    Empty where there are other differences, or none.
    """
    head = _classifier(net, state, classes)
    return head if misfit(net, state, but=head) is None else []


def _classifier(net: nn.Module, state: Mapping[str, Tensor], classes: int) -> list[str]:
    own = net.state_dict()
    wrong = [key for key in own if key in state and own[key].shape != state[key].shape]
    return [key for key in wrong if state[key].ndim and own[key].shape == (classes, *state[key].shape[1:])]


def check_fit(net: nn.Module, checkpoint: Checkpoint, spec: str | None, classes: int | None = None) -> None:
    """Raises StarfireError where the checkpoint, as `match_names` gives it, is not one of that network.

    Where `classes` are given, that the classifier has others is not told beside other differences.
    """
    but = () if classes is None else _classifier(net, checkpoint.state, classes)
    problem = misfit(net, checkpoint.state, but)
    if problem is not None:
        raise StarfireError(
            f"{checkpoint.path} does not fit {option('model', spec)}: {problem}{_hint(net, checkpoint)}"
        )


def _hint(net: nn.Module, checkpoint: Checkpoint) -> str:
    """The advice for a weight that one of the two has in parts and the other as a whole; empty without one."""
    own = net.state_dict().keys()
    for key in (*own, *checkpoint.state):
        stem, _, last = key.rpartition(".")
        part = next((part for part in ("_g", "_orig") if last.endswith(part)), "")
        whole = f"{stem}.{last.removesuffix(part)}".lstrip(".") if part else ""
        if "parametrizations." in key:
            before, _, after = key.partition("parametrizations.")
            whole = before + after.partition(".")[0]
        if whole and key in own and whole in checkpoint.state:
            return f"; the model computes {whole} from parts, the file has it whole: give the model without that"
        if whole and key in checkpoint.state and whole in own:
            return f"; the file has {whole} in parts, by a rule that it does not name"
    return ""
