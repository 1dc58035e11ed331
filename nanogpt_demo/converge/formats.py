"""Readers of the formats that the data sets come in, each from its file to arrays.

IDX (MNIST, Fashion-MNIST): gzip; two zero bytes, the type (8: unsigned byte), the number of
dimensions, their sizes as big-endian 32-bit numbers, then the values, the last index fastest.
CIFAR-10, binary version: a tar.gz with six files of records of 3073 bytes, the label and then
32 x 32 pixels, first all red, then all green, then all blue ones, by rows.
SST-2 of GLUE: a zip with train.tsv and dev.tsv, a header line, then sentence, tab, 0 or 1; its
test.tsv has no labels and is left alone.
"""

from __future__ import annotations

import gzip
import math
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nanogpt_demo._checks import require

Bytes = NDArray[np.uint8]
Labels = NDArray[np.int64]
Sentences = list[list[str]]

UNSIGNED_BYTE = 8
CLASSES = 10  # of all the image data sets here
SIDE, COLOURS = 32, 3
RECORD = 1 + COLOURS * SIDE * SIDE
CIFAR10_TRAIN = tuple(f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6))
CIFAR10_TEST = "cifar-10-batches-bin/test_batch.bin"
SST2_HEADER = "sentence\tlabel"
REMEDY = "get the file again"


def read_idx(path: Path, dimensions: int) -> Bytes:
    """Read an array of unsigned bytes.

    Args:
        path: A gzipped IDX file.
        dimensions: How many the array must have: 3 for images, 1 for labels.

    Raises:
        ValueError: If the file is anything else, or cut short.
    """
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} must be a whole gzip file, got {error}; {REMEDY}") from error
    start = 4 + 4 * dimensions
    magic = bytes([0, 0, UNSIGNED_BYTE, dimensions])
    rule = f"the magic number {magic.hex()} of IDX with {dimensions} dimensions"
    require(data[:4] == magic, f"start of {path}", rule, data[:4].hex(), REMEDY)
    rule = f"{start} bytes of IDX header"
    require(len(data) >= start, f"start of {path}", rule, len(data), REMEDY)
    shape = np.frombuffer(data[4:start], dtype=">u4").tolist()
    size = start + math.prod(shape)
    require(len(data) == size, f"length of {path}", f"{size} for {shape}", len(data), REMEDY)
    array: Bytes = np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)
    return array


def read_idx_pair(images: Path, labels: Path) -> tuple[Bytes, Labels]:
    """Read images and the labels that go with them.

    Returns:
        Images (N, 1, height, width) and labels (N,).

    Raises:
        ValueError: If one cannot be read, or they do not belong together.
    """
    x, y = read_idx(images, 3), read_idx(labels, 1)
    rule = f"{len(x)}, one for each image of {images.name}"
    require(len(x) == len(y), f"number of labels in {labels}", rule, len(y), REMEDY)
    return x[:, None], _classes(labels, y)


def read_cifar10(path: Path) -> tuple[tuple[Bytes, Labels], tuple[Bytes, Labels]]:
    """Read the training and the test images.

    Args:
        path: cifar-10-binary.tar.gz; nothing is unpacked to disk.

    Returns:
        Images (N, 3, 32, 32) and labels (N,), twice.

    Raises:
        ValueError: If the file is no such archive, or cut short.
    """
    try:
        with tarfile.open(path, "r:gz") as archive:
            parts = [_records(path, archive, name) for name in (*CIFAR10_TRAIN, CIFAR10_TEST)]
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise ValueError(f"{path} must be a whole tar.gz, got {error}; {REMEDY}") from error
    *train, test = parts
    return (
        (np.concatenate([x for x, _ in train]), np.concatenate([y for _, y in train])),
        test,
    )


def _records(path: Path, archive: tarfile.TarFile, name: str) -> tuple[Bytes, Labels]:
    try:
        member = archive.extractfile(name)
    except KeyError:
        member = None
    if member is None:
        raise ValueError(f"{path} must hold the file {name}, got none; {REMEDY}")
    data = member.read()
    rule = f"a multiple of {RECORD}, the bytes of an image"
    whole = len(data) > 0 and len(data) % RECORD == 0
    require(whole, f"length of {name} in {path}", rule, len(data), REMEDY)
    rows = np.frombuffer(data, dtype=np.uint8).reshape(-1, RECORD)
    return rows[:, 1:].reshape(-1, COLOURS, SIDE, SIDE), _classes(path, rows[:, 0])


def _classes(path: Path, labels: Bytes) -> Labels:
    highest = int(labels.max(initial=0))
    rule = f"below {CLASSES}"
    require(highest < CLASSES, f"labels in {path}", rule, highest, REMEDY)
    return labels.astype(np.int64)


def read_sst2(path: Path) -> tuple[tuple[Sentences, Labels], tuple[Sentences, Labels]]:
    """Read the sentences for training and for development.

    Args:
        path: SST-2.zip; nothing is unpacked to disk.

    Returns:
        Sentences as lists of words, and labels (N,), 1 for praise; twice.

    Raises:
        ValueError: If the file is no such archive, or damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            texts = {
                name: archive.read(name).decode("utf-8")
                for name in ("SST-2/train.tsv", "SST-2/dev.tsv")
            }
    except KeyError as error:
        raise ValueError(
            f"{path} must hold SST-2/train.tsv and SST-2/dev.tsv, got {error}; {REMEDY}"
        ) from error
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} must be a whole zip of texts, got {error}; {REMEDY}") from error
    train, dev = (_sentences(f"{name} in {path}", text) for name, text in texts.items())
    return train, dev


def _sentences(name: str, text: str) -> tuple[Sentences, Labels]:
    # Not by module csv, and not by splitlines: a quotation mark in a sentence is one of its words.
    header, *lines = text.replace("\r\n", "\n").rstrip("\n").split("\n")
    rule = repr(SST2_HEADER)
    require(header == SST2_HEADER, f"first line of {name}", rule, header, REMEDY)
    require(bool(lines), f"lines of {name}", "at least one sentence", "none", REMEDY)
    sentences, labels = [], []
    for number, line in enumerate(lines, start=2):
        sentence, tab, label = line.rpartition("\t")
        rule = "a sentence, a tab and 0 or 1"
        require(tab == "\t" and label in ("0", "1"), f"line {number} of {name}", rule, line, REMEDY)
        sentences.append(sentence.split())
        labels.append(int(label))
    return sentences, np.array(labels, dtype=np.int64)
