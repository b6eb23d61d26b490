# Every target sets up what it needs in .venv, from nothing but Python (>= 3.11), make and a package index.
PYTHON ?= python3
PYTHONS ?= 3.11 3.12 3.13
FUZZ_CASES ?= 20000
BIN := .venv/bin
APART := build/apart
TESTS := -m pytest -n 3 --dist loadfile --no-loadscope-reorder

.PHONY: demo test slow fuzz check lowest pythons audit install format lint types clean

demo: install  ## the main job on made-up scenes: train, predict, evaluate, draw (into demo/)
	$(BIN)/geood demo --out demo --overwrite

test: install  ## the test suite in three processes, as some tests wait; more threads in each would wait for one another
	OMP_NUM_THREADS=1 $(BIN)/python $(TESTS)

slow: install  ## the tests that take minutes: prediction and training killed in every phase
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 -m slow

fuzz: install  ## damaged inputs of each kind, FUZZ_CASES of them: about an hour; what breaks the law goes to build/fuzz
	cd tests && PYTHONPATH=.. ../$(BIN)/python -m fuzz --cases $(FUZZ_CASES) --save ../build/fuzz $(FUZZ)

check: install lint types test  ## format, lint, types, tests

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "geood needs Python 3.11 or newer; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet torch==2.13.0 -c constraints.txt
	$(BIN)/python -m pip install --quiet -e '.[dev]' -c constraints.txt
	touch $@

lowest: $(APART)/uv  ## the test suite with the lowest version of everything that pyproject.toml names
	$(APART)/uv/bin/uv venv --quiet --clear --python $(PYTHON) $(APART)/lowest
	$(APART)/uv/bin/uv pip install --quiet --python $(APART)/lowest --resolution lowest-direct -e '.[dev]'
	$(APART)/uv/bin/uv pip list --python $(APART)/lowest
	OMP_NUM_THREADS=1 $(APART)/lowest/bin/python $(TESTS) -W ignore::DeprecationWarning -W ignore::FutureWarning

pythons: $(PYTHONS:%=python-%)  ## the test suite with each Python of PYTHONS that can be had

python-%: $(APART)/uv
	@found= ; for python in python$* $${PYENV_ROOT:-$$HOME/.pyenv}/versions/$*.*/bin/python; do \
	    if $$python -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$*')" 2>/dev/null; then found=$$python; fi; \
	done; \
	if ! $(APART)/uv/bin/uv venv --quiet --clear --python $${found:-$*} $(APART)/python-$*; then \
	    echo "Python $*: not tested, as it is neither here nor to be fetched"; exit 0; \
	fi; \
	$(APART)/uv/bin/uv pip install --quiet --python $(APART)/python-$* -c constraints.txt -e '.[dev]' && \
	$(APART)/python-$*/bin/python --version && \
	OMP_NUM_THREADS=1 $(APART)/python-$*/bin/python $(TESTS)

audit: $(APART)/audit  ## known vulnerabilities of the pins, or, where no database of them can be reached, their dates
	$(APART)/audit/bin/python .ci/audit.py

$(APART)/uv:
	$(PYTHON) -m venv $@
	$@/bin/python -m pip install --quiet uv

$(APART)/audit:
	$(PYTHON) -m venv $@
	$@/bin/python -m pip install --quiet pip-audit

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
