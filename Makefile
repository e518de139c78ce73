# `make` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup lint unit test chaos bench docs screenshots demo builders builders-test engine engines kubernetes stop clean

help: ## this list
	@echo 'buildrunner runs Cloud Build configs on your own machine. Start with: make demo'
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

setup: .venv/.installed ## the virtual environment in .venv, with what development needs

.venv/.installed: pyproject.toml constraints.txt scripts/setup.sh
	scripts/setup.sh $(PYTHON)
	touch $@

demo: setup ## from nothing to a pushed image: engine, builder images, registry, the example
	scripts/demo.sh

lint: setup ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

unit: setup ## the quick tests: no engine, no servers, no fuzzing
	$(BIN)/pytest -q -n auto -m 'not docker and not slow' tests/unit

test: setup lint ## everything: lint, and all tests on a real engine and registry
	scripts/test.sh

chaos: setup ## kill -9 of servers and builds at every phase, and of what they stand on: all of it
	scripts/test.sh -m '' tests/chaos

bench: engine ## the speed figures: ratios, measured side by side
	$(BIN)/python -m compileall -q buildrunner
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m benchmarks

docs: setup ## the manual, in docs/_build/html
	$(BIN)/python docs/generate.py
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html
	@echo 'docs/_build/html/index.html'

screenshots: engine ## the pictures in docs/images, from builds that run for them
	scripts/screenshots.sh

engine: setup ## a container engine: the one at hand, else Debian's, started here
	scripts/engine.sh start

engines: setup ## the tests of engines on Docker and Podman of several releases (ENGINES="docker-28 podman-5": some)
	scripts/engines.sh $(ENGINES)

kubernetes: setup ## the tests on Kubernetes: the cluster of KUBECONFIG, else one that is started for them and stopped
	scripts/kubernetes.sh test

builders: engine ## the builder images
	$(BIN)/buildrunner builders install

builders-test: engine ## every builder image made and tested (an hour or more); writes docs/builder-images.toml
	$(BIN)/python scripts/builders-test.py
	$(BIN)/python docs/generate.py

stop: ## ends the engine that was started from here, and no other
	scripts/engine.sh stop

clean: ## removes what make made in this folder (images on the engine stay)
	scripts/engine.sh stop
	rm -rf .venv .cache docs/_build build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache \
	  .hypothesis .import_linter_cache .coverage
	find . -name __pycache__ -prune -exec rm -rf {} +
