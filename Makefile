# make train   trains the language models on text that Python carries, prints their perplexities
# make test    runs every test
# make kernels prints the registers of every CUDA kernel and fails if one spills; needs nvcc
# make bench   times the layers against torch's own and the eager loop
# make gpu     tests and benchmarks on a GPU, in eight minutes; results in bench/results/gpu
# They set up .venv first: the only thing needed is Python 3.10 or later and a C++20 compiler.

PYTHON ?= python3
VENV   ?= .venv
# Which torch to install. The package runs under any torch>=2.10: make TORCH='torch>=2.10' test
TORCH  ?= torch==2.13.0
# Extra arguments for pytest or for the training command: make test ARGS='-k lstm'
ARGS   ?=

BIN     := $(VENV)/bin
SOURCES := setup.py pyproject.toml $(shell find csrc -type f 2>/dev/null)

.PHONY: help train test test-package test-schedules test-emulator kernels bench gpu lint format clean

help:
	@sed -n 's/^# \(make .*\)/  \1/p' Makefile
	@echo '  make lint    ruff and clang-format, as CI runs them'
	@echo '  make format  lets both rewrite the files'
	@echo '  make clean   removes .venv and what was built'

# Threads that spin long while they wait took five times as long beside another busy process.
train: $(VENV)/ready
	GOMP_SPINCOUNT=1000 $(BIN)/bayesrnn train --compare $(ARGS)

# The emulator has one thread and takes longer than everything else: three parts, two at a time.
test: $(VENV)/ready
ifeq ($(strip $(ARGS)),)
	$(MAKE) --no-print-directory -j2 --output-sync=line test-schedules test-emulator test-package
else
	$(BIN)/python -m pytest $(ARGS)
endif
test-schedules: $(VENV)/ready
	$(BIN)/python -m pytest tests/emulator -k every_schedule
test-emulator: $(VENV)/ready
	$(BIN)/python -m pytest tests/emulator -k 'not every_schedule'
test-package: $(VENV)/ready
	$(BIN)/python -m pytest --ignore=tests/emulator

kernels: $(VENV)/ready
	$(BIN)/python tests/kernels.py

# Both heaps: torch's allocator behaviour changes the baseline. Judge by the retained one.
bench: $(VENV)/ready
	$(BIN)/python -m bench.vs_cudnn --out bench/results/cpu_vs_torch.json $(ARGS)
	$(BIN)/python -m bench.vs_cudnn --default-heap --out bench/results/cpu_vs_torch_default_heap.json $(ARGS)
	$(BIN)/python -m bench.vs_cudnn --dtype bfloat16 --out bench/results/cpu_vs_torch_bfloat16.json $(ARGS)
	$(BIN)/python -m bench.mc_predict --out bench/results/cpu_mc_predict.json $(ARGS)
	$(BIN)/python -m bench.vs_loop --out bench/results/cpu_vs_loop.json $(ARGS)
	$(BIN)/python -m bench.memory --out bench/results/cpu_memory.json $(ARGS)

gpu: $(VENV)/ready
	$(BIN)/python -m bench.gpu $(ARGS)

lint: $(VENV)/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs $(BIN)/clang-format --dry-run -Werror

format: $(VENV)/lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs $(BIN)/clang-format -i

# torch comes first: the build needs its headers, and pip must not choose another one later.
$(VENV)/torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet '$(TORCH)'
	@touch $@

$(VENV)/ready: $(VENV)/torch $(SOURCES)
	$(BIN)/pip install --quiet -e '.[train,test]'
	@touch $@

$(VENV)/lint: $(VENV)/torch pyproject.toml
	$(BIN)/pip install --quiet ruff==0.17.6 clang-format==23.1.5
	@touch $@

clean:
	rm -rf $(VENV) build bayesrnn_cuda/*.so *.egg-info
