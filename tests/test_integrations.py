"""Callbacks of other people's trainers: a training that is stopped and resumed gives the bits of one that is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from tests.helpers.pruner_training import batches, network

pytestmark = pytest.mark.filterwarnings("default")  # of the packages


def images() -> list[tuple[torch.Tensor, int]]:
    return [(image, int(label)) for pair in batches(8) for image, label in zip(*pair, strict=True)]


def same(one: nn.Module, other: nn.Module) -> None:
    state = other.state_dict()
    assert not [key for key, value in one.state_dict().items() if not torch.equal(value, state[key])]


@pytest.mark.parametrize("method", ["window", "rigl:every=3"])
def test_lightning_goes_on_to_the_bit(tmp_path, method):
    lightning = pytest.importorskip("lightning.pytorch")
    from starfire_cli.integrations.lightning import StarfireCallback

    class Module(lightning.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self):
            super().__init__()
            self.net = network()

        def training_step(self, batch, number):
            return cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

    def fit(epochs: int, path=None):
        module, pruning = (
            Module(),
            StarfireCallback("net", method=method, target=0.5, era_steps=(2, 14), total_steps=16),
        )
        trainer = lightning.Trainer(
            max_epochs=epochs,
            callbacks=[pruning],
            gradient_clip_val=0.5,
            accumulate_grad_batches=2,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(module, DataLoader(images(), batch_size=6), ckpt_path=path)
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return module, pruning.pruner

    whole, pruner = fit(4)
    assert pruner.step == 16 and pruner.sparsity >= 0.5
    fit(2)
    resumed, again = fit(4, tmp_path / "2.ckpt")
    assert again.step == 16
    same(resumed, whole)


def test_the_trainer_of_transformers_goes_on_to_the_bit(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from starfire_cli.integrations.transformers import StarfireTrainerCallback

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, pixel_values, labels):
            logits = self.net(pixel_values)
            return {"loss": cross_entropy(logits, labels), "logits": logits}

    def fit(name: str, resume=None, **more):
        model, pruning = (
            Model(),
            StarfireTrainerCallback(method="rigl:every=3", target=0.5, era_steps=(2, 14)),
        )
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / name),
            num_train_epochs=2,
            per_device_train_batch_size=6,
            learning_rate=0.01,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            save_strategy="epoch",
            seed=3,
            **more,
        )
        data = [{"pixel_values": image, "labels": label} for image, label in images()]
        trainer: Any = transformers.Trainer(
            model=model,
            args=arguments,
            train_dataset=data,
            eval_dataset=data[:6],
            compute_metrics=lambda _: {"score": -trainer.state.global_step},
            callbacks=[pruning],
        )
        trainer.train(resume_from_checkpoint=resume)
        return model, pruning.pruner

    whole, pruner = fit("whole")
    assert pruner.step == 16 and pruner.sparsity >= 0.5
    resumed, again = fit("whole", str(tmp_path / "whole" / "checkpoint-8"))
    assert again.step == 16
    same(resumed, whole)
    choice = {"metric_for_best_model": "score", "greater_is_better": True, "load_best_model_at_end": True}
    best, first = fit("best", eval_strategy="epoch", **choice)
    assert first.step == 8
    first.verify()
    weights = load_file(tmp_path / "best" / "checkpoint-8" / "model.safetensors")
    assert all(torch.equal(value, weights[key]) for key, value in best.state_dict().items())
