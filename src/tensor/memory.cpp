#include "tensor/memory.h"

#include <algorithm>
#include <cstdlib>
#include <new>
#include <numeric>

namespace fathom::tensor {
namespace {
constexpr ActivationHeap kHostHeap{
    .take = [](void*, std::uint64_t bytes) { return std::aligned_alloc(kArenaAlignment, bytes); },
    .give_back = [](void*, void* memory) { std::free(memory); },
    .self = nullptr};
}  // namespace

ArenaPlan plan_arena(const std::vector<Lifetime>& lifetimes) {
  ArenaPlan plan;
  plan.offsets.assign(lifetimes.size(), 0);
  std::vector<std::uint32_t> order(lifetimes.size());
  std::iota(order.begin(), order.end(), 0u);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::uint32_t a, std::uint32_t b) { return lifetimes[a].bytes > lifetimes[b].bytes; });
  struct Placed {
    std::uint64_t offset, end;
  };
  std::vector<std::uint32_t> placed;  // indices, kept sorted by offset
  std::vector<Placed> busy;
  for (const std::uint32_t i : order) {
    busy.clear();
    for (const std::uint32_t j : placed)
      if (lifetimes[j].first <= lifetimes[i].last && lifetimes[i].first <= lifetimes[j].last)
        busy.push_back({plan.offsets[j], plan.offsets[j] + lifetimes[j].bytes});
    std::uint64_t offset = 0;
    for (const Placed& hole : busy) {
      if (offset + lifetimes[i].bytes <= hole.offset) break;
      offset = std::max(offset, hole.end);
    }
    plan.offsets[i] = offset;
    plan.total = std::max(plan.total, offset + lifetimes[i].bytes);
    placed.insert(std::upper_bound(placed.begin(), placed.end(), i,
                                   [&](std::uint32_t a, std::uint32_t b) { return plan.offsets[a] < plan.offsets[b]; }),
                  i);
  }
  std::vector<std::pair<std::uint32_t, std::int64_t>> steps;
  for (const Lifetime& life : lifetimes) {
    steps.emplace_back(life.first, static_cast<std::int64_t>(life.bytes));
    steps.emplace_back(life.last + 1, -static_cast<std::int64_t>(life.bytes));
  }
  std::sort(steps.begin(), steps.end());
  std::int64_t live = 0;
  for (const auto& [when, change] : steps) {
    live += change;
    plan.live_peak = std::max(plan.live_peak, static_cast<std::uint64_t>(std::max<std::int64_t>(live, 0)));
  }
  return plan;
}

ActivationMemory::ActivationMemory() : heap_(kHostHeap) {}

ActivationMemory::~ActivationMemory() {
  for (auto& [root, block] : live_)
    if (block.memory != nullptr) heap_.give_back(heap_.self, block.memory);
}

void ActivationMemory::use_heap(const ActivationHeap& heap) {
  FATHOM_CHECK(live_.empty(), "a heap is set before anything is allocated");
  heap_ = heap;
}

void ActivationMemory::use_plan(const ArenaPlan* plan, std::byte* base) {
  FATHOM_CHECK(live_.empty(), "a plan is set between passes");
  plan_ = plan;
  base_ = base;
  begin_pass();
}

void ActivationMemory::begin_pass() {
  FATHOM_CHECK(plan_ == nullptr || live_.empty(), "activations outlive their pass");
  lives_.clear();
  clock_ = 0;
}

Tensor ActivationMemory::allocate(DType dtype, Shape shape) {
  const std::uint64_t bytes = arena_bytes(dtype, shape);
  const auto index = static_cast<std::uint32_t>(lives_.size());
  Block block{.memory = nullptr, .bytes = bytes, .index = index};
  std::byte* data = nullptr;
  if (plan_ != nullptr) {
    FATHOM_CHECK(index < plan_->offsets.size(), "more activations than planned");
    data = base_ + plan_->offsets[index];
    FATHOM_CHECK(plan_->offsets[index] + bytes <= plan_->total, "an activation is larger than planned");
  } else if (bytes > 0) {
    block.memory = heap_.take(heap_.self, bytes);
    if (block.memory == nullptr) throw std::bad_alloc();  // caught at the engine's door
    data = static_cast<std::byte*>(block.memory);
  }
  const std::uint32_t root = next_root_++;
  lives_.push_back({.bytes = bytes, .first = clock_++, .last = 0});
  live_.emplace(root, block);
  live_bytes_ += bytes;
  peak_bytes_ = std::max(peak_bytes_, live_bytes_);
  Tensor tensor = make_tensor(data, dtype, shape);
  tensor.root = root;
  return tensor;
}

void ActivationMemory::release(const Tensor& tensor) {
  const auto found = live_.find(tensor.root);
  FATHOM_CHECK(found != live_.end(), "released twice");
  if (found->second.index < lives_.size()) lives_[found->second.index].last = clock_++;
  live_bytes_ -= found->second.bytes;
  if (found->second.memory != nullptr) heap_.give_back(heap_.self, found->second.memory);
  live_.erase(found);
}

std::vector<Lifetime> ActivationMemory::lifetimes() const {
  std::vector<Lifetime> lives = lives_;
  for (const auto& [root, block] : live_)
    if (block.index < lives.size()) lives[block.index].last = clock_;
  return lives;
}

}  // namespace fathom::tensor
