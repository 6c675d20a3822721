# make demo: everything, from nothing to a text written by a 3-bit model.   make test: the whole suite.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGE_SOURCES := $(shell find skim_export runtime models custom_ops -type f -not -name '*.so' -not -path '*/__pycache__/*' -not -path 'skim_export/models/*')
CPP := $(shell find custom_ops skim_export tests -name '*.cpp' -o -name '*.c' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-slow lint format install clean

demo: install
	$(BIN)/skim-export --model smollm2-135m --bits 3 -o demo/model.onnx --force
	$(BIN)/skim-run demo "What is the capital of France?"

test: install lint
	$(BIN)/pytest -m "not slow"

test-slow: install
	$(BIN)/pytest -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CPP)
	$(BIN)/mypy
	MYPYPATH=benchmarks $(BIN)/mypy benchmarks/*.py

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt CMakeLists.txt README.md $(PACKAGE_SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet ".[bench,dev,opencl,ray,tvm]"
	touch $@

clean:
	rm -rf $(VENV) build demo
