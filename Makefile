# One virtual environment for everything; `make VENV=somewhere …` picks another.
VENV ?= .venv
PYTHON ?= python3
OUTPUT ?= out/demo
STUDY ?= out/study
PATIENTS ?= 200
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# one worker for each core, each of about 1 GB; torch must not start further threads in them
WORKERS ?= auto
# bytecode is kept (tests start some thirty processes, and each would compile the package again)
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 4 --dist worksteal
TORCH := $(shell grep -m 1 '^torch==' constraints.txt)

.PHONY: help install demo study test lint check wheel docs
.DEFAULT_GOAL := help

help:
	@echo 'make demo    run a synthetic CT/MR/PET patient with known truth, print the error before and after'
	@echo 'make test    all tests, fast and slow, with branch coverage (at least 90 %)'
	@echo 'make check   ruff, mypy, import-linter and the fast tests'
	@echo 'make lint    the same without tests'
	@echo 'make study   the study of docs/study.md, on generated patients (hours; goes on after a stop);'
	@echo '             with OPEN=folder of the open data on real patients as well, PATIENTS=24 in minutes'
	@echo 'make docs    build the site to out/site, strict'
	@echo 'make wheel   build the wheel, look into it and import it'

# torch first and alone: pip then keeps that build for all that depend on it
$(INSTALLED): pyproject.toml constraints.txt
	@echo 'installing into $(VENV): a few minutes the first time'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt '$(TORCH)'
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

install: $(INSTALLED)

demo: install
	$(BIN)/fusion-pipeline demo --output $(OUTPUT)

study: install
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/study.py --output $(STUDY) --patients $(PATIENTS) \
		--page docs/study.md $(if $(OPEN),--open $(OPEN))

test: install
	$(PYTEST) --cov --cov-branch --cov-report=term --cov-fail-under=90

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint
	$(PYTEST) -m 'not slow'

docs: install
	$(BIN)/mkdocs build --quiet

wheel: install
	rm -rf dist build
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	rm -rf build
	$(BIN)/python .ci/check_wheel.py dist/*.whl
