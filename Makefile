# SPDX-License-Identifier: Apache-2.0
# `make help` lists what there is. Everything that is missing on a Debian or
# Ubuntu is installed by scripts/bootstrap.sh, which says what it does.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

BIN := .venv/bin
PYTHON_FILES := api agent operator tests bench scripts examples hatch_build.py
C_FILES = $(wildcard agent/bpf/*.[ch] bench/*.c scripts/*.c tests/kernels/*.c)
SHELL_FILES := scripts/*.sh tests/cluster/*.sh .ci/run
# Where bpftool and nft are for a plain user.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin
AS_ROOT := $(if $(filter 0,$(shell id -u)),,$(shell command -v sudo))
DURATION ?= 10s
OUT ?= out
TESTS ?= tests

.PHONY: help run test test-kernels lab cluster demo cluster-down lint check format generate bpf build build-static bench lock clean setup setup-test setup-cluster

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:
	@scripts/bootstrap.sh build

setup-test:
	@scripts/bootstrap.sh test

setup-cluster:
	@scripts/bootstrap.sh cluster
	@$(BIN)/python -m tests.cluster.binaries

bpf: setup ## compile the BPF object and the ring's drain
	@$(MAKE) -C agent/bpf

build: bpf ## leave dist/ktrace, a launcher that uses this checkout
	@install -D -m 755 scripts/launcher.sh dist/ktrace
	@echo "dist/ktrace is ready: dist/ktrace --help"

run: build ## capture 10 s of this host into ./out and show the result (root, or sudo)
	@$(AS_ROOT) dist/ktrace --duration=$(DURATION) --out-dir=$(OUT)
	@$(if $(AS_ROOT),$(AS_ROOT) chown -R "$$(id -u):$$(id -g)" $(OUT))
	@echo "Show it again: dist/ktrace show $$(ls -t $(OUT)/ktrace.*.bundle.tgz | sed -n 1p)"

test: setup-test bpf ## run all tests that this machine can run; skips say why (TESTS=path, KTRACE_REQUIRE=world,...)
	@$(BIN)/pytest $(TESTS)

test-kernels: setup-test bpf ## run the tests on other kernels in QEMU (KERNEL=5.10, 6.1, 6.12, 6.12-rt, 6.19 or newest: only on that one)
	@KTRACE_REQUIRE=kernels KTRACE_KERNEL=$(KERNEL) $(BIN)/pytest tests/kernels

lab: setup-test bpf ## play all incidents and healthy scenes, print the confusion matrix, write docs/accuracy.md (root, or sudo; SCENES="name ..." plays these and writes nothing)
	@$(AS_ROOT) $(BIN)/python -m tests.lab $(if $(SCENES),$(SCENES),--write docs/accuracy.md)

cluster: setup-cluster ## start a real Kubernetes of two nodes on this machine and leave it up (root, or sudo)
	@$(AS_ROOT) $(BIN)/python -m tests.cluster up

demo: setup-cluster ## a real Kubernetes with a dead DNS service, ktrace installed, and what it finds (root, or sudo; KEEP=1 leaves it up)
	@$(AS_ROOT) $(BIN)/python -m tests.cluster.demo $(if $(KEEP),--keep)

cluster-down: ## stop what `make cluster` started and remove all of it
	@$(AS_ROOT) $(BIN)/python -m tests.cluster down

lint: setup ## ruff, format, mypy, import-linter, clang-format, shellcheck
	@$(BIN)/ruff check $(wildcard $(PYTHON_FILES))
	@$(BIN)/ruff format --check $(wildcard $(PYTHON_FILES))
	@$(BIN)/mypy
	@$(BIN)/mypy tests bench scripts examples hatch_build.py
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/clang-format --dry-run -Werror $(C_FILES)
	@$(BIN)/shellcheck $(SHELL_FILES)

check: lint test ## lint, then test

format: setup ## lay out Python and C as lint wants it
	@$(BIN)/ruff check --fix-only $(wildcard $(PYTHON_FILES))
	@$(BIN)/ruff format $(wildcard $(PYTHON_FILES))
	@$(BIN)/clang-format -i $(C_FILES)

generate: setup ## write docs/schemas/ and the CRD from the models
	@$(BIN)/python -m ktrace_api.schemas docs/schemas
	@$(BIN)/python -m ktrace_api.crd crds/TraceSnapshot.yaml charts/ktrace/crds/TraceSnapshot.yaml

build-static: ## leave dist/ktrace-static, one file for a node without Python
	@scripts/bootstrap.sh static
	@$(MAKE) -C agent/bpf
	@$(BIN)/python scripts/build_static.py dist/ktrace-static

bench: build ## measure drain, sealing and memory (root, or sudo)
	@for bench in bench/bench_*.py; do $(AS_ROOT) $(BIN)/python "$$bench"; done

lock: setup ## resolve requirements/*.lock anew (needs uv)
	@uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-header --no-annotate --extra agent --extra operator --extra dev pyproject.toml -o requirements/dev.lock
	@uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-header --no-annotate --extra agent -c requirements/dev.lock pyproject.toml \
		-o requirements/agent.lock
	@uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-header --no-annotate --extra operator -c requirements/dev.lock pyproject.toml \
		-o requirements/operator.lock

clean: ## remove what was built and captured here
	@$(MAKE) -C agent/bpf clean
	rm -rf dist out .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
