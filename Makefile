# `make demo` and `make test` need Python 3.11 and make, nothing else: they build .venv themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export HF_HUB_OFFLINE = 1

.PHONY: demo test check format lint types floors docs audit clean

demo: $(STAMP)
	rm -rf runs/demo
	$(BIN)/weightsmith run --stage full --data-path digits --val-ratio 0.3 \
		--edit-method alphaedit head --closed-form --run-name demo

# Files in their order: sorted by how many tests they have, the long ones of few tests would come last, on one of two cores.
test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(STAMP) format lint types floors docs test

format: $(STAMP)
	$(BIN)/ruff format --check .

lint: $(STAMP)
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

floors: $(STAMP)
	$(BIN)/lint-imports

# Strict: a dead link, a page outside the navigation, or a docstring that cannot be read is an error. See build/site/index.html.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Fails where an installed package has a known vulnerability; where nobody can be asked it says so in a line and goes on.
audit: $(STAMP)
	$(BIN)/python .ci/audit.py $(BIN)/pip-audit

# torch is pinned in constraints.txt rather than in pyproject.toml, so that a user with a GPU gets their own build.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "weightsmith needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) runs build/site
