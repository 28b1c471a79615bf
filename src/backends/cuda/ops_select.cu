// The lightning indexer: scores of all rows that a token sees, and the largest of them. Scores go to the workspace, some tokens at a time; then a
// block a token finds the smallest chosen score bit by bit and writes down the rows above it, and of its equals the lowest.
#include "backends/cuda/cuda_ops.h"
#include "backends/cuda/eight_bits.cuh"
#include "backends/cuda/segments.cuh"
#include "backends/cuda/torch_choice.h"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr int kSelectThreads = 256;
constexpr int kSelectWarps = kSelectThreads / kWarp;
constexpr int kKeys = 64;    // of a tile
constexpr int kDepth = 32;   // of the keys' dimensions at a time
constexpr int kBins = 256;

struct SelectView {
  SegmentView keys;
  View<const float> q;             // [tokens, heads, width]
  View<const float> weights;       // [tokens, heads]
  View<std::int32_t> selected;     // [tokens, wanted]
  const std::int32_t* table = nullptr;
  int sequences = 0, heads = 0, width = 0, wanted = 0;
  float scale = 1;
  int first_token = 0;             // of this launch
  float* scores = nullptr;         // [tokens of this launch, stride]: of name first + i
  std::int64_t stride = 0;
  Choice* choices = nullptr;       // [tokens of this launch, horizon]: topk_horizon.h
  std::int64_t horizon = 0;
};

/// What the token of this block sees.
struct SelectToken {
  std::int64_t token = -1, base = 0;
  NameRange names;
};
__device__ SelectToken token_of(const SelectView& view, int number) {
  const Piece piece = find_piece(view.table, view.sequences, 1, view.first_token + number);
  if (piece.sequence < 0) return {};
  const SequenceRow sequence = sequence_row(view.table, piece.sequence);
  SelectToken own;
  own.token = sequence.first_token + piece.first;
  own.names = visible_names(view.keys, sequence.past, sequence.past + piece.first);
  own.base = base_row(view.keys, view.table, piece.sequence, sequence);
  return own;
}

struct ScoreRoom {
  float q[64][kDepth + 4], k[kKeys][kDepth + 4];
  float sums[16][kKeys];
  std::int64_t row[kKeys];
};

template <class T>
__device__ void load_keys(const SelectView& view, int d, ScoreRoom& room) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll
  for (int i = 0; i < kKeys / kSelectWarps; ++i) {
    const int key = warp + kSelectWarps * i;
    const std::int64_t row = room.row[key];
    room.k[key][lane] = row >= 0 && d < view.width ? to_float(reinterpret_cast<const T*>(view.keys.k)[row * view.keys.k_row + d]) * key_scale<T>(view.keys, row, 0) : 0.0f;
  }
}

/// sums[j] += weight · relu(q · key) of this thread's heads first + ty + 16·i and keys tx + 16·j.
template <int kRows>
__device__ void add_heads(const SelectView& view, const SelectToken& own, int first, ScoreRoom& room, float (&sums)[4]) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  float match[kRows][4] = {};
  for (int d0 = 0; d0 < view.width; d0 += kDepth) {
    const int d = d0 + lane;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 16 * kRows / kSelectWarps; ++i) {
      const int head = warp + kSelectWarps * i;
      room.q[head][lane] = first + head < view.heads && d < view.width ? view.q.at(own.token, first + head)[d] : 0.0f;
    }
    if (view.keys.dtype == DType::f32) load_keys<float>(view, d, room);
    else if (view.keys.dtype == DType::bf16) load_keys<__nv_bfloat16>(view, d, room);
    else if (view.keys.dtype == DType::f8e4m3) load_keys<E4m3>(view, d, room);
    else if (view.keys.dtype == DType::i8) load_keys<Int8>(view, d, room);
    else load_keys<__half>(view, d, room);
    __syncthreads();
#pragma unroll
    for (int at = 0; at < kDepth; at += 4) {
      float4 k[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) k[j] = *reinterpret_cast<const float4*>(&room.k[tx + 16 * j][at]);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const float4 q = *reinterpret_cast<const float4*>(&room.q[ty + 16 * i][at]);
#pragma unroll
        for (int j = 0; j < 4; ++j) match[i][j] += q.x * k[j].x + q.y * k[j].y + q.z * k[j].z + q.w * k[j].w;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int head = first + ty + 16 * i;
    if (head >= view.heads) continue;
    const float weight = view.weights.at(own.token)[head];
#pragma unroll
    for (int j = 0; j < 4; ++j) sums[j] += weight * (match[i][j] < 0.0f ? 0.0f : match[i][j]);
  }
}

/// Grid: tiles of keys (strided over), tokens of this launch. kRows · 16 heads at a time.
template <int kRows>
__global__ void __launch_bounds__(kSelectThreads) score_keys(const __grid_constant__ SelectView view) {
  __shared__ __align__(16) ScoreRoom room;
  const SelectToken own = token_of(view, blockIdx.y);
  if (own.token < 0) return;
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16, count = own.names.end - own.names.first;
  for (int first = blockIdx.x * kKeys; first < count; first += gridDim.x * kKeys) {
    __syncthreads();
    if (threadIdx.x < kKeys) {
      const int at = first + static_cast<int>(threadIdx.x);
      room.row[threadIdx.x] = at < count ? row_of_name(view.keys, own.base, own.names.first + at) : -1;
    }
    float sums[4] = {};
    for (int head = 0; head < view.heads; head += 16 * kRows) add_heads<kRows>(view, own, head, room, sums);
#pragma unroll
    for (int j = 0; j < 4; ++j) room.sums[ty][tx + 16 * j] = sums[j];
    __syncthreads();
    if (threadIdx.x < kKeys && first + static_cast<int>(threadIdx.x) < count) {
      float sum = 0.0f;
      for (int i = 0; i < 16; ++i) sum += room.sums[i][threadIdx.x];
      view.scores[blockIdx.y * view.stride + first + threadIdx.x] = view.scale * sum + 0.0f;  // no negative zero
    }
  }
}

// ---------------------------------------------------------------- the largest

/// Ascends with the score; NaN is above everything, so that it is not hidden.
__device__ unsigned rank_bits(float score) {
  if (score != score) return 0xffffffffu;
  const unsigned bits = __float_as_uint(score);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

/// How many threads before this one have the flag set, and how many of the block.
struct Counted { int before = 0, all = 0; };
__device__ Counted count_flags(bool flag, int (&room)[kSelectWarps]) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const unsigned lanes = __ballot_sync(kAllLanes, flag);
  __syncthreads();  // an earlier use has been read
  if (lane == 0) room[warp] = __popc(lanes);
  __syncthreads();
  Counted counted{.before = __popc(lanes & ((1u << lane) - 1u))};
  for (int i = 0; i < kSelectWarps; ++i) {
    if (i < warp) counted.before += room[i];
    counted.all += room[i];
  }
  return counted;
}

/// The rank of the last chosen of `count` > wanted scores, and how many of its equals are chosen.
struct Threshold { unsigned bits = 0; int equals = 0; };
__device__ Threshold find_threshold(const float* scores, int count, int wanted) {
  __shared__ int bins[kBins], found_bin, found_left;
  Threshold threshold{.equals = wanted};
  for (int shift = 24; shift >= 0; shift -= 8) {
    const unsigned known = shift == 24 ? 0u : ~0u << (shift + 8);
    bins[threadIdx.x] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < count; i += kSelectThreads) {
      const unsigned bits = rank_bits(scores[i]);
      if ((bits & known) == threshold.bits) atomicAdd(&bins[bits >> shift & 255u], 1);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int left = threshold.equals, bin = kBins - 1;
      while (bin > 0 && bins[bin] < left) left -= bins[bin--];
      found_bin = bin, found_left = left;
    }
    __syncthreads();
    threshold.bits |= static_cast<unsigned>(found_bin) << shift;
    threshold.equals = found_left;
    __syncthreads();
  }
  return threshold;
}
static_assert(kBins == kSelectThreads);

/// Grid: tokens of this launch.
__global__ void __launch_bounds__(kSelectThreads) select_largest(const __grid_constant__ SelectView view) {
  __shared__ int room[kSelectWarps];
  const SelectToken own = token_of(view, blockIdx.x);
  if (own.token < 0) return;
  const float* scores = view.scores + blockIdx.x * view.stride;
  const int count = max(own.names.end - own.names.first, 0);
  std::int32_t* out = view.selected.at(own.token);
  if (count <= view.wanted) {
    for (int i = threadIdx.x; i < view.wanted; i += kSelectThreads) out[i] = i < count ? own.names.first + i : -1;
    return;
  }
  const Threshold threshold = find_threshold(scores, count, view.wanted);
  int equals_before = 0, chosen_before = 0;
  for (int base = 0; base < count; base += kSelectThreads) {
    const int at = base + static_cast<int>(threadIdx.x);
    const unsigned bits = at < count ? rank_bits(scores[at]) : 0u;
    const bool equal = at < count && bits == threshold.bits;
    const Counted equals = count_flags(equal, room);
    const bool chosen = at < count && (bits > threshold.bits || (equal && equals_before + equals.before < threshold.equals));
    const Counted chosens = count_flags(chosen, room);
    if (chosen) out[chosen_before + chosens.before] = own.names.first + at;
    equals_before += equals.all;
    chosen_before += chosens.all;
  }
}

/// As transformers settles ties: see tensor/topk_horizon.h. Of verify alone, so that one thread a token may do it.
__global__ void __launch_bounds__(kSelectThreads) select_like_torch(const __grid_constant__ SelectView view) {
  const SelectToken own = token_of(view, blockIdx.x);
  if (own.token < 0) return;
  const float* scores = view.scores + blockIdx.x * view.stride;
  Choice* choices = view.choices + blockIdx.x * view.horizon;
  for (std::int64_t name = threadIdx.x; name < view.horizon; name += kSelectThreads)
    choices[name] = {name >= own.names.first && name < own.names.end ? scores[name - own.names.first] : -INFINITY, static_cast<std::int32_t>(name)};
  __syncthreads();
  if (threadIdx.x == 0) TorchChooser(choices).choose(view.horizon, view.wanted);
  __syncthreads();
  const auto chosen = static_cast<int>(min(view.horizon, static_cast<std::int64_t>(view.wanted)));
  std::int32_t* out = view.selected.at(own.token);
  const auto seen = [&](int i) { return choices[i].score != -INFINITY; };
  for (int i = threadIdx.x; i < chosen; i += kSelectThreads) {
    if (!seen(i)) continue;
    int rank = 0;
    for (int j = 0; j < chosen; ++j) rank += seen(j) && choices[j].name < choices[i].name ? 1 : 0;
    out[rank] = choices[i].name;
  }
  int count = 0;
  for (int j = 0; j < chosen; ++j) count += seen(j) ? 1 : 0;
  for (int i = count + static_cast<int>(threadIdx.x); i < view.wanted; i += kSelectThreads) out[i] = -1;
}

/// Names that a token of the batch sees at most. Of single tokens: that one could see, since a recorded step of decoding is launched again when
/// there are more.
std::int64_t most_names(const IndexSelectArgs& args) {
  using Kind = KvSegment::Kind;
  std::int64_t most = 1;
  for (const Sequence& sequence : args.batch->sequences) {
    const std::int64_t end = sequence.past + sequence.tokens, capacity = args.keys.rows_per_slot;
    switch (args.keys.kind) {
      case Kind::kCache: most = std::max(most, sequence.tokens == 1 ? capacity : end); break;
      case Kind::kEntries: most = std::max(most, sequence.tokens == 1 ? capacity : end / args.keys.ratio); break;
      case Kind::kRingPast: most = std::max(most, capacity); break;
      case Kind::kFresh: most = std::max<std::int64_t>(most, sequence.tokens); break;
      case Kind::kFreshEntries: most = std::max<std::int64_t>(most, sequence.tokens / args.keys.ratio); break;
    }
  }
  return most;
}

}  // namespace

void CudaOps::index_select(const IndexSelectArgs& args) {
  flush();
  const std::int64_t heads = args.q.dim(1), width = args.q.dim(2), wanted = args.selected.dim(1), tokens = args.q.dim(0);
  FATHOM_CHECK(args.weights.dim(1) == heads && args.keys.k.dim(1) == 1 && args.keys.k.dim(2) == width && args.selected.dim(0) == tokens);
  FATHOM_CHECK(!args.keys.selected.defined());
  context_.workspace.reset();
  if (wanted == 0 || tokens == 0) return;
  SelectView view;
  KvSegment keys = args.keys;
  keys.k_shared = keys.v = {};
  view.keys = view_of(keys);
  view.q = view_of<const float>(args.q);
  view.weights = view_of<const float>(args.weights);
  view.selected = view_of<std::int32_t>(args.selected);
  view.table = sequence_table(*args.batch);
  view.sequences = static_cast<int>(args.batch->sequences.size());
  view.heads = static_cast<int>(heads);
  view.width = static_cast<int>(width);
  view.wanted = static_cast<int>(wanted);
  view.scale = static_cast<float>(args.scale);
  view.horizon = args.batch->topk_horizon > 0 ? args.batch->topk_horizon / args.keys.ratio : 0;
  view.stride = divide_up(most_names(args), kKeys) * kKeys;
  const auto token_bytes = static_cast<Bytes>(view.stride * static_cast<std::int64_t>(sizeof(float)) + view.horizon * static_cast<std::int64_t>(sizeof(Choice)));
  const std::int64_t room = static_cast<std::int64_t>((context_.workspace.left() - 1024) / token_bytes), chunk = std::min<std::int64_t>({tokens, room, 32768});
  FATHOM_CHECK(chunk > 0, "the scores of one token do not fit the workspace");
  view.scores = context_.workspace.take<float>(chunk * view.stride);
  if (view.horizon > 0) view.choices = context_.workspace.take<Choice>(chunk * view.horizon);
  const std::int64_t tiles = std::min<std::int64_t>(view.stride / kKeys, 4096);
  for (std::int64_t first = 0; first < tokens; first += chunk) {
    const auto count = static_cast<unsigned>(std::min(chunk, tokens - first));
    view.first_token = static_cast<int>(first);
    const dim3 grid(static_cast<unsigned>(tiles), count);
    if (heads <= 16) score_keys<1><<<grid, kSelectThreads, 0, context_.stream>>>(view);
    else score_keys<4><<<grid, kSelectThreads, 0, context_.stream>>>(view);
    context_.launched();
    if (args.batch->topk_horizon > 0) select_like_torch<<<count, kSelectThreads, 0, context_.stream>>>(view);
    else select_largest<<<count, kSelectThreads, 0, context_.stream>>>(view);
    context_.launched();
  }
}

}  // namespace fathom::cuda
