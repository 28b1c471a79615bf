// Activation memory: whose blocks it uses, and when it gives them back.
#include "tensor/memory.h"

#include <gtest/gtest.h>

#include <set>
#include <vector>

namespace fathom::tensor {
namespace {

/// A heap of one array that counts what is out.
struct CountedHeap {
  alignas(kArenaAlignment) std::byte room[4096];
  std::size_t used = 0;
  std::set<void*> out;
  ActivationHeap heap() {
    return {.take =
                [](void* self, std::uint64_t bytes) {
                  auto& counted = *static_cast<CountedHeap*>(self);
                  void* memory = counted.room + counted.used;
                  counted.used += bytes;
                  counted.out.insert(memory);
                  return memory;
                },
            .give_back = [](void* self,
                            void* memory) { EXPECT_EQ(static_cast<CountedHeap*>(self)->out.erase(memory), 1u); },
            .self = this};
  }
};

TEST(ActivationMemory, TakesFromTheHeapItWasGivenAndGivesEverythingBack) {
  CountedHeap counted;
  {
    ActivationMemory memory;
    memory.use_heap(counted.heap());
    const Tensor first = memory.allocate(DType::f32, {3, 5}), second = memory.allocate(DType::bf16, {7});
    EXPECT_EQ(first.data, counted.room);
    EXPECT_EQ(second.data, counted.room + kArenaAlignment);
    EXPECT_EQ(memory.live_bytes(), 2 * kArenaAlignment);
    memory.release(first);
    EXPECT_EQ(counted.out, std::set<void*>{second.data});
    const Tensor empty = memory.allocate(DType::f32, {0, 5});
    EXPECT_EQ(empty.data, nullptr);
    memory.release(empty);
  }
  EXPECT_TRUE(counted.out.empty()) << "what was never released goes back at the end";
}

TEST(ActivationMemory, APlannedPassDoesNotTouchTheHeap) {
  CountedHeap counted;
  ActivationMemory memory;
  memory.use_heap(counted.heap());
  alignas(kArenaAlignment) std::byte arena[256];
  const ArenaPlan plan{.offsets = {64, 0}, .total = 128, .live_peak = 128};
  memory.use_plan(&plan, arena);
  const Tensor first = memory.allocate(DType::f32, {16}), second = memory.allocate(DType::f32, {9});
  EXPECT_EQ(first.data, arena + 64);
  EXPECT_EQ(second.data, arena);
  memory.release(first), memory.release(second);
  EXPECT_EQ(counted.used, 0u);
}

}  // namespace
}  // namespace fathom::tensor
