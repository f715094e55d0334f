# `make test` on a fresh clone needs only Python 3.11+ and a C compiler.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet

# One thread a process: the sizes here are too small to share a product between cores.
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1
# Where it is set, each of some hundred processes would compile what it imports anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup test test-long lint quickstart chaos-short chaos-s3 chaos-many chaos benchmarks benchmarks-evaluation clean

setup: $(VENV)/ready

# The pip that Python 3.11 brings takes three times as long to find out what to install. It would compile on one core,
# and everything: half of it is tests and models that nobody imports. The few files that do not compile are templates and
# Python 2's.
SELDOM := /(tests?|testing|rllib|dashboard)/|/transformers/models/|/(chardet|databricks|pip|nltk|fontTools|pygments)/
$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, found " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install pip==26.2.1
	$(PIP) install --no-compile --constraint constraints.txt torch
	$(PIP) install --no-compile --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m compileall -qq -j 0 -x '$(SELDOM)' $(VENV)/lib || true
	touch $@

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

test: setup
	$(BIN)/pytest --numprocesses 4 --dist loadfile --no-loadscope-reorder --durations 20

test-long: setup
	$(BIN)/pytest -m long

quickstart: setup
	$(BIN)/massive-sft tiny quickstart
	$(BIN)/massive-sft run sweeps/quickstart.yaml
	@echo
	@echo "The report:    quickstart/ledger/sweeps/quickstart/report/report.html"
	@echo "The MLflow UI: $(BIN)/massive-sft ui sweeps/quickstart.yaml"

# Kills and stops processes of a real sweep, then compares with an undisturbed one: each kind of fault once, or
# (an hour at most; interrupted, it goes on) each kind in each phase three times.
SEED ?= 1
chaos-short: setup
	PYTHONPATH=tests $(BIN)/python -m chaos --seed $(SEED)

# With an object store: S3=root has all of the ledger there, and each machine a disk of its own.
S3 ?= snapshots
chaos-s3: setup
	PYTHONPATH=tests $(BIN)/python -m chaos --seed $(SEED) --s3 $(S3)

# Three lanes, one of them of two workers, on two nodes of pretended GPUs.
chaos-many: setup
	PYTHONPATH=tests $(BIN)/python -m chaos --scene lanes --seed $(SEED)

chaos: setup
	PYTHONPATH=tests $(BIN)/python -m chaos --seed $(SEED) --times 3 --folder runs/chaos-$(SEED)

benchmarks: setup
	$(PIP) install --constraint constraints.txt --editable '.[benchmarks]'
	$(BIN)/python benchmarks/sft.py

# Evaluation beside lm-eval, on a CPU at rest: ten minutes at most on two cores.
benchmarks-evaluation: setup
	$(PIP) install --constraint constraints.txt --editable '.[benchmarks]'
	$(BIN)/python benchmarks/scorer.py --threads 2 --scale 0.5
	$(BIN)/python benchmarks/generate.py --threads 2 --scale 0.25
	$(BIN)/python benchmarks/sweep.py --cells 3

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
