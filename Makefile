# SPDX-License-Identifier: Apache-2.0
# `make help` lists the targets. On Debian and Ubuntu scripts/bootstrap.sh installs
# what is missing and prints what it installs.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

BIN := .venv/bin
PYTHON_FILES := api agent operator tests bench scripts examples hatch_build.py
C_FILES = $(wildcard agent/bpf/*.[ch] agent/bpf/*/*.[ch] bench/*.c scripts/*.c tests/kernels/*.c)
SHELL_FILES := scripts/*.sh tests/cluster/*.sh .ci/run
# All but tests of worlds and slow searches: minutes become a minute.
FAST = tests/agent tests/api tests/operator tests/test_*.py \
	-m "not world and not slow" --hypothesis-profile=fast -n $(JOBS) --dist worksteal
# The PATH of an ordinary user lacks bpftool and nft.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin
AS_ROOT := $(if $(filter 0,$(shell id -u)),,$(shell command -v sudo))
DURATION ?= 10s
OUT ?= out
TESTS ?= tests
JOBS ?= auto

.PHONY: help run test test-fast test-kernels coverage lab cluster demo cluster-down lint check format generate bpf bpf-arm64 build build-static bench lock clean setup setup-test setup-kernels setup-cluster

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:
	@scripts/bootstrap.sh build

setup-test:
	@scripts/bootstrap.sh test

setup-kernels:
	@scripts/bootstrap.sh kernels

setup-cluster:
	@scripts/bootstrap.sh cluster
	@$(BIN)/python -m tests.cluster.binaries

bpf: setup ## compile the BPF object and the ring's drain
	@$(MAKE) -C agent/bpf

bpf-arm64: setup-kernels ## cross-compile the BPF objects and the ring's drain into agent/bpf/build/arm64
	@$(MAKE) -C agent/bpf ARCH=arm64 SYSROOT="$$($(BIN)/python -m scripts.sysroot arm64)"

build: bpf ## create dist/ktrace, a launcher that uses this checkout
	@install -D -m 755 scripts/launcher.sh dist/ktrace
	@echo "dist/ktrace is ready: dist/ktrace --help"

run: build ## capture this host for 10 s into ./out and show the result (root, or sudo)
	@$(AS_ROOT) dist/ktrace --duration=$(DURATION) --out-dir=$(OUT)
	@$(if $(AS_ROOT),$(AS_ROOT) chown -R "$$(id -u):$$(id -g)" $(OUT))
	@echo "Show it again: dist/ktrace show $$(ls -t $(OUT)/ktrace.*.bundle.tgz | sed -n 1p)"

test: setup-test bpf ## run all tests that this machine can run; skips give their reason (TESTS=path runs one pytest, KTRACE_REQUIRE=world,... fails instead of skipping)
	@$(if $(filter tests,$(TESTS)),$(BIN)/python scripts/run_tests.py,$(BIN)/pytest $(TESTS))

test-fast: setup-test bpf ## run the tests of api, agent and operator in parallel, without root, worlds and slow searches (JOBS=n)
	@$(BIN)/pytest $(FAST)

coverage: setup-test bpf ## run test-fast, print line and branch coverage by room, fail below a floor
	@$(BIN)/pytest $(FAST) --cov --cov-report=
	@$(BIN)/python scripts/coverage_by_room.py

test-kernels: setup-kernels bpf bpf-arm64 build-static ## run the tests on other kernels in QEMU, two guests at a time, and write docs/kernels.md (KERNEL=6.1, 6.12-arm64, newest, ...: only on that one)
	@KTRACE_REQUIRE=kernels,matrix KTRACE_KERNEL=$(KERNEL) $(BIN)/pytest tests/kernels -n 2 --dist worksteal
	@$(if $(KERNEL),,$(BIN)/python -m tests.kernels.report --write docs/kernels.md)

lab: setup-test bpf ## play all incidents and healthy scenes, print the confusion matrix, write docs/accuracy.md (root, or sudo; SCENES="name ..." plays only these and writes nothing)
	@$(AS_ROOT) $(BIN)/python -m tests.lab $(if $(SCENES),$(SCENES),--write docs/accuracy.md)

cluster: setup-cluster ## start a real Kubernetes of two nodes on this machine and leave it running (root, or sudo)
	@$(AS_ROOT) $(BIN)/python -m tests.cluster up

demo: setup-cluster ## start a real Kubernetes with a dead DNS service, install ktrace and show its findings (root, or sudo; KEEP=1 leaves it running)
	@$(AS_ROOT) $(BIN)/python -m tests.cluster.demo $(if $(KEEP),--keep)

cluster-down: ## stop the cluster of `make cluster` and remove all of it
	@$(AS_ROOT) $(BIN)/python -m tests.cluster down

lint: setup ## ruff, format, mypy, import-linter, clang-format, shellcheck, codespell, banned words
	@$(BIN)/ruff check $(wildcard $(PYTHON_FILES))
	@$(BIN)/ruff format --check $(wildcard $(PYTHON_FILES))
	@$(BIN)/mypy
	@$(BIN)/mypy tests bench scripts examples hatch_build.py
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/clang-format --dry-run -Werror $(C_FILES)
	@$(BIN)/shellcheck $(SHELL_FILES)
	@$(BIN)/codespell
	@$(BIN)/pytest -q tests/test_words.py

check: lint test ## lint, then test

format: setup ## format Python and C as lint expects
	@$(BIN)/ruff check --fix-only $(wildcard $(PYTHON_FILES))
	@$(BIN)/ruff format $(wildcard $(PYTHON_FILES))
	@$(BIN)/clang-format -i $(C_FILES)

generate: setup ## write docs/schemas/ and the CRD from the models
	@$(BIN)/python -m ktrace_api.schemas docs/schemas
	@$(BIN)/python -m ktrace_api.crd crds/TraceSnapshot.yaml charts/ktrace/crds/TraceSnapshot.yaml

build-static: ## create dist/ktrace-static, one file for a node without Python
	@scripts/bootstrap.sh static
	@$(MAKE) -C agent/bpf
	@$(BIN)/python scripts/build_static.py dist/ktrace-static

bench: build ## measure drain, sealing and memory (root, or sudo)
	@for bench in bench/bench_*.py; do $(AS_ROOT) $(BIN)/python "$$bench"; done

lock: setup ## resolve requirements/*.lock again (needs uv)
	@uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-header --no-annotate --extra agent --extra operator --extra dev pyproject.toml -o requirements/dev.lock
	@uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-header --no-annotate --extra agent -c requirements/dev.lock pyproject.toml \
		-o requirements/agent.lock
	@uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-header --no-annotate --extra operator -c requirements/dev.lock pyproject.toml \
		-o requirements/operator.lock

clean: ## remove everything that was built or captured here
	@$(MAKE) -C agent/bpf clean
	rm -rf dist out .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage
