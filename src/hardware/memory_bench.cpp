#include "hardware/memory_bench.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>

#include "hardware/memory_bench_kernels.h"

namespace fathom::hardware {
namespace {

constexpr Bytes kHugePage = 2 * kMiB;

// How much of everything. Times are budgets of a stage in seconds; a stage stops at the first repetition beyond.
struct Plan {
  Bytes buffer = kGiB;
  Bytes window = 256 * kMiB;
  int sweep_rounds = 2, final_rounds = 5, finalists = 3;
  double sweep = 0.35, finals = 0.4, single = 0.35, curve = 0.3, writes = 0.2, small = 0.25, caches = 0.03;
  bool small_pages = true, writes_too = true, middle_of_curve = true;
};

Plan plan_for(const MemoryBenchOptions& options) {
  Plan plan;
  switch (options.effort) {
    case Effort::kNone:
    case Effort::kTiny:
      plan = {8 * kMiB, 2 * kMiB, 1, 2, 1, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.005, true, true, true};
      return plan;
    case Effort::kQuick:
      plan.sweep_rounds = 1, plan.final_rounds = 4, plan.finalists = 2;
      plan.sweep = 0.12, plan.finals = 0.15, plan.single = 0.1, plan.curve = 0.05, plan.caches = 0.01;
      plan.small_pages = plan.writes_too = plan.middle_of_curve = false;
      break;
    case Effort::kDefault:
      break;
    case Effort::kThorough:
      plan.buffer = 4 * kGiB, plan.window = 512 * kMiB;
      plan.sweep_rounds = 8, plan.final_rounds = 20, plan.finalists = 4;
      plan.sweep = 2.5, plan.finals = 3, plan.single = 2, plan.curve = 1, plan.writes = 1, plan.small = 1.5,
      plan.caches = 0.2;
      break;
  }
  plan.buffer = std::max(plan.buffer, (options.effort == Effort::kQuick ? 4 : 8) * options.last_level_bytes);
  if (options.usable_bytes > 0) plan.buffer = std::min(plan.buffer, options.usable_bytes / 4);
  plan.buffer = std::max(plan.buffer / kHugePage * kHugePage, kHugePage);
  plan.window = std::min(std::max(plan.window, 2 * options.last_level_bytes), plan.buffer);
  return plan;
}

std::atomic<std::uint64_t> sink;  // what was read goes here, so that no loop can be dropped

// The buffer cut into one slice a thread of the crew. When fewer read, each takes several slices of its own NUMA node,
// so that the whole buffer (of those nodes) is read and stays far larger than the caches.
class Slices {
 public:
  Slices(const BenchBuffer& buffer, Crew& crew) : data_(buffer.data()), crew_(crew) {
    slice_ = buffer.size() / static_cast<Bytes>(std::max(crew.size(), 1)) / kMiB * kMiB;
    if (slice_ == 0) slice_ = buffer.size() / static_cast<Bytes>(std::max(crew.size(), 1)) / 4096 * 4096;
  }
  Bytes slice_bytes() const { return slice_; }
  std::byte* slice(int index) const { return data_ + static_cast<Bytes>(index) * slice_; }

  /// For each of the first `threads`: the slices it reads.
  std::vector<std::vector<int>> deal(int threads) const {
    std::map<int, std::vector<int>> readers;
    for (int t = 0; t < threads; ++t) readers[crew_.node(t)].push_back(t);
    std::vector<std::vector<int>> hands(static_cast<std::size_t>(threads));
    std::map<int, std::size_t> next;
    for (int s = 0; s < crew_.size(); ++s) {
      const int node = crew_.node(s);
      const auto found = readers.find(node);
      if (found == readers.end()) continue;
      hands[static_cast<std::size_t>(found->second[next[node]++ % found->second.size()])].push_back(s);
    }
    return hands;
  }

 private:
  std::byte* data_;
  Bytes slice_ = 0;
  Crew& crew_;
};

struct Samples {
  std::vector<double> rates;  // bytes per second
  double best() const { return rates.empty() ? 0 : *std::max_element(rates.begin(), rates.end()); }
  double median() const {
    if (rates.empty()) return 0;
    std::vector<double> sorted = rates;
    std::sort(sorted.begin(), sorted.end());
    return sorted.size() % 2 == 1 ? sorted[sorted.size() / 2]
                                  : 0.5 * (sorted[sorted.size() / 2 - 1] + sorted[sorted.size() / 2]);
  }
};

class Bench {
 public:
  Bench(Crew& crew, const BenchBuffer& buffer) : crew_(crew), slices_(buffer, crew) {
    crew_.run(crew_.size(), [&](int t) { std::memset(slices_.slice(t), t + 1, slices_.slice_bytes()); });
  }

  /// One pass over a share of every slice: `window` bytes in all, the next share at the next call; 0: everything.
  double read(const ReadVariant& variant, int threads, Bytes window) {
    const Turn turn = next_turn(threads, window);
    const double seconds = crew_.run(threads, [&](int t) {
      std::uint64_t sum = 0;
      for (const int s : turn.hands[static_cast<std::size_t>(t)])
        sum ^= run_read(variant, {slices_.slice(s) + turn.offset, turn.share});
      sink.fetch_xor(sum, std::memory_order_relaxed);
    });
    return static_cast<double>(turn.slices * turn.share) / std::max(seconds, 1e-9);
  }

  /// Copy or triad within each such share; bytes read and written.
  double write(WriteLoop loop, Access access, int threads, Bytes window) {
    const Turn turn = next_turn(threads, window);
    const Bytes parts = access == Access::copy ? 2 : 3;
    const Bytes part = turn.share / parts / 256 * 256;
    const double seconds = crew_.run(threads, [&](int t) {
      for (const int s : turn.hands[static_cast<std::size_t>(t)]) {
        std::byte* at = slices_.slice(s) + turn.offset;
        loop(reinterpret_cast<float*>(at), reinterpret_cast<const float*>(at + part),
             reinterpret_cast<const float*>(at + (parts - 1) * part), part);
      }
    });
    return static_cast<double>(turn.slices * parts * part) / std::max(seconds, 1e-9);
  }

  /// Variants by their best window rate, fastest first.
  std::vector<ReadVariant> sweep(std::vector<ReadVariant> variants, int threads, int rounds, double seconds,
                                 Bytes window) {
    std::vector<std::pair<double, std::size_t>> order;
    for (std::size_t i = 0; i < variants.size(); ++i) order.emplace_back(0.0, i);
    const double deadline = now_seconds() + seconds;
    bool in_time = true;
    for (int round = 0; round < rounds && in_time; ++round)
      for (std::size_t i = 0; i < variants.size() && in_time; ++i) {
        order[i].first = std::max(order[i].first, read(variants[i], threads, window));
        in_time = now_seconds() < deadline;
      }
    std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
    std::vector<ReadVariant> sorted;
    for (const auto& entry : order) sorted.push_back(std::move(variants[entry.second]));
    return sorted;
  }

  /// Whole passes of the first `finalists`; the result of the one with the best pass.
  BandwidthResult finals(const std::vector<ReadVariant>& variants, int finalists, int threads, int rounds,
                         double seconds, Pages pages) {
    const std::size_t count = std::min<std::size_t>(variants.size(), static_cast<std::size_t>(finalists));
    std::vector<Samples> samples(count);
    const double deadline = now_seconds() + seconds;
    bool in_time = true;
    for (int round = 0; round < rounds && in_time; ++round)
      for (std::size_t i = 0; i < count && in_time; ++i) {
        samples[i].rates.push_back(read(variants[i], threads, 0));
        in_time = now_seconds() < deadline;
      }
    std::size_t winner = 0;
    for (std::size_t i = 1; i < count; ++i)
      if (samples[i].best() > samples[winner].best()) winner = i;
    return {Access::read,
            pages,
            threads,
            samples[winner].best(),
            samples[winner].median(),
            static_cast<int>(samples[winner].rates.size()),
            variants[winner].name};
  }

 private:
  // What each thread takes this time: `share` bytes at `offset` of each slice in its hand.
  struct Turn {
    std::vector<std::vector<int>> hands;
    Bytes slices = 0, offset = 0, share = 0;
  };

  Turn next_turn(int threads, Bytes window) {
    Turn turn;
    turn.hands = slices_.deal(threads);
    for (const auto& hand : turn.hands) turn.slices += hand.size();
    const Bytes whole = slices_.slice_bytes();
    turn.share = window == 0 ? whole : std::min(whole, window / std::max<Bytes>(turn.slices, 1) / 4096 * 4096);
    if (turn.share == 0) turn.share = whole;
    if (offset_ + turn.share > whole) offset_ = 0;
    turn.offset = offset_;
    offset_ += turn.share;
    return turn;
  }

  Crew& crew_;
  Slices slices_;
  Bytes offset_ = 0;
};

// 2, 4, 8, … below the crew's size; one and all are measured anyway.
std::vector<int> middle_points(int all) {
  std::vector<int> points;
  for (int n = 2; n < all; n = n < 4 ? n + 1 : n + n / 2) points.push_back(n);
  return points;
}

void measure_writes(Bench& bench, const Plan& plan, IsaSet isa, int threads, Pages pages, Measured& measured) {
  for (const Access access : {Access::copy, Access::triad}) {
    const double deadline = now_seconds() + plan.writes / 4;
    BandwidthResult best{access, pages, threads, 0, 0, 0, ""};
    for (const WriteVariant& variant : write_variants(isa)) {
      Samples samples;
      do
        samples.rates.push_back(
            bench.write(access == Access::copy ? variant.copy : variant.triad, access, threads, plan.window));
      while (samples.rates.size() < 2 && now_seconds() < deadline);
      if (samples.best() > best.best_bytes_per_second)
        best = {access,      pages, threads, samples.best(), samples.median(), static_cast<int>(samples.rates.size()),
                variant.name};
    }
    measured.bandwidth.push_back(std::move(best));
  }
}

// The full programme on huge pages. Answers the best variants for all threads and for one.
std::pair<ReadVariant, ReadVariant> measure_huge(const MemoryBenchOptions& options, const Plan& plan, Crew& crew,
                                                 BenchBuffer& buffer, Measured& measured) {
  const IsaSet isa = executable_isa();
  const Pages pages = Pages::transparent_huge;
  Bench bench(crew, buffer);
  const int all = crew.size();
  const auto for_all = bench.sweep(read_variants(isa), all, plan.sweep_rounds, plan.sweep, plan.window);
  measured.bandwidth.push_back(bench.finals(for_all, plan.finalists, all, plan.final_rounds, plan.finals, pages));
  std::vector<ReadVariant> for_one = for_all;
  if (all > 1) {
    for_one = bench.sweep(read_variants(isa), 1, plan.sweep_rounds, plan.single / 2, plan.window / 4);
    measured.bandwidth.push_back(bench.finals(for_one, plan.finalists, 1, plan.final_rounds, plan.single / 2, pages));
    measured.read_curve.push_back({1, measured.bandwidth.back().best_bytes_per_second});
    if (plan.middle_of_curve) {
      const auto points = middle_points(all);
      for (const int threads : points) {
        const auto result =
            bench.finals(for_all, 2, threads, 3, plan.curve / static_cast<double>(points.size()), pages);
        measured.read_curve.push_back({threads, result.best_bytes_per_second});
      }
    }
  }
  measured.read_curve.push_back({all, measured.bandwidth.front().best_bytes_per_second});
  if (plan.writes_too) {
    measure_writes(bench, plan, isa, all, pages, measured);
    if (all > 1) measure_writes(bench, plan, isa, 1, pages, measured);
  }
  measured.caches = measure_caches(crew, buffer, options.level2_bytes, options.level3_bytes, isa, plan.caches);
  return {for_all.front(), for_one.front()};
}

void measure_reads_only(const Plan& plan, Crew& crew, const BenchBuffer& buffer, Pages pages,
                        const std::pair<ReadVariant, ReadVariant>& best, Measured& measured) {
  Bench bench(crew, buffer);
  measured.bandwidth.push_back(bench.finals({best.first}, 1, crew.size(), plan.final_rounds, plan.small / 2, pages));
  if (crew.size() > 1)
    measured.bandwidth.push_back(bench.finals({best.second}, 1, 1, plan.final_rounds, plan.small / 2, pages));
}

}  // namespace

BenchBuffer::BenchBuffer(Bytes bytes, Pages pages, Bytes page_bytes) {
  const bool reserved = pages == Pages::hugetlb;
  const Bytes spare = reserved ? 0 : kHugePage;
  int flags = MAP_PRIVATE | MAP_ANONYMOUS;
  if (reserved) {
    constexpr int kPageShiftAt = 26;  // MAP_HUGE_SHIFT
    int shift = 0;
    while ((Bytes{1} << shift) < page_bytes) ++shift;
    flags |= MAP_HUGETLB | shift << kPageShiftAt;
  }
  void* memory = ::mmap(nullptr, bytes + spare, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (memory == MAP_FAILED) return;
  mapping_ = memory;
  mapped_ = bytes + spare;
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  data_ = static_cast<std::byte*>(memory) + (reserved ? 0 : (kHugePage - address % kHugePage) % kHugePage);
  size_ = bytes;
  if (pages == Pages::transparent_huge)
    ::madvise(data_, size_, MADV_HUGEPAGE);  // refused where THP is off: small pages then
  if (pages == Pages::small) ::madvise(data_, size_, MADV_NOHUGEPAGE);
}

BenchBuffer::~BenchBuffer() {
  if (mapping_ != nullptr) ::munmap(mapping_, mapped_);
}

void measure_memory(const MemoryBenchOptions& options, Crew& crew, Measured& measured, std::vector<Note>& notes) {
  const Plan plan = plan_for(options);
  if (crew.size() == 0) return;
  std::pair<ReadVariant, ReadVariant> best;
  {
    BenchBuffer buffer(plan.buffer, Pages::transparent_huge);
    if (buffer.data() == nullptr) {
      notes.push_back({"hardware_probe.no_memory_to_measure", {{"bytes", format_bytes(plan.buffer)}}});
      return;
    }
    measured.buffer_bytes = plan.buffer;
    if (options.effort != Effort::kTiny && plan.buffer < 3 * options.last_level_bytes)
      notes.push_back({"hardware_probe.buffer_small",
                       {{"bytes", format_bytes(plan.buffer)}, {"cache", format_bytes(options.last_level_bytes)}}});
    best = measure_huge(options, plan, crew, buffer, measured);
  }
  if (plan.small_pages)
    if (const BenchBuffer buffer(plan.buffer, Pages::small); buffer.data() != nullptr)
      measure_reads_only(plan, crew, buffer, Pages::small, best, measured);
  for (const HugePagePool& pool : options.pools) {
    if (pool.free <= 0 || pool.page_bytes < kMiB) continue;
    const auto pages = std::min(static_cast<Bytes>(pool.free), plan.buffer / pool.page_bytes);
    if (pages * pool.page_bytes < std::max(plan.buffer / 4, options.last_level_bytes)) continue;
    const BenchBuffer buffer(pages * pool.page_bytes, Pages::hugetlb, pool.page_bytes);
    if (buffer.data() != nullptr) measure_reads_only(plan, crew, buffer, Pages::hugetlb, best, measured);
    break;
  }
  for (const BandwidthResult& result : measured.bandwidth)
    if (result.access == Access::read)
      measured.read_bandwidth_bytes_per_second =
          std::max(measured.read_bandwidth_bytes_per_second, result.best_bytes_per_second);
}

}  // namespace fathom::hardware
