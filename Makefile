# make demo: everything, from nothing to a text written by a 3-bit model.   make test: the whole suite.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NATIVE := $(shell find custom_ops skim_export/quantize/native -type f)
CPP := $(shell find benchmarks custom_ops skim_export tests -name '*.cpp' -o -name '*.c' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
PYTEST := $(BIN)/pytest --durations=15
# Two processes, each with one thread where a test does not say how many.
IN_PARALLEL := OMP_NUM_THREADS=1 $(PYTEST) -n 2 --dist loadscope --no-loadscope-reorder -m "not slow"
# Modules that take longest come first, so that no process waits for the other's at the end. What benchmarks/test_cuda.py
# builds, custom_ops/cuda waits for, if it comes too early.
LONGEST := $(addprefix tests/,work bundle/test_kernels.py runtime/test_alone.py benchmarks/test_cuda.py pipeline custom_ops)
# Tests that compile, emulate, start clusters or run whole exports.
LONG := benchmarks bundle custom_ops/cuda custom_ops/test_arm.py examples fuzz measure pipeline \
  quantize/test_torch_solver.py runtime/test_alone.py runtime/test_soak.py test_acceptance.py tuning work
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-quick test-slow fuzz lint format install clean

demo: install
	$(BIN)/skim-export --model smollm2-135m --bits 3 -o demo/model.onnx --force
	$(BIN)/skim-run demo "What is the capital of France?"

test: install lint
	$(IN_PARALLEL) $(LONGEST) tests

test-quick: install
	$(IN_PARALLEL) $(LONG:%=--ignore=tests/%)

test-slow: install
	$(PYTEST) -m slow

# Inputs with something wrong in them, a million of them, in under ten minutes.
fuzz: install
	TQDM_DISABLE=1 $(BIN)/python -m tests.fuzz

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CPP)
	$(BIN)/mypy
	MYPYPATH=benchmarks:examples $(BIN)/mypy benchmarks/*.py benchmarks/device_check examples/relax_model

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

# Editable: a change of Python sources needs no installation, one of native sources builds again.
install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml runtime/pyproject.toml constraints.txt build_backend/runtime_dependency.py $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e ./runtime -e ".[bench,dev,opencl,ray,tvm]"
	touch $@

clean:
	rm -rf $(VENV) build demo
