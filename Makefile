# Everything a person needs: `make run` to try it, `make test` and `make check` before a commit, `make bench` to compare,
# `make faults` for the long proof that nothing is lost (over an hour; docs/reports/faults.md).
# `make kafka` starts a real Kafka (NODES=3: three) for development; it needs Java 17 and Maven.
# Nothing else is needed but Python 3.11 or newer and make; the tools live in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NODES ?= 1
STAMP := $(VENV)/.set-up

.PHONY: setup run cluster kafka test test-cluster check format bench faults docs dashboards pictures lock clean

setup: $(STAMP)

$(STAMP): requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "eilpost needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@echo "Setting up $(VENV) (once, about two minutes) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python deploy/install.py requirements-dev.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

run: setup
	@$(BIN)/eilpost demo

cluster: setup
	@$(BIN)/eilpost demo --cluster

kafka:
	@exec $(PYTHON) deploy/kafka/broker.py up --nodes $(NODES) --dir var/kafka-$(NODES)

test: setup
	$(BIN)/pytest

# The part of it that needs root, Debian's containerd and Docker, and Go: docs/kubernetes.md is proven by it.
test-cluster: setup
	$(BIN)/pytest -m "kubernetes or helm or docker"

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint deploy/Dockerfile

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup
	$(BIN)/python -m tests.bench

faults: setup
	$(BIN)/python -m tests.faults

docs: setup
	$(BIN)/python -m tests.support.docs.generate
	$(BIN)/python -m deploy.grafana

dashboards: setup
	$(BIN)/python -m deploy.grafana

pictures: setup
	$(BIN)/python -m tests.monitoring.draw

lock:
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --all-extras \
	  --python-version 3.11 pyproject.toml -o requirements-dev.lock
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header \
	  --extra kafka --extra postgres --extra objects --python-version 3.11 pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
