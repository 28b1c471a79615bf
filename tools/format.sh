#!/usr/bin/env bash
# tools/format.sh [--check]: clang-format over every tracked C++ file; --check changes nothing and names those that differ.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
files() { git ls-files -z '*.cpp' '*.h'; }
if [[ ${1:-} != --check ]]; then
  files | xargs -0 clang-format -i
  exit
fi
bad=0
while IFS= read -r -d '' file; do
  clang-format --dry-run -Werror "$file" >/dev/null 2>&1 || { printf '%s is not formatted\n' "$file"; bad=1; }
done < <(files)
exit "$bad"
