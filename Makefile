# make train: installs, synthesises data, trains, generates.   make check: linters and quick tests (two minutes).
# make test: all checks.   make test-docs: the commands in the documentation.   All targets install first.
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
BIN := $(VENV)/bin

.PHONY: install data train learnt lint check quick test tests test-docs clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: Python 3.10 or newer is needed; choose one: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $@

# the embedded data set: synthesised drum hits, packed as a user would pack a folder
data: data/drums/manifest.json

data/drums/manifest.json: | install
	$(BIN)/python -m audio_diffusion.packing.datasets.drums data/drums_wav
	rm -rf data/drums
	$(BIN)/python make_shards.py input=data/drums_wav output=data/drums

train: install data
	$(BIN)/python train.py experiment=drums name=quickstart
	$(BIN)/python sample.py ckpt=runs/quickstart num_samples=20 output=runs/quickstart/generated

# checks the trained model: classifies 100 generated hits, searches for copies, and measures variety
learnt: install data
	$(BIN)/python benchmarks/learnt.py ckpt=runs/quickstart

PYTEST := $(BIN)/python -m pytest
PARALLEL := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# during development: without tests that start a program or take seconds; linters and tests run in parallel
check: install
	$(MAKE) -j2 lint quick

quick: install
	$(PYTEST) $(PARALLEL) -m "not slow and not documentation"

# the checks of lint run beside the first tests, which mostly wait for Slurm
test: install
	$(MAKE) -j2 lint tests

tests: install
	$(PYTEST) $(PARALLEL) -m "not documentation"

# runs the tutorial's code and every command in the documentation
test-docs: install
	$(PYTEST) -m documentation

clean:
	rm -rf $(VENV) build dist src/*.egg-info
