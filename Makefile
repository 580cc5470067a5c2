# `make help` lists what there is.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo
# Flags for the gateway: make run ARGS="--port 9999 --token x"
ARGS ?=
# Arguments for pytest: make test-e2e PYTEST="-k interrupt -x"
PYTEST ?=
# How many files of the end-to-end tests run side by side.
E2E_WORKERS ?= 2
# The gateway of the tests has all that it can have. Of the whole workspace, whatever of it is built: so that nothing is
# built a second time with fewer features.
TESTED := --locked --workspace --features kernelmux-gateway/nats
# Benchmarks by name, whose results are renewed: make bench BENCH="protocol log"
BENCH ?=

.PHONY: help run demo test test-rust test-embedders test-js test-e2e test-long lint lint-rust lint-features lint-msrv \
	lint-docs lint-deny bench e2e-env e2e-programs dev-cluster dev-cluster-down test-k8s \
	run-k8s

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: ## build (release) and start the gateway on 127.0.0.1:8888 with a Python kernel; ARGS="--port 9999"
	$(CARGO) build --release --locked --package kernelmux-gateway
	@exec scripts/run.sh $(ARGS)

demo: ## a long cell whose connection is cut in the middle, and nothing is missing
	$(CARGO) build --locked --package resume
	@. scripts/venv.sh && exec target/debug/resume

test: test-rust test-embedders test-js test-e2e test-k8s ## all tests, with real kernels, a real browser and a real cluster

test-rust: e2e-env ## the workspace's own tests
	PATH="$(CURDIR)/target/e2e-venv/bin:$$PATH" JUPYTER_PATH="$(CURDIR)/target/e2e-venv/share/jupyter" \
		$(CARGO) test $(TESTED)

# Where the workspace is built, and as it is, so that what both need is built once.
test-embedders: ## crates outside the workspace that use kernelmux by path
	@for manifest in tests/embedders/*/Cargo.toml; do \
		echo "$$manifest"; \
		CARGO_PROFILE_DEV_DEBUG=line-tables-only $(CARGO) test --quiet --manifest-path "$$manifest" --target-dir target; \
	done

test-js: e2e-env e2e-programs ## the JavaScript client, against a scripted gateway and the real one
	PATH="$(CURDIR)/target/e2e-venv/bin:$$PATH" JUPYTER_PATH="$(CURDIR)/target/e2e-venv/share/jupyter" \
		KERNELMUX_GATEWAY="$(CURDIR)/target/debug/kernelmux-gateway" scripts/test-js.sh

test-e2e: e2e-env e2e-programs ## JupyterLab in Chromium, other clients, other kernels, bad input; PYTEST="-k name"
	target/e2e-venv/bin/python -m pytest tests/e2e -m "not kubernetes" -n $(E2E_WORKERS) --dist loadfile \
		--no-loadscope-reorder $(PYTEST)

test-long: e2e-env e2e-programs ## 10,000 seeds of the simulation, ten million entries in a log, and the chaos test at its full length
	KERNELMUX_LONG=1 $(CARGO) test --locked --release --package kernel-provider --test simulation
	KERNELMUX_LONG=1 $(CARGO) test --locked --release --package kernel-provider --test log_memory
	KERNELMUX_LONG=1 target/e2e-venv/bin/python -m pytest tests/e2e/test_resume_chaos.py

e2e-env:
	@scripts/e2e-env.sh
	@scripts/nats-server.sh

# A package's programs are built with its tests.
e2e-programs:
	$(CARGO) test $(TESTED) --no-run --test program --test process

lint: lint-rust lint-features lint-msrv lint-docs lint-deny ## format, clippy, docs, each feature alone

lint-rust:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

lint-features:
	@scripts/check-features.py

lint-msrv:
	@scripts/check-msrv.py

lint-docs:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --quiet

lint-deny:
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny --all-features check; \
	else echo "cargo-deny is not installed: licences and advisories not checked"; fi

bench: ## benchmarks against direct ZeroMQ and against the peers; writes benches/RESULTS.md; BENCH="protocol log"
	$(CARGO) run --release --locked --package kernelmux-benches -- $(BENCH)

test-k8s: e2e-env e2e-programs ## kernels as pods, JupyterLab with them, on `make dev-cluster` or, with KUBECONFIG set, on that cluster
	@PATH="$(CURDIR)/target/e2e-venv/bin:$$PATH" JUPYTER_PATH="$(CURDIR)/target/e2e-venv/share/jupyter" \
		scripts/test-k8s.sh $(TESTED)

run-k8s: ## the gateway (release) with kernels as pods, on `make dev-cluster` or the cluster of KUBECONFIG; ARGS="--port 9999"
	$(CARGO) build --release --locked --package kernelmux-gateway
	@exec scripts/run-k8s.sh $(ARGS)

dev-cluster: ## a real Kubernetes on this machine, as root; with KUBECONFIG set: that cluster is used
	@provider-k8s/dev-cluster/dev-cluster up >/dev/null

dev-cluster-down: ## end it; only its cache is left
	@provider-k8s/dev-cluster/dev-cluster down
