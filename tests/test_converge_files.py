"""Where the data sets of `converge` come from, and how they are split."""

from __future__ import annotations

import http.client
import re
import urllib.request
from pathlib import Path

import pytest
import torch

from nanogpt_demo.converge import datasets
from nanogpt_demo.converge.datasets import LOADERS, Data, encode, load, vocabulary
from nanogpt_demo.converge.files import SOURCES, fetch
from tests.test_converge_data import TEST, TRAIN, Web

DOWNLOADED = sorted(SOURCES)


def quiet(line: str) -> None:
    """Hear what is downloaded."""


# -- downloads -------------------------------------------------------------------------------


def test_every_file_has_an_address_and_a_checksum() -> None:
    assert {*SOURCES, "digits"} == set(LOADERS)
    found = [source for sources in SOURCES.values() for source in sources]
    assert len(found) == 4 + 4 + 1 + 1
    assert len({source.md5 for source in found}) == len(found)
    for source in found:
        assert re.fullmatch("[0-9a-f]{32}", source.md5)
        assert re.fullmatch(r"https?://\S+/", source.folder)


@pytest.mark.parametrize("dataset", DOWNLOADED)
def test_a_download_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dataset: str) -> None:
    web = Web(monkeypatch, dataset)
    lines: list[str] = []
    paths = fetch(dataset, tmp_path, lines.append)
    assert web.asked == list(web.holds)
    assert [path.read_bytes() for path in paths] == list(web.holds.values())
    assert sorted((tmp_path / dataset).iterdir()) == sorted(paths)  # and nothing temporary
    assert all(url in line for url, line in zip(web.asked, lines, strict=True))
    assert fetch(dataset, tmp_path, lines.append) == paths
    assert len(web.asked) == len(lines) == len(paths)


def test_a_corrupt_download_is_refused_and_not_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    web = Web(monkeypatch, "sst2")
    web.holds = dict.fromkeys(web.holds, b"moved")
    with pytest.raises(ValueError, match="md5 of what https://.*SST-2.zip sends must be"):
        fetch("sst2", tmp_path, quiet)
    assert not any(tmp_path.iterdir())


def test_a_wrong_file_is_refused_and_left_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    web = Web(monkeypatch, "cifar10")
    path = tmp_path / "cifar10" / "cifar-10-binary.tar.gz"
    path.parent.mkdir()
    path.write_bytes(b"mine")
    with pytest.raises(ValueError, match=f"md5 of {path} must be .*; delete it"):
        fetch("cifar10", tmp_path, quiet)
    assert path.read_bytes() == b"mine"
    assert not web.asked


@pytest.mark.parametrize(
    "error", [OSError("no route"), http.client.IncompleteRead(b"half"), TimeoutError("timed out")]
)
def test_no_network_says_which_files_to_put_where(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    web = Web(monkeypatch, "mnist")
    first, *others = SOURCES["mnist"]
    fetch("mnist", tmp_path, quiet)
    for source in others:
        (tmp_path / "mnist" / source.name).unlink()

    def offline(url: str, timeout: float) -> None:
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(ValueError, match="must be reachable, got .*check the network") as caught:
        fetch("mnist", tmp_path, quiet)
    said = str(caught.value)
    assert str(tmp_path / "mnist") in said
    assert first.name not in said
    assert all(f"{source.name} (md5 {source.md5})" in said for source in others)
    assert len(web.asked) == 4


# -- splits ----------------------------------------------------------------------------------


def rows(data: Data) -> list[tuple[float, ...]]:
    """All inputs, as values that can be compared."""
    return [
        tuple(row) for x, _ in (data.train, data.val, data.test) for row in x.flatten(1).tolist()
    ]


def test_digits_are_split_without_overlap(tmp_path: Path) -> None:
    data = load("digits", tmp_path, quiet)
    assert [len(y) for _, y in (data.train, data.val, data.test)] == [1079, 359, 359]
    assert len(set(rows(data))) == 1797  # no digit is there twice
    assert data.train[0].shape[1:] == (1, 8, 8)
    assert data.train[0].dtype == torch.float32
    assert data.train[0].mean().abs() < 1e-4
    assert abs(data.train[0].std() - 1) < 1e-3
    assert set(data.val[1].tolist()) == set(range(10))
    again = load("digits", tmp_path, quiet)
    assert again.sha256 == data.sha256
    assert rows(again) == rows(data)


@pytest.mark.parametrize("dataset", ["mnist", "fashion-mnist", "cifar10"])
def test_validation_images_are_held_out_of_the_training_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dataset: str
) -> None:
    Web(monkeypatch, dataset)
    data = load(dataset, tmp_path, quiet)
    known = 5 * TEST if dataset == "cifar10" else TRAIN
    counts = [len(y) for _, y in (data.train, data.val, data.test)]
    assert counts == [known - known // 10, known // 10, TEST]
    channels = 3 if dataset == "cifar10" else 1
    assert data.train[0].shape[1] == channels
    assert data.train[0].mean(dim=(0, 2, 3)).abs().max() < 1e-4
    assert (data.classes, data.words) == (10, 0)
    # The bright row is where the label says, in every split: images and labels stayed together.
    for x, y in (data.train, data.val, data.test):
        assert torch.equal(x.mean(dim=(1, 3)).argmax(dim=1), 2 * y)


def test_sst2_is_split_and_numbered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Web(monkeypatch, "sst2")
    data = load("sst2", tmp_path, quiet)
    assert [len(y) for _, y in (data.train, data.val, data.test)] == [TRAIN, TEST // 2, TEST // 2]
    assert data.train[0].dtype == torch.int64
    assert int(data.train[0].max()) == data.words - 1
    assert (data.train[0][0] != datasets.PADDING).sum() == 3
    assert data.classes == 2


def test_words_are_numbered_by_frequency_and_unknown_ones_alike() -> None:
    number_of = vocabulary([["b", "a", "b"], ["a", "c"], ["b"]])
    assert number_of == {"b": 2, "a": 3}  # c occurs once
    found = encode([["a", "c", "zebra"], [], ["b"] * 100], number_of)
    assert found.shape == (3, datasets.MAX_WORDS)
    assert found[0, :4].tolist() == [3, datasets.UNKNOWN, datasets.UNKNOWN, datasets.PADDING]
    assert not found[1].any()
    assert (found[2] == 2).all()


def test_another_split_has_another_hash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = load("digits", tmp_path, quiet).sha256
    monkeypatch.setattr(datasets, "SPLIT_SEED", 1)
    assert load("digits", tmp_path, quiet).sha256 != before


def test_too_few_samples_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Web(monkeypatch, "mnist")
    monkeypatch.setattr(datasets, "VALIDATION_SHARE", 0.01)
    with pytest.raises(ValueError, match="data set mnist must be at least 2 samples in each split"):
        load("mnist", tmp_path, quiet)
