# kata-qat: make help says what there is to make.

VERSION := $(shell cat VERSION)
COMMIT  := $(shell git rev-parse HEAD 2>/dev/null)$(shell test -z "$$(git status --porcelain 2>/dev/null)" || echo -dirty)

GO      ?= go
STAMP   := github.com/kata-qat/kata-qat/internal/version
LDFLAGS := -s -w -X $(STAMP).Version=$(VERSION) -X $(STAMP).Commit=$(COMMIT)
# The commit is stamped above. The go command's own stamp fails the build in a
# checkout that belongs to another user, as a CI's may.
export GOFLAGS := $(GOFLAGS) -buildvcs=false

STATIC  := CGO_ENABLED=0 $(GO) build -trimpath

# What the programs have no use for and every start of them would pay for: cli's
# writer of man pages, grpc's web pages of traces. test/lab builds with the same.
LEAN    := -tags urfave_cli_no_docs,grpcnotrace

# The race detector needs cgo; the programs that are shipped are made without.
TEST    := CGO_ENABLED=1 $(GO) test -race

# Unit tests write machines of thousands of small files: in memory where that
# is possible. The go command puts test programs there, too.
INMEM   := $(shell test -d /dev/shm -a -w /dev/shm && ! grep -q ' /dev/shm .*noexec' /proc/mounts && echo TMPDIR=/dev/shm)

# Tests with a tag need root and a bed; entry is the small kata-qat. TAGS are all
# there are, for lint.
TAGS    := bed lab kernel kube entry
MODULES := . test/tools test/tools/containerd17 test/tools/standin test/tools/protogen test/tools/promcheck test/tools/envoycheck
SCRIPTS  = $(shell find . -name '*.sh' -not -path './build/*' -not -path './.git/*') .ci/run

TOOLS   := build/tools
BEDTIME := 10m
# Arguments for `make bench` and `make demo`, and a pattern of benchmarks.
ARGS    ?=
BENCH   ?= .

.PHONY: build
build: ## build the programs into bin
	@echo "==> build $(VERSION) into bin"
	@mkdir -p bin
	@$(STATIC) $(LEAN) -ldflags '$(LDFLAGS)' -o bin/ ./cmd/containerd-shim-kata-qat-v2
	@$(STATIC) $(LEAN) -ldflags '$(LDFLAGS)' -o bin/kata-qat-full ./cmd/kata-qat
	@$(STATIC) $(LEAN),entry -ldflags '$(LDFLAGS)' -o bin/kata-qat ./cmd/kata-qat

# The image's name is the chart's, values.yaml.
IMAGE   := ghcr.io/kata-qat/kata-qat:$(VERSION)

.PHONY: image
image: build ## write the container image into build/image/kata-qat.tar
	@$(GO) run ./deploy/image -o build/image/kata-qat.tar -bin bin -ref $(IMAGE) -version $(VERSION) -commit $(COMMIT)

.PHONY: help
help: ## list what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## install what tests need and this machine lacks (root; Debian or Ubuntu)
	@test/setup.sh

# One stamp for each module of tools: the go command finds out what changed, but
# takes seconds to find that nothing did.
.PHONY: tools
tools: $(TOOLS)/.stamp $(TOOLS)/1.7/.stamp ## build the pinned containerd 2.4 and 1.7 for the test beds

$(TOOLS)/.stamp: test/tools/go.mod test/tools/go.sum $(wildcard test/tools/containerd-shim-kata-v2/*.go test/tools/pause/*.go test/tools/runc-unraised/*.go test/tools/standin/*.go)
	@echo "==> build containerd 2.4 into $(TOOLS): some two minutes the first time"
	@mkdir -p $(@D)
	@cd test/tools && $(STATIC) -ldflags '-s -w' -o $(CURDIR)/$(@D)/ tool ./...
	@touch $@

$(TOOLS)/1.7/.stamp: test/tools/containerd17/go.mod test/tools/containerd17/go.sum $(wildcard test/tools/containerd17/containerd-shim-kata-v2/*.go test/tools/standin/*.go)
	@echo "==> build containerd 1.7 into $(TOOLS)/1.7: a minute the first time"
	@mkdir -p $(@D)
	@cd test/tools/containerd17 && $(STATIC) -ldflags '-s -w' -o $(CURDIR)/$(@D)/ tool ./...
	@touch $@

# Kubernetes says the version that its build was given. etcd's program is called
# after its directory.
.PHONY: kube-tools
kube-tools: $(TOOLS)/kubernetes/.stamp ## build the pinned Kubernetes and etcd for the Kubernetes bed

$(TOOLS)/kubernetes/.stamp: test/tools/kubernetes/go.mod test/tools/kubernetes/go.sum
	@echo "==> build Kubernetes and etcd into $(TOOLS)/kubernetes: some twelve minutes the first time"
	@mkdir -p $(@D)
	@cd test/tools/kubernetes && version=$$($(GO) list -m -f '{{.Version}}' k8s.io/kubernetes) && \
		$(STATIC) -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$$version" -o $(CURDIR)/$(@D)/ tool
	@mv $(@D)/server $(@D)/etcd
	@touch $@

.PHONY: helm-tools
helm-tools: $(TOOLS)/helm/.stamp ## build the pinned Helm

$(TOOLS)/helm/.stamp: test/tools/helm/go.mod test/tools/helm/go.sum
	@echo "==> build Helm into $(TOOLS)/helm: three minutes the first time"
	@mkdir -p $(@D)
	@cd test/tools/helm && $(STATIC) -ldflags '-s -w' -o $(CURDIR)/$(@D)/ tool
	@touch $@

.PHONY: test
test: ## run everything: set-up, lint, unit tests, containerd bed, Kubernetes, QEMU lab, drivers, kernel trees
	@$(MAKE) --no-print-directory setup
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory unit
	@$(MAKE) --no-print-directory bed
	@$(MAKE) --no-print-directory cluster-test
	@$(MAKE) --no-print-directory e2e
	@$(MAKE) --no-print-directory lab-test
	@$(MAKE) --no-print-directory chain-test
	@$(MAKE) --no-print-directory bootstrap-test
	@$(MAKE) --no-print-directory chart-test
	@$(MAKE) --no-print-directory driver-test
	@$(MAKE) --no-print-directory kernel-test
	@echo "==> all passed"

.PHONY: unit
unit: ## run the unit tests with the race detector; fuzz tests run their seeds
	@echo "==> unit tests"
	@$(INMEM) $(TEST) ./...
	@echo "==> dashboard and alerts, by Prometheus' and Grafana's libraries"
	@cd test/tools/promcheck && $(GO) test -count 1 ./...

# -p 1: two beds at once would measure and wait for each other.
.PHONY: bed
bed: build tools kube-tools examples-setup ## run the tests that start a real containerd (root)
	@echo "==> containerd bed tests"
	@$(TEST) -tags bed -count 1 -p 1 -timeout $(BEDTIME) ./test/...

.PHONY: cluster-test
cluster-test: helm-tools kube-tools ## lint and render the chart, and apply it to a real API server
	@echo "==> chart and cluster tests"
	@$(TEST) -tags kube -count 1 -timeout $(BEDTIME) ./internal/kubeevents ./provision/cluster ./deploy/...

.PHONY: examples-setup
examples-setup: $(TOOLS)/envoycheck $(TOOLS)/haproxy-ingress/controller ## unpack HAProxy, nginx and DPDK of Debian for the tests of deploy/examples
	@test/examples/setup.sh

$(TOOLS)/envoycheck: $(wildcard test/tools/envoycheck/*)
	@echo "==> build the check of Envoy's configuration into $(TOOLS): a minute the first time"
	@mkdir -p $(@D)
	@cd test/tools/envoycheck && $(STATIC) -ldflags '-s -w' -o $(CURDIR)/$@ .

# The controller's image is its program and the directory rootfs of its module.
$(TOOLS)/haproxy-ingress/controller: test/tools/haproxyingress/go.mod test/tools/haproxyingress/go.sum
	@echo "==> build the HAProxy ingress controller into $(TOOLS): some four minutes the first time"
	@rm -rf $(@D)
	@mkdir -p $(@D)
	@cd test/tools/haproxyingress && $(GO) mod download github.com/jcmoraisjr/haproxy-ingress && \
		cp -r "$$($(GO) list -m -f '{{.Dir}}' github.com/jcmoraisjr/haproxy-ingress)/rootfs" $(CURDIR)/$(@D)/ && \
		$(STATIC) -ldflags '-s -w' -o $(CURDIR)/$@ github.com/jcmoraisjr/haproxy-ingress/pkg
	@chmod -R u+w $(@D)

.PHONY: e2e
e2e: build tools kube-tools helm-tools image examples-setup ## run the tests in a real Kubernetes cluster of one node (root)
	@echo "==> Kubernetes tests"
	@$(GO) test -tags kube -count 1 -p 1 -timeout $(BEDTIME) ./test/...

.PHONY: lab-setup
lab-setup: ## get QEMU and a kernel for the lab (root the first time; some 200 MB)
	@test/lab/setup.sh

.PHONY: lab-test
lab-test: lab-setup build tools ## run the tests in QEMU guests with QAT-shaped devices (root)
	@echo "==> lab tests, in QEMU guests"
	@$(GO) test -tags lab -count 1 -timeout 20m -skip $(BOOTED) ./test/lab

# A whole Debian that boots twice and runs what the pages say: as long as many others.
BOOTED := ^TestANodeIsBootstrapped
.PHONY: bootstrap-test
bootstrap-test: lab-setup build ## bootstrap a node with systemd across a reboot, and put it back, in a QEMU guest (root)
	@echo "==> a node from bare to bare, in a QEMU guest"
	@$(GO) test -tags lab -count 1 -timeout 20m -run $(BOOTED) ./test/lab

.PHONY: chart-test
chart-test: lab-setup build kube-tools helm-tools tools image ## install the chart on a node with the devices, in a QEMU guest (root)
	@echo "==> the chart on a node with QAT-shaped devices, in a QEMU guest"
	@$(GO) test -tags lab -count 1 -timeout 20m ./test/lab/charttest

.PHONY: chain-test
chain-test: lab-setup build tools ## follow a VF from a pod's request into its VM, to the PF's counters (root)
	@echo "==> the whole chain, in a QEMU guest"
	@$(GO) test -tags lab -count 1 -v -timeout 10m ./test/lab/chaintest

# In roots of its own, which are not the lab's.
.PHONY: driver-test
driver-test: lab-setup ## build a driver release, and install Debian's packages of drivers, in Debian roots (root)
	@echo "==> drivers, in Debian roots"
	@test/driver/setup.sh
	@$(GO) test -tags lab -count 1 -timeout $(BEDTIME) ./test/driver

.PHONY: kernel-test
kernel-test: ## merge the kernel configuration fragments into real kernel trees
	@echo "==> kernel configuration"
	@test/kernel/setup.sh
	@$(GO) test -tags kernel -count 1 -timeout 15m ./kernel-config

.PHONY: demo
demo: setup build tools ## show a pod getting its QAT devices, in a containerd bed (root)
	@$(GO) run ./test/demo $(ARGS)

.PHONY: bench
bench: setup build tools ## run the Go benchmarks, then measure pod creation in a bed (root)
	@echo "==> Go benchmarks"
	@$(INMEM) $(GO) test -run '^$$' -bench '$(BENCH)' -benchmem ./...
	@echo "==> pod creation"
	@$(GO) run ./test/bench $(ARGS)

.PHONY: lint
lint: ## gofmt, go vet, staticcheck and shellcheck
	@echo "==> gofmt"
	@unformatted=$$(gofmt -l .) && test -z "$$unformatted" || { echo "not formatted, run gofmt -w:" $$unformatted >&2; exit 1; }
	@set -e; for module in $(MODULES); do echo "==> go vet in $$module"; (cd $$module && $(GO) vet ./...); done
	@set -e; for tag in $(TAGS); do echo "==> go vet -tags $$tag"; $(GO) vet -tags $$tag ./...; done
	@set -e; for module in $(MODULES); do echo "==> staticcheck in $$module"; (cd $$module && $(GO) tool -modfile=$(CURDIR)/go.mod staticcheck ./...); done
	@set -e; for tag in $(TAGS); do echo "==> staticcheck -tags $$tag"; $(GO) tool staticcheck -tags $$tag ./...; done
	@echo "==> shellcheck"
	@shellcheck $(SCRIPTS)

.PHONY: generate
generate: helm-tools ## generate the API's code, the chart's schema, its table in docs, and the manifests
	@cd test/tools/protogen && $(GO) run . -root ../../.. internal/api/v1/node.proto
	@$(GO) run ./deploy/helm/generate

.PHONY: clean
clean: ## remove what was built
	@rm -rf bin build
