"""A small network, a small training loop, and what must hold after every one of its steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from starfire_cli.pruning import CONV_METHODS, LINEAR_METHODS, Masks, Pruner, layers_of_model
from starfire_cli.pruning.schedule import Era

MakeOptimizer = Callable[[Iterator[nn.Parameter]], Optimizer]
STEPS, FIRST, LAST = 36, 4, 28


def network(seed: int = 0, *, channels_last: bool = False) -> nn.Module:
    """3x3, grouped 3x3, depthwise 3x3, 1x1 convolutions, BatchNorm and two linear layers."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 12, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 9),
        nn.ReLU(),
        nn.Linear(9, 4),
    )
    return model.to(memory_format=torch.channels_last) if channels_last else model


def batches(steps: int, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(6, 3, 7, 7, generator=generator), torch.randint(0, 4, (6,), generator=generator))
        for _ in range(steps)
    ]


def make_pruner(
    model: nn.Module,
    conv: str = "window",
    fc: str = "fine",
    target: float = 0.6,
    kernels: str = "auto",
    **era: int,
) -> Pruner:
    layers, _ = layers_of_model(model)
    when = Era(**{"first_step": FIRST, "last_step": LAST, **era})  # type: ignore[arg-type]
    rule, other = CONV_METHODS.build(conv), LINEAR_METHODS.build(fc)
    return Pruner(model, layers, conv=rule, linear=other, target=target, era=when, kernels=kernels)


@dataclass(kw_only=True)
class Training:
    """Steps through a training with every check after every step."""

    model: nn.Module
    pruner: Pruner
    optimizer: Optimizer
    ema: AveragedModel | None = None
    clip: float | None = None
    autocast: bool = False
    check: bool = True
    step: int = 0
    before: Masks = field(default_factory=dict)

    @classmethod
    def start(
        cls,
        make_optimizer: MakeOptimizer,
        *,
        conv: str = "window",
        fc: str = "fine",
        target: float = 0.6,
        channels_last: bool = False,
        ema: bool = False,
        clip: float | None = None,
        autocast: bool = False,
    ) -> Training:
        model = network(channels_last=channels_last)
        pruner = make_pruner(model, conv, fc, target)
        optimizer = make_optimizer(model.parameters())
        follow = get_ema_multi_avg_fn(0.9)  # type: ignore[no-untyped-call]
        average = AveragedModel(model, multi_avg_fn=follow) if ema else None
        pruner.attach(optimizer, average.module if average is not None else None)
        return cls(model=model, pruner=pruner, optimizer=optimizer, ema=average, clip=clip, autocast=autocast)

    def run(self, data: list[tuple[Tensor, Tensor]]) -> None:
        for images, labels in data:
            self.step += 1
            self.optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
                loss = cross_entropy(self.model(images), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            self.pruner.after_backward()
            if self.clip is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
            self.optimizer.step()
            self.pruner.after_step(self.step)
            if self.ema is not None:
                self.ema.update_parameters(self.model)
            if self.check:
                self.assert_dead_is_dead()

    def assert_dead_is_dead(self) -> None:
        """Weights, gradients, optimizer state and average are +0.0 where masks are dead, and masks only shrank."""
        weights = dict(self.model.named_parameters())
        averages = dict(self.ema.module.named_parameters()) if self.ema is not None else {}
        for key, mask in self.pruner.masks.items():
            dead, weight = ~mask, weights[key]
            state = [
                v
                for name, v in self.optimizer.state[weight].items()
                # Adamax never holds less than its epsilon there; as a divisor it cannot move a weight.
                if torch.is_tensor(v) and v.shape == weight.shape and name != "exp_inf"
            ]
            for tensor in [weight.detach(), *state, *([averages[key].detach()] if averages else [])]:
                assert not tensor[dead].any(), f"step {self.step}: {key} came back"
                assert tensor.isfinite().all()
            assert not weight.detach()[dead].signbit().any(), f"step {self.step}: {key} holds -0.0"
            assert weight.grad is None or not weight.grad[dead].any()
            if key in self.before:
                assert not (mask & ~self.before[key]).any(), f"step {self.step}: the mask of {key} grew"
            assert self.pruner.zeros[key] == int(dead.sum())
        if self.step > self.pruner.era.last_step:
            assert all(torch.equal(mask, self.before[key]) for key, mask in self.pruner.masks.items())
        self.before = {key: mask.clone() for key, mask in self.pruner.masks.items()}
