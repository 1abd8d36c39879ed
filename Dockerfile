# The images of the main pod and of the sample agent, for machines with a registry and without.
#   with:     docker build --tag ottoscaler.local/ottoscaler:dev .
#             docker build --target agent --tag ottoscaler.local/otto-agent:dev .
#   without:  make bin, then add --build-arg BINARY=prebuilt (and DOCKER_BUILDKIT=1: the old
#             builder wants the base image of every stage, used or not).
# `make build` does this. Without an engine, internal/dev/image makes the same images.

# BUILD_IMAGE compiles; any image with this Go and a shell will do.
ARG BUILD_IMAGE=golang:1.26
# BASE_IMAGE is what the programs lie on. They are static and need nothing.
ARG BASE_IMAGE=scratch
# BINARY is build (compile here) or prebuilt (take bin/ from the build context).
ARG BINARY=build

FROM ${BUILD_IMAGE} AS build
WORKDIR /src
# The flags of the Makefile.
ENV CGO_ENABLED=0 GOFLAGS="-trimpath -buildvcs=false"
# Where modules come from, if not from where Go looks by itself.
ARG GOPROXY
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN mkdir -p /out && go build -ldflags "-s -w" -o /out/ ./cmd/consumer ./cmd/scaler ./cmd/log-relay ./examples/agent

FROM scratch AS prebuilt
COPY bin/consumer bin/scaler bin/log-relay bin/agent /out/

FROM ${BINARY} AS binary

FROM ${BASE_IMAGE} AS agent
COPY --from=binary /out/agent /agent
USER 65532:65532
ENTRYPOINT ["/agent"]

# The last stage is what a build without --target makes. A layer per program: an edit of one
# leaves the others where they are.
FROM ${BASE_IMAGE} AS ottoscaler
COPY --from=binary /out/consumer /consumer
COPY --from=binary /out/scaler /scaler
COPY --from=binary /out/log-relay /log-relay
USER 65532:65532
ENTRYPOINT ["/consumer"]
