# `make demo`, `make demo-real` (a real language model, 93 MB) and `make test` set up .venv on first use.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo demo-real test lint slow docs clean
demo: $(VENV)/.ready
	$(BIN)/errata train recipes/demo.yaml

demo-real: $(VENV)/.ready
	$(BIN)/errata train recipes/smollm2.yaml

test: $(VENV)/.ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

slow: $(VENV)/.ready
	$(BIN)/pytest -m slow

docs: $(VENV)/.ready
	$(BIN)/pip install --quiet -c constraints.txt '.[docs]' && $(BIN)/pip install --quiet --no-deps -e .
	HF_HUB_OFFLINE=1 NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Torch first and by the constraints, so that no other build is pulled in by a dependency.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev,math,report]'
	touch $@

clean:
	rm -rf $(VENV)
