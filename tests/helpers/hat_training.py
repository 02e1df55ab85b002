"""A training without a loss: gradients out of a hat, for what must hold of pruners whatever is learnt."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn, optim
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from starfire_cli.pruning import METHODS, NetworkMethod, Pruner, layers_of_model
from starfire_cli.pruning.schedule import Era

STEPS, FIRST, LAST = 11, 1, 9


class HatNetwork(nn.Module):
    """A 3x3, a grouped and a depthwise convolution in a residual branch, a 1x1 one, BatchNorm, and a linear layer.

    It can be traced, as penalties of structures ask, but nothing is ever computed with it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_bn = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv1, self.bn1 = nn.Conv2d(6, 8, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)
        self.conv3, self.bn3 = nn.Conv2d(8, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_bn(self.stem(x)).relu()
        branch = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        x = (x + self.bn3(self.conv3(branch))).relu()
        return self.fc(x.mean((2, 3)))


def network() -> nn.Module:
    torch.manual_seed(0)
    return HatNetwork()


def make_sgd(parameters: Iterator[nn.Parameter]) -> optim.Optimizer:
    return optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-3)


class HatTraining:
    """Steps with gradients out of a hat, the same ones in every memory format, so that masks can be compared."""

    pruner: Pruner

    def __init__(
        self,
        spec: str,
        *,
        target: float = 0.6,
        seed: int = 3,
        make: Callable[[Iterator[nn.Parameter]], optim.Optimizer] = make_sgd,
        channels_last: bool = False,
        dtype: torch.dtype = torch.float32,
        taken_from: HatTraining | None = None,
    ) -> None:
        self.spec, self.name = spec, spec.partition(":")[0]
        self.model = (
            network().to(dtype).to(memory_format=torch.channels_last if channels_last else torch.preserve_format)
        )
        self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.5)) if dtype.itemsize > 2 else None
        self.step = 0
        masks: dict[str, Tensor] | None = None
        if taken_from is not None:
            self.step, masks = taken_from.step, taken_from.pruner.masks
            self.model.load_state_dict(taken_from.model.state_dict())
        method = METHODS.build(spec)
        assert isinstance(method, NetworkMethod)
        self.axes = method.axes()
        layers, _ = layers_of_model(self.model)
        era = Era(first_step=FIRST, last_step=LAST)
        self.pruner = Pruner(
            self.model,
            layers,
            conv=method,
            linear=method,
            target=target,
            era=era,
            seed=seed,
            masks=copy.deepcopy(masks),
            kernels="torch",
        )
        self.optimizer = make(self.model.parameters())
        if taken_from is not None:
            self.optimizer.load_state_dict(copy.deepcopy(taken_from.optimizer.state_dict()))
            if self.ema is not None and taken_from.ema is not None:
                self.ema.load_state_dict(taken_from.ema.state_dict())
        self.pruner.attach(self.optimizer, self.ema.module if self.ema is not None else None)
        if taken_from is not None:
            file = io.BytesIO()
            torch.save(taken_from.pruner.state_dict(), file)
            file.seek(0)
            self.pruner.load_state_dict(torch.load(file, weights_only=True))
        self.keys = list(self.pruner.masks)
        self.weights = {key: self.model.get_parameter(key) for key in self.keys}

    def give_gradients(self) -> float:
        """Fill them in; returns what the loss would be."""
        for n, weight in enumerate(self.weights.values()):
            generator = torch.Generator().manual_seed(1000 * self.step + n)
            values = torch.randn(weight.shape, generator=generator)
            weight.grad = torch.empty_like(weight).copy_(values)
        return 1.0

    def first_loss(self) -> float:
        """Gradients, and a loss to weigh a penalty against."""
        self.give_gradients()
        return 2.5

    def begin(self) -> None:
        self.pruner.begin(self.first_loss)
        self.optimizer.zero_grad()

    def take_step(self) -> bool:
        """One step; returns whether the pruner says that masks changed."""
        self.step += 1
        self.give_gradients()
        steps = self.pruner.after_backward()
        for key in self.keys:
            gradient, mask = self.weights[key].grad, self.pruner.masks[key]
            assert gradient is not None
            assert not gradient[~mask].any(), f"a gradient of {key}"
        if steps:
            self.optimizer.step()
        self.optimizer.zero_grad()
        return self.pruner.after_step(self.step)

    def average(self) -> None:
        if self.ema is not None:
            self.ema.update_parameters(self.model)

    def run(self, until: int) -> list[str]:
        digests = []
        while self.step < until:
            self.take_step()
            self.average()
            digests.append(self.pruner.digest())
        return digests

    def masks(self) -> dict[str, Tensor]:
        return {key: mask.clone() for key, mask in self.pruner.masks.items()}

    def kept(self, key: str) -> list[Tensor]:
        """What goes with a weight from step to step."""
        weight = self.weights[key]
        state = [v for v in self.optimizer.state[weight].values() if torch.is_tensor(v) and v.shape == weight.shape]
        return [*state, *([self.ema.module.get_parameter(key).detach()] if self.ema is not None else [])]

    def evaluations(self) -> set[int]:
        """The steps at which masks may change, by the text of the method."""
        every = self.pruner.era.mask_every
        steps = {step for step in range(FIRST + 1, LAST + 1) if (step - FIRST) % every == 0}
        if any(stage.monotone for stage in self.axes.stages):
            steps.add(LAST)  # where the target is met, whatever the clock
        return steps if self.axes.stages else set()
