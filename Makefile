# Two commands on a fresh machine: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport PYTHONDONTWRITEBYTECODE  # modules are compiled once, not in each of the processes that tests start

.PHONY: demo test prove bench lint setup setup-dev clean

demo: setup            ## the whole path on data found on this machine, under 7 minutes on 2 cores
	$(BIN)/bessemer demo

test: setup-dev lint   ## every test that CI runs
	$(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 4 --dist loadfile

prove: setup-dev       ## the slow proofs: kills at random moments, long curves
	$(BIN)/python -m pytest -m slow

bench: setup-dev       ## benchmarks against peers, each in its own environment
	$(BIN)/python benchmarks/cpu_pretrain.py
	$(BIN)/python benchmarks/data.py

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: .venv/ready
setup-dev: .venv/ready-dev

.venv/ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/ready-dev: pyproject.toml   # in one step all that .venv/ready has, too
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch .venv/ready $@

clean:
	rm -rf .venv
