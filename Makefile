.DEFAULT_GOAL := help
.PHONY: help venv demo test check bench chaos soak docs up down lock

PYTHON ?= python3
BIN := .venv/bin
CDC := $(BIN)/cdc
STAMP := .venv/.installed

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | awk -F'\t' '{printf "  make %-8s %s\n", $$1, $$2}'

venv: $(STAMP)  ## the environment in .venv, from the lock by hash

demo: $(STAMP)  ## a shop, its read models and customers, on a stack of its own
	$(BIN)/python -m pipeline.demo $(if $(CHECK),--check)

test: $(STAMP)  ## all tests
	$(BIN)/pytest

check: $(STAMP)  ## format, lint, types, layers, dependencies
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/basedpyright --level warning
	$(BIN)/lint-imports
	$(BIN)/deptry .

SECONDS ?= 120
SEED ?= 1
chaos: $(STAMP)  ## kill everything at random under load, then compare (SECONDS=120 SEED=1)
	$(BIN)/python -m tests.chaos $(SECONDS) $(SEED)

HOURS ?= 1
soak: $(STAMP)  ## load and kills for hours; memory, files and lag have to stay level (HOURS=1 SEED=1)
	$(BIN)/python -m tests.chaos.soak $(HOURS) $(SEED)

SIZE ?= full
RUNS ?= 1
bench: $(STAMP)  ## the benchmarks, beside what Elasticsearch alone takes (PART="a b" SIZE=small RUNS=3)
	$(CDC) bench $(PART) --size $(SIZE) --runs $(RUNS)

docs: $(STAMP)  ## write the generated pages of docs/reference anew
	$(BIN)/python -m pipeline.cli.reference > docs/reference/cli.md

up: $(STAMP)  ## start the local stack
	$(CDC) stack up

down: $(STAMP)  ## stop the local stack
	$(CDC) stack down

lock:  ## resolve the dependencies anew into requirements.lock (needs uv)
	uv pip compile pyproject.toml --all-extras --group dev --python-version 3.11 --universal \
	  --generate-hashes --no-emit-index-url --no-header -o requirements.lock

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)
