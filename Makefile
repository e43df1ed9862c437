# Every target works from a fresh checkout: it needs make and Python 3.10 or newer, and sets up the rest in .venv.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
READY := $(VENV)/.ready
UV := build/uv/bin/uv

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONNOUSERSITE := 1
export NO_MKDOCS_2_WARNING := 1
demo test slow parity matrix docs bench train-tiny: export HF_HUB_OFFLINE := 1
demo test slow parity matrix docs bench train-tiny: export TRANSFORMERS_OFFLINE := 1
# Threads that wait give their core away: beside another busy program, spinning made the demo ten times slower.
demo test slow parity matrix: export OMP_WAIT_POLICY := PASSIVE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help setup demo check format lint types test slow parity matrix docs wheel bench train-tiny constraints clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(READY)  ## Install prunekit and its development tools into .venv

demo: $(READY)  ## Prune the bundled model with several methods and write a report
	$(BIN)/prunekit run benchmarks/experiments/quickstart.yaml $(ARGS)

check: lint types test slow docs  ## All gates: format, lint, types, all tests, documentation

format: $(READY)  ## Format the code and apply the linter's safe fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(READY)  ## Check format and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)  ## Check types, strictly
	$(BIN)/mypy

test: $(READY)  ## Run the tests; narrow them with ARGS="-k star"
	$(BIN)/pytest -n auto --maxprocesses 8 -m "not slow" $(ARGS)

slow: $(READY)  ## Run the tests that take long, which make test leaves out
	$(BIN)/pytest -n auto --maxprocesses 8 -m slow $(ARGS)

parity: $(READY)  ## Compare every method with golden vectors of the released code
	$(BIN)/pytest tests/parity -n 0 -q --parity-json benchmarks/results/parity.json $(ARGS)

# The oldest release that pyproject.toml admits, the last ones of those between, and the newest.
RELEASES ?= 5.20.0 5.20.2 5.21.1 5.22.2 5.23.0 newest

matrix: $(READY)  ## Run the contract tests with each of several RELEASES of transformers
	$(BIN)/python tests/matrix.py $(RELEASES) $(ARGS)

docs: $(READY)  ## Build the documentation into site/
	$(BIN)/mkdocs build --strict $(ARGS)

wheel: $(READY)  ## Build the wheel into dist/
	rm -rf build/lib build/bdist.*
	$(BIN)/python -m build --wheel --no-isolation

bench: $(READY)  ## Measure speed and memory on this machine
	$(BIN)/python benchmarks/overhead.py $(ARGS)

train-tiny: $(READY)  ## Train the bundled model anew
	$(BIN)/python -m prunekit.models.tiny.training $(ARGS)

clean:  ## Remove what the other targets built, .venv apart
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment. pip is made last when an environment is created, so its presence tells that creation succeeded.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "prunekit needs Python 3.10 or newer, but $(PYTHON) is $$($(PYTHON) --version 2>&1 || true)."; \
	    echo "Name another one, for example: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; } >&2
	@$(PYTHON) -m venv $(VENV) || { \
	    echo "$(PYTHON) cannot create environments. On Debian and Ubuntu, install the package python3-venv." >&2; exit 1; }

$(READY): pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing prunekit and its development tools into $(VENV)"
	$(BIN)/python -m pip install -qq --upgrade --constraint constraints.txt pip setuptools
	$(BIN)/python -m pip install -qq --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@touch $@

# The versions the project is tested with, for every supported Python. pip installs what torch needs on a machine
# with an NVIDIA card by torch's own exact pins, so those packages are left out.
constraints: $(UV)  ## Pin the newest versions that pyproject.toml admits; torch stays at TORCH
	printf 'pip\ntorch==%s\n' $(TORCH) | $(UV) pip compile --quiet --universal --python-version 3.10 --extra dev \
	    --upgrade --no-annotate --no-header --no-emit-package prunekit --output-file build/resolved.txt pyproject.toml -
	{ sed -n '/^#/p' constraints.txt; sed -E "/^(nvidia-|cuda-|triton)/d; /sys_platform == 'emscripten'/d; \
	    s/ (;|and) sys_platform != 'emscripten'//" build/resolved.txt; } > build/constraints.txt
	mv build/constraints.txt constraints.txt

TORCH ?= $(shell sed -n 's/^torch==//p' constraints.txt)

$(UV): | $(BIN)/pip
	$(BIN)/python -m venv build/uv
	build/uv/bin/pip install --quiet uv
