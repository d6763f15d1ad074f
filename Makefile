# make setup   the environment in .venv (skipped when current)        make check   format, lint, types
# make demo    setup, then explain real photographs into out/demo      make bench   the benchmark: BENCH_ARGS='--images …'
# make test    setup, then the tests without the slow ones             make test-lower   at the declared lower bounds
# make test-all   the slow ones too                                    make clean   remove what these made
#
# PYTHON     the interpreter that makes the environment (3.10 or newer)
# PIP_ARGS   passed to every install, by uv where it is installed, by pip otherwise; uv does not read pip's configuration

PYTHON ?= python3
PIP_ARGS ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
LOWER := .venv-lower
UV := $(shell command -v uv 2>/dev/null)

.PHONY: setup demo test test-all check bench test-lower clean
.DEFAULT_GOAL := setup

# $(call environment,FOLDER,CONSTRAINTS): make or complete an environment, then mark it as current.
define environment
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, not " + sys.version)'
	$(if $(UV),$(UV) venv --allow-existing --python $(PYTHON) $(1),$(PYTHON) -m venv $(1))
	$(if $(UV),$(UV) pip install --python $(1)/bin/python,$(1)/bin/python -m pip install --disable-pip-version-check) \
	    -c $(2) $(PIP_ARGS) -e '.[test]'
	@touch $(1)/.current
endef

setup: $(VENV)/.current

$(VENV)/.current: pyproject.toml constraints.txt
	$(call environment,$(VENV),constraints.txt)

$(LOWER)/.current: pyproject.toml constraints-lower.txt
	$(call environment,$(LOWER),constraints-lower.txt)

demo: setup
	$(BIN)/consilience explain --image sample:coffee --image sample:chelsea --image sample:rocket \
	    --image sample:motorcycle --model demo --out out/demo

test: setup
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

test-all: setup
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python benchmarks/consensus.py $(BENCH_ARGS)

test-lower: $(LOWER)/.current
	$(LOWER)/bin/python -m pytest -m "not slow" $(PYTEST_ARGS)

clean:
	rm -rf $(VENV) $(LOWER) out build dist .mypy_cache .pytest_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
