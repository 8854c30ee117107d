# make setup | demo | test | lint | bench | clean
#
#   PYTHON       the interpreter that makes .venv, 3.11 or newer        make setup PYTHON=python3.12
#   TORCH_INDEX  the index for torch and torchvision alone              make setup TORCH_INDEX=<index of CPU builds>
#   JOBS, ARGS   pytest processes; more arguments for pytest            make test JOBS=4 ARGS="-k padding"
#                and for bench, which times all parts unless told which  make bench ARGS="encoders --rounds 3"
#
# setup runs again only when pyproject.toml or constraints.txt is newer than its stamp; for a fresh start remove .venv.

PYTHON ?= python3
TORCH_INDEX ?=
JOBS ?= 2
ARGS ?=

BIN := .venv/bin
STAMP := .venv/.seqformer-setup
INSTALL := -c constraints.txt -e '.[all,dev]'

# albumentations asks the network for its newest version at import unless told not to.
export NO_ALBUMENTATIONS_UPDATE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.PHONY: help setup demo test lint bench clean
.DELETE_ON_ERROR:

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

setup: $(STAMP)

# uv reads neither pip's configuration nor PIP_FIND_LINKS, so a folder of wheels named there is passed on to it.
$(STAMP): pyproject.toml constraints.txt
	@set -e; start=$$(date +%s); say() { echo "setup: $$*"; }; \
	new_enough='import sys; sys.exit(sys.version_info < (3, 11))'; \
	if ! $(BIN)/python -c "$$new_enough" 2>/dev/null; then \
	    $(PYTHON) -c "$$new_enough" || { say "needs Python 3.11 or newer; name one: make setup PYTHON=python3.11"; exit 1; }; \
	    say "making .venv with $$($(PYTHON) --version)"; \
	    $(PYTHON) -m venv --clear .venv; \
	fi; \
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null; \
	[ -x $(BIN)/uv ] || $(BIN)/python -m pip install -qq -c constraints.txt uv || say "no uv, so pip does the work"; \
	if [ -n "$(TORCH_INDEX)" ]; then \
	    say "installing torch and torchvision from TORCH_INDEX"; \
	    torch="--no-deps --index-url $(TORCH_INDEX) -c constraints.txt torch torchvision"; \
	    UV_FIND_LINKS= $(BIN)/uv pip install -q --python $(BIN)/python $$torch \
	        || PIP_FIND_LINKS= $(BIN)/python -m pip install -qq $$torch; \
	fi; \
	links="$${UV_FIND_LINKS:-$${PIP_FIND_LINKS:-$$($(BIN)/python -m pip config get global.find-links 2>/dev/null || true)}}"; \
	links=$$(echo $$links | tr ' ' ','); \
	say "installing seqformer[all,dev] at the versions of constraints.txt (first time: 1.7 GB, a minute or two)"; \
	if ! UV_FIND_LINKS="$$links" $(BIN)/uv pip install -q --python $(BIN)/python $(INSTALL); then \
	    say "uv could not install it; trying pip, which takes a few minutes"; \
	    $(BIN)/python -m pip install -qq $(INSTALL); \
	fi; \
	if ls -d .venv/lib/python*/site-packages/nvidia_* >/dev/null 2>&1 && ! nvidia-smi -L >/dev/null 2>&1; then \
	    say "WARNING: a CUDA build of torch was installed (nvidia- packages, several GB) but no GPU is visible;" \
	        "for the CPU build: rm -rf .venv && make setup TORCH_INDEX=<index of CPU builds>"; \
	fi; \
	touch $@; say "done in $$(($$(date +%s) - start)) s"

demo: setup
	$(BIN)/python -m competitions.librispeech.demo

test: setup
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) $(ARGS)

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check

bench: setup
	$(BIN)/seqformer bench $(ARGS)

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
