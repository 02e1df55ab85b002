"""`starfire attack` measures what it says, takes up what was stopped, and compares on the same images."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from starfire_cli import cli
from starfire_cli.attacks import ATTACKS
from starfire_cli.attacks._draws import AttackDraws
from starfire_cli.attacks._gradient import frozen
from starfire_cli.errors import StarfireError
from starfire_cli.formats.robustness import pack, read_robustness, unpack
from starfire_cli.networks.evaluate import evaluate
from starfire_cli.records.attack import AttackProgress, AttackReport
from starfire_cli.workflows.attack import batch_size as attack_fit
from starfire_cli.workflows.attack import sweep as attack_sweep
from starfire_cli.workflows.attack.request import AttackRequest
from starfire_cli.workflows.attack.run import attack
from tests.helpers.attack_toy import SPEC, digits, saved, trained, val

KEYS = {"checkpoint", "attack", "images", "clean_top1", "points"}


@pytest.fixture
def sparse(tmp_path: Path) -> Path:
    return saved(tmp_path / "sparse" / "best.pt", trained())


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    return saved(
        tmp_path / "dense" / "best.pt", trained(1, 90), pruning={"method": "dense", "fc": "dense", "target": 0.0}
    )


def finished(**request: Any) -> AttackReport:
    *_, report = attack(AttackRequest(**{"model": SPEC, **request}))
    assert isinstance(report, AttackReport)
    return report


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main(["attack", *map(str, arguments), *([] if "--model" in arguments else ["--model", SPEC])])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def by_hand(model: nn.Module, spec: str, size: float, *, batch: int = 64) -> Tensor:
    """Right or wrong, image by image, by a loop of the test's own."""
    found = []
    images, labels = val()
    for start in range(0, len(images), batch):
        x, y = images[start : start + batch], labels[start : start + batch]
        with frozen(model):
            if size:
                draws = AttackDraws(seed=0, index_N=torch.arange(start, start + len(x)))
                (made,) = ATTACKS.build(spec).sweep(model, x, y, eps=[size], draws=draws)
                x = made.images_NCHW
            found.append(model(x).argmax(1) == y)
    return torch.cat(found)


@pytest.mark.parametrize("spec", ["fgsm", "pgd:steps=3"])
def test_points_are_what_a_plain_loop_counts(sparse: Path, spec: str) -> None:
    report = finished(checkpoint=sparse, attack=spec, eps="0,8/255,0.1")
    (result,) = report.results
    assert [row.eps for row in result.points] == [0, 8 / 255, 0.1]
    for row in result.points:
        assert row.correct == int(by_hand(trained(), spec, row.eps).sum()) and row.images == 359
        assert row.top1 == row.correct / row.images and row.low <= row.top1 < row.high <= 1
        assert row.drop == pytest.approx(result.clean.top1 - row.top1)
    for name, rows in result.controls.items():
        assert [row.correct for row in rows] == [int(by_hand(trained(), name, r.eps).sum()) for r in rows]
    assert set(result.controls) == ({"noise"} if spec == "fgsm" else {"noise", "fgsm"})


def test_eps_0_is_the_clean_accuracy_to_the_image(sparse: Path) -> None:
    accuracy = evaluate(trained(), digits().val)
    assert accuracy is not None
    document = finished(checkpoint=sparse, eps="0,0.05", control=False).document
    point = document["points"][0]
    assert document["clean_top1"] == point["top1"] == accuracy.top1 and point["top5"] == accuracy.top5
    assert document["clean_top1"] > 0.8


def test_the_document(sparse: Path, dense: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, sparse, "--against", dense, "--eps", "0,0.05", "--json")
    assert code == 0 and "window 0.6 less dense" in err
    document = json.loads(out)
    assert document.keys() >= KEYS | {"pairs", "against", "controls", "warnings", "settings", "versions", "command"}
    assert all(point.keys() >= {"eps", "top1", "top5", "correct", "images"} for point in document["points"])
    assert document["checkpoint"] == str(sparse) and document["attack"] == "fgsm" and document["images"] == 359
    on_disk = json.loads(sparse.with_name("best.attack-fgsm.json").read_text())
    bits = on_disk.pop("per_image")
    assert {k: v for k, v in on_disk.items() if k not in ("format", "version")} == document
    right = unpack(bits["attack"]["0.05"]["right"], 359)
    assert right.tolist() == by_hand(trained(), "fgsm", 0.05).tolist()
    assert right.sum() == document["points"][1]["correct"]


def test_pairs_are_counted_image_by_image(sparse: Path, dense: Path) -> None:
    report = finished(checkpoint=sparse, against=dense, eps="0,0.05,0.1", transfer=True)
    first, second = trained(), trained(1, 90)
    for row in report.pairs:
        a, b = by_hand(first, "fgsm", row.eps), by_hand(second, "fgsm", row.eps)
        assert (row.only_first, row.only_second) == (int((a & ~b).sum()), int((~a & b).sum()))
        assert row.difference == pytest.approx(row.first - row.second) and row.low <= row.difference <= row.high
        clean = by_hand(first, "fgsm", 0).float() - by_hand(second, "fgsm", 0).float()
        assert row.drop_difference == pytest.approx(float((clean - (a.float() - b.float())).mean()), abs=1e-6)
    images, labels = val()
    for result, maker, other in zip(report.results, (first, second), (second, first), strict=True):
        assert [row.eps for row in result.transfer] == [0, 0.05, 0.1]
        with frozen(maker):
            (made,) = ATTACKS.build("fgsm").sweep(
                maker, images, labels, eps=[0.1], draws=AttackDraws(seed=0, index_N=torch.arange(len(images)))
            )
        assert result.transfer[2].correct == int((other(made.images_NCHW).argmax(1) == labels).sum())
        assert result.transfer[0].correct == int((other(images).argmax(1) == labels).sum())


def test_transfer_is_of_the_network_that_is_named(sparse: Path, dense: Path, tmp_path: Path) -> None:
    """Whatever earlier runs left in the file: none shown, some shown, shown to another network."""
    third = saved(tmp_path / "third" / "best.pt", trained(2))
    fresh = finished(checkpoint=sparse, against=dense, transfer=True, eps="0.05,0.1", images=100, fresh=True)
    request = {"checkpoint": sparse, "against": dense, "transfer": True, "eps": "0.05,0.1", "images": 100}
    stopped = attack(AttackRequest(**request, model=SPEC, fresh=True))
    for number, _ in enumerate(stopped):
        if number == 5:
            break
    stopped.close()  # type: ignore[attr-defined]
    finished(checkpoint=sparse, eps="0.05,0.1", images=100)
    mended = finished(checkpoint=sparse, against=dense, transfer=True, eps="0.05,0.1", images=100).results[0].transfer
    other = finished(checkpoint=sparse, against=third, transfer=True, eps="0.05,0.1", images=100).results[0].transfer
    again = finished(checkpoint=sparse, against=dense, transfer=True, eps="0.05,0.1", images=100).results[0].transfer
    expected = [row.correct for row in fresh.results[0].transfer]
    assert [row.correct for row in mended] == [row.correct for row in again] == expected
    assert expected != [row.correct for row in other]


def test_two_checkpoints_never_share_a_file(sparse: Path) -> None:
    report = finished(checkpoint=sparse, against=sparse, eps="0,0.05", images=50)
    assert [r.file.name for r in report.results] == ["best.attack-fgsm-n50.json", "best.attack-fgsm-n50.against.json"]
    packed = sparse.with_suffix(".pth")
    torch.save(trained(1).net.state_dict(), packed)
    report = finished(
        checkpoint=sparse,
        against=packed,
        against_model=SPEC,
        eps="0.05",
        images=50,
        mean=(0, 0, 0),
        std=(1, 1, 1),
    )
    assert [r.file.name for r in report.results] == ["best.attack-fgsm-n50.json", "best.pth.attack-fgsm-n50.json"]
    out = sparse.with_name("mine.json")
    report = finished(checkpoint=sparse, against=sparse, eps="0.05", images=50, out=out)
    assert [r.file.name for r in report.results] == ["mine.json", "mine.against.json"]


def test_a_network_against_itself_does_not_differ(sparse: Path, tmp_path: Path) -> None:
    other = saved(tmp_path / "copy" / "best.pt", trained())
    report = finished(checkpoint=sparse, against=other, eps="0,0.05")
    for row in report.pairs:
        assert (row.difference, row.low, row.high, row.only_first, row.only_second, row.p_exact) == (0, 0, 0, 0, 0, 1)


def settled(path: Path) -> dict[str, Any]:
    """The document, less what is different each time."""
    document = json.loads(path.read_text())
    for rows in [document["points"], *document["controls"].values()]:
        for row in rows:
            row.pop("images_per_second", None)
    for by_size in document["per_image"].values():
        for tally in by_size.values():
            tally.pop("seconds")
    return {k: v for k, v in document.items() if k not in ("created", "seconds", "command", "checkpoint")}


@pytest.mark.parametrize("spec", ["fgsm", "pgd:steps=2"])
def test_a_stopped_run_is_taken_up_to_the_bit(tmp_path: Path, sparse: Path, spec: str) -> None:
    request = {"attack": spec, "eps": "0,0.05,0.1"}
    whole = saved(tmp_path / "whole" / "best.pt", trained())
    finished(checkpoint=whole, **request)
    for stop in (1, 9, 14):
        records = attack(AttackRequest(checkpoint=sparse, model=SPEC, **request))
        done = 0
        for record in records:
            done += isinstance(record, AttackProgress)
            if done == stop:
                break
        records.close()  # type: ignore[attr-defined]  # as Ctrl-C does
    (file,) = sparse.parent.glob("*.json")
    assert json.loads(file.read_text())["complete"] is False
    finished(checkpoint=sparse, **request)
    assert settled(file) == settled(whole.with_name(file.name))


@pytest.fixture
def passes() -> Iterator[list[int]]:
    seen: list[int] = []

    def forward(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if type(module).__name__ == "Normalized" and len(inputs[0]) > 2:  # less is a look at the memory
            seen.append(len(inputs[0]))

    handle = nn.modules.module.register_module_forward_pre_hook(forward)
    yield seen
    handle.remove()


def test_what_is_known_is_not_attacked_again(sparse: Path, passes: list[int]) -> None:
    other = trained(1)
    passes.clear()
    finished(checkpoint=sparse, eps="0.01,0.05", control=False)
    assert sum(passes) == 359 * (1 + 1 + 2)  # clean, one gradient for both sizes, two verdicts
    passes.clear()
    finished(checkpoint=sparse, eps="0,0.01,0.05", control=False)
    assert not passes
    report = finished(checkpoint=sparse, eps="0.05,0.1", control=False)
    assert sum(passes) == 359 * 2  # a gradient and a verdict for the one new size
    assert [row.eps for row in report.results[0].points] == [0.05, 0.1]
    passes.clear()
    finished(checkpoint=sparse, eps="0.05", control=False, fresh=True)
    assert sum(passes) == 359 * 3
    passes.clear()
    saved(sparse, other)
    finished(checkpoint=sparse, eps="0.05", control=False)
    assert sum(passes) == 359 * 3


def test_other_settings_do_not_share_a_file(sparse: Path) -> None:
    for more in (
        {},
        {"images": 50},
        {"images": 50, "seed": 3},
        {"amp": True},
        {"attack": "pgd", "steps": 2},
    ):
        finished(checkpoint=sparse, eps="0.05", control=False, **more)
    assert sorted(p.name for p in sparse.parent.glob("*.json")) == [
        "best.attack-fgsm-amp.json",
        "best.attack-fgsm-n50-seed3.json",
        "best.attack-fgsm-n50.json",
        "best.attack-fgsm.json",
        "best.attack-pgd-steps-2.json",
    ]


def test_images_are_a_seeded_draw(sparse: Path) -> None:
    counts = set()
    for seed in (0, 0, 1, 2):
        report = finished(checkpoint=sparse, eps="0.05", images=60, seed=seed, control=False, fresh=True)
        assert report.results[0].clean.images == 60
        document = read_robustness(report.results[0].file)
        assert document is not None
        counts.add(document["per_image"]["attack"]["0.05"]["right"])
    assert len(counts) == 3


def test_memory_that_runs_out_halves_the_batch(sparse: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = finished(checkpoint=sparse, eps="0.05,0.1", control=False)
    gradient = attack_sweep.Sweep._chunk

    def small(self: attack_sweep.Sweep, images: Tensor, labels: Tensor, first: int) -> Iterator[int]:
        for number, done in enumerate(gradient(self, images, labels, first)):
            if len(images) > 20 and number:  # the clean verdict is in, the attack does not fit
                raise torch.OutOfMemoryError("CUDA out of memory")
            yield done

    monkeypatch.setattr(attack_sweep.Sweep, "_chunk", small)
    tight = finished(checkpoint=sparse, eps="0.05,0.1", control=False, fresh=True)
    assert [r.correct for r in tight.results[0].points] == [r.correct for r in plain.results[0].points]
    monkeypatch.setattr(attack_sweep.Sweep, "_chunk", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no")))
    with pytest.raises(torch.OutOfMemoryError):
        finished(checkpoint=sparse, eps="0.05", control=False, fresh=True)


def test_batches_are_sized_to_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, model = torch.device("cpu"), trained()
    assert attack_fit.images_that_fit(model, cpu, 16, 64) == 64
    monkeypatch.setattr(attack_fit, "free_memory", lambda _: 2_000_000)
    few = attack_fit.images_that_fit(model, cpu, 16, 64)
    monkeypatch.setattr(attack_fit, "free_memory", lambda _: 1_000_000)
    assert 1 <= attack_fit.images_that_fit(model, cpu, 16, 64) <= few // 2 + 1 < 64
    monkeypatch.setattr(attack_fit, "free_memory", lambda _: 0)
    assert attack_fit.images_that_fit(model, cpu, 16, 64) == 1
    assert attack_fit.largest_useful_batch(torch.device("cuda"), 224) * 3 * 224**2 <= 2**27 < 1024 * 3 * 224**2


def test_saturated_logits_are_called_by_their_name(tmp_path: Path) -> None:
    report = finished(checkpoint=saved(tmp_path / "best.pt", trained(), scale=1000.0), eps="0,0.1")
    (result,) = report.results
    assert result.points[1].blind is not None and result.points[1].blind > 0.5
    assert result.points[1].top1 > 0.7 and any("input gradient of exactly zero" in w for w in result.warnings)
    assert finished(checkpoint=saved(tmp_path / "fine.pt", trained()), eps="0,0.1").results[0].warnings == ()


def masked(tmp_path: Path, **right: list[float]) -> tuple[str, ...]:
    """The warnings for made-up tallies: the share of 400 images still right at 0.1 and 0.2, by attack."""
    from starfire_cli.attacks import parse_sizes
    from starfire_cli.workflows.attack.sweep import AttackTally
    from starfire_cli.workflows.attack.verdict import masking_signs

    def tally(share: float) -> AttackTally:
        made = AttackTally(400, done=400)
        made.right[: round(share * 400)] = True
        return made

    tallies = {name: dict(zip((0.1, 0.2), map(tally, shares), strict=True)) for name, shares in right.items()}
    controls = tuple(name for name in right if name != "attack")
    return masking_signs({"clean": {0.0: tally(0.9)}, **tallies}, parse_sizes("0,0.1,0.2", "linf"), "pgd", controls)


def test_signs_of_gradient_masking(tmp_path: Path) -> None:
    assert masked(tmp_path, attack=[0.4, 0.2], noise=[0.88, 0.85], fgsm=[0.5, 0.3]) == ()
    assert masked(tmp_path, attack=[0.9, 0.89], noise=[0.9, 0.89], fgsm=[0.9, 0.89]) == ()  # nothing hurts yet
    (weaker,) = masked(tmp_path, attack=[0.6, 0.5], noise=[0.9, 0.9], fgsm=[0.5, 0.3])
    assert "gradient masking: pgd is weaker than one step of fgsm at eps 0.2 (50.00% against 30.00%" in weaker
    (rising,) = masked(tmp_path, attack=[0.4, 0.5], noise=[0.9, 0.9], fgsm=[0.6, 0.6])
    assert "accuracy rises from 40.00% at eps 0.1 to 50.00% at 0.2" in rising
    (noisy,) = masked(tmp_path, attack=[0.8, 0.6], noise=[0.85, 0.61], fgsm=[0.8, 0.6])
    assert "noise of the same size costs 29.00%, the attack 30.00%" in noisy
    assert masked(tmp_path, attack=[0.4, 0.405], noise=[0.9, 0.9]) == ()  # two images are no rise


def test_sheets_show_and_measure_rounded_images(sparse: Path, tmp_path: Path) -> None:
    report = finished(checkpoint=sparse, eps="0,0.1", save_images=tmp_path / "sheets", control=False)
    (path,) = report.saved
    assert path.name == "eps-0.1.png"
    with Image.open(path) as opened:
        sheet = np.asarray(opened)
    images, labels = val()
    assert sheet.shape == (3 * 100 + 4, 8 * 100 + 4, 3)  # 16 pixels, six times as large, 4 between
    with frozen(trained()):
        (made,) = ATTACKS.build("fgsm").sweep(
            trained(), images[:8], labels[:8], eps=[0.1], draws=AttackDraws(seed=0, index_N=torch.arange(8))
        )
    wrong = 0
    for column in range(8):
        left = 4 + column * 100
        clean, adversarial = (sheet[top : top + 96 : 6, left : left + 96 : 6] for top in (4, 204))
        assert np.array_equal(clean.transpose(2, 0, 1), np.rint(images[column].numpy() * 255))
        assert np.array_equal(adversarial.transpose(2, 0, 1), np.rint(made.images_NCHW[column].numpy() * 255))
        pixels = torch.from_numpy(adversarial.transpose(2, 0, 1).copy()).float() / 255
        wrong += int(trained()(pixels[None]).argmax()) != int(labels[column])
    assert any(f"of 8 images {wrong} are seen wrongly after rounding" in note for note in report.notes)


def test_plot(sparse: Path, dense: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, sparse, "--against", dense, "--eps", "0,0.05", "--plot")
    picture = sparse.with_name("best.attack-fgsm.png")
    assert code == 0 and f"written {picture}" in out
    with Image.open(picture) as opened:
        assert min(opened.size) > 400


@pytest.mark.parametrize("width", [60, 80, 120])
def test_tables_fit_the_terminal(
    sparse: Path, dense: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FORCE_COLOR", "1")
    code, out, _ = run(capsys, sparse, "--against", dense, "--transfer", "--eps", "0,8/255,0.1")
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out)
    assert code == 0
    assert all(len(line) <= width for line in plain.splitlines() if "/best" not in line and "\r" not in line)
    assert "8/255" in plain and "…" not in plain and "95 % interval" in plain


def test_a_pipe_gets_plain_lines(sparse: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, sparse, "--eps", "0,0.05")
    assert code == 0 and not err and "\x1b" not in out and "FGSM is a single step" in out
    assert not any(line != line.rstrip() for line in out.splitlines())
    assert run(capsys, sparse, "--eps", "0,0.05", "--quiet")[1] == ""


def test_foreign_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str], sparse: Path) -> None:
    foreign = tmp_path / "foreign.pt"
    torch.save(trained().net.state_dict(), foreign)
    info = digits().info
    mean, std = (",".join(map(str, values)) for values in (info.mean, info.std))
    common = (foreign, "--data", "digits", "--mean", mean, "--std", std, "--eps", "0,0.05", "--json")
    code, out, _ = run(capsys, *common, "--model", SPEC)
    theirs = json.loads(run(capsys, sparse, "--eps", "0,0.05", "--json")[1])
    assert code == 0 and json.loads(out)["points"][1]["correct"] == theirs["points"][1]["correct"]
    code, out, _ = run(capsys, sparse, "--against", foreign, "--against-model", SPEC, *common[3:])
    assert code == 0 and json.loads(out)["pairs"][1]["difference"] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["{sparse}", "--eps", "2"], 2, "eps=2 is outside [0, 1]: pixels are in [0, 1]; 2/255?"),
        (["{sparse}", "--eps=-0.1"], 2, "eps=-0.1 is outside [0, 1]"),
        (
            ["{sparse}", "--attack", "fgms"],
            2,
            "unknown attack 'fgms'; there are: autoattack, fgsm, foolbox, noise, pgd",
        ),
        (["{sparse}", "--norm", "l7"], 2, "norm='l7' is not known; there are: linf, l2"),
        (["{sparse}", "--steps", "3"], 2, "--steps: attack fgsm has no such option"),
        (["{sparse}", "--attack", "pgd", "--step-size", "wide"], 2, "--step-size 'wide' is no number"),
        (["{sparse}", "--transfer"], 2, "it needs --against"),
        (["{sparse}", "--images", "0"], 2, "--images 0 is out of range"),
        (["{sparse}", "--data", "nosuch"], 2, "unknown data set 'nosuch'"),
        (["{sparse}", "--data", "folder:{other}"], 1, "must have the same classes"),
        (["{sparse}", "--out", "{none}/x.json"], 1, "there is no folder"),
        (["{sparse}", "--out", "{none}.png", "--plot"], 2, "is for the result, which is JSON; --plot draws beside it"),
        (["{sparse}", "--out", "{foreign}", "--fresh"], 1, "is there and no result of starfire attack; --out FILE"),
        (["{sparse}", "--save-images", "{foreign}"], 1, "is a file; give a folder for the pictures"),
        (["{none}.pt"], 1, "there is no file or run folder"),
        (["{foreign}"], 2, "does not say what data it was trained on"),
        (["{foreign}", "--data", "digits"], 2, "does not say which model it is; give it: --model"),
        (
            ["{foreign}", "--data", "digits", "--model", "resnet20"],
            2,
            "how its images were normalised; give --mean and",
        ),
        (["{foreign}", "--data", "digits", "--mean", "0.5", "--std", "0"], 2, "--std '0' is not three numbers"),
        (
            ["{foreign}", "--data", "digits", "--mean", "0", "--std", "1", "--model", "resnet20"],
            1,
            "does not fit --model resnet20: conv1.weight is missing in the file",
        ),
        (
            ["{hundred}", "--data", "digits", "--mean", "0", "--std", "1", "--model", SPEC],
            1,
            "was made for 100 classes (8.weight); the data digits have 10",
        ),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    sparse: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    says: str,
) -> None:
    from tests.helpers.attack_toy import net

    places = {name: tmp_path / f"{name}.pt" for name in ("foreign", "hundred")}
    torch.save(trained().net.state_dict(), places["foreign"])
    torch.save(net(100).state_dict(), places["hundred"])
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            folder = tmp_path / "other" / split / name
            folder.mkdir(parents=True)
            for number in range(3):
                Image.fromarray(np.full((16, 16, 3), 50 * number, dtype=np.uint8)).save(folder / f"{number}.png")
    filled = [a.format(sparse=sparse, none=tmp_path / "none", other=tmp_path / "other", **places) for a in arguments]
    trusted = ["--model", SPEC] if arguments[0] == "{sparse}" else []
    got = cli.main(["attack", *filled, *trusted])
    out, err = capsys.readouterr()
    assert got == code and says in err
    assert err.startswith("error: ") and err.count("\n") == 1 and not out
    assert not list(sparse.parent.glob("*.json"))


def test_results_that_are_torn(sparse: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished(checkpoint=sparse, eps="0.05", control=False)
    file = sparse.with_name("best.attack-fgsm.json")
    whole = json.loads(file.read_text())
    file.write_text(json.dumps(whole)[:-200])
    code, _, err = run(capsys, sparse, "--eps", "0.05")
    assert code == 1 and "--fresh replaces it" in err
    assert run(capsys, sparse, "--eps", "0.05", "--fresh", "--no-control")[0] == 0
    whole["per_image"]["attack"]["0.05"]["right"] = "AAAA"
    file.write_text(json.dumps(whole))
    code, out, _ = run(capsys, sparse, "--eps", "0.05", "--no-control")
    assert code == 0 and "is damaged; everything is attacked again" in out
    assert json.loads(file.read_text())["points"][0]["correct"] == whole["points"][0]["correct"]
    file.write_text('{"mine": 1}')
    assert run(capsys, sparse, "--fresh")[0] == 1 and file.read_text() == '{"mine": 1}'


def test_bits_survive_the_trip() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 7, 8, 9, 359):
        bits = rng.random(count) < 0.5
        assert np.array_equal(unpack(pack(bits), count), bits)
    with pytest.raises(ValueError, match="2 bytes for 20 images"):
        unpack(pack(np.ones(16, dtype=bool)), 20)


def test_an_attack_that_cheats_is_caught(sparse: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from starfire_cli.attacks import Adversarial
    from starfire_cli.attacks.noise import Noise

    def cheat(
        self: Noise, model: nn.Module, images: Tensor, labels: Tensor, *, eps: list[float], draws: AttackDraws
    ) -> Any:
        yield from (Adversarial(images_NCHW=(images + 1.1 * size).clamp(0, 1)) for size in eps)

    monkeypatch.setattr(Noise, "sweep", cheat)
    with pytest.raises(StarfireError, match=r"gave images that it may not give at eps 0\.05"):
        finished(checkpoint=sparse, attack="noise", eps="0.05")
