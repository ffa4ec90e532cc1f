PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# torch first and alone: a plain requirement would let pip choose the newest build instead.
TORCH  ?= torch==2.13.0
NATIVE := CMakeLists.txt $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name 'CMakeLists.txt')

.DEFAULT_GOAL := help
.PHONY: help setup

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(READY) ## create .venv and install everything in it, the extension built
