// Many blocks look for the best of a row; then one takes it, or many draw together. Every sum is of whole numbers, so the
// order in which threads and blocks add does not matter: the result is the host's, bit for bit.
#include "backends/cuda/sample.h"

#include <algorithm>

#include "tensor/sampling.h"

namespace fathom::cuda {
namespace {

using tensor::SamplingRow;

constexpr int kThreads = 512, kWarps = kThreads / 32, kDigits = 256;  // of a block that draws
constexpr int kPartThreads = 256, kPart = 8 * kPartThreads;           // logits that a block looks for the best in
constexpr int kMostBlocks = 128;                                      // that draw of one row
constexpr int kAhead = 4;                                             // of them that a thread asks for at once
constexpr std::int64_t kLeastDrawn = 1024;                            // logits of a block
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
  std::uint32_t prefix;
  unsigned long long left, at;
  std::int64_t chosen;
};

/// What the blocks of one row tell each other. All of it is zero when they begin.
struct Board {
  enum Round { kEqualK, kSumP, kEqualP, kTotal, kRounds };
  unsigned long long bins[8][kDigits];  // by digits of a key: four times for top_k, four for top_p
  unsigned long long sums[kRounds][kMostBlocks];
  unsigned arrived;
};

/// One of the blocks that draw of a row, and the ids that are its own.
struct Crew {
  Board& board;
  unsigned block, blocks, met;
  std::int64_t begin, end;

  /// What each of them wrote before is seen by all of them afterwards: they are on the device together.
  __device__ void meet() {
    __syncthreads();
    met += blocks;
    if (threadIdx.x == 0 && blocks > 1) {
      asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(&board.arrived) : "memory");
      unsigned here = 0;
      do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(here) : "l"(&board.arrived) : "memory");
      while (here < met);
    }
    __syncthreads();
  }
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

/// Adds `value`, at most the best token's weight, to its digit's bin; lanes of one digit together, since keys of logits differ little in their first bits.
__device__ void add_to_bins(Shared& s, int digit, unsigned long long value) {
  constexpr int kLow = tensor::kWeightBits / 2;
  if (value == 0) return;
  const unsigned alike = __match_any_sync(__activemask(), digit);
  const unsigned low = __reduce_add_sync(alike, static_cast<unsigned>(value & ((1u << kLow) - 1))), high = __reduce_add_sync(alike, static_cast<unsigned>(value >> kLow));
  if (static_cast<int>(threadIdx.x % 32) == __ffs(static_cast<int>(alike)) - 1) atomicAdd(&s.bins[digit], (static_cast<unsigned long long>(high) << kLow) + low);
}

/// The sum over all blocks, for every thread, of sums that their threads know; `before`: over the blocks before this.
__device__ unsigned long long crew_sum(Shared& s, Crew& crew, Board::Round round, unsigned long long own, unsigned long long& before) {
  if (threadIdx.x == 0) crew.board.sums[round][crew.block] = own;
  crew.meet();
  const unsigned long long theirs = threadIdx.x < crew.blocks ? __ldcg(&crew.board.sums[round][threadIdx.x]) : 0;
  before = block_sum(s, threadIdx.x < crew.block ? theirs : 0);
  return block_sum(s, theirs);
}

/// By one warp: the digit at which the sum of bins, from the highest on, reaches `missing`; what is missing before it, and what is in its bin.
__device__ void find_digit(Shared& s, const unsigned long long* bins, unsigned long long missing, std::uint32_t prefix, int shift) {
  constexpr int kEach = kDigits / 32;
  const int lane = threadIdx.x;
  unsigned long long mine[kEach], sum = 0;
  for (int i = 0; i < kEach; ++i) sum += mine[i] = __ldcg(bins + lane * kEach + i);
  unsigned long long upto = sum;
  for (int step = 1; step < 32; step *= 2) {
    const unsigned long long higher = __shfl_down_sync(kAll, upto, step);
    if (lane + step < 32) upto += higher;
  }
  const unsigned reached = __ballot_sync(kAll, upto >= missing);
  if (lane != (reached == 0 ? 0 : 31 - __clz(static_cast<int>(reached)))) return;
  unsigned long long left = missing - (upto - sum);
  int at = kEach - 1;
#pragma unroll
  for (int i = kEach - 1; i > 0; --i)
    if (at == i && mine[i] < left) left -= mine[i], --at;
  unsigned long long there = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) there = at == i ? mine[i] : there;
  s.prefix = prefix | static_cast<std::uint32_t>(lane * kEach + at) << shift;
  s.left = left;
  s.at = there;
}

/// A key, what was missing before it, and the values of all that have it.
struct Reached {
  std::uint32_t key;
  unsigned long long missing, at;
};

/// Of values by descending key: the key at which their sum over the row reaches `needed` (that is reached). `round`: the first of four.
template <class Value>
__device__ Reached reach(Shared& s, Crew& crew, int round, const std::uint32_t* keys, unsigned long long needed, Value value_of) {
  std::uint32_t prefix = 0;
  unsigned long long missing = needed;
  for (int shift = 24; shift >= 0; shift -= 8, ++round) {
    for (int i = threadIdx.x; i < kDigits; i += kThreads) s.bins[i] = 0;
    __syncthreads();
    const std::uint32_t above = shift == 24 ? 0 : ~std::uint32_t{0} << (shift + 8);
    for (std::int64_t first = crew.begin + threadIdx.x; first < crew.end; first += kAhead * kThreads) {
      std::uint32_t key[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) key[i] = first + i * kThreads < crew.end ? keys[first + i * kThreads] : 0;
#pragma unroll
      for (int i = 0; i < kAhead; ++i)
        if (first + i * kThreads < crew.end && (key[i] & above) == prefix) add_to_bins(s, static_cast<int>(key[i] >> shift & 255u), value_of(first + i * kThreads, key[i]));
    }
    __syncthreads();
    for (int i = threadIdx.x; i < kDigits; i += kThreads)
      if (s.bins[i] != 0) atomicAdd(&crew.board.bins[round][i], s.bins[i]);
    crew.meet();
    if (threadIdx.x < 32) find_digit(s, crew.board.bins[round], missing, prefix, shift);
    __syncthreads();
    prefix = s.prefix;
    missing = s.left;
  }
  return {prefix, missing, s.at};
}

/// Of this block's ids the one in whose turn the sum of values, by ascending id, first exceeds `target`; -1: none.
template <class Value>
__device__ std::int64_t turn_of(Shared& s, const Crew& crew, unsigned long long target, Value value_of) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const std::int64_t width = (crew.end - crew.begin + kWarps - 1) / kWarps, begin = crew.begin + warp * width,
                     end = begin + width < crew.end ? begin + width : crew.end;
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

/// Up to which of this block's ids keys that are `key` belong to the first `count` of the row.
__device__ std::int64_t last_of_equals(Shared& s, Crew& crew, Board::Round round, const std::uint32_t* keys, std::uint32_t key, unsigned long long count) {
  const auto equal = [&](std::int64_t id) { return static_cast<unsigned long long>(keys[id] == key ? 1 : 0); };
  unsigned long long own = 0, before = 0;
  for (std::int64_t id = crew.begin + threadIdx.x; id < crew.end; id += kThreads) own += equal(id);
  own = block_sum(s, own);
  crew_sum(s, crew, round, own, before);
  if (before >= count) return -1;
  return before + own <= count ? INT64_MAX : turn_of(s, crew, count - 1 - before, equal);
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
  Board* boards;                // [rows at once]
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
  if (draws && blockIdx.x == 0) {
    auto* words = reinterpret_cast<unsigned*>(view.boards + blockIdx.y);
    for (unsigned i = threadIdx.x; i < sizeof(Board) / sizeof(unsigned); i += kPartThreads) words[i] = 0;
  }
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

/// Of row `at` of this launch, by one thread.
__device__ void leave_chosen(const View& view, unsigned at, std::int64_t chosen) {
  const SamplingRow& row = view.rows[at];
  const std::int64_t r = view.first_row + at;
  view.ids[r] = static_cast<std::int32_t>(chosen);
  if (view.seen != nullptr && row.penalty != 1.0f && chosen >= 0) view.seen[row.seen * view.words + chosen / 32] |= 1u << (chosen % 32);
  leave_next(view.next, r, static_cast<std::int32_t>(chosen));
}

struct Best {
  float score;
  std::int64_t id;
  __device__ bool finite() const { return score < INFINITY && score > -INFINITY; }
};
__device__ Best best_of(Shared& s, const View& view, unsigned at) {
  unsigned long long best = 0;
  for (int i = threadIdx.x; i < view.parts; i += static_cast<int>(blockDim.x)) {
    const unsigned long long here = view.best[static_cast<std::int64_t>(at) * view.parts + i];
    best = here > best ? here : best;
  }
  best = block_best(s, best);
  return {tensor::score_of_key(static_cast<std::uint32_t>(best >> 32)), 0xffffffffll - static_cast<std::int64_t>(best & 0xffffffffull)};
}

/// Rows that take their best.
__global__ void __launch_bounds__(kPartThreads) choose(const __grid_constant__ View view) {
  __shared__ Shared s;
  const Best best = best_of(s, view, blockIdx.x);
  if (threadIdx.x == 0) leave_chosen(view, blockIdx.x, best.finite() ? best.id : -1);
}

/// What stays after top_k and top_p, of this block's ids.
__device__ Cut cut_row(Shared& s, Crew& crew, const SamplingRow& row, const std::uint32_t* keys, const unsigned long long* weights, std::int64_t n, float best) {
  Cut cut;
  if (row.top_k > 0 && row.top_k < n) {
    const Reached reached = reach(s, crew, 0, keys, static_cast<unsigned long long>(row.top_k), [](std::int64_t, std::uint32_t) { return 1ull; });
    cut.key = reached.key;
    if (reached.missing < reached.at) cut.id = last_of_equals(s, crew, Board::kEqualK, keys, cut.key, reached.missing);
  }
  if (row.top_p > 0) {
    unsigned long long sum = 0, before = 0;
    for (std::int64_t id = crew.begin + threadIdx.x; id < crew.end; id += kThreads) sum += cut.keeps(keys[id], id) ? weights[id] : 0;
    sum = block_sum(s, sum);
    const unsigned long long share = tensor::share_of(crew_sum(s, crew, Board::kSumP, sum, before), row.top_p), needed = share > 0 ? share : 1;
    const Cut kept = cut;
    const Reached reached = reach(s, crew, 4, keys, needed, [&](std::int64_t id, std::uint32_t key) { return kept.keeps(key, id) ? weights[id] : 0ull; });
    // Those at the cut weigh all the same.
    const unsigned long long each = tensor::sampling_weight(tensor::score_of_key(reached.key), best, row.per_octave), count = (reached.missing + each - 1) / each;
    cut.key = reached.key;
    cut.id = reached.key == kept.key ? kept.id : INT64_MAX;
    if (count * each < reached.at) cut.id = last_of_equals(s, crew, Board::kEqualP, keys, cut.key, count);
  }
  return cut;
}

/// Rows that draw: all blocks of a row at once.
__global__ void __launch_bounds__(kThreads, 2) draw(const __grid_constant__ View view) {
  __shared__ Shared s;
  const unsigned at = blockIdx.y;
  const SamplingRow& row = view.rows[at];
  const std::int64_t n = view.n, place = static_cast<std::int64_t>(at) * n, width = (n + gridDim.x - 1) / gridDim.x, first = blockIdx.x * width;
  const Best best = best_of(s, view, at);
  if (row.per_octave == 0 || !best.finite()) {
    if (threadIdx.x == 0 && blockIdx.x == 0) leave_chosen(view, at, best.finite() ? best.id : -1);
    return;
  }
  Crew crew{.board = view.boards[at], .block = blockIdx.x, .blocks = gridDim.x, .met = 0, .begin = first < n ? first : n, .end = first + width < n ? first + width : n};
  const std::uint32_t* const keys = view.keys + place;
  unsigned long long* const weights = view.weights + place;
  for (std::int64_t id = crew.begin + threadIdx.x; id < crew.end; id += kThreads)
    weights[id] = tensor::sampling_weight(tensor::score_of_key(keys[id]), best.score, row.per_octave);
  __syncthreads();
  const Cut cut = cut_row(s, crew, row, keys, weights, n, best.score);
  const auto value_of = [&](std::int64_t id) { return cut.keeps(keys[id], id) && weights[id] >= row.least ? weights[id] : 0ull; };
  unsigned long long own = 0, before = 0;
  for (std::int64_t id = crew.begin + threadIdx.x; id < crew.end; id += kThreads) own += value_of(id);
  own = block_sum(s, own);
  const unsigned long long total = crew_sum(s, crew, Board::kTotal, own, before), target = tensor::share_of(total, row.draw);
  if (target >= total) {  // nothing weighs anything
    if (threadIdx.x == 0 && blockIdx.x == 0) leave_chosen(view, at, best.id);
  } else if (before <= target && target < before + own) {
    const std::int64_t chosen = turn_of(s, crew, target - before, value_of);
    if (threadIdx.x == 0) leave_chosen(view, at, chosen);
  }
}

/// Blocks that draw of each of so many rows: they wait for each other, so all must have their places at once.
unsigned drawing_blocks(const Context& context, unsigned rows, std::int64_t n) {
  int can = 0, each = 0;
  if (cudaDeviceGetAttribute(&can, cudaDevAttrCooperativeLaunch, context.device) != cudaSuccess || can == 0 ||
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, draw, kThreads, 0) != cudaSuccess)
    return 1;
  const std::int64_t places = std::int64_t{each} * context.multiprocessors / rows, wanted = std::min<std::int64_t>((n + kLeastDrawn - 1) / kLeastDrawn, kMostBlocks);
  return static_cast<unsigned>(std::clamp<std::int64_t>(places, 1, wanted));
}

}  // namespace

Bytes sample_bytes(std::int64_t vocabulary) {
  const auto n = static_cast<Bytes>(vocabulary);
  return n * (sizeof(std::uint32_t) + sizeof(std::uint64_t)) + (n + kPart - 1) / kPart * sizeof(std::uint64_t) + sizeof(Board) + 1024;
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
  view.boards = context.workspace.take<Board>(together);
  for (std::int64_t first = 0; first < args.rows; first += together) {
    view.first_row = first;
    const auto rows = static_cast<unsigned>(std::min(args.rows - first, together));
    std::copy_n(args.asked + first, rows, view.rows);
    rank<<<dim3(static_cast<unsigned>(view.parts), rows), kPartThreads, 0, context.stream>>>(view);
    context.launched();
    if (std::all_of(view.rows, view.rows + rows, [](const SamplingRow& row) { return row.per_octave == 0; })) {
      choose<<<rows, kPartThreads, 0, context.stream>>>(view);
    } else if (const unsigned blocks = drawing_blocks(context, rows, args.vocabulary); blocks == 1) {
      draw<<<dim3(1, rows), kThreads, 0, context.stream>>>(view);
    } else {
      void* arguments[] = {&view};
      context.note(cudaLaunchCooperativeKernel(draw, dim3(blocks, rows), dim3(kThreads), arguments, 0, context.stream));
    }
    context.launched();
  }
}

}  // namespace fathom::cuda
