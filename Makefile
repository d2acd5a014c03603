# make demo   set up, backtest a forecaster on the series that ships, print its scores, write forecasts and plots
# make test   set up and run the tests
# make fuzz   ten thousand hostile inputs for every reader of files: about an hour
# make notebooks  run them in a kernel and keep their outputs
# make docs   the site with its search, in docs/_build
# make bench  speed and memory beside attention and other implementations: about forty minutes on two free cores
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
OUT    ?= runs/seattle

.PHONY: demo test slow fuzz check notebooks docs bench clean

PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) '.[dev]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/titans-seq forecast backtest --nonnegative precipitation,wind --output $(OUT)

slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto --dist loadfile -m slow

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto --dist loadfile

fuzz: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/fuzz --hypothesis-profile=fuzz --durations=0

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

notebooks: $(VENV)/.installed-dev
	$(BIN)/python notebooks/build.py

docs: $(VENV)/.installed-dev
	$(PIP) '.[dev,docs]'
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --builder html docs docs/_build

bench: $(VENV)/.installed-dev
	$(PIP) '.[dev,bench]'
	$(BIN)/python -m benchmarks.speed --profile

clean:
	rm -rf $(VENV) runs docs/_build docs/notebooks docs/jupyter_execute .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
