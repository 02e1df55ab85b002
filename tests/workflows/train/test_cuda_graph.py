"""Steps that are replayed as a CUDA graph train the same network; without a GPU, a stand-in keeps the graph's rules."""

from __future__ import annotations

import copy
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from starfire_cli.attacks import adversary
from starfire_cli.cli import main
from starfire_cli.errors import BadOption
from starfire_cli.formats.checkpoint.file import load
from starfire_cli.formats.checkpoint.record import Checkpoint
from starfire_cli.formats.run import Run
from starfire_cli.records.train import Notice
from starfire_cli.report.train import display
from starfire_cli.workflows.train import cuda_graph as graphed
from starfire_cli.workflows.train import loop as training
from starfire_cli.workflows.train.loop import train
from starfire_cli.workflows.train.request import TrainRequest
from starfire_cli.workflows.train.session_setup import wants_graphs

# A rate that float32 holds exactly, as it is on the device: then the runs are equal to the bit.
EXACT = {"lr_schedule": "constant", "warmup": 0.0}
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SHORT = TrainRequest(
    model="tests.tiny:residual",
    epochs=4,
    era="1:3",
    method="ck",
    limit_train=200,
    limit_val=50,
    batch_size=64,
    amp=False,
    cuda_graphs="off",
)


def last(request: TrainRequest) -> Checkpoint:
    list(train(request))
    return load(Run(request.out / str(request.name)).last, training=True)


def same(a: Checkpoint, b: Checkpoint) -> bool:
    pairs = ((a.state, b.state), (a.masks or {}, b.masks or {}))
    return all(x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x) for x, y in pairs)


class StandIn:
    """What `torch.cuda` offers for graphs, on a CPU: what is captured does not happen, and a replay is its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fails: bool = False) -> None:
        self.fails = fails
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
                mine._sums.copy_(
                    mine._with_rate(lambda: mine._update(mine._images, mine._labels, mine._step), capturable=True)
                )

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
            if self.fails:
                raise RuntimeError("operation not permitted when stream is capturing\nmore of it")
            optimizer = outer.made[-1]._optimizer
            weights = list(outer.nets[-1].parameters())
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
        monkeypatch.setattr(
            "starfire_cli.workflows.train.session_setup.wants_graphs",
            lambda request, *others: wants_graphs(request, CUDA, *others[1:]),
        )
        monkeypatch.setattr("starfire_cli.workflows.train.step.StepGraph", Made)
        trained = training._trained
        monkeypatch.setattr(
            training,
            "_trained",
            lambda session, folder: self.nets.append(session.network.model) or trained(session, folder),
        )


@pytest.mark.parametrize(
    ("optimizer", "lr"), [("sgd", 2**-4), ("adam", 2**-10), pytest.param("adamw", 2**-10, marks=pytest.mark.slow)]
)
def test_a_replayed_run_is_the_run(optimizer: str, lr: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = replace(SHORT, optimizer=optimizer, lr=lr, out=tmp_path, device="cpu", clip_grad=1.0, **EXACT)
    plain = last(replace(request, name="plain"))
    there = StandIn(monkeypatch)
    found = last(replace(request, name="graphs", cuda_graphs="on"))
    # Four batches an epoch, the last of them smaller: 12 are whole, two of the three that warm up.
    assert there.replays == 9 and there.captures == 2  # before the era, and with all gates in it
    assert same(plain, found)
    groups = found.training["optimizer"]["param_groups"]
    assert all(type(group["lr"]) is float and not group.get("capturable") for group in groups)
    stopped = replace(request, name="parts", cuda_graphs="on")
    list(train(replace(stopped, max_steps=6)))
    list(train(TrainRequest(model=SHORT.model, resume=tmp_path / "parts", out=tmp_path), {"model"}))
    assert same(found, load(Run(tmp_path / "parts").last))


@pytest.mark.parametrize("method", ["prunetrain:strength=0.05,threshold=0.03,interval=1", "sss:strength=1"])
def test_penalties_are_replayed_and_graphs_made_anew_for_smaller_networks(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {"model": "tests.tiny:residual", "method": method, "out": tmp_path, "device": "cpu", "lr": 0.125, **EXACT}
    request = replace(SHORT, **how, limit_train=320, era="1:3", epochs=5)
    plain = last(replace(request, name="plain"))
    there = StandIn(monkeypatch)
    found = last(replace(request, name="graphs", cuda_graphs="on"))
    assert same(plain, found) and found.masks
    assert there.replays >= 8
    cut = found.meta.model.shrink != {}
    assert cut is method.startswith("prunetrain") and there.captures >= 2
    assert len(there.made) >= (2 if cut else 1)


@pytest.mark.parametrize(
    "more",
    [
        {"adversarial": "fgsm:eps=8/255"},
        {"adversarial": "pgd:eps=8/255,steps=2", "accumulate": 2},
        {"compact_state": True, "optimizer": "adam"},
        {"compact_state": True, "clip_grad": 0.5, "momentum": 0.9},
    ],
    ids=lambda more: " ".join(more),
)
def test_attacks_and_compact_state_are_captured_too(
    more: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each replay attacks from a start of its own; compact steps are the optimizer's own, as on a GPU."""
    monkeypatch.setattr("starfire_cli.workflows.train.compact_state._fits", lambda weight: False)
    how = {"model": "tests.tiny:plain", "optimizer": "sgd", "out": tmp_path, "device": "cpu", "lr": 2**-5, **EXACT}
    request = replace(SHORT, **how | more, cuda_graphs="off")
    plain = last(replace(request, name="plain"))
    there = StandIn(monkeypatch)
    found = last(replace(request, name="graphs", cuda_graphs="on"))
    assert there.replays >= 5 and there.captures >= 2
    assert same(plain, found)


def test_a_capture_that_fails_says_so_once_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    how = {"model": "resnet20", "epochs": 2, "era": "0:1", "limit_train": 128}  # auto is on for models of ours
    request = replace(SHORT, optimizer="sgd", lr=2**-4, out=tmp_path, device="cpu", **EXACT, **how)
    plain = last(replace(request, name="plain", cuda_graphs="off"))
    there = StandIn(monkeypatch, fails=True)
    records = list(train(replace(request, name="graphs", cuda_graphs="auto")))
    assert there.replays == 0
    found = load(Run(tmp_path / "graphs").last, training=True)
    assert same(plain, found)
    (notice,) = [record for record in records if isinstance(record, Notice)]
    assert notice.text == (
        "training goes on without CUDA graphs: a step could not be captured (operation not permitted when stream is "
        "capturing)"
    )
    display(iter(records))
    assert capsys.readouterr().out.count(notice.text) == 1


def test_auto_is_on_where_graphs_work_and_silent_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request = TrainRequest(optimizer="sgd", model="resnet20")
    assert request.cuda_graphs == "auto"
    assert wants_graphs(request, CUDA, 1, None)
    assert not wants_graphs(request, CPU, 1, None)
    assert not wants_graphs(request, CUDA, 2, None)
    assert not wants_graphs(replace(request, cuda_graphs="off"), CUDA, 1, None)
    own = replace(request, model="tests.tiny:net")  # may count its calls, or draw from random
    assert not wants_graphs(own, CUDA, 1, None)
    assert wants_graphs(replace(own, cuda_graphs="on"), CUDA, 1, None)
    options = ["train", "--model", "tests.tiny:plain", "--dry-run", "--device", "cpu", "--out", str(tmp_path)]
    assert main(options) == 0
    assert "cuda-graphs" not in capsys.readouterr().out
    for flags in (["--cuda-graphs"], ["--cuda-graphs", "on"], ["--cuda-graphs=on"]):
        assert main([*options, *flags]) == 2
        assert "error: --cuda-graphs is for CUDA, and this runs on cpu" in capsys.readouterr().err
    assert main([*options, "--cuda-graphs", "--seed", "3", "--cuda-graphs", "off"]) == 0
    assert main([*options, "--cuda-graphs", "maybe"]) == 2
    assert "--cuda-graphs 'maybe'" in capsys.readouterr().err.replace("unknown ", "")


def test_runs_of_earlier_versions_said_true_or_false() -> None:
    config = TrainRequest().as_config()
    assert config["cuda_graphs"] == "auto"
    for said, meant in ((True, "on"), (False, "off"), ("auto", "auto")):
        assert TrainRequest.from_config(config | {"cuda_graphs": said}).cuda_graphs == meant


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("optimizer", graphed.OPTIMIZERS)
@pytest.mark.parametrize("more", [{}, {"adversarial": "fgsm:eps=8/255"}, {"compact_state": True}], ids=str)
def test_a_graph_on_a_gpu(optimizer: str, more: dict[str, object], tmp_path: Path) -> None:
    how = {"optimizer": optimizer, "lr": 2**-10, "out": tmp_path, "device": "cuda", "deterministic": True}
    request = replace(SHORT, **how | more, **EXACT)
    plain = last(replace(request, name="plain"))
    assert same(plain, last(replace(request, name="graphs", cuda_graphs="on")))


@pytest.mark.parametrize(
    ("given", "device", "ranks", "said"),
    [
        ({}, CPU, 1, "is for CUDA, and this runs on cpu; --compile works there"),
        ({}, CUDA, 2, "is for one process, and these are 2"),
        ({"optimizer": "rmsprop"}, CUDA, 1, "sgd, adam, adamw, not with rmsprop"),
        ({"amp_dtype": "fp16"}, CUDA, 1, "not in fp16"),
        ({"adversarial": "pgd:restarts=2"}, CUDA, 1, "goes with --adversarial fgsm, and with pgd of one start"),
        ({"values": "codebook:bits=4"}, CUDA, 1, "does not go with --values codebook:bits=4"),
    ],
)
def test_what_graphs_do_not_go_with(given: dict[str, object], device: torch.device, ranks: int, said: str) -> None:
    request = TrainRequest(**{"optimizer": "sgd", "cuda_graphs": "on"} | given)
    made = adversary(request.adversarial) if request.adversarial else None
    with pytest.raises(BadOption, match=f"^--cuda-graphs .*{said}"):
        wants_graphs(request, device, ranks, made)
    assert not wants_graphs(replace(request, cuda_graphs="auto"), device, ranks, made)
    if given or ranks > 1:
        other = replace(request, **dict.fromkeys(given, None) | {"optimizer": "adam", "amp_dtype": "bf16"})
        assert wants_graphs(other, CUDA, 1, None)
