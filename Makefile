# The verbs of this house; `make help` lists them. Every one may be repeated, and asks nothing.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Cargo may be installed without being in the PATH of a fresh shell.
CARGO ?= $(or $(shell command -v cargo),$(wildcard $(HOME)/.cargo/bin/cargo),cargo)
export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/sbin

# Where sandbox images lie, for demonstrations and tests; the server keeps its own below its data folder.
export ORCHESTRA_IMAGES ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/orchestra/images

# Sandboxes need root. Whoever is not root still builds as himself, and only the finished programs run through sudo.
ifneq ($(shell id -u),0)
ROOT := sudo --preserve-env
HOST := $(shell uname -m | tr a-z- A-Z_)_UNKNOWN_LINUX_GNU
export CARGO_TARGET_$(HOST)_RUNNER := $(ROOT)
endif

ORCHESTRA := target/debug/orchestra
# What a task, a demonstration or a test starts from.
IMAGE := $(ORCHESTRA_IMAGES)/default/manifest.json
# The same with the command line agents in it, which their vendors publish on the npm registry.
AGENTS ?= codex,opencode,claude-code
BROWSER := tests/browser
# Where the tests of the clients and of the interface have their Python.
VENV := target/clients/venv
TYPESCRIPT := clients/typescript
# Somebody else's reading of the messages that webhooks send.
PEERS := tests/peers

.PHONY: help
help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: rust
rust:
	@$(CARGO) --version >/dev/null 2>&1 || { echo "Rust is missing: install it with rustup, then try again." >&2; exit 1; }

.PHONY: build-tools
build-tools: rust
	@scripts/packages build

.PHONY: setup
setup: image browser-tools client-tools ## Install what builds and tests need, build, and make the sandbox image

.PHONY: browser-tools
browser-tools:
	@scripts/packages test
	@for folder in $(BROWSER) $(PEERS); do \
		if ! cmp -s $$folder/package-lock.json $$folder/node_modules/.installed; then \
			npm ci --prefix $$folder --silent --no-audit --no-fund || exit 1; \
			cp $$folder/package-lock.json $$folder/node_modules/.installed; \
		fi; \
	done

# What the clients are built and tested with, each pinned, in folders of their own.
.PHONY: client-tools
client-tools:
	@scripts/packages test
	@if ! cmp -s $(TYPESCRIPT)/package-lock.json $(TYPESCRIPT)/node_modules/.installed; then \
		npm ci --prefix $(TYPESCRIPT) --silent --no-audit --no-fund; \
		cp $(TYPESCRIPT)/package-lock.json $(TYPESCRIPT)/node_modules/.installed; \
	fi
	@if ! cmp -s clients/python/requirements-test.txt $(VENV)/.installed; then \
		python3 -m venv $(VENV); \
		$(VENV)/bin/pip install --quiet --disable-pip-version-check --requirement clients/python/requirements-test.txt; \
		cp clients/python/requirements-test.txt $(VENV)/.installed; \
	fi

.PHONY: build
build: build-tools ## Build the program (dev profile)
	@$(CARGO) build --locked

.PHONY: dist
dist: build-tools ## Build the program as it is shipped, into target/dist
	@$(CARGO) build --locked --profile dist

# Only when it is missing: `orchestra image build` says itself whether an image that is there is out of date.
define make-image
	@[ -e "$(IMAGE)" ] || $(ROOT) $(ORCHESTRA) image build --images "$(ORCHESTRA_IMAGES)"
endef

# Derived from the first, in seconds, and at once when nothing has changed. Where the registry is out of reach only CI fails: the tests say what they leave out.
define make-agents-image
	@$(ROOT) $(ORCHESTRA) image build --images "$(ORCHESTRA_IMAGES)" --name agents --from default --with "$(AGENTS)" \
		|| [ -z "$${CI:-}" ]
endef

.PHONY: image
image: build ## Make the sandbox image, unless it is there
	$(make-image)

.PHONY: agents
agents: image ## Make the sandbox image with the command line agents in it (AGENTS=codex,opencode,…)
	$(make-agents-image)

.PHONY: demo
demo: image ## One whole task on this machine, then the dashboard (CI=1: ends by itself)
	@$(ROOT) $(ORCHESTRA) demo --images "$(ORCHESTRA_IMAGES)" $(if $(CI),--ci)

.PHONY: doctor
doctor: build ## Check this machine, and say how to mend what it lacks
	@$(ROOT) env ORCHESTRA_SANDBOX__IMAGES_DIR="$(ORCHESTRA_IMAGES)" $(ORCHESTRA) doctor

# What tests are made of, and the program with the very same features of every dependency, so that nothing is built twice.
.PHONY: test-build
test-build: build-tools
	@$(CARGO) build --locked --workspace --bins --tests --examples

.PHONY: test-image
test-image: test-build
	$(make-image)
	$(make-agents-image)

.PHONY: test
test: test-image browser-tools ## Every test: unit, conformance, documents, real containers, end to end, browser
	@$(CARGO) test --locked --workspace --no-fail-fast
	@$(MAKE) browser
	@$(MAKE) clients
	@$(MAKE) interface

.PHONY: unit
unit: build-tools ## The tests that need neither root nor an image
	@$(CARGO) test --locked --workspace --lib --bins

.PHONY: browser
browser: test-build browser-tools ## The dashboard in a headless browser
	@node $(BROWSER)/run.mjs target/debug/examples/dashboard target/browser
	@node $(BROWSER)/sign-in.mjs target/debug/orchestra target/debug/examples/identity target/browser

.PHONY: clients
clients: test-image client-tools ## The TypeScript and the Python client: generated as committed, and against a running server
	@npm run --prefix $(TYPESCRIPT) --silent generate -- --check
	@clients/python/generate.py --check
	@cd clients/python && $(CURDIR)/$(VENV)/bin/mypy
	@cd $(TYPESCRIPT) && $(ROOT) npm test --silent
	@cd clients/python && $(ROOT) $(CURDIR)/$(VENV)/bin/pytest

.PHONY: interface
interface: test-image client-tools ## A running server against its own OpenAPI document, with requests that fit and that do not
	@$(ROOT) $(VENV)/bin/python tests/schemathesis/run.py $(ORCHESTRA)

# The release of cargo-fuzz that knows the options of scripts/fuzz.
.PHONY: cargo-fuzz
cargo-fuzz: build-tools
	@$(CARGO) fuzz --version >/dev/null 2>&1 || { \
		echo "installing cargo-fuzz"; $(CARGO) install --locked --quiet --debug cargo-fuzz@0.13.2; }

.PHONY: fuzz-smoke
fuzz-smoke: cargo-fuzz ## A little of each fuzz target, with the same inputs each time
	@CARGO="$(CARGO)" scripts/fuzz smoke

# Seconds that one target is fuzzed for.
SECONDS ?= 60

.PHONY: fuzz
fuzz: cargo-fuzz ## One fuzz target for longer (TARGET=payload, SECONDS=60)
	@CARGO="$(CARGO)" scripts/fuzz "$(TARGET)" "$(SECONDS)"

.PHONY: bench
bench: image ## Every benchmark, as tables (release profile)
	@$(CARGO) bench --locked --workspace

.PHONY: fmt
fmt: rust ## Format everything
	@$(CARGO) fmt --all
	@$(CARGO) fmt --manifest-path fuzz/Cargo.toml

.PHONY: lint
lint: build-tools ## Formatting, and clippy with warnings as errors
	@$(CARGO) fmt --all --check
	@$(CARGO) fmt --manifest-path fuzz/Cargo.toml --check
	@$(CARGO) clippy --locked --workspace --all-targets --quiet -- -D warnings

# The release line of cargo-deny that reads deny.toml.
.PHONY: cargo-deny
cargo-deny: rust
	@$(CARGO) deny --version >/dev/null 2>&1 || { \
		echo "installing cargo-deny"; $(CARGO) install --locked --quiet --debug cargo-deny@0.20.2; }

.PHONY: deny
deny: cargo-deny ## Licences, room rules and sources of every dependency
	@$(CARGO) deny --workspace --log-level error check bans licenses sources
	@$(CARGO) deny --manifest-path fuzz/Cargo.toml --config deny.toml --log-level error check licenses sources

.PHONY: audit
audit: cargo-deny ## Known vulnerabilities of every dependency; fetches the advisory database from the network
	@$(CARGO) deny --workspace --log-level error check advisories

.PHONY: clean
clean: ## Remove what was built; images and data stay
	@$(CARGO) clean
	@rm -rf $(BROWSER)/node_modules $(TYPESCRIPT)/node_modules $(TYPESCRIPT)/dist $(TYPESCRIPT)/build-test
