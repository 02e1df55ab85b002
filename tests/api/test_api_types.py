"""Arguments of wrong types: one line each, with the value where it is short and what works."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

import starfire_cli as starfire
from starfire_cli.api._types import check_arguments
from starfire_cli.errors import StarfireError
from tests.workflows.attach.loops import made

BATCH = [(torch.rand(4, 3, 7, 7), torch.tensor([0, 1, 2, 3]))]


def attach(**options):
    return lambda p, f: starfire.attach(*made(), **{"total_steps": 9, **options})


def save(**options):
    return lambda p, f: starfire.save(f.with_name("other.pt"), p, **options)


def attack(**options):
    return lambda p, f: starfire.attack(p.network, BATCH, **options)


def compress(**options):
    return lambda p, f: starfire.compress(f, f.with_suffix(".safetensors"), **options)


CALLS = [
    (attach(ramp=None), r"ramp=None is a NoneType; a text works"),
    (attach(only=[3]), r"only=\[3\] is a list; a list of texts works"),
    (attach(keep_dense=None), "keep_dense=None is"),
    (attach(masks=5), "masks=5 is an int; masks by state-dict key or a text or a path work"),
    (attach(mask_every=2.5), "mask_every=2.5 is a float; a whole number works"),
    (attach(hooks="no"), "hooks='no' is a str; True or False works"),
    (attach(method="l1-filter", image_size=-8), "image_size=-8 is no whole number"),
    (save(metrics=[0.9]), r"metrics=\[0.9\] is a list; a dict of numbers by name works"),
    (save(metrics={1: 0.9}), "metrics={1: 0.9} is a dict"),
    (save(classes="abc"), "classes='abc' is a str; a list of texts works"),
    (lambda p, f: starfire.attack(p.network, [(BATCH[0][0][:, :1], BATCH[0][1])]), r"images, \(1, 7, 7\) each: "),
    (lambda p, f: starfire.attack(p.network, BATCH, eps=["8/255"]).top1(0.5), "eps=0.5 was not measured; there are: "),
    (attack(attack=None), "attack=None"),
    (attack(attack="pgd", steps=2.5), "steps=2.5 is a float"),
    (attack(attack="pgd", seed="x"), "seed='x' is a str"),
    (compress(values=None), "values=None"),
    (compress(masks=3), "masks"),
    (compress(data=5, values="bf16"), "data=5 is an int; a text works"),
    (compress(images="16", values="bf16"), "images='16' is a str"),
    (lambda p, f: starfire.plot(f, x=None), "x=None"),
    (lambda p, f: starfire.plot(f, kind=None), "kind=None is a NoneType; a text or a list of texts work"),
    (lambda p, f: starfire.plot(f, kind=["layers", 3]), "kind="),  # type: ignore[list-item]
    (lambda p, f: starfire.plot(f, layer=3), "layer=3"),
    (lambda p, f: starfire.plot(f, kind="layers").save(f.with_suffix(".png"), dpi=0), "dpi=0"),
    (lambda p, f: starfire.plot(f, kind="layers").save(f.with_suffix(".png"), dpi="high"), "dpi='high'"),
    (lambda p, f: starfire.plot(f, kind="layers").save(None), "path is a NoneType"),
    (lambda p, f: starfire.sparsify(p.network, "my.pt"), "masks='my.pt' is a str; masks by state-dict key works"),
    (lambda p, f: starfire.warmup(p.network, 3), r"images=3 is an int; a shape \(N, C, H, W\) works"),
    (lambda p, f: starfire.warmup(p.network, torch.zeros(4, 3, 32, 32)), "images is a Tensor; a shape"),
]


@pytest.mark.parametrize(("call", "message"), CALLS)
def test_wrong_types_are_one_line(pruned, call, message):
    with pytest.raises(StarfireError) as caught:
        call(*pruned)
    text = str(caught.value)
    assert re.search(message, text) and "\n" not in text and len(text) < 300


@pytest.mark.filterwarnings("ignore:target=.* comes to")
def test_numbers_of_numpy_are_numbers():
    options = {"target": np.float32(0.5), "seed": np.int64(3), "mask_every": np.int32(2), "total_steps": np.int64(20)}
    for era in (np.array([0.2, 0.6]), (np.float32(0.25), np.float64(0.5)), torch.tensor([0.25, 0.5])):
        state = starfire.attach(*made(), **options, era=era).state_dict()
        assert (state["target"], state["seed"], state["mask_every"]) == (0.5, 3, 2)
        assert state["era"] in ([4, 12], [5, 10]) and type(state["seed"]) is int
    found = [starfire.attack(made()[0], BATCH, seed=seed, eps=0.1).top1(0.1) for seed in (np.int64(3), 3)]
    assert found[0] == found[1]


def test_numbers_of_numpy_and_unknown_annotations_pass():
    def called(count: Any, share: Any, names: Any, other: Any) -> None:
        check_arguments(called, locals())

    called.__annotations__ |= {"count": "int", "share": "float | None", "names": "Sequence[str]", "other": "nn.Module"}
    called(np.int64(3), np.float32(0.5), ("a",), object())
    called(3, None, {"a"}, None)
    with pytest.raises(StarfireError, match="share='x' is a str; a number works"):
        called(3, "x", [], None)
