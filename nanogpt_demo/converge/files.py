"""The files of the data sets: where they come from, and that they are the right ones.

A file that is in the folder already is used if its checksum is right, and never overwritten:
somebody has put it there. What is downloaded is kept only if its checksum is right.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nanogpt_demo._checks import require

TIMEOUT = 60.0  # seconds without a byte


@dataclass(frozen=True)
class Source:
    """A file that can be had.

    Attributes:
        name: Its name, the same there and here.
        folder: The address it lies at, up to the last slash.
        md5: Its checksum, as published. It finds damaged and mistaken files; it is no protection
            against somebody who forges one, which a published MD5 cannot be.
    """

    name: str
    folder: str
    md5: str

    @property
    def url(self) -> str:
        """Where it can be had."""
        return self.folder + self.name


# Checksums and mirror of MNIST as in torchvision, torchvision/datasets/mnist.py (the files' first
# home, yann.lecun.com, often refuses). Those of Fashion-MNIST: README of its authors,
# zalandoresearch/fashion-mnist. CIFAR-10: its author's page, www.cs.toronto.edu/~kriz/cifar.html,
# "binary version". SST-2: torchtext, torchtext/datasets/sst2.py; the host is that of GLUE.
_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_CIFAR10 = "https://www.cs.toronto.edu/~kriz/"
_GLUE = "https://dl.fbaipublicfiles.com/glue/data/"
SOURCES: dict[str, tuple[Source, ...]] = {
    "mnist": (
        Source("train-images-idx3-ubyte.gz", _MNIST, "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
        Source("train-labels-idx1-ubyte.gz", _MNIST, "d53e105ee54ea40749a09fcbcd1e9432"),
        Source("t10k-images-idx3-ubyte.gz", _MNIST, "9fb629c4189551a2d022fa330f9573f3"),
        Source("t10k-labels-idx1-ubyte.gz", _MNIST, "ec29112dd5afa0611ce80d1b7f02629c"),
    ),
    "fashion-mnist": (
        Source("train-images-idx3-ubyte.gz", _FASHION, "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        Source("train-labels-idx1-ubyte.gz", _FASHION, "25c81989df183df01b3e8a0aad5dffbe"),
        Source("t10k-images-idx3-ubyte.gz", _FASHION, "bef4ecab320f06d8554ea6380940ec79"),
        Source("t10k-labels-idx1-ubyte.gz", _FASHION, "bb300cfdad3c16e7a12a480ee83cd310"),
    ),
    "cifar10": (Source("cifar-10-binary.tar.gz", _CIFAR10, "c32a1d4ab5d03f1284b67883e8d87530"),),
    "sst2": (Source("SST-2.zip", _GLUE, "9f81648d4199384278b86e315dac217c"),),
}
"""The files of a data set, in the order in which its reader wants them. They are kept in a folder
of the data set's name: MNIST and Fashion-MNIST call their files alike."""


def fetch(dataset: str, folder: Path, tell: Callable[[str], None]) -> list[Path]:
    """Have all files of a data set, downloading those that are missing.

    Args:
        dataset: A key of ``SOURCES``.
        folder: Where data are kept; the files are in the folder ``dataset`` below it.
        tell: Called with a line of text before each download, which may take a while.

    Returns:
        The files, in the order of ``SOURCES``.

    Raises:
        ValueError: If one cannot be had, or is not the right one.
    """
    home = folder / dataset
    for source in SOURCES[dataset]:
        path = home / source.name
        if path.exists():
            remedy = "delete it to have it downloaded again"
            _check(source, path.read_bytes(), str(path), remedy)
            continue
        tell(f"downloading {source.url} to {path}")
        try:
            data = _download(source)
        # HTTPException: a connection that breaks off in the middle is no OSError.
        except (OSError, http.client.HTTPException) as error:
            raise ValueError(
                f"{source.url} must be reachable, got {error}; check the network, or get these "
                f"files elsewhere and put them into {home}: {_missing(dataset, home)}"
            ) from error
        _check(source, data, f"what {source.url} sends", f"get it elsewhere and put it at {path}")
        _keep(data, path)
    return [home / source.name for source in SOURCES[dataset]]


def _download(source: Source) -> bytes:
    with urllib.request.urlopen(source.url, timeout=TIMEOUT) as response:
        return bytes(response.read())


def _missing(dataset: str, home: Path) -> str:
    missing = [source for source in SOURCES[dataset] if not (home / source.name).exists()]
    return ", ".join(f"{source.name} (md5 {source.md5})" for source in missing)


def _keep(data: bytes, path: Path) -> None:
    """Write all of it or nothing: a download that was cut short must not look like a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def _check(source: Source, data: bytes, what: str, remedy: str) -> None:
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    require(found == source.md5, f"md5 of {what}", source.md5, found, remedy)
