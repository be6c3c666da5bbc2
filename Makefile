# Each target does all of its own set-up. `make demo` and `make test` need a Rust toolchain and nothing else.

# How `make chaos` and `make matrix` are built and started; PROFILE=release for optimised programs.
CHAOS = cargo run --quiet $(if $(filter release,$(PROFILE)),--release) -p tunnel-e2e --bin chaos --

.PHONY: help demo demo-stop record test chaos matrix attacks bench lint fmt docs deny check

help:
	@echo 'make demo          a technician gets a shell on a device behind NAT; KEEP=1 leaves it running'
	@echo 'make demo-stop     ends what KEEP=1 left running'
	@echo 'make record        records docs/session.cast: a session through a crash, a ban and a move'
	@echo 'make test          all tests; those that this machine cannot run say so and are counted'
	@echo 'make chaos         random faults under live sessions; SECONDS=600 or FAULTS=1000, SEED=... for the same faults again'
	@echo 'make matrix        each fault, over each carrier, at each moment of a session: the table in docs/chaos.md'
	@echo 'make attacks       the attacks of docs/threats.md; SCALE=100 tries more inputs; writes docs/attacks.md'
	@echo 'make bench         the measurements, as a Markdown table; ARGS="..." is passed on'
	@echo 'make lint          formatting, and lints as errors'
	@echo 'make docs          the documentation of the code, warnings as errors'
	@echo 'make deny          licences, advisories and sources of the dependencies'
	@echo 'make check         everything that the continuous checks run'

demo:
	@KEEP='$(KEEP)' bash scripts/demo.sh

demo-stop:
	@bash scripts/demo.sh stop

record:
	@bash scripts/record.sh

test:
	@bash scripts/test.sh $(ARGS)

chaos:
	@$(CHAOS) run $(if $(FAULTS),--faults $(FAULTS),--seconds $(or $(SECONDS),60)) $(if $(SEED),--seed $(SEED))

matrix:
	@$(CHAOS) matrix --out docs/chaos.md --about "\
	Commit $$(git rev-parse --short HEAD), $$(nproc) cores ($$(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1)), \
	Linux $$(uname -r | cut -d- -f1), programs of the $(or $(PROFILE),dev) profile, by \`make matrix\`."

attacks:
	@SCALE='$(SCALE)' bash scripts/attacks.sh $(ARGS)

bench:
	cargo run --release -p tunnel-bench -- $(ARGS)

lint:
	@bash scripts/lint.sh

fmt:
	cargo fmt --all

docs:
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --document-private-items

deny:
	@bash scripts/deny.sh

check:
	@bash .ci/run
