# Each target works alone on a fresh machine: it makes .venv, installs what it needs, and runs.
# A second call installs nothing unless what is to be installed, or this file, has changed.
#
#   PYTHON=python3.12     the interpreter that .venv is made from (3.11 or newer)
#   TORCH_INDEX=<url>     PyTorch's CPU index; without it pip takes the default build of PyTorch,
#                         which on Linux brings several gigabytes of CUDA libraries
#   JOBS=4                test processes, each with one thread

PYTHON ?= python3
JOBS ?= 2
BIN := .venv/bin
NEW_ENOUGH := $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "$(PYTHON) is older than 3.11; set PYTHON to a newer interpreter" >&2; exit 1; }
# A lock names everything with its hashes, so nothing is resolved; PyTorch stands in none (CPU or
# CUDA is the machine's to say) and is held by constraints.txt.
LOCKED := -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement
PINNED := -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
TRIMTAB := -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation
STAMP := .venv/.installed
INPUTS := pyproject.toml constraints.txt Makefile $(wildcard locks/*.txt)

# One thread a process: two threads beside another busy process were 10 to 60 times slower.
export OMP_NUM_THREADS := 1
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo install test test-frameworks test-slow test-lowest lint format docs \
	bench-overhead venv-dacbench lock wheel wheel-check clean

help:
	@echo "make demo             steer a real fine-tuning run, with a report at the end (3 to 5 minutes)"
	@echo "make test             unit tests and doctests (under 5 minutes)"
	@echo "make test-frameworks  tests with Transformers, Lightning, Keras and Chromium"
	@echo "make test-with-keras  tests with that framework alone (also lightning, transformers)"
	@echo "make test-lowest      unit tests with the lowest versions that pyproject.toml allows"
	@echo "make test-slow        tests that take minutes"
	@echo "make lint             format, lint, spelling, types, layering"
	@echo "make format           rewrite the sources in the project's format"
	@echo "make docs             the documentation, into site/"
	@echo "make install          every extra and every data package into .venv"
	@echo "make lock             write the locks anew, after a change to requirements"
	@echo "make wheel            the wheel and the source distribution, into dist/"
	@echo "make wheel-check      the wheel with the base dependencies alone, outside the checkout"
	@echo "make bench-overhead   what steering costs"
	@echo "make venv-dacbench    DACBench, in an environment of its own"
	@echo "make clean            remove environments, caches and build outputs"

# --- environments -----------------------------------------------------------------------------

$(BIN)/python:
	@$(NEW_ENOUGH)
	$(PYTHON) -m venv .venv

# pip and what builds trimtab
$(STAMP): $(BIN)/python $(INPUTS)
	$< $(LOCKED) locks/build.txt
	@touch $@

$(STAMP)-demo: $(STAMP)
	$(BIN)/python $(LOCKED) locks/demo.txt
	$(BIN)/python $(PINNED) torch
	$(BIN)/python $(TRIMTAB) --editable .
	@touch $@

$(STAMP)-test: $(STAMP)
	$(BIN)/python $(LOCKED) locks/test.txt
	$(BIN)/python $(PINNED) torch
	$(BIN)/python $(TRIMTAB) --editable .
	@touch $@

$(STAMP)-lint: $(STAMP)-test
	$(BIN)/python $(LOCKED) locks/lint.txt
	@touch $@

$(STAMP)-frameworks: $(STAMP)-test
	$(BIN)/python $(LOCKED) locks/frameworks.txt
	$(BIN)/python $(LOCKED) locks/data.txt
	@touch $@

# Other people's trainers, in a folder of their own: what they bring (torchvision) would be found
# and imported by Transformers and Lightning, and does not load beside each build of PyTorch.
$(STAMP)-trainers: $(STAMP)-frameworks
	rm -rf .venv/trainers
	$(BIN)/python $(LOCKED) locks/trainers.txt --target .venv/trainers
	@touch $@

# One framework alone, which no lock holds.
$(STAMP)-with-%: $(STAMP)-test
	$(BIN)/python $(PINNED) --no-build-isolation --editable '.[$*,tasks]'
	$(BIN)/python $(LOCKED) locks/data.txt
	@touch $@

# The tasks' pages show inputs and predictions of real tasks; TRIMTAB_DOCS_PICTURES=0 leaves the
# pictures out, and what they need.
$(STAMP)-docs: $(STAMP)
	$(BIN)/python $(LOCKED) locks/docs.txt
	$(BIN)/python $(TRIMTAB) --editable .
	@touch $@

$(STAMP)-all: $(STAMP)-docs $(STAMP)-frameworks $(STAMP)-lint
	$(BIN)/python $(LOCKED) locks/rivals.txt
	@touch $@

install: $(STAMP)-all

# --- what people run --------------------------------------------------------------------------

demo: $(STAMP)-demo
	$(BIN)/trimtab demo

test: $(STAMP)-test
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal --durations=20

# What needs other people's trainers runs apart, with their folder.
OF_TRAINERS := tests/trainers tests/adapters/test_told_in_trainers.py \
	tests/adapters/torch/test_foreign_schedulers.py \
	tests/adapters/torch/test_odd_optimizers.py tests/adapters/torch/test_step_hooks_in_trainers.py \
	tests/adapters/transformers/test_steer.py tests/adapters/transformers/test_trl.py \
	tests/adapters/transformers/test_sentence_transformers.py
test-frameworks: $(STAMP)-trainers
	$(BIN)/python -m pytest -m "framework and not slow" -n $(JOBS) --dist loadfile --durations=20 \
		$(addprefix --ignore=,$(OF_TRAINERS))
	TRIMTAB_TRAINERS=.venv/trainers $(BIN)/python -m pytest -m "framework and not slow" \
		-n $(JOBS) --dist loadfile --durations=20 $(OF_TRAINERS)

# Other frameworks' tests are skipped; this one's could only be so if it could not be imported. The
# table of kinds is of all frameworks side by side (PEFT in Lightning).
test-with-%: $(STAMP)-with-%
	$(BIN)/python -c 'import $*'
	$(BIN)/python -m pytest -m "framework and not slow" -k '$* and not kinds_table' -n $(JOBS) \
		--dist loadfile

test-slow: $(STAMP)-all
	$(BIN)/python -m pytest -m slow --durations=20

lint: $(STAMP)-lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layering.py tests/test_contributing.py tests/test_locks.py

format: $(STAMP)-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)-docs $(if $(filter 0,$(TRIMTAB_DOCS_PICTURES)),,$(STAMP)-frameworks)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench-overhead: $(STAMP)-test
	$(BIN)/python -m benchmarks.overhead

# DACBench imports torchvision at once, whose default build does not load beside a CPU build of
# PyTorch unless the operators that it looks for are defined first; see benchmarks/throughput.py.
venv-dacbench: .venv-dacbench/.installed

.venv-dacbench/.installed: constraints.txt Makefile
	$(PYTHON) -m venv .venv-dacbench
	.venv-dacbench/bin/python $(PINNED) dacbench safetensors torch
	.venv-dacbench/bin/python $(PINNED) --no-deps torchvision
	@touch $@

# --- versions and releases --------------------------------------------------------------------

lock: $(STAMP)
	$(BIN)/python $(PINNED) uv
	$(BIN)/python locks/update.py

# The lowest versions that pyproject.toml allows of what it names itself, in an environment of its
# own. TORCH=torch==2.13.0 takes another build where the lowest is not to be had. The golden help is
# worded by one version of Typer; a deprecation is what a later version of something says of it.
LOWEST := .venv-lowest/bin/python
TORCH ?=
test-lowest:
	@$(NEW_ENOUGH)
	rm -rf .venv-lowest
	$(PYTHON) -m venv .venv-lowest
	$(LOWEST) $(LOCKED) locks/build.txt
	$(LOWEST) $(PINNED) uv
	echo '-e .[agents,compare,demo,learn,postgres,search]' | $(LOWEST) -m uv pip compile --quiet \
		--resolution lowest-direct --group tools --no-emit-package trimtab - \
		| grep -vE '^(cuda-|nvidia-|triton=$(if $(TORCH),|torch=))' > .venv-lowest/lowest.txt
	$(LOWEST) -m pip install --quiet --requirement .venv-lowest/lowest.txt $(TORCH) \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
	$(LOWEST) $(TRIMTAB) --editable .
	$(LOWEST) -m pytest -n $(JOBS) -W ignore::DeprecationWarning -k "not golden_text and not polcy"

wheel: $(STAMP)
	rm -rf dist
	$(BIN)/python -m hatchling build

# First as a user without extras, then the tests that need none, both away from the sources.
WHEEL := $(CURDIR)/.venv-wheel/bin
wheel-check: wheel
	rm -rf .venv-wheel build/wheel-check
	$(PYTHON) -m venv .venv-wheel
	$(WHEEL)/python $(LOCKED) locks/base.txt
	$(WHEEL)/python $(TRIMTAB) dist/trimtab-*.whl
	$(WHEEL)/python -m pip check
	mkdir -p build/wheel-check
	cp -r tests benchmarks pyproject.toml build/wheel-check
	cd build/wheel-check && $(WHEEL)/trimtab doctor
	cd build/wheel-check && $(WHEEL)/python -c 'import gymnasium, trimtab; gymnasium.make("Hyperparam-v0").reset(seed=0)'
	cd build/wheel-check && $(WHEEL)/trimtab run simulated/quadratic
	$(WHEEL)/python $(LOCKED) locks/tools.txt
	cd build/wheel-check && $(WHEEL)/python -m pytest tests/core tests/controllers tests/test_imports.py

clean:
	rm -rf .venv .venv-dacbench .venv-lowest .venv-wheel .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache \
		build dist site
