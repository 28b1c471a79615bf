// How fast this machine's memory and caches really are: read (what decoding is held against), copy and triad, with one
// thread, with all and in between, with small and with huge pages.
#pragma once
#include <functional>
#include <vector>

#include "hardware/cpu_info.h"
#include "hardware/probe.h"
#include "hardware/probe_crew.h"

namespace fathom::hardware {

struct MemoryBenchOptions {
  Effort effort = Effort::kDefault;
  Bytes usable_bytes = 0;                    // at most a quarter of this is taken; 0: 1 GiB
  Bytes last_level_bytes = 0;                // all last-level caches together; the buffer is made much larger
  Bytes level2_bytes = 0, level3_bytes = 0;  // of one instance; 0: that cache is not measured
  std::vector<HugePagePool> pools;
};

/// Fills buffer_bytes, bandwidth, read_curve, caches and read_bandwidth_bytes_per_second of `measured`. Buffers are
/// touched first by the thread that reads them, so that they lie near it. Read figures count each byte once; windows of
/// the buffer are visited in turn, so that caches hold none of what comes next; the final figures are passes over the
/// whole buffer. Notes say when the buffer had to stay small or could not be had.
void measure_memory(const MemoryBenchOptions& options, Crew& crew, Measured& measured, std::vector<Note>& notes);

/// Anonymous memory for measuring; `data` is 2 MiB aligned; empty when the kernel refuses.
class BenchBuffer {
 public:
  BenchBuffer(Bytes bytes, Pages pages, Bytes page_bytes = 0);
  ~BenchBuffer();
  BenchBuffer(const BenchBuffer&) = delete;
  BenchBuffer& operator=(const BenchBuffer&) = delete;
  std::byte* data() const { return data_; }
  Bytes size() const { return size_; }

 private:
  void* mapping_ = nullptr;
  std::size_t mapped_ = 0;
  std::byte* data_ = nullptr;
  Bytes size_ = 0;
};

/// Latency and one-thread bandwidth of the caches of `level2` and `level3` bytes (0: skipped) and the latency of
/// memory, chased through `buffer`, which is larger than all caches. Runs on the crew's first thread.
std::vector<CacheResult> measure_caches(Crew& crew, BenchBuffer& buffer, Bytes level2, Bytes level3, IsaSet isa,
                                        double seconds);

}  // namespace fathom::hardware
