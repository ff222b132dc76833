# `make train` and `make test` work on a fresh machine with CPython 3.11 or 3.12, git and make.
# One thread per process: two made the same work ten times slower.
export OMP_NUM_THREADS := 1
SHELL := /bin/bash
BIN := .venv/bin
ARGS ?=
# Where the GPU build of vLLM is installed a run must use it: engine and learner share one GPU of a private Ray.
PLACE := $(shell nvidia-smi -L >/dev/null 2>&1 && echo cluster=gpu1 cluster.address=local)
.DEFAULT_GOAL := help
.PHONY: help install train test lint bench report tiny-world constraints clean

help:  ## this list
	@sed -nE 's/^([a-z-]+):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

install:  ## .venv with everything; at once when it is there
	@docker/install.sh

train: install  ## the main job; make train ARGS="algo=sft run.steps=20"
	@$(BIN)/wavgate train $(PLACE) $(ARGS)

lint: install  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint  ## ruff, mypy and the tests; make test ARGS="-k gate"
	$(BIN)/python -m pytest -n 2 --dist loadgroup $(ARGS)

bench: install  ## print the measured figures
	$(BIN)/python -m bench $(ARGS)

report: install  ## draw the page of a run again; make report RUN=runs/NAME
	@$(BIN)/wavgate report $(RUN)

tiny-world: install  ## rebuild the embedded speech, codec and model from nothing
	@command -v flite >/dev/null || { echo "make tiny-world needs flite, the speech synthesiser (Debian: apt-get install flite)" >&2; exit 1; }
	$(BIN)/python -m examples.tiny_world.build
	$(BIN)/python -m examples.tiny_world.pretrain

# One list for CPU and GPU machines: what only one of them has is left to vLLM's own pins.
constraints:  ## resolve constraints.txt anew
	uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate --extra cpu --extra dev \
		--override docker/cpu-overrides.txt pyproject.toml \
		| grep -vE "sys_platform == '(win32|never|emscripten)'|^(triton|apache-tvm-ffi)==|== 's390x'$$|>= '3\.13'" \
		| grep -v '^torch==.*darwin.*and' \
		| sed -E "s/^torch==([0-9.]+).*/torch==\1/; /python_(full_)?version/! s/ ; .*//" | uniq > constraints.txt

clean:  ## remove .venv and caches; runs stay
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
