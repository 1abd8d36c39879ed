# `make help` is the index. Every recipe does its own set-up: Go, make and a shell are enough.

# One set of build flags for build, test, lint and tools. Another one compiles a thousand packages
# again. Race tests need cgo; scripts/test turns it on for them alone.
export CGO_ENABLED := 0
export GOFLAGS     := -trimpath -buildvcs=false

GO        ?= go
DOCKER    ?= docker
IMAGE_TAG ?= dev

# ENV_FILE, ONLY, QUICK, CLUSTER and the names of images, given to make or exported, reach the
# programs as they are.
#
# USER is whose environment is meant, if it stands on make's command line: make test-event USER=jinwoo.
# The variable of that name that every shell has, the login name, is never taken for it.
export OTTODEV_USER := $(if $(filter command,$(firstword $(origin USER))),$(USER))

OTTODEV = $(GO) run ./cmd/ottodev

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
image: ## Make the images: in Docker where it runs (BASE_IMAGE, BUILD_IMAGE), else as archives in build/images
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
test: ## All tests: unit (race), integration, chart, end to end, developers' environments
	@GO="$(GO)" scripts/test unit integration chart e2e development

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

.PHONY: test-development
test-development: ## Two developers' environments, from setup-user to clean, in Docker and kind
	@GO="$(GO)" scripts/test development

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

##@ An environment of your own (USER=<name>, unless there is but one)

.PHONY: setup-user
setup-user: ## Make it, or what is missing of it: network, Redis, log server, kind cluster, files
	@GO="$(GO)" scripts/setup-user-env.sh

.PHONY: deploy
deploy: ## Build what changed, load it, install or upgrade the release, wait
	@$(OTTODEV) deploy

.PHONY: test-event
test-event: ## Send an event (ENV_FILE=.env.you.local ARGS="--type scale_down --task t1 --wait")
	@file="$${ENV_FILE:-$$($(OTTODEV) env-file --or-none)}" && ENV_FILE="$$file" $(GO) run ./cmd/test-event $(ARGS)

.PHONY: dead-letters
dead-letters: ## Events that were rejected (ARGS="show ID", "replay ID|--all|--reason R", "drop …")
	@$(OTTODEV) dead-letters $(ARGS)

.PHONY: pause
pause: ## Begin no more events; they wait in Redis (ARGS="--reason 'a migration'")
	@$(OTTODEV) pause $(ARGS)

.PHONY: resume
resume: ## End a pause
	@$(OTTODEV) resume

.PHONY: logs
logs: ## Follow all three containers of the main pod (C=scaler for one, ARGS="--no-follow --tail 20")
	@$(OTTODEV) logs $(ARGS)

.PHONY: status
status: ## Redis, cluster, release, pods, backlog, the last events
	@$(OTTODEV) status

.PHONY: redis-cli
redis-cli: ## redis-cli in the user's Redis (ARGS="XLEN otto:scale:events")
	@$(OTTODEV) redis-cli $(ARGS)

.PHONY: kubectl
kubectl: ## kubectl on the user's cluster (ARGS="get pods")
	@$(OTTODEV) kubectl $(ARGS)

.PHONY: list-users
list-users: ## The environments of this checkout
	@$(OTTODEV) list-users

.PHONY: doctor
doctor: ## What this machine lacks for them, with the remedies
	@$(OTTODEV) doctor

.PHONY: clean
clean: ## Remove everything of USER=<name>; without, of all (asks, unless YES=1), and bin/ and build/
	@$(if $(OTTODEV_USER)$(wildcard .env.*.local),$(OTTODEV) clean)
	@$(if $(OTTODEV_USER),,rm -rf bin build)

##@ See it run

.PHONY: demo
demo: ## The main job, live: Redis, a cluster, the chart, workers that print
	@echo "compiling what runs the demo (the first time, that takes some minutes)"
	@$(OTTODEV) demo

.PHONY: demo-down
demo-down: ## Remove all of the demo
	@$(OTTODEV) demo-down

.PHONY: help
help: ## This list
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@/ { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z0-9-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
