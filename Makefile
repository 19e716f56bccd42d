# make search [ARGS="key=value ..."], make test, make check: each sets up .venv first, if that is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: search test test-slow test-faults check lock clean

search: $(VENV)/.run
	$(BIN)/python -m search.run space=stage_order $(ARGS)

test: $(VENV)/.dev $(VENV)/.moto
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" $(ARGS)

test-slow: $(VENV)/.dev $(VENV)/.moto
	$(BIN)/python -m pytest -m "slow and not faults" $(ARGS)

# injects every fault of FAULTS.md, and writes it
test-faults: $(VENV)/.dev $(VENV)/.moto
	FAULTS_MD=FAULTS.md $(BIN)/python -m pytest tests/faults -n 2 --dist loadfile $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# uv writes lock files with hashes and without addresses
lock:
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header pyproject.toml -o requirements.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --extra dev -c requirements.txt pyproject.toml -o requirements-dev.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header requirements-moto.in -o requirements-moto.txt

clean:
	rm -rf $(VENV)

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.txt
	touch $@

# the newer of the two stamps: what tests need contains what a search needs
$(VENV)/.dev: requirements-dev.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements-dev.txt
	touch $@ $(VENV)/.run

# a server of S3 for tests, a process of its own: it wants another python-dateutil than pandas does
$(VENV)/.moto: requirements-moto.txt | $(VENV)/bin/python
	$(BIN)/python -m venv $(VENV)/moto
	$(VENV)/moto/bin/python -m pip install --quiet --require-hashes -r requirements-moto.txt
	touch $@
