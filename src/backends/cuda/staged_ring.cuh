// What a launch of stages (stages.h) does, and how its weights come: a ring of pieces in each block's shared memory, which two warps fill ahead of the others.
#pragma once
#include <cstddef>

#include "backends/cuda/attention_clusters.cuh"
#include "backends/cuda/staged_products.cuh"

namespace fathom::cuda {

inline constexpr int kStagedTables = 4;  // of products that a block keeps in shared memory: this stage's and those of the next
inline constexpr int kMostStagedParts = 16;
inline constexpr unsigned kUnderWay = 4, kUnderWayThrottled = 2;  // pieces that a block has on their way at most

struct alignas(16) StagedProducts {
  StreamView view;
  unsigned offset = 0;  // the block that takes the first units, so that over the stages all take as many
  bool joins = false;   // x is what the parts of attention, the stage before, make. Without units: it is only written
  bool up_first = false;  // gated: the up's rows are the first eight of a unit
};
struct alignas(16) StagedAttention {
  AttentionView view;   // part_out, part_state: of its parts
  FreshRows fresh;
};

/// The weights of products, as one warp of a block fetches them: all that it needs to know of them.
struct alignas(16) StagedFetch {
  const std::byte* scales[Together::kMost];  // of each product's weight
  unsigned first_unit[Together::kMost];
  int first_row[Together::kMost], rows[Together::kMost];  // of the weight: where outputs begin; all
  unsigned units, offset;
  std::uint16_t pieces, groups, count;  // pieces, and groups of 128 columns, of a row
  std::uint8_t format, gated, up_first;
};
static_assert(sizeof(StagedFetch) <= 16 * kWarp);  // a lane reads 16 bytes
struct StagedWeights {
  CUtensorMap maps[Together::kMost];  // boxes that are pieces; of a gate and its up together
  StagedFetch fetch;
};

/// The keys and values of attention, as one warp of a block fetches them.
struct StagedKeys {
  CUtensorMap k, v;  // boxes: rows of one key head, half a piece of them
  int heads, parts, group, keys;  // keys of a piece
  int rows_per_slot;
};
/// A part of a head's keys, which a block has: the keys before `past` are dealt out by whole pieces, so the last parts may have none.
struct StagedShare {
  int head, part, from, to;
  __device__ StagedShare(int item, int parts, int past, int keys) : head(item / parts), part(item % parts) {
    const int each = ((past + parts - 1) / parts + keys - 1) / keys * keys;
    from = min(part * each, past), to = min(from + each, past);
  }
};

/// What a launch does. A stage's number is that of its products, or -1 - that of its attention.
struct StagedPass {
  const StagedProducts* products = nullptr;
  const StagedWeights* weights = nullptr;          // of the products
  const StagedAttention* attentions = nullptr;
  const StagedKeys* keys = nullptr;                // of the attentions; null: no piece has keys
  const std::int16_t* stages = nullptr;
  const std::int32_t* table = nullptr;             // of attention's sequence; null without attention
  int product_count = 0, count = 0;
  unsigned* ended = nullptr;    // stages that blocks have ended (count_stage); behind those blocks that have ended all. Zero before and after
  unsigned depth = 0;           // pieces that a block's ring has room for: more than there are warpgroups
  unsigned under_way = 0;       // and that may be on their way at a time, that many fewer
  unsigned parts = 0, beside = 0, ring = 0;  // where they begin in shared memory, behind x; the ring behind all, aligned
};

/// A block's ring of pieces in shared memory. A piece is 16 rows of a unit, eight stretches of each, or some keys of a head and their values; pieces follow
/// each other stage by stage and unit by unit, and warpgroups take them in turn. Whoever waits for a piece has had the one kStagedGroups before it; with so few
/// under way that one was asked for when what the place had before had come. So a phase's parity is enough.
template <tensor::WeightFormat F>
struct StagedRing {
  unsigned at, beside, barriers;  // of the pieces; of what lies beside them
  unsigned depth;
  __device__ StagedRing(const StagedPass& pass, const unsigned char* memory) {
    beside = shared_address(memory) + pass.beside, depth = pass.depth;
    barriers = beside + depth * Staged<F>::kBeside;
    at = (shared_address(memory) + pass.ring + 1023) / 1024 * 1024;
  }
  __device__ unsigned full(unsigned i) const { return barriers + 8 * i; }
  __device__ unsigned empty(unsigned i) const { return barriers + 8 * (depth + i); }
};
/// Where who fills the ring is: piece after piece.
struct StagedPlace {
  unsigned place = 0, phase = 0;  // of its piece; the parity of that
  __device__ void go_on(unsigned depth) {
    if (++place == depth) place = 0, phase ^= 1;
  }
};
/// Where a warpgroup is, whose pieces are numbers group, group + kStagedGroups, ….
struct StagedTurns {
  unsigned place, phase = 0, ahead;  // of its next piece: how many of others come before it
  __device__ explicit StagedTurns(unsigned group) : place(group), ahead(group) {}
  /// use(i) of its pieces among the next `count`, which are numbers 0, 1, ….
  template <class Use>
  __device__ void take(unsigned count, unsigned depth, Use use) {
#pragma unroll 1
    for (; ahead < count; ahead += kStagedGroups) {
      use(ahead);
      if ((place += kStagedGroups) >= depth) place -= depth, phase ^= 1;
    }
    ahead -= count;
  }
  /// Of the next `count`, at most `ahead`, none is its.
  __device__ void pass(unsigned count) { ahead -= count; }
  /// Whose the next piece is.
  __device__ unsigned next_group() const { return (threadIdx.x / kGroupOfWarps - ahead) % kStagedGroups; }
};

#if defined(FATHOM_WGMMA_HERE)
/// Arrives at a barrier when this thread's copies before it have come.
__device__ inline void arrive_behind_copies(unsigned at) { asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];\n" ::"r"(at) : "memory"); }
/// Lines that are the first to leave the L2 cache: of weights, which nobody reads again, so that what blocks tell each other stays there.
__device__ inline std::uint64_t first_to_leave() {
  std::uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
/// As copy_box.
__device__ inline void copy_box_by(unsigned to, const CUtensorMap* map, int c0, int c1, int c2, int c3, int c4, unsigned barrier, std::uint64_t policy) {
  asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, %3, %4, %5, %6}], [%7], %8;\n" ::"r"(to), "l"(map), "r"(c0),
               "r"(c1), "r"(c2), "r"(c3), "r"(c4), "r"(barrier), "l"(policy)
               : "memory");
}
/// Tensor maps that the host wrote to global memory.
__device__ inline void see_map(const CUtensorMap* map) { asm volatile("fence.proxy.tensormap::generic.acquire.gpu [%0], 128;\n" ::"l"(map) : "memory"); }

/// Whose rows a half of unit `at` of product `which` has, and its first row in the weight.
__device__ inline int product_of_half(const StagedFetch& own, int which, int half) { return own.gated ? half ^ own.up_first : which; }
__device__ inline int row_of_half(const StagedFetch& own, int which, int at, int half) { return own.first_row[product_of_half(own, which, half)] + (own.gated ? at * 8 : at * 16 + half * 8); }

/// Scales and zero points of a piece, all lanes.
template <tensor::WeightFormat F>
__device__ inline void fetch_beside(const StagedFetch& own, int which, int at, int piece, unsigned to) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, groups = own.groups;
  if constexpr (Staged<F>::kFp8) {
    const int half = lane / kPieceStretches, group = piece * kPieceStretches + lane % kPieceStretches;
    if (own.format != static_cast<std::uint8_t>(tensor::WeightFormat::fp8_block128) || half > 1 || group >= groups) return;
    const int product = product_of_half(own, which, half), block = min(row_of_half(own, which, at, half), own.rows[product] - 1) / 128;
    copy_4(to + static_cast<unsigned>(lane % kPieceStretches * 8 + half * 4), own.scales[product] + (static_cast<std::int64_t>(block) * groups + group) * 4, true);
  }
  if constexpr (Staged<F>::kInt4) {
    // Two scales a stretch, in one word (rows have whole stretches), and rows of both halves side by side: of a row half the piece's stretches a lane.
    constexpr int kEach = kPieceStretches / 2;
    const auto rows_of = [&](int half, int& row) -> const std::byte* {
      const int product = product_of_half(own, which, half);
      row = min(row_of_half(own, which, at, half) + row, own.rows[product] - 1);
      return own.scales[product];
    };
    {
      const int begin = lane / 16 * kEach, left = groups / 2 - piece * kPieceStretches - begin;
      int row = lane % 8;
      const std::byte* const scales = rows_of(lane % 16 / 8, row);
      const std::byte* const from = scales + (static_cast<std::int64_t>(row) * groups + 2 * (piece * kPieceStretches + begin)) * 2;
#pragma unroll
      for (int s = 0; s < kEach; ++s) copy_4(to + static_cast<unsigned>((begin + s) * kStretchBeside + lane % 8 * 8 + lane % 16 / 8 * 4), from + s * 4, s < left);
    }
    if constexpr (!Staged<F>::kZeros) return;
    const int half = lane % 4 / 2, group = 2 * (piece * kPieceStretches + lane / 4) + lane % 2;
    int row = 0;
    const std::byte* const scales = rows_of(half, row);
    const int rows = own.rows[product_of_half(own, which, half)];
    if (group >= groups) return;
    copy_4(to + static_cast<unsigned>(lane / 4 * kStretchBeside + kZerosAt + lane % 4 * 4), scales + offset_of_zeros(rows, static_cast<std::int64_t>(groups) * 128) + (static_cast<std::int64_t>(row / 8) * groups + group) * 4, true);
  }
}

/// One warp: all pieces of the block's shares of all stages. kBeside: of them what lies beside codes. `own`: room in shared memory. Keys may be the previous
/// launch's; weights are not.
template <tensor::WeightFormat F, bool kBeside>
__device__ inline void fetch_stages(const StagedPass& pass, const std::int16_t* stages, const int4& sequence, const StagedRing<F>& ring, StagedFetch& own, const volatile int& throttled) {
  constexpr int kWords = sizeof(StagedFetch) / 16;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  uint4 next{};
  StagedPlace here, oldest;  // of what may be on its way
  unsigned under_way = 0;
  const auto leave_way = [&] {
    for (const unsigned most = throttled != 0 ? kUnderWayThrottled : pass.under_way; under_way >= most; --under_way) wait_phase(ring.full(oldest.place), oldest.phase), oldest.go_on(ring.depth);
    ++under_way;
  };
  const std::uint64_t policy = first_to_leave();
  const auto read_next = [&](int n) {
    if (n < pass.product_count && lane < kWords) next = __ldg(reinterpret_cast<const uint4*>(&pass.weights[n].fetch) + lane);
  };
  const auto fetch_keys = [&](const StagedKeys& keys) {
    const int heads = __ldg(&keys.heads), parts = __ldg(&keys.parts), group = __ldg(&keys.group), each = __ldg(&keys.keys), slot = sequence.x * __ldg(&keys.rows_per_slot);
    if (!kBeside && lane == 0) see_map(&keys.k), see_map(&keys.v);
#pragma unroll 1
    for (int item = static_cast<int>(blockIdx.x); item < heads * parts; item += static_cast<int>(gridDim.x)) {
      const StagedShare share(item, parts, sequence.w, each);
#pragma unroll 1
      for (int key = share.from; key < share.to; key += each, here.go_on(ring.depth)) {
        wait_phase(ring.empty(here.place), here.phase ^ 1);
        const unsigned full = ring.full(here.place), to = ring.at + here.place * kPieceBytes;
        if constexpr (kBeside) {
          arrive_behind_copies(full);
        } else if (leave_way(); lane == 0) {
          arrive_expecting(full, kPieceBytes);
          const auto copy = [&](unsigned half, const CUtensorMap* map) {
            if (group > 1) copy_box(half, map, 0, share.head / group, slot + key, 0, 0, full);  // others want it too
            else copy_box_by(half, map, 0, share.head, slot + key, 0, 0, full, policy);
          };
          copy(to, &keys.k), copy(to + kPieceBytes / 2, &keys.v);
        }
      }
    }
  };
  read_next(0);
  bool waited = false;
#pragma unroll 1
  for (int s = 0; s < pass.count; ++s) {
    const int n = stages[s];
    if (n < 0) {
      if (pass.keys == nullptr) continue;
      if (!waited) wait_for_previous();
      waited = true;
      fetch_keys(pass.keys[-1 - n]);
      continue;
    }
    __syncwarp();
    if (lane < kWords) reinterpret_cast<uint4*>(&own)[lane] = next;
    __syncwarp();
    read_next(n + 1);
    if (!kBeside && lane == 0 && own.units > 0)
      for (int i = 0; i < own.count; ++i) see_map(&pass.weights[n].maps[i]);
    const int pieces = own.pieces;
#pragma unroll 1
    for (unsigned unit = (blockIdx.x + own.offset) % gridDim.x; unit < own.units; unit += gridDim.x) {
      int which = 0;
      while (!own.gated && which + 1 < own.count && unit >= own.first_unit[which + 1]) ++which;
      const int at = static_cast<int>(unit - own.first_unit[which]);
      const int row = own.gated ? at * 8 : own.first_row[which] + at * 16;
      const CUtensorMap* map = &pass.weights[n].maps[which];
#pragma unroll 1
      for (int piece = 0; piece < pieces; ++piece, here.go_on(ring.depth)) {
        wait_phase(ring.empty(here.place), here.phase ^ 1);
        const unsigned full = ring.full(here.place);
        if constexpr (kBeside) {
          fetch_beside<F>(own, which, at, piece, ring.beside + here.place * Staged<F>::kBeside);
          arrive_behind_copies(full);
        } else if (leave_way(); lane == 0) {
          arrive_expecting(full, kPieceBytes);
          copy_box_by(ring.at + here.place * kPieceBytes, map, 0, row, 0, piece * kPieceStretches, 0, full, policy);
        }
      }
    }
  }
}
#endif

}  // namespace fathom::cuda
