// Where activations live. The same events (allocate, release) give the plan its peak and the run its offsets.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "tensor/tensor.h"

namespace fathom::tensor {

inline constexpr std::uint64_t kArenaAlignment = 64;
/// Bytes an allocation takes in an arena.
inline std::uint64_t arena_bytes(DType dtype, const Shape& shape) {
  const auto raw = static_cast<std::uint64_t>(shape.elements()) * static_cast<std::uint64_t>(dtype_bytes(dtype));
  return (raw + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment;
}

/// One buffer's life in a trace, in steps of the event counter.
struct Lifetime {
  std::uint64_t bytes = 0;
  std::uint32_t first = 0, last = 0;
};

/// Offsets for buffers with known lives: no two that live at once overlap. `total` is at least the live peak and in
/// practice within a few per cent of it (largest first, lowest free offset).
struct ArenaPlan {
  std::vector<std::uint64_t> offsets;  // by order of allocation
  std::uint64_t total = 0;
  std::uint64_t live_peak = 0;  // the largest sum of bytes alive at once
};
ArenaPlan plan_arena(const std::vector<Lifetime>& lifetimes);

/// Where blocks outside a plan come from: memory of the heap, or what a device backend brings. Null from `take`: there
/// is none left. Blocks are aligned to kArenaAlignment.
struct ActivationHeap {
  void* (*take)(void* self, std::uint64_t bytes) = nullptr;
  void (*give_back)(void* self, void* memory) = nullptr;
  void* self = nullptr;
};

/// Activation memory of a backend, in one of two modes. Dynamic: every allocation is its own block of the heap (tests,
/// training, first runs). Planned: one arena, allocation number i of a pass lies at the plan's offset i; begin_pass()
/// starts over. Records lifetimes in both, so that a pass can be planned from one that ran. Not thread-safe: one per
/// engine.
class ActivationMemory {
 public:
  ActivationMemory();
  ActivationMemory(const ActivationMemory&) = delete;
  ActivationMemory& operator=(const ActivationMemory&) = delete;
  ~ActivationMemory();

  /// Takes blocks outside a plan from `heap` from now on; before the first allocation. What it holds outlives this.
  void use_heap(const ActivationHeap& heap);
  /// Uses `plan` over [base, base + plan.total) from the next begin_pass() on. The memory stays the caller's.
  void use_plan(const ArenaPlan* plan, std::byte* base);
  void begin_pass();
  Tensor allocate(DType dtype, Shape shape);
  void release(const Tensor& tensor);

  std::uint64_t live_bytes() const { return live_bytes_; }
  std::uint64_t peak_bytes() const { return peak_bytes_; }
  void reset_peak() { peak_bytes_ = live_bytes_; }
  /// Lives since begin_pass(); those not yet released end now.
  std::vector<Lifetime> lifetimes() const;

 private:
  struct Block {
    void* memory = nullptr;
    std::uint64_t bytes = 0;
    std::uint32_t index = 0;
  };
  std::map<std::uint32_t, Block> live_;  // by root
  ActivationHeap heap_;
  std::vector<Lifetime> lives_;
  const ArenaPlan* plan_ = nullptr;
  std::byte* base_ = nullptr;
  std::uint64_t live_bytes_ = 0, peak_bytes_ = 0;
  std::uint32_t next_root_ = 1, clock_ = 0;
};

}  // namespace fathom::tensor
