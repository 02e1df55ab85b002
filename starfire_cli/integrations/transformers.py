"""The callback for Hugging Face's Trainer (`pip install 'starfire-cli[transformers]'`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from starfire_cli.api import attach
from starfire_cli.workflows.attach.attached import AttachedPruner

_FILE = "starfire_pruner.pt"


class StarfireTrainerCallback(transformers.TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Prunes a model while a Trainer trains it. Its state lies beside the Trainer's in every checkpoint folder.

    Args:
        options: as for `starfire.attach`; `total_steps` is the Trainer's unless it is given.

    Attributes:
        pruner: from the start of training on; what `starfire.save` takes.
    """

    def __init__(self, **options: Any) -> None:
        self.pruner: AttachedPruner | None = None
        self._options = options

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attach, and go on from a checkpoint where the Trainer does. Raises StarfireError."""
        earlier = None
        if self.pruner is not None and self.pruner.is_attached:
            earlier = self.pruner.state_dict()
            self.pruner.detach()
        options = {"total_steps": state.max_steps, **self._options}
        self.pruner = attach(kwargs["model"], kwargs["optimizer"], **options)
        if state.global_step:
            file = Path(args.output_dir) / f"checkpoint-{state.global_step}" / _FILE
            earlier = torch.load(file, weights_only=True) if file.exists() else earlier
        if state.global_step and earlier is not None:
            self.pruner.load_state_dict(earlier)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the pruner's state into the checkpoint folder that the Trainer has just written."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self.pruner is not None and state.is_world_process_zero and folder.is_dir():
            torch.save(self.pruner.state_dict(), folder / _FILE)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check that what is dead is zero, in the best model where the Trainer has loaded it. Raises Mismatch."""
        assert self.pruner is not None
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            file = Path(state.best_model_checkpoint) / _FILE
            if file.exists():
                self.pruner.load_state_dict(torch.load(file, weights_only=True))  # the masks of these weights
        self.pruner.verify()
