# `make train` and `make test` work on a fresh machine with what README says that it needs.
# One thread per process: two made the same work ten times slower.
export OMP_NUM_THREADS := 1
SHELL := /bin/bash
export WAVGATE_VENV ?= .venv
BIN := $(WAVGATE_VENV)/bin
ARGS ?=
# Where the GPU build of vLLM is installed a run must use it: engine and learner share one GPU of a private Ray.
PLACE := $(shell nvidia-smi -L >/dev/null 2>&1 && echo cluster=gpu1 cluster.address=local)
.DEFAULT_GOAL := help
.PHONY: help install train test test-long test-quick lint bench report tiny-world constraints clean

help:  ## this list
	@sed -nE 's/^([a-z-]+):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

install:  ## .venv with everything; at once when it is there
	@docker/install.sh

train: install  ## the main job; make train ARGS="algo=sft run.steps=20"
	@"$(BIN)/wavgate" train $(PLACE) $(ARGS)

lint: install  ## ruff and mypy
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check --quiet .
	"$(BIN)/mypy"

test: lint  ## ruff, mypy and the tests; make test ARGS="-k gate"
	"$(BIN)/python" -m pytest -n 2 --dist loadgroup -m "not long" $(ARGS)

test-long: install  ## the tests that take minutes each: every family end to end, a submitted job
	"$(BIN)/python" -m pytest -n 2 --dist loadgroup -m long $(ARGS)

test-quick: install  ## what starts no engine; make test-quick PYTHON=python3.13 WAVGATE_VENV=.venv-3.13
	"$(BIN)/python" -m pytest -n 2 --dist loadgroup -m "not heavy and not long" $(ARGS)

bench: install  ## print the measured figures
	"$(BIN)/python" -m bench $(ARGS)

report: install  ## draw the page of a run again; make report RUN=runs/NAME
	@"$(BIN)/wavgate" report $(RUN)

tiny-world: install  ## rebuild the embedded speech, codec and model from nothing
	@command -v flite >/dev/null || { echo "make tiny-world needs flite, the speech synthesiser (Debian: apt-get install flite)" >&2; exit 1; }
	"$(BIN)/python" -m examples.tiny_world.build
	"$(BIN)/python" -m examples.tiny_world.pretrain

# One list for CPU and GPU machines and for CPython 3.11 to 3.13: what only one kind of machine has is left to
# torch's and vLLM's own pins.
constraints:  ## resolve constraints.txt anew
	uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate --extra cpu --extra dev \
		--override docker/cpu-overrides.txt --override docker/pypi-torch.txt pyproject.toml \
		| grep -vE "sys_platform == '(win32|never|emscripten)'|^(torch|triton|apache-tvm-ffi|nvidia-.*|cuda-.*)==|== 's390x'$$|>= '3\.14'" \
		| sed -E "/python_full_version [<>]=? '3\.1[1-3]/! s/ ; .*//" | uniq > constraints.txt

clean:  ## remove the environment and caches; runs and other environments stay
	[ ! -e "$(WAVGATE_VENV)/pyvenv.cfg" ] || rm -rf -- "$(WAVGATE_VENV)"
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name '.venv*' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
