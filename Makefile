# `make help` is the index. Every recipe does its own set-up: Go, make and a shell are enough.

# One set of build flags for build, test, lint and tools. Another one compiles a thousand packages
# again. Race tests need cgo; scripts/test turns it on for them alone.
export CGO_ENABLED := 0
export GOFLAGS     := -trimpath -buildvcs=false

GO      ?= go
KUBECTL ?= kubectl
DOCKER  ?= docker

# What a developer's installation is called, and where it is.
RELEASE   ?= ottoscaler
NAMESPACE ?= $(shell $(KUBECTL) config view --minify -o 'jsonpath={..namespace}' 2>/dev/null || true)
IMAGE_TAG ?= dev

# ENV_FILE, ONLY, QUICK and CLUSTER, given to make or exported, reach the programs as they are.

# A tool of tools/<name>, at the version that its go.mod pins, run in this folder.
tool = $(GO) tool -modfile=tools/$(1)/go.mod $(1)

.DEFAULT_GOAL := help

##@ Build

.PHONY: build
build: bin image ## Compile everything to bin/, and make the images

.PHONY: bin
bin: ## Compile the programs to bin/
	$(GO) build -ldflags "-s -w" -o bin/ ./cmd/... ./examples/agent

.PHONY: image
image: ## Make the images: with Docker where it runs, else as archives in build/images
	@GO="$(GO)" DOCKER="$(DOCKER)" scripts/image "$(IMAGE_TAG)"

.PHONY: generate
generate: ## Generate Go from proto/
	$(call tool,buf) generate

##@ Check

.PHONY: check
check: ## What CI runs: generated code is current, lint, all tests
	.ci/run

.PHONY: lint
lint: ## Go, protos, scripts, chart
	@GO="$(GO)" scripts/lint

.PHONY: fmt
fmt: ## Format Go code as lint wants it
	$(call tool,golangci-lint) fmt ./...

.PHONY: test
test: ## All tests: unit (race), integration, chart, end to end
	@GO="$(GO)" scripts/test unit integration chart e2e

.PHONY: test-unit
test-unit: ## Unit tests with the race detector, and what needs a Redis or an API server
	@GO="$(GO)" scripts/test unit

.PHONY: test-integration
test-integration: ## Tests of the from-source cluster and of what lies beside e2e and chart in test/
	@GO="$(GO)" scripts/test integration

.PHONY: test-chart
test-chart: ## Renders, schema, Pod Security, rights; what each binary may link
	@GO="$(GO)" scripts/test chart

.PHONY: test-e2e
test-e2e: ## The whole story on a real kubelet (CLUSTER=source|kind|current)
	@GO="$(GO)" scripts/test e2e

.PHONY: golden
golden: ## Accept the chart's renders as they are now
	$(GO) test ./test/chart -run TestRendersEveryValuesFileLikeItsGolden -update

.PHONY: coverage
coverage: ## Test coverage by package, without e2e
	@mkdir -p build
	$(GO) test -coverprofile=build/cover.out -coverpkg=./cmd/...,./pkg/...,./internal/... ./pkg/... ./internal/... ./cmd/...
	$(GO) tool cover -func=build/cover.out | tail -1

##@ Measure

.PHONY: bench
bench: ## Figures beside the bare library's; build/bench.json (ONLY=pattern QUICK=1)
	@$(GO) run ./test/bench

.PHONY: chaos
chaos: ## Kill everything in turn; build/chaos.json (ONLY=pattern QUICK=1)
	@$(GO) run ./test/chaos

##@ Use

.PHONY: demo
demo: ## The main job, live: Redis, a cluster, the chart, workers that print
	@echo "compiling what runs the demo (the first time, that takes some minutes)"
	@$(GO) run ./cmd/ottodev demo

.PHONY: demo-down
demo-down: ## Remove all of the demo
	@$(GO) run ./cmd/ottodev demo-down

.PHONY: test-event
test-event: ## Send an event (ENV_FILE=.env.you.local ARGS="--type scale_down --task t1 --wait")
	@$(GO) run ./cmd/test-event $(ARGS)

.PHONY: logs
logs: ## Follow the main pod's log (C=consumer, scaler or log-relay for one container)
	$(KUBECTL) $(if $(NAMESPACE),-n $(NAMESPACE)) logs deploy/$(RELEASE) -f --prefix $(if $(C),-c $(C),--all-containers)

.PHONY: clean
clean: ## Remove bin/ and build/
	rm -rf bin build

.PHONY: help
help: ## This list
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@/ { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z0-9-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
