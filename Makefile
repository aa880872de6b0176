# serve: the lab disks, from a fresh clone.  test: everything.  check: lint and types.  bench: against tgtd.
PYTHON ?= python3
CONFIG ?= configs/lab.toml
ARGS ?=
BIN := .venv/bin

.PHONY: serve test check bench dev clean

serve: .venv/runtime
	$(BIN)/pyiscsi-target serve $(CONFIG)

test: .venv/dev
	scripts/install-test-tools
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal $(ARGS)

check: .venv/dev
	scripts/check

bench: .venv/dev
	scripts/install-test-tools
	$(BIN)/python -m bench $(ARGS)

dev: .venv/dev

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null \
		|| { echo "Python's venv module is missing: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/runtime: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/dev: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,check]'
	@touch $@ .venv/runtime

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
