"""Steps that are replayed as a CUDA graph train the same network; without a GPU, a stand-in keeps the graph's rules."""

from __future__ import annotations

import copy
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from starfire_cli.errors import BadOption
from starfire_cli.formats.checkpoint.file import load
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.formats.run import Run
from starfire_cli.workflows.train import cuda_graph as graphed
from starfire_cli.workflows.train import loop as training
from starfire_cli.workflows.train.loop import train
from starfire_cli.workflows.train.request import TrainRequest

# A rate that float32 holds exactly, as it is on the device: then the runs are equal to the bit.
EXACT = {"lr_schedule": "constant", "warmup": 0.0}
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SHORT = TrainRequest(epochs=4, era="1:3", method="ck", limit_train=200, limit_val=50, batch_size=64, amp=False)


def last(request: TrainRequest) -> Checkpoint:
    list(train(request))
    return load(Run(request.out / str(request.name)).last, training=True)


def same(a: Checkpoint, b: Checkpoint) -> bool:
    pairs = ((a.state, b.state), (a.masks or {}, b.masks or {}))
    return all(x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x) for x, y in pairs)


class StandIn:
    """What `torch.cuda` offers for graphs, on a CPU: what is captured does not happen, and a replay is its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.captures, self.replays, self.made = 0, 0, list[graphed.StepGraph]()
        outer = self

        class Made(graphed.StepGraph):
            def __init__(self, *args) -> None:
                super().__init__(*args)
                outer.made.append(self)

        class Graph:
            def replay(self) -> None:
                outer.replays += 1
                mine = outer.made[-1]
                mine._sums.copy_(mine._with_rate(lambda: mine._update(mine._images, mine._labels), capturable=True))

        class Stream:
            device = CPU

            def __init__(self, device: torch.device = CPU) -> None:
                pass

            def wait_stream(self, other: Stream) -> None:
                pass

        @contextmanager
        def capture(graph: Graph, stream: Stream, capture_error_mode: str):
            assert capture_error_mode == "thread_local"
            self.captures += 1
            optimizer = outer.made[-1]._optimizer
            weights = [p for group in optimizer.param_groups for p in group["params"]]
            held = [p.detach().clone() for p in weights], copy.deepcopy(optimizer.state_dict())
            buffers = {id(b): (b, b.clone()) for net in outer.nets for b in net.buffers()}
            yield
            with torch.no_grad():
                for weight, value in zip(weights, held[0], strict=True):
                    weight.copy_(value)
                for buffer, value in buffers.values():
                    buffer.copy_(value)
            now = optimizer.state_dict()["state"]
            for number, state in held[1]["state"].items():
                for name, value in state.items():
                    if isinstance(value, torch.Tensor):
                        now[number][name].copy_(value)

        self.nets = list[torch.nn.Module]()
        for name, member in {
            "Stream": Stream,
            "CUDAGraph": Graph,
            "graph": capture,
            "stream": lambda stream: nullcontext(),
            "current_stream": lambda device: Stream(),
        }.items():
            monkeypatch.setattr(torch.cuda, name, member)
        monkeypatch.setattr("starfire_cli.workflows.train.session_setup.refuse", lambda *args: None)
        monkeypatch.setattr("starfire_cli.workflows.train.step.StepGraph", Made)
        trained = training._trained
        monkeypatch.setattr(
            training,
            "_trained",
            lambda session, folder: self.nets.append(session.network.model) or trained(session, folder),
        )


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 2**-4), ("adam", 2**-10), ("adamw", 2**-10)])
def test_a_replayed_run_is_the_run(optimizer: str, lr: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = replace(SHORT, optimizer=optimizer, lr=lr, out=tmp_path, device="cpu", clip_grad=1.0, **EXACT)
    plain = last(replace(request, name="plain"))
    there = StandIn(monkeypatch)
    found = last(replace(request, name="graphs", cuda_graphs=True))
    # Four batches an epoch, the last of them smaller: 12 are whole, two of the three that warm up.
    assert there.replays == 9 and there.captures == 2  # before the era, and with all gates in it
    assert same(plain, found)
    groups = found.training["optimizer"]["param_groups"]
    assert all(type(group["lr"]) is float and not group.get("capturable") for group in groups)
    stopped = replace(request, name="parts", cuda_graphs=True)
    list(train(replace(stopped, max_steps=6)))
    list(train(TrainRequest(resume=tmp_path / "parts", out=tmp_path)))
    assert same(found, load(Run(tmp_path / "parts").last))


@pytest.mark.parametrize("method", ["prunetrain:strength=0.05,threshold=0.03,interval=1", "sss:strength=1"])
def test_penalties_are_replayed_and_graphs_made_anew_for_smaller_networks(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {"model": "tests.tiny:residual", "method": method, "out": tmp_path, "device": "cpu", "lr": 0.125, **EXACT}
    request = replace(SHORT, **how, limit_train=320, era="1:3", epochs=5)
    plain = last(replace(request, name="plain"))
    there = StandIn(monkeypatch)
    found = last(replace(request, name="graphs", cuda_graphs=True))
    assert same(plain, found) and found.masks
    assert there.replays >= 8
    cut = found.meta.model.shrink != {}
    assert cut is method.startswith("prunetrain") and there.captures >= 2
    assert len(there.made) >= (2 if cut else 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("optimizer", graphed.OPTIMIZERS)
def test_a_graph_on_a_gpu(optimizer: str, tmp_path: Path) -> None:
    request = replace(SHORT, optimizer=optimizer, lr=2**-10, out=tmp_path, device="cuda", deterministic=True, **EXACT)
    plain = last(replace(request, name="plain"))
    assert same(plain, last(replace(request, name="graphs", cuda_graphs=True)))


@pytest.mark.parametrize(
    ("given", "device", "ranks", "said"),
    [
        ({}, CPU, 1, "is for CUDA, and this runs on cpu; --compile works there"),
        ({}, CUDA, 2, "is for one process, and these are 2"),
        ({"optimizer": "rmsprop"}, CUDA, 1, "sgd, adam, adamw, not with rmsprop"),
        ({"amp_dtype": "fp16"}, CUDA, 1, "not in fp16"),
        ({"adversarial": "fgsm:eps=0.1"}, CUDA, 1, "does not go with --adversarial fgsm:eps=0.1"),
        ({"compact_state": True}, CUDA, 1, "does not go with --compact-state"),
        ({"values": "codebook:bits=4"}, CUDA, 1, "does not go with --values codebook:bits=4"),
    ],
)
def test_what_graphs_do_not_go_with(given: dict[str, object], device: torch.device, ranks: int, said: str) -> None:
    request = TrainRequest(**{"optimizer": "sgd"} | given)
    with pytest.raises(BadOption, match=f"^--cuda-graphs .*{said}"):
        graphed.refuse(request, device, ranks)
    if given or ranks > 1:
        graphed.refuse(
            replace(request, **dict.fromkeys(given, None) | {"optimizer": "adam", "amp_dtype": "bf16"}), CUDA, 1
        )
