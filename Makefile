# make book   a rendered book whose quickstart has just run here      make test   every test and every notebook
# Works with GNU make 3.81 (macOS) and later. `make help` lists the rest.

.DEFAULT_GOAL := help
.PHONY: help env book class pdf test run grid grid-named bench benchtest gpu serve lint clean distclean

VENV := .venv
CONSTRAINTS ?= constraints.txt
WORKERS ?= 2
# The first Python that is neither too old nor too new; `make PYTHON=/path/to/python3.12 ...` decides otherwise.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && { echo $$p; break; }; done)
PY := $(VENV)/bin/python
# `make PY=python ...` uses an environment that is already there (conda, a container) and makes none.
ENV_STAMP := $(if $(filter command,$(firstword $(origin PY))),,$(VENV)/.made)

# Notebooks must start the kernel of this environment, not one that the user registered under the same name.
export JUPYTER_PREFER_ENV_PATH := 1
export PYDEVD_DISABLE_FILE_VALIDATION := 1
# Where the project lies, if it does: `make book REPOSITORY_URL=https://...` gives pages buttons to launch and to edit them.
REPOSITORY_URL ?=
export REPOSITORY_URL
# A backend set for scripts (Agg) would leave the notebooks without figures: their kernel shows them inline.
unexport MPLBACKEND

help: ## list what can be made
	@echo "make TARGET, where TARGET is one of"
	@awk -F ':[^#]*## ' '/^[a-z]+:.*## /{ printf "  %-10s %s\n", $$1, $$2 }' Makefile

env: $(ENV_STAMP) ## create .venv with the exact versions of constraints.txt (3-5 min the first time)

$(VENV)/.made: pyproject.toml $(wildcard $(CONSTRAINTS))
	@test -n "$(PYTHON)" || { echo "make: step 'environment' failed: no Python 3.11, 3.12 or 3.13 on the PATH."; \
	  echo "      Install one, or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "make: step 'environment' failed: $(PYTHON) is not Python 3.11, 3.12 or 3.13."; \
	  echo "      Name another: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { \
	  echo "make: step 'environment' failed: $(PYTHON) -m venv $(VENV). On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@echo "environment: installing into $(VENV) (some minutes the first time)"; start=$$(date +%s); \
	$(PY) -m pip install -qq --disable-pip-version-check -c $(CONSTRAINTS) -e ".[book,dev]" || { \
	  echo "make: step 'environment' failed: pip could not install the packages (its message is above)."; \
	  echo "      Without a network connection pip needs its cache; run the same command again to go on."; exit 1; }; \
	echo "environment: $$(( $$(date +%s) - start )) s"
	@touch $@

book: $(ENV_STAMP) ## run the quickstart, build the book: _build/html/index.html
	@$(PY) book/build.py

class: $(ENV_STAMP) ## notebooks for students and instructors, slides of eight lessons: _build/class.zip
	@$(PY) book/classroom.py $(ARGS)

pdf: book ## the whole book as one file, printed by Chromium, and linked from its front page: _build/book.pdf
	@$(PY) book/print_pdf.py $(ARGS) && $(PY) book/build.py

test: $(ENV_STAMP) ## all tests and all notebooks (ARGS="-m 'not browser'" and the like are handed to pytest)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist loadfile --nbval --nbval-cell-timeout=600 \
	  tests $(wildcard notebooks) $(ARGS)

run: $(ENV_STAMP) ## one experiment: make run ARGS="--dataset digits --risk upper --scale smoke"
	$(PY) -m rddlib run $(ARGS)

grid: | grid-named $(ENV_STAMP) ## what is missing of a grid: make grid GRID=table1 ARGS="--scale laptop --budget-minutes 60"
	$(PY) -m rddlib grid $(GRID) $(ARGS)

grid-named:
	@test -n "$(GRID)" || { echo "make: say which grid, for example"; \
	  ls data/grids/*.toml 2>/dev/null | sed 's,.*/\(.*\).toml,      make grid GRID=\1,'; exit 1; }

bench: $(ENV_STAMP) ## measure speed against the plain loop, <= 10 min on an idle machine: benchmarks/results/
	$(PY) benchmarks/run_all.py $(ARGS)

gpu: $(ENV_STAMP) ## on a machine with a card: check, measure, then the most valuable runs: make gpu MINUTES=25
	$(PY) benchmarks/gpu_session.py --minutes $(or $(MINUTES),25) --out $(or $(OUT),_gpu) $(ARGS)

benchtest: $(ENV_STAMP) ## the benchmarks' own tests: both ways give the same numbers, ratios keep to their limits
	$(PY) -m pytest benchmarks -o python_files='bench_risk.py test_*.py' -p no:xdist $(ARGS)

serve: ## look at the built book over http, on this machine only
	@test -f _build/html/index.html || { echo "make: there is no book yet: run make book"; exit 1; }
	$(PY) -m http.server --bind 127.0.0.1 --directory _build/html 8000

lint: $(ENV_STAMP) ## ruff and mypy
	$(PY) -m ruff check . && $(PY) -m mypy

clean: ## remove the built book; experiments and the environment stay
	rm -rf _build

distclean: clean ## remove the environment too
	rm -rf $(VENV)
