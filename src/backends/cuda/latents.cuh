// The kernel of latent attention over a cache, one new token a sequence; ops_attention.cu chooses it.
#pragma once
#include "backends/cuda/attention_streams.cuh"

namespace fathom::cuda {

inline constexpr int kLatentThreads = 256, kLatentHeads = 16, kLatentKeys = 16;
inline constexpr int kMostLatentWidth = 640, kMostLatentValues = 2 * kLatentThreads;
/// Floats of a row in shared memory: rows begin four banks apart.
__host__ __device__ inline int latent_stride(int width) { return width + 4; }
inline std::size_t latent_bytes(int width) { return static_cast<std::size_t>(kLatentHeads + kLatentKeys) * static_cast<std::size_t>(latent_stride(width)) * sizeof(float); }

/// Latent attention of single tokens: one key head, whose first dv columns are the values. A block has 16 query heads and 16 keys at a time,
/// which it reads once for all of them; a thread has one score, then two columns of every head.
/// Grid: sequences, groups of heads, parts.
template <class T>
__global__ void __launch_bounds__(kLatentThreads) attend_latents(const __grid_constant__ AttentionView view) {
  after_previous();
  extern __shared__ float4 latent_room[];
  __shared__ float p[kLatentKeys][kLatentHeads], shrink[kLatentHeads], largest_of[kLatentHeads], total_of[kLatentHeads];
  const SequenceRow sequence = sequence_row(view.table, blockIdx.x);
  if (sequence.tokens == 0) return;
  const SegmentView& segment = view.segments[0];
  const int width = view.width, stride = latent_stride(width), first_head = blockIdx.y * kLatentHeads, part = blockIdx.z, thread = threadIdx.x;
  const int h = thread / kLatentKeys, own = thread % kLatentKeys;
  const std::int64_t token = sequence.first_token, base = base_row(segment, view.table, blockIdx.x, sequence);
  float *q = reinterpret_cast<float*>(latent_room), *keys = q + kLatentHeads * stride;
#pragma unroll 4
  for (int d = own; d < width; d += kLatentKeys) q[h * stride + d] = first_head + h < view.heads ? view.q.at(token, first_head + h)[d] * view.scale : 0.0f;
  const NameRange names = visible_names(segment, sequence.past, sequence.past);
  const std::int64_t all = max(names.end - names.first, 0);
  const int from = static_cast<int>(all * part / view.parts), to = static_cast<int>(all * (part + 1) / view.parts);
  float largest = -INFINITY, total = 0.0f;  // of head h; total: of this thread's keys alone
  float acc[kLatentHeads][2] = {};
#pragma unroll 1
  for (int at = from; at < to; at += kLatentKeys) {
    __syncthreads();  // the last keys have been read
    const int eights = width / 8;
    for (int i = thread; i < kLatentKeys * eights; i += kLatentThreads) {
      const int key = i / eights, d = i % eights * 8;
      float wide[8] = {};
      if (at + key < to) {
        const std::int64_t row = row_of_name(segment, base, names.first + at + key);
        Eight<T> eight;
        if (d < segment.dk) read_eight(segment.k, row * segment.k_row + d, eight);
        else read_eight(segment.k_shared, row * segment.shared_row + d - segment.dk, eight);
        widen_eight(eight, wide);
      }
      auto* room = reinterpret_cast<float4*>(keys + key * stride + d);
      room[0] = make_float4(wide[0], wide[1], wide[2], wide[3]);
      room[1] = make_float4(wide[4], wide[5], wide[6], wide[7]);
    }
    __syncthreads();
    const auto *mine = reinterpret_cast<const float4*>(q + h * stride), *key = reinterpret_cast<const float4*>(keys + own * stride);
    float sums[4] = {};
#pragma unroll 8
    for (int i = 0; i < width / 4; ++i) {
      const float4 a = mine[i], b = key[i];
      sums[0] += a.x * b.x, sums[1] += a.y * b.y, sums[2] += a.z * b.z, sums[3] += a.w * b.w;
    }
    const bool seen = at + own < to;
    const float score = seen ? (sums[0] + sums[1]) + (sums[2] + sums[3]) : -INFINITY;
    float now = fmaxf(largest, score);
#pragma unroll
    for (int step = kLatentKeys / 2; step > 0; step /= 2) now = fmaxf(now, __shfl_xor_sync(kAllLanes, now, step));
    const float keep = relative(largest, now), weight = seen ? relative(score, now) : 0.0f;
    largest = now;
    total = total * keep + weight;
    p[own][h] = weight;
    if (own == 0) shrink[h] = keep;
    __syncthreads();
#pragma unroll
    for (int g = 0; g < kLatentHeads; ++g) acc[g][0] *= shrink[g], acc[g][1] *= shrink[g];
#pragma unroll 4
    for (int i = 0; i < kLatentKeys; ++i) {
      const float* row = keys + i * stride;
      const float low = thread < view.dv ? row[thread] : 0.0f, high = thread + kLatentThreads < view.dv ? row[thread + kLatentThreads] : 0.0f;
#pragma unroll
      for (int g = 0; g < kLatentHeads; ++g) acc[g][0] += p[i][g] * low, acc[g][1] += p[i][g] * high;
    }
  }
#pragma unroll
  for (int step = kLatentKeys / 2; step > 0; step /= 2) total += __shfl_xor_sync(kAllLanes, total, step);
  if (own == 0) largest_of[h] = largest, total_of[h] = total;
  __syncthreads();
#pragma unroll
  for (int g = 0; g < kLatentHeads; ++g) {
    const int head = first_head + g;
    if (head >= view.heads) break;
    const std::int64_t at = (static_cast<std::int64_t>(part) * view.tokens + token) * view.heads + head;
    const Finish finish = view.parts == 1 ? finish_row(view, head, largest_of[g], total_of[g]) : Finish{1.0f, 0.0f};
    float* out = view.parts == 1 ? view.out.at(token, head) : view.part_out + at * view.dv;
    if (thread < view.dv) out[thread] = acc[g][0] * finish.factor;
    if (thread + kLatentThreads < view.dv) out[thread + kLatentThreads] = acc[g][1] * finish.factor;
    if (thread != 0) continue;
    if (view.parts > 1) view.part_state[2 * at] = largest_of[g], view.part_state[2 * at + 1] = total_of[g];
    else if (view.lse.defined()) view.lse.at(token)[head] = finish.lse;
  }
}

}  // namespace fathom::cuda
