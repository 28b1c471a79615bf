// Products of e4m3 codes on Hopper's matrix units: see codes.h. What is here rounds x, lays it out as tiles, tells the copy engine how the
// weights lie, and launches.
#include "backends/cuda/codes.h"

#include "backends/cuda/codes_rounding.cuh"
#include "backends/cuda/codes_view.cuh"
#include "backends/cuda/copy_maps.h"
#include "backends/cuda/launch.cuh"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr int kPlaceThreads = 256;

struct PlaceCodes {
  View<const std::int32_t> indices;   // [tokens, top_k]
  const std::int32_t* hit = nullptr;  // [tokens, top_k]: -1 where the expert is not here
  const HitsOfExpert* experts = nullptr;
  std::int64_t tokens = 0;
  int top_k = 1, first_expert = 0, depths = 0;
  std::int64_t first_slot = 0, slots = 0;  // runs that begin in these
  const std::uint8_t* from = nullptr;      // [tokens, depths · 128]
  const float* from_scales = nullptr;      // [tokens, depths]
  std::uint8_t* to = nullptr;              // tiles from the first slot on
  float* to_scales = nullptr;
};
constexpr int kPlaceDepths = 32;  // a warp's, read together

/// Where a hit goes: its run's slot, counted from the first (-1: to none), the run's hits with padding, and which of them it is.
struct PlaceOfHit { int slot = -1, padded = 0, within = 0; };

__device__ inline PlaceOfHit find_place(const PlaceCodes& args, std::int64_t token, int choice) {
  if (choice >= args.top_k) return {};
  const int hit = args.hit[token * args.top_k + choice], expert = args.indices.at(token)[choice] - args.first_expert;
  if (hit < 0) return {};
  const HitsOfExpert hits = args.experts[expert];
  const int number = (hit - hits.first) / kCodeHits, before = number * kCodeHits;
  const std::int64_t slot = slot_of(hits.first + before, hits.first_run + number) - args.first_slot;
  if (slot < 0 || slot >= args.slots) return {};
  return {static_cast<int>(slot), static_cast<int>(padded_hits(min(kCodeHits, hits.count - before))), hit - hits.first - before};
}

/// A warp brings some stretches of a token to all of its hits. Grid: tokens, as many as a block has warps; stretches.
__global__ void __launch_bounds__(kPlaceThreads) place_codes(const __grid_constant__ PlaceCodes args) {
  after_previous();
  const int lane = static_cast<int>(threadIdx.x) % kWarp, chunk = lane % 8, first_depth = static_cast<int>(blockIdx.y) * kPlaceDepths, depth = first_depth + lane / 8;
  const std::int64_t token = static_cast<std::int64_t>(blockIdx.x) * (kPlaceThreads / kWarp) + threadIdx.x / kWarp;
  if (token >= args.tokens) return;
  for (int choice = 0; choice < args.top_k; choice += kWarp) {
    const PlaceOfHit own = find_place(args, token, choice + lane);
    unsigned left = __ballot_sync(kAllLanes, own.slot >= 0);
    if (left == 0) continue;
    const std::int64_t stretch = token * args.depths + first_depth;
    uint4 codes[kPlaceDepths / 4];
#pragma unroll
    for (int i = 0; i < kPlaceDepths / 4; ++i)
      if (depth + 4 * i < args.depths) codes[i] = *reinterpret_cast<const uint4*>(args.from + (stretch + 4 * i) * kCodeDepth + 16 * lane);
    const float scale = first_depth + lane < args.depths ? args.from_scales[stretch + lane] : 0.0f;
    for (; left != 0; left &= left - 1) {
      const int from = __ffs(static_cast<int>(left)) - 1;
      const int slot = __shfl_sync(kAllLanes, own.slot, from), padded = __shfl_sync(kAllLanes, own.padded, from), hit = __shfl_sync(kAllLanes, own.within, from);
      const std::int64_t run = static_cast<std::int64_t>(slot) * args.depths;
      std::uint8_t* const to = args.to + (run + depth * padded) * kCodeDepth + tile_byte(hit, 16 * chunk);
#pragma unroll
      for (int i = 0; i < kPlaceDepths / 4; ++i)
        if (depth + 4 * i < args.depths) *reinterpret_cast<uint4*>(to + 4 * i * padded * kCodeDepth) = codes[i];
      if (first_depth + lane < args.depths) args.to_scales[run + (first_depth + lane) * padded + hit] = scale;
    }
  }
}

}  // namespace

EncodeTiled encode_tiled() {
  static const EncodeTiled found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result{};
    const bool there = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result) == cudaSuccess && result == cudaDriverEntryPointSuccess;
    return there ? reinterpret_cast<EncodeTiled>(function) : nullptr;
  }();
  return found;
}

namespace {

// ---------------------------------------------------------------- how the weights lie

/// Matrices [rows, cols] of codes, `experts` of them `step` bytes apart, as boxes of 64 pairs of rows: of neighbours, or (mate above 0) each
/// with the row that lies `mate` bytes behind it.
bool describe(CUtensorMap& map, const std::byte* data, std::int64_t rows, std::int64_t cols, std::int64_t experts, std::int64_t step, std::int64_t mate) {
  const auto stride = static_cast<cuuint64_t>(cols), count = static_cast<cuuint64_t>(experts);
  const bool mates = mate > 0;
  const cuuint64_t dims[5] = {stride, 8, 2, static_cast<cuuint64_t>(divide_up(rows, mates ? 8 : 16)), count};
  const cuuint64_t strides[4] = {mates ? stride : 2 * stride, mates ? static_cast<cuuint64_t>(mate) : stride, (mates ? 8 : 16) * stride,
                                 experts > 1 ? static_cast<cuuint64_t>(step) : static_cast<cuuint64_t>(divide_up(rows, 16) * 16) * stride};
  const cuuint32_t box[5] = {kCodeDepth, 8, 2, 8, 1}, one[5] = {1, 1, 1, 1, 1};
  return encode_tiled()(&map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 5, const_cast<std::byte*>(data), dims, strides, box, one, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}
bool suits_copies(const std::byte* data, std::int64_t step) { return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && step >= 0 && step % 16 == 0 && step < std::int64_t{1} << 40; }

bool has_units([[maybe_unused]] const Context& context) {
#if defined(FATHOM_CUDA_90A)
  return context.compute_capability == 90 && kCodeBytes <= static_cast<int>(context.shared_bytes) && encode_tiled() != nullptr;
#else
  return false;
#endif
}

}  // namespace

// ---------------------------------------------------------------- experts

namespace {

constexpr std::int64_t kHitSumBytes = 2 * kCodeRows * 2;  // of a hit: bf16, the rows of one pair of tiles

/// What a chunk of tokens needs of the workspace.
struct ExpertRoom {
  std::int64_t tokens, experts, pairs, runs, slots, x_depths, inner_depths;
  ExpertRoom(const ExpertsArgs& args, std::int64_t count)
      : tokens(count),
        experts(std::ssize(args.gate)),
        pairs(tokens * args.indices.dim(1)),
        runs(std::min(pairs, experts + pairs / kCodeHits)),
        slots(slots_of(pairs, runs)),
        x_depths(divide_up(args.x.dim(1), kCodeDepth)),
        inner_depths(divide_up(args.gate[0].rows, kCodeDepth)) {}
  static std::int64_t bytes_of(std::int64_t slots, std::int64_t depths) { return slots * depths * (kCodeDepth + 4) + 512; }
  /// While both products run: runs, hits and the gated values' codes.
  std::int64_t kept() const {
    return runs * static_cast<std::int64_t>(sizeof(RunOfExpert)) + experts * static_cast<std::int64_t>(sizeof(HitsOfExpert)) + pairs * 4 + bytes_of(slots, inner_depths) + 4 * 256;
  }
  /// In the first: x, and after one another pieces of it by hits, of at least 16 runs.
  std::int64_t passing() const { return bytes_of(tokens, x_depths) + bytes_of((kCodeHits + 8) * std::min<std::int64_t>(runs, 16) + kCodeHits + 8, x_depths) + 4 * 256; }
  /// In the second: some columns of the sums.
  std::int64_t sums() const { return pairs * kHitSumBytes + 256; }
  bool fits(Bytes left) const { return kept() + std::max(passing(), sums()) <= static_cast<std::int64_t>(left) && pairs < std::int64_t{1} << 21; }
};

/// All of the workspace with what lies before it, rounded_data.
Workspace whole_room(Context& context) {
  FATHOM_CHECK(context.workspace.take<std::byte>(0) == context.rounded_data + kRoundedBytes, "something of the workspace is taken already");
  return {context.rounded_data, kRoundedBytes + context.workspace.left()};
}

GatherView view_of_hits(Context& context, const ExpertsArgs& args, const Tensor& indices, const ExpertRoom& room) {
  GatherView gather;
  gather.indices = view_of<const std::int32_t>(indices);
  gather.pairs = static_cast<int>(room.pairs);
  gather.top_k = static_cast<int>(args.indices.dim(1));
  gather.first_expert = static_cast<int>(args.first_expert);
  gather.here = static_cast<int>(args.gate.size());
  gather.run = kCodeHits;
  gather.most_runs = static_cast<int>(room.runs);
  gather.runs = context.workspace.take<RunOfExpert>(room.runs);
  gather.experts = context.workspace.take<HitsOfExpert>(room.experts);
  gather.hit = context.workspace.take<std::int32_t>(room.pairs);
  return gather;
}

/// Launches what finds the hits and, beside it, what makes codes of x: neither reads what the other writes.
RoundCodes gather_and_round(Context& context, const ExpertsArgs& args, const Tensor& x, const GatherView& gather, const ExpertRoom& room) {
  RoundCodes round{.x = x.as<float>(), .x_stride = x.strides[0], .tokens = x.dim(0), .cols = static_cast<int>(x.dim(1)), .width = static_cast<int>(room.x_depths) * kCodeDepth,
                   .kind = {.stretches = true, .powers = args.gate[0].activations == Activations::kPerGroupOfPowers}, .token_step = room.x_depths, .stretch_step = 1, .beside = true};
  round.codes = context.workspace.take<std::uint8_t>(x.dim(0) * room.x_depths * kCodeDepth);
  round.scales = context.workspace.take<float>(x.dim(0) * room.x_depths);
  launch_gather(context, gather);
  round_codes(context, round);
  return round;
}

/// hidden = gated products, as tiles of codes; of x by hits, as many slots at a time as fit.
void multiply_in(Context& context, const ExpertsArgs& args, const Matrices& matrices, const Tensor& x, const GatherView& gather, const ExpertRoom& room, CodesView& view) {
  const std::int64_t h = x.dim(1);
  const Workspace start = context.workspace;
  const RoundCodes round = gather_and_round(context, args, x, gather, room);
  const std::int64_t mate = matrices.up.data - matrices.gate.data;
  view.up_first = mate < 0;
  const bool described = describe(view.weights, mate > 0 ? matrices.gate.data : matrices.up.data, args.gate[0].rows, h, std::ssize(args.gate), matrices.gate.data_step, std::abs(mate));
  FATHOM_CHECK(described, "experts that the copy engine does not take");
  view.scales = reinterpret_cast<const float*>(matrices.gate.scales);
  view.up_scales = reinterpret_cast<const float*>(matrices.up.scales);
  view.scales_step = matrices.gate.scales_step / 4;
  view.up_scales_step = matrices.up.scales_step / 4;
  view.rows = static_cast<int>(args.gate[0].rows);
  view.depths = static_cast<int>(room.x_depths);
  view.pairs = static_cast<int>(room.inner_depths);
  view.runs = gather.runs;
  view.run_count = static_cast<int>(room.runs);
  view.limit = static_cast<float>(args.limit);
  view.powers = args.down[0].activations == Activations::kPerGroupOfPowers;
  const std::int64_t fit = (static_cast<std::int64_t>(context.workspace.left()) - 1024) / (room.x_depths * (kCodeDepth + 4)), most = std::min(room.slots, (fit - kCodeHits - 8) / 8 * 8);
  auto* tiles = context.workspace.take<std::uint8_t>((most + kCodeHits + 8) * room.x_depths * kCodeDepth);
  float* scales = context.workspace.take<float>((most + kCodeHits + 8) * room.x_depths);
  view.x = tiles;
  view.x_scales = scales;
  view.slots = most;
  PlaceCodes place{.indices = gather.indices, .hit = gather.hit, .experts = gather.experts, .tokens = room.tokens, .top_k = gather.top_k, .first_expert = gather.first_expert,
                   .depths = view.depths, .slots = most, .from = round.codes, .from_scales = round.scales, .to = tiles, .to_scales = scales};
  const dim3 blocks(static_cast<unsigned>(divide_up(room.tokens, kPlaceThreads / kWarp)), static_cast<unsigned>(divide_up(room.x_depths, kPlaceDepths)));
  for (std::int64_t first = 0; first < room.slots; first += most) {
    place.first_slot = first;
    launch_early(context, &place_codes, blocks, dim3(kPlaceThreads), 0, place);
    view.first_slot = first;
    launch_gated(context, view);
  }
  context.workspace = start;
}

/// out (+)= their products with the down matrices, some columns after the other.
void multiply_out(Context& context, const ExpertsArgs& args, const Matrices& matrices, const GatherView& gather, const ExpertRoom& room, CodesView view, std::int64_t first_token,
                  std::int64_t tokens) {
  const std::int64_t h = args.x.dim(1);
  view.x = view.codes;
  view.x_scales = view.code_scales;
  view.first_slot = 0;
  view.slots = room.slots;
  FATHOM_CHECK(describe(view.weights, matrices.down.data, h, args.down[0].cols, std::ssize(args.down), matrices.down.data_step, 0), "experts that the copy engine does not take");
  view.scales = reinterpret_cast<const float*>(matrices.down.scales);
  view.scales_step = matrices.down.scales_step / 4;
  view.rows = static_cast<int>(h);
  view.depths = static_cast<int>(room.inner_depths);
  const std::int64_t pairs_of_tiles = divide_up(h, 2 * kCodeRows), fit = static_cast<std::int64_t>(context.workspace.left()) / (room.pairs * kHitSumBytes);
  const std::int64_t most = divide_up(pairs_of_tiles, divide_up(pairs_of_tiles, std::min(pairs_of_tiles, fit)));
  const Workspace start = context.workspace;
  view.y = context.workspace.take<__nv_bfloat16>(room.pairs * most * 2 * kCodeRows);
  CombineView combine;
  combine.indices = gather.indices;
  combine.weights = view_of<const float>(args.weights.rows(first_token, tokens));
  combine.hit = gather.hit;
  combine.y16 = view.y;
  combine.top_k = gather.top_k;
  combine.accumulate = args.accumulate;
  combine.fours = h % 4 == 0 && rows_aligned(args.out, 16);
  const Tensor out = args.out.rows(first_token, tokens);
  for (std::int64_t pair = 0; pair < pairs_of_tiles; pair += most) {
    const std::int64_t first = pair * 2 * kCodeRows, columns = std::min(h - first, most * 2 * kCodeRows);
    view.first_pair = static_cast<int>(pair);
    view.pairs = static_cast<int>(divide_up(columns, 2 * kCodeRows));
    view.y_stride = columns;
    launch_down(context, view);
    combine.out = view_of<float>(out.columns(first, columns));
    launch_combine(context, combine);
  }
  context.workspace = start;
}

}  // namespace

bool can_multiply_codes(const Context& context, const ExpertsArgs& args, const Matrices& matrices) {
  const Weight &gate = args.gate[0], &down = args.down[0];
  const std::int64_t mate = matrices.up.data - matrices.gate.data;
  const bool formats = gate.format == WeightFormat::fp8_block128 && down.format == WeightFormat::fp8_block128;
  const bool rounds = rounds_activations(gate, args.x.dim(0)) && rounds_activations(args.up[0], args.x.dim(0)) && rounds_activations(down, args.x.dim(0));
  if (!formats || !rounds || !has_units(context) || gate.rows % 16 != 0 || gate.cols % 16 != 0 || !rows_aligned(args.x, 16)) return false;
  const bool even = matrices.gate.table == nullptr && matrices.up.table == nullptr && matrices.down.table == nullptr && matrices.gate.data_step == matrices.up.data_step;
  const bool aligned = suits_copies(matrices.gate.data, matrices.gate.data_step) && suits_copies(matrices.up.data, std::abs(mate)) && suits_copies(matrices.down.data, matrices.down.data_step);
  return even && aligned && mate != 0 && ExpertRoom(args, 1).fits(kRoundedBytes + context.workspace.left());
}

void multiply_codes(Context& context, const ExpertsArgs& args, const Matrices& matrices) {
  const std::int64_t tokens = args.x.dim(0);
  const Workspace start = context.workspace, whole = whole_room(context);
  context.rounded = {};
  std::int64_t most = tokens;  // whose hits fit
  while (most > 1 && !ExpertRoom(args, most).fits(whole.left())) most = (most + 1) / 2;
  for (std::int64_t first = 0; first < tokens; first += most) {
    context.workspace = whole;
    const std::int64_t count = std::min(most, tokens - first);
    const ExpertRoom room(args, count);
    const GatherView gather = view_of_hits(context, args, args.indices.rows(first, count), room);
    CodesView view;
    view.codes = context.workspace.take<std::uint8_t>(room.slots * room.inner_depths * kCodeDepth);
    view.code_scales = context.workspace.take<float>(room.slots * room.inner_depths);
    view.code_depths = static_cast<int>(room.inner_depths);
    multiply_in(context, args, matrices, args.x.rows(first, count), gather, room, view);
    multiply_out(context, args, matrices, gather, room, view, first, count);
  }
  context.workspace = start;
}

}  // namespace fathom::cuda
