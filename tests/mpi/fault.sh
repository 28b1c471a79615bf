#!/usr/bin/env bash
# fault.sh BINARY FOLDER KIND WORDS: one of two ranks fails in the way KIND of FATHOM_FAULT; the run must end by itself, soon, with an exit
# code, and its error must hold WORDS. Exit 77: skipped.
set -uo pipefail
binary=$1 folder=$2 kind=$3 words=$4
# shellcheck source=tests/mpi/start.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/start.sh"
export FATHOM_FAULT=$kind FATHOM_RANK_TIMEOUT=3
begun=$SECONDS
said=$(start 2 "$binary" verify "$folder" --tp 2 2>&1)
code=$?
((code == 77)) && echo "$said" && exit 77
echo "$said"
echo "exit code $code after $((SECONDS - begun)) s"
((code != 0)) || { echo "a failed run that says it passed"; exit 1; }
((SECONDS - begun < 30)) || { echo "it hung"; exit 1; }
[[ $said == *"$words"* ]] || { echo "nothing says: $words"; exit 1; }
