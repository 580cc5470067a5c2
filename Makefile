# `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo
# Flags for the gateway: make run ARGS="--port 9999 --token x"
ARGS ?=
# Arguments for pytest: make test-e2e PYTEST="-k interrupt -x"
PYTEST ?=
# How many end-to-end test files run in parallel.
E2E_WORKERS ?= 2
# Tests use the gateway with all features. Every target builds the whole workspace with the same features, so that
# nothing is built twice.
TESTED := --locked --workspace --features kernelmux-gateway/nats,kernelmux-gateway/otlp
WASM := wasm32-unknown-unknown
# Benchmarks to run, by name: make bench BENCH="protocol log"
BENCH ?=

.PHONY: help run demo book hooks test test-rust test-embedders test-js test-e2e test-long lint lint-rust lint-features lint-msrv \
	lint-docs lint-deny lint-package bench build-cache tools e2e-env e2e-programs lab-wheel dev-cluster \
	dev-cluster-down test-k8s run-k8s wheel

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: ## build (release) and start the gateway on 127.0.0.1:8888 with a Python kernel; ARGS="--port 9999"
	$(CARGO) build --release --locked --package kernelmux-gateway --package kernelmux-agent
	@exec scripts/run.sh $(ARGS)

demo: ## a client that loses no output of a long cell although its connection is cut
	$(CARGO) build --locked --package resume
	@. scripts/venv.sh && exec target/debug/resume

book: ## the documentation for users, in target/book
	@mdbook=$$(scripts/mdbook.sh) && scripts/book.py "$$mdbook"

test: ## all tests, with real kernels, a real browser and a real cluster
	@trap 'scripts/build-cache.py save' EXIT; scripts/in-parts.py test test-rust test-embedders test-js test-e2e test-k8s

# The environment in which tests find kernels and cargo tools.
TOOLS := PATH="$(CURDIR)/target/e2e-venv/bin:$(CURDIR)/target/tools/bin:$$PATH" \
	JUPYTER_PATH="$(CURDIR)/target/e2e-venv/share/jupyter"

test-rust: e2e-env build-cache ## the Rust tests of the workspace
	$(TOOLS) scripts/run-tests.py rust nextest $(TESTED)
	$(CARGO) test $(TESTED) --doc --quiet

# Uses the workspace's target folder and debug settings, so that shared dependencies are built once.
test-embedders: build-cache ## crates outside the workspace that use kernelmux by path
	@for manifest in tests/embedders/*/Cargo.toml; do \
		echo "$$manifest"; \
		$(CARGO) test --quiet --manifest-path "$$manifest" --target-dir target \
			--config 'profile.dev.debug="line-tables-only"' --config 'profile.dev.package."*".debug=false'; \
	done
	@if [ -d "$$(rustc --print target-libdir --target $(WASM))" ]; then \
		$(CARGO) check --quiet --manifest-path tests/embedders/wasm/Cargo.toml --target $(WASM) --target-dir target; \
	else \
		echo "not checked: tests/embedders/wasm for $(WASM), which \`rustup target add $(WASM)\` installs"; \
	fi

test-js: e2e-env e2e-programs ## the JavaScript client, with a scripted gateway and the real one, and the lab extension
	$(TOOLS) KERNELMUX_GATEWAY="$(CURDIR)/target/debug/kernelmux-gateway" scripts/test-js.sh

test-e2e: e2e-env e2e-programs ## JupyterLab in Chromium, other clients, other kernels, bad input; PYTEST="-k name"
	target/e2e-venv/bin/python scripts/run-tests.py e2e pytest tests/e2e -m "not kubernetes" -n $(E2E_WORKERS) \
		--dist loadfile --no-loadscope-reorder $(PYTEST)

test-long: e2e-env e2e-programs ## 10,000 seeds of the simulation, a log of ten million entries, the full chaos test
	KERNELMUX_LONG=1 $(CARGO) test --locked --release --package kernel-manager --test simulation
	KERNELMUX_LONG=1 $(CARGO) test --locked --release --package kernelmux-log --test memory
	KERNELMUX_LONG=1 target/e2e-venv/bin/python -m pytest tests/e2e/test_resume_chaos.py

tools:
	@scripts/cached-venv.sh target/tools scripts/tools.txt

e2e-env: tools
	@scripts/e2e-env.sh

build-cache:
	@scripts/build-cache.py restore

# Building a package's tests also builds its programs.
e2e-programs: build-cache
	$(CARGO) test $(TESTED) --no-run --test program --test process --test run --test demo --test agents

lab-wheel: ## the JupyterLab extension as a Python wheel, in target/wheels
	@scripts/lab-wheel.sh

hooks: ## have git check format and clippy before each commit
	@git config core.hooksPath scripts/hooks

lint: ## format, clippy, each feature alone, minimum Rust version, docs, licences, packages
	@scripts/in-parts.py lint lint-rust lint-features lint-msrv lint-docs lint-deny lint-package

lint-rust: build-cache
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

lint-features: build-cache
	@scripts/check-features.py

lint-msrv:
	@scripts/check-msrv.py

# The book's links are checked as it is built.
lint-docs: build-cache book
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --quiet

# Without advisories: `cargo deny check advisories` downloads their database.
lint-deny: tools
	$(TOOLS) $(CARGO) deny --locked --all-features check bans licenses sources

# Packs each published crate and prints the steps of a release without taking them.
lint-package:
	@scripts/release.py --dry-run

bench: ## benchmarks against direct ZeroMQ and other gateways; writes benches/RESULTS.md; BENCH="protocol log"
	$(CARGO) build --release --locked --package kernelmux-gateway --package kernelmux-agent --package kernelmux-benches --bins
	$(CARGO) run --release --locked --package kernelmux-benches -- $(BENCH)

test-k8s: e2e-env e2e-programs ## kernels as pods, also in JupyterLab, on `make dev-cluster` or KUBECONFIG's cluster
	@$(TOOLS) scripts/test-k8s.sh $(TESTED)

run-k8s: ## the gateway (release) with kernels as pods, on `make dev-cluster` or the cluster of KUBECONFIG; ARGS="--port 9999"
	$(CARGO) build --release --locked --package kernelmux-gateway --package kernelmux-agent
	@exec scripts/run-k8s.sh $(ARGS)

dev-cluster: ## start a real Kubernetes cluster on this machine, as root; or check the one of KUBECONFIG
	@provider-k8s/dev-cluster/dev-cluster up >/dev/null

dev-cluster-down: ## stop the cluster of `make dev-cluster` and remove everything except its cache
	@provider-k8s/dev-cluster/dev-cluster down

wheel: lab-wheel ## the Python wheels kernelmux and kernelmux-lab, in target/wheels
	@scripts/wheel.sh
