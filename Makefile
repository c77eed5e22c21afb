# The two commands of the README are `make demo` and `make test`; both use the virtual environment in .venv. On a machine
# with an NVIDIA GPU, `make test-gpu` and `make bench-gpu` use another one, .venv-gpu: onnxruntime and onnxruntime-gpu
# are the same module. For the same reason `make test-quantize`, fp8 and int8, has .venv-quantize.

PYTHON ?= python3
TORCH_INDEX ?=
DEMO_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check

QUANTIZE_VENV := .venv-quantize
QUANTIZE_BIN := $(QUANTIZE_VENV)/bin

GPU_VENV ?= .venv-gpu
GPU_BIN := $(GPU_VENV)/bin
GPU_PACKAGES ?= '.[train,export,runtime-gpu,rtx,bench,kernels]' pytest pytest-timeout hypothesis
TEST_FLAGS ?= --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
TEST_GPU_FLAGS ?=
BENCH_GPU_DIR ?= build/bench-gpu
BENCH_GPU_PRESET ?= paper256
BENCH_GPU_PRECISION ?= fp16
BENCH_GPU_ENGINES ?= rtx tensorrt
BENCH_GPU_CSV ?= benchmarks/results/compare.csv
BENCH_GPU_FLAGS ?=
KERNELS_NETWORK ?= paper256
KERNELS_DTYPES ?= float16
KERNELS_CSV ?= benchmarks/results/kernels.csv
TUNE_GPU_FLAGS ?=

.PHONY: demo demo-train test test-quantize soak lint types wheel clean gpu test-gpu bench-gpu tune-gpu

demo: $(VENV)/demo.installed
	$(BIN)/styleinv demo --out demo $(DEMO_FLAGS)

demo-train: $(VENV)/demo.installed
	$(BIN)/styleinv demo-train --out demo/trained $(DEMO_FLAGS)

# One thread for each process: threads that wait for a core which another process has spin, and steps take seconds.
test: $(VENV)/dev.installed
	OMP_NUM_THREADS=1 $(BIN)/pytest $(TEST_FLAGS)

test-quantize: $(QUANTIZE_VENV)/installed
	$(QUANTIZE_BIN)/pytest tests/export/test_eight_bits.py

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

# Tests that need a GPU skip with a reason where something of it is missing: the report of `styleinv doctor` says what.
test-gpu: gpu $(GPU_VENV)/installed
	$(GPU_BIN)/styleinv doctor
	$(GPU_BIN)/pytest -m gpu $(TEST_GPU_FLAGS)

# An untrained model is as fast as a trained one. An engine that cannot be built is told, and missing in the table.
bench-gpu: $(BENCH_GPU_DIR)/model.safetensors | gpu
	export="$(GPU_BIN)/styleinv export $< --out $(BENCH_GPU_DIR)/model.bundle --precision $(BENCH_GPU_PRECISION)"; \
	$$export --engine inductor || { \
	  echo "bench-gpu: no packages of inductor: the lines above say why" >&2; $$export; \
	}
	for engine in $(BENCH_GPU_ENGINES); do \
	  $(GPU_BIN)/styleinv export $(BENCH_GPU_DIR)/model.bundle --engine $$engine --precision $(BENCH_GPU_PRECISION) \
	    --compute-capability $$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1) \
	  || echo "bench-gpu: no engine of $$engine: the lines above say why" >&2; \
	done
	$(GPU_BIN)/styleinv bench $(BENCH_GPU_DIR)/model.bundle --baseline $(BENCH_GPU_DIR)/model.safetensors \
	  --compare --device cuda --precision $(BENCH_GPU_PRECISION) --csv $(BENCH_GPU_CSV) $(BENCH_GPU_FLAGS)
	for dtype in $(KERNELS_DTYPES); do \
	  $(GPU_BIN)/python -m styleinv.kernels.bench --network $(KERNELS_NETWORK) --dtype $$dtype --csv $(KERNELS_CSV) \
	  || exit 1; \
	done

# Takes a while; what is finished stays. `make bench-gpu` then times the kernels as they were tuned.
tune-gpu: gpu $(GPU_VENV)/installed
	$(GPU_BIN)/styleinv kernels tune --network $(KERNELS_NETWORK) --dtype $(KERNELS_DTYPES) $(TUNE_GPU_FLAGS)

$(BENCH_GPU_DIR)/model.safetensors: $(GPU_VENV)/installed
	mkdir -p $(@D)
	$(GPU_BIN)/styleinv init --preset $(BENCH_GPU_PRESET) --out $@

# Before gigabytes are installed.
gpu:
	@nvidia-smi --query-gpu=name,compute_cap,driver_version --format=csv,noheader 2>/dev/null || { \
	  echo "$(MAKECMDGOALS): found no GPU (nvidia-smi does not list one), expected an NVIDIA GPU and its driver;" \
	    "\`make test\` needs none" >&2; exit 1; }

clean:
	rm -rf $(VENV) $(QUANTIZE_VENV) $(GPU_VENV) build dist demo *.egg-info

# TORCH_INDEX=URL takes torch from there first, for example from PyTorch's own index of CPU-only builds.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade pip
	$(if $(TORCH_INDEX),$(PIP) install torch --index-url $(TORCH_INDEX))

$(VENV)/%.installed: $(VENV)/bin/python setup.py pyproject.toml constraints.txt
	$(PIP) install --quiet --constraint constraints.txt --editable '.[$*]'
	touch $@

# ONNX Model Optimizer wants other versions than constraints.txt has, of all but torch.
$(QUANTIZE_VENV)/installed: setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv $(QUANTIZE_VENV)
	$(QUANTIZE_BIN)/pip --disable-pip-version-check install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) \
	  $(shell grep '^torch==' constraints.txt)
	$(QUANTIZE_BIN)/pip --disable-pip-version-check install --quiet --editable '.[train,export,quantize]' \
	  pytest pytest-timeout
	touch $@

# torch for CUDA brings the one version of Triton that it works with.
$(GPU_VENV)/installed: setup.py pyproject.toml constraints.txt | gpu
	$(PYTHON) -m venv $(GPU_VENV)
	grep -v '^triton==' constraints.txt > $(GPU_VENV)/constraints.txt
	$(GPU_BIN)/pip --disable-pip-version-check install --quiet --constraint $(GPU_VENV)/constraints.txt \
	  --editable $(GPU_PACKAGES)
	touch $@
