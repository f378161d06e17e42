# The only commands to learn: make demo | test | check | docs | bench | bench-peers | studies
# Everything is installed into .venv, pinned by constraints.txt; stamp files make a second run start at once.
#
#   make demo                        the embedded example, from a fresh clone to a report
#   make test ARGS="-k atomic"       the tests, with extra arguments for pytest
#   make studies DATA=path           the re-run published findings
#   make scorecard                   what is promised about reliability, counted (SCORECARD=full: nightly)
#
# Variables: PYTHON (>= 3.11), TORCH_INDEX (where CPU builds of torch come from), ARGS, DATA.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input -qq install --constraint constraints.txt
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
DATA ?=
ARGS ?=

.PHONY: help demo test check format docs notebook bench bench-peers scorecard studies chromium axe clean

help:
	@sed -n '1,/^$$/{s/^# \{0,1\}//p}' Makefile

# --- environments -------------------------------------------------------------------------------------------------

$(VENV)/.made:
	@.ci/python -m venv $(VENV)
	@$(PIP) pip setuptools
	@touch $@

# torch first and alone, from the CPU index: a plain install would fetch gigabytes of CUDA libraries on Linux
$(VENV)/.torch: $(VENV)/.made constraints.txt
	@echo "installing torch (CPU build)"
	@$(PIP) --no-deps --retries 0 --index-url $(TORCH_INDEX) torch || { \
	  echo "no CPU build of torch at $(TORCH_INDEX); name another index: make $(MAKECMDGOALS) TORCH_INDEX=..." >&2; exit 1; }
	@touch $@

$(VENV)/.runtime: $(VENV)/.torch pyproject.toml constraints.txt
	@echo "installing whence and what it needs"
	@$(PIP) --no-build-isolation --editable .
	@touch $@

# curvlinops (the independent twin of the curvature tests) and backpack declare torchvision, whose registry build does
# not match a CPU torch and breaks `import transformers`: they come without dependencies, their other needs are extras
$(VENV)/.dev: $(VENV)/.runtime
	@echo "installing the tools for tests, lint, types and docs"
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@$(PIP) --no-deps curvlinops-for-pytorch backpack-for-pytorch
	@touch $@

chromium:
	@.ci/chromium

# the accessibility checker that the tests run inside the report; not part of the project
axe:
	@.ci/axe

# --- verbs --------------------------------------------------------------------------------------------------------

demo: $(VENV)/.runtime
	@$(BIN)/whence demo $(ARGS)

# one thread per worker: two workers with many threads each would fight for the same cores
test: $(VENV)/.dev chromium axe
	@OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.dev
	@$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

# the tutorial, executed: docs/tutorial/look-closer.ipynb from examples/look_closer.py
notebook: $(VENV)/.dev
	@$(BIN)/python docs/notebook.py

bench: $(VENV)/.runtime
	@$(BIN)/python -m benchmarks.passes $(if $(DATA),--data $(DATA)) $(ARGS)

bench-peers: $(VENV)/.runtime
	@$(BIN)/python -m benchmarks.peers.set_up
	@$(BIN)/python -m benchmarks.peers.compare $(if $(DATA),--data $(DATA)) $(ARGS)

# writes scorecard/reliability.json and docs/explanation/scorecard.md
scorecard: $(VENV)/.dev chromium axe
	@OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 $(BIN)/python -m scorecard $(ARGS)

studies: $(VENV)/.dev
	@shopt -s nullglob; found=0; for study in studies/[a-z]*.py; do found=1; echo "== $$study"; \
	  $(BIN)/python $$study $(if $(DATA),--data $(DATA)) $(ARGS); done; \
	  if [ $$found = 0 ]; then echo "no studies yet"; fi

clean:
	rm -rf $(VENV) build docs/_build .pytest_cache .ruff_cache .hypothesis src/*.egg-info
