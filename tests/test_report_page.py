"""The page of a run, in a browser too, and the command that writes it."""

import base64
import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from resilient_optim import Decision, __version__, report
from resilient_optim.__main__ import main
from resilient_optim.events import EventLog
from tests.reported_runs import eventful_log

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


@pytest.fixture(scope="module")
def eventful(tmp_path_factory):
    return eventful_log(tmp_path_factory.mktemp("run"))


class Page(HTMLParser):
    """What stands in a page, and what it would fetch."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.tags, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text.append(data)


def test_page_is_self_contained(eventful, tmp_path):
    report.html(eventful, tmp_path / "run.html")
    text = (tmp_path / "run.html").read_text()
    page = Page(text)
    (picture,) = page.addresses
    kind, data = picture.split(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data, validate=True).startswith(b"\x89PNG")
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "url(" not in text and "@import" not in text
    assert "prefers-color-scheme: dark" in text
    words = "\n".join(page.text)
    for expected in (
        "Report of events.jsonl",
        "non-finite loss",
        "rollback to step 520",
        __version__,
    ):
        assert expected in words


def test_page_escapes_what_it_is_given(tmp_path):
    evil = "<script>alert(1)</script>&\"'"
    event = {"step": 0, "loss": math.nan, "action": evil, "reason": evil, "phi": 0.5}
    log = EventLog(tmp_path / "<b>.jsonl", {"config": evil})
    log.write(Decision(0, "skip", evil, 1.0), diagnosis=evil)
    log.close()
    for run in ([event], tmp_path / "<b>.jsonl"):
        report.html(run, tmp_path / "run.html")
        page = Page((tmp_path / "run.html").read_text())
        assert not {"script", "b"} & set(page.tags)
        assert evil in page.text


def test_page_tells_the_diagnosis_and_lists_the_first_events(tmp_path):
    events = [{"step": i, "loss": 1.0, "action": "skip", "reason": "surprise"} for i in range(300)]
    events[-1]["diagnosis"] = "the learning rate\nis too high"
    report.html(events, tmp_path / "run.html")
    page = Page((tmp_path / "run.html").read_text())
    assert "the learning rate\nis too high" in page.text
    assert "The first 200 of 300. Steps of the start-up are left out." in page.text
    assert page.text.count("surprise") == 200
    report.html(events[:-1], tmp_path / "run.html")
    assert "Diagnosis" not in Page((tmp_path / "run.html").read_text()).text


def test_page_tells_the_diagnosis_of_a_run_that_went_on(tmp_path):
    events = [{"step": i, "loss": 1.0} for i in range(30)]
    events[19] |= {"action": "skip", "reason": "surprise", "diagnosis": "it was the data"}
    report.html(events, tmp_path / "run.html")
    text = Page((tmp_path / "run.html").read_text()).text
    assert "it was the data" in text and "The run went on all the same, to step 29." in text
    report.html(events[:20], tmp_path / "run.html")
    text = Page((tmp_path / "run.html").read_text()).text
    assert "it was the data" in text and not any("went on" in words for words in text)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_page_renders_in_a_browser(eventful, tmp_path):
    report.html(eventful, tmp_path / "run.html")
    # The page has no script of its own: the one added here asks the browser what it drew.
    probe = (
        "<script>onload = () => { const i = document.images[0], b = document.body; document.title ="
        " `drawn ${i.naturalWidth}x${i.naturalHeight}, fits ${b.scrollWidth <= innerWidth}` }"
        "</script>"
    )
    page = (tmp_path / "run.html").read_text()
    (tmp_path / "probe.html").write_text(page.replace("</body>", probe + "</body>"))
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom",
        (tmp_path / "probe.html").as_uri(),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert result.returncode == 0, result.stderr
    assert "<title>drawn 1210x1210, fits true</title>" in result.stdout
    assert len(re.findall("<tr>", result.stdout)) == page.count("<tr>")


def test_command_writes_both_and_tells_where(eventful, tmp_path, capsys):
    assert main(["report", str(eventful), "--out", str(tmp_path / "new" / "folder")]) == 0
    paths = capsys.readouterr().out.splitlines()
    assert paths == [str(tmp_path / "new" / "folder" / f"events.{end}") for end in ("png", "html")]
    assert main(["report", str(eventful)]) == 0
    assert eventful.with_suffix(".png").exists() and eventful.with_suffix(".html").exists()


def test_command_tells_what_is_wrong(tmp_path, capsys):
    (tmp_path / "broken.jsonl").write_text('{"step": 0\n{"step": 1, "loss": 1.0}\n')
    (tmp_path / "other.jsonl").write_text(json.dumps({"a": 1}) + "\n")
    for name, word in (("none", "No such file"), ("broken", "line 1"), ("other", "keys ['a']")):
        assert main(["report", str(tmp_path / f"{name}.jsonl")]) == 2
        captured = capsys.readouterr()
        assert word in captured.err and captured.err.count("\n") == 1 and not captured.out
        assert not (tmp_path / f"{name}.html").exists()
    for wrong in ([], ["report"], ["plot", "x"]):
        with pytest.raises(SystemExit) as stopped:
            main(wrong)
        assert stopped.value.code == 2


def test_command_runs_as_a_module(tmp_path):
    command = [sys.executable, "-m", "resilient_optim", "report", tmp_path / "none.jsonl"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2 and "Traceback" not in result.stderr


def test_command_tells_the_version_and_needs_no_matplotlib_for_it():
    code = (
        "import sys, atexit, resilient_optim.__main__ as command\n"
        "atexit.register(lambda: print('matplotlib' in sys.modules))\n"
        "command.main(['--version'])"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.stdout == f"resilient_optim {__version__}\nFalse\n" and result.returncode == 0


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch, eventful, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        report.plot(eventful)
    assert main(["report", str(eventful)]) == 2
    assert "pip install matplotlib" in capsys.readouterr().err
