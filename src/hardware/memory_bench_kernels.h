// The loops that move memory, each in several shapes; which is fastest differs from chip to chip, so all are tried.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "hardware/machine.h"

namespace fathom::hardware {

/// Reads all `bytes` (a multiple of 256, data 64-byte aligned) and answers a value that depends on every one of them.
using ReadLoop = std::uint64_t (*)(const std::byte* data, std::size_t bytes, std::size_t pitch, std::size_t ahead);

struct ReadVariant {
  std::string name;  // "avx512 8 streams, prefetch 2048"
  ReadLoop loop = nullptr;
  int streams = 1;        // places read in turn
  std::size_t pitch = 0;  // bytes between them; 0: the data divided evenly
  std::size_t ahead = 0;  // bytes that prefetching runs ahead
};

/// Every shape for the widest registers among `isa`, and a few for narrower ones; the likely best come first.
std::vector<ReadVariant> read_variants(IsaSet isa);
std::uint64_t run_read(const ReadVariant& variant, std::span<const std::byte> data);

/// target[i] = a[i] (copy) or a[i] + s b[i] (triad) over floats; bytes a multiple of 256, all 64-byte aligned, no
/// overlap.
using WriteLoop = void (*)(float* target, const float* a, const float* b, std::size_t bytes);
struct WriteVariant {
  std::string name;  // "avx512 past the cache"
  WriteLoop copy = nullptr, triad = nullptr;
};
std::vector<WriteVariant> write_variants(IsaSet isa);

}  // namespace fathom::hardware
