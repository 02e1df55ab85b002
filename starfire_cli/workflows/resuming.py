"""How a run is saved so that nothing is lost, and taken up again to the bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from starfire_cli.errors import BadOption, Mismatch, StarfireError
from starfire_cli.formats import checkpoint as files
from starfire_cli.formats.checkpoint import Checkpoint
from starfire_cli.formats.run import Run, newest_run
from starfire_cli.workflows.describe import meta_of
from starfire_cli.workflows.rebuild import runs_code, untrusted
from starfire_cli.workflows.request import TrainRequest
from starfire_cli.workflows.session import Decoding, Position, Session

# What a resumed run may change; everything else is the run's own. More epochs are the paper's "extra 10 epochs".
CHANGEABLE = frozenset(
    {"epochs", "device", "workers", "compile", "cuda_graphs", "kernels", "data"}
    | {"eval_batch_size", "save_every", "skip_corrupt"}
)
# What belongs to this call and not to the run.
OF_THE_CALL = frozenset({"resume", "max_steps", "dry_run", "command", "out", "name"})


def save(session: Session, path: Path, metrics: dict[str, Any]) -> None:
    """Write a checkpoint that every command reads and `--resume` goes on from.

    Raises Mismatch if a dead weight is not zero or a mask changed after the era.
    """
    session.pruner.verify()
    check_fixed(session)
    cuda = session.device.type == "cuda"
    training: dict[str, Any] = {
        "optimizer": session.optimizer.state_dict(),
        "scheduler": {"step": session.at.step},
        "scaler": session.scaler.state_dict(),
        "era": {"step": session.at.step, "digests": session.era_digests},
        "rng": {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if cuda else []},
        "sampler": {"epoch": session.at.epoch, "batch": session.at.batch, "seed": session.request.seed},
        "position": dataclasses.asdict(session.at),
    }
    net = session.net
    if session.ema is not None and session.averaged is not None:
        # `model` is what was measured, the average; what training goes on with lies beside it.
        training["raw"] = session.net.state_dict()
        training["ema"] = {"decay": session.request.ema, "updates": int(session.ema.n_averaged)}
        net = session.averaged
    files.save(
        path, state=net.state_dict(), masks=session.pruner.masks, meta=meta_of(session, metrics), training=training
    )


def check_fixed(session: Session) -> None:
    """Raises Mismatch that names the layer if a mask is not what it was when the era ended."""
    if not session.era_digests:
        return
    now = session.pruner.digests()
    if changed := [key for key, value in session.era_digests.items() if now.get(key) != value]:
        raise Mismatch(f"the mask of {changed[0]} changed after the era ended ({len(changed)} layers in all)")


def open_session(request: TrainRequest, given: frozenset[str], decoding: Decoding = None) -> Session:
    """Set a run up: a new one, or with `resume` the one a checkpoint belongs to.

    Args:
        request: what was asked for.
        given: the names of the fields that the user gave explicitly; a resumed run keeps its own for all others.
        decoding: see `Session`.

    Raises BadOption where a given option contradicts the run that is resumed.
    """
    if request.resume is None:
        return Session(request, decoding=decoding)
    path = _last_of(request.resume, request.out)
    checkpoint = files.load(path, training=True)
    if not checkpoint.training or "request" not in checkpoint.meta:
        raise StarfireError(f"{path} holds weights but no training state to resume; --init {path} starts from them")
    own = TrainRequest.from_config(checkpoint.meta["request"])
    if own.model is not None and runs_code(own.model) and "model" not in given:
        raise BadOption(untrusted(checkpoint, own.model))
    for field in sorted(given - CHANGEABLE - OF_THE_CALL):
        if getattr(request, field) != getattr(own, field):
            raise BadOption(
                f"--{field.replace('_', '-')} {getattr(request, field)} contradicts the run being resumed, which has "
                f"{getattr(own, field)}; leave it out, or start a new run from these weights with --init {path}"
            )
    taken = {field: getattr(request, field) for field in (given & CHANGEABLE) | OF_THE_CALL}
    session = Session(dataclasses.replace(own, **taken), resume=checkpoint, decoding=decoding)
    take_up(session, checkpoint)
    if Run(path.parent).config_path.exists():
        session.run = Run(path.parent)
    return session


def take_up(session: Session, checkpoint: Checkpoint) -> None:
    """Bring a fresh session to where the checkpoint was. Raises StarfireError where the two do not belong together."""
    training, path = checkpoint.training or {}, checkpoint.path
    steps = checkpoint.meta.get("steps_per_epoch")
    if steps != session.steps_per_epoch:
        raise StarfireError(
            f"{path} was trained with {steps} steps an epoch, these data and options give {session.steps_per_epoch}; "
            f"a run is resumed on the data it began with"
        )
    try:
        session.at = Position(**training["position"])
        session.optimizer.load_state_dict(training["optimizer"])
        session.scaler.load_state_dict(training["scaler"])
        session.era_digests = dict(training["era"]["digests"])
        torch.set_rng_state(training["rng"]["cpu"])
        if session.device.type == "cuda" and len(training["rng"]["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(training["rng"]["cuda"])
        if session.ema is not None and session.averaged is not None:
            session.averaged.load_state_dict(checkpoint.state)
            session.ema.n_averaged.fill_(training["ema"]["updates"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise StarfireError(f"{path} cannot be resumed: its training state does not fit ({error!r})") from error
    check_fixed(session)
    if session.at.step > session.steps:
        raise BadOption(f"--epochs {session.epochs} is less than what is trained already: {session.at.epoch} epochs")


def _last_of(given: Path, out: Path) -> Path:
    """`auto` is the newest run's last checkpoint, a run folder means its last, a file itself."""
    if str(given) == "auto":
        given = newest_run(out).path
    if given.is_dir():
        last = Run(given).last
        if not last.exists():
            raise StarfireError(f"--resume {given}: the folder has no {last.name}; give a run folder or a .pt file")
        return last
    return given
