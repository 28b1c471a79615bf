# shellcheck shell=bash disable=SC2154
# Sourced by test: the steps of ./test --full, one function a step. Each answers whether it passed.

full_format() { "$root/tools/format.sh" --check; }

full_bench() {
  configure "$root/build" -DFATHOM_BENCH=ON
  build "$root/build"
}

# Kernels on the emulated GPU, what ./test leaves out: every case and model, races where looking for them takes minutes, every golden checkpoint.
# Nothing to do without nvcc.
full_emulated() {
  local folder=$root/build/tests/emulated log=$root/build/emulated.log golden filter
  [[ -x $folder/test_emulated ]] || return 0
  logged() { "$@" >>"$log" 2>&1 || { tail -n 40 "$log" >&2; return 1; }; }
  : >"$log"
  logged "$folder/test_emulated" "--gtest_filter=-CudaRecordings*" || return 1  # that is in every run
  for filter in "-*CudaLayers*:CudaRecordings*" "*CudaLayers*row_cache_i8*:*CudaLayers*zero_f16_cache_i8*"; do  # others take many minutes each
    FATHOM_EMULATED_RACES=1 FATHOM_EMULATED_SEED=2 logged "$folder/test_emulated" "--gtest_filter=$filter" || return 1
  done
  for golden in "$root"/tests/fixtures/golden/*/; do
    logged "$folder/fathom_emulated" verify "$golden" --device cuda --atol 1e-4 || return 1
  done
}

# With sanitizers, a test program that is instrumented through and through; findings stop it.
full_asan() {
  configure "$root/build-asan" -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG=-O1 "-DCMAKE_CXX_FLAGS=-fno-sanitize-recover=all" \
    -DFATHOM_SANITIZE=address,undefined -DFATHOM_BENCH=OFF -DFATHOM_CUDA=OFF
  build "$root/build-asan"
  FATHOM_NO_MEMORY_LIMITS=1 ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 run_tests "$root/build-asan"
}

full_tsan() {
  local fixed=()
  configure "$root/build-tsan" -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG=-O1 -DFATHOM_SANITIZE=thread -DFATHOM_BENCH=OFF -DFATHOM_CUDA=OFF
  build "$root/build-tsan" test_engine test_measure test_backends
  # Newer kernels scatter memory further than this ThreadSanitizer knows; without scattering it always starts.
  if setarch "$(uname -m)" -R true 2>/dev/null; then fixed=(setarch "$(uname -m)" -R); fi
  local room passed=0
  for room in engine backends measure; do  # the reference has one thread, and takes half of the time
    TSAN_OPTIONS="halt_on_error=1 suppressions=$root/tools/tsan.txt" "${fixed[@]}" "$root/build-tsan/tests/test_$room" "--gtest_filter=${FATHOM_TSAN_FILTER:--*_on_reference}" \
      >"$root/build-tsan/test_$room.log" 2>&1 || { tail -n 40 "$root/build-tsan/test_$room.log" >&2; passed=1; }
  done
  return "$passed"
}

changed_sources() {
  local base
  base=$(git -C "$root" merge-base HEAD origin/main 2>/dev/null || git -C "$root" merge-base HEAD main)
  { git -C "$root" diff --name-only --diff-filter=d "$base"; git -C "$root" ls-files --others --exclude-standard; } | grep -E '^src/.*\.cpp$' | sort -u
}

# Each file by itself: so it also shows that it includes what it uses.
full_tidy() {
  local log=$root/build/tidy.log sources=()
  configure "$root/build-tidy" -DCMAKE_BUILD_TYPE=Release -DFATHOM_TESTS=OFF -DFATHOM_BENCH=OFF -DFATHOM_TOGETHER=OFF -DFATHOM_CUDA=OFF
  if [[ ${FATHOM_TIDY:-all} == changed ]]; then
    mapfile -t sources < <(changed_sources)
    ((${#sources[@]} == 0)) && return 0
  else
    sources=("/src/.*\.cpp")
  fi
  if ! run-clang-tidy -quiet -p "$root/build-tidy" -j "$(build_jobs)" "${sources[@]}" >"$log" 2>&1; then
    grep -E '(warning|error):' "$log" | sort -u | head -n 40 >&2
    say "clang-tidy: all of it in $log" "clang-tidy：完整记录见 $log"
    return 1
  fi
}

fuzz_one() {  # program; corpora grow outside the tree
  local name=${1##*/fuzz_} work=$root/build-fuzz/work/${1##*/fuzz_}
  mkdir -p "$work/corpus" "$work/findings"
  local corpora=("$work/corpus")
  [[ -d $root/tests/fuzz/corpus/$name ]] && corpora+=("$root/tests/fuzz/corpus/$name")
  "$1" -max_total_time="${FATHOM_FUZZ_SECONDS:-600}" -timeout=25 -rss_limit_mb=2560 -print_final_stats=1 -artifact_prefix="$work/findings/" "${corpora[@]}" >"$work/log" 2>&1
}

full_fuzz() {
  configure "$root/build-fuzz" -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG=-O1 -DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++ "-DCMAKE_CXX_FLAGS=-fno-sanitize-recover=all" \
    -DFATHOM_SANITIZE=address,undefined,fuzzer-no-link -DFATHOM_TESTS=OFF -DFATHOM_BENCH=OFF -DFATHOM_FUZZ=ON -DFATHOM_CUDA=OFF
  build "$root/build-fuzz"
  local program passed=0 running=() names=()
  # Two at once on two processors: each target is one thread.
  for program in "$root"/build-fuzz/fuzz/fuzz_*; do
    [[ -x $program && -f $program ]] || continue
    if ((${#running[@]} >= $(nproc))); then
      wait_for_fuzz || passed=1
    fi
    fuzz_one "$program" &
    running+=($!) names+=("${program##*/fuzz_}")
  done
  while ((${#running[@]} > 0)); do wait_for_fuzz || passed=1; done
  return "$passed"
}

wait_for_fuzz() {  # the oldest; uses running and names of full_fuzz
  local name=${names[0]} code=0
  wait "${running[0]}" || code=$?
  running=("${running[@]:1}") names=("${names[@]:1}")
  local runs
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$root/build-fuzz/work/$name/log")
  if ((code == 0)); then
    say "fuzz $name: ${runs:-0} inputs, nothing found" "模糊测试 $name：${runs:-0} 个输入，未发现问题"
    return 0
  fi
  tail -n 25 "$root/build-fuzz/work/$name/log" >&2
  say "fuzz $name: a finding, in build-fuzz/work/$name/findings" "模糊测试 $name：发现问题，见 build-fuzz/work/$name/findings"
  return 1
}
