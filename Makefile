# Two commands do everything on a fresh Debian machine: `make demo` and `make test`. Each sets up what it needs first;
# once that is done it takes no time.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Test processes: most tests wait for a peer rather than for a processor. Each has its own engine and registries.
WORKERS ?= 4
# Which Docker Engine the tests and benchmarks run on: none for the packaged one, or 26, 28, 28c (see .ci/lane).
ENGINE ?=
ON_ENGINE := $(if $(ENGINE),PATH="$(CURDIR)/.lanes/$(ENGINE)/bin:$$PATH")
# Extra arguments for pytest, the demo, the soak or the benchmarks: make test ARGS="tests/store -x"
ARGS ?=

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup services lane machine demo test fuzz soak check bench deb clean

help:
	@echo 'make demo      show the daemon at work on an engine and a registry of its own (root)'
	@echo 'make test      run all tests against real engines and registries (root)'
	@echo '               ENGINE=26, 28 or 28c: on that Docker Engine, not the packaged one'
	@echo 'make fuzz      try 10,000 new Dockerfiles: read as the engine reads them, built as they were judged (root, hours)'
	@echo 'make soak      break everything under load for 15 minutes, and count what was lost (root)'
	@echo '               ARGS="--minutes 5 --kills 100 --seed 7" for other than 15, 300 and a random one'
	@echo 'make check     lint, types, layers, and the systemd units'
	@echo 'make bench     measure, against the plain tools (root)'
	@echo 'make deb       a Debian package of it all, in build/, for this release of Debian'
	@echo 'make setup     only the virtual environment, $(VENV)/'
	@echo 'make services  only the Debian packages that demo, test and bench need'
	@echo 'make clean     remove everything that these made in this folder'

setup: $(VENV)/.installed

# Debian keeps the half of `venv` that makes pip in a package of its own.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "imagejobd needs Python 3.11 or newer")'
	$(PYTHON) -c 'import ensurepip' 2>/dev/null || .ci/install python3-venv
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

services:
	@.ci/services

lane: services
	@$(if $(ENGINE),.ci/lane $(ENGINE))

demo: setup services
	@PYTHONPATH=tests $(BIN)/python -m demo $(ARGS)

machine: services
	@.ci/machine

test: setup services lane machine
	$(ON_ENGINE) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

fuzz: setup services lane
	$(ON_ENGINE) HYPOTHESIS_PROFILE=fuzz IMAGEJOBD_FUZZ_FILES=10000 $(BIN)/python -m pytest \
		tests/dockerfile/test_dockerfile_oracle.py tests/engine/test_printed_builds.py $(ARGS)

soak: setup services lane
	@$(ON_ENGINE) PYTHONPATH=tests $(BIN)/python -m soak $(ARGS)

check: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	MYPYPATH=packages $(BIN)/mypy packages/deb.py packages/manpage.py
	$(BIN)/lint-imports
	.ci/check-units

bench: setup services lane
	$(ON_ENGINE) PYTHONPATH=tests $(BIN)/python -m bench $(ARGS)

deb: setup
	@PYTHONPATH=$(CURDIR) $(BIN)/python packages/deb.py

clean:
	rm -rf $(VENV) .lanes build .demo *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find imagejobd tests -name __pycache__ -type d -prune -exec rm -rf {} +
