# Needs git, make, python3 >= 3.11 and python3-venv; nothing is installed outside .venv
# (only `make test`, as root on Debian, brings the real servers its tests speak to).

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help setup run test soak check fix openapi migration bench-quick lock

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

setup: $(VENV)/.ready ## make .venv from the hash-locked requirements (run and test do it first)

$(VENV)/.ready: requirements.lock pyproject.toml
	@echo 'Making $(VENV) from requirements.lock; this is done once and takes about half a minute.'
	@PYTHON=$(PYTHON) scripts/venv.sh $(VENV)
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.ready requirements-dev.lock requirements-client.lock
	@echo 'Adding what tests and checks need, from requirements-dev.lock.'
	@$(PIP) install --require-hashes -r requirements-dev.lock
	@$(PIP) install --require-hashes --no-warn-conflicts --upgrade --target $(VENV)/client -r requirements-client.lock
	@touch $@

run: $(VENV)/.ready ## serve on 127.0.0.1:8587; without a relay in the sandbox, where nothing leaves the machine
	@exec $(BIN)/mailchute serve

test: $(VENV)/.dev ## all tests; as root on Debian it first brings Postfix, Exim, OpenSMTPD, Chromium, strace, faketime, curl, nginx, Prometheus, Node and buildah
	@scripts/test-packages.sh
	@$(BIN)/python -m pytest -n 2 $(ARGS)

# Two kinds of crash side by side; `worksteal` lets the second worker begin with one of them.
soak: $(VENV)/.dev ## crashes, power cuts and broken networks at length, then every safeguard taken out once; some 15 minutes
	@scripts/test-packages.sh
	@MAILCHUTE_CRASHES=150 MAILCHUTE_POWER_CUTS=150 MAILCHUTE_BYTES=1 MAILCHUTE_BACKLOG=5000 MAILCHUTE_MACHINE_EXAMPLES=500 \
	  MAILCHUTE_SCALARS=5000 \
	  $(BIN)/python -m pytest -n 2 --dist worksteal -v -rP tests/e2e/test_crash_loop.py tests/e2e/test_power_cut.py \
	  tests/integration/test_every_byte.py tests/contract/test_store_machine.py tests/api/test_circuit.py \
	  tests/api/test_any_scalar.py
	@$(BIN)/python -m scripts.mutations

check: $(VENV)/.dev ## format, lint, types, import contracts, dependencies, spelling, docs drift
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/deptry .
	@$(BIN)/codespell
	@$(BIN)/mailchute openapi --check openapi.json
	@scripts/lint-openapi.sh

fix: $(VENV)/.dev ## format, and mend what the linter can mend
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

openapi: $(VENV)/.ready ## write openapi.json anew
	@$(BIN)/mailchute openapi > openapi.json.new && mv openapi.json.new openapi.json

migration: $(VENV)/.dev ## m="what changes": write an empty schema step in alembic/versions
	@test -n "$(m)" || { echo 'say what changes: make migration m="add the caller column"'; exit 2; }
	@$(BIN)/alembic -c alembic/alembic.ini revision -m "$(m)"

bench-quick: $(VENV)/.dev ## CPU a mail against Debian's smtp-sink at concurrency 1, 16 and 64
	@scripts/test-packages.sh
	@$(BIN)/python -m bench.quick $(ARGS)

lock: ## write the lock files anew (needs uv)
	uv pip compile -q pyproject.toml --extra build --generate-hashes --universal --no-header --no-annotate -o requirements.lock
	uv pip compile -q pyproject.toml --extra build --extra dev --generate-hashes --universal --no-header --no-annotate -o requirements-dev.lock
	echo 'openapi-python-client>=0.29' | uv pip compile -q - --python-version 3.11 --generate-hashes --universal --no-header --no-annotate -o requirements-client.lock
