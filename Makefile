# `make demo` and `make test` need a Python 3.12 or 3.13 and nothing else; they
# make the environment in .venv themselves. PYTHON=/path/to/python names one.

SHELL := /bin/sh
BIN := .venv/bin
DEMO := demo
PYTEST_WORKERS := 2
PYTEST_OPTIONS :=

# Packages of a stack that happens to be set up must not leak into .venv.
unexport PYTHONPATH PYTHONHOME
# Workers share the cores; threads inside each would only get in the way.
test: export OMP_NUM_THREADS = 1
export PYTHONNOUSERSITE = 1
export PYTHON

.PHONY: help environment demo test lint docs clean clean-all
.NOTPARALLEL:

help:
	@echo 'make demo       simulate, restore and compare; the outputs are in $(DEMO)/'
	@echo 'make test       ruff, mypy and pytest'
	@echo 'make lint       ruff and mypy'
	@echo 'make docs       the documentation, into doc/_build/html'
	@echo 'make clean      remove caches, builds and the demonstration'
	@echo 'make clean-all  the same, and the environment'

environment:
	@python=$$(sh tools/find_python.sh .venv) && "$$python" tools/make_environment.py .venv

demo: environment
	$(BIN)/latent-coadds demo --output $(DEMO)

test: lint
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) $(PYTEST_OPTIONS)

lint: environment
	$(BIN)/ruff check
	$(BIN)/mypy

docs: environment
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r tools/requirements-docs.txt -c tools/requirements.txt
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet doc doc/_build/html
	@echo 'The documentation is doc/_build/html/index.html'

clean:
	rm -rf $(DEMO) build dist doc/_build doc/_generated python/*.egg-info .pytest_cache .mypy_cache .ruff_cache
	find python tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

clean-all: clean
	rm -rf .venv
