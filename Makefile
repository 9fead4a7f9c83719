# Airloop's commands. `make` alone lists them. Each one does its own set-up; a second time that costs nothing.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= $(shell command -v python3.11 || command -v python3)
UV_VERSION := 0.13.8
BIN := .venv/bin
UV := $(BIN)/uv
STAMP := .venv/.airloop-set-up
# uv does not read pip's configuration: a folder of wheels that pip knows (a CPU build of torch, say) is told to it here.
export UV_FIND_LINKS ?= $(or $(PIP_FIND_LINKS),$(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null))
export UV_LINK_MODE ?= copy
# One thread a process for OpenMP: contended threads turn seconds into minutes on a small machine.
export OMP_NUM_THREADS ?= 1

# Some machines set it; uncompiled, the libraries of the lock take three times as long to import.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help:  ## this list
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

.PHONY: setup
setup: $(STAMP)  ## the virtual environment .venv with everything that requirements.txt locks

$(STAMP): requirements.txt pyproject.toml
	@started=$$(date +%s.%N); \
	test -n "$(PYTHON)" || { echo "make: no python3 on the PATH; name one: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
	  || { echo "make: $(PYTHON) is $$($(PYTHON) -V 2>&1); Airloop's lock is for Python 3.11: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }; \
	test -x $(BIN)/python || $(PYTHON) -m venv .venv; \
	$(UV) --version 2>/dev/null | grep -q ' $(UV_VERSION)' || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION); \
	echo "Installing what requirements.txt locks into .venv ..."; \
	test -n "$$UV_FIND_LINKS" || unset UV_FIND_LINKS; \
	$(UV) pip install --quiet --python $(BIN)/python --compile-bytecode -r requirements.txt; \
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .; \
	touch $@; mkdir -p data; \
	printf '{"setup_s": %.1f}\n' "$$(echo "$$(date +%s.%N) $$started" | awk '{print $$1 - $$2}')" | tee data/setup.json

.PHONY: up down status demo try new-project
up: setup  ## start Airflow, MLflow and serving; wait until each answers; print addresses and login
	@$(BIN)/airloop up
down: setup  ## stop all of it, leaving no process behind
	@$(BIN)/airloop down
status: setup  ## what runs where
	@$(BIN)/airloop status
demo: setup  ## the whole loop on a year of real flights, with the served model's figures at the end
	@$(BIN)/airloop demo
try: setup  ## one stage as its real DAG on a sample, in a scratch store: make try PROJECT=flights STAGE=train [ROWS=5000]
	@$(BIN)/airloop try $(PROJECT) $(STAGE) $(if $(ROWS),--rows $(ROWS))
new-project: setup  ## scaffold a project: make new-project NAME=returns KIND=binary
	@$(BIN)/airloop new-project $(NAME) $(if $(KIND),--kind $(KIND))

.PHONY: secrets
PROFILE ?= compose
secrets: setup  ## the settings file .env of a profile, with a secret of its own in each place: make secrets [PROFILE=kubernetes]
	@$(BIN)/airloop secrets --profile $(PROFILE) --file $(ENV_FILE)

.PHONY: lint format test test-loop test-liveness test-cluster soak-cluster soak-serving soak-attacks
lint: setup  ## style, types and the walls between the rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
format: setup  ## let ruff lay out the code and mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
test: lint  ## everything: lint, then the fast tests, then those that start real services
	$(BIN)/pytest tests/unit tests/architecture tests/dags -n 2 --dist loadfile
	$(BIN)/pytest tests/loop tests/cluster tests/serving tests/integration -n 3 --dist loadfile --no-loadscope-reorder # much of it waiting, so one more than two cores; the whole loops first
	@echo "skipped: tests/images (builds all images, with Podman and as root): make test-images"
test-liveness: setup  ## kills, lost events, pauses and cleared runs at random: the loop goes on: make test-liveness [EXAMPLES=10000]
	AIRLOOP_TEST_LIVENESS_EXAMPLES=$(or $(EXAMPLES),10000) $(BIN)/pytest tests/unit/loop/test_liveness.py
test-cluster: setup  ## training pods on the cluster that KUBECONFIG names, every failure made for real (see tests/cluster/conftest.py)
	AIRLOOP_TEST_SLOW=yes $(BIN)/pytest tests/cluster
soak-cluster: setup  ## the failures of training pods, ten times each; the result goes to bench/results/soak_cluster.json
	@$(BIN)/python -m bench.soak_cluster $(if $(TIMES),--times $(TIMES))
soak-serving: setup  ## good and bad requests for half an hour: no fault, no hang, steady memory; the result goes to bench/results/serving_soak.json
	@$(BIN)/python -m bench.serving_soak $(if $(MINUTES),--minutes $(MINUTES))
soak-attacks: setup  ## attackers beside a well-behaved client for ten minutes: no error, no slower, steady memory; the result goes to bench/results/soak_attacks.json
	@$(BIN)/python -m bench.soak_attacks $(if $(MINUTES),--minutes $(MINUTES))
test-loop: setup  ## a short replay through a real stack: reruns of every DAG, kill -9 of tasks
	$(BIN)/pytest -x tests/loop

.PHONY: mutate
mutate: setup  ## how many small changes of the code the tests notice, on a sample of each room: make mutate [ROOM=gate] [SAMPLE=60]; the result goes to bench/results/mutants.json
	@PATH="$(BIN):$$PATH" $(BIN)/python -m bench.mutants $(if $(ROOM),--room $(ROOM)) $(if $(SAMPLE),--sample $(SAMPLE)) $(if $(SEED),--seed $(SEED))

.PHONY: bench-serving bench-parse bench-loop bench-check bench-pods bench-reading
bench-reading: setup  ## files of which it is known what is in them (dialects, encodings, Arrow's types, hostile Parquet, JSON): 0 may be read wrong; the result goes to bench/results/reading.json
	@$(BIN)/python -m bench.bench_reading $(if $(SEED),--seed $(SEED))
bench-check: setup  ## recompute the demo's figures from the prediction log and the raw data, independently
	@$(BIN)/python -m bench.check_demo
bench-parse: setup  ## what parsing the DAG files costs beside a file that only imports airflow.sdk
	@$(BIN)/python -m bench.bench_parse
bench-pods: setup  ## what Airflow and Kubernetes add to a training pod: from the task's start to user code, from the pod's end to the task's
	@$(BIN)/python -m bench.bench_pods $(if $(RUNS),--runs $(RUNS))
bench-serving: setup  ## serving beside mlflow models serve, MLServer, BentoML and the bare server; the result goes to bench/results/serving.json
	@$(BIN)/python -m bench.bench_serving $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SECONDS_EACH),--seconds $(SECONDS_EACH))
bench-loop: setup  ## what Airflow adds to the work itself, stage by stage
	@$(BIN)/python -m bench.bench_loop

.PHONY: docs
docs: setup  ## docs/DAGs.md from the DAGs themselves, docs/lifecycle.md from the states, .env.<profile>.example from the settings
	@$(BIN)/python -m docs.dags_page
	@$(BIN)/python -m docs.lifecycle_page
	@$(BIN)/python -m docs.settings_files

.PHONY: lock
lock: setup  ## resolve pyproject.toml again into requirements.txt, keeping the versions that still fit
	@# For all of 3.11 (--python-version), whichever it runs on: Debian 12's Python is 3.11.2.
	$(UV) pip compile --quiet --group dev --python $(BIN)/python --python-version 3.11.0 --no-header --no-annotate --no-emit-find-links --no-emit-index-url \
	  --output-file requirements.txt pyproject.toml
	@# Neither which build of torch nor what only its CUDA build needs: each machine takes the build that it is offered.
	sed -i -E -e 's/^(torch==[0-9.]+)\+.*/\1/' -e '/^(nvidia-|cuda-|triton==)/d' requirements.txt
	@sed -i '1i # All versions, for Python 3.11 on Linux. Made by `make lock` from pyproject.toml; installed by `make setup`.' requirements.txt
	@$(MAKE) images-lock

IMAGES := airflow mlflow serving training
ENGINE ?= docker
.PHONY: images-lock images test-images
images-lock: setup  ## the images' locks from their requirements.in, with the versions of requirements.txt
	@for image in $(IMAGES); do \
	  lock=deploy/images/$$image/requirements.txt; \
	  $(UV) pip compile --quiet --no-annotate --no-header --no-emit-find-links --no-emit-index-url --python $(BIN)/python --python-version 3.11.0 \
	    --constraint requirements.txt --output-file $$lock $${lock%.txt}.in; \
	  sed -i -E -e 's/^(torch==[0-9.]+)\+.*/\1/' -e '/^(nvidia-|cuda-|triton==)/d' $$lock; \
	  sed -i '1i # All versions of this image. Made by `make images-lock` from requirements.in beside it; the versions are those of the whole.' $$lock; \
	done
images:  ## build the images from their Dockerfiles: make images [ENGINE=podman] [TORCH=cu130]
	@test -z "$$(git status --porcelain)" || { echo "make: an image names its commit; commit or stash first" >&2; exit 1; }
	@for image in $(IMAGES); do \
	  $(ENGINE) build --file deploy/images/$$image/Dockerfile --build-arg GIT_SHA=$$(git rev-parse HEAD) $(if $(TORCH),--build-arg TORCH=$(TORCH)) \
	    --tag airloop-$$image:$$(git rev-parse --short HEAD) .; \
	done

# docker-compose.yaml with Docker, or with Podman: make compose-up COMPOSE=podman-compose ENGINE=podman
COMPOSE ?= docker compose
ENV_FILE ?= .env
COMPOSE_TIMEOUT ?= 900
.PHONY: compose-up compose-down test-compose
compose-up:  ## docker-compose.yaml: build what changed, start everything, wait until it is well (secrets first: make secrets)
	@test -f $(ENV_FILE) || { echo "make: there is no $(ENV_FILE), the settings with the secrets; make it: make secrets" >&2; exit 1; }
	@GIT_SHA=$$(git describe --always --dirty --abbrev=40) $(COMPOSE) --env-file $(ENV_FILE) build
	@$(COMPOSE) --env-file $(ENV_FILE) up --detach --no-build || echo "make: not all of it started; waiting says who" >&2
	@$(PYTHON) deploy/compose/wait.py --engine $(ENGINE) --project "$${COMPOSE_PROJECT_NAME:-airloop}" --timeout $(COMPOSE_TIMEOUT)
compose-down:  ## stop it; the data stay in the volumes (VOLUMES=yes takes them away too)
	@$(COMPOSE) --env-file $(ENV_FILE) --profile celery --profile tools down $(if $(VOLUMES),--volumes)
test-compose: setup  ## docker-compose.yaml really run, with Podman and stand-ins for the images of others (as root; minutes)
	$(BIN)/pytest -s tests/compose
test-images: setup  ## build the images without a registry (Podman, a base by debootstrap; as root) and run them as pods would
	$(BIN)/pytest tests/images
