"""`mix` with a named method's options makes that method's masks, at every step of a run.

It cannot say: two stages at one evaluation (granet), thresholds that rise (narang, deep-compression:s=...), phases
(ac-dc), signs and noise (deepr), a constant fan-in (srigl), nor `initial`, a swap's `end` or dsr's first threshold.
"""

from __future__ import annotations

import pytest

from starfire_cli.errors import BadOption
from starfire_cli.pruning import METHODS
from tests.helpers.hat_training import LAST, HatTraining

SPARSE = "start=random,amount=swap"
NAMED = {
    "gmp:every=3": "ramp=cubic,every=3",
    "gmp:pool=global,every=3": "ramp=cubic,allocation=global,every=3",
    "gmp:pool=erk,ramp=linear": "allocation=erk",
    "static": "start=random,allocation=erk,amount=none",
    "static:allocation=uniform": "start=random,amount=none,dense_first=true",
    "set:every=2": f"{SPARSE},allocation=erk,by_sign=true,anneal=constant,regrow=random,every=2",
    "set:by_sign=false,anneal=cosine,fraction=0.5": f"{SPARSE},allocation=erk,fraction=0.5,regrow=random",
    "rigl:every=2": f"{SPARSE},allocation=erk,regrow=gradient,keeps_value=true,replaces_step=true,every=2",
    "rigl:allocation=uniform,fraction=0.6": (
        f"{SPARSE},fraction=0.6,regrow=gradient,keeps_value=true,replaces_step=true,dense_first=true"
    ),
    "snfs:every=2": f"{SPARSE},fraction=0.5,regrow=momentum,shared=momentum,dense_first=true,every=2",
    "snip": "start=sensitivity,allocation=global,amount=none",
    "snip:pool=layer": "start=sensitivity,amount=none",
    "dsr:every=2": "start=random,amount=adaptive,fraction=0.08,regrow=random,shared=live,again=false,dense_first=true,"
    "every=2",
    "dsr:unit=kernel,moves=0.2": "unit=kernel,start=random,amount=adaptive,fraction=0.2,regrow=random,shared=live,"
    "again=false,dense_first=true",
    "deep-compression": "allocation=global,score=standardised",
}


@pytest.mark.parametrize(("named", "axes"), NAMED.items())
def test_mix_is_the_named_method(named: str, axes: str) -> None:
    runs = HatTraining(named), HatTraining(f"mix:{axes}")
    for run in runs:
        run.begin()
    assert runs[0].run(LAST + 1) == runs[1].run(LAST + 1)
    for key, weight in runs[0].weights.items():
        assert weight.equal(runs[1].weights[key])
    assert runs[0].pruner.monotone == runs[1].pruner.monotone


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ("start=momentum", "unknown start 'momentum'"),
        ("start=random,amount=swap,regrow=magnitude", "unknown regrow 'magnitude'"),
        ("amount=swap,regrow=random", "never reaches the target"),
        ("start=random,amount=swap", "regrow=random or gradient"),
        ("regrow=random", "belongs to amount=swap"),
        ("unit=kernel,start=random,amount=swap,regrow=random,by_sign=true", "unit=weight"),
    ],
)
def test_axes_that_contradict_each_other(axes: str, said: str) -> None:
    with pytest.raises(BadOption, match=said):
        METHODS.build(f"mix:{axes}")


@pytest.mark.parametrize("axes", ["score=sensitivity", "start=random,amount=none", "start=gradient,amount=none"])
def test_what_trains_is_refused_for_a_trained_network(axes: str) -> None:
    with pytest.raises(BadOption, match="are for training"):
        HatTraining(f"mix:{axes}").pruner.refresh(1.0)


def test_a_rise_from_above_its_target() -> None:
    with pytest.raises(BadOption, match=r"initial=0.7 is above --target 0.6"):
        HatTraining("gmp:initial=0.7")
