// The measuring loops compute what they say, and a tiny measurement of this machine answers something sensible.
#include "hardware/memory_bench.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <random>

#include "hardware/memory_bench_kernels.h"
#include "hardware/probe_compute.h"
#include "hardware/probe_process.h"

namespace fathom::hardware {
namespace {

// What this machine has, and each narrower choice.
std::vector<IsaSet> isa_choices() {
  IsaSet narrow = executable_isa(), plain;
  narrow.bits &= ~(1u << static_cast<int>(Isa::avx512f));
  return {executable_isa(), narrow, plain};
}

TEST(ReadLoops, ReadEveryByteOnce) {
  const std::size_t sizes[] = {256, 512, 4096, 12 * 256, 40960 + 256, 65536 * 2 + 768, 262144};
  const BenchBuffer buffer(kMiB, Pages::small);
  ASSERT_NE(buffer.data(), nullptr);
  std::mt19937_64 random(7);
  for (std::size_t i = 0; i < kMiB; i += 8) {
    const std::uint64_t word = random();
    std::memcpy(buffer.data() + i, &word, 8);
  }
  for (const IsaSet isa : isa_choices())
    for (const ReadVariant& variant : read_variants(isa))
      for (const std::size_t size : sizes) {
        std::uint64_t want = 0;
        for (std::size_t i = 0; i < size; i += 8) {
          std::uint64_t word = 0;
          std::memcpy(&word, buffer.data() + i, 8);
          want ^= word;
        }
        EXPECT_EQ(run_read(variant, {buffer.data(), size}), want) << variant.name << ", " << size << " bytes";
      }
}

TEST(WriteLoops, CopyAndTriadWithinTheirBounds) {
  constexpr std::size_t kFloats = 64 * 37;
  constexpr float kGuard = -777;
  const BenchBuffer buffer(kMiB, Pages::small);
  auto* target = reinterpret_cast<float*>(buffer.data());
  auto* a = target + 65536;
  auto* b = a + 65536;
  for (std::size_t i = 0; i < kFloats; ++i) a[i] = static_cast<float>(i % 113), b[i] = static_cast<float>(i % 17);
  for (const IsaSet isa : isa_choices())
    for (const WriteVariant& variant : write_variants(isa))
      for (const bool triad : {false, true}) {
        std::fill(target, target + kFloats + 64, kGuard);
        (triad ? variant.triad : variant.copy)(target, a, b, kFloats * sizeof(float));
        for (std::size_t i = 0; i < kFloats; ++i)
          ASSERT_EQ(target[i], triad ? a[i] + 3 * b[i] : a[i]) << variant.name << " at " << i;
        for (std::size_t i = kFloats; i < kFloats + 64; ++i) ASSERT_EQ(target[i], kGuard) << variant.name;
      }
}

TEST(Peaks, EveryKernelRuns) {
  for (const PeakKernel& kernel : peak_kernels(executable_isa())) {
    kernel.run(3);
    EXPECT_GT(kernel.flops_per_round, 0) << kernel.name;
  }
  EXPECT_EQ(peak_kernels(IsaSet()).size(), 1u);
}

TEST(CrewOfThreads, EachIndexOnceAndOnlyThoseAsked) {
  Crew crew({{0, 0}, {0, 0}, {0, 0}}, false);
  ASSERT_EQ(crew.size(), 3);
  for (const int threads : {1, 3, 2, 5}) {
    std::atomic<int> calls[3] = {};
    const double seconds = crew.run(threads, [&](int t) { calls[t].fetch_add(1); });
    EXPECT_GE(seconds, 0);
    for (int t = 0; t < 3; ++t) EXPECT_EQ(calls[t].load(), t < threads ? 1 : 0) << threads;
  }
}

TEST(MemoryBench, TinyMeasurementIsWhole) {
  Crew crew({{0, 0}, {1, 0}}, false);
  MemoryBenchOptions options;
  options.effort = Effort::kTiny;
  options.level2_bytes = 256 * kKiB, options.level3_bytes = 2 * kMiB;
  Measured measured;
  std::vector<Note> notes;
  measure_memory(options, crew, measured, notes);
  EXPECT_EQ(measured.buffer_bytes, 8 * kMiB);
  EXPECT_TRUE(notes.empty());
  int reads = 0, others = 0;
  double best = 0;
  for (const BandwidthResult& result : measured.bandwidth) {
    EXPECT_TRUE(std::isfinite(result.best_bytes_per_second) && result.best_bytes_per_second > 0);
    EXPECT_LE(result.median_bytes_per_second, result.best_bytes_per_second);
    EXPECT_GE(result.repetitions, 1);
    EXPECT_FALSE(result.variant.empty());
    (result.access == Access::read ? reads : others)++;
    if (result.access == Access::read) best = std::max(best, result.best_bytes_per_second);
  }
  EXPECT_EQ(reads, 4) << "huge and small pages, all threads and one";
  EXPECT_EQ(others, 4) << "copy and triad, all threads and one";
  EXPECT_EQ(measured.read_bandwidth_bytes_per_second, best);
  ASSERT_EQ(measured.read_curve.size(), 2u);
  EXPECT_EQ(measured.read_curve[0].threads, 1);
  EXPECT_EQ(measured.read_curve[1].threads, 2);
  ASSERT_EQ(measured.caches.size(), 3u);
  for (const CacheResult& cache : measured.caches)
    EXPECT_TRUE(std::isfinite(cache.latency_seconds) && cache.latency_seconds > 0);
}

TEST(MemoryBench, NeverMoreThanAQuarterOfWhatIsFree) {
  Crew crew({{0, 0}}, false);
  MemoryBenchOptions options;
  options.effort = Effort::kTiny;
  options.usable_bytes = 16 * kMiB;
  Measured measured;
  std::vector<Note> notes;
  measure_memory(options, crew, measured, notes);
  EXPECT_LE(measured.buffer_bytes, 8 * kMiB);
  options.effort = Effort::kQuick;
  options.last_level_bytes = kGiB;
  Measured small;
  measure_memory(options, crew, small, notes);
  EXPECT_EQ(small.buffer_bytes, 4 * kMiB);
  ASSERT_EQ(notes.size(), 1u);
  EXPECT_EQ(notes[0].key, "hardware_probe.buffer_small");
}

TEST(Peaks, TinyMeasurement) {
  Crew crew({{0, 0}, {1, 0}}, false);
  for (const PeakResult& peak : measure_peaks(crew, executable_isa(), Effort::kTiny)) {
    EXPECT_TRUE(std::isfinite(peak.one_thread_flops) && peak.one_thread_flops > 0) << peak.kernel;
    EXPECT_TRUE(std::isfinite(peak.all_threads_flops) && peak.all_threads_flops > 0) << peak.kernel;
  }
}

TEST(Probe, ThisMachineTiny) {
  ProbeOptions options;
  options.effort = Effort::kTiny;
  const Machine machine = probe(options);
  EXPECT_GE(machine.cpu.usable_threads, 1);
  EXPECT_GT(machine.memory.total_bytes, 0u);
  EXPECT_LE(machine.memory.usable_bytes, machine.memory.total_bytes);
  ASSERT_TRUE(machine.measured);
  EXPECT_GT(machine.read_bandwidth().value_or(0), 0);
  EXPECT_GT(machine.peak_flops(Precision::fp32).value_or(0), 0);
  const auto back = machine_from_json(machine_to_json(machine), "this");
  ASSERT_TRUE(back) << error_text(back.error());
  EXPECT_EQ(*back, machine);
}

TEST(Isa, TheKernelNamesWhatTheChipHas) {
  const SystemFiles files("/");
  const CpuInfo cpu = read_cpu(files, {});
  const IsaSet named = cpu.isa, asked = executable_isa();
  for (int i = 0; i < kIsaCount; ++i) {
    const Isa isa = static_cast<Isa>(i);
    EXPECT_TRUE(!asked.has(isa) || named.has(isa)) << isa_name(isa);
  }
}

TEST(Hwloc, AgreesWithSysfsOnThisMachine) {
  const CpuInfo cpu = read_cpu(SystemFiles("/"), {});
  CpuInfo asked;
  complete_with_hwloc(asked);
  if (cpu.caches.empty() || asked.caches.empty()) GTEST_SKIP() << "one of them tells nothing here";
  for (const int level : {1, 2, 3}) EXPECT_EQ(asked.cache_bytes(level), cpu.cache_bytes(level)) << level;
}

TEST(Programs, OutputFailureAndTime) {
  EXPECT_EQ(run_program({"echo", "two words"}, 30), "two words\n");
  EXPECT_EQ(run_program({"false"}, 30), std::nullopt);
  EXPECT_EQ(run_program({"no-such-program-anywhere"}, 30), std::nullopt);
  EXPECT_EQ(run_program({}, 30), std::nullopt);
  EXPECT_EQ(run_program({"sleep", "600"}, 0.05), std::nullopt);
  EXPECT_EQ(run_program({"sh", "-c", "sleep 600 & echo started; wait"}, 0.2), std::nullopt)
      << "its children go with it";
  EXPECT_EQ(with_time_limit<int>(30, [] { return 7; }), 7);
  EXPECT_EQ(with_time_limit<int>(0.01, [] { return std::this_thread::sleep_for(std::chrono::milliseconds(300)), 7; }),
            std::nullopt);
}

}  // namespace
}  // namespace fathom::hardware
