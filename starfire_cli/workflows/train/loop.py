"""The training loop of a sparse network (paper, Algorithm 2): a dense start, the pruning era, fixed masks after it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from dataclasses import replace
from time import perf_counter

from starfire_cli import runtime
from starfire_cli.distributed.ranks import Ranks
from starfire_cli.formats.run import Run
from starfire_cli.heap import keep_heap
from starfire_cli.records.train import Notice, Record, Started
from starfire_cli.workflows.train.describe import plan_of
from starfire_cli.workflows.train.epoch_end import end_epoch
from starfire_cli.workflows.train.failures import explaining_failures, last_good
from starfire_cli.workflows.train.finish import finished
from starfire_cli.workflows.train.live_macs import note_live_macs
from starfire_cli.workflows.train.meter import Meter
from starfire_cli.workflows.train.predicted_seconds import dense_seconds
from starfire_cli.workflows.train.reconfigure import remove_channels
from starfire_cli.workflows.train.request import TrainRequest
from starfire_cli.workflows.train.resume import open_session
from starfire_cli.workflows.train.rewinding import begin_round, keep_weights
from starfire_cli.workflows.train.run_folder import RunFolder
from starfire_cli.workflows.train.save import save_last
from starfire_cli.workflows.train.session import Session
from starfire_cli.workflows.train.signals import Signals
from starfire_cli.workflows.train.step import begin_pruning, graph_notices, train_step, with_step_graph
from starfire_cli.workflows.train.stop import stopped

_SHOW_EVERY = 0.1  # seconds between step records; each fetches two numbers from the device


def train(
    request: TrainRequest,
    given: frozenset[str] = frozenset(),
    *,
    decoding: Callable[[str, int, int], None] | None = None,
) -> Generator[Record, None, None]:
    """Train one network and yield what happens; on every rank, where several processes train it together.

    Args:
        request: what was asked for.
        given: which of its fields the user gave explicitly (a resumed run keeps its own for the others).
        decoding: told (what, done, all) while small images are decoded once, before anything is yielded.

    Raises StarfireError and BadOption with one clear line; what was saved before stays whole.
    """
    ranks = Ranks(runtime.world())
    with ranks.explaining(), ExitStack() as held:
        ranks.join()
        folder = RunFolder(held)
        session = open_session(request, given, decoding if ranks.first else None, ranks, folder)
        plan = plan_of(session)
        if request.dry_run:
            yield replace(plan, dense_seconds=dense_seconds(session))
        else:
            yield plan
            yield from _trained(session, folder)
        ranks.leave()


def _trained(session: Session, folder: RunFolder) -> Iterator[Record]:
    session = with_step_graph(replace(session, folder=Run(session.ranks.only_first(lambda: folder.open(session)))))
    run, position, optimisation = session.run, session.position, session.optimisation
    if session.network.device.type == "cpu":
        keep_heap()
    yield Started(
        run=run.path,
        epoch=position.epoch,
        epochs=optimisation.epochs,
        step=position.step,
        steps=optimisation.steps,
        steps_per_epoch=optimisation.steps_per_epoch,
        resumed=session.resumed,
        rounds=session.tickets.trainings if session.tickets is not None else 1,
        notes=(*session.notes, *folder.notes, *session.warmup_notices(), *session.data.info.notes),
    )
    with explaining_failures(session), Signals() as signals, session.ranks.explaining(lambda: last_good(run)):
        if position.step == 0:
            begin_pruning(session)
        while position.epoch < optimisation.epochs and not signals.stopped:
            begin_round(session)
            session = yield from _one_epoch(session, signals)
    if not signals.stopped and session.ranks.first:
        yield finished(session, run)


def _one_epoch(session: Session, signals: Signals) -> Generator[Record, None, Session]:
    """Algorithm 2 over one epoch, from wherever the run stands in it: each step changes weights, then masks. Returns
    the session, on a smaller network where channels were removed.
    """
    position, pruner, request = session.position, session.pruner, session.request
    model, ema = session.network.model.train(), session.optimisation.ema
    meter, shown = Meter(session), perf_counter()
    epoch = position.epoch % session.optimisation.epochs_a_round
    for images, labels in session.data.train.batches(epoch, start=position.batch):
        note_live_macs(session)
        for line in session.sparse.before_step(
            pruner, session.ranks, images, labels, step=position.step, steps=session.optimisation.steps
        ):
            yield Notice(text=line)
        meter.add(train_step(session, images, labels, meter.check), len(labels))  # dead weights' gradients are masked
        yield from graph_notices(session)
        position.step, position.batch = position.step + 1, position.batch + 1
        pruner.after_step(position.step)  # in the era, the threshold rises and masks shrink; what is dead is zero
        if pruner.evaluates_at(position.step):
            session.agreement.counts()
        keep_weights(session)
        if ema is not None:
            ema.update_parameters(model)
        if position.step == pruner.era.last_step and session.pruning.target:
            session.agreement.masks()
            session.fixed.hold()  # from now on no mask may change
            session.fixed.begin()
            if session.graph is not None and session.fixed.compact is not None:
                session.graph.reset()
        if perf_counter() - shown > _SHOW_EVERY:
            shown = perf_counter()
            yield meter.record()
        stop = signals.pending(session.ranks) or _at_limit(session)
        if stop or (request.save_every and position.step % request.save_every == 0):
            meter.settle()
            save_last(session)
        if stop:
            yield stopped(session, signals)
            return session
    meter.settle()
    session.sparse.release_memory()
    session = remove_channels(session)
    yield from end_epoch(session, signals)
    return session


def _at_limit(session: Session) -> bool:
    """Whether `--max-steps` ends the run here, before its last step."""
    step, limit = session.position.step, session.request.max_steps
    return limit is not None and limit <= step < session.optimisation.steps
