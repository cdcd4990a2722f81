# Every target sets up what it needs: a machine with Python >= 3.11, make and git is enough. `make help` lists the targets.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

EXPERIMENT ?= digits/edm
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS := $(VENV)/.peers
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
FAST_SKIPS := $(addprefix --ignore=tests/,test_packaging.py test_docs.py test_experiments.py test_contract.py test_resume.py)

.PHONY: help install fit test test-fast test-slow test-slurm test-browser lint type docs bench bench-full faults distillation objectives conditioning editing results clean

help: ## list the targets
	@echo "usage: make TARGET [ARGS='...'] [PYTHON=python3.12] [EXPERIMENT=digits/edm]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-13s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: $(STAMP) ## make .venv with diffx (editable) and all tools; done once, again when setup.cfg changes

fit: $(STAMP) ## train EXPERIMENT (digits/edm), then measure its claim; ARGS="trainer.max_steps=100" overrides keys
	$(BIN)/python -m diffx.fit experiment=$(EXPERIMENT) $(ARGS)
	$(BIN)/python -m diffx.evaluate experiment=$(EXPERIMENT)

test: $(STAMP) ## the whole default suite on two workers; ARGS="-k unet" selects
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

test-fast: $(STAMP) ## the quick part: no wheel, no docs, no training
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist worksteal $(FAST_SKIPS) $(ARGS)

test-slow: $(STAMP) ## only the long tests (marker slow)
	$(ONE_THREAD) $(BIN)/python -m pytest -m slow --timeout=3600 $(ARGS)

test-slurm: $(STAMP) ## a real two-node SLURM cluster on this machine: ranks, requeue, resume; as root it installs slurm-wlm and munge
	$(ONE_THREAD) timeout 600 $(BIN)/python -m pytest -m slurm -s tests/test_slurm.py $(ARGS)

test-browser: $(STAMP) ## the studio and the pages in a headless browser; installs Gradio and Playwright, and as root Chromium where it is missing
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[studio]' playwright
	command -v chromium >/dev/null || (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null)
	$(ONE_THREAD) $(BIN)/python -m pytest -m browser tests/studio tests/test_site_browser.py $(ARGS)

lint: $(STAMP) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(STAMP) ## mypy over the package
	$(BIN)/python -m mypy

docs: $(STAMP) ## run the notebooks and build the pages into docs/_build/html, warnings are errors; then run their examples
	$(ONE_THREAD) $(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	$(ONE_THREAD) $(BIN)/python -m sphinx -W --keep-going -q -D nb_execution_mode=off -b doctest docs docs/_build/doctest
	@echo "docs/_build/html/index.html"

bench: $(STAMP) ## time steps, samplers, averages and data beside the peers that are installed (a selection; minutes)
	$(ONE_THREAD) $(BIN)/python -m benchmarks.speed $(ARGS)

bench-full: $(PEERS) ## the same with all peers of the package index, every row, profiles and curves; writes docs/performance/ and the tables of docs/performance.md
	$(ONE_THREAD) $(BIN)/python -m benchmarks.speed --full $(ARGS)
	$(if $(ARGS),,$(ONE_THREAD) $(BIN)/python -m benchmarks.speed.shares)
	$(if $(ARGS),,$(ONE_THREAD) $(BIN)/python -m benchmarks.speed.curves)

faults: $(STAMP) ## kill, damage, starve and spoil small runs, write the table of docs/reliability.md
	$(ONE_THREAD) $(BIN)/python -m benchmarks.faults $(ARGS)

distillation: $(STAMP) ## train all students of the digits where they are missing, measure them, write the tables of docs/techniques/distillation.md
	$(ONE_THREAD) $(BIN)/python -m benchmarks.distillation $(ARGS)

objectives: $(STAMP) ## train U-Net and DiT on the digits under five objectives, write the table of docs/techniques/objectives.md
	$(ONE_THREAD) $(BIN)/python -m benchmarks.objectives $(ARGS)

editing: $(STAMP) ## edit shapes with a trained model, write the figures and pictures of docs/techniques/editing.md
	$(ONE_THREAD) $(BIN)/python -m benchmarks.editing $(ARGS)

conditioning: $(STAMP) ## train the text-conditioned experiments, write the tables of docs/conditioning.md and docs/techniques/knowledge.md
	$(ONE_THREAD) $(BIN)/python -m benchmarks.conditioning $(ARGS)

results: $(STAMP) ## train and measure every experiment that makes a claim, write docs/results/ and the table of docs/results.md; ONLY=digits/dit
	$(ONE_THREAD) $(BIN)/python -m benchmarks.results $(if $(ONLY),--only $(ONLY)) $(ARGS)

clean: ## remove .venv, caches and built files; runs/ stays
	rm -rf $(VENV) build dist *.egg-info docs/_build .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- set-up: one line per stage ----------------------------------------------------------------------------------------------------
# PYTHON names the interpreter; by default the first of these that is 3.11 or newer.
$(BIN)/python:
	@python="$(PYTHON)"; \
	for name in $${python:-python3 python3.12 python3.11 python3.13 python}; do \
		if "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then found=$$name; break; fi; \
	done; \
	if [ -z "$${found:-}" ]; then \
		echo "diffx needs Python 3.11 or newer; tried: $${python:-python3 python3.12 python3.11 python3.13 python}. Name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; \
		exit 1; \
	fi; \
	echo "[1/3] environment $(VENV) with $$("$$found" --version)"; \
	"$$found" -m venv $(VENV)

$(BIN)/uv: | $(BIN)/python
	@echo "[2/3] uv, the installer"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

$(STAMP): setup.cfg pyproject.toml | $(BIN)/uv
	@echo "[3/3] diffx and its dependencies (several GB the first time, hard links from uv's cache afterwards)"
	@start=$$SECONDS; \
	$(BIN)/uv pip install --python $(BIN)/python --link-mode hardlink --compile-bytecode --editable '.[dev,docs]'; \
	echo "ready after $$((SECONDS - start)) s"
	@touch $@

# k-diffusion alone and without its dependencies: of them only the solvers that its sampling module imports are needed.
$(PEERS): setup.cfg | $(STAMP)
	@$(BIN)/uv pip install --python $(BIN)/python --link-mode hardlink --editable '.[bench]'
	@$(BIN)/uv pip install --python $(BIN)/python --no-deps k-diffusion
	@touch $@
