# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: install demo test lint format stress suite ideas detectors clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: install            ## the stress test at quick size: results/latest/stress.json and .png
	$(BIN)/python -m nanogpt_demo

test: install
	$(BIN)/python -m pytest -n auto

lint: install            ## checks only: never rewrites a file
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

CORPUS ?= tinyshakespeare
stress: install          ## the committed results (hours; resumes where it was interrupted)
	$(BIN)/python -m nanogpt_demo --size quick --shift-at 250 --seeds 1-5 --corpus $(CORPUS) --out results
	$(BIN)/python -m nanogpt_demo --size quick --shift-at 350 --seeds 1-5 --corpus $(CORPUS) --out results
	$(BIN)/python -m nanogpt_demo --size paper --shift-at 300 --seeds 1-3 --corpus $(CORPUS) --out results

suite: install           ## ARS and its peers: cells, ablations, lr sweep (about 90 minutes on two cores; resumes)
	$(BIN)/python -m nanogpt_demo suite --tier full --corpus $(CORPUS) --out results

ideas: install           ## what was tried for the policy, on the development split (about 40 minutes on one core; resumes)
	$(BIN)/python -m nanogpt_demo suite --tier ideas --corpus $(CORPUS) --out results

detectors: install       ## power and false alarms of the loss detectors (a minute)
	$(BIN)/python -m nanogpt_demo detectors --out results

clean:
	rm -rf .venv build dist *.egg-info results/latest .pytest_cache .ruff_cache .mypy_cache .hypothesis
