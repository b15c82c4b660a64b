# `make demo` and `make test` work as the first command after `git clone`: Python 3.11+ and make are all they need.
PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help install demo test test-oldest lint docs bench lock wheel image clean

help:  ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 13

install: $(INSTALLED)  ## create .venv and install the locked set

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "microdit needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 install"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	PYTHONDONTWRITEBYTECODE= $(BIN)/uv pip sync --quiet --python $(BIN)/python --compile-bytecode requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

demo: $(INSTALLED)  ## train on the embedded shapes, then show the table and the picture (about 10 minutes on 2 cores)
	$(BIN)/python train.py +experiment=deferred_mask_75

test: $(INSTALLED)  ## every test, a process a core: no network, no GPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test-oldest: $(INSTALLED)  ## network, objectives and training with the oldest torch and libraries that pyproject.toml allows
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python $(OLDEST)
	$(BIN)/uv pip install --quiet --python $(OLDEST)/bin/python --resolution lowest-direct --editable '.[dev]'
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -q -n auto --dist loadfile \
		tests/model tests/masking tests/objectives tests/sampling tests/training/test_run.py tests/training/test_optimizers.py

bench: $(INSTALLED)  ## speed on this machine against named baselines, into benchmarks/RESULTS.md (9 to 10 minutes on 2 cores)
	$(BIN)/python benchmarks/run_all.py

docs: $(INSTALLED)  ## the site, into build/site; ends at a broken link (no network)
	$(BIN)/python docs/assemble.py build/pages
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lint: $(INSTALLED)  ## ruff, format check and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

lock: $(INSTALLED)  ## resolve the dependencies anew
	$(BIN)/uv pip compile pyproject.toml --extra dev --extra slurm --extra tables --extra demo --extra judges --extra docs --extra fid --extra fp8 --extra ray --universal --python-version 3.11 \
		--no-header --upgrade --quiet --output-file requirements.lock

wheel: $(INSTALLED)  ## build dist/: a wheel and a source archive, of the version that git's tags tell
	$(BIN)/uv build --quiet --no-build-isolation --python $(BIN)/python --out-dir dist

image:  ## build the container image, microdit, where docker is
	@command -v docker >/dev/null || { echo "docker is not installed: https://docs.docker.com/engine/install"; exit 1; }
	docker build --tag microdit .

clean:  ## remove .venv and .venv-oldest (runs/ and data/ stay)
	rm -rf $(VENV) $(OLDEST)
