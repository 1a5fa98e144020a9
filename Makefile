# Everything a fresh machine needs is made on first use, in .venv: `make run`, `make test`.
# `make PYTHON=python3.12 VENV=.venv312 test` uses another interpreter beside it.

PYTHON ?= python3
VENV ?= .venv
SCENARIO ?= lfs-gc
PYTEST ?= -n 2 --dist loadgroup
BENCH ?=
CLEAN := build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
SOURCES := uxk drivers extensions examples bench
# pyfuse3 is built from source: only where that is possible; elsewhere the tests of mounts are skipped.
HEADER := import os.path, sysconfig; print(os.path.join(sysconfig.get_path("include"), "Python.h"))
FUSE = $(shell pkg-config --exists fuse3 2>/dev/null && command -v cc >/dev/null \
    && test -e "$$($(PYTHON) -c '$(HEADER)' 2>/dev/null)" && echo ,fuse)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: run test lint format bench soak docs-check clean help

run: $(VENV)/.run  ## run the scenario SCENARIO=lfs-gc
	$(BIN)/uxk run $(SCENARIO)

test: $(VENV)/.test  ## all tests but the long ones; PYTEST="-n 0 -k ring" narrows them
	$(BIN)/python -m pytest -q $(PYTEST)

lint: $(VENV)/.lint  ## ruff, mypy --strict, pyright
	$(BIN)/ruff check $(SOURCES) tests
	$(BIN)/ruff format --check $(SOURCES) tests
	$(BIN)/mypy --strict $(SOURCES)
	$(BIN)/pyright --warnings --pythonpath $(BIN)/python $(SOURCES)

format: $(VENV)/.lint  ## rewrite the sources as ruff wants them
	$(BIN)/ruff check --fix $(SOURCES) tests
	$(BIN)/ruff format $(SOURCES) tests

bench: $(VENV)/.bench  ## measurements: a table and JSON; BENCH="..." are its arguments
	$(BIN)/python -m bench $(BENCH)

soak: $(VENV)/.test  ## the property tests with many more and random examples
	HYPOTHESIS_PROFILE=soak UXK_SOAK=1 $(BIN)/python -m pytest -q $(PYTEST)

docs-check: $(VENV)/.test  ## what the documents show and claim
	$(BIN)/python -m pytest -q tests/test_docs.py

clean:  ## what was built and cached, and the environment
	rm -rf $(VENV) $(CLEAN)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 12

# One stamp per set of extras; each install keeps what the others brought.
$(VENV)/.venv:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "uxk needs Python 3.11 or newer; try make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.run: $(VENV)/.venv pyproject.toml constraints.txt
	$(PIP) -e ".[fast,report]"
	touch $@

$(VENV)/.test $(VENV)/.lint $(VENV)/.bench: $(VENV)/.%: $(VENV)/.venv pyproject.toml constraints.txt
	$(PIP) -e ".[$*$(FUSE)]"
	touch $@
