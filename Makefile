# make help lists the targets. Everything runs in .venv, which is made when it is missing.

PYTHON ?= python3
PRESET ?= demo
DATASETS ?=
VARIANTS ?=
SEEDS ?= 0 1 2
# such as SETTINGS="--epochs 10": what departs from the recipes
SETTINGS ?=
JOBS ?= 0

VENV := .venv/bin
REPRODUCE = $(VENV)/ccrepro reproduce --preset $(PRESET) --seeds $(SEEDS) --jobs $(JOBS) \
  $(if $(DATASETS),--datasets $(DATASETS)) $(if $(VARIANTS),--variants $(VARIANTS)) $(SETTINGS)
# One thread per process: the cores are for several processes, and with one the numbers repeat bit for bit.
PYTEST = OMP_NUM_THREADS=1 $(VENV)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

# Where it is set, as in many containers, every process would compile all of PyTorch's files anew: ten seconds each.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help reproduce plan test test-slow bench lab publish lint format environment upgrade clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

reproduce: environment ## run what is missing, then tables and figures into results/local; all of the demo, or PRESET=…
	@$(REPRODUCE)

plan: environment ## say what reproduce would run, and for how long
	@$(REPRODUCE) --dry-run

test: environment ## run the tests that take two minutes
	@$(PYTEST) -m "not slow"

test-slow: environment ## run the others
	@$(PYTEST) -m slow

bench: environment ## measure our speed beside the authors' way and the limit, into results/local/bench
	@$(VENV)/ccrepro bench

lab: environment ## open the notebooks in JupyterLab
	@$(VENV)/jupyter lab --notebook-dir=. --LabApp.default_url=/lab/tree/notebooks

publish: environment ## for the maintainers: put what was run into results/ and the READMEs
	@$(VENV)/ccrepro publish --lessons

lint: environment ## check formatting, lint, the import layers, and that the notebooks are stripped
	@$(VENV)/ruff check . && $(VENV)/ruff format --check . && $(VENV)/lint-imports --no-cache && $(VENV)/nbstripout --verify --keep-id notebooks/*.ipynb

format: environment ## format the code and strip the notebooks
	@$(VENV)/ruff check --fix . && $(VENV)/ruff format . && $(VENV)/nbstripout --keep-id notebooks/*.ipynb

environment: .venv/installed ## make .venv, with all that is needed

# pip installs uv from the lock, and uv the rest: that is several times as fast as pip.
.venv/installed: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit("ccrepro needs Python 3.11 or newer. Set PYTHON=python3.12, say." if sys.version_info < (3, 11) else 0)'
	@echo "Making .venv: PyTorch and the rest, about 6 GB on disk; a minute with a fast line."
	@$(PYTHON) -m venv .venv
	@sed -n '/^uv==/,/#/p' requirements.lock | \
	  $(VENV)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r /dev/stdin
	@$(VENV)/uv pip install --python $(VENV)/python --require-hashes -r requirements.lock
	@$(VENV)/uv pip install --python $(VENV)/python --quiet --no-deps --no-build-isolation -e .
	@touch $@

upgrade: environment ## renew requirements.lock with the newest versions, and .venv with it
	@$(VENV)/uv pip compile --quiet --upgrade --universal --python $(VENV)/python --python-version 3.11.4 \
	  --generate-hashes --no-emit-index-url --custom-compile-command "make upgrade" \
	  --extra dev --extra images --output-file requirements.lock pyproject.toml
	@$(MAKE) --no-print-directory environment

clean: ## remove .venv and caches; runs and results stay
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache
