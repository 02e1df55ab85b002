"""Pruners of models that several processes train together: the masks of one process, and one line where none can be."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import starfire_cli as starfire
from starfire_cli.errors import StarfireError
from tests.helpers.together import together
from tests.tiny import Plain

pytestmark = pytest.mark.filterwarnings("ignore:target=.* comes to")

STEPS = 12
METHODS = ("window", "rigl:every=3")


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.rand(8, 3, 16, 16, generator=generator), torch.randint(0, 4, (8,), generator=generator)


def masks_of(method: str, rank: int = 0, ranks: int = 1) -> str:
    torch.manual_seed(0)
    net = Plain(4)
    model = DistributedDataParallel(net, bucket_cap_mb=0.01) if ranks > 1 else net
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)

    def loss(step):
        images, labels = batch(step)
        return cross_entropy(model(images[rank::ranks]), labels[rank::ranks])

    pruner = starfire.attach(model, optimizer, method=method, target=0.5, total_steps=STEPS, loss=lambda: loss(0))
    for step in range(STEPS):
        optimizer.zero_grad()
        loss(step).backward()
        optimizer.step()
    pruner.verify()
    return pruner.core.digest()


def of_one_rank():
    dist.init_process_group("gloo")
    found = [masks_of(method, dist.get_rank(), dist.get_world_size()) for method in METHODS]
    from torch.distributed.fsdp import fully_shard

    net = Plain(4)
    fully_shard(net)
    with pytest.raises(StarfireError) as caught:
        starfire.attach(net, torch.optim.SGD(net.parameters(), lr=0.1), total_steps=STEPS)
    dist.destroy_process_group()
    return [*found, str(caught.value)]


def test_two_processes_find_the_masks_of_one_and_sharded_weights_are_refused():
    expected = [masks_of(method) for method in METHODS]
    for *found, refused in together(2, of_one_rank):
        assert found == expected
        assert refused.startswith("conv1.weight is sharded (DTensor)") and "DistributedDataParallel does" in refused
