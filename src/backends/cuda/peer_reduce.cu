#include <algorithm>

#include "backends/cuda/launch.cuh"
#include "backends/cuda/peer_reduce.h"

namespace fathom::cuda {
namespace {

constexpr int kPeerThreads = 512, kMostBlocks = 128;
constexpr Bytes kOneTrip = 2 * kMiB;    // that a GPU sends in one trip, flags not counted
constexpr Bytes kTwoTrips = 2 * kMiB;   // of a tensor that goes in two

// A line is two numbers, each with the flag beside it: 8 bytes arrive whole or not at all.
struct alignas(16) Line { std::uint32_t a, flag_a, b, flag_b; };
static_assert(sizeof(Line) == 16);

// The inbox: one-trip lines [parity, sender, count / 2], then two-trip parts [parity, sender, part / 2], then sums [parity, count / 2].
// A call writes the parity of its number: a GPU is never two calls ahead, since each call waits for everybody.
__host__ __device__ constexpr std::int64_t one_trip_lines(int ranks) { return static_cast<std::int64_t>(kOneTrip / 8) / (ranks - 1); }
__host__ __device__ constexpr std::int64_t two_trip_lines() { return static_cast<std::int64_t>(kTwoTrips / 8); }
__host__ __device__ constexpr std::int64_t part_lines(int ranks) { return two_trip_lines() / ranks + 2; }

__device__ __forceinline__ void put(Line* to, float a, float b, std::uint32_t flag) {
  asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(__float_as_uint(a)), "r"(flag), "r"(__float_as_uint(b)), "r"(flag) : "memory");
}

__device__ __forceinline__ std::uint64_t now_ns() {
  std::uint64_t time;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(time));
  return time;
}

__device__ __forceinline__ uint4 read(const Line* from) {
  uint4 line;
  asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(line.x), "=r"(line.y), "=r"(line.z), "=r"(line.w) : "l"(from) : "memory");
  return line;
}

// Waits for four numbers of this call from each of the others, two lines at from[their rank] (null: none is meant). All are read before any is
// looked at, so that the wait is one way to the L2 cache long, not one a line. False when it took too long, here or elsewhere.
template <int kRanks>
__device__ __forceinline__ bool get(const Line* const (&from)[kRanks], std::uint32_t flag, const PeerTable& table, std::uint64_t patience_ns, float4 (&out)[kRanks]) {
  uint4 low[kRanks], high[kRanks];
  std::uint64_t begun = 0;
  for (std::uint32_t tries = 0;; ++tries) {
#pragma unroll
    for (int r = 0; r < kRanks; ++r) {
      low[r] = high[r] = make_uint4(0, flag, 0, flag);
      if (from[r] != nullptr) low[r] = read(from[r]), high[r] = read(from[r] + 1);
    }
    int missing = -1;
#pragma unroll
    for (int r = 0; r < kRanks; ++r)
      if (low[r].y != flag || low[r].w != flag || high[r].y != flag || high[r].w != flag) missing = r;
    if (missing < 0) break;
    if (tries % 1024 != 1023) continue;
    if (begun == 0) begun = now_ns();
    if (*static_cast<volatile std::uint32_t*>(table.fault) == 0) {
      if (now_ns() - begun < patience_ns) continue;
      *static_cast<volatile std::uint32_t*>(table.fault) = 1u + static_cast<std::uint32_t>(missing);
    }
    *static_cast<volatile std::uint32_t*>(table.state + 2) = 1;  // later calls leave at once
    return false;
  }
#pragma unroll
  for (int r = 0; r < kRanks; ++r) out[r] = make_float4(__uint_as_float(low[r].x), __uint_as_float(low[r].z), __uint_as_float(high[r].x), __uint_as_float(high[r].z));
  return true;
}

// In the order of ranks; own is this one's.
template <int kRanks>
__device__ __forceinline__ float4 sum_of(const float4 (&parts)[kRanks], const float4& own, int rank) {
  float4 sum{};
#pragma unroll
  for (int r = 0; r < kRanks; ++r) {
    const float4 part = r == rank ? own : parts[r];
    sum = r == 0 ? part : make_float4(sum.x + part.x, sum.y + part.y, sum.z + part.z, sum.w + part.w);
  }
  return sum;
}

__device__ __forceinline__ void put(Line* to, const float4& four, std::uint32_t flag) {
  put(to, four.x, four.y, flag);
  put(to + 1, four.z, four.w, flag);
}

// The number of this call, 0 when a wait failed before; at its end the next one's is set by the last block to get through.
__device__ __forceinline__ std::uint32_t begin_call(const PeerTable& table) {
  std::uint32_t state[4];  // as PeerTable says
  asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(state[0]), "=r"(state[1]), "=r"(state[2]), "=r"(state[3]) : "l"(table.state));
  return state[2] != 0 ? 0 : state[0] + 1;
}
__device__ void end_call(const PeerTable& table, std::uint32_t call) {
  __syncthreads();
  if (threadIdx.x != 0) return;
  __threadfence();
  if (atomicAdd(table.state + 1, 1u) != gridDim.x - 1) return;
  table.state[1] = 0;
  *static_cast<volatile std::uint32_t*>(table.state) = call == 0xffffffffu - 1 ? 0 : call;  // 0 is what an inbox holds at first
}

__device__ __forceinline__ Line* at(std::byte* inbox, std::int64_t line) { return reinterpret_cast<Line*>(inbox) + line; }

// x [quads] of four numbers each.
template <int kRanks>
__global__ void __launch_bounds__(kPeerThreads) reduce_in_one_trip(PeerTable table, float4* x, std::int64_t quads) {
  after_previous();
  const std::uint32_t call = begin_call(table);
  const std::int64_t slot = one_trip_lines(kRanks), parity = call & 1, mine = (parity * kRanks + table.rank) * slot;
  if (call == 0) return;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < quads; i += static_cast<std::int64_t>(gridDim.x) * blockDim.x) {
    const float4 own = x[i];
#pragma unroll
    for (int step = 1; step < kRanks; ++step) put(at(table.inbox[(table.rank + step) % kRanks], mine + 2 * i), own, call);  // not all of them to the same one
    const Line* from[kRanks];
    float4 parts[kRanks];
#pragma unroll
    for (int r = 0; r < kRanks; ++r) from[r] = r == table.rank ? nullptr : at(table.inbox[table.rank], (parity * kRanks + r) * slot + 2 * i);
    if (!get<kRanks>(from, call, table, table.patience_ns, parts)) return;
    x[i] = sum_of<kRanks>(parts, own, table.rank);
  }
  end_call(table, call);
}

// Part p of x, quads [p · each, …), is summed by rank p and sent to all.
template <int kRanks>
__global__ void __launch_bounds__(kPeerThreads) reduce_in_two_trips(PeerTable table, float4* x, std::int64_t quads) {
  after_previous();
  const std::uint32_t call = begin_call(table);
  const std::int64_t each = (quads + kRanks - 1) / kRanks, parity = call & 1;
  const std::int64_t all_parts = 2 * kRanks * one_trip_lines(kRanks), sums = all_parts + 2 * kRanks * part_lines(kRanks) + parity * two_trip_lines();
  const auto part_of = [&](int sender) { return all_parts + (parity * kRanks + sender) * part_lines(kRanks); };
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  if (call == 0) return;
  for (std::int64_t i = first; i < each; i += stride) {
#pragma unroll
    for (int step = 1; step < kRanks; ++step) {
      const int peer = (table.rank + step) % kRanks;
      if (peer * each + i < quads) put(at(table.inbox[peer], part_of(table.rank) + 2 * i), x[peer * each + i], call);
    }
  }
  const Line* from[kRanks];
  float4 parts[kRanks];
  for (std::int64_t i = first; i < each && table.rank * each + i < quads; i += stride) {
    const std::int64_t q = table.rank * each + i;
#pragma unroll
    for (int r = 0; r < kRanks; ++r) from[r] = r == table.rank ? nullptr : at(table.inbox[table.rank], part_of(r) + 2 * i);
    if (!get<kRanks>(from, call, table, table.patience_ns, parts)) return;
    const float4 sum = sum_of<kRanks>(parts, x[q], table.rank);
    x[q] = sum;
#pragma unroll
    for (int step = 1; step < kRanks; ++step) put(at(table.inbox[(table.rank + step) % kRanks], sums + 2 * q), sum, call);
  }
  for (std::int64_t i = first; i < each; i += stride) {
#pragma unroll
    for (int r = 0; r < kRanks; ++r) from[r] = r == table.rank || r * each + i >= quads ? nullptr : at(table.inbox[table.rank], sums + 2 * (r * each + i));
    // Whoever sums may itself wait for another, whom it will name first.
    if (!get<kRanks>(from, call, table, table.patience_ns + 500000000, parts)) return;
#pragma unroll
    for (int r = 0; r < kRanks; ++r)
      if (from[r] != nullptr) x[r * each + i] = parts[r];
  }
  end_call(table, call);
}

template <int kRanks>
void launch(Context& context, const PeerTable& table, float* x, std::int64_t count) {
  const std::int64_t quads = count / 4, lines = count / 2;
  const bool one_trip = lines <= one_trip_lines(kRanks) && (kRanks == 2 || static_cast<Bytes>(count) * 4 <= 256 * kKiB);
  const std::int64_t work = one_trip ? quads : (quads + kRanks - 1) / kRanks;
  const int threads = work > 128 * kMostBlocks ? kPeerThreads : 128;  // on many multiprocessors
  const auto blocks = static_cast<unsigned>(std::clamp<std::int64_t>((work + threads - 1) / threads, 1, kMostBlocks));
  auto* quad = reinterpret_cast<float4*>(x);
  launch_early(context, one_trip ? &reduce_in_one_trip<kRanks> : &reduce_in_two_trips<kRanks>, blocks, threads, 0, table, quad, quads);
  context.launched();
}

}  // namespace

Bytes peer_inbox_bytes(int ranks) {
  const std::int64_t lines = 2 * ranks * one_trip_lines(ranks) + 2 * ranks * part_lines(ranks) + 2 * two_trip_lines();
  return static_cast<Bytes>(lines) * sizeof(Line);
}

Bytes peer_reduce_most(int ranks) { return ranks == 2 ? kOneTrip : kTwoTrips; }

void launch_peer_reduce(Context& context, const PeerTable& table, float* x, std::int64_t count) {
  FATHOM_CHECK(count % 4 == 0 && static_cast<Bytes>(count) * 4 <= peer_reduce_most(table.ranks) && reinterpret_cast<std::uintptr_t>(x) % 16 == 0, "a sum that does not go this way");
  switch (table.ranks) {
    case 2: return launch<2>(context, table, x, count);
    case 3: return launch<3>(context, table, x, count);
    case 4: return launch<4>(context, table, x, count);
    case 5: return launch<5>(context, table, x, count);
    case 6: return launch<6>(context, table, x, count);
    case 7: return launch<7>(context, table, x, count);
    case 8: return launch<8>(context, table, x, count);
    default: FATHOM_CHECK(false, "2 to 8 ranks");
  }
}

}  // namespace fathom::cuda
