# make train: everything from nothing to sounds.   make check: lint, types, contracts and quick tests (two minutes).
# make test: all checks.   make test-docs: the commands of the documentation.   Each sets itself up first.
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
BIN := $(VENV)/bin

.PHONY: install data train learnt lint check quick test tests test-docs clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: Python 3.10 or newer is needed; say which: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
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

# has it learnt? names 100 generated hits by a classifier of real ones; looks for copies and for sameness
learnt: install data
	$(BIN)/python benchmarks/learnt.py ckpt=runs/quickstart

PYTEST := $(BIN)/python -m pytest
PARALLEL := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# while you work: no test that starts a program or takes seconds; mypy and the tests run side by side
check: install
	$(MAKE) -j2 lint quick

quick: install
	$(PYTEST) $(PARALLEL) -m "not slow and not documentation"

# the checks of lint run beside the first tests, which mostly wait for Slurm
test: install
	$(MAKE) -j2 lint tests

tests: install
	$(PYTEST) $(PARALLEL) -m "not documentation"

# runs the tutorial's code and every command of the documentation
test-docs: install
	$(PYTEST) -m documentation

clean:
	rm -rf $(VENV) build dist src/*.egg-info
