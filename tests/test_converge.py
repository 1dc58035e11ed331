"""The command `converge`: its models and runs, with and without RCA, and its result file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from nanogpt_demo import __main__
from nanogpt_demo.converge import command, train
from nanogpt_demo.converge.command import converge_table, summarise
from nanogpt_demo.converge.datasets import PADDING, Data, load
from nanogpt_demo.converge.models import BagOfWords, ConvNet, crop_and_flip
from nanogpt_demo.converge.train import DEFAULT, FULL, TASKS
from nanogpt_demo.store import dumps
from resilient_optim import ResonantCallback
from tests.test_converge_data import Web

SETTINGS = ("patience_steps", "min_delta", "max_lr_reductions", "min_lr")


@pytest.fixture(scope="module")
def digits() -> Data:
    """A quarter of the digits: runs that take a second."""
    data = load("digits", Path("nowhere"), lambda line: None)
    few = data.train[0][:256], data.train[1][:256]
    return Data(data.name, data.sha256, data.classes, 0, few, data.val, data.test)


# -- models ----------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [28, 32])
def test_images_become_logits(side: int) -> None:
    for channels, widths in ((1, (4, 8)), (3, (4, 8, 16))):
        model = ConvNet(channels, widths, 10)
        assert model(torch.randn(5, channels, side, side)).shape == (5, 10)


def test_padding_changes_nothing() -> None:
    model = BagOfWords(9, 2).eval()
    words = torch.tensor([[4, 5, 8]])
    longer = torch.cat([words, torch.full((1, 7), PADDING)], dim=1)
    assert torch.allclose(model(words), model(longer))
    assert torch.allclose(model(words), model(words.flip(1)))
    assert model(longer[:, 3:]).isfinite().all()  # no word at all


def test_images_are_shifted_and_mirrored_as_wholes() -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(40, 3, 8, 8, generator=generator)
    found = crop_and_flip(images, generator)
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4))
    places = []
    for image, canvas in zip(found, padded, strict=True):
        crops = {
            (row, column, mirrored): canvas[:, row : row + 8, column : column + 8]
            for row in range(9)
            for column in range(9)
            for mirrored in (False, True)
        }
        matches = [k for k, c in crops.items() if torch.equal(c.flip(2) if k[2] else c, image)]
        assert len(matches) == 1
        places += matches
    assert {mirrored for _, _, mirrored in places} == {False, True}
    assert len({row for row, _, _ in places}) > 5
    assert len({column for _, column, _ in places}) > 5


# -- runs ------------------------------------------------------------------------------------


def test_easy_is_the_default_and_not_run_twice() -> None:
    easy, default = ResonantCallback(preset="easy"), ResonantCallback()
    assert all(getattr(easy, name) == getattr(default, name) for name in SETTINGS)
    for name in ("digits", "mnist", "fashion-mnist"):
        assert list(TASKS[name].methods) == [FULL, DEFAULT]


@pytest.mark.parametrize(
    ("dataset", "published"), [("cifar10", (4, 0.005, 2, 1e-6)), ("sst2", (3, 0.005, 2, 1e-7))]
)
def test_the_others_have_the_published_settings(dataset: str, published: tuple[float, ...]) -> None:
    full, default, settings = TASKS[dataset].methods.values()
    assert full is None
    assert default == {"preset": "default"}
    assert settings is not None
    made = ResonantCallback(**settings)
    assert tuple(getattr(made, name) for name in SETTINGS) == published


def test_a_run_follows_from_its_seed(digits: Data) -> None:
    before = torch.get_rng_state()
    one, trace = train.train(digits, FULL, 1, 2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    again, same = train.train(digits, FULL, 1, 2)
    assert same == trace
    assert one | {"seconds": 0} == again | {"seconds": 0}
    assert train.train(digits, FULL, 2, 2)[1] != trace


def test_learning_happens(digits: Data) -> None:
    record, trace = train.train(digits, FULL, 1, 8)
    assert record["kept_accuracy"] > 0.7  # chance is 0.1
    assert trace["val_loss"][-1] < 0.7 * trace["val_loss"][0]
    assert record["best_val_loss"] == min(trace["val_loss"])
    assert record["best_accuracy"] == max(trace["val_accuracy"])
    assert record["best_epoch"] == 1 + trace["val_loss"].index(record["best_val_loss"])
    assert (record["epochs_run"], record["saved"], record["lr_reductions"]) == (8, 0.0, 0)


def scripted(monkeypatch: pytest.MonkeyPatch, digits: Data, losses: list[float]) -> list[Any]:
    """Let the validation losses be these; note the weights that the test samples are shown."""
    real, shown, coming = train.evaluate, [], iter(losses)

    def evaluate(model: torch.nn.Module, split: Any) -> tuple[float, float]:
        if split is digits.val:
            return next(coming), 0.5
        shown.append([p.detach().clone() for p in model.parameters()])
        return real(model, split)

    monkeypatch.setattr(train, "evaluate", evaluate)
    return shown


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


FLAT = [1.0, 0.5] + [0.6, 0.61, 0.6, 0.62] * 15


def test_rca_cuts_then_stops_and_leaves_the_best_behind(
    digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = Data(digits.name, "0" * 64, 10, 0, tuple(x[:32] for x in digits.train), digits.val,
               digits.test)  # fmt: skip
    shown = scripted(monkeypatch, digits, FLAT)
    record, trace = train.train(few, DEFAULT, 1, len(FLAT))
    assert 10 < record["epochs_run"] < len(FLAT)
    assert record["saved"] == 1 - record["epochs_run"] / len(FLAT)
    assert record["lr_reductions"] == 2
    assert (record["best_epoch"], record["best_val_loss"]) == (2, 0.5)
    assert record["kept_accuracy"] == record["accuracy_at_best"]
    assert equal(*shown)
    assert len(trace["val_loss"]) == record["epochs_run"]
    shown = scripted(monkeypatch, digits, FLAT)
    record, _ = train.train(few, DEFAULT, 1, 4)
    assert (record["epochs_run"], record["lr_reductions"]) == (4, 0)
    assert equal(*shown)  # without a stop, too
    shown = scripted(monkeypatch, digits, FLAT)
    record, _ = train.train(few, FULL, 1, len(FLAT))
    assert (record["epochs_run"], record["best_epoch"]) == (len(FLAT), 2)
    assert not equal(*shown)  # the full budget keeps its last weights


def test_rca_changes_nothing_before_its_first_cut(digits: Data) -> None:
    _, full = train.train(digits, FULL, 3, 3)
    record, ours = train.train(digits, DEFAULT, 3, 3)
    assert record["lr_reductions"] == 0
    assert ours == full


def test_a_run_that_is_lost_is_recorded(digits: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, digits, [math.nan, math.inf])
    record, trace = train.train(digits, DEFAULT, 1, 2)
    assert record["best_val_loss"] is None
    assert (record["best_epoch"], record["epochs_run"]) == (0, 2)
    assert trace["val_loss"] == [None, None]
    summary = summarise([record])
    dumps({"records": [record], "traces": {"run": trace}, "summary": summary})
    assert "not finite" in converge_table({"summary": summary}, next(iter(summary)))


# -- results ---------------------------------------------------------------------------------


def record_of(method: str, seed: int, kept: float, at_best: float, epochs: int) -> dict[str, Any]:
    return {
        "dataset": "digits", "data_sha256": "a" * 64, "method": method, "seed": seed, "epochs": 10,
        "epochs_run": epochs, "saved": 1 - epochs / 10, "lr_reductions": 0, "best_val_loss": 0.25,
        "best_accuracy": 0.9, "accuracy_at_best": at_best, "kept_accuracy": kept, "seconds": 2.0,
    }  # fmt: skip


def test_the_summary_compares_the_same_seeds() -> None:
    records = [
        record_of(FULL, 1, 0.90, 0.92, 10),
        record_of(FULL, 2, 0.80, 0.90, 10),
        record_of(DEFAULT, 2, 0.90, 0.90, 5),
        record_of(DEFAULT, 1, 0.92, 0.92, 7),
        record_of(DEFAULT, 3, 0.50, 0.50, 3),  # there is no full budget to compare it with
    ]
    (group,) = summarise(records).values()
    ours = group[DEFAULT]
    assert (ours["n"], ours["seeds"]) == (3, [1, 2, 3])
    assert ours["epochs_run"][0] == 5
    assert ours["against_full"] == pytest.approx((0.06, 0.04))
    assert ours["against_best"] == pytest.approx((0.0, 0.0))
    assert group[FULL]["against_full"] is None
    lines = converge_table({"summary": {"name": group}}, "name").splitlines()
    assert lines[2].startswith("| full budget | 2 | 10.0 | 0 % | 0.250 ± 0.000 | 90.00 ± 0.00 |")
    assert "| +6.00 ± 4.00 | +0.00 ± 0.00 | 2.0 |" in lines[3]


def test_other_samples_and_budgets_are_not_compared() -> None:
    one = record_of(FULL, 1, 0.9, 0.9, 10)
    others = [one, one | {"data_sha256": "b" * 64}, one | {"epochs": 20}]
    assert len(summarise(others)) == 3
    assert len({command.key_of(record) for record in others}) == 3


def words(folder: Path, dataset: str, *more: str) -> list[str]:
    return ["converge", "--dataset", dataset, "--data", str(folder / "data"),
            "--out", str(folder / "out"), *more]  # fmt: skip


def test_the_command_on_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = words(tmp_path, "digits", "--epochs", "3", "--seeds", "1")
    assert __main__.main(asked) == 0
    said = capsys.readouterr().out
    assert "| RCA default | 1 | 3.0 | 0 % |" in said
    assert "easy, has the default's values" in said
    path = tmp_path / "out" / "converge.json"
    document = json.loads(path.read_text("utf-8"))
    assert [(r["method"], r["seed"]) for r in document["records"]] == [(FULL, 1), (DEFAULT, 1)]
    assert {r["epochs_run"] for r in document["records"]} == {3}
    assert list(document["traces"]) == [command.key_of(r) for r in document["records"]]
    assert document["command"].endswith("--epochs 3 --seeds 1")
    assert document["environment"]["threads"] == torch.get_num_threads()
    assert not (tmp_path / "data").exists()  # digits come with scikit-learn

    before = path.read_bytes()
    assert __main__.main(asked) == 0
    assert "2 of 2 runs are in" in capsys.readouterr().out
    assert path.read_bytes() == before
    assert __main__.main([*asked, "--fresh"]) == 0
    again = json.loads(path.read_text("utf-8"))
    assert again["traces"] == document["traces"]
    assert len(again["records"]) == 2


@pytest.mark.parametrize("dataset", ["mnist", "fashion-mnist", "cifar10", "sst2"])
def test_the_command_on_the_others(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    dataset: str,
) -> None:
    web = Web(monkeypatch, dataset)
    assert __main__.main(words(tmp_path, dataset, "--epochs", "2", "--seeds", "1")) == 0
    said = capsys.readouterr().out
    assert all(f"downloading {url} to " in said for url in web.asked)
    assert all(f"| {method} | 1 | 2.0 | 0 % |" in said for method in TASKS[dataset].methods)
    document = json.loads((tmp_path / "out" / "converge.json").read_text("utf-8"))
    assert [r["method"] for r in document["records"]] == list(TASKS[dataset].methods)
    assert all(0 <= r["kept_accuracy"] <= 1 for r in document["records"])


def test_data_are_kept_beside_the_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "1000")  # so that the message is one line

    def offline(url: str, timeout: float) -> None:
        raise OSError("no route")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    out = tmp_path / "out"
    assert __main__.main(["converge", "--dataset", "sst2", "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert "SST-2.zip must be reachable, got no route" in said
    assert f"put them into {tmp_path / 'resilient_optim' / 'sst2'}" in said
    assert not out.exists()


def test_bad_options_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(words(tmp_path, "digits", "--epochs", "0")) == 2
    assert "epochs must be at least 1, got 0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        __main__.main(words(tmp_path, "imagenet"))
    assert "invalid choice: 'imagenet'" in capsys.readouterr().err
