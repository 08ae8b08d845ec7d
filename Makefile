# `make help` lists the targets: each has its line after `##`. All of them need Python 3.11 or newer with venv;
# `make kafka` also needs Java 17 and Maven.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NODES ?= 1
VENV_STAMP := $(VENV)/.made
RUN_STAMP := $(VENV)/.run
DEV_STAMP := $(VENV)/.set-up

.DEFAULT_GOAL := help
.PHONY: help setup run cluster kafka test test-fast test-kafka test-faults test-cluster test-journeys check format bench faults fuzz soak docs dashboards pictures man lock clean

help: ## show this list
	@echo "usage: make TARGET"
	@echo
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  \1\t\2/p' Makefile | expand -t 18
	@echo
	@echo "For example:"
	@echo "  make run                          start the demo; it prints what to try"
	@echo "  make kafka NODES=3                and, in another terminal:"
	@echo "  make cluster                      start the demo on a cluster"
	@echo "  make PYTHON=python3.12 setup      use another Python"

$(VENV_STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "eilpost needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make $(VENV): its module venv or ensurepip is not installed;" \
	    "on Debian or Ubuntu: sudo apt-get install $(notdir $(PYTHON))-venv" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(RUN_STAMP): requirements.lock pyproject.toml | $(VENV_STAMP)
	@echo "Setting up $(VENV) to run eilpost (once, about 30 seconds) ..."
	@$(BIN)/python deploy/install.py requirements.lock
	@touch $@

$(DEV_STAMP): requirements-dev.lock pyproject.toml | $(VENV_STAMP)
	@echo "Setting up $(VENV) to test eilpost (once, about two minutes) ..."
	@$(BIN)/python deploy/install.py requirements-dev.lock
	@touch $(RUN_STAMP) $@

setup: $(DEV_STAMP) ## install everything that the targets below need in .venv

run: $(RUN_STAMP) ## start the demo: all roles in one process, with the users alice and bob
	@$(BIN)/eilpost demo

cluster: $(RUN_STAMP) ## start the demo on a cluster of seven processes; needs `make kafka NODES=3`
	@$(BIN)/eilpost demo --cluster

kafka: ## start Apache Kafka for development, NODES=3 for three brokers; needs Java 17 and Maven
	@exec $(PYTHON) deploy/kafka/broker.py up --nodes $(NODES) --dir var/kafka-$(NODES)

# Two processes: tests/support/distribution.py says which tests never run at the same time as others.
TWO_PROCESSES := -n 2 --no-loadscope-reorder

test: setup ## run all tests
	$(BIN)/pytest $(TWO_PROCESSES)

# Markers of tests that need real parts, or long: tests/conftest.py names what each needs.
REAL := postfix or swaks or atheris or systemd or kafka or kafka_cluster or kafka_tools or objects or compose or docker or docker_compose or helm or helm_4 \
  or crds or strimzi or kubernetes or keda or kube_router or prometheus or ordinary_user

test-fast: setup ## run the units, and the contract suites on memory and the embedded log; about 70 s
	$(BIN)/pytest $(TWO_PROCESSES) -q tests/unit tests/contract -m "not ($(REAL) or fault or slow)"

test-kafka: setup ## run the tests that need a real Kafka
	$(BIN)/pytest -m "kafka or kafka_cluster"

test-faults: setup ## run the tests that kill, pause and disconnect processes under load
	$(BIN)/pytest tests/faults -m "not kubernetes"

test-cluster: setup ## run the tests on Kubernetes, Helm and Docker; needs root, containerd, Docker and Go
	$(BIN)/pytest -m "kubernetes or helm or docker"

# Markers of the tests that test-kafka and test-cluster run.
OTHERS := kafka or kafka_cluster or kubernetes or helm or docker

test-journeys: setup ## run the rest: journeys, monitoring, and the slow units and contract suites
	$(BIN)/pytest tests/journeys tests/monitoring tests/fuzz tests/soak -m "not ($(OTHERS))"
	$(BIN)/pytest tests/unit tests/contract -m "($(REAL) or fault or slow) and not ($(OTHERS))"

check: setup ## check format, lint, types and layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint deploy/Dockerfile

format: setup ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup ## measure against Postfix, write docs/reports/performance.md
	$(BIN)/python -m tests.bench

faults: setup ## prove under faults that no message is lost; takes over an hour
	$(BIN)/python -m tests.faults

soak: setup ## relay mail for an hour while a server is killed every minute; writes docs/reports/soak.md
	$(BIN)/python -m tests.soak

fuzz: setup ## give the parsers random input for an hour
	$(BIN)/python -m tests.fuzz

docs: setup ## generate the reference pages and the dashboards
	$(BIN)/python -m tests.support.docs.generate
	$(BIN)/python -m deploy.grafana

dashboards: setup ## generate the dashboards
	$(BIN)/python -m deploy.grafana

man: $(RUN_STAMP) ## write the man pages of all commands to var/man/man1
	@$(BIN)/eilpost man --dir var/man/man1

pictures: setup ## draw the pictures of the dashboards
	$(BIN)/python -m tests.monitoring.draw

lock: $(VENV_STAMP) ## resolve the dependencies and write the lock files
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --all-extras \
	  --python-version 3.11 pyproject.toml -o requirements-dev.lock
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header \
	  --extra kafka --extra postgres --extra objects --python-version 3.11 pyproject.toml -o requirements.lock

clean: ## remove .venv and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
