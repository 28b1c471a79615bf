// Many blocks look for the best of a row, then one draws. Every sum is of whole numbers, so the order in which threads add does not matter: the
// result is the host's, bit for bit.
#include "backends/cuda/sample.h"

#include <algorithm>

#include "tensor/sampling.h"

namespace fathom::cuda {
namespace {

using tensor::SamplingRow;

constexpr int kThreads = 1024, kWarps = kThreads / 32, kDigits = 256;
constexpr int kPartThreads = 256, kPart = 8 * kPartThreads;  // logits that a block looks for the best in
constexpr unsigned kAll = 0xffffffffu;
constexpr std::int64_t kMostTogether = 64;  // rows of a launch, which go with it: kernels would wait for the host's memory

/// What stays: keys above, and of those that are equal ids up to `id`.
struct Cut {
  std::uint32_t key = 0;
  std::int64_t id = INT64_MAX;
  __device__ bool keeps(std::uint32_t other, std::int64_t at) const { return other > key || (other == key && at <= id); }
};

struct Shared {
  unsigned long long bins[kDigits], sums[kWarps];
  unsigned long long best;
  std::uint32_t prefix;
  unsigned long long left;
  std::int64_t chosen;
  int warp;
};

__device__ unsigned long long warp_sum(unsigned long long value) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(kAll, value, step);
  return value;
}

/// The sum over the block, for every thread.
__device__ unsigned long long block_sum(Shared& s, unsigned long long value) {
  value = warp_sum(value);
  __syncthreads();
  if (threadIdx.x % 32 == 0) s.sums[threadIdx.x / 32] = value;
  __syncthreads();
  unsigned long long sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += s.sums[w];
  return sum;
}

/// Adds `value` of every lane to its digit's bin, lanes of one digit together: keys of logits differ little in their first bits.
__device__ void add_to_bins(Shared& s, int digit, unsigned long long value, bool counts) {
  unsigned waiting = __ballot_sync(kAll, counts);
  while (waiting != 0) {
    const int leader = __ffs(static_cast<int>(waiting)) - 1, theirs = __shfl_sync(kAll, digit, leader);
    const bool mine = counts && digit == theirs;
    const unsigned long long sum = warp_sum(mine ? value : 0);
    if (static_cast<int>(threadIdx.x % 32) == leader) atomicAdd(&s.bins[theirs], sum);
    waiting &= ~__ballot_sync(kAll, mine);
  }
}

/// Of the values of kept ids, by descending key: the key at which their sum reaches `needed` (that is reached), and what was still missing before it.
template <class Value>
__device__ std::uint32_t reach(Shared& s, const std::uint32_t* keys, std::int64_t n, unsigned long long needed, Value value_of, unsigned long long& missing) {
  std::uint32_t prefix = 0;
  missing = needed;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = threadIdx.x; i < kDigits; i += kThreads) s.bins[i] = 0;
    __syncthreads();
    const std::uint32_t above = shift == 24 ? 0 : ~std::uint32_t{0} << (shift + 8);
    for (std::int64_t first = 0; first < n; first += kThreads) {
      const std::int64_t id = first + threadIdx.x;
      const std::uint32_t key = id < n ? keys[id] : 0;
      const unsigned long long value = id < n && (key & above) == prefix ? value_of(id, key) : 0;
      add_to_bins(s, static_cast<int>(key >> shift & 255u), value, value > 0);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int digit = kDigits - 1;
      unsigned long long left = missing;
      for (; digit > 0 && s.bins[digit] < left; --digit) left -= s.bins[digit];
      s.prefix = prefix | static_cast<std::uint32_t>(digit) << shift;
      s.left = left;
    }
    __syncthreads();
    prefix = s.prefix;
    missing = s.left;
    __syncthreads();
  }
  return prefix;
}

/// The id in whose turn the sum of values, by ascending id, first exceeds `target`.
template <class Value>
__device__ std::int64_t turn_of(Shared& s, std::int64_t n, unsigned long long target, Value value_of) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const std::int64_t width = (n + kWarps - 1) / kWarps, begin = warp * width, end = begin + width < n ? begin + width : n;
  unsigned long long sum = 0;
  for (std::int64_t id = begin + lane; id < end; id += 32) sum += value_of(id);
  sum = warp_sum(sum);
  __syncthreads();
  if (lane == 0) s.sums[warp] = sum;
  if (threadIdx.x == 0) s.chosen = -1;
  __syncthreads();
  unsigned long long before = 0;
  for (int w = 0; w < warp; ++w) before += s.sums[w];
  if (before <= target && before + s.sums[warp] > target) {  // one warp
    for (std::int64_t first = begin; first < end; first += 32) {
      const std::int64_t id = first + lane;
      const unsigned long long value = id < end ? value_of(id) : 0;
      unsigned long long upto = value;
      for (int step = 1; step < 32; step *= 2) {
        const unsigned long long lower = __shfl_up_sync(kAll, upto, step);
        if (lane >= step) upto += lower;
      }
      const unsigned over = __ballot_sync(kAll, before + upto > target);
      if (over != 0) {
        if (lane == 0) s.chosen = first + __ffs(static_cast<int>(over)) - 1;
        break;
      }
      before += __shfl_sync(kAll, upto, 31);
    }
  }
  __syncthreads();
  return s.chosen;
}

/// The best of a block's: its key above, 2^32 - 1 - id below.
__device__ unsigned long long block_best(Shared& s, unsigned long long best) {
  for (int step = 16; step > 0; step /= 2) {
    const unsigned long long other = __shfl_xor_sync(kAll, best, step);
    best = other > best ? other : best;
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) s.sums[threadIdx.x / 32] = best;
  __syncthreads();
  best = 0;
  for (int w = 0; w < static_cast<int>(blockDim.x) / 32; ++w) best = s.sums[w] > best ? s.sums[w] : best;
  return best;
}

struct View {
  SamplingRow rows[kMostTogether];
  const float* logits;          // [rows, n]
  std::int64_t n, first_row;    // of these rows, among all
  std::uint32_t* seen;          // [.., words]
  std::int64_t words;
  std::int32_t* ids;
  std::uint32_t* keys;          // workspace: [rows at once, n]
  unsigned long long* weights;  // the same
  unsigned long long* best;     // [rows at once, parts]
  int parts;
  tensor::NextPass next;
};

/// Keys of a part of a row, and the best of them.
__global__ void __launch_bounds__(kPartThreads) rank(const __grid_constant__ View view) {
  __shared__ Shared s;
  const std::int64_t r = view.first_row + blockIdx.y, n = view.n, first = static_cast<std::int64_t>(blockIdx.x) * kPart;
  const SamplingRow& row = view.rows[blockIdx.y];
  const float penalty = row.penalty;
  const bool draws = row.per_octave != 0;
  const float* logits = view.logits + r * n;
  std::uint32_t* keys = view.keys + static_cast<std::int64_t>(blockIdx.y) * n;
  const std::uint32_t* seen = view.seen != nullptr && penalty != 1.0f ? view.seen + row.seen * view.words : nullptr;
  unsigned long long best = 0;
#pragma unroll
  for (int i = 0; i < kPart / kPartThreads; ++i) {
    const std::int64_t id = first + i * kPartThreads + threadIdx.x;
    if (id >= n) break;
    const std::uint32_t key = tensor::sampling_key(tensor::sampling_score(logits[id], penalty, seen != nullptr && (seen[id / 32] >> (id % 32) & 1u) != 0));
    if (draws) keys[id] = key;
    const unsigned long long here = static_cast<unsigned long long>(key) << 32 | (0xffffffffull - static_cast<unsigned long long>(id));
    best = here > best ? here : best;
  }
  best = block_best(s, best);
  if (threadIdx.x == 0) view.best[static_cast<std::int64_t>(blockIdx.y) * view.parts + blockIdx.x] = best;
}

__device__ std::int64_t draw(Shared& s, const SamplingRow& row, const std::uint32_t* keys, unsigned long long* weights, std::int64_t n, float best, std::int64_t best_id) {
  for (std::int64_t id = threadIdx.x; id < n; id += kThreads) weights[id] = tensor::sampling_weight(tensor::score_of_key(keys[id]), best, row.per_octave);
  __syncthreads();
  Cut cut;
  const auto equal_up_to = [&](unsigned long long count) {  // id of the count-th of those at the cut
    cut.id = turn_of(s, n, count - 1, [&](std::int64_t id) { return static_cast<unsigned long long>(keys[id] == cut.key ? 1 : 0); });
  };
  unsigned long long missing = 0;
  if (row.top_k > 0 && row.top_k < n) {
    cut.key = reach(s, keys, n, static_cast<unsigned long long>(row.top_k), [](std::int64_t, std::uint32_t) { return 1ull; }, missing);
    equal_up_to(missing);
  }
  if (row.top_p > 0) {
    unsigned long long sum = 0;
    for (std::int64_t id = threadIdx.x; id < n; id += kThreads) sum += cut.keeps(keys[id], id) ? weights[id] : 0;
    sum = block_sum(s, sum);
    const unsigned long long share = tensor::share_of(sum, row.top_p), needed = share > 0 ? share : 1;
    const Cut before = cut;
    cut.key = reach(s, keys, n, needed, [&](std::int64_t id, std::uint32_t key) { return before.keeps(key, id) ? weights[id] : 0ull; }, missing);
    // Those at the cut weigh all the same.
    const unsigned long long each = tensor::sampling_weight(tensor::score_of_key(cut.key), best, row.per_octave);
    equal_up_to((missing + each - 1) / each);
  }
  const auto value_of = [&](std::int64_t id) { return cut.keeps(keys[id], id) && weights[id] >= row.least ? weights[id] : 0ull; };
  unsigned long long total = 0;
  for (std::int64_t id = threadIdx.x; id < n; id += kThreads) total += value_of(id);
  total = block_sum(s, total);
  const std::int64_t chosen = turn_of(s, n, tensor::share_of(total, row.draw), value_of);
  return chosen < 0 ? best_id : chosen;
}

/// The sequence of row r goes on with what was chosen.
__device__ void leave_next(const tensor::NextPass& next, std::int64_t r, std::int32_t chosen) {
  if (next.sequences == nullptr) return;
  tensor::Sequence sequence = next.sequences[r];
  sequence.past += sequence.tokens;
  sequence.first_token = static_cast<std::int32_t>(r);
  sequence.tokens = 1;
  next.sequences[r] = sequence;
  next.ids[r] = chosen < 0 ? 0 : chosen;
  next.positions[r] = sequence.past;
  next.wanted[r] = static_cast<std::int32_t>(r);
}

__global__ void __launch_bounds__(kThreads) choose(const __grid_constant__ View view) {
  __shared__ Shared s;
  const std::int64_t r = view.first_row + blockIdx.x, n = view.n;
  const SamplingRow& row = view.rows[blockIdx.x];
  unsigned long long best = 0;
  for (int i = threadIdx.x; i < view.parts; i += kThreads) {
    const unsigned long long here = view.best[static_cast<std::int64_t>(blockIdx.x) * view.parts + i];
    best = here > best ? here : best;
  }
  best = block_best(s, best);
  const float score = tensor::score_of_key(static_cast<std::uint32_t>(best >> 32));
  const std::int64_t best_id = 0xffffffffll - static_cast<std::int64_t>(best & 0xffffffffull);
  std::int64_t chosen = best_id;
  if (!(score < INFINITY && score > -INFINITY)) {
    chosen = -1;
  } else if (row.per_octave != 0) {
    const std::int64_t place = static_cast<std::int64_t>(blockIdx.x) * n;
    chosen = draw(s, row, view.keys + place, view.weights + place, n, score, best_id);
  }
  if (threadIdx.x != 0) return;
  view.ids[r] = static_cast<std::int32_t>(chosen);
  if (view.seen != nullptr && row.penalty != 1.0f && chosen >= 0) view.seen[row.seen * view.words + chosen / 32] |= 1u << (chosen % 32);
  leave_next(view.next, r, static_cast<std::int32_t>(chosen));
}

}  // namespace

Bytes sample_bytes(std::int64_t vocabulary) {
  const auto n = static_cast<Bytes>(vocabulary);
  return n * (sizeof(std::uint32_t) + sizeof(std::uint64_t)) + (n + kPart - 1) / kPart * sizeof(std::uint64_t) + 768;
}

void launch_sample(Context& context, const tensor::SampleArgs& args) {
  context.workspace.reset();
  const auto most = static_cast<std::int64_t>(context.workspace.left() / sample_bytes(args.vocabulary));
  FATHOM_CHECK(most > 0, "a vocabulary beyond the workspace");
  const std::int64_t together = std::min(std::min(args.rows, most), kMostTogether);
  View view{.logits = args.logits, .n = args.vocabulary, .seen = args.seen, .words = (args.vocabulary + 31) / 32, .ids = args.ids, .next = args.next};
  view.parts = static_cast<int>((args.vocabulary + kPart - 1) / kPart);
  view.keys = context.workspace.take<std::uint32_t>(together * args.vocabulary);
  view.weights = context.workspace.take<unsigned long long>(together * args.vocabulary);
  view.best = context.workspace.take<unsigned long long>(together * view.parts);
  for (std::int64_t first = 0; first < args.rows; first += together) {
    view.first_row = first;
    const auto rows = static_cast<unsigned>(std::min(args.rows - first, together));
    std::copy_n(args.asked + first, rows, view.rows);
    rank<<<dim3(static_cast<unsigned>(view.parts), rows), kPartThreads, 0, context.stream>>>(view);
    context.launched();
    choose<<<rows, kThreads, 0, context.stream>>>(view);
    context.launched();
  }
}

}  // namespace fathom::cuda
