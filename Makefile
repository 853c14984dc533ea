# Everything from a clean clone, with Python 3.11 or newer and nothing else:
#
#   make demo        the environment, then the three-body problem with every gradient method
#   make test        the environment with the test tools, then format, lint, types and tests
#   make check       the same without the tests
#   make test-slow   the environments with the peers, then the tests that take minutes
#   make docs        the environment of the site's generator, then the site, into site/
#   make gallery     runs the examples and draws their pictures, into docs/gallery/
#   make benchmark   the environments with the peers, then all of them side by side, into docs/results/peers.md
#   make versions    the core tests on exact versions of PyTorch, a large download each, into docs/results/versions.md
#   make format      formats the code and repairs what the linter can repair
#   make clean       removes the environment, caches and build outputs; the results in runs/ stay
#
# PYTHON=python3.12 make ... uses another Python (after `make clean`, if there is an environment already).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Python compiles what it imports; to compile all of PyTorch beforehand takes longer.
PIP := $(BIN)/python -m pip install -qq --no-compile --constraint constraints.txt
# A worker takes a half of the tests, so that fixtures and graphs of a file are made once, and steals when it has none.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal
TYPES := $(BIN)/basedpyright --pythonpath $(BIN)/python

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Where Python may not keep what it compiled, each of the tests' processes compiles PyTorch again: five seconds each.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check lint test-slow docs gallery benchmark versions format clean
.NOTPARALLEL:

demo: $(VENV)/.demo
	@echo "==> the three-body problem"
	$(BIN)/torchaca run three-body --size demo

# Types are checked beside the first tests, which leave a core idle now and then; what was found is shown at the end.
test: lint
	@echo "==> tests, and types beside them"
	@$(TYPES) >$(VENV)/types.txt 2>&1 & types=$$!; $(PYTEST); tests=$$?; \
	wait $$types; types=$$?; cat $(VENV)/types.txt; exit $$((tests + types))

check: lint
	@echo "==> types"
	$(TYPES)

lint: $(VENV)/.test
	@echo "==> format, lint"
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

test-slow: $(VENV)/.bench $(VENV)-jax/.made
	@echo "==> slow tests"
	$(PYTEST) -m slow --timeout 1800

docs: $(VENV)-docs/.made
	@echo "==> the site, in site/"
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build --quiet --strict

gallery: $(VENV)/.test
	@echo "==> the examples, in docs/gallery/"
	$(BIN)/python -m tools.gallery

benchmark: $(VENV)/.bench $(VENV)-jax/.made
	@echo "==> all peers side by side"
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.peers --write docs/results
	$(BIN)/python -m benchmarks.peers.stored

versions:
	$(PYTHON) tools/versions.py

format: $(VENV)/.test
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(VENV)-jax $(VENV)-docs site .benchmarks .hypothesis .pytest_cache .ruff_cache build dist
	find src tests tools benchmarks docs examples -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# One environment, built in stages; each stage leaves a stamp and runs again when the files it was made from change.

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "torchaca needs Python 3.11 or newer,\
	 and '$(PYTHON)' is not: try PYTHON=python3.12 make ..." >&2; exit 1; }
	@echo "==> environment in $(VENV), with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

# PyTorch first and by its exact version, which the constraints hold; hatchling builds the package.
$(VENV)/.torch: constraints.txt $(VENV)/.made
	@echo "==> installing $$(grep '^torch==' constraints.txt) (the largest download)"
	@$(PIP) "$$(grep '^torch==' constraints.txt)" hatchling
	@touch $@

$(VENV)/.demo: pyproject.toml $(VENV)/.torch
	@echo "==> installing torchaca"
	@$(PIP) --no-build-isolation --editable '.[lab]'
	@touch $@

$(VENV)/.test: pyproject.toml $(VENV)/.torch
	@echo "==> installing torchaca and the test tools"
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@

$(VENV)/.bench: benchmarks/requirements.txt $(VENV)/.test
	@echo "==> installing the PyTorch peers"
	@$(PIP) --no-deps --requirement benchmarks/requirements.txt
	@touch $@

# JAX has an environment of its own.
$(VENV)-jax/.made: benchmarks/requirements-jax.txt
	@echo "==> diffrax in $(VENV)-jax"
	@$(PYTHON) -m venv --clear $(VENV)-jax
	@$(VENV)-jax/bin/python -m pip install -qq --no-compile --requirement benchmarks/requirements-jax.txt
	@touch $@

# So has the site's generator, which reads the sources without importing them.
$(VENV)-docs/.made: docs/requirements.txt
	@echo "==> the site's generator in $(VENV)-docs"
	@$(PYTHON) -m venv --clear $(VENV)-docs
	@$(VENV)-docs/bin/python -m pip install -qq --no-compile --requirement docs/requirements.txt
	@touch $@
