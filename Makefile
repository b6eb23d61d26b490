# Every target sets up what it needs in .venv, from nothing but Python (>= 3.11), make and a package index.
PYTHON ?= python3
PYTHONS ?= 3.11 3.12 3.13
FUZZ_CASES ?= 20000
BIN := .venv/bin
QGIS_PYTHON ?= /usr/bin/python3
APART := build/apart
TESTS := -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# Compiled code is kept, whatever the shell says: else each process of the suite compiles package and tests anew.
export PYTHONDONTWRITEBYTECODE :=
# No notice of Material's successor at each build.
export NO_MKDOCS_2_WARNING := 1

.PHONY: demo docs pictures test slow fuzz check dist lowest pythons audit install format lint types clean
.PHONY: qgis-plugin qgis-templates

demo: install  ## the main job on made-up scenes: train, predict, evaluate, draw (into demo/)
	$(BIN)/geood demo --out demo --overwrite

docs: install  ## the site of the documentation, into build/site; a link that leads nowhere ends it
	$(BIN)/python -m mkdocs build
	@echo "open build/site/index.html"

pictures: install  ## the pictures of the pages anew: the demo into build/demo, drawn, with QGIS too where it is installed
	mkdir -p build
	$(BIN)/geood demo --out build/demo --overwrite
	QGIS_PYTHON=$(QGIS_PYTHON) $(BIN)/python docs/pictures.py build/demo

test: install  ## the test suite in three processes, as some tests wait; more threads in each would wait for one another
	OMP_NUM_THREADS=1 $(BIN)/python $(TESTS)

slow: install  ## the tests that `make test` leaves out: killed in every phase, large networks, more cases of quick laws
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 -m slow

fuzz: install  ## damaged inputs of each kind, FUZZ_CASES of them: about an hour; what breaks the law goes to build/fuzz
	cd tests && PYTHONPATH=.. ../$(BIN)/python -m fuzz --cases $(FUZZ_CASES) --save ../build/fuzz $(FUZZ)

check: install lint types test docs  ## format, lint, types, tests, the site

dist: $(APART)/build  ## wheel and source archive in dist/, and the wheel tried in an empty environment
	rm -rf dist build/lib build/bdist.* *.egg-info
	$(APART)/build/bin/python -m build --outdir dist .
	$(PYTHON) .ci/try_wheel.py dist

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "geood needs Python 3.11 or newer; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet torch==2.13.0 -c constraints.txt
	$(BIN)/python -m pip install --quiet -e '.[dev,docs]' -c constraints.txt
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

$(APART)/build:
	$(PYTHON) -m venv $@
	$@/bin/python -m pip install --quiet build

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

qgis-plugin: build/geood_qgis.zip  ## the QGIS plugin as a file that QGIS installs (build/geood_qgis.zip)

build/geood_qgis.zip: $(wildcard geood_qgis/*) LICENSE .ci/qgis_plugin.py
	$(PYTHON) .ci/qgis_plugin.py $@

qgis-templates:  ## the templates of all styles, saved by QGIS 3.22, whose Python has to be QGIS_PYTHON
	QT_QPA_PLATFORM=offscreen QT_HASH_SEED=0 $(QGIS_PYTHON) .ci/qgis_templates.py geood/geo/qgis/templates

clean:
	rm -rf .venv demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
