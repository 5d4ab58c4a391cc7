# Each target sets up .venv first if it has to. All it needs is Python 3.11 or newer, and make.
PYTHON ?= python3
PROFILE ?= laptop
JUPYTER_OPTIONS ?=
# How much `make faults` damages and kills.
N ?= 200
UV := $(or $(shell command -v uv),.uv/bin/uv)
BIN := .venv/bin
# Where the data sets lie packed beside the checkout, they are unpacked instead of downloaded.
UNPACK := $(wildcard ../shared/data/unpack.py)

.PHONY: lab test test-slow test-oldest faults course site pictures badges student bench lint lock clean data-archives
.DEFAULT_GOAL := lab

# Says no more than where it serves, which only this machine reaches, and with a token.
lab: data-archives
	$(BIN)/jupyter lab --ip=localhost --log-level=WARN $(JUPYTER_OPTIONS) notebooks/01_mlp_mnist.ipynb

test: data-archives
	$(BIN)/python -m pytest

test-slow: data-archives
	$(BIN)/python -m pytest -m slow

# With the oldest versions that pyproject.toml allows, in an environment of their own (6 GB on Linux): the course in
# short, and the tests of what has failed with old versions before.
test-oldest: .venv-oldest
	.venv-oldest/bin/python -m pytest tests/test_oldest.py tests/cli/test_course.py tests/notebook/test_plots.py

faults: .venv
	LABUTILS_FAULTS=$(N) $(BIN)/python -m pytest -m "" tests/test_faults.py

course: data-archives
	$(BIN)/labutils course --profile $(PROFILE) --to build

# The site of the notebooks as they are committed: nothing is executed.
site: data-archives
	$(BIN)/labutils course --committed --to build

# The README's pictures: an explorer in training, taken in a browser, and a figure of each notebook as it is committed.
pictures: data-archives
	LABUTILS_PICTURES=1 $(BIN)/python -m pytest -m "" -k readme_shows tests/test_docs.py tests/test_browser.py

# Writes where the repository is into all that links to it: make badges REPOSITORY=owner/name
badges: export NEW = $(REPOSITORY)
badges:
	@echo "$$NEW" | grep -Eqx '[A-Za-z0-9-]+/[._-]*[A-Za-z0-9][A-Za-z0-9._-]*' || \
		{ echo "badges: REPOSITORY is '$$NEW', and has to be owner/name" >&2; exit 2; }
	@old=$$(sed -n 's|^repository-code: https://github.com/||p' CITATION.cff) && \
	sed -E -i.old -e "s#(github\.com|/github|/gh|codespaces\.new)/$$old#\1/$$NEW#g" \
		-e "s#//$${old%/*}\.github\.io/$${old#*/}#//$${NEW%/*}.github.io/$${NEW#*/}#g" README.md CITATION.cff && \
	rm README.md.old CITATION.cff.old

student: .venv
	$(BIN)/labutils student --to build/student

bench: data-archives
	$(BIN)/python benchmarks/bench.py

lint: .venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

.venv: pyproject.toml requirements.lock | $(filter .uv/bin/uv,$(UV))
	$(UV) venv --quiet --clear --python $(PYTHON) .venv
	$(UV) pip install --quiet --python .venv --require-hashes --compile-bytecode -r requirements.lock
	$(UV) pip install --quiet --python .venv --no-deps -e .
	touch .venv

.venv-oldest: pyproject.toml | $(filter .uv/bin/uv,$(UV))
	$(UV) venv --quiet --clear --python 3.11 .venv-oldest
	$(UV) pip install --quiet --python .venv-oldest --resolution lowest-direct -e ".[tests,cluster]"
	touch .venv-oldest

.uv/bin/uv:
	$(PYTHON) -m venv .uv
	.uv/bin/python -m pip install --quiet --disable-pip-version-check uv

data-archives: .venv
	$(if $(UNPACK),$(BIN)/python $(UNPACK) $(or $(LABUTILS_DATA),data))

lock: | $(filter .uv/bin/uv,$(UV))
	$(UV) pip compile --quiet --upgrade --universal --generate-hashes --python-version 3.11 --all-extras \
		--custom-compile-command "make lock" --output-file requirements.lock pyproject.toml

clean:
	rm -rf .venv .venv-oldest .uv build .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
