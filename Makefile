# Every target sets up what it needs, once: a virtual environment with fagen and its test tools.
# After that nothing touches the network until pyproject.toml or constraints.txt changes.

VENV ?= .venv
EXTRAS ?= test
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed-$(shell cat pyproject.toml constraints.txt | cksum | tr -c '0-9\n' -)
DEMO_ENV := FAGEN_DATA_DIR=$(CURDIR)/build/demo/data FAGEN_CACHE_DIR=$(CURDIR)/build/demo/cache

.PHONY: help setup pycuda demo test test-gpu check compile-all snapshots docs size clean evidence

help:
	@echo "make demo         tune, emit and use a package on this machine, against torch"
	@echo "make test         check, then every test that this machine can run"
	@echo "make check        ruff, mypy and the tests of the module layers"
	@echo "make test-gpu     the GPU tests; fails without a GPU"
	@echo "make evidence     everything a GPU has to prove, in steps; goes on where it was stopped"
	@echo "make compile-all  compile every default kernel for every GPU (hours), and write the table"
	@echo "make pycuda       build PyCUDA, also where there is no driver to link it with"
	@echo "make snapshots    rewrite the rendered sources under tests/snapshots"
	@echo "make docs         rewrite what the documents take from --help and the tests"
	@echo "make size         lines by file, and the size of the demo package"

$(STAMP):
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer on the PATH"; exit 1; }
	@command -v $${CXX:-g++} >/dev/null || \
	  { echo "error: no C++ compiler on the PATH"; echo "hint: apt-get install g++"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@if command -v nvidia-smi >/dev/null; then \
	  $(PY) -m pip install --quiet -c constraints.txt -e '.[cuda]' || \
	  $(PY) -m pip install --quiet -c constraints.txt -e '.[nvcc]' || \
	  echo "note: neither PyCUDA nor the nvcc wheels could be installed"; fi
	@rm -f $(VENV)/.installed-*
	@touch $@

setup: $(STAMP)

# PyCUDA comes as source and links libcuda; where no driver is installed, a stub takes its place.
pycuda: $(STAMP)
	$(PY) tests/tools/stub_driver.py build/stub-driver >/dev/null
	@nvcc=$$($(PY) -c 'from fagen.compilers import find_nvcc; print(find_nvcc())') && \
	  PATH="$$(dirname $$(readlink -f $$nvcc)):$$PATH" LIBRARY_PATH=$(CURDIR)/build/stub-driver \
	  $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  "--config-settings=--build-option=--conf:CUDA_ENABLE_CURAND=False" pycuda

demo: $(STAMP)
	$(DEMO_ENV) $(PY) bench/demo.py

test: check
	$(PY) -m pytest --complete tests/unit tests/conformance tests/faults tests/gpu
	$(PY) -m pytest --complete -n auto --dist loadfile tests/emulated tests/compile

check: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -m pytest -q tests/unit/test_layers.py tests/unit/test_startup.py

test-gpu: $(STAMP)
	$(PY) -m pytest --complete tests/gpu

evidence: $(STAMP)
	$(PY) bench/evidence.py build/evidence

compile-all: $(STAMP)
	$(PY) bench/compile_table.py bench/results/compile-table.csv

snapshots: $(STAMP)
	$(PY) -m pytest -q tests/unit/test_snapshots.py --update-snapshots

docs: $(STAMP)
	$(PY) -m pytest -q tests/unit/test_docs.py tests/faults/test_table.py --update-docs

size:
	@git ls-files 'fagen/**' 'templates/**' 'tests/**' 'bench/*.py' | xargs wc -l | sort -n
	@if test -d demo; then du -sh demo; else echo "no demo package yet: make demo"; fi

clean:
	rm -rf build dist demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
