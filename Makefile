# Everything runs in .venv, which is made on first use and again only when the requirements change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NOTEBOOKS := notebooks
# A cell of a lesson takes at most about 15 s; slow machines get some slack.
NBVAL := --nbval-lax --nbval-current-env --nbval-cell-timeout=300

.DEFAULT_GOAL := help
.PHONY: help lab app lab-html test check notebooks bench-fisher bench-step bench-sweep speech clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

lab: $(VENV)/.installed  ## Set up and open JupyterLab on the first notebook
	$(BIN)/jupyter lab $(NOTEBOOKS)/00_start_here.ipynb $(LAB_OPTIONS)

test: check  ## Set up and run every test, notebooks included
	$(BIN)/python -m pytest $(NBVAL) $(NOTEBOOKS) tests/notebooks tests/browser tests/speech

check: $(VENV)/.tested  ## Lint and unit tests alone
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 tests $(addprefix --ignore=tests/,notebooks browser speech)

app: $(VENV)/.installed  ## Show the λ lab alone as a web page, for a classroom screen
	$(BIN)/voila $(NOTEBOOKS)/app/lambda_lab.ipynb $(APP_OPTIONS)

lab-html: $(VENV)/.installed  ## Write build/lambda_lab.html, a λ slider that needs no kernel and no network
	$(BIN)/python -m ewc_tutorial.course.explorer.page build/lambda_lab.html

notebooks: $(VENV)/.tested  ## Execute the notebooks in place (ONLY="02 03" for some) and refresh their times
	$(BIN)/python -m ewc_tutorial.course.publish $(ONLY)

bench-fisher: $(VENV)/.tested  ## Measure the Fisher engine beside the alternatives
	$(BIN)/python -m benchmarks.bench_fisher
	$(BIN)/python -m benchmarks.bench_fisher_sizes

bench-step: $(VENV)/.tested  ## Measure a training step with EWC beside a plain one
	$(BIN)/python -m benchmarks.bench_step

bench-sweep: $(VENV)/.tested  ## Measure a sweep over λ beside a single run
	$(BIN)/python -m benchmarks.bench_sweep

speech: $(VENV)/.installed  ## Start the speech-corrections service of notebook 10
	$(BIN)/python -m ewc_tutorial.speech

clean:  ## Remove the environment and everything that can be made again
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis tests/artifacts
	find . -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": set PYTHON=/path/to/python3") if sys.version_info < (3, 11) else None'
	@echo "Setting up $(VENV). The first time this downloads PyTorch and takes some minutes."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[all]'
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $@
