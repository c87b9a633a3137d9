# make help lists the targets. Everything runs in .venv, which is made when it is missing.

PYTHON ?= python3
PROFILE ?= demo
DATASETS ?= $(if $(filter demo,$(PROFILE)),digits,cifar10 cifar100 stl10 imagenet10 imagenet-dogs tiny-imagenet)
# Tables 2 to 4; Table 5 only where the pictures are large enough for its networks.
VARIANTS ?= kmeans-pixels nmf-pixels spectral-pixels agglomerative-pixels untrained cc instance-only cluster-only \
  shared-head no-entropy views-one views-none $(if $(filter demo,$(PROFILE)),,resnet18 resnet50)
SEEDS ?= 0 1 2
# Runs at once: one per core for the demo, else one per GPU. No two share a GPU: what finds none free waits.
GPUS := $(filter-out 0,$(shell nvidia-smi --list-gpus 2>/dev/null | grep -c ^GPU))
JOBS ?= $(if $(filter demo,$(PROFILE)),$(shell nproc 2>/dev/null || echo 2),$(or $(GPUS),1))

VENV := .venv/bin
CCREPRO := $(VENV)/python -m ccrepro
CELLS = $(foreach d,$(DATASETS),$(foreach v,$(VARIANTS),$(foreach s,$(SEEDS),runs/$(PROFILE)/$d/$v-seed$s/run.json)))
STREAMS = $(if $(filter cc,$(VARIANTS)),$(foreach d,$(DATASETS),$(SEEDS:%=runs/$(PROFILE)/$d/cc-seed%/online.json)))
PLAN = --profile $(PROFILE) --datasets $(DATASETS) --variants $(VARIANTS) --seeds $(SEEDS)
LESSONS := 01_method 01_method.ko
REPORTS := 00_datasets 03_main_results 04_augmentation 05_heads 06_backbones 07_evolution 08_cases 09_online
EXECUTED = $(REPORTS:%=results/notebooks/$(PROFILE)/%.ipynb)

# One thread per process: the cores are for several processes, and with one the numbers repeat bit for bit.
export OMP_NUM_THREADS := 1
export PYTHONHASHSEED := 0

.DEFAULT_GOAL := help
.PHONY: help reproduce plan slurm cells streams check tables report lesson test torture bench gpu-pack gpu-home lab lint format \
  environment clean FORCE
.PRECIOUS: runs/%/run.json runs/%/online.json

help: ## list the targets
	@echo "Contrastive Clustering, reproduced. Targets:"
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20
	@echo "Variables: PROFILE=$(PROFILE) DATASETS=\"$(DATASETS)\" SEEDS=\"$(SEEDS)\" JOBS=$(JOBS)"
	@echo "           VARIANTS=\"$(VARIANTS)\""

reproduce: check plan ## run what is missing, then tables, figures and report; by default all of the demo on digits
	@$(MAKE) --no-print-directory $(if $(findstring jobserver,$(MAKEFLAGS)),,-j$(JOBS)) cells \
	  CELLS="$$($(CCREPRO) plan $(PLAN) --cells)"
	@$(MAKE) --no-print-directory -j1 streams
	@$(MAKE) --no-print-directory tables
	@$(MAKE) --no-print-directory report
	@$(CCREPRO) compare --profile $(PROFILE)

plan: environment ## list what is done, what is to run, and how long it may take
	@$(CCREPRO) plan $(PLAN)

slurm: environment ## hand the missing runs to SLURM as one job array; SLURM="--time 24:00:00 --dry-run", say
	@$(CCREPRO) slurm $(PLAN) $(SLURM)

cells: $(CELLS)

# Times are measured here: one after another, on a machine that does nothing else.
streams: $(STREAMS)

runs/%/online.json: runs/%/run.json
	@$(CCREPRO) online $(word 2,$(subst /, ,$*)) --profile $(word 1,$(subst /, ,$*)) \
	  --seed $(word 2,$(subst -seed, ,$(notdir $*)))

# A run is done here when its run.json is: code is no prerequisite, since a pull would retrain for hours. Remove a
# run's folder to ask for it again.
runs/%/run.json: | environment
	@$(CCREPRO) notebook notebooks/02_train.ipynb $(@D)/02_train.ipynb profile=$(word 1,$(subst /, ,$*)) \
	  dataset=$(word 2,$(subst /, ,$*)) variant=$(word 1,$(subst -seed, ,$(notdir $*))) \
	  seed=$(word 2,$(subst -seed, ,$(notdir $*)))

check: environment
	@$(CCREPRO) check $(PLAN)

tables: $(EXECUTED) ## rebuild tables, figures and the README's results from the published records
	@$(CCREPRO) readme

report: environment ## make one page of a profile: claims, tables, figures, where every number comes from
	@$(CCREPRO) report --profile $(PROFILE)

lesson: $(LESSONS:%=results/notebooks/$(PROFILE)/%.ipynb) ## run the lesson top to bottom, in both languages

results/notebooks/$(PROFILE)/%.ipynb: FORCE | environment
	@$(CCREPRO) notebook notebooks/$*.ipynb $@ profile=$(PROFILE)

test: environment ## run the tests
	@$(VENV)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

torture: environment ## kill, damage and mislead it on purpose, and count what is lost (some twenty minutes)
	@$(VENV)/python tests/torture.py

bench: environment ## measure our speed beside the authors' way and the limit
	@$(CCREPRO) bench

gpu-pack: environment ## pack what a lent GPU needs for what gpu.yaml has left (docs/gpu.md)
	@$(CCREPRO) away pack

gpu-home: environment ## bring home what came back from it: FROM="its folders"
	@$(CCREPRO) away home $(FROM)

lab: environment ## open the notebooks in JupyterLab
	@$(VENV)/jupyter lab --notebook-dir=. --LabApp.default_url=/lab/tree/notebooks

lint: environment ## check formatting, lint and that the notebooks are stripped
	@$(VENV)/ruff check . && $(VENV)/ruff format --check . && $(VENV)/nbstripout --verify --keep-id notebooks/*.ipynb

format: environment ## format the code and strip the notebooks
	@$(VENV)/ruff check --fix . && $(VENV)/ruff format . && $(VENV)/nbstripout --keep-id notebooks/*.ipynb

environment: .venv/installed

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "ccrepro: error: Python $$($(PYTHON) -V | cut -d" " -f2) ($(PYTHON)). 3.11 or newer is needed. Set PYTHON=python3.12, say."; exit 2; }
	@echo "Making .venv: PyTorch and the rest, about 6 GB on disk; two minutes with a fast line."
	@$(PYTHON) -m venv .venv
	@$(VENV)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

clean: ## remove .venv and caches; runs and results stay
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache

FORCE:
