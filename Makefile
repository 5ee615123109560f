# Every target sets up .venv by itself; nothing but Python is needed beforehand.
PYTHON ?= python3
# For the tests alone; those of extras that are not installed are skipped.
EXTRAS ?= dev,hf,hub,optuna,slurm
BIN    := .venv/bin
CORE   := .venv/.core
DEV    := .venv/.dev
DOCS   := .venv/.docs
RUNS   ?= runs

PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e

# Threads of one process fight for the cores with its neighbours: one each.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo test fuzz slow docs references bench speed lint clean

help:
	@echo "make demo   train the first grid and compare its arms (minutes)"
	@echo "make test   the tests; ORDER=7 shuffles them; 'make slow' runs those over ten seconds"
	@echo "make fuzz   the property tests with random inputs, EXAMPLES=2000 of each (minutes)"
	@echo "make docs   the documentation site, into build/site"
	@echo "make references   write docs/routers.md and docs/result.md from the tests and the schema"
	@echo "make bench  time layers, steps, routers, harness and grid against docs/bench (minutes)"
	@echo "make lint   ruff, mypy and import-linter"
	@echo "make clean  remove .venv, caches and build output; runs are kept"

$(CORE): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP_INSTALL) .
	@touch $@

$(DEV): $(CORE)
	$(PIP_INSTALL) ".[$(EXTRAS)]"
	@touch $@

$(DOCS): $(CORE)
	$(PIP_INSTALL) ".[docs]"
	@touch $@

demo: $(CORE)
	$(BIN)/router-lab train grid=first_look out=$(RUNS)
	$(BIN)/router-lab compare $(RUNS)/first_look
	@echo
	@echo "Curves: $(BIN)/router-lab board $(RUNS)/first_look   (TensorBoard on http://localhost:6006)"

# A number shuffles the tests: `make test ORDER=7`.
ORDER  ?=
RANDOM := -p randomly --randomly-seed $(ORDER) --randomly-dont-reset-seed --no-loadscope-reorder
test: $(DEV)
	$(BIN)/python -m pytest -q -n auto --dist loadfile -m "not slow" $(if $(ORDER),$(RANDOM))

EXAMPLES ?= 2000
fuzz: $(DEV)
	EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest -q -n auto -m hypothesis \
		--hypothesis-profile fuzz --timeout 0

# Compares with the committed figures; they and docs/speed.md stay as they are.
bench: $(DEV)
	$(BIN)/router-lab bench all --against docs/bench --out build/bench

# The same on a quiet machine, to be committed.
speed: $(DEV)
	$(BIN)/router-lab bench all --against docs/bench --out docs/bench
	$(BIN)/python docs/make_speed.py

slow: $(DEV)
	$(BIN)/python -m pytest -q -m slow

docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "Read it: $(BIN)/python -m http.server --directory build/site   (http://localhost:8000)"

references: $(DEV)
	$(BIN)/python -m pytest -q -n auto --dist loadfile --record-references router_lab/commands/references.json \
		$$(grep -rl --include='test_*.py' reference_check tests)
	$(BIN)/python docs/make_routers.py
	$(BIN)/python docs/make_result.py

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file tests/mypy.ini
	$(BIN)/lint-imports

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
