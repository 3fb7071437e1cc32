# The front door: thin targets over the toolkit (.venv/bin/orcheo-db). `make help` lists them.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-builtin-rules
.DEFAULT_GOAL := help

PYTHON ?= python3
TARGET ?= compose
SIZE ?=
WITH ?=
INSTALL_DOCKER ?= yes
CONFIRM ?=
# WITH and SIZE are remembered by `up`; WITH=none goes back to the database alone.
export ORCHEO_DB_WITH := $(or $(WITH),$(ORCHEO_DB_WITH))
ORCHEO_DB := .venv/bin/orcheo-db --target $(TARGET) $(if $(SIZE),--size $(SIZE))
PYTEST := .venv/bin/pytest

.PHONY: help venv up down destroy status dsn psql bootstrap doctor backup restore drill migrate bench-search bench-backup bench-migrate images k8s-images k8s-load k8s-bucket render test test-serial test-faults test-k8s test-terraform-apply test-ansible-full test-unit lint lock

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

venv: ## make the toolkit's own Python environment (.venv)
	@$(PYTHON) ops/setup_venv.py

up: venv ## bring the tier up [SIZE=small|medium|large] [WITH=app] [TARGET=compose|external]
	@$(ORCHEO_DB) up --install-docker $(INSTALL_DOCKER)

down: venv ## stop it; data and secrets stay
	@$(ORCHEO_DB) down

destroy: venv ## remove it with its data, after naming them (CONFIRM=yes)
	@$(ORCHEO_DB) destroy $(if $(CONFIRM),--confirm $(CONFIRM))

status: venv ## what runs, where, and whether an app is served
	@$(ORCHEO_DB) status

dsn: venv ## print the DSN that an app uses (contains its password)
	@$(ORCHEO_DB) dsn

psql: venv ## open psql as the app's role, through PgBouncer
	@$(ORCHEO_DB) psql

bootstrap: venv ## run the init job again (roles, grants, extensions, schema)
	@$(ORCHEO_DB) bootstrap

doctor: venv ## check the running tier against the spec
	@$(ORCHEO_DB) doctor

backup: venv ## make a backup now [TYPE=full|differential|incremental]
	@$(ORCHEO_DB) backup run --type $(or $(TYPE),incremental)

restore: venv ## restore into a new volume beside the running one [TO="2026-11-23 10:15:00+00"]
	@$(ORCHEO_DB) restore $(if $(TO),--to "$(TO)")

drill: venv ## restore the newest backup beside production and prove that it is the same
	@$(ORCHEO_DB) drill

migrate: venv ## copy Orcheo's SQLite files into the (empty) database and compare every row; the old app may go on [SQLITE_DIR=~/.orcheo]
	@$(ORCHEO_DB) migrate run "$(or $(SQLITE_DIR),$(HOME)/.orcheo)"
	@$(ORCHEO_DB) migrate verify "$(or $(SQLITE_DIR),$(HOME)/.orcheo)"
	@echo 'Next: stop the old app, then .venv/bin/orcheo-db migrate cutover "$(or $(SQLITE_DIR),$(HOME)/.orcheo)"'

bench-search: venv ## measure orcheo-db search on a million history steps (some minutes; in schemas of its own)
	@$(ORCHEO_DB) bench search

bench-backup: venv ## measure backups, restores, drills and archiving against baselines (some minutes; on an installation of its own)
	@$(ORCHEO_DB) bench backup

bench-migrate: venv ## measure orcheo-db migrate against plain COPY and Orcheo's own tool [MEGABYTES=400] [KILLS=50] [BASELINES=no] (on an installation of its own)
	@$(ORCHEO_DB) bench migrate $(if $(MEGABYTES),--megabytes $(MEGABYTES)) $(if $(KILLS),--kills $(KILLS)) $(if $(filter no,$(BASELINES)),--no-baselines)

images: venv ## build the images that are missing or out of date
	@$(ORCHEO_DB) images --install-docker $(INSTALL_DOCKER)

k8s-images: venv ## push the images to REGISTRY=... and write the overlay k8s/local that uses them
	@$(ORCHEO_DB) kubernetes images --registry "$(REGISTRY)"

k8s-load: venv ## load the images into a cluster of this machine [CLUSTER=kind|k3s|containerd]
	@$(ORCHEO_DB) kubernetes load --cluster "$(or $(CLUSTER),kind)"

k8s-bucket: venv ## print the Secret of component s3-backup, for `| kubectl apply -f -` (CREDENTIALS=second.toml)
	@$(ORCHEO_DB) kubernetes bucket --credentials "$(CREDENTIALS)"

render: venv ## write the configuration files from ops/spec.toml
	@$(ORCHEO_DB) render

test: venv ## run every test, in two lanes at once (prepares Docker and images itself)
	@.venv/bin/python tests/lanes.py

test-serial: venv ## the same, one after the other
	@$(PYTEST)

test-faults: venv ## break the backups in every way that the tests know (some ten minutes)
	@$(PYTEST) --faults tests/compose

test-k8s: venv ## the whole way on a real cluster: the current kubeconfig context, a namespace of its own (load the images first)
	@$(PYTEST) --live -rs tests/k8s/test_live.py

test-ansible-full: venv ## what `make test` leaves out of Ansible's tests: three hosts, upgrades, a lost host (an hour)
	@$(PYTEST) --slow -rs tests/ansible

test-terraform-apply: venv ## apply, plan without a change and destroy AWS' example against an AWS in memory (some minutes)
	@$(PYTEST) --slow -rs tests/terraform

test-unit: venv ## run the tests that need no Docker
	@$(PYTEST) tests/unit

lint: venv ## ruff, mypy, hadolint, shellcheck, yamllint, compose config, rendered files
	@.venv/bin/python ops/lint.py

lock: venv ## resolve requirements.lock again (needs uv)
	@uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade \
	  --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" --extra dev pyproject.toml -o requirements.lock
