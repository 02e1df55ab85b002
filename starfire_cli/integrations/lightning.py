"""The callback for Lightning's Trainer (`pip install 'starfire-cli[lightning]'`)."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as lightning

from starfire_cli.api import attach
from starfire_cli.errors import BadOption
from starfire_cli.workflows.attach.attached import AttachedPruner


class StarfireCallback(lightning.Callback):  # type: ignore[misc,unused-ignore]
    """Prunes a LightningModule, or one network in it, while a Trainer fits it. Lightning's checkpoints hold its state.

    Args:
        module: the name of the network in the LightningModule, such as "model", whose state-dict keys the masks then
            have; None: the LightningModule itself.
        options: as for `starfire.attach`; `total_steps` is the Trainer's unless it is given.

    Attributes:
        pruner: from the start of training on; what `starfire.save` takes.
    """

    def __init__(self, module: str | None = None, **options: Any) -> None:
        self.pruner: AttachedPruner | None = None
        self._module, self._options = module, options
        self._state: dict[str, Any] | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Attach, once weights and optimizers are on their device and restored. Raises StarfireError."""
        if self.pruner is not None and self.pruner.is_attached:
            self._state = self._state or self.pruner.state_dict()  # another fit goes on
            self.pruner.detach()
        try:
            network = pl_module if self._module is None else pl_module.get_submodule(self._module)
        except AttributeError:
            names = ", ".join(name for name, _ in pl_module.named_children())
            raise BadOption(f"module={self._module!r} is not in the LightningModule, which has {names}") from None
        total = trainer.estimated_stepping_batches
        options = {"total_steps": int(total)} if total != float("inf") else {}
        self.pruner = attach(network, trainer.optimizers, **{**options, **self._options})
        if self._state is not None:
            self.pruner.load_state_dict(self._state)
            self._state = None

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Check that what is dead is zero. Raises Mismatch."""
        assert self.pruner is not None
        self.pruner.verify()

    def state_dict(self) -> dict[str, Any]:
        """The pruner's state, for Lightning's checkpoints."""
        return {} if self.pruner is None else {"pruner": self.pruner.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what a checkpoint holds until the pruner is attached."""
        self._state = state_dict.get("pruner")
