#include "backends/cuda/stages.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "backends/cuda/attention_ways.h"
#include "backends/cuda/copy_maps.h"
#include "backends/cuda/ranges.h"
#include "backends/cuda/staged_attention.cuh"
#include "backends/cuda/staged_multiply.cuh"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr int kMostProducts = 256, kMostAttentions = 96, kLeastStages = 3;  // of a launch
constexpr int kWorthwhileStages = 10;                                       // of launches that are made again
constexpr Bytes kLeastBytes = 8 * kMiB;                                     // of 16-bit weights: R1-Distill-Qwen-1.5B's token takes 1.17 ms without, 1.26 with
constexpr int kMostStages = kMostProducts + kMostAttentions;
constexpr int kMostSlots = 16;
constexpr int kLeastPieces = 6;   // of a ring; measured with 7 and more. More than there are warpgroups
static_assert(kUnderWayThrottled <= kUnderWay && kUnderWayThrottled <= static_cast<unsigned>(kLeastPieces - kStagedGroups));  // StagedRing
constexpr Bytes kSharedApart = 8 * kKiB;                                    // of a block, that is not dynamic or not ours
constexpr Bytes kCountersBytes = 4 * kKiB, kPartsBytes = kMiB;              // of the room: at its beginning; of attention's parts, behind those
constexpr std::int64_t kMostSharedKeyBytes = 48 * 1024 * 1024;              // that all heads of shared key heads read, each for itself

constexpr Bytes round_up(Bytes bytes) { return (bytes + 255) / 256 * 256; }
/// Where the tables of a launch lie.
struct TableRoom {
  Bytes attentions, keys, stages, weights, all;
  constexpr TableRoom(std::size_t products, std::size_t attention_count)
      : attentions(round_up(products * sizeof(StagedProducts))),
        keys(attentions + round_up(attention_count * sizeof(StagedAttention))),
        stages(keys + round_up(attention_count * sizeof(StagedKeys))),
        weights(stages + round_up((products + attention_count) * sizeof(std::int16_t))),
        all(weights + round_up(products * sizeof(StagedWeights))) {}
};
constexpr Bytes table_bytes(std::size_t products, std::size_t attentions) { return TableRoom(products, attentions).all; }
constexpr Bytes kMostTableBytes = table_bytes(kMostProducts, kMostAttentions);
static_assert((kStageCounts + 1) * kCountStep * sizeof(unsigned) <= kCountersBytes);
static_assert(kCountersBytes + kPartsBytes + 2 * kMostTableBytes < Stages::kRoomBytes);

/// Calls use(format) with the format that its kernel has as a constant.
template <class Use>
void with_staged_format(WeightFormat format, Use use) {
  if (format == WeightFormat::bf16) use(std::integral_constant<WeightFormat, WeightFormat::bf16>{});
  else if (format == WeightFormat::int8_row) use(std::integral_constant<WeightFormat, WeightFormat::int8_row>{});
  else if (format == WeightFormat::int4_group128) use(std::integral_constant<WeightFormat, WeightFormat::int4_group128>{});
  else if (format == WeightFormat::int4_group128_f16) use(std::integral_constant<WeightFormat, WeightFormat::int4_group128_f16>{});
  else if (format == WeightFormat::int4_group128_zero) use(std::integral_constant<WeightFormat, WeightFormat::int4_group128_zero>{});
  else if (format == WeightFormat::int4_group128_zero_f16) use(std::integral_constant<WeightFormat, WeightFormat::int4_group128_zero_f16>{});
  else use(std::integral_constant<WeightFormat, WeightFormat::fp8_block128>{});
}
/// Calls use(T()) with the type of a cache's elements.
template <class Use>
void with_cache(DType type, Use use) {
  if (type == DType::f16) use(__half{});
  else if (type == DType::f8e4m3) use(E4m3{});
  else if (type == DType::i8) use(Int8{});
  else use(__nv_bfloat16{});
}
/// Bytes in shared memory of x and what belongs to it.
int x_bytes(const StreamView& view) {
  int bytes = 0;
  with_staged_format(view.all.products[0].weight.format, [&](auto f) { bytes = StagedXRoom<decltype(f)::value>(view.stretches).all; });
  return bytes;
}
/// Bytes of shared memory that a piece takes: itself, what lies beside it, two barriers.
Bytes piece_bytes(WeightFormat format) {
  Bytes bytes = 0;
  with_staged_format(format, [&](auto f) { bytes = kPieceBytes + Staged<decltype(f)::value>::kBeside + 16; });
  return bytes;
}
std::int64_t bytes_of_row(const WeightView& weight) { return static_cast<std::int64_t>(weight_row_bytes(weight.format, weight.cols)); }
/// Bytes of the weights that products read, without scales.
Bytes bytes_of(const Together& all) {
  std::int64_t bytes = 0;
  for (int i = 0; i < all.count; ++i) bytes += all.products[i].rows * bytes_of_row(all.products[i].weight);
  return static_cast<Bytes>(bytes);
}
/// Of which the copy engine's boxes are not.
bool is_in_host_memory(const std::byte* at) {
  cudaPointerAttributes where{};
  return cudaPointerGetAttributes(&where, at) != cudaSuccess || where.type == cudaMemoryTypeHost;
}
/// `rows` rows from `at` on, and as many `apart` bytes further on if that is not 0, as boxes that are pieces. False: the copy engine does not take
/// it (nor what lies in host memory).
bool describe(CUtensorMap& map, const std::byte* at, std::int64_t rows, std::int64_t row_bytes, std::int64_t apart) {
  constexpr std::int64_t kMostApart = std::int64_t{1} << 40;
  if (row_bytes % kStretch != 0 || apart % 16 != 0 || apart >= kMostApart || is_in_host_memory(at)) return false;
  const auto row = static_cast<cuuint64_t>(row_bytes);
  const bool pair = apart != 0;
  const cuuint64_t dims[5] = {kStretch, static_cast<cuuint64_t>(rows), pair ? 2u : 1u, row / kStretch, 1}, strides[4] = {row, pair ? static_cast<cuuint64_t>(apart) : row, kStretch, row};
  const cuuint32_t box[5] = {kStretch, pair ? 8u : 16u, pair ? 2u : 1u, kPieceStretches, 1}, one[5] = {1, 1, 1, 1, 1};
  return encode_tiled()(&map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 5, const_cast<std::byte*>(at), dims, strides, box, one, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                        CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}
/// What the fetcher needs to know of products. False: the copy engine does not take one.
bool describe(StagedWeights& to, const StagedProducts& own) {
  const Together& all = own.view.all;
  const WeightView& like = all.products[0].weight;
  to = {};
  to.fetch.units = own.view.units, to.fetch.offset = own.offset;
  to.fetch.pieces = static_cast<std::uint16_t>(divide_up(own.view.stretches, kPieceStretches));
  to.fetch.groups = static_cast<std::uint16_t>(divide_up(like.cols, 128));
  to.fetch.count = static_cast<std::uint16_t>(all.count), to.fetch.gated = all.gated ? 1 : 0;
  to.fetch.format = static_cast<std::uint8_t>(like.format);
  for (int i = 0; i < Together::kMost; ++i) {
    const Product& p = all.products[std::min(i, all.count - 1)];
    to.fetch.scales[i] = p.weight.scales, to.fetch.first_unit[i] = all.first_block[i];
    to.fetch.first_row[i] = static_cast<int>(p.first_row), to.fetch.rows[i] = static_cast<int>(p.weight.rows);
    if (!all.gated && !describe(to.maps[i], p.weight.data, p.weight.rows, bytes_of_row(p.weight), 0)) return false;
  }
  if (all.gated) {
    const std::int64_t row = bytes_of_row(like);
    const std::byte *gate = like.data + all.products[0].first_row * row, *up = all.products[1].weight.data + all.products[1].first_row * row;
    to.fetch.up_first = up < gate ? 1 : 0;
    if (up == gate || is_in_host_memory(std::max(gate, up)) || !describe(to.maps[0], std::min(gate, up), all.products[0].rows, row, up < gate ? gate - up : up - gate)) return false;
  }
  return true;
}
/// Rows of a cache as boxes that are halves of pieces. False: the copy engine does not take it.
bool describe(CUtensorMap& map, const Tensor& rows, int keys) {
  const auto bytes = static_cast<std::int64_t>(dtype_bytes(rows.dtype));
  if (rows.strides[0] * bytes % 16 != 0 || rows.strides[1] * bytes % 16 != 0 || reinterpret_cast<std::uintptr_t>(rows.data) % 16 != 0) return false;
  if (is_in_host_memory(rows.data)) return false;
  const auto row = static_cast<cuuint64_t>(rows.strides[0] * bytes), head = static_cast<cuuint64_t>(rows.strides[1] * bytes), width = static_cast<cuuint64_t>(rows.dim(2) * bytes);
  const cuuint64_t dims[5] = {width, static_cast<cuuint64_t>(rows.dim(1)), static_cast<cuuint64_t>(rows.dim(0)), 1, 1}, strides[4] = {head, row, row, row};
  const cuuint32_t box[5] = {static_cast<cuuint32_t>(width), 1, static_cast<cuuint32_t>(keys), 1, 1}, one[5] = {1, 1, 1, 1, 1};
  return encode_tiled()(&map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 5, rows.data, dims, strides, box, one, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE,
                        CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}
/// What the fetcher needs to know of attention. False: the copy engine does not take its cache.
bool describe(StagedKeys& to, const AttentionView& view, const KvSegment& segment) {
  to = {};
  to.heads = view.heads, to.parts = view.parts, to.group = view.group, to.rows_per_slot = view.segments[0].rows_per_slot;
  with_cache(segment.k.dtype, [&](auto key) { to.keys = keys_of_piece<decltype(key)>(view.dv); });
  return segment.k.dtype == DType::i8 || (describe(to.k, segment.k, to.keys) && describe(to.v, segment.v, to.keys));
}

/// Weights of a norm on their way to the L2 cache, by one warp of each block.
__device__ inline void prefetch_norm(const NormedX& norm, int lane) {
  constexpr int kLine = 128;
  const std::int64_t at = (static_cast<std::int64_t>(blockIdx.x) * kWarp + lane) * kLine;
  if (norm.from != nullptr && norm.weight != nullptr && at < norm.n * (norm.weight_type == DType::f32 ? 4 : 2)) asm volatile("prefetch.global.L2 [%0];" ::"l"(norm.weight + at));
}

/// Grid: blocks that all run at the same time, one a multiprocessor, in clusters of two or one. Shared memory: x and what belongs to it; parts, or attention's sums; what lies beside
/// pieces, barriers; the ring.
template <WeightFormat F, class T>
__global__ void __launch_bounds__(kStagedThreads, 1) staged_kernel(const __grid_constant__ StagedPass pass) {
#if defined(FATHOM_WGMMA_HERE)
  extern __shared__ __align__(128) unsigned char memory[];
  __shared__ StagedProducts kept[kStagedTables];
  __shared__ StagedAttention attentions[2];
  __shared__ StagedFetch fetched[2];
  __shared__ float squares[2 * kStreamedWarps];
  __shared__ __align__(8) std::uint64_t filled[2];
  __shared__ unsigned answers[8 * kMostSlots + 2];
  __shared__ std::int16_t stages[kMostStages];
  __shared__ int4 sequence;
  __shared__ StagedStart::Shared starts;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const auto bring = [](auto& to, const auto* from, int lane, int lanes) {
    for (int i = lane; i < static_cast<int>(sizeof to / 16); i += lanes) reinterpret_cast<uint4*>(&to)[i] = __ldg(reinterpret_cast<const uint4*>(from) + i);
  };
  const StagedRing<F> ring(pass, memory);
  StagedPair pair(filled);
  StagedStart start(starts);
  if (threadIdx.x == 0) {
    start.init();
    init_barrier(pair.filled, kStreamedWarps), init_barrier(pair.squared, kStreamedWarps);
    for (unsigned i = 0; i < pass.depth; ++i) init_barrier(ring.full(i), Staged<F>::kBeside > 0 ? 1 + kWarp : 1), init_barrier(ring.empty(i), kGroupOfWarps / kWarp);
    publish_barriers();
  }
  for (int i = static_cast<int>(threadIdx.x); i < pass.count; i += kStagedThreads) stages[i] = pass.stages[i];
  if (threadIdx.x == 0 && pass.table != nullptr) sequence = __ldcg(reinterpret_cast<const int4*>(pass.table));
  for (int i = 0; i + 1 < kStagedTables && i < pass.product_count; ++i) bring(kept[i], pass.products + i, static_cast<int>(threadIdx.x), kStagedThreads);
  if (pass.count > 1 && pass.stages[1] < 0) bring(attentions[(-1 - pass.stages[1]) % 2], pass.attentions - 1 - pass.stages[1], static_cast<int>(threadIdx.x), kStagedThreads);
  cluster_arrive();
  cluster_wait();
  if (warp >= kStreamedWarps) {
    give_registers<kKeeperRegisters>();
    if (warp == kStreamedWarps + 1) return fetch_stages<F, false>(pass, stages, sequence, ring, fetched[0], starts.throttled);
    if (warp == kStreamedWarps + 2 && Staged<F>::kBeside > 0) return fetch_stages<F, true>(pass, stages, sequence, ring, fetched[1], starts.throttled);
    if (warp > kStreamedWarps) return;
    wait_for_previous();
    for (int s = 0; s < pass.count; ++s) {
      const int lane = static_cast<int>(threadIdx.x) % kWarp, number = stages[s], after_next = s + 2 < pass.count ? stages[s + 2] : 0;
      if (lane == 0) {
        if (s > 0) await_stages(pass.ended, static_cast<unsigned>(s) * gridDim.x);
        start.tell();
      }
      __syncwarp();
      // Tables of stages after the next: workers look at theirs before its turn has come.
      if (number >= 0 && number + kStagedTables - 1 < pass.product_count) bring(kept[(number + kStagedTables - 1) % kStagedTables], pass.products + number + kStagedTables - 1, lane, kWarp);
      if (number >= 0 && number + 1 < pass.product_count) prefetch_norm(kept[(number + 1) % kStagedTables].view.all.norm, lane);
      if (after_next < 0) bring(attentions[(-1 - after_next) % 2], pass.attentions - 1 - after_next, lane, kWarp);
      await_workers();
      if (s + 1 < pass.count) count_stage(pass.ended);
    }
    if (threadIdx.x % kWarp != 0) return;
    unsigned* const all = pass.ended + kStageCounts * kCountStep;
    if (atomicAdd(all, 1u) + 1 < gridDim.x) return;
    for (int i = 0; i <= kStageCounts; ++i) pass.ended[i * kCountStep] = 0;  // all have seen all others
    return;
  }
  take_registers<kWorkerRegisters>();
  wait_for_previous();
  StagedTurns turns(threadIdx.x / kGroupOfWarps);
  const AttentionView* joined = nullptr;  // the last attention
  for (int s = 0; s < pass.count; ++s) {
    const int number = stages[s];
    if (number < 0) {
      const StagedAttention& attention = attentions[(-1 - number) % 2];
      joined = &attention.view;
      attend_stage<F, T>(attention, sequence, ring, turns, reinterpret_cast<float*>(memory + pass.parts), answers, start);
    } else {
      const StagedProducts& own = kept[number % kStagedTables];
      if (own.view.units == 0) start.wait(), join_stage(*joined);
      else multiply_stage<F>(pass, own, own.joins ? joined : nullptr, ring, turns, pair, memory, squares, answers, start);
    }
    tell_keeper();
  }
#endif
}

bool is_e4m3(WeightFormat format) { return format == WeightFormat::fp8_block128 || format == WeightFormat::fp8_row; }
bool has_copy_engine([[maybe_unused]] const Context& context) {
#if defined(FATHOM_CUDA_90A)
  return context.compute_capability == 90 && encode_tiled() != nullptr;
#else
  return false;
#endif
}
bool is_staged(WeightFormat format) {
  return format == WeightFormat::bf16 || format == WeightFormat::fp8_block128 || format == WeightFormat::fp8_row || format == WeightFormat::int8_row || is_int4(format);
}

}  // namespace

struct Stages::Gathered {
  std::vector<StagedProducts> products;
  std::vector<StagedAttention> attentions;
  std::vector<StagedKeys> keys;  // of the attentions
  std::vector<std::int16_t> stages;
  std::vector<StagedWeights> weights;  // of the products
  int x_bytes = 0;                     // the most
  DType cache = DType::bf16;           // that attention reads
  WeightFormat format = WeightFormat::bf16;  // of all weights
  int slots = 1;
  unsigned next_block = 0;
  FloatRanges unanswered;              // what is of attention's parts, ups beside their gates, norms that are read

  bool ends_with_attention() const { return !stages.empty() && stages.back() < 0; }
  void take(const StagedProducts& own, const StagedWeights& own_weights) {
    stages.push_back(static_cast<std::int16_t>(products.size()));
    products.push_back(own);
    weights.push_back(own_weights);
  }
  /// A stage that only joins the parts of attention.
  void join() {
    StagedProducts none;
    none.joins = true;
    take(none, {});
  }
  Bytes parts_at() const { return round_up(static_cast<Bytes>(x_bytes)); }
  Bytes beside_at() const { return parts_at() + round_up(std::max(slots * kUnitSums, attentions.empty() ? 0 : kStagedJoin) * sizeof(float)); }
  /// Dynamic shared memory of a block whose ring has room for `depth` pieces; where the ring begins.
  Bytes ring_at(int depth) const { return beside_at() + static_cast<Bytes>(depth) * (piece_bytes(format) - kPieceBytes); }
  Bytes shared(int depth) const { return beside_at() + static_cast<Bytes>(depth) * piece_bytes(format) + 1024; }
};

Stages::Stages() : gathered_(std::make_unique<Gathered>()) {}
Stages::~Stages() = default;
void Stages::use(std::byte* room) {
  room_ = room;
  forget();
}
void Stages::forget() {
  tables_.clear();
  used_ = kCountersBytes + kPartsBytes;
}
bool Stages::possible(const Context& context) { return has_copy_engine(context); }
bool Stages::full() const { return used_ + 2 * kMostTableBytes > kRoomBytes; }  // one for launches that are not recorded
bool Stages::empty() const { return gathered_->stages.empty(); }

bool Stages::add(Context& context, const Together& all) {
  const Product& p = all.products[0];
  if (room_ == nullptr || !has_copy_engine(context) || p.tokens != 1 || p.groups != 1 || p.by_column || !is_staged(p.weight.format) || !rows_can_be_copied(all)) return false;
  if (all.gated && all.count != 2) return false;
  if (p.weight.format == WeightFormat::bf16 && bytes_of(all) < kLeastBytes) return false;
  if (empty() && short_.contains(p.weight.data)) return false;
  if (std::ssize(gathered_->products) + 1 >= kMostProducts) close(context);
  if (full()) return false;
  const bool alike = p.weight.format == gathered_->format || (is_e4m3(p.weight.format) && is_e4m3(gathered_->format));
  if (!empty() && !alike) close(context);
  StagedProducts own;
  own.view = stream_view(context, all, 1);
  if (own.view.units == 0) return false;
  own.view.slots = static_cast<int>(std::min<std::int64_t>(divide_up(own.view.units, context.multiprocessors), kMostSlots));
  if (gathered_->ends_with_attention()) {
    const AttentionView& attention = gathered_->attentions.back().view;
    own.joins = p.x == attention.out.data && p.weight.cols == static_cast<std::int64_t>(attention.heads) * attention.dv && all.norm.from == nullptr;
  }
  bool answered = own.joins || !gathered_->unanswered.overlaps(all.norm.from != nullptr ? all.norm.from : p.x, p.weight.cols);
  for (int i = 0; i < all.count; ++i) {
    const Product& one = all.products[i];
    if (one.added != nullptr && gathered_->unanswered.overlaps(one.added, one.rows)) answered = false;
    if (one.accumulate && gathered_->unanswered.overlaps(one.out, one.rows)) answered = false;
  }
  if (!answered) {
    close(context);
    return add(context, all);
  }
  Gathered& gathered = *gathered_;
  StagedWeights weights;
  if (!describe(weights, own)) return false;
  const int x_before = gathered.x_bytes, slots_before = gathered.slots;
  const WeightFormat format_before = std::exchange(gathered.format, p.weight.format);
  gathered.x_bytes = std::max(x_before, x_bytes(own.view));
  gathered.slots = std::max(slots_before, own.view.slots);
  if (gathered.shared(kLeastPieces) > context.shared_bytes - kSharedApart) {
    gathered.x_bytes = x_before, gathered.slots = slots_before, gathered.format = format_before;
    return false;
  }
  if (gathered.ends_with_attention() && !own.joins) gathered.join();
  for (int i = 0; i < all.count; ++i) {
    const Product& one = all.products[i];
    if (all.gated && i == 1) gathered.unanswered.add(one.out, one.rows);
    else gathered.unanswered.remove(one.out, one.rows);
  }
  if (all.norm.from != nullptr && !all.norm.unread) gathered.unanswered.add(all.norm.x, all.norm.n);
  const auto blocks = static_cast<unsigned>(context.multiprocessors);
  own.up_first = weights.fetch.up_first != 0;
  own.offset = weights.fetch.offset = (blocks - gathered.next_block) % blocks;
  gathered.next_block = (gathered.next_block + own.view.units) % blocks;
  gathered.take(own, weights);
  return true;
}

bool Stages::add(Context& context, const AttentionArgs& args, const AttentionView& view, const FreshRows& fresh) {
  Gathered& gathered = *gathered_;
  if (gathered.stages.empty() || gathered.ends_with_attention() || std::ssize(gathered.attentions) == kMostAttentions) return false;
  if (!gathered.attentions.empty() && (view.segments[0].dtype != gathered.cache || view.table != gathered.attentions[0].view.table)) return false;
  if (view.sequences != 1 || view.tokens != 1 || args.segments.size() != 1 || view.lse.defined() || !fresh.unread || fresh.cosines == nullptr) return false;
  const SegmentView& segment = view.segments[0];
  if (segment.kind != KvSegment::Kind::kCache || segment.v == nullptr || segment.dtype == DType::f32 || (view.dv != 64 && view.dv != 128) || view.width != view.dv) return false;
  const std::int64_t read = static_cast<std::int64_t>(view.heads) * segment.rows_per_slot * view.dv * 2 * static_cast<std::int64_t>(dtype_bytes(segment.dtype));
  if (view.group > 1 && read > kMostSharedKeyBytes) return false;
  StagedAttention own{view, fresh};
  own.view.parts = std::clamp(context.multiprocessors / view.heads, 1, kMostStagedParts);
  const Bytes floats = static_cast<Bytes>(own.view.parts) * static_cast<Bytes>(view.heads);
  if (floats * static_cast<Bytes>(view.dv + 2) * sizeof(float) > kPartsBytes) return false;
  own.view.part_out = reinterpret_cast<float*>(room_ + kCountersBytes);
  own.view.part_state = own.view.part_out + floats * static_cast<Bytes>(view.dv);
  StagedKeys keys;
  if (!describe(keys, own.view, args.segments[0])) return false;
  gathered.attentions.push_back(own);
  if (gathered.shared(kLeastPieces) > context.shared_bytes - kSharedApart) {  // its sums take more than those of products
    gathered.attentions.pop_back();
    return false;
  }
  gathered.unanswered.add(view.out.data, (view.heads - 1) * view.out.strides[1] + view.dv);
  gathered.stages.push_back(static_cast<std::int16_t>(-std::ssize(gathered.attentions)));
  gathered.keys.push_back(keys);
  gathered.cache = segment.dtype;
  return true;
}

void Stages::close(Context& context) {
  if (empty()) return;
  if (gathered_->ends_with_attention()) gathered_->join();
  Gathered all = std::move(*gathered_);
  *gathered_ = {};
  if (std::ssize(all.stages) < kWorthwhileStages) short_.insert(all.products.front().view.all.products[0].weight.data);
  if (all.attentions.empty() && std::ssize(all.stages) < kLeastStages) {
    for (const StagedProducts& own : all.products) launch_together(context, own.view.all);
    return;
  }
  cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
  context.note(cudaStreamIsCapturing(context.stream, &capturing));
  const bool recorded = capturing != cudaStreamCaptureStatusNone;
  const TableRoom room(all.products.size(), all.attentions.size());
  std::byte* const to = room_ + (recorded ? used_ : kRoomBytes - kMostTableBytes);
  Table table{to, std::vector<std::byte>(room.all)};
  const auto put = [&](Bytes at, const auto& entries) {
    if (!entries.empty()) std::memcpy(table.bytes.data() + at, entries.data(), entries.size() * sizeof entries[0]);
  };
  put(0, all.products);
  put(room.attentions, all.attentions);
  put(room.keys, all.keys);
  put(room.stages, all.stages);
  put(room.weights, all.weights);
  if (recorded) {
    used_ += room.all;
    tables_.push_back(std::move(table));
  } else {
    context.note(cudaMemcpyAsync(to, table.bytes.data(), room.all, cudaMemcpyHostToDevice, context.stream));
  }
  int depth = kLeastPieces;
  while (all.shared(depth + 1) <= context.shared_bytes - kSharedApart) ++depth;
  const StagedPass pass{.products = reinterpret_cast<const StagedProducts*>(to),
                        .weights = reinterpret_cast<const StagedWeights*>(to + room.weights),
                        .attentions = reinterpret_cast<const StagedAttention*>(to + room.attentions),
                        .keys = all.cache == DType::i8 ? nullptr : reinterpret_cast<const StagedKeys*>(to + room.keys),
                        .stages = reinterpret_cast<const std::int16_t*>(to + room.stages),
                        .table = all.attentions.empty() ? nullptr : all.attentions[0].view.table,
                        .product_count = static_cast<int>(all.products.size()),
                        .count = static_cast<int>(all.stages.size()),
                        .ended = reinterpret_cast<unsigned*>(room_),
                        .depth = static_cast<unsigned>(depth),
                        .under_way = std::min(kUnderWay, static_cast<unsigned>(depth - kStagedGroups)),
                        .parts = static_cast<unsigned>(all.parts_at()),
                        .beside = static_cast<unsigned>(all.beside_at()),
                        .ring = static_cast<unsigned>(all.ring_at(depth))};
  launched_ += std::ssize(all.stages);
  const auto shared = static_cast<std::size_t>(all.shared(depth));
  with_staged_format(all.format, [&](auto format) {
    with_cache(all.cache, [&](auto key) {
      auto* const kernel = &staged_kernel<decltype(format)::value, decltype(key)>;
      context.note(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
      const auto [cluster, unknown] = clusters_.try_emplace(reinterpret_cast<const void*>(kernel), 1);
      if (unknown && context.multiprocessors % 2 == 0 && clusters_at_once(context, kernel, dim3(kStagedThreads), shared, 2) * 2 >= context.multiprocessors) cluster->second = 2;
      ClusterLaunch(context, dim3(static_cast<unsigned>(context.multiprocessors)), dim3(kStagedThreads), shared, dim3(cluster->second)).go(context, kernel, pass);
    });
  });
}

void close_stages(Context& context) {
  if (context.stages != nullptr) context.stages->close(context);
}

void Stages::upload(Context& context) {
  for (const Table& table : tables_) context.note(cudaMemcpyAsync(table.to, table.bytes.data(), table.bytes.size(), cudaMemcpyHostToDevice, context.stream));
  tables_.clear();
}

}  // namespace fathom::cuda
