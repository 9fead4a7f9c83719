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
help:  ## list the commands
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

.PHONY: setup
setup: $(STAMP)  ## create the virtual environment .venv with everything that requirements.txt locks

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
up: setup  ## start Airflow, MLflow and serving, wait until each answers, print addresses and login
	@$(BIN)/airloop up
down: setup  ## stop all services and their processes
	@$(BIN)/airloop down
status: setup  ## show the state, process and address of each service
	@$(BIN)/airloop status
demo: setup  ## replay a year of real flights through the whole loop and print the served model's metrics
	@$(BIN)/airloop demo
try: setup  ## run one stage as its real DAG on a sample, in a scratch store: make try PROJECT=flights STAGE=train [ROWS=5000]
	@$(BIN)/airloop try $(PROJECT) $(STAGE) $(if $(ROWS),--rows $(ROWS))
new-project: setup  ## scaffold a project: make new-project NAME=returns KIND=binary
	@$(BIN)/airloop new-project $(NAME) $(if $(KIND),--kind $(KIND))

.PHONY: secrets
PROFILE ?= compose
secrets: setup  ## create the settings file .env of a profile with generated secrets: make secrets [PROFILE=kubernetes]
	@$(BIN)/airloop init-env --profile $(PROFILE) --file $(ENV_FILE)

.PHONY: lint format test test-fast test-loop test-liveness test-cluster soak-cluster soak-serving soak-attacks
lint: setup  ## check style, types, prose and the import rules between the packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m docs.prose_check
format: setup  ## format the code and apply automatic fixes with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
test: lint  ## run lint, then the fast tests, then the tests that start real services
	@# A failed fast test does not hide what the other tests find. Much of them waits: one process more than two cores, the longest files first.
	fast=0; $(BIN)/pytest tests/unit tests/architecture tests/dags -n 2 --dist loadfile --junitxml data/junit/fast.xml || fast=$$?; \
	$(BIN)/pytest tests/loop tests/cluster tests/serving tests/integration -n 3 --dist loadfile --no-loadscope-reorder --junitxml data/junit/servers.xml && exit $$fast
	@echo "skipped: tests/images (builds all images, with Podman and as root): make test-images"
test-fast: lint  ## run lint, then the tests that need neither servers nor minutes
	$(BIN)/pytest tests/unit tests/architecture tests/dags -m "not slow" -n 2 --dist loadfile --junitxml data/junit/fast.xml
test-liveness: setup  ## test that the loop survives random kills, lost events, pauses and cleared runs: make test-liveness [EXAMPLES=10000]
	AIRLOOP_TEST_LIVENESS_EXAMPLES=$(or $(EXAMPLES),10000) $(BIN)/pytest tests/unit/loop/test_liveness.py -n logical --dist load
test-cluster: setup  ## test training pods with real failures on the cluster of KUBECONFIG (see tests/cluster/conftest.py), each [REPEATS=2] times
	AIRLOOP_TEST_SLOW=yes AIRLOOP_TEST_REPEATS=$(or $(REPEATS),2) $(BIN)/pytest tests/cluster
soak-cluster: setup  ## repeat each failure of training pods ten times, and write bench/results/soak_cluster.json
	@$(BIN)/python -m bench.soak_cluster $(if $(TIMES),--times $(TIMES))
soak-serving: setup  ## send good and bad requests for half an hour, check for faults, hangs and memory growth, and write bench/results/serving_soak.json
	@$(BIN)/python -m bench.serving_soak $(if $(MINUTES),--minutes $(MINUTES))
soak-attacks: setup  ## attack serving for ten minutes, check a well-behaved client and memory growth, and write bench/results/soak_attacks.json
	@$(BIN)/python -m bench.soak_attacks $(if $(MINUTES),--minutes $(MINUTES))
test-loop: setup  ## replay a short period through a real stack, with reruns of every DAG and kill -9 of tasks
	$(BIN)/pytest -x tests/loop

.PHONY: mutate
mutate: setup  ## measure how many code mutations the tests detect, and write bench/results/mutants.json: make mutate [ROOM=gate] [SAMPLE=60]
	@PATH="$(BIN):$$PATH" $(BIN)/python -m bench.mutants $(if $(ROOM),--room $(ROOM)) $(if $(SAMPLE),--sample $(SAMPLE)) $(if $(SEED),--seed $(SEED))

.PHONY: bench-serving bench-parse bench-loop bench-check bench-pods bench-reading
bench-reading: setup  ## read files with known content (dialects, encodings, Arrow's types, hostile Parquet, JSON), and write the errors (0 allowed) to bench/results/reading.json
	@$(BIN)/python -m bench.bench_reading $(if $(SEED),--seed $(SEED))
bench-check: setup  ## recompute the demo's metrics independently from the prediction log and the raw data
	@$(BIN)/python -m bench.check_demo
bench-parse: setup  ## compare the parse time of the DAG files with that of a file that only imports airflow.sdk
	@$(BIN)/python -m bench.bench_parse
bench-pods: setup  ## measure the overhead of Airflow and Kubernetes before and after a training pod
	@$(BIN)/python -m bench.bench_pods $(if $(RUNS),--runs $(RUNS))
bench-serving: setup  ## compare serving with mlflow models serve, MLServer, BentoML and the bare server, and write bench/results/serving.json
	@$(BIN)/python -m bench.bench_serving $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SECONDS_EACH),--seconds $(SECONDS_EACH))
bench-loop: setup  ## measure the overhead of Airflow for each stage
	@$(BIN)/python -m bench.bench_loop

.PHONY: docs
docs: setup  ## generate docs/DAGs.md, docs/lifecycle.md, docs/adr/README.md and .env.<profile>.example from the code
	@$(BIN)/python -m docs.dags_page
	@$(BIN)/python -m docs.lifecycle_page
	@$(BIN)/python -m docs.adr_index
	@$(BIN)/python -m docs.settings_files

.PHONY: lock
lock: setup  ## resolve pyproject.toml into requirements.txt again, and keep the versions that still fit
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
images-lock: setup  ## compile the images' locks from their requirements.in with the versions of requirements.txt
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
compose-up:  ## build changed images of docker-compose.yaml, start all services and wait until they are healthy (first: make secrets)
	@test -f $(ENV_FILE) || { echo "make: there is no $(ENV_FILE), the settings with the secrets; make it: make secrets" >&2; exit 1; }
	@GIT_SHA=$$(git describe --always --dirty --abbrev=40) $(COMPOSE) --env-file $(ENV_FILE) build
	@$(COMPOSE) --env-file $(ENV_FILE) up --detach --no-build || echo "make: not all of it started; waiting says who" >&2
	@$(PYTHON) deploy/compose/wait.py --engine $(ENGINE) --project "$${COMPOSE_PROJECT_NAME:-airloop}" --timeout $(COMPOSE_TIMEOUT)
compose-down:  ## stop the services of docker-compose.yaml and keep their volumes (VOLUMES=yes removes them)
	@$(COMPOSE) --env-file $(ENV_FILE) --profile celery --profile tools down $(if $(VOLUMES),--volumes)
test-compose: setup  ## test docker-compose.yaml with Podman and substitutes for third-party images (as root, takes minutes)
	$(BIN)/pytest -s tests/compose
test-images: setup  ## build the images without a registry (Podman, a debootstrap base, as root) and run them as pods would
	$(BIN)/pytest tests/images
