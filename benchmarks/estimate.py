"""Compares `inspect`'s estimate of a packed file with what `compress` writes, over networks, methods and targets.

python benchmarks/estimate.py                     # random weights; prints a line a network, and the interval
python benchmarks/estimate.py runs/*/best.pt      # checkpoints of any format instead
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch import nn

from benchmarks._common import prune_at_once
from starfire_cli.formats.checkpoint.file import load
from starfire_cli.formats.checkpoint.meta_reader import read_meta
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.formats.packed.write import pack
from starfire_cli.models import build_model
from starfire_cli.pruning import Masks
from starfire_cli.workflows.inspect.run import inspect

NETWORKS = ("resnet20", "mobilenet_v2", "squeezenet1_0")
METHODS = (("window", "fine"), ("ck", "fine"), ("intra", "block"))
TARGETS = (0.0, 0.3, 0.6, 0.8, 0.95)
SMALL = "small"


def network(name: str) -> nn.Module:
    """A network by its name; `SMALL` has three layers."""
    if name != SMALL:
        return build_model(name, num_classes=10)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 16, 3), nn.Flatten(), nn.Linear(16, 10))


def pruned(net: nn.Module, method: str, fc: str, target: float) -> Masks:
    """Masks as a method makes them of random weights; none at target 0."""
    if not target:
        return {}
    return prune_at_once(net, method, target, fc=fc).masks


def measure(name: str, checkpoint: Checkpoint, folder: Path) -> float:
    """Print one line; returns the estimate's error as a fraction of the file."""
    found = inspect(checkpoint)
    packed = pack(
        folder / "packed.safetensors",
        state=checkpoint.state,
        masks=checkpoint.masks,
        meta=checkpoint.meta.values,
        verify=False,
    )
    assert found.bytes_bound == round(packed.bound_bytes), "one bound"
    error = found.bytes_packed / packed.packed_bytes - 1
    print(
        f"{name:28} file {packed.packed_bytes:>10,}  estimate {found.bytes_packed:>10,}  {100 * error:+.2f} %",
        flush=True,
    )
    return error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="*", type=Path)
    given = parser.parse_args().checkpoints
    torch.manual_seed(0)
    errors: list[float] = []
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        errors += [measure(str(path), load(path), folder) for path in given]
        for name in () if given else (SMALL, *NETWORKS):
            for method, fc in METHODS:
                for target in TARGETS:
                    if not target and method != METHODS[0][0]:
                        continue
                    net = network(name)
                    masks = pruned(net, method, fc, target)
                    meta = read_meta({"model": {"spec": name, "num_classes": 10}}, folder / "x")
                    state = {key: tensor.detach() for key, tensor in net.state_dict().items()}
                    checkpoint = Checkpoint(path=folder / "x", format="starfire", state=state, masks=masks, meta=meta)
                    errors.append(measure(f"{name} {method} {target:g}", checkpoint, folder))
    print(f"{len(errors)} files: {100 * min(errors):+.1f} to {100 * max(errors):+.1f} %")


if __name__ == "__main__":
    main()
