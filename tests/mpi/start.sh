# start RANKS COMMAND…: under mpirun, wherever this runs.
start() {
  local ranks=$1
  shift
  command -v mpirun >/dev/null || { echo "skipped: no mpirun here (Open MPI: apt-get install openmpi-bin)"; return 77; }
  [[ -x $1 ]] || { echo "skipped: $1 is not built"; return 77; }
  local flags=()
  if mpirun --version 2>/dev/null | grep -q "Open MPI"; then flags=(--oversubscribe --allow-run-as-root); fi
  # What the library itself leaves allocated is no leak of ours.
  ASAN_OPTIONS="${ASAN_OPTIONS:-}:detect_leaks=0" timeout 120 mpirun "${flags[@]}" -n "$ranks" "$@" </dev/null
}
