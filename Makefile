# The two commands of the README are `make demo` and `make test`; both use the virtual environment in .venv.

PYTHON ?= python3
TORCH_INDEX ?=
DEMO_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check

.PHONY: demo test soak lint types wheel clean

demo: $(VENV)/demo.installed
	$(BIN)/styleinv demo --out demo $(DEMO_FLAGS)

test: $(VENV)/dev.installed
	$(BIN)/pytest

soak: $(VENV)/dev.installed
	$(BIN)/pytest -m soak -s

lint: $(VENV)/dev.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy sees a namespace package in a regular installation only, not in an editable one.
types: $(VENV)/dev.installed
	rm -rf build && $(PIP) install --quiet --no-deps --target build/types .
	MYPYPATH=build/types $(BIN)/mypy -p styleinv.runtime -p styleinv.kernels -p styleinv.training -p styleinv.export

wheel: $(VENV)/dev.installed
	rm -rf dist build && $(BIN)/python -m build --wheel --outdir dist .

clean:
	rm -rf $(VENV) build dist demo *.egg-info

# TORCH_INDEX=URL takes torch from there first, for example from PyTorch's own index of CPU-only builds.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade pip
	$(if $(TORCH_INDEX),$(PIP) install torch --index-url $(TORCH_INDEX))

$(VENV)/%.installed: $(VENV)/bin/python setup.py pyproject.toml constraints.txt
	$(PIP) install --quiet --constraint constraints.txt --editable '.[$*]'
	touch $@
