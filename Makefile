# Everything a contributor or a machine runs. `make help` lists it.
SHELL := /bin/bash
NODES ?= 3
PATH := $(PATH):/usr/local/go/bin
export PATH NODES KEEP SEED

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
GOBUILD := go build -trimpath -buildvcs=false -ldflags "-X main.version=$(VERSION)"

.PHONY: help build setup up down demo fresh test check e2e fuzz sim sim-vm soak bench clean

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST)

build: ## form, formd and form-guest into bin/
	@mkdir -p bin
	$(GOBUILD) -o bin/ ./cmd/form ./cmd/formd
	CGO_ENABLED=0 $(GOBUILD) -ldflags '-s -w' -o bin/ ./cmd/form-guest

setup: ## install what this machine lacks (Debian, Ubuntu)
	@scripts/setup.sh

up: ## a swarm on this machine: NODES=3; writes .demo/env
	@scripts/up.sh

down: ## end that swarm and leave nothing
	@scripts/down.sh

demo: ## the whole line in one go; KEEP=1 leaves it running
	@scripts/demo.sh

fresh: ## both README commands on a bare Debian root (needs root)
	@scripts/fresh.sh

test: ## every test tier that fits in CI
	@scripts/test.sh

check: ## format, vet, staticcheck, architecture, tidy, unit tests with -race
	@scripts/check.sh

e2e: ## the line through real virtual machines
	@scripts/test.sh e2e

fuzz: ## every fuzz target for FUZZTIME=30s each
	@scripts/fuzz.sh

sim: ## every scenario of the simulator; SCENARIO=NAME SEED=N runs one, SEEDS=100 so many of each
	@scripts/sim.sh

sim-vm: build ## a scenario on real daemons and machines (needs root and QEMU); SCENARIO=NAME SEED=N
	@scripts/base.sh >/dev/null
	@bin/form sim run $(or $(SCENARIO),machines) --tier vm --base .cache/base.car $(if $(SEED),--seed $(SEED))

soak: build ## ten minutes of faults on seven real daemons (needs root); FOR=60s SEED=N
	@bin/form sim run soak --tier proc $(if $(FOR),--for $(FOR)) $(if $(SEED),--seed $(SEED))

bench: ## costs, one line a figure; BENCH=regexp runs some
	@scripts/bench.sh

clean: down ## remove what was built; the cache of images and tools stays
	rm -rf bin .demo
