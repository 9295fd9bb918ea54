# Everything a contributor or CI runs. `make help` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup setup-clients run demo test test-fast check format bench drills clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) ## Install everything into .venv

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; say which with make PYTHON=python3.11"; exit 1; }
	@echo "Installing into $(VENV) (a minute or two the first time) ..."
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

setup-clients: setup ## Install the clients of tests/clients that are no wheels
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev,clients]' || \
		echo "mautrix and synadm could not be installed: their tests are skipped"
	@cd tests/clients/js && npm ci --ignore-scripts --no-progress --loglevel=error && \
		cp package-lock.json node_modules/.installed || \
		echo "npm packages could not be installed: their tests are skipped"

run: setup ## Run a developer server named localhost:8448
	@$(BIN)/lmserver run

demo: setup ## Watch two servers federate a room
	@$(BIN)/lmserver demo

test: setup ## Run all tests
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

test-fast: setup ## Run the protocol's tests: seconds, no database
	$(BIN)/python -m pytest -q tests/protocol

check: setup ## Format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## Format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## Measure, beside stock Synapse; writes bench/README.md
	$(BIN)/python -m bench.run

drills: setup ## Run the fault drills and the suite's mutants in their long form
	LMSERVER_DRILLS=long $(BIN)/python -m pytest -q tests/drills tests/conformance \
		tests/attacks/test_state_and_locks.py

clean: ## Remove what setup and tests made
	rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist *.egg-info
	rm -rf tests/clients/js/node_modules tests/artefacts
