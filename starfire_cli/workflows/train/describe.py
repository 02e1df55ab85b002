"""Descriptions of a run: its plan before it starts, its config.json, its checkpoints' metadata."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from starfire_cli import runtime
from starfire_cli.formats.checkpoint.meta import PruningMeta, new_meta
from starfire_cli.formats.run import FORMAT
from starfire_cli.pruning.budget import pruned
from starfire_cli.records.flops import TRAINING
from starfire_cli.records.train import TrainingPlan
from starfire_cli.text import counted
from starfire_cli.workflows.pruning import plan_layers
from starfire_cli.workflows.train.predicted_cost import cost_share
from starfire_cli.workflows.train.session import Session
from starfire_cli.workflows.train.tickets import Tickets

# What a plan's settings leave out: shown elsewhere, or of no consequence for the result.
_UNTOLD = {"command", "resume", "dry_run", "max_steps", "name", "out", "only", "keep_dense"}


def plan_of(session: Session) -> TrainingPlan:
    """The run before it starts. Raises BadOption where a layer would lose everything."""
    rate, per_epoch = session.optimisation.rate, session.optimisation.steps_per_epoch
    timeline: list[tuple[float, str]] = [(session.optimisation.epochs, "training ends")]
    if session.tickets is not None:
        timeline += _rounds_in_words(session, session.tickets)
    elif session.pruning.target:
        timeline += _of_the_era(session)
    timeline += [(drop, f"learning rate falls to {rate.at(round(drop * per_epoch)):g}") for drop in lr_drops(session)]
    settings = {k: v for k, v in dataclasses.asdict(session.request).items() if k not in _UNTOLD and v is not None}
    if session.request.init is None:
        del settings["init_zeros"]
    if session.pruning.shown_target is None:
        del settings["target"]
    settings |= {
        "data": session.data.info.spec,
        "image_size": session.data.info.image_size,
        "augment": session.data.info.augment,
        "method": session.pruning.method_spec,
        "fc": session.pruning.fc_spec,
        "device": str(session.network.device),
        "amp": session.precision.amp,
        "channels_last": session.network.channels_last,
        "kernels": session.pruner.kernels,
        "cuda_graphs": session.captures,
    }
    if session.tickets is not None:
        del settings["era"]
        settings["rounds"] = session.tickets.trainings
    layers = plan_layers(session.pruner, session.pruning, session.network.macs)
    macs = sum(session.network.macs.values())
    return TrainingPlan(
        settings=tuple((k.replace("_", "-"), _in_words(v)) for k, v in settings.items() if v is not False and v != ()),
        notes=(*session.notes, *session.data.info.notes),
        layers=layers,
        left_out=tuple(session.left_out),
        timeline=tuple(sorted(timeline)),
        parameters=sum(p.numel() for p in session.network.net.parameters()),
        macs=macs,
        dense_flops=TRAINING * macs * session.trained_images,
        cost_share=cost_share(session, layers),
        may_skip=session.sparse.module is not None,
    )


def _of_the_era(session: Session) -> Iterator[tuple[float, str]]:
    """(epoch, what happens there) of the era."""
    pruning, pruner = session.pruning, session.pruner
    first, last = (
        step / session.optimisation.steps_per_epoch for step in (pruner.era.first_step, pruner.era.last_step)
    )
    if pruner.starts_sparse:
        yield 0.0, "sparse from the first step on"
        yield first, "masks begin to change"
        yield last, "the mask is fixed"
    elif pruning.targeted:
        yield first, "pruning begins"
        yield last, f"target {pruning.target:g} reached, the mask is fixed"
    else:
        yield first, "the penalty begins" if pruner.adds_gradients else "pruning begins"
        near = "how much is dead is what has come out"
        if pruning.shown_target is not None:
            near = f"the sparsity has come out near target {pruning.target:g}"
        yield last, f"the mask is fixed; {near}"
    if pruning.shrinking is not None:
        due = [n for n in range(1, session.optimisation.epochs + 1) if pruning.shrinking.due(n, first, last)]
        yield due[0], f"dead channels are removed, for the first of {counted(len(due), 'time')}"


def meta_of(session: Session, metrics: dict[str, Any]) -> dict[str, Any]:
    """The metadata of a checkpoint, as plain values."""
    info, era = session.data.info, session.pruner.era
    processes = {"processes": session.ranks.count} if session.ranks.count > 1 else {}
    per_epoch = session.optimisation.steps_per_epoch
    shrink = {"shrink": session.network.shrink} if session.network.shrink else {}
    return new_meta(
        model={
            "spec": session.request.model,
            "num_classes": len(info.classes),
            "image_size": info.image_size,
            **shrink,
        },
        data=info.as_meta(),
        pruning=PruningMeta(
            method=session.pruning.method_spec,
            fc=session.pruning.fc_spec,
            target=session.pruning.shown_target,
            era=(era.first_step / per_epoch, era.last_step / per_epoch),
            era_steps=(era.first_step, era.last_step),
        ),
        ramp=era.ramp,
        keep_dense=session.request.keep_dense,
        only=session.request.only,
        origin={"metrics": metrics},
        hardware=runtime.hardware(session.network.device) | processes,
        command=session.request.command,
        seed=session.request.seed,
        run={"request": session.request.as_config(), "steps_per_epoch": per_epoch},
    )


def config_of(session: Session) -> dict[str, Any]:
    """The contents of config.json, as plain values."""
    meta = {name: value for name, value in meta_of(session, {}).items() if name != "metrics"}
    came_in = 0.0 if session.pruning.target else session.sparsity()[0]
    return {
        "format": FORMAT,
        "version": 1,
        **meta,
        "layers": [{"name": x.name, "kind": x.kind, "shape": list(x.shape)} for x in session.pruner.layers],
        "epochs": session.optimisation.epochs,
        "kernels": session.pruner.kernels,  # that `auto` has chosen
        "lr_drops": lr_drops(session),
        **({"inherited_sparsity": came_in} if came_in else {}),
        **({"start_sparsity": session.pruner.start_sparsity} if session.pruner.starts_sparse else {}),
    }


def lr_drops(session: Session) -> list[float]:
    """The epochs after which the learning rate falls."""
    optimisation = session.optimisation
    if optimisation.rate.schedule != "step":
        return []
    drops = [drop for drop in optimisation.rate.drops if drop < optimisation.rate.steps]
    if session.tickets is not None:
        tickets = session.tickets
        begun = [(n * tickets.steps, tickets.begin_step(n + 1)) for n in range(tickets.trainings)]
        drops = [start + drop for start, first in begun for drop in drops if start + drop > first]
    return [drop / optimisation.steps_per_epoch for drop in drops]


def _rounds_in_words(session: Session, tickets: Tickets) -> Iterator[tuple[float, str]]:
    """(epoch, what begins there) for each round, with the share of the weights that live in it."""
    pruner, again = session.pruner, "weights set back" if tickets.rewinds_weights else "weights kept"
    total = sum(layer.weights for layer in pruner.layers)
    dead = sum(pruner.zeros.values())
    for number in range(1, tickets.trainings + 1):
        due = pruned(total, tickets.rounds.sparsity(number - 1, session.pruning.target)) if number > 1 else 0
        live = (total - max(dead, due)) / max(1, total)
        last = number == tickets.trainings
        what = {"reinit": "initialised anew", "shuffle": "masks shuffled"}.get(tickets.rounds.control if last else "")
        how = "" if number == 1 else f", {what or again}"
        step = tickets.begin_step(number)
        yield step / tickets.steps_per_epoch, f"round {number} of {tickets.trainings} begins, {live:.2%} live{how}"


def _in_words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ",".join(_in_words(v) for v in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
