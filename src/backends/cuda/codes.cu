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
  const RunOfExpert* runs = nullptr;
  int depths = 0;
  std::int64_t first_slot = 0, slots = 0;  // runs that begin in these
  const std::int32_t* token = nullptr;
  const std::uint8_t* from = nullptr;  // [tokens, depths · 128]
  const float* from_scales = nullptr;  // [tokens, depths]
  std::uint8_t* to = nullptr;          // tiles from the first slot on
  float* to_scales = nullptr;
};
constexpr int kPlaceDepths = 4, kPlaceHits = 4;  // a thread's, read together

/// Grid: stretches in fours, runs.
__global__ void __launch_bounds__(kPlaceThreads) place_codes(const __grid_constant__ PlaceCodes args) {
  after_previous();
  const RunOfExpert run = args.runs[blockIdx.y];
  const std::int64_t slot = slot_of(run.first, blockIdx.y) - args.first_slot, padded = padded_hits(run.count);
  if (run.expert < 0 || slot < 0 || slot >= args.slots) return;
  const int chunk = static_cast<int>(threadIdx.x) % 8, first_depth = static_cast<int>(blockIdx.x) * kPlaceDepths, depths = min(kPlaceDepths, args.depths - first_depth);
  for (int base = static_cast<int>(threadIdx.x) / 8; base < run.count; base += kPlaceHits * kPlaceThreads / 8) {
    std::int64_t stretch[kPlaceHits];  // of x: where the hit's first one is
    uint4 codes[kPlaceHits][kPlaceDepths];
#pragma unroll
    for (int j = 0; j < kPlaceHits; ++j) {
      const int hit = base + j * (kPlaceThreads / 8);
      stretch[j] = hit < run.count ? static_cast<std::int64_t>(args.token[run.first + hit]) * args.depths + first_depth : -1;
    }
#pragma unroll
    for (int j = 0; j < kPlaceHits; ++j)
#pragma unroll
      for (int i = 0; i < kPlaceDepths; ++i)
        if (stretch[j] >= 0 && i < depths) codes[j][i] = *reinterpret_cast<const uint4*>(args.from + (stretch[j] + i) * kCodeDepth + 16 * chunk);
#pragma unroll
    for (int j = 0; j < kPlaceHits; ++j) {
      if (stretch[j] < 0) break;
      const int hit = base + j * (kPlaceThreads / 8);
#pragma unroll
      for (int i = 0; i < kPlaceDepths; ++i) {
        if (i >= depths) break;
        const std::int64_t to = slot * args.depths + (first_depth + i) * padded;
        *reinterpret_cast<uint4*>(args.to + to * kCodeDepth + tile_byte(hit, 16 * chunk)) = codes[j][i];
        if (chunk == i) args.to_scales[to + hit] = args.from_scales[stretch[j] + i];
      }
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
  std::int64_t pairs, runs, slots, x_depths, inner_depths;
  ExpertRoom(const ExpertsArgs& args, std::int64_t tokens)
      : pairs(tokens * args.indices.dim(1)),
        runs(std::min(pairs, std::ssize(args.gate) + pairs / kCodeHits)),
        slots(slots_of(pairs, runs)),
        x_depths(divide_up(args.x.dim(1), kCodeDepth)),
        inner_depths(divide_up(args.gate[0].rows, kCodeDepth)) {}
  static std::int64_t bytes_of(std::int64_t slots, std::int64_t depths) { return slots * depths * (kCodeDepth + 4) + 512; }
  /// While both products run: runs, hits and the gated values' codes.
  std::int64_t kept() const { return runs * static_cast<std::int64_t>(sizeof(RunOfExpert)) + pairs * 8 + bytes_of(slots, inner_depths) + 4 * 256; }
  /// After another: pieces of x by hits, of at least 16 runs.
  std::int64_t passing() const { return bytes_of((kCodeHits + 8) * std::min<std::int64_t>(runs, 16) + kCodeHits + 8, x_depths) + 4 * 256; }
  /// Beside the workspace, after another: x, and some columns of the sums.
  std::int64_t plain_bytes(std::int64_t tokens) const { return bytes_of(tokens, x_depths) + 256; }
  bool fits(Bytes left, std::int64_t tokens) const {
    return kept() + passing() <= static_cast<std::int64_t>(left) && plain_bytes(tokens) <= static_cast<std::int64_t>(kRoundedBytes) && pairs * kHitSumBytes <= static_cast<std::int64_t>(kRoundedBytes) &&
           pairs < std::int64_t{1} << 21;
  }
};

GatherView gather_codes(Context& context, const ExpertsArgs& args, const Tensor& indices, const ExpertRoom& room) {
  GatherView gather;
  gather.indices = view_of<const std::int32_t>(indices);
  gather.pairs = static_cast<int>(room.pairs);
  gather.top_k = static_cast<int>(args.indices.dim(1));
  gather.first_expert = static_cast<int>(args.first_expert);
  gather.here = static_cast<int>(args.gate.size());
  gather.run = kCodeHits;
  gather.most_runs = static_cast<int>(room.runs);
  gather.runs = context.workspace.take<RunOfExpert>(room.runs);
  gather.token = context.workspace.take<std::int32_t>(room.pairs);
  gather.hit = context.workspace.take<std::int32_t>(room.pairs);
  launch_gather(context, gather);
  return gather;
}

/// hidden = gated products, as tiles of codes; of x by hits, as many slots at a time as fit.
void multiply_in(Context& context, const ExpertsArgs& args, const Matrices& matrices, const Tensor& x, const GatherView& gather, const ExpertRoom& room, CodesView& view) {
  const std::int64_t h = x.dim(1);
  RoundCodes round{.x = x.as<float>(), .x_stride = x.strides[0], .tokens = x.dim(0), .cols = static_cast<int>(h), .width = static_cast<int>(room.x_depths) * kCodeDepth,
                   .kind = {.stretches = true, .powers = args.gate[0].activations == Activations::kPerGroupOfPowers}, .token_step = room.x_depths, .stretch_step = 1};
  round.codes = reinterpret_cast<std::uint8_t*>(context.rounded_data);
  round.scales = reinterpret_cast<float*>(context.rounded_data + divide_up(x.dim(0) * room.x_depths * kCodeDepth, 256) * 256);
  round_codes(context, round);
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
  const Workspace start = context.workspace;
  const std::int64_t fit = (static_cast<std::int64_t>(start.left()) - 1024) / (room.x_depths * (kCodeDepth + 4)), most = std::min(room.slots, (fit - kCodeHits - 8) / 8 * 8);
  auto* tiles = context.workspace.take<std::uint8_t>((most + kCodeHits + 8) * room.x_depths * kCodeDepth);
  float* scales = context.workspace.take<float>((most + kCodeHits + 8) * room.x_depths);
  view.x = tiles;
  view.x_scales = scales;
  view.slots = most;
  for (std::int64_t first = 0; first < room.slots; first += most) {
    const PlaceCodes place{.runs = gather.runs, .depths = static_cast<int>(room.x_depths), .first_slot = first, .slots = most, .token = gather.token, .from = round.codes,
                           .from_scales = round.scales, .to = tiles, .to_scales = scales};
    launch_early(context, &place_codes, dim3(static_cast<unsigned>(divide_up(room.x_depths, kPlaceDepths)), static_cast<unsigned>(room.runs)), dim3(kPlaceThreads), 0, place);
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
  const std::int64_t pairs_of_tiles = divide_up(h, 2 * kCodeRows), most = std::min(pairs_of_tiles, static_cast<std::int64_t>(kRoundedBytes) / (room.pairs * kHitSumBytes));
  view.y = reinterpret_cast<__nv_bfloat16*>(context.rounded_data);
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
  return even && aligned && mate != 0 && ExpertRoom(args, 1).fits(context.workspace.left(), 1);
}

void multiply_codes(Context& context, const ExpertsArgs& args, const Matrices& matrices) {
  const std::int64_t tokens = args.x.dim(0);
  const Workspace start = context.workspace;
  context.rounded = {};
  std::int64_t most = tokens;  // whose hits fit
  while (most > 1 && !ExpertRoom(args, most).fits(start.left(), most)) most = (most + 1) / 2;
  for (std::int64_t first = 0; first < tokens; first += most) {
    context.workspace = start;
    const std::int64_t count = std::min(most, tokens - first);
    const ExpertRoom room(args, count);
    const GatherView gather = gather_codes(context, args, args.indices.rows(first, count), room);
    CodesView view;
    view.codes = context.workspace.take<std::uint8_t>(room.slots * room.inner_depths * kCodeDepth);
    view.code_scales = context.workspace.take<float>(room.slots * room.inner_depths);
    view.code_depths = static_cast<int>(room.inner_depths);
    multiply_in(context, args, matrices, args.x.rows(first, count), gather, room, view);
    multiply_out(context, args, matrices, gather, room, view, first, count);
  }
}

}  // namespace fathom::cuda
