"""Opens the folder of a run for training: creates or finds it, locks it, and removes it if setting up fails."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from starfire_cli.errors import BadOption
from starfire_cli.formats.overwriting import files_of, refuse_overwriting
from starfire_cli.formats.run import Run, find_checkpoint
from starfire_cli.formats.run_lock import locked
from starfire_cli.workflows.train.describe import config_of
from starfire_cli.workflows.train.request import TrainRequest
from starfire_cli.workflows.train.session import Session

_UNLOCKED = "this file system keeps no locks, so nothing stops a second process from going on with this run meanwhile"


class RunFolder:
    """The folder that one call of `train` writes to, and the lock on it. Only rank 0 opens one.

    Args:
        held: lets go of the lock when it closes.
    """

    def __init__(self, held: ExitStack) -> None:
        self._held = held
        self._locked: Path | None = None
        self.notes: list[str] = []

    def take(self, request: TrainRequest, checkpoint: Path | None) -> Path | None:
        """Lock the run of the checkpoint to go on with, before it is read. Returns `checkpoint`.

        Raises StarfireError where another process is training it.
        """
        if checkpoint is not None and not request.dry_run and Run(checkpoint.parent).config_path.exists():
            self._lock(checkpoint.parent, request)
        return checkpoint

    def open(self, session: Session) -> Path:
        """The run's folder with its config.json. Raises BadOption for a name that is taken, StarfireError."""
        request = session.request
        if session.folder is not None:
            self._write(session, session.folder)
            return session.folder.path
        if session.resumed and session.position.epoch >= session.optimisation.epochs:
            raise BadOption(
                f"--resume {request.resume} is of a run that has trained all its {session.optimisation.epochs} epochs, "
                "and its run folder is not here; more --epochs train on"
            )
        default = f"{session.data.info.name}-{session.pruning.method_spec.partition(':')[0]}"
        if session.pruning.shown_target is not None:
            default += f"-{session.pruning.shown_target:g}"
        again = request.resume is not None and not session.resumed
        named = Run(request.out / request.name) if request.name else None
        # With `--resume auto` a run that was ended before its first checkpoint begins again where it was; so does any
        # other under a name whose folder holds nothing yet.
        if named is not None and (named.is_empty() or (again and named.path.is_dir())):
            self._lock(named.path, request)
            self._write(session, named)
            return named.path
        run = Run.create(request.out, request.name, default)
        try:
            self._lock(run.path, request)
            self._write(session, run)
        except BaseException:
            run.discard()
            raise
        return run.path

    def _lock(self, folder: Path, request: TrainRequest) -> None:
        if self._locked is None:
            self._locked = folder
            if not self._held.enter_context(locked(folder, request.command)):
                self.notes.append(_UNLOCKED)

    def _write(self, session: Session, run: Run) -> None:
        request = session.request
        if request.init is not None and not session.resumed:
            read = files_of(find_checkpoint(request.init))
            for path in run.files:
                refuse_overwriting(path, read, option="--name", own_run=True)
        run.write_config(config_of(session))
        run.truncate_metrics(session.position.epoch)
