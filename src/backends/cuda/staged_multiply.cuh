// Products of one token as a stage (stages.h).
#pragma once
#include "backends/cuda/staged_ring.cuh"

namespace fathom::cuda {

/// Two outputs of a thread, as StreamOutput's, with what joins them. It is read before it is wanted and joined when it is: a sum would wait.
struct StagedOutput {
  float* out[2];             // null: there is none
  const float* adds[2];      // null: nothing is added
  float scale[2], bias[2], added[2], before[2];
  bool pair, accumulates;

  /// Outputs of this thread: of rows threadIdx.x % 8 of both halves of a unit, if there is such a unit and it has room for its sums.
  __device__ void find(const StreamView& view, unsigned unit) {
    out[0] = out[1] = nullptr, adds[0] = adds[1] = nullptr;
    pair = accumulates = false;
#pragma unroll
    for (int half = 0; half < 2; ++half) scale[half] = 1.0f, bias[half] = added[half] = before[half] = 0.0f;
    if (static_cast<int>(threadIdx.x) >= 8 * view.slots || unit >= view.units) return;
    StreamRows rows;
    rows.find(view, unit);
    pair = rows.pair;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Product& p = view.all.products[pair ? rows.which + half : rows.which];
      const std::int64_t i = rows.out[half] + static_cast<int>(threadIdx.x) % 8;
      if (i >= p.rows) continue;
      out[half] = p.out + i;
      accumulates = p.accumulate;
      if (p.added != nullptr) adds[half] = p.added + i;
      if (p.weight.format == tensor::WeightFormat::int8_row || p.weight.format == tensor::WeightFormat::fp8_row) scale[half] = __ldg(reinterpret_cast<const float*>(p.weight.scales) + p.first_row + i);
      if (p.bias != nullptr) bias[half] = element_of(p.bias, p.bias_type, i);
    }
  }
  /// What other blocks make, when they have.
  __device__ void read() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (adds[half] != nullptr) added[half] = read_of_others(adds[half]);
      if (accumulates && out[half] != nullptr) before[half] = read_of_others(out[half]);
    }
  }
  /// What answers is to be waited for.
  __device__ unsigned write(float limit, float factor, const float (&sum)[2]) const {
    float value[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) value[half] = sum[half] * factor * scale[half] + ((bias[half] + added[half]) + before[half]);
    if (pair && out[0] != nullptr) {
      *out[1] = value[1];
      value[0] = gated(value[0], value[1], limit);
    }
    unsigned answers = 0;
    if (out[0] != nullptr) answers = put_for_others(out[0], value[0]);
    if (!pair && out[1] != nullptr) answers ^= put_for_others(out[1], value[1]);
    return answers;
  }
};
inline constexpr int kUnitSums = kStreamedWarps * 16 + 8;  // floats of a unit's sums: of each warp's 16 rows, and eight, so that units lie in other banks

#if defined(FATHOM_WGMMA_HERE)
template <tensor::WeightFormat F>
__device__ inline void multiply_stage(const StagedPass& pass, const StagedProducts& own, const AttentionView* joined, const StagedRing<F>& ring, StagedTurns& turns, StagedPair& pair, unsigned char* memory, float* squares, unsigned* answers, StagedStart& start) {
  using Shape = Staged<F>;
  const StreamView& view = own.view;
  const StagedXRoom<F> room(view.stretches);
  auto* parts = reinterpret_cast<float*>(memory + pass.parts);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const unsigned begin = (blockIdx.x + own.offset) % gridDim.x, round = gridDim.x, units = view.units;
  const tensor::WeightFormat format = view.all.products[0].weight.format;
  const int cols = static_cast<int>(view.all.products[0].weight.cols), slots = view.slots;
  const unsigned pieces = static_cast<unsigned>(view.stretches + kPieceStretches - 1) / kPieceStretches;
  const bool normed = view.all.norm.from != nullptr;
  // As many units at a time as there is room for sums of: a thread has two outputs of one, and first what these want.
  StagedOutput output;
  output.find(view, begin + threadIdx.x / 8 * round);
  {
    const PairPlace x(memory, pair, pair.filled);
    StagedSource<F> source(view, room, pair);
    float square = 0.0f;
    if (joined != nullptr) {
      const JoinedParts parts_of(*joined, pair.blocks);
      start.wait();
      output.read();
      source.fill_joined(x, room, parts_of);
    } else {
      start.wait();
      output.read();
      square = source.fill(x, room);
    }
    pair.arrive_filled<!Shape::kWhole>(source.sent(pair));
    if (normed) pair.put_square(squares, warp_sum(square));
    pair.wait_filled<!Shape::kWhole>();
  }
  if (begin < units) start.throttle(false);
  const unsigned ring_offset = ring.at - shared_address(memory), beside_offset = ring.beside - shared_address(memory);
  const auto multiply_unit = [&](int slot) {
    if (turns.ahead >= pieces) return turns.pass(pieces);  // the other warpgroups' alone
    float acc[Shape::kBf16 ? 16 : Shape::kWhole ? 2 : 4] = {};
    turns.take(pieces, ring.depth, [&](unsigned piece) {
      const StagedPiece<F> here{memory, room, ring_offset + turns.place * kPieceBytes, beside_offset + turns.place * Shape::kBeside, static_cast<int>(piece) * kPieceStretches, format, cols};
      const auto wait = [&] { wait_phase(ring.full(turns.place), turns.phase); };
      if constexpr (Shape::kWhole) {
        const StagedWords<F> x(here);
        wait();
        here.multiply(acc, x);
      } else {
        wait();
        here.multiply(acc);
      }
      __syncwarp();
      if (lane == 0) arrive(ring.empty(turns.place));
    });
    const float2 total = total_of<F>(acc);
    float* to = parts + slot * kUnitSums + warp * 16 + lane / 4;
    if (lane % 4 == 0) to[0] = total.x, to[8] = total.y;
  };
  if (normed && !view.all.norm.unread) write_staged_norm(view.all.norm, pair.factor_of_norm(view.all.norm, squares));
#pragma unroll 1
  for (unsigned first = begin; first < units; first += static_cast<unsigned>(slots) * round) {
    if (first != begin) output.find(view, first + threadIdx.x / 8 * round), output.read();
    const unsigned first_group = turns.next_group();
#pragma unroll 1
    for (int slot = 0; slot < slots; ++slot) {
      if (first + static_cast<unsigned>(slot) * round >= units) break;
      multiply_unit(slot);
    }
    const bool last = first + static_cast<unsigned>(slots) * round >= units;
    const float factor = normed && static_cast<int>(threadIdx.x) < divide_up(8 * slots, kWarp) * kWarp ? pair.factor_of_norm(view.all.norm, squares) : 1.0f;
    meet_workers();
    if (last) start.throttle(true);
    if (output.out[0] != nullptr || output.out[1] != nullptr) {
      float sums[2] = {};
      const unsigned slot = threadIdx.x / 8;
      const float* const from = parts + slot * kUnitSums + threadIdx.x % 8;
#pragma unroll
      for (unsigned i = 0; i < kStagedGroups; ++i) {
        if (i >= pieces) break;  // the others had none
        const float* const of_group = from + (first_group + slot * pieces + i) % kStagedGroups * 64;
#pragma unroll
        for (int w = 0; w < 4; ++w) sums[0] += of_group[w * 16 + (own.up_first ? 8 : 0)], sums[1] += of_group[w * 16 + (own.up_first ? 0 : 8)];
      }
      await_answer(answers + threadIdx.x, output.write(view.all.limit, factor, sums));
    }
    if (!last) meet_workers();
  }
  if (normed) pair.end_squares();
}
#endif

}  // namespace fathom::cuda
