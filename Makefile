# `make help` lists what there is.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo
# Flags for the gateway: make run ARGS="--port 9999 --token x"
ARGS ?=
# Arguments for pytest: make test-e2e PYTEST="-k interrupt -x"
PYTEST ?=
# Benchmarks by name, without the file of results: make bench BENCH="protocol log"
BENCH ?=

.PHONY: help run test test-rust test-embedders test-e2e lint lint-rust lint-features lint-msrv \
	lint-docs lint-deny bench e2e-env

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: ## build (release) and start the gateway on 127.0.0.1:8888 with a Python kernel; ARGS="--port 9999"
	$(CARGO) build --release --locked --package kernelmux-gateway
	@exec scripts/run.sh $(ARGS)

test: test-rust test-embedders test-e2e ## all tests, with real kernels and a real browser

test-rust: e2e-env ## the workspace's own tests
	PATH="$(CURDIR)/target/e2e-venv/bin:$$PATH" JUPYTER_PATH="$(CURDIR)/target/e2e-venv/share/jupyter" \
		$(CARGO) test --locked --workspace

test-embedders: ## crates outside the workspace that use kernelmux by path
	@for manifest in tests/embedders/*/Cargo.toml; do \
		echo "$$manifest"; \
		$(CARGO) test --quiet --manifest-path "$$manifest" --target-dir target/embedders; \
	done

test-e2e: e2e-env ## JupyterLab in Chromium, other clients, other kernels, bad input; PYTEST="-k name"
	$(CARGO) build --locked --package kernelmux-gateway --package echo-kernel
	target/e2e-venv/bin/python -m pytest tests/e2e $(PYTEST)

e2e-env:
	@scripts/e2e-env.sh

lint: lint-rust lint-features lint-msrv lint-docs lint-deny ## format, clippy, docs, every combination of features

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
