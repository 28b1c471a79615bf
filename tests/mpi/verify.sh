#!/usr/bin/env bash
# verify.sh BINARY FOLDER RANKS LAYOUT…: verify on ranks that mpirun starts. Exit 77: skipped.
set -uo pipefail
binary=$1 folder=$2 ranks=$3
shift 3
# shellcheck source=tests/mpi/start.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/start.sh"
start "$ranks" "$binary" verify "$folder" "$@"
