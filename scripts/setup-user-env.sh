#!/usr/bin/env bash
# Makes a developer's environment, or completes it: setup-user-env.sh [NAME]. The work is done by
# ottodev, where it is tested; the name may also come from make, as OTTODEV_USER.
set -euo pipefail
cd "$(dirname "$0")/.."
export CGO_ENABLED=0 GOFLAGS="-trimpath -buildvcs=false"
exec "${GO:-go}" run ./cmd/ottodev setup-user ${1:+--user="$1"}
