# make demo: set up, train, sample, restore, evaluate (3 minutes on two cores after the install)
# make test: set up, run the tests of the library (some 6 minutes after the install)
# make test-commands: whole trainings, samplings and evaluations (some 10 minutes)
# make test-docs: every command and code block of the README and the docs, every table of the paper (5 minutes)
# make test-faults: wrong settings, damaged and hostile files, full disks, random bytes (5 minutes)
# make test-crash: processes that are killed and several at once, full disks, damaged files (12 minutes); the moments are
# drawn by a seed that is printed: CRASH_SEED=N make test-crash repeats them
# make test-slurm: a SLURM of two nodes on this machine (Debian, as root), sweeps and trainings on it (6 minutes)
# make test-web: reports in a browser (Debian, as root, where Chromium is not there yet) (2 minutes)
# make test-wheel: build the wheel, install it elsewhere, train a step with it
# make docs: the documentation as a site in build/site/html, with notebooks that are executed (3 minutes)
# make test-site: builds it strictly and looks at it (4 minutes)
# make lint: style, types, import directions
# TORCH_INDEX=URL takes torch from another index: the CPU-only wheels that pytorch.org/get-started names are 200 MB
# in place of 5 GB

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: setup demo test test-commands test-docs test-faults test-crash test-slurm test-web test-wheel docs test-site lint clean

setup: $(VENV)/.done

$(VENV)/.done: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; this is $$($(PYTHON) --version). Try: make PYTHON=python3.12"; exit 2; }
	@test -x $(BIN)/python || { echo "making $(VENV) ..."; $(PYTHON) -m venv $(VENV); }
	@echo "installing (torch is large: a few minutes on a slow line) ..."
ifdef TORCH_INDEX
	$(BIN)/python -m pip install --disable-pip-version-check --index-url $(TORCH_INDEX) torch torchvision
endif
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[dev]"
	@touch $@

demo: setup
	@$(BIN)/python scripts/demo.py

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not commands and not crash and not faults and not slurm and not docs and not web and not site"

test-commands: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile -m commands

test-docs: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile -m docs

test-faults: setup
	$(BIN)/python -m pytest -n 2 -m faults

test-crash: setup
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m crash tests/crash tests

test-slurm: setup
	$(BIN)/python -m pytest -m slurm tests/slurm

test-web: setup
	@bash tests/web/start-chromium.sh
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -e ".[web]"
	$(BIN)/python -m pytest -m web tests/web

test-wheel: setup
	@bash scripts/test_wheel.sh $(BIN)/python

docs: setup
	@$(BIN)/python -c 'import sphinx' 2> /dev/null || \
	  $(BIN)/python -m pip install --disable-pip-version-check -e ".[docs]"
	$(BIN)/python scripts/build_site.py

test-site: docs
	$(BIN)/python -m pytest -m site

lint: setup
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pyright

clean:
	rm -rf $(VENV) runs/demo
