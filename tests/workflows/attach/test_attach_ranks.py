"""Pruners of models that several processes train together: the masks of one process, and one line where none can be."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import starfire_cli as starfire
from starfire_cli.errors import StarfireError
from starfire_cli.workflows.attach.shards import gathered
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
    dist.destroy_process_group()
    return found


def test_two_processes_find_the_masks_of_one():
    expected = [masks_of(method) for method in METHODS]
    assert together(2, of_one_rank) == [expected] * 2


FEW = 6
SHARDED = [("window", "fine"), ("ck", "block"), ("gmp:every=2", "fine")]


def sharded(optimizer_of, folder=None, *, resume=False, whole=False):
    """Masks and weights of each method, trained as shards of two processes, or whole in one."""
    rank, ranks = (0, 1) if whole else (dist.get_rank(), dist.get_world_size())
    found = []
    for method, fc in SHARDED:
        torch.manual_seed(0)
        net = Plain(4)
        if not whole:
            fully_shard(net.conv2)
            fully_shard(net)
        optimizer = optimizer_of(net.parameters())
        options = {"method": method, "fc": fc, "target": 0.5, "total_steps": FEW}
        pruner = starfire.attach(net, optimizer, **options)
        for step in range(FEW):
            if resume and step == FEW // 2:
                state = pruner.state_dict()
                pruner.detach()
                pruner = starfire.attach(net, optimizer, **options)
                pruner.load_state_dict(state)
            images, labels = batch(step)
            optimizer.zero_grad()
            cross_entropy(net(images[rank::ranks]), labels[rank::ranks]).backward()
            optimizer.step()
            assert all(not gathered(net.get_parameter(k).detach())[~m].any() for k, m in pruner.masks.items())
        pruner.verify()
        path = starfire.save(folder / f"{method[:3]}-{whole}.pt", pruner)
        found.append((pruner.core.digest(), pruner.sparsity, str(path)))
    return found


def plain_sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3)


def adam(parameters):
    return torch.optim.AdamW(parameters, lr=0.003)


RUNS = ((plain_sgd, True), (adam, False))


def of_one_shard(folder):
    dist.init_process_group("gloo")
    found = [sharded(kind, folder, resume=resume) for kind, resume in RUNS]
    net = Plain(4)
    fully_shard(net)
    said = []
    for options in ({"method": "rigl"}, {"ema": net}):
        with pytest.raises(StarfireError) as caught:
            starfire.attach(net, torch.optim.SGD(net.parameters(), lr=0.1), total_steps=STEPS, **options)
        said.append(str(caught.value))
    pruner = starfire.attach(net, torch.optim.SGD(net.parameters(), lr=0.1), total_steps=STEPS)
    with pytest.raises(StarfireError, match="the weights are sharded"):
        starfire.compress(pruner, folder / "packed.safetensors")
    dist.destroy_process_group()
    return found, said


@pytest.mark.slow  # FSDP2's first step takes each process six seconds of imports
def test_sharded_weights_get_the_masks_and_the_file_of_whole_ones(tmp_path):
    plain, other = sharded(plain_sgd, tmp_path, whole=True), sharded(adam, tmp_path, whole=True)
    weights = [starfire.load(path) for _, _, path in other]
    for found, said in together(2, of_one_shard, tmp_path):
        for one, expected in zip(found, (plain, other), strict=True):
            assert [digest for digest, _, _ in one] == [digest for digest, _, _ in expected]
            assert [share for _, share, _ in one] == [share for _, share, _ in expected]
        for (_, _, path), state in zip(found[-1], weights, strict=True):
            loaded = starfire.load(path)
            assert loaded.keys() == state.keys()
            assert all(torch.allclose(loaded[key], value, atol=1e-5) for key, value in state.items())
        assert said[0].startswith("method='rigl' looks at more than weights or revives some")
        assert said[1].startswith("ema is not followed where weights are sharded")
