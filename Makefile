# Two commands on a fresh clone, with nothing but Python 3.11 (or later) and pip:
#
#   make demo    build the embedded sample for android-arm64, within 30 MB
#   make test    the whole suite

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# One more than there are cores: some always wait, for a browser or for pip.
WORKERS = $$(( $$(getconf _NPROCESSORS_ONLN) + 1 ))
# Bytecode is kept even where the machine turns that off: processes by the hundred start from it.
PYTEST = PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check

.PHONY: demo test quick lint clean

demo: $(VENV)/demo.stamp
	$(BIN)/edgekit build --target android-arm64 --budget 30MB

test: $(VENV)/test.stamp
	$(PYTEST)

quick: $(VENV)/test.stamp
	$(PYTEST) -m "not slow"

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/demo.stamp: pyproject.toml $(VENV)/venv.stamp
	$(INSTALL) -e '.[build,sample]'
	@touch $@

$(VENV)/test.stamp: pyproject.toml $(VENV)/venv.stamp
	$(INSTALL) -e '.[build,sample,parquet,dev]'
	@touch $@

# Debian keeps the part of venv that installs pip in a package of its own (python3-venv): without
# it, the pip that is there installs one into the new environment.
$(VENV)/venv.stamp:
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "edgekit needs Python 3.11 or later; name one with: make PYTHON=/path/to/python3.11"; exit 1; }
	@{ if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then $(PYTHON) -m venv $(VENV); \
	    else $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install pip; fi; } || \
	    { echo "no virtual environment without pip or venv; on Debian and Ubuntu: sudo apt install python3-venv"; exit 1; }
	@touch $@
