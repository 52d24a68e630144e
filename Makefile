# Everything that is done with this tree has a verb here; plain "make" lists them.
# A line that would be long is a script in scripts/.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS   += --no-print-directory --no-builtin-rules
.NOTPARALLEL:
.DEFAULT_GOAL := help

# Nothing is taken from the environment that would change what is built.
export GOFLAGS     := -buildvcs=false
export GOWORK      := off
export CGO_ENABLED := 0

VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
# The date of the commit, not of the build: two builds of one commit are alike.
DATE     := $(shell git log -1 --format=%ct 2>/dev/null)
LDFLAGS  := -s -w -X livepatch/internal/version.version=$(VERSION) -X livepatch/internal/version.date=$(DATE)
# Without this tag gRPC links text/template for a debug page that nobody serves, and
# with it everything that a template could call: 3 MB of code for root.
TAGS     := grpcnotrace
PROGRAMS := $(addprefix ./,$(wildcard agent/cmd/* loader/cmd/* server/cmd/* publisher/cmd/*))
PACKAGES := ./...
# PKCS#11 modules are C; without a compiler the publisher is built without them.
CGO      := $(if $(shell command -v gcc 2>/dev/null),1,0)

# Tools are built once for each version of them and of Go.
GOVERSION := $(shell go env GOVERSION 2>/dev/null)
GENERATE  := .cache/tools/generate-$(shell cat tools/go.sum | sha256sum | cut -c1-12)-$(GOVERSION)
LINT      := .cache/tools/lint-$(shell cat tools/lint/go.sum | sha256sum | cut -c1-12)-$(GOVERSION)
SQLC      := .cache/tools/sqlc-$(shell cat tools/sqlc/go.sum | sha256sum | cut -c1-12)-$(GOVERSION)
GOTEST    := build/gotest

# ---- verbs ----

.PHONY: help
help: ## List the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## Install what the tests need (Debian; root or sudo; quick when nothing is missing)
	@scripts/setup.sh

.PHONY: build
build: ## Build the programs into build/bin, stamped with the version; static but for the publisher
	@mkdir -p build/bin
	@go build -trimpath -tags '$(TAGS)' -ldflags '$(LDFLAGS)' -o build/bin/ $(filter-out ./publisher/%,$(PROGRAMS))
	@CGO_ENABLED=$(CGO) go build -trimpath -tags '$(TAGS)' -ldflags '$(LDFLAGS)' -o build/bin/ ./publisher/cmd/livepatch-publish

# The snap, for ARCH and with what is in the folder TRUST: the pinned TUF root and
# the certificate for modules. Without TRUST it is one for trying things out.
# SYSTEM_USER=_daemon_ makes it one for snapd 2.61 and newer only.
ARCH  ?= amd64
TRUST ?=
SNAP  := build/snap/canonical-livepatch_$(ARCH).snap
DEB   := build/deb

.PHONY: snap
snap: ## Pack the snap into build/snap (ARCH: amd64, arm64, ppc64el, s390x; TRUST: folder with root.json)
	@scripts/setup.sh
	@TAGS='$(TAGS)' LDFLAGS='$(LDFLAGS)' scripts/snap.sh '$(ARCH)' '$(TRUST)' '$(SNAP)'

.PHONY: deb
deb: ## Make the Debian package for machines without snapd, in build/deb (ARCH and TRUST as above)
	@scripts/setup.sh
	@TAGS='$(TAGS)' LDFLAGS='$(LDFLAGS)' scripts/deb.sh '$(ARCH)' '$(TRUST)' '$(DEB)'

.PHONY: snap-tree
snap-tree: ## Lay out what is in the snap in the folder TREE, as snapcraft needs it
	@TAGS='$(TAGS)' LDFLAGS='$(LDFLAGS)' scripts/snap.sh '$(ARCH)' '$(TRUST)' --tree '$(TREE)'

.PHONY: demo
demo: setup build ## From nothing to a patched kernel in a virtual machine, and back
	@go run ./tests/vm/demo

.PHONY: check
check: setup check-static vulncheck build check-unit check-integration check-attack check-secureboot check-snap check-vm ## Everything that CI runs

# What check leaves out takes another hour: the other versions of snapd, all of Secure
# Boot, the Debian package.
.PHONY: check-all
check-all: check check-snaps test-secureboot check-deb ## Everything there is

.PHONY: check-fast
check-fast: check-static build check-unit ## The part of check that runs no built program and no virtual machine

.PHONY: check-static
check-static: fmt-check vet lint generate-check modules-check ## Format, vet, lint, generated code, modules

# Simulations have next to no goroutines for the race detector, which makes minutes of them.
SIMULATIONS := ./server/internal/rollout/table ./tests/sim

.PHONY: check-unit
check-unit: $(GOTEST) ## Unit tests with the race detector, and the seeds of the fuzz tests
	@$(GOTEST) -timeout 15m ./internal/tuf $(SIMULATIONS) # all cases of tuf; with -race it runs a fifth of them
	@CGO_ENABLED=1 $(GOTEST) -race -timeout 15m $$(go list $(PACKAGES) | grep -vxF $(SIMULATIONS:./%=-e livepatch/%))

.PHONY: check-integration
check-integration: build $(GOTEST) ## The real programs on a kernel made of files
	@$(GOTEST) -tags integration -count=1 -timeout 20m ./tests/integration/... ./tests/house/... ./tests/supply/...

.PHONY: check-vm
check-vm: build $(GOTEST) ## The real programs on a real kernel, under QEMU
	@$(GOTEST) -tags vm -count=1 -timeout 60m ./tests/vm/...

.PHONY: check-snap check-snaps
SUITE ?= bookworm
check-snap: build $(GOTEST) ## The snap on a real snapd: that of Debian's SUITE (bookworm, trixie or sid)
	@$(GOTEST) -tags snap -count=1 -timeout 60m ./tests/snap -suite $(SUITE)

check-snaps: setup ## The snap on every snapd that is supported but that of check
	@for suite in trixie sid; do $(MAKE) check-snap SUITE=$$suite; done

.PHONY: check-secureboot test-secureboot
check-secureboot: build $(GOTEST) ## Secure Boot with a key of the firmware's
	@$(GOTEST) -tags secureboot -count=1 -timeout 20m -run '^TestKeysOfTheFirmware$$' ./tests/secureboot

test-secureboot: setup build $(GOTEST) ## All of Secure Boot: firmware, MokManager, keys that are wrong, revoked or expired
	@$(GOTEST) -tags secureboot -count=1 -timeout 60m ./tests/secureboot

.PHONY: check-deb
check-deb: build $(GOTEST) ## The Debian package, on a whole Debian
	@$(GOTEST) -tags deb -count=1 -timeout 30m ./tests/deb

.PHONY: check-attack
check-attack: build $(GOTEST) ## The attacks of make attack but for those on a real kernel, which check-vm runs
	@$(GOTEST) -tags attack -count=1 -parallel 6 -timeout 20m ./tests/attack/...

.PHONY: powercut
N ?= 200
powercut: setup ## Cut the power of virtual machines N times while the loader works: make powercut N=20
	@go run ./tests/vm/powercut -n $(N)

# Every attack is tried even if one gets through; the table says which.
.PHONY: attack
attack: build $(GOTEST) ## Attack the real programs: a table of what was tried, and what stopped it
	@go run ./tests/attack/table -begin
	@status=0; \
	$(GOTEST) -tags attack -count=1 -parallel 6 -timeout 20m ./tests/attack/... || status=$$?; \
	$(GOTEST) -tags vm -count=1 -timeout 15m -run '^TestAttack' ./tests/vm || status=$$?; \
	go run ./tests/attack/table || status=1; \
	exit $$status

.PHONY: bench
bench: build ## Measure speed and size beside their peers; raw numbers in build/bench.json
	@scripts/setup.sh bench
	@go run ./tests/bench

.PHONY: sim
MACHINES ?=
sim: ## Simulate rollouts on the real service in accelerated time: table, CSV and plots in build/sim (MACHINES=N: fleets of that size)
	@go run ./tests/sim $(if $(MACHINES),-machines $(MACHINES))

.PHONY: vulncheck
vulncheck: ## Look for known vulnerabilities in what the programs call (LIVEPATCH_VULNDB: another database)
	@scripts/vulncheck.sh

.PHONY: sbom
sbom: build ## Write a bill of materials for each program into build/sbom
	@scripts/sbom.sh build/bin build/sbom '$(VERSION)'

.PHONY: fuzz
TIME ?= 1m
fuzz: ## Run every fuzz test for TIME (default 1m): make fuzz TIME=10m
	@scripts/fuzz.sh $(TIME)

.PHONY: fmt
fmt: $(LINT)/golangci-lint ## Format the code
	@$(LINT)/golangci-lint fmt

.PHONY: lint
lint: $(LINT)/golangci-lint ## Run the linters of .golangci.yml
	@CGO_ENABLED=1 $(LINT)/golangci-lint run --allow-parallel-runners $(PACKAGES)

.PHONY: generate
generate: $(GENERATE)/buf $(SQLC)/sqlc ## Generate code from proto/ and from the server's queries.sql
	@cd proto && PATH="$(CURDIR)/$(GENERATE):$$PATH" buf generate
	@PATH="$(CURDIR)/$(SQLC):$$PATH" go generate ./server/internal/store/sqlite

.PHONY: clean
clean: ## Remove what was built; .cache stays (remove it by hand to fetch all anew)
	@rm -rf build

# ---- parts of check ----

.PHONY: fmt-check vet generate-check modules-check
fmt-check: $(LINT)/golangci-lint
	@$(LINT)/golangci-lint fmt --diff

vet:
	@go vet -tags integration,vm,attack,snap,secureboot,deb $(PACKAGES)

generate-check: $(GENERATE)/buf $(SQLC)/sqlc
	@PATH="$(CURDIR)/$(GENERATE):$(CURDIR)/$(SQLC):$$PATH" scripts/generate-check.sh

modules-check:
	@go mod tidy -diff
	@go mod verify >/dev/null

# ---- tools ----

$(GENERATE)/buf:
	@echo "building buf and the protoc plugins into $(GENERATE)" >&2
	@GOBIN='$(CURDIR)/$(GENERATE)' go -C tools install tool

$(SQLC)/sqlc:
	@echo "building sqlc into $(SQLC)" >&2
	@GOBIN='$(CURDIR)/$(SQLC)' go -C tools/sqlc install tool

$(LINT)/golangci-lint:
	@echo "building golangci-lint into $(LINT)" >&2
	@GOBIN='$(CURDIR)/$(LINT)' go -C tools/lint install tool

# go build is quick when nothing has changed, so it is asked each time.
.PHONY: $(GOTEST)
$(GOTEST):
	@go build -o $@ ./tests/gotest
