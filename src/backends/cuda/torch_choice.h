// std::nth_element and the choosing half of std::partial_sort as libstdc++ has them, step by step, for devices and
// hosts: which of equals they leave in front is what tensor/topk_horizon.h is about. Of verify alone; a test holds it
// against the library.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define FATHOM_ANYWHERE __host__ __device__
#else
#define FATHOM_ANYWHERE
#endif

namespace fathom::cuda {

struct Choice {
  float score = 0;
  std::int32_t name = 0;
};

/// Reorders a span of candidates so that the largest scores come first; NaN is larger than all.
class TorchChooser {
 public:
  FATHOM_ANYWHERE explicit TorchChooser(Choice* all) : all_(all) {}

  /// The k best of n in front, in no order.
  FATHOM_ANYWHERE void choose(std::int64_t n, std::int64_t k) {
    if (k > n) k = n;
    if (k == 0) return;
    if (k * 64 <= n)
      select_by_heap(0, k, n);
    else
      select(0, k - 1, n);
  }

 private:
  FATHOM_ANYWHERE static bool larger(const Choice& a, const Choice& b) {
    return (a.score != a.score && b.score == b.score) || a.score > b.score;
  }
  FATHOM_ANYWHERE void swap(std::int64_t i, std::int64_t j) {
    const Choice kept = all_[i];
    all_[i] = all_[j];
    all_[j] = kept;
  }

  /// Lets `value` sink from `hole` to the bottom of the heap [first, first + size), then rise.
  FATHOM_ANYWHERE void settle(std::int64_t first, std::int64_t hole, std::int64_t size, Choice value) {
    const std::int64_t top = hole;
    std::int64_t child = hole;
    while (child < (size - 1) / 2) {
      child = 2 * (child + 1);
      if (larger(all_[first + child], all_[first + child - 1])) --child;
      all_[first + hole] = all_[first + child];
      hole = child;
    }
    if (size % 2 == 0 && child == (size - 2) / 2) {
      child = 2 * child + 1;
      all_[first + hole] = all_[first + child];
      hole = child;
    }
    for (std::int64_t parent = (hole - 1) / 2; hole > top && larger(all_[first + parent], value);
         parent = (hole - 1) / 2) {
      all_[first + hole] = all_[first + parent];
      hole = parent;
    }
    all_[first + hole] = value;
  }

  FATHOM_ANYWHERE void select_by_heap(std::int64_t first, std::int64_t middle, std::int64_t last) {
    const std::int64_t size = middle - first;
    for (std::int64_t parent = (size - 2) / 2; size >= 2 && parent >= 0; --parent)
      settle(first, parent, size, all_[first + parent]);
    for (std::int64_t i = middle; i < last; ++i) {
      if (!larger(all_[i], all_[first])) continue;
      const Choice value = all_[i];
      all_[i] = all_[first];
      settle(first, 0, size, value);
    }
  }

  /// The median of three goes to `first`, and what lies behind is parted by it.
  FATHOM_ANYWHERE std::int64_t part(std::int64_t first, std::int64_t last) {
    const std::int64_t a = first + 1, b = first + (last - first) / 2, c = last - 1;
    const bool ab = larger(all_[a], all_[b]), bc = larger(all_[b], all_[c]), ac = larger(all_[a], all_[c]);
    if (ab)
      swap(first, bc ? b : ac ? c : a);
    else
      swap(first, ac ? a : bc ? c : b);
    std::int64_t low = first + 1, high = last;
    while (true) {
      while (larger(all_[low], all_[first])) ++low;
      --high;
      while (larger(all_[first], all_[high])) --high;
      if (low >= high) return low;
      swap(low++, high);
    }
  }

  FATHOM_ANYWHERE void sort_few(std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first + 1; i < last; ++i) {
      const Choice value = all_[i];
      std::int64_t to = i;
      const bool to_front = larger(value, all_[first]);
      while (to > first && (to_front || larger(value, all_[to - 1]))) {
        all_[to] = all_[to - 1];
        --to;
      }
      all_[to] = value;
    }
  }

  FATHOM_ANYWHERE void select(std::int64_t first, std::int64_t nth, std::int64_t last) {
    int depth = 0;
    for (std::int64_t n = last - first; n > 1; n /= 2) depth += 2;
    while (last - first > 3) {
      if (depth-- == 0) {
        select_by_heap(first, nth + 1, last);
        return swap(first, nth);
      }
      const std::int64_t cut = part(first, last);
      if (cut <= nth)
        first = cut;
      else
        last = cut;
    }
    sort_few(first, last);
  }

  Choice* all_;
};

}  // namespace fathom::cuda
