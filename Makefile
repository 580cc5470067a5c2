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

.PHONY: help run demo hooks test test-rust test-embedders test-js test-e2e test-long lint lint-rust lint-features lint-msrv \
	lint-docs lint-deny bench build-cache tools e2e-env e2e-programs dev-cluster dev-cluster-down test-k8s \
	run-k8s

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: ## build (release) and start the gateway on 127.0.0.1:8888 with a Python kernel; ARGS="--port 9999"
	$(CARGO) build --release --locked --package kernelmux-gateway
	@exec scripts/run.sh $(ARGS)

demo: ## a long cell whose connection is cut in the middle, and nothing is missing
	$(CARGO) build --locked --package resume
	@. scripts/venv.sh && exec target/debug/resume

test: ## all tests, with real kernels, a real browser and a real cluster
	@trap 'scripts/build-cache.py save' EXIT; scripts/in-parts.py test test-rust test-embedders test-js test-e2e test-k8s

# Tests find the kernels, nextest and the gateway here.
TOOLS := PATH="$(CURDIR)/target/e2e-venv/bin:$(CURDIR)/target/tools/bin:$$PATH" \
	JUPYTER_PATH="$(CURDIR)/target/e2e-venv/share/jupyter"

test-rust: e2e-env build-cache ## the workspace's own tests
	$(TOOLS) scripts/run-tests.py rust nextest $(TESTED)
	$(CARGO) test $(TESTED) --doc --quiet

# Where the workspace is built, and as it is, so that what both need is built once.
test-embedders: build-cache ## crates outside the workspace that use kernelmux by path
	@for manifest in tests/embedders/*/Cargo.toml; do \
		echo "$$manifest"; \
		$(CARGO) test --quiet --manifest-path "$$manifest" --target-dir target \
			--config 'profile.dev.debug="line-tables-only"' --config 'profile.dev.package."*".debug=false'; \
	done

test-js: e2e-env e2e-programs ## the JavaScript client, against a scripted gateway and the real one
	$(TOOLS) KERNELMUX_GATEWAY="$(CURDIR)/target/debug/kernelmux-gateway" scripts/test-js.sh

test-e2e: e2e-env e2e-programs ## JupyterLab in Chromium, other clients, other kernels, bad input; PYTEST="-k name"
	target/e2e-venv/bin/python scripts/run-tests.py e2e pytest tests/e2e -m "not kubernetes" -n $(E2E_WORKERS) \
		--dist loadfile --no-loadscope-reorder $(PYTEST)

test-long: e2e-env e2e-programs ## 10,000 seeds of the simulation, ten million entries in a log, and the chaos test at its full length
	KERNELMUX_LONG=1 $(CARGO) test --locked --release --package kernel-manager --test simulation
	KERNELMUX_LONG=1 $(CARGO) test --locked --release --package kernel-log --test memory
	KERNELMUX_LONG=1 target/e2e-venv/bin/python -m pytest tests/e2e/test_resume_chaos.py

tools:
	@scripts/cached-venv.sh target/tools scripts/tools.txt

e2e-env: tools
	@scripts/e2e-env.sh

build-cache:
	@scripts/build-cache.py restore

# A package's programs are built with its tests.
e2e-programs: build-cache
	$(CARGO) test $(TESTED) --no-run --test program --test process

hooks: ## have git check format and clippy before each commit
	@git config core.hooksPath scripts/hooks

lint: ## format, clippy, docs, each feature alone, licences
	@scripts/in-parts.py lint lint-rust lint-features lint-msrv lint-docs lint-deny

lint-rust: build-cache
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

lint-features: build-cache
	@scripts/check-features.py

lint-msrv:
	@scripts/check-msrv.py

lint-docs: build-cache
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --quiet

# Advisories are looked up by `cargo deny check advisories`, which needs their database from the network.
lint-deny: tools
	$(TOOLS) $(CARGO) deny --locked --all-features check bans licenses sources

bench: ## benchmarks against direct ZeroMQ and against the peers; writes benches/RESULTS.md; BENCH="protocol log"
	$(CARGO) build --release --locked --package kernelmux-gateway --package kernelmux-benches --bins
	$(CARGO) run --release --locked --package kernelmux-benches -- $(BENCH)

test-k8s: e2e-env e2e-programs ## kernels as pods, JupyterLab with them, on `make dev-cluster` or, with KUBECONFIG set, on that cluster
	@$(TOOLS) scripts/test-k8s.sh $(TESTED)

run-k8s: ## the gateway (release) with kernels as pods, on `make dev-cluster` or the cluster of KUBECONFIG; ARGS="--port 9999"
	$(CARGO) build --release --locked --package kernelmux-gateway
	@exec scripts/run-k8s.sh $(ARGS)

dev-cluster: ## a real Kubernetes on this machine, as root; with KUBECONFIG set: that cluster is used
	@provider-k8s/dev-cluster/dev-cluster up >/dev/null

dev-cluster-down: ## end it; only its cache is left
	@provider-k8s/dev-cluster/dev-cluster down
