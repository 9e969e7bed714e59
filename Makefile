# make help says what there is. Every command is plain pip, pytest, ruff and mypy underneath; CONTRIBUTING.md shows them without make.
#
#   make test                      with python3, in .venv
#   PYTHON=python3.12 make test    with another interpreter, in an environment of its own (.venv-python3.12)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV ?= .venv$(addprefix -,$(notdir $(filter-out python3,$(PYTHON))))
# Relative on purpose: so a clone whose path holds spaces works too.
RUN := $(VENV)/bin/python -m

# Arguments for the tests and the demo: make test ARGS="-k alert", make demo ARGS="--broken exploding"
ARGS ?=

.PHONY: help
help: ## say what can be made
	@echo "make TARGET [PYTHON=python3.12] [ARGS=...]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(VENV)/installed-demo ## environment, install, and the main job: train on real images, watch the cockpit, write the report
	$(RUN) cockpit_lite demo $(ARGS)

.PHONY: test
test: $(VENV)/installed-test ## environment, install, and all tests
	$(RUN) pytest --numprocesses auto --dist worksteal $(ARGS)

.PHONY: test-models
test-models: $(VENV)/installed-models ## environment, install, and the tests over real model families: torchvision, timm, transformers
	$(RUN) pytest tests/models $(ARGS)

.PHONY: test-integrations
test-integrations: $(VENV)/installed-integrations ## environment, install, and the tests inside Lightning, Hugging Face and the trackers
	$(RUN) pytest tests/integrations $(ARGS)

.PHONY: check
check: $(VENV)/installed-dev ## what a change must pass: ruff, types, tests
	$(RUN) ruff check .
	$(RUN) mypy
	$(RUN) pytest --numprocesses auto --dist worksteal $(ARGS)

.PHONY: lint
lint: $(VENV)/installed-dev ## the quick part of check: ruff and types
	$(RUN) ruff check .
	$(RUN) mypy

# One thread: the demos' nets are small, and on a busy machine two threads mostly wait for each other.
.PHONY: docs
docs: $(VENV)/installed-docs ## environment, install, and the documentation as pages in docs/_build/html
	OMP_NUM_THREADS=1 $(RUN) sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo docs/_build/html/index.html

.PHONY: build
build: $(VENV)/installed-dev ## wheel and sdist in dist/
	$(RUN) build

.PHONY: clean
clean: ## remove builds and caches; environments and runs stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name '.venv*' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp an extra, renewed when pyproject.toml changes: the package itself is installed editable and follows its sources.
$(VENV)/installed-%: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --disable-pip-version-check --editable ".[$*]"
	@touch $@
