"""Methods of the whole network in training: resumed to the bit, alike on all ranks, refused where they cannot work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from starfire_cli.errors import BadOption
from starfire_cli.formats.checkpoint.file import load
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.formats.run import Run
from starfire_cli.pruning import METHODS
from starfire_cli.pruning.masks import digest
from starfire_cli.workflows.train.loop import train
from starfire_cli.workflows.train.request import TrainRequest
from tests.helpers.together import run

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
TINY: dict[str, Any] = {"limit_val": 50, "limit_train": 320, "target": 0.8, "epochs": 3, "model": "tests.tiny:net"}
STEPS = [
    name for name in METHODS.taking("network").names() if METHODS.build(name).axes().rounds is None
]  # see test_tickets
SPECS = [*STEPS, "gmp:pool=global", "dsr:unit=kernel", "granet:initial=0.5"]


def last(out: Path) -> Checkpoint:
    (folder,) = out.iterdir()
    return load(Run(folder).last, training=True)


@pytest.mark.parametrize("spec", SPECS)
def test_a_run_resumed_in_its_era_ends_with_the_same_bits(tmp_path: Path, spec: str) -> None:
    own_era = not METHODS.build(spec).axes().has_era
    more = {**TINY, "method": spec, "ema": 0.9, "era": None if own_era else "0.4:2.4", "batch_size": 64}
    if spec == "sss":
        more["model"] = "tests.tiny:residual"
    run(tmp_path / "whole", **more)
    run(tmp_path / "parts", **more, max_steps=7)
    run(tmp_path / "parts", model=more["model"], resume=Path("auto"))
    whole, parts = last(tmp_path / "whole"), last(tmp_path / "parts")
    assert whole.meta.pruning.method == parts.meta.pruning.method
    assert digest(whole.masks or {}) == digest(parts.masks or {})
    assert all(torch.equal(value, parts.state[key]) for key, value in whole.state.items())
    raw = [c.training["raw"] for c in (whole, parts) if c.training is not None]
    assert all(torch.equal(value, raw[1][key]) for key, value in raw[0].items())
    for key, mask in (whole.masks or {}).items():
        assert not whole.state[key][~mask].any() and not raw[0][key][~mask].any()


@pytest.mark.parametrize("spec", ["rigl", "snip", "dsr", "deepr"])
def test_two_ranks_make_the_masks_of_one_process(tmp_path: Path, spec: str) -> None:
    """Up to what adding in another order does to near ties: the first evaluations, and as many dead in each layer."""
    more = {"method": spec, "target": 0.8, "max_steps": 8, "era": None if spec == "snip" else "0:2"}
    assert run(tmp_path / "alone", **more)[0].endswith("Stopped")
    assert run(tmp_path / "company", 2, **more)[0].endswith("Stopped")
    alone, company = (last(tmp_path / name).masks or {} for name in ("alone", "company"))
    for key, mask in alone.items():
        assert int(mask.sum()) == int(company[key].sum()), key
        assert float((mask != company[key]).float().mean()) < 0.02, key


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"method": "rigl", "compact_state": True}, "--compact-state .*--method rigl"),
        ({"method": "rigl:every=1000"}, "masks every 1000 steps leave no evaluation in an era of 11 steps"),
        ({"method": "static", "era": "0:1"}, "--era 0:1: --method static makes its mask before the first step"),
        ({"method": "set", "fc": "block"}, "--fc block: --method set prunes linear layers too; --fc dense"),
        ({"method": "gmp", "ramp": "cosine"}, "--ramp cosine .*gmp has options of its own"),
        ({"method": "gmp", "mask_every": 5}, "--mask-every 5 .*gmp has options of its own"),
        ({"method": "mix:unit=filter", "target": 0.99}, "--target 0.99 is more than this method's units can give"),
        ({"method": "mix:amount=swap"}, "amount=swap takes weights away for others; regrow=random or gradient"),
        ({"method": "dsr:moves=0"}, "moves=0 is out of range; it is above 0"),
        ({"method": "dsr:doubled_at=0.5/0.25"}, "doubled_at=0.5/0.25 is no list of shares of the era, .*such as 0.25"),
        ({"method": "dsr:doubled_at=x"}, "doubled_at=x is no list of shares"),
        ({"method": "ac-dc:phases=4"}, "phases=4 is out of range; an odd number"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(tmp_path: Path, more: dict[str, Any], said: str) -> None:
    with pytest.raises(BadOption, match=said):
        list(train(TrainRequest(**{**TINY, **more}, out=tmp_path, dry_run=True)))


def test_a_pruned_checkpoint_is_not_started_from_where_weights_would_come_back(tmp_path: Path) -> None:
    run(tmp_path / "gmp", **TINY, method="gmp")
    (folder,) = (tmp_path / "gmp").iterdir()
    init = Run(folder).last
    with pytest.raises(BadOption, match="has dead weights, which stay dead, and --method rigl revives weights"):
        list(train(TrainRequest(**TINY, method="rigl", init=init, out=tmp_path, dry_run=True)))
    list(train(TrainRequest(**{**TINY, "target": 0.9}, method="gmp", init=init, out=tmp_path, dry_run=True)))


def test_linear_layers_stay_dense_where_asked(tmp_path: Path) -> None:
    run(tmp_path, **TINY, method="rigl", fc="dense", max_steps=1)
    assert set(last(tmp_path).masks or {}) == {"conv1.weight", "conv2.weight", "point.weight"}


def test_neurons_that_wake_are_the_same_after_a_resume_and_on_all_ranks(tmp_path: Path) -> None:
    """Bridging gradients are remembered, and the ranks' added up."""
    more = {**TINY, "model": "tests.tiny:perceptron", "method": "nest:every=2", "era": "0:3", "batch_size": 64}
    run(tmp_path / "whole", **more)
    run(tmp_path / "parts", **more, max_steps=5)
    run(tmp_path / "parts", model="tests.tiny:perceptron", resume=Path("auto"))
    assert run(tmp_path / "company", 2, **more)[0].endswith("Finished"), "no rank had another mask"
    whole, parts, company = (last(tmp_path / name) for name in ("whole", "parts", "company"))
    assert digest(whole.masks or {}) == digest(parts.masks or {})
    assert all(torch.equal(value, parts.state[key]) for key, value in whole.state.items())
    dead = [{key: int((~mask).sum()) for key, mask in (c.masks or {}).items()} for c in (whole, company)]
    assert dead[0] == dead[1]
