"""Opens the session of a run: a new one, or one that is resumed, whose state is restored to the bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from starfire_cli.damage import reading
from starfire_cli.data import refuse_unasked
from starfire_cli.distributed import batchnorm
from starfire_cli.distributed.ranks import Ranks
from starfire_cli.errors import BadOption, StarfireError
from starfire_cli.formats.checkpoint import file as files
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.formats.run import Run, runs_in
from starfire_cli.networks.fit import with_versions
from starfire_cli.networks.model_spec import runs_code, untrusted_text
from starfire_cli.workflows.train.rank_checks import check_requests, check_sessions
from starfire_cli.workflows.train.request import TrainRequest
from starfire_cli.workflows.train.rewinding import restore_round
from starfire_cli.workflows.train.run_folder import RunFolder
from starfire_cli.workflows.train.session import Session
from starfire_cli.workflows.train.session_setup import build_session, join_ranks
from starfire_cli.workflows.train.settings import resolve_batch_size
from starfire_cli.workflows.train.tickets import refuse_other_rounds
from starfire_cli.workflows.train.training_data import Decoding

# What a resumed run may change; everything else is the run's own. More epochs are the paper's "extra 10 epochs".
CHANGEABLE = frozenset(
    {"epochs", "device", "workers", "compile", "sparse_compute", "cuda_graphs", "kernels", "data"}
    | {"eval_batch_size", "save_every", "skip_corrupt"}
)
# What belongs to this call and not to the run.
OF_THE_CALL = frozenset({"resume", "max_steps", "dry_run", "command", "out", "name"})


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
        decoding: see `build_session`.
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
    return join_ranks(session)


def _opened(
    request: TrainRequest, given: frozenset[str], path: Path | None, decoding: Decoding, ranks: Ranks
) -> Session:
    if path is None:
        session = build_session(request, given=given, decoding=decoding, ranks=ranks)
        if request.resume is None:
            return session
        return session.noting(f"--resume auto: nothing to go on with under {request.out}/, so this run is a new one")
    checkpoint = files.load(path, training=True)
    if not checkpoint.training or checkpoint.meta.request is None:
        raise StarfireError(f"{path} holds weights but no training state to resume; --init {path} starts from them")
    with reading(path, "what it says of its run"):
        own = TrainRequest.from_config(checkpoint.meta.request)
    if own.model is not None and runs_code(own.model) and "model" not in given:
        raise BadOption(untrusted_text(checkpoint, own.model))
    if own.data is not None and "data" not in given:
        refuse_unasked(own.data, str(path))
    for field in sorted(given - CHANGEABLE - OF_THE_CALL):
        if getattr(request, field) != getattr(own, field):
            raise BadOption(
                f"--{field.replace('_', '-')} {getattr(request, field)} contradicts the run being resumed, which has "
                f"{getattr(own, field)}; leave it out, or start a new run from these weights with --init {path}"
            )
    if "epochs" in given:
        refuse_other_rounds(own, request.epochs)
    taken = {field: getattr(request, field) for field in (given & CHANGEABLE) | OF_THE_CALL}
    run = Run(path.parent)
    if run.config_path.exists() and "name" not in given:
        taken["name"] = own.name  # the run keeps its own
    session = build_session(
        dataclasses.replace(own, **taken),
        resume=checkpoint,
        folder=run if run.config_path.exists() else None,
        decoding=decoding,
        ranks=ranks,
    )
    restore_training_state(session, checkpoint)
    return session


def restore_training_state(session: Session, checkpoint: Checkpoint) -> None:
    """Bring a fresh session to where the checkpoint was. Raises StarfireError where the two do not belong together."""
    training, path = checkpoint.training or {}, checkpoint.path
    network, optimisation, position, fixed = session.network, session.optimisation, session.position, session.fixed
    steps = checkpoint.meta.steps_per_epoch
    if steps != optimisation.steps_per_epoch:
        raise StarfireError(
            f"{path} was trained with {steps} steps an epoch, these data and options give "
            f"{optimisation.steps_per_epoch}; a run is resumed on the data it began with"
        )
    with reading(path, "its training state does not fit"):
        position.restore(training["position"])
        if position.step >= session.pruner.era.last_step:
            # Before the optimizer's state comes, which is compact then, or of shared values.
            fixed.begin(training["shared_values"] if session.pruning.codebook is not None else None)
        if fixed.compact is not None and training["compact"]["channels_last"] != network.channels_last:
            raise ValueError("compact optimizer state in another memory format, which is that of another --device")
        optimisation.optimizer.load_state_dict(training["optimizer"])
        session.precision.scaler.load_state_dict(training["scaler"])
        fixed.hold(training["era"]["digests"])
        if "pruner" in training:  # runs of earlier versions had methods that remember nothing
            session.pruner.load_state_dict(training["pruner"])
        torch.set_rng_state(training["rng"]["cpu"])
        if network.device.type == "cuda" and len(training["rng"]["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(training["rng"]["cuda"])
        if "sparse_compute" in training:
            session.sparse.load_state_dict(training["sparse_compute"], session.pruner)
        if optimisation.ema is not None and optimisation.averaged is not None:
            optimisation.averaged.load_state_dict(with_versions(optimisation.averaged, checkpoint.state))
            optimisation.ema.n_averaged.fill_(training["ema"]["updates"])
        _restore_rank_state(session, training)
        number = training["tickets"]["round"] if session.tickets is not None else 1
    restore_round(session, number, path.parent)
    fixed.check()
    if position.step > optimisation.steps:
        raise BadOption(f"--epochs {optimisation.epochs} is less than what is trained already: {position.epoch} epochs")


def _restore_rank_state(session: Session, training: dict[str, Any]) -> None:
    """Give this rank its own generators and statistics back; after a change of the number of ranks, new ones."""
    ranks, saved = session.ranks, training.get("ranks")
    if ranks.count == 1:
        return
    if saved is None or len(saved) != ranks.count:
        if ranks.rank:
            torch.manual_seed(ranks.own_seed(session.request.seed, session.position.step))
        return
    own = saved[ranks.rank]
    torch.set_rng_state(own["cpu"])
    if session.network.device.type == "cuda" and own["cuda"] is not None:
        torch.cuda.set_rng_state(own["cuda"], session.network.device)
    for net, buffers in zip(session.nets, own["buffers"], strict=False):
        batchnorm.write(net, buffers)


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
