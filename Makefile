# make run | test | lint | audit | bench | soak: see README.md. One release profile and one target directory for everything, so that
# RocksDB, yara-x and aws-lc are compiled once.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
export CARGO_TARGET_DIR := $(or $(CARGO_TARGET_DIR),$(HOME)/.cache/lazaret/target)

CARGO_DENY_VERSION := 0.20.2
CRATES := lazaret lazaret-protocol lazaret-node-client lazaret-storage-node lazaret-analysis lazaret-identity \
          lazaret-containers lazaret-sandbox lazaret-digests lazaret-scan-worker lazaret-gateway lazaret-simulation
# Tests check our own crates' debug assertions and integer overflow; dependencies stay as they were built.
CHECKED := $(foreach crate,$(CRATES),--config profile.release.package.$(crate).debug-assertions=true \
                                     --config profile.release.package.$(crate).overflow-checks=true)

.PHONY: run build test bench soak lint audit system-packages claim-target

run: build
	scripts/first-run "$(CARGO_TARGET_DIR)/release/lazaret"

build: system-packages claim-target
	cargo build --release --locked

# What tests need besides: networks that are cut, clamd, a program of the site's own as an engine.
TEST_PACKAGES := clamav-daemon iproute2 openssl python3 python3-venv
test: claim-target
	scripts/system-packages $(TEST_PACKAGES)
	cargo test --release --locked --workspace --lib --bins --tests $(CHECKED) --no-run
	scripts/schemathesis "$(CARGO_TARGET_DIR)/release/lazaret"
	# Off by default: rebuilds the binary and no library.
	cargo test --release --locked --workspace --features otlp --bin lazaret --test otlp $(CHECKED) -- trace otlp collector
	cargo test --release --locked --workspace --lib --bins --tests $(CHECKED)

# Every benchmark for BENCH_SECONDS each, into target/bench/report.json and report.html of this clone.
BENCH_SECONDS ?= 5
bench: build
	scripts/system-packages valgrind
	"$(CARGO_TARGET_DIR)/release/lazaret" bench report --out target/bench --seconds $(BENCH_SECONDS)

# What may run for hours: SEEDS simulated clusters from SEED on, as many lives of a single engine, files of every format
# changed at random for SOAK_SECONDS, without feedback from coverage, nodes that are killed KILL_ROUNDS times under load, and the
# bombs of gibibytes, whose time and memory are shown.
SEED ?= 1000
SEEDS ?= 1000
KILL_ROUNDS ?= 1000
SOAK_SECONDS ?= 600
soak: build
	"$(CARGO_TARGET_DIR)/release/lazaret" simulate --seed $(SEED) --seeds $(SEEDS)
	LAZARET_CRASH_SEEDS=$(SEEDS) cargo test --release --locked --workspace --test storage_engine $(CHECKED)
	LAZARET_SOAK_SECONDS=$(SOAK_SECONDS) cargo test --release --locked --workspace --test soak $(CHECKED) -- --ignored --nocapture
	LAZARET_KILL_ROUNDS=$(KILL_ROUNDS) cargo test --release --locked --workspace --test e2e $(CHECKED) -- --nocapture killed_nodes
	cargo test --release --locked --workspace --test bombs $(CHECKED) -- --include-ignored --nocapture --test-threads 1

lint: system-packages claim-target
	scripts/check-units
	cargo fmt --all --check
	cargo clippy --release --locked --workspace --all-targets -- -D warnings
	cargo clippy --release --locked --workspace --features otlp --bin lazaret --test otlp -- -D warnings
	command -v cargo-deny >/dev/null || cargo install --locked --version $(CARGO_DENY_VERSION) cargo-deny
	cargo deny --log-level error check bans licenses sources
	RUSTDOCFLAGS="-D warnings" cargo doc --release --locked --workspace --no-deps

audit:
	cargo deny check advisories

system-packages:
	scripts/system-packages

# Cargo takes another tree's build of these crates for this tree's when its sources are older. So the target directory
# remembers the tree it was used for, and another tree's sources are touched first.
claim-target:
	@mkdir -p "$(CARGO_TARGET_DIR)"
	@if [ "$$(cat "$(CARGO_TARGET_DIR).tree" 2>/dev/null || true)" != "$(CURDIR)" ]; then \
	    find . -path ./.git -prune -o -type f \( -name '*.rs' -o -name '*.toml' -o -name '*.sql' -o -name '*.yar' \) -exec touch -c {} +; \
	    echo "$(CURDIR)" > "$(CARGO_TARGET_DIR).tree"; \
	fi
