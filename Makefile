# bindgate. The paths are compiled into both binaries: the helper believes no path from argv or the environment.
PREFIX         = /usr/local
SYSCONFDIR     = /etc
LOCALSTATEDIR  = /var
RUNDIR         = /run
DESTDIR        =
BINDGATE_USER  = bindgate
BINDGATE_GROUP = bindgate
# What runs a command as root: only for what needs it, so that nothing in the checkout becomes root's.
SUDO           = $(shell [ "$$(id -u)" = 0 ] || echo sudo)
VERSION        = dev
BIN            = bin
OUT            = $(BIN)
GO             = go
# The manual pages and the shells' completions, and zsh's folder for them, which is another one in Debian's packages.
DOCS           = $(BIN)/docs
ZSH            = site-functions
# What documents and packages are dated with, so that they are the same whenever they are made.
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
# Tools of the build have a module of their own, which pins them.
TOOL           = GOFLAGS= $(GO) tool -modfile=packaging/tools/go.mod

X       = -X github.com/bindgate/bindgate/conf
LDFLAGS = -s -w -buildid= $(X).prefix=$(PREFIX) $(X).sysconfdir=$(SYSCONFDIR) $(X).localstatedir=$(LOCALSTATEDIR) $(X).rundir=$(RUNDIR) \
          $(X).user=$(BINDGATE_USER) $(X).version=$(VERSION)
BUILD   = CGO_ENABLED=0 GOFLAGS= $(GO) build -trimpath -buildvcs=false -ldflags "$(LDFLAGS)"

all: $(BIN)/bindgate $(BIN)/bindgate-helper ## both binaries: static, reproducible bit for bit

$(BIN)/bindgate: FORCE
	$(BUILD) -o $@ ./cmd/bindgate
$(BIN)/bindgate-helper: FORCE
	$(BUILD) -o $@ ./helper

docs: ## manual pages and completions, into bin/docs
	GOFLAGS= $(GO) run -trimpath -buildvcs=false ./cmd/manual $(DOCS)

install: all docs ## binaries, configuration (never over an existing one), manual pages, units, folders, user and group
	@$(MAKE) --no-print-directory install-built

# DESTDIR is for a package, whose scripts make user and group: it gets the modes, and the ids if they exist.
install-built:
	@[ -n "$(DESTDIR)" ] || getent group $(BINDGATE_GROUP) >/dev/null || $(SUDO) groupadd --system $(BINDGATE_GROUP)
	@[ -n "$(DESTDIR)" ] || getent passwd $(BINDGATE_USER) >/dev/null || \
		$(SUDO) useradd --system --gid $(BINDGATE_GROUP) --home-dir /nonexistent --no-create-home --shell /usr/sbin/nologin $(BINDGATE_USER)
	@BIN='$(BIN)' DOCS='$(DOCS)' ZSH='$(ZSH)' PREFIX='$(PREFIX)' SYSCONFDIR='$(SYSCONFDIR)' LOCALSTATEDIR='$(LOCALSTATEDIR)' RUNDIR='$(RUNDIR)' DESTDIR='$(DESTDIR)' \
		BINDGATE_USER='$(BINDGATE_USER)' BINDGATE_GROUP='$(BINDGATE_GROUP)' SUDO='$(SUDO)' packaging/install

uninstall: ## what install put; not configuration and state
	@ZSH='$(ZSH)' PREFIX='$(PREFIX)' SYSCONFDIR='$(SYSCONFDIR)' LOCALSTATEDIR='$(LOCALSTATEDIR)' RUNDIR='$(RUNDIR)' DESTDIR='$(DESTDIR)' \
		BINDGATE_USER='$(BINDGATE_USER)' SUDO='$(SUDO)' packaging/uninstall

sbom: all ## what both binaries are built from: CycloneDX, and a list of licences
	$(GO) build -C packaging/tools -trimpath -buildvcs=false -o $(abspath $(BIN))/sbom ./sbom
	$(BIN)/sbom $(BIN) $(BIN)/bindgate $(BIN)/bindgate-helper

# Its own paths, whatever the variables above say.
deb: deps ## a Debian package, in OUT
	@$(MAKE) --no-print-directory deb-built BIN=$(BIN)/deb OUT=$(OUT) PREFIX=/usr SYSCONFDIR=/etc LOCALSTATEDIR=/var RUNDIR=/run BINDGATE_USER=bindgate BINDGATE_GROUP=bindgate \
		ZSH=vendor-completions
deb-built: all docs sbom
	@BIN='$(BIN)' VERSION='$(VERSION)' PREFIX='$(PREFIX)' LOCALSTATEDIR='$(LOCALSTATEDIR)' RUNDIR='$(RUNDIR)' packaging/deb/build $(OUT)

verify: deps ## build twice, in different places, and compare every byte, the package included
	@packaging/verify

demo: deps ## the main job, told step by step, on a host of its own
	@$(MAKE) --no-print-directory -s all docs BIN=bin/demo PREFIX=/run/bindgate-demo/prefix SYSCONFDIR=/run/bindgate-demo/etc \
		LOCALSTATEDIR=/run/bindgate-demo/var RUNDIR=/run/bindgate-demo/run VERSION=demo
	@$(SUDO) env PATH='$(PATH)' tests/demo/demo bin/demo

test: deps ## vet, then all tests, on real kernels, containers and plugins
	$(GO) vet ./...
	SUDO='$(SUDO)' $(GO) test -count=1 -timeout 30m -exec '$(CURDIR)/tests/exec' ./...

# Podman, crun and a Docker engine are unpacked into bin/runtimes, not installed.
test-runtimes: deps ## the hooks and running containers, with podman, crun, containerd and a Docker engine
	@SUDO='$(SUDO)' tests/runtimes/fetch
	$(GO) vet -tags runtimes ./tests/runtimes
	SUDO='$(SUDO)' $(GO) test -count=1 -timeout 30m -tags runtimes -exec '$(CURDIR)/tests/exec' ./tests/runtimes

# On a Debian system that is unpacked into bin/debian.
test-packages: deps ## install, upgrade, remove and purge the Debian package on a fresh system
	@SUDO='$(SUDO)' tests/packages/fetch
	@for v in 1.0.0 1.0.1; do $(MAKE) --no-print-directory -s deb OUT=bin/packages VERSION=$$v || exit 1; done
	$(GO) vet -tags packages ./tests/packages
	SUDO='$(SUDO)' $(GO) test -count=1 -timeout 30m -tags packages -exec '$(CURDIR)/tests/exec' ./tests/packages

test-peers: deps ## rclone as it is released, as a plugin: a gigabyte of modules, and minutes to build
	$(GO) vet -tags peers ./tests/peers
	SUDO='$(SUDO)' $(GO) test -v -count=1 -timeout 60m -tags peers -exec '$(CURDIR)/tests/exec' ./tests/peers

test-model: deps ## MODELCHECKS (default 100) random sequences of verbs against a model; MODELSEED=N makes those of an earlier run
	SUDO='$(SUDO) env MODELCHECKS=$(or $(MODELCHECKS),100) MODELSEED=$(or $(MODELSEED),$(shell date +%s))' $(GO) test -v -count=1 -timeout 30m -exec '$(CURDIR)/tests/exec' ./tests/model

test-crash: deps ## the kill sweep and the fault sweep: both programs at every system call
	$(GO) vet -tags crash ./tests/crash
	SUDO='$(SUDO)' $(GO) test -v -count=1 -timeout 60m -tags crash -exec '$(CURDIR)/tests/exec' ./tests/crash

soak: deps ## 64 processes at once, killed at random, for SOAKTIME (default 3m); SOAKSEED=N makes the choices of an earlier run
	SUDO='$(SUDO) env SOAKTIME=$(or $(SOAKTIME),3m) SOAKSEED=$(SOAKSEED)' $(GO) test -v -count=1 -timeout 24h -exec '$(CURDIR)/tests/exec' ./tests/soak

# The table and plots of docs/performance.md, on a machine that does nothing else.
bench: ## benchmarks against their baselines: a table, and plots in bench/out
	@SUDO='$(SUDO)' tests/deps build-essential:cc
	@mkdir -p bench/out
	$(CC) -O2 -static -o bench/out/floor bench/floor.c
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o bench/out/empty ./bench/empty
	SUDO='$(SUDO)' $(GO) test -count=1 -timeout 60m -tags bench -v -exec '$(CURDIR)/tests/exec' ./bench
	cd bench/plot && $(GO) run . ../out

fuzz: ## every fuzz target for FUZZTIME (default 30s)
	@packaging/fuzz $(or $(FUZZTIME),30s)

lint: ## gofmt, vet, staticcheck and govulncheck
	@unformatted=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); [ -z "$$unformatted" ] || { echo "gofmt: $$unformatted"; exit 1; }
	$(GO) vet ./...
	$(TOOL) staticcheck -tags=bench,crash,packages,peers,runtimes ./...
	@GO='$(GO)' packaging/vulncheck

# What a fresh machine lacks.
deps:
	@SUDO='$(SUDO)' tests/deps

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14
	@echo; echo 'variables: PREFIX=$(PREFIX) SYSCONFDIR=$(SYSCONFDIR) LOCALSTATEDIR=$(LOCALSTATEDIR) RUNDIR=$(RUNDIR) DESTDIR=$(DESTDIR)'
	@echo '           BINDGATE_USER=$(BINDGATE_USER) BINDGATE_GROUP=$(BINDGATE_GROUP) SUDO=$(SUDO) VERSION=$(VERSION)'

.PHONY: all docs install install-built uninstall sbom deb deb-built verify demo test test-runtimes test-packages test-peers soak bench fuzz lint deps help FORCE
