PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# torch first and alone: a plain requirement would let pip choose the newest build instead.
TORCH  ?= torch==2.13.0
NATIVE := CMakeLists.txt $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name CMakeLists.txt)

ENV    ?= serl_robots/PickCube-v0
SEED   ?= 0
# Cameras to learn from, for example IMAGE_KEYS="front wrist"; empty learns from the state.
IMAGE_KEYS ?=
# Further flags of train_hybrid, for example ARGS="--max_steps 300 --batch_size 32".
ARGS   ?=
FUZZ_SECONDS ?= 600
# Has torch for CUDA, triton, numpy, pytest, pytest-benchmark, pybind11, scikit-build-core, cmake and ninja; nothing is downloaded.
GPU_PYTHON ?= $(PYTHON)
# Interpreters that have other packages, with ":" between them; see benchmarks/bench_peers.py.
PEERS  ?=
# Revision that bench-compare measures beside this tree.
REF    ?= main
empty  :=
DEMOS  := runs/demonstrations/$(notdir $(ENV))_20$(subst $(empty) ,,$(addprefix _,$(IMAGE_KEYS))).pkl
CAMERA_FLAGS := $(if $(IMAGE_KEYS),--image_keys $(IMAGE_KEYS))

.DEFAULT_GOAL := help
.PHONY: help setup train test nightly lint format type test-cpp sanitize fuzz parity bench bench-compare peers gpu-check clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

setup: $(READY) ## create .venv and install everything in it, the extension built

$(READY): pyproject.toml robots/pyproject.toml $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet -e "robots[mujoco]" -e ".[sim,logging,interop,data,dev]"
	touch $@

train: $(READY) ## record 20 demonstrations, then train on PickCube (SEED=0, IMAGE_KEYS="front wrist", ARGS=...)
	test -f $(DEMOS) || $(BIN)/python -m serl_fast.record_demos --env $(ENV) --num_demos 20 --output $(DEMOS) $(CAMERA_FLAGS)
	$(BIN)/python -m serl_fast.train_hybrid --env $(ENV) --demo_paths $(DEMOS) --operator scripted --seed $(SEED) \
	  --training_starts 300 --random_steps 0 --max_steps 60000 --min_utd_ratio 1 --eval_interval 500 \
	  --stop_success_rate 0.98 $(CAMERA_FLAGS) $(ARGS)

test: $(READY) test-cpp ## run every test: native, then Python
	$(BIN)/python -m pytest

nightly: $(READY) test-cpp ## 10 000 property programs and stress tests of a minute each (about 10 minutes)
	$(BIN)/python -m pytest -m nightly tests/replay tests/benchmarks tests/equivalence
	build/native/csrc/tests/store_threads_test 60

lint: $(READY) ## ruff, mypy, import contracts, clang-format, through pre-commit
	$(BIN)/pre-commit run --all-files

format: $(READY) ## rewrite Python and C++ sources in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find csrc -name '*.h' -o -name '*.cpp' | xargs $(BIN)/clang-format -i

type: $(READY) ## mypy alone
	$(BIN)/mypy

CMAKE  := $(BIN)/cmake
CTEST  := $(BIN)/ctest
NATIVE_FLAGS := -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DSERL_FAST_BUILD_PYTHON=OFF -DSERL_FAST_BUILD_TESTS=ON -DSERL_FAST_INSTALL=ON

test-cpp: $(READY) ## native unit tests
	$(CMAKE) -S . -B build/native $(NATIVE_FLAGS) -DCMAKE_BUILD_TYPE=Release
	$(CMAKE) --build build/native
	$(CTEST) --test-dir build/native --output-on-failure

sanitize: $(READY) ## native unit tests under ASan+UBSan and under TSan
	$(CMAKE) -S . -B build/asan $(NATIVE_FLAGS) -DSERL_FAST_SANITIZE=address -DCMAKE_BUILD_TYPE=RelWithDebInfo
	$(CMAKE) --build build/asan
	$(CTEST) --test-dir build/asan --output-on-failure
	$(CMAKE) -S . -B build/tsan $(NATIVE_FLAGS) -DSERL_FAST_SANITIZE=thread -DCMAKE_BUILD_TYPE=RelWithDebInfo
	$(CMAKE) --build build/tsan
	$(CTEST) --test-dir build/tsan --output-on-failure

fuzz: $(READY) ## libFuzzer on the files of a store (FUZZ_SECONDS=600); needs clang++
	$(CMAKE) -S . -B build/fuzz -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DSERL_FAST_BUILD_PYTHON=OFF \
	  -DSERL_FAST_BUILD_FUZZERS=ON -DSERL_FAST_SANITIZE=address -DCMAKE_CXX_COMPILER=clang++
	$(CMAKE) --build build/fuzz
	mkdir -p build/fuzz/corpus
	build/fuzz/csrc/fuzz/open_store_fuzzer -max_total_time=$(FUZZ_SECONDS) -timeout=20 build/fuzz/corpus

peers: $(READY) $(if $(PEERS),,build/peers/.ready build/reverb/.ready) ## this project beside other packages (PEERS=python that has them; else made)
	$(BIN)/python -m benchmarks --suite peers --peers $(or $(PEERS),build/peers/bin/python:build/reverb/bin/python) $(ARGS)

build/peers/.ready: pyproject.toml
	$(PYTHON) -m venv build/peers
	build/peers/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	build/peers/bin/python -m pip install --quiet "$(TORCH)"
	build/peers/bin/python -m pip install --quiet --group peers
	build/peers/bin/python -m pip install --quiet --no-deps --group peers-lerobot
	touch $@

build/reverb/.ready: pyproject.toml
	$(PYTHON) -m venv build/reverb
	build/reverb/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	build/reverb/bin/python -m pip install --quiet --group peers-reverb
	touch $@

parity: $(READY) ## compare with the recordings of the original (SERL_FAST_GOLDEN=../shared/golden)
	$(BIN)/python -m tests.parity.check $(or $(SERL_FAST_GOLDEN),../shared/golden)/*

bench: $(READY) ## the benchmark suite: table and pictures in benchmarks/results (ARGS="--quick", "--full", "--peers PYTHON")
	$(BIN)/python -m benchmarks $(ARGS)

bench-compare: $(READY) ## this tree beside another revision (REF=main); fails where it lost more than 10 % of its speed
	$(BIN)/python -m benchmarks regression --ref $(REF) $(ARGS)

gpu-check: ## every GPU test and the ladder of executions, with GPU_PYTHON's torch, in 10 minutes (ARGS="--output DIR")
	$(GPU_PYTHON) -m pip install --quiet --no-index --no-build-isolation --no-deps -e .
	$(GPU_PYTHON) -m benchmarks.gpu_check $(ARGS)

clean: ## remove builds and caches; runs/ and .venv stay
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
