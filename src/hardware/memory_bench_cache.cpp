// Caches: how long a dependent load takes, and how fast one thread reads what they hold.
#include <algorithm>
#include <numeric>
#include <random>

#include "hardware/memory_bench.h"
#include "hardware/memory_bench_kernels.h"

namespace fathom::hardware {
namespace {

constexpr std::size_t kLine = 64;
constexpr Bytes kEnoughToEvict = 256 * kMiB;
constexpr int kMemoryLevel = 4;

// Links `lines` of `data`, in this order, into one ring; each line begins with the address of the next.
void link_lines(std::byte* data, const std::vector<std::uint32_t>& lines) {
  for (std::size_t i = 0; i < lines.size(); ++i) {
    *reinterpret_cast<const std::byte**>(data + lines[i] * kLine) = data + lines[(i + 1) % lines.size()] * kLine;
  }
}

std::vector<std::uint32_t> shuffled(std::size_t count, std::size_t spread, std::mt19937& random) {
  std::vector<std::uint32_t> lines(count);
  if (count == spread) {
    std::iota(lines.begin(), lines.end(), 0u);
    std::shuffle(lines.begin(), lines.end(), random);
    return lines;
  }
  for (std::size_t i = 0; i < count; ++i)  // one line in each of `count` equal parts, the parts shuffled
    lines[i] = static_cast<std::uint32_t>(i * (spread / count) + random() % (spread / count));
  std::shuffle(lines.begin(), lines.end(), random);
  return lines;
}

// Seconds of one step, following `steps` links from `at`.
double chase(const std::byte*& at, std::size_t steps) {
  const double start = now_seconds();
  for (std::size_t i = 0; i < steps; ++i) at = *reinterpret_cast<const std::byte* const*>(at);
  const double seconds = now_seconds() - start;
  return seconds / static_cast<double>(steps);
}

double best_read(std::byte* data, Bytes bytes, IsaSet isa, double seconds) {
  double best = 0;
  const auto variants = read_variants(isa);
  volatile std::uint64_t keep = 0;
  const double deadline = now_seconds() + seconds;
  do {
    for (std::size_t v = 0; v < std::min<std::size_t>(variants.size(), 3); ++v) {
      const double start = now_seconds();
      const int passes = static_cast<int>(std::max<Bytes>(4 * kMiB / bytes, 1));
      for (int i = 0; i < passes; ++i) keep = keep ^ run_read(variants[v], {data, bytes});
      best = std::max(best, static_cast<double>(bytes) * passes / std::max(now_seconds() - start, 1e-9));
    }
  } while (now_seconds() < deadline);
  return best;
}

CacheResult measure_level(std::byte* data, int level, Bytes bytes, IsaSet isa, double seconds) {
  std::mt19937 random(12345);
  const std::size_t lines = bytes / kLine;
  link_lines(data, shuffled(lines, lines, random));
  const std::byte* at = data;
  chase(at, lines);  // bring it in
  double latency = 1;
  const double deadline = now_seconds() + seconds / 2;
  do latency = std::min(latency, chase(at, std::min<std::size_t>(lines, 20000)));
  while (now_seconds() < deadline);
  if (at == nullptr) return {};  // never; keeps the chase alive
  return {level, bytes, latency, best_read(data, bytes, isa, seconds / 2)};
}

}  // namespace

std::vector<CacheResult> measure_caches(Crew& crew, BenchBuffer& buffer, Bytes level2, Bytes level3, IsaSet isa,
                                        double seconds) {
  std::vector<CacheResult> results;
  crew.run(1, [&](int) {
    if (const Bytes bytes = std::min(level2 / 2 / 4096 * 4096, buffer.size()); bytes > 0)
      results.push_back(measure_level(buffer.data(), 2, bytes, isa, seconds));
    // little more than the second level holds: virtual machines often own only a small part of the third
    if (const Bytes bytes = std::min({level3 / 2, 3 * level2, buffer.size()}) / 4096 * 4096; bytes > 2 * level2)
      results.push_back(measure_level(buffer.data(), 3, bytes, isa, seconds));
    // memory: few lines, far apart, pushed out of the caches by reading much else
    std::mt19937 random(54321);
    const std::size_t count = std::min<std::size_t>(10000, buffer.size() / kLine / 16);
    if (count < 16) return;
    link_lines(buffer.data(), shuffled(count, buffer.size() / kLine, random));
    const auto variants = read_variants(isa);
    const Bytes last = std::min(buffer.size(), std::max(kEnoughToEvict, 2 * level3) / 4096 * 4096);
    volatile std::uint64_t keep = run_read(variants.front(), {buffer.data() + buffer.size() - last, last});
    static_cast<void>(keep);
    std::mt19937 again(54321);
    const auto lines = shuffled(count, buffer.size() / kLine, again);
    const std::byte* at = buffer.data() + lines.front() * kLine;
    double latency = 1;
    for (int part = 0; part < 5; ++part) latency = std::min(latency, chase(at, count / 5));  // each line once
    if (at != nullptr) results.push_back({kMemoryLevel, buffer.size(), latency, std::nullopt});
  });
  return results;
}

}  // namespace fathom::hardware
