# Everything that is done with this checkout. `make help` lists it; the first use makes a virtual environment.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help run test soak check format bench docs constraints lab lab-build lab-down lab-run clean

# Programs and images of the lab, which take minutes to make and are kept (see deploy/lab/README.md).
RUNYARD_LAB ?= $(HOME)/.cache/runyard-lab
export RUNYARD_LAB

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# The newest Python that really runs: the name alone may be a shim of pyenv that only complains, and what it stands
# for lies elsewhere. No shell is started for it unless the environment has to be made.
PYENV = "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions
FIND_PYTHON = for python in $(PYTHON) \
	python3.13 $(PYENV)/3.13.*/bin/python3.13 python3.12 $(PYENV)/3.12.*/bin/python3.12 python3.11 python3; do \
	"$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
		&& command -v "$$python" && exit 0; \
	done; \
	echo 'no Python 3.11 or later with venv was found; name one: make PYTHON=/path/to/python3.13' >&2; exit 1

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python && $(BIN)/python -c '' 2>/dev/null || { \
		python=$$($(FIND_PYTHON)) && rm -rf $(VENV) && echo "making $(VENV) with $$python" && \
		"$$python" -m venv $(VENV); }
	@echo 'installing into $(VENV)'
	@$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt \
		--editable '.[jsonnet,s3,kubernetes,otel]' --group dev
	@touch $@

run: $(STAMP) ## this project's own pipeline, on an embedded Temporal server and local processes
	@$(BIN)/runyard exec $(ARGS)

test: $(STAMP) ## all tests but the long ones; ARGS="tests/graph -x" narrows it
	@bad=; \
	$(BIN)/pytest -n 3 --dist loadfile --max-worker-restart 3 -m 'not soak and not kubernetes' $(ARGS) || test $$? = 5 || bad=1; \
	$(BIN)/pytest -m 'kubernetes and not soak' $(ARGS) || test $$? = 5 || bad=1; \
	test -z "$$bad"

soak: $(STAMP) ## the long ones: kill matrices, large runs
	@$(BIN)/pytest -m soak $(ARGS)

check: $(STAMP) ## format, lint, types, arrows between the rooms, shell, generated pages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --strict deploy/lab/*.py
	$(BIN)/lint-imports
	@command -v shellcheck >/dev/null || { echo 'shellcheck is missing; it is a package of most systems' >&2; exit 1; }
	shellcheck .ci/run $$(git ls-files '*.sh')
	$(BIN)/python docs/generate.py --check

lab: $(STAMP) lab-build ## a real Kubernetes node and MinIO on this machine (Linux, root), with our images
	@$(BIN)/python deploy/lab up && $(BIN)/python deploy/lab images

lab-build: $(STAMP) ## the lab's programs and images, where they are not there; 15 minutes from nothing, once
	@$(BIN)/python deploy/lab build --install

lab-down: $(STAMP) ## stop the lab and remove all but its programs and images
	@$(BIN)/python deploy/lab down

lab-run: $(STAMP) lab-build ## forty tasks through a quota of two pods on the lab, with a bucket, and what that cost
	@$(BIN)/python deploy/lab/run.py

format: $(STAMP) ## bring the code into form
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .

bench: $(STAMP) ## the measurements of benchmarks/RESULTS.md
	@$(BIN)/python -m benchmarks $(ARGS)

docs: $(STAMP) ## pages of docs/reference that are made from code
	@$(BIN)/python docs/generate.py

constraints: ## newest versions of all dependencies, written to constraints.txt
	@rm -rf $(VENV)/.fresh && python=$$($(FIND_PYTHON)) && "$$python" -m venv $(VENV)/.fresh
	@$(VENV)/.fresh/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	@$(VENV)/.fresh/bin/python -m pip install --quiet '.[jsonnet,s3,kubernetes,otel]' --group dev
	@$(VENV)/.fresh/bin/python -m pip freeze --exclude runyard --exclude pip > constraints.txt
	@rm -rf $(VENV)/.fresh

clean: ## remove the environment, caches and what was built; runs and logs in .state stay
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
