# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

EXPERIMENTS := stress suite ideas detectors bench snapshots kernels stopping faults gpu

.PHONY: install demo test lint format reference dist results paper $(EXPERIMENTS) clean

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

# A warning of pdoc, such as a type that it cannot resolve, is an error.
reference: install       ## the API reference from the docstrings: build/reference/resilient_optim.html
	$(BIN)/python -W error::UserWarning -m pdoc --docformat google --no-show-source \
		--output-directory build/reference resilient_optim resilient_optim.schedules \
		resilient_optim.report resilient_optim.events resilient_optim.integrations

dist: install            ## sdist, and the wheel that is built from it: dist/
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*

# Commands, files and times: `python -m nanogpt_demo results --list`. Another folder starts from
# nothing, as in `make results OUT=again`.
CORPUS ?= tinyshakespeare
OUT = results
RESULTS = $(BIN)/python -m nanogpt_demo results --corpus $(CORPUS) --out $(OUT)

results: install         ## every experiment in order, the pages and the paper (hours; resumes where it was interrupted)
	$(RESULTS)

$(EXPERIMENTS): install  ## one experiment
	$(RESULTS) --only $@

paper: install           ## paper/paper.pdf from results/*.json (a minute)
	$(BIN)/python -m paper.build

clean:
	rm -rf .venv build dist *.egg-info results/latest .pytest_cache .ruff_cache .mypy_cache .hypothesis
