# Every target sets up what it needs in .venv, from nothing but Python (>= 3.11), make and a package index.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test slow check install format lint types clean

demo: install  ## the main job on made-up scenes: train, predict, evaluate, draw (into demo/)
	$(BIN)/geood demo --out demo --overwrite

test: install  ## the test suite in three processes, as some tests wait; more threads in each would wait for one another
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile

slow: install  ## the tests that take minutes: prediction killed again and again
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 -m slow

check: install lint types test  ## format, lint, types, tests

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "geood needs Python 3.11 or newer; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet torch==2.13.0 -c constraints.txt
	$(BIN)/python -m pip install --quiet -e '.[dev]' -c constraints.txt
	touch $@

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: install
	$(BIN)/mypy

format: install  ## rewrite the code in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache
