# Thin: every line calls one command. `make` alone lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
MP := $(BIN)/marketprism
DBT := $(BIN)/dbt
export DBT_PROFILES_DIR := $(CURDIR)
# demo: a folder or files of market data; empty: the generated market
DATA ?=
# tests: two workers, each with a server of its own
PYTEST_ARGS ?= -n 2 --dist loadscope

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

setup: .venv/.installed ## virtual environment from the lock file
.venv/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11 …" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

torch: .venv/.torch ## PyTorch, for the sequence models: without CUDA where pip finds that build
.venv/.torch: .venv/.installed requirements-torch.lock requirements-torch-cpu.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-torch-cpu.lock 2>/dev/null || \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-torch.lock
	touch $@

up: setup ## start the local ClickHouse
	$(MP) server up
down: setup ## stop it
	$(MP) server down
status: setup ## is it running, where, since when
	$(MP) server status
migrate: up ## raw and serving tables
	$(MP) migrate
ingest: migrate ## DATA=… : load market data
	$(MP) ingest files $(DATA)
build: migrate ## dbt seeds, models and data tests
	$(DBT) build
demo: migrate ## market data in, features, model, scores and report out; DATA=… for recorded data
	$(MP) demo $(if $(DATA),--data "$(DATA)")
train: torch ## train the ladder of models on training_set, compare them
	$(MP) train
score: setup ## score the latest buckets
	$(MP) score
refresh-candidates: setup ## footprint levels up to now; for cron, each five minutes
	$(MP) refresh-candidates
report: setup ## one HTML page of everything worth looking at
	$(MP) report
catalog: setup ## every feature with its formula; a page with a line per feature
	$(MP) catalog
docs: migrate ## dbt docs, every model and column
	$(DBT) docs generate
test: torch ## unit, oracle, leakage and integration tests; dbt tests
	$(BIN)/pytest $(PYTEST_ARGS)
lint: torch ## sqlfluff, ruff, mypy
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/sqlfluff lint --disable-progress-bar --processes 2 dbt_project tests/dbt
bench: setup ## throughput and latency, as ratios measured in the same run
	$(MP) bench
clean: ## stop the server and remove everything that was made here
	-test -x $(MP) && $(MP) server down
	rm -rf .venv .venv-bench .marketprism target logs *.egg-info

.PHONY: help setup torch up down status migrate ingest build demo train score refresh-candidates report catalog docs test lint bench clean
