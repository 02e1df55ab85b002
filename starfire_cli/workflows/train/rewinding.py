"""Lottery tickets between two rounds: prunes, rewinds, and begins the next round (Frankle and Carbin, 2019)."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from starfire_cli.damage import DamagedFile
from starfire_cli.errors import StarfireError
from starfire_cli.formats.checkpoint import file as files
from starfire_cli.formats.run import Run
from starfire_cli.models import build_model
from starfire_cli.networks.fit import with_versions
from starfire_cli.pruning import Masks
from starfire_cli.pruning.channels.recipe import apply_shrink
from starfire_cli.pruning.moment import Moment
from starfire_cli.workflows.train.save import save_weights
from starfire_cli.workflows.train.session import Session


def begin_round(session: Session) -> None:
    """Before an epoch: where a round is over, prune the network, rewind it, and go to where the next one begins.

    All ranks come here. Raises Mismatch where their masks differ, StarfireError where weights are not finite.
    """
    tickets, at = session.tickets, session.position
    if tickets is None:
        return
    if at.step == 0:
        keep_weights(session)
    if not tickets.is_over(at.epoch):
        return
    tickets.round += 1
    at.step = tickets.begin_step(tickets.round)
    at.epoch, at.batch = divmod(at.step, tickets.steps_per_epoch)
    session.pruner.prune_between_rounds(at.step + 1)
    _rewind(session)
    session.agreement.masks()


def keep_weights(session: Session) -> None:
    """At the step of the first round that is gone back to: keep the network, and write it into the run's folder."""
    tickets = session.tickets
    if tickets is None or not tickets.rewinds_weights or session.position.step != tickets.first or tickets.round > 1:
        return
    state = save_weights(session, session.run.rewind)
    tickets.kept = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}


def restore_round(session: Session, number: int, folder: Path) -> None:
    """Go on in a round. Raises StarfireError where the weights that are rewound to are not in the run's folder."""
    tickets = session.tickets
    if tickets is None:
        return
    tickets.round = number
    over = number == tickets.trainings
    if not tickets.rewinds_weights or over or session.position.step < tickets.first:
        return
    path = Run(folder).rewind
    if not path.exists():
        raise StarfireError(f"{path}, the weights that each round is set back to, is not there; it belongs to the run")
    kept, own = files.load(path).state, session.network.net.state_dict()
    if {k: v.shape for k, v in kept.items()} != {k: v.shape for k, v in own.items()}:
        raise DamagedFile(f"{path} is of another network than the checkpoint beside it")
    tickets.kept = {name: tensor.detach().cpu().clone() for name, tensor in kept.items()}


@torch.no_grad()
def _rewind(session: Session) -> None:
    """Set weights, optimizer, loss scale and average back; what is dead stays dead, unless it is a control."""
    tickets, net, optimisation = session.tickets, session.network.net, session.optimisation
    assert tickets is not None
    masks = {key: mask.clone() for key, mask in session.pruner.masks.items()}
    control = tickets.rounds.control if tickets.round == tickets.trainings else "none"
    if control == "reinit":
        net.load_state_dict(_initialised_anew(session))
    elif tickets.rewinds_weights:
        assert tickets.kept is not None
        net.load_state_dict(with_versions(net, tickets.kept))
    if control == "shuffle":
        masks = _shuffled(session, masks)
    optimisation.optimizer.state.clear()
    scaler = session.precision.scaler
    if scaler.is_enabled():
        scaler.load_state_dict(torch.amp.GradScaler(session.network.device.type).state_dict())
    session.pruner.load(masks)
    if optimisation.ema is not None:
        optimisation.ema.module.load_state_dict(session.network.model.state_dict())
        optimisation.ema.n_averaged.zero_()
    if session.graph is not None:
        session.graph.reset()


def _initialised_anew(session: Session) -> dict[str, Tensor]:
    """The state of the network as another seed initialises it; all ranks, and a resumed run, find the same."""
    digest = hashlib.sha256(f"{session.request.seed}\0reinit".encode()).digest()
    info = session.data.info
    assert session.request.model is not None
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int.from_bytes(digest[:7], "little"))
        net = build_model(session.request.model, num_classes=len(info.classes), image_size=info.image_size)
        apply_shrink(net, session.network.shrink)
    return net.state_dict()


def _shuffled(session: Session, masks: Masks) -> Masks:
    """As many live weights in each layer, anywhere."""
    step, pruner = session.position.step + 1, session.pruner
    moment = Moment(step=step, era=pruner.era, target=pruner.target, seed=session.request.seed)
    shuffled = {}
    for key, mask in masks.items():
        anywhere = torch.ones(mask.numel(), dtype=torch.bool, device=mask.device)
        chosen = moment.choose(key, anywhere, int(torch.count_nonzero(mask)), "shuffle")
        shuffled[key] = chosen.reshape(mask.shape)
    return shuffled
