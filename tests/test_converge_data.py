"""The readers of `converge`, on stand-ins in the real formats and on damaged files."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import urllib.request
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nanogpt_demo.converge import files
from nanogpt_demo.converge.files import SOURCES
from nanogpt_demo.converge.formats import (
    CIFAR10_TEST,
    CIFAR10_TRAIN,
    read_cifar10,
    read_idx,
    read_idx_pair,
    read_sst2,
)

TRAIN, TEST = 60, 20  # samples of a stand-in


def idx(array: np.ndarray) -> bytes:
    """An array as a gzipped IDX file, by the book."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return gzip.compress(b"\0\0\x08" + bytes([array.ndim]) + sizes + array.tobytes(), 1, mtime=0)


def archive(members: dict[str, bytes]) -> bytes:
    """A tar.gz."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return made.getvalue()


def zipped(members: dict[str, str]) -> bytes:
    """A zip of texts."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as out:
        for name, text in members.items():
            out.writestr(name, text)
    return made.getvalue()


def samples(count: int, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a bright row where the label says."""
    rng = np.random.default_rng([count, *shape])
    labels = np.arange(count, dtype=np.uint8) % 10
    images = rng.integers(0, 100, size=(count, *shape), dtype=np.uint8)
    images[np.arange(count), ..., 2 * labels, :] = 255
    return images, labels


def cifar10_members() -> dict[str, bytes]:
    members = {"cifar-10-batches-bin/batches.meta.txt": b"airplane\n"}
    for name in (*CIFAR10_TRAIN, CIFAR10_TEST):
        x, y = samples(TEST, 3, 32, 32)
        members[name] = np.concatenate([y[:, None], x.reshape(TEST, -1)], axis=1).tobytes()
    return members


def sst2_members() -> dict[str, str]:
    lines = ['a "fine" film \t1', "a poor film , and a long one \t0"]
    text = "\n".join(["sentence\tlabel", *(lines * (TRAIN // 2)), ""])
    return {
        "SST-2/train.tsv": text,
        "SST-2/dev.tsv": "\n".join(["sentence\tlabel", *(lines * (TEST // 2)), ""]),
        "SST-2/test.tsv": "index\tsentence\n0\tno labels here\n",
    }


def contents(dataset: str) -> list[bytes]:
    """The files of a data set, small, in the order of its sources."""
    if dataset == "cifar10":
        return [archive(cifar10_members())]
    if dataset == "sst2":
        return [zipped(sst2_members())]
    pairs = samples(TRAIN, 28, 28), samples(TEST, 28, 28)
    return [idx(array) for pair in pairs for array in pair]


def stand_in(monkeypatch: pytest.MonkeyPatch, dataset: str) -> dict[str, bytes]:
    """Let the stand-ins be the right files; return them by address."""
    made = contents(dataset)
    sources = [
        replace(source, md5=hashlib.md5(data).hexdigest())
        for source, data in zip(SOURCES[dataset], made, strict=True)
    ]
    monkeypatch.setitem(files.SOURCES, dataset, tuple(sources))
    return {source.url: data for source, data in zip(sources, made, strict=True)}


class Web:
    """Answers with what it holds, and notes what was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, dataset: str) -> None:
        self.holds = stand_in(monkeypatch, dataset)
        self.asked: list[str] = []
        monkeypatch.setattr(urllib.request, "urlopen", self.open)

    def open(self, url: str, timeout: float) -> io.BytesIO:
        self.asked.append(url)
        return io.BytesIO(self.holds[url])


# -- formats ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7,), (5, 28, 28), (0,)])
def test_idx_files_are_read(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(1).integers(0, 256, size=shape, dtype=np.uint8)
    (tmp_path / "file.gz").write_bytes(idx(array))
    found = read_idx(tmp_path / "file.gz", len(shape))
    assert found.shape == shape
    assert np.array_equal(found, array)


LABELS = np.arange(9, dtype=np.uint8)
PLAIN = gzip.decompress(idx(LABELS))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (idx(LABELS[:, None]), "must be the magic number 00000801 .* got '00000802'"),
        (gzip.compress(b"\0\0\x0d" + PLAIN[3:], mtime=0), "got '00000d01'"),
        (gzip.compress(PLAIN[:6], mtime=0), "must be 8 bytes of IDX header, got 6"),
        (gzip.compress(PLAIN[:-1], mtime=0), "length of .* must be 17 for .* got 16"),
        (gzip.compress(PLAIN + b"1", mtime=0), "length of .* must be 17 for .* got 18"),
        (idx(LABELS)[:-12], "must be a whole gzip file"),
        (b"<html>moved</html>", "must be a whole gzip file"),
        (b"", "must be|magic"),
    ],
)
def test_other_idx_files_are_refused(tmp_path: Path, data: bytes, says: str) -> None:
    (tmp_path / "labels.gz").write_bytes(data)
    with pytest.raises(ValueError, match=f"{says}.*; get the file again"):
        read_idx(tmp_path / "labels.gz", 1)


def test_images_and_labels_have_to_belong_together(tmp_path: Path) -> None:
    images, labels = tmp_path / "images.gz", tmp_path / "labels.gz"
    x, y = samples(6, 28, 28)
    images.write_bytes(idx(x))
    labels.write_bytes(idx(y))
    found = read_idx_pair(images, labels)
    assert found[0].shape == (6, 1, 28, 28)
    assert found[1].tolist() == [0, 1, 2, 3, 4, 5]
    labels.write_bytes(idx(y[:5]))
    with pytest.raises(ValueError, match="number of labels in .* must be 6, one for each image"):
        read_idx_pair(images, labels)
    labels.write_bytes(idx(y + 5))
    with pytest.raises(ValueError, match="labels in .* must be below 10, got 10"):
        read_idx_pair(images, labels)


def test_cifar10_is_read(tmp_path: Path) -> None:
    path = tmp_path / "cifar.tar.gz"
    members = cifar10_members()
    path.write_bytes(archive(members))
    (x, y), (test_x, test_y) = read_cifar10(path)
    assert x.shape == (5 * TEST, 3, 32, 32)
    assert test_x.shape == (TEST, 3, 32, 32)
    assert y.tolist() == 5 * test_y.tolist()
    # Colour planes one after the other, each by rows: byte 1 + 1024 * colour + 32 * row + column.
    record = members[CIFAR10_TEST][3073 : 2 * 3073]
    assert test_y[1] == record[0]
    assert test_x[1, 2, 30, 7] == record[1 + 2 * 1024 + 30 * 32 + 7]


def test_other_cifar10_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cifar.tar.gz"
    good = cifar10_members()
    damaged = {
        "must hold the file .*data_batch_3.bin": {k: v for k, v in good.items() if "_3" not in k},
        "length of .*test_batch.bin .* must be a multiple of 3073": good
        | {CIFAR10_TEST: good[CIFAR10_TEST][:-1]},
        "a multiple of 3073.* got 0": good | {CIFAR10_TEST: b""},
        "labels in .* must be below 10, got 11": good | {CIFAR10_TEST: bytes([11]) * 3073},
    }
    for says, members in damaged.items():
        path.write_bytes(archive(members))
        with pytest.raises(ValueError, match=says):
            read_cifar10(path)
    for data in (archive(good)[:-40000], b"not an archive", b""):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="must be a whole tar.gz"):
            read_cifar10(path)


def test_sst2_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sst2.zip"
    path.write_bytes(zipped(sst2_members()))
    (sentences, labels), (dev, dev_labels) = read_sst2(path)
    assert len(sentences) == len(labels) == TRAIN
    assert len(dev) == len(dev_labels) == TEST
    assert sentences[0] == ["a", '"fine"', "film"]  # a quotation mark does not open a field
    assert labels[:3].tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("dev", "says"),
    [
        ("index\tsentence\n0\tgood\n", "first line of SST-2/dev.tsv in .* must be"),
        ("sentence\tlabel\ngood\t2\n", "line 2 of .* must be a sentence, a tab and 0 or 1"),
        ("sentence\tlabel\ngood\t1\nbad", "line 3 of .* must be a sentence, a tab and 0 or 1"),
        ("sentence\tlabel\n", "lines of .* must be at least one sentence"),
        ("", "first line of"),
    ],
)
def test_other_sentences_are_refused(tmp_path: Path, dev: str, says: str) -> None:
    path = tmp_path / "sst2.zip"
    path.write_bytes(zipped(sst2_members() | {"SST-2/dev.tsv": dev}))
    with pytest.raises(ValueError, match=says):
        read_sst2(path)


def test_other_zips_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "sst2.zip"
    path.write_bytes(zipped({"SST-2/train.tsv": "sentence\tlabel\ngood\t1\n"}))
    with pytest.raises(ValueError, match="must hold SST-2/train.tsv and SST-2/dev.tsv"):
        read_sst2(path)
    whole = zipped(sst2_members())
    middle = whole.index(b"poor")
    for data in (whole[:-30], b"no zip", whole[:middle] + b"POOR" + whole[middle + 4 :]):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="must be a whole zip of texts"):
            read_sst2(path)
