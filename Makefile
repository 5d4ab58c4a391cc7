# Each target sets up .venv first if it has to. All it needs is Python 3.11 or newer, and make.
PYTHON ?= python3
PROFILE ?= laptop
JUPYTER_OPTIONS ?=
UV := $(or $(shell command -v uv),.uv/bin/uv)
BIN := .venv/bin
# Where the data sets lie packed beside the checkout, they are unpacked instead of downloaded.
UNPACK := $(wildcard ../shared/data/unpack.py)

.PHONY: lab test course student bench lock clean data-archives
.DEFAULT_GOAL := lab

lab: data-archives
	$(BIN)/jupyter lab $(JUPYTER_OPTIONS) notebooks/01_mlp_mnist.ipynb

test: data-archives
	$(BIN)/python -m pytest

course: data-archives
	$(BIN)/labutils course --profile $(PROFILE) --to build

student: .venv
	$(BIN)/labutils student --to build/student

bench: data-archives
	$(BIN)/python benchmarks/bench.py

.venv: pyproject.toml requirements.lock | $(filter .uv/bin/uv,$(UV))
	$(UV) venv --quiet --clear --python $(PYTHON) .venv
	$(UV) pip install --quiet --python .venv --require-hashes --compile-bytecode -r requirements.lock
	$(UV) pip install --quiet --python .venv --no-deps -e .
	touch .venv

.uv/bin/uv:
	$(PYTHON) -m venv .uv
	.uv/bin/python -m pip install --quiet --disable-pip-version-check uv

data-archives: .venv
	$(if $(UNPACK),$(BIN)/python $(UNPACK) $(or $(LABUTILS_DATA),data))

lock: | $(filter .uv/bin/uv,$(UV))
	$(UV) pip compile --quiet --upgrade --universal --generate-hashes --python-version 3.11 --all-extras \
		--custom-compile-command "make lock" --output-file requirements.lock pyproject.toml

clean:
	rm -rf .venv .uv build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
