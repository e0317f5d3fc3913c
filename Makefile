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
# live and repair: the clock that the tables were built with, as dbt's vars; which chain is live; which model scores
VARS ?= {}
LIVE ?= v1
MODEL ?=
SPEED ?= 1
# chaos
ROUNDS ?= 100
HOURS ?= 24
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
live: setup ## tables kept up to date by the server, a scorer, a status line; until Ctrl-C (after a build)
	$(MP) live run --models "$(LIVE)" --vars '$(VARS)' $(if $(MODEL),--model "$(MODEL)")
replay: migrate ## DATA=… into the raw tables in the order in which it became known, SPEED=1 as fast as it happened
	$(MP) live replay $(if $(DATA),"$(DATA)",$(error replay: say DATA=a folder or file)) --speed "$(SPEED)"
dashboard: setup ## a page of instruments, health, scores, drift; renews itself
	$(MP) dashboard
exporter: setup ## metrics for Prometheus
	$(MP) exporter
quality: setup ## great-expectations over the public models; a failure blocks promotion
	$(MP) quality
repair: setup ## START=… END=… rebuild whole days next door, check, exchange; DRY=1 only says what would change
	$(MP) repair --start "$(START)" --end "$(END)" --vars '$(VARS)' $(if $(DRY),--dry-run)
archive: setup ## old raw days from hot to cold
	$(MP) archive run
backup: setup ## TO=… the whole store
	$(MP) backup create $(if $(TO),"$(TO)",$(error backup: say TO=a new folder))
restore: migrate ## FROM=… a backup into an empty store
	$(MP) backup restore $(if $(FROM),"$(FROM)",$(error restore: say FROM=a backup))
jobs: setup ## what cron should run, and how it last went
	$(MP) job list
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
chaos: torch ## every fault, many rounds, a day of simulated time, every live view against a rebuild: hours
	MARKETPRISM_CHAOS_ROUNDS="$(ROUNDS)" MARKETPRISM_CHAOS_HOURS="$(HOURS)" $(BIN)/pytest tests/chaos tests/integration/test_live_path.py -s -rs
bench: setup ## throughput and latency, as ratios measured in the same run
	$(MP) bench
clean: ## stop the server and remove everything that was made here
	-test -x $(MP) && $(MP) server down
	rm -rf .venv .venv-bench .marketprism target logs *.egg-info

.PHONY: help setup torch up down status migrate ingest build demo train score refresh-candidates report catalog docs live replay dashboard exporter quality repair archive backup restore jobs chaos test lint bench clean
