# Each verb first installs; a second install does nothing until pyproject.toml or constraints.txt changes.
PYTHON ?= $(shell command -v python3.11 || echo python3)
BIN := .venv/bin

.PHONY: install quickstart test test-slow check bench docs

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -e ".[dev]" -c constraints.txt
	touch $@

quickstart: install
	$(BIN)/llava quickstart

# A file stays in one process: its fixtures are made once.
test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 0

test-slow: install
	$(BIN)/python -m pytest -m "slow and not gpu" -o faulthandler_timeout=3600

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy processing data_generation

bench: install
	$(BIN)/python -m benchmarks.forward

# The site, in build/site; its pages that scripts write are written anew first.
docs: install
	$(BIN)/python -m docs.reference
	$(BIN)/python -m docs.trees
	$(BIN)/python -m docs.results
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
