"""How a run is saved so that nothing is lost, and taken up again to the bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from starfire_cli.damage import reading
from starfire_cli.data import refuse_url
from starfire_cli.distributed import batchnorm
from starfire_cli.distributed.ranks import Ranks
from starfire_cli.errors import BadOption, Mismatch, StarfireError
from starfire_cli.formats.checkpoint import file as files
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.formats.run import Run, runs_in
from starfire_cli.networks.rebuild import runs_code, untrusted
from starfire_cli.pruning.ties import apply_once
from starfire_cli.workflows.train.alike import check_requests, check_sessions
from starfire_cli.workflows.train.describe import meta_of
from starfire_cli.workflows.train.request import TrainRequest
from starfire_cli.workflows.train.run_folder import RunFolder
from starfire_cli.workflows.train.session import Decoding, Position, Session
from starfire_cli.workflows.train.settings import resolve_batch_size

# What a resumed run may change; everything else is the run's own. More epochs are the paper's "extra 10 epochs".
CHANGEABLE = frozenset(
    {"epochs", "device", "workers", "compile", "cuda_graphs", "kernels", "data"}
    | {"eval_batch_size", "save_every", "skip_corrupt"}
)
# What belongs to this call and not to the run.
OF_THE_CALL = frozenset({"resume", "max_steps", "dry_run", "command", "out", "name"})


def save(session: Session, path: Path, metrics: dict[str, Any]) -> None:
    """Write a checkpoint that every command reads and `--resume` goes on from: rank 0 writes, all come here.

    Raises Mismatch if a dead weight is not zero, a mask changed after the era, or the ranks' masks differ.
    """
    session.agreement.masks()  # first: what all find alike, all say alike
    session.pruner.verify()
    check_fixed(session)
    nets = [session.net] if session.averaged is None else [session.net, session.averaged]
    states = [_agreed_state(net, session.ranks) for net in nets]
    own = session.ranks.gathered(_own(session, nets)) if session.ranks.count > 1 else None
    if not session.ranks.first:
        return
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
    if own is not None:
        training["ranks"] = own
    if session.compact is not None:
        training["compact"] = {"channels_last": session.channels_last}
    if session.ema is not None:
        # `model` is what was measured, the average; what training goes on with lies beside it.
        training["raw"] = apply_once(lambda _, tensor: tensor.detach().cpu(), states[0])
        training["ema"] = {"decay": session.request.ema, "updates": int(session.ema.n_averaged)}
    meta = meta_of(session, metrics)
    with session.ranks.undisturbed():
        files.save(path, state=states[-1], masks=session.pruner.masks, meta=meta, training=training)


def _agreed_state(net: nn.Module, ranks: Ranks) -> dict[str, Tensor]:
    """The state dict, with the BatchNorm statistics of all ranks."""
    state = dict(net.state_dict())
    if ranks.count > 1:
        state |= {name: value for name, value in batchnorm.agreed(net, ranks).items() if name in state}
    return state


def _own(session: Session, nets: list[nn.Module]) -> dict[str, Any]:
    """What this rank alone knows: its random generators, and in the middle of an epoch its BatchNorm batchnorm."""
    cuda = session.device.type == "cuda"
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(session.device) if cuda else None,
        "buffers": [batchnorm.own(net) for net in nets] if session.at.batch else [],
    }


def _take_up_own(session: Session, training: dict[str, Any], nets: list[nn.Module]) -> None:
    """Give this rank its own generators and statistics back; after a change of the number of ranks, new ones."""
    ranks, saved = session.ranks, training.get("ranks")
    if ranks.count == 1:
        return
    if saved is None or len(saved) != ranks.count:
        if ranks.rank:
            torch.manual_seed(ranks.own_seed(session.request.seed, session.at.step))
        return
    own = saved[ranks.rank]
    torch.set_rng_state(own["cpu"])
    if session.device.type == "cuda" and own["cuda"] is not None:
        torch.cuda.set_rng_state(own["cuda"], session.device)
    for net, buffers in zip(nets, own["buffers"], strict=False):
        batchnorm.write(net, buffers)


def check_fixed(session: Session) -> None:
    """Raises Mismatch that names the layer if a mask is not what it was when the era ended."""
    if not session.era_digests:
        return
    now = session.pruner.digests()
    if changed := [key for key, value in session.era_digests.items() if now.get(key) != value]:
        raise Mismatch(f"the mask of {changed[0]} changed after the era ended ({len(changed)} layers in all)")


def open_session(
    request: TrainRequest,
    given: frozenset[str],
    decoding: Decoding = None,
    ranks: Ranks | None = None,
    folder: RunFolder | None = None,
) -> Session:
    """Set a run up, on all ranks: a new one, or with `resume` the one a checkpoint belongs to.

    Args:
        request: what was asked for.
        given: the names of the fields that the user gave explicitly; a resumed run keeps its own for all others.
        decoding: see `Session`.
        ranks: this process among those that train together.
        folder: locks the run that is resumed, before its checkpoint is read.

    Raises BadOption where a given option contradicts the run that is resumed.
    """
    ranks = ranks or Ranks()
    if ranks.count > 1:
        check_requests(request, ranks)
    request, given = resolve_batch_size(request, given, ranks.count)
    path = ranks.only_first(lambda: folder.take(request, _to_resume(request)) if folder else _to_resume(request))
    session = ranks.in_turn(lambda: _opened(request, given, path, decoding, ranks))
    if ranks.count > 1:
        check_sessions(session, ranks)
    session.spread()
    return session


def _opened(
    request: TrainRequest, given: frozenset[str], path: Path | None, decoding: Decoding, ranks: Ranks
) -> Session:
    if path is None:
        session = Session(request, given=given, decoding=decoding, ranks=ranks)
        if request.resume is not None:
            session.notes.append(f"--resume auto: nothing to go on with under {request.out}/, so this run is a new one")
        return session
    checkpoint = files.load(path, training=True)
    if not checkpoint.training or "request" not in checkpoint.meta:
        raise StarfireError(f"{path} holds weights but no training state to resume; --init {path} starts from them")
    with reading(path, "what it says of its run"):
        own = TrainRequest.from_config(checkpoint.meta["request"])
    if own.model is not None and runs_code(own.model) and "model" not in given:
        raise BadOption(untrusted(checkpoint, own.model))
    if own.data is not None and "data" not in given:
        refuse_url(own.data, str(path))
    for field in sorted(given - CHANGEABLE - OF_THE_CALL):
        if getattr(request, field) != getattr(own, field):
            raise BadOption(
                f"--{field.replace('_', '-')} {getattr(request, field)} contradicts the run being resumed, which has "
                f"{getattr(own, field)}; leave it out, or start a new run from these weights with --init {path}"
            )
    taken = {field: getattr(request, field) for field in (given & CHANGEABLE) | OF_THE_CALL}
    session = Session(dataclasses.replace(own, **taken), resume=checkpoint, decoding=decoding, ranks=ranks)
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
    with reading(path, "its training state does not fit"):
        session.at = Position(**training["position"])
        if session.at.step >= session.pruner.era.last_step:
            session.masks_are_fixed()  # before the optimizer's state comes, which is compact then
        if session.compact is not None and training["compact"]["channels_last"] != session.channels_last:
            raise ValueError("compact optimizer state in another memory format, which is that of another --device")
        session.optimizer.load_state_dict(training["optimizer"])
        session.scaler.load_state_dict(training["scaler"])
        session.era_digests = dict(training["era"]["digests"])
        torch.set_rng_state(training["rng"]["cpu"])
        if session.device.type == "cuda" and len(training["rng"]["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(training["rng"]["cuda"])
        if session.ema is not None and session.averaged is not None:
            session.averaged.load_state_dict(checkpoint.state)
            session.ema.n_averaged.fill_(training["ema"]["updates"])
        nets = [session.net] if session.averaged is None else [session.net, session.averaged]
        _take_up_own(session, training, nets)
    check_fixed(session)
    if session.at.step > session.steps:
        raise BadOption(f"--epochs {session.epochs} is less than what is trained already: {session.at.epoch} epochs")


def _to_resume(request: TrainRequest) -> Path | None:
    """The checkpoint to go on with; None for a new run. A run folder means its last, a file itself."""
    given = request.resume
    if given is None:
        return None
    if str(given) == "auto":
        return _newest_sound(request)
    if given.is_dir():
        last = Run(given).last
        if not last.exists():
            raise StarfireError(f"--resume {given}: the folder has no {last.name}; give a run folder or a .pt file")
        return last
    return given


def _newest_sound(request: TrainRequest) -> Path | None:
    """`auto`: the newest checkpoint under `--out` that is whole, of the run called `--name` if that is given.

    None where there is none yet, so that one command begins a run and goes on with it. Raises StarfireError where
    there are some, and all are damaged.
    """
    damaged: StarfireError | None = None
    for run in [Run(request.out / request.name)] if request.name else runs_in(request.out):
        for path in (run.last, run.best):
            if not path.exists():
                continue
            try:
                files.load(path, training=True)
                return path
            except StarfireError as error:
                damaged = damaged or error
    if damaged is not None:
        raise damaged
    return None
