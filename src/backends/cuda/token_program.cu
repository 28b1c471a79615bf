#include "backends/cuda/token_program.cuh"

#include "backends/cuda/eight_bits.cuh"
#include "backends/cuda/launch.cuh"
#include "backends/cuda/product.cuh"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr int kProgramThreads = 1024;

template <class T>
__device__ T* row_of(const TokenRows& rows, std::int64_t token, int row) { return reinterpret_cast<T*>(rows.data) + token * rows.token + row * rows.row; }

__device__ void rotate(const TokenAction& action, std::int64_t token) {
  const float *cosines = action.cosines + token * action.angle_stride, *sines = action.sines + token * action.angle_stride;
  for (int item = static_cast<int>(threadIdx.x); item < action.x.inner * action.half; item += kProgramThreads) {
    const int head = item / action.half, i = item % action.half;
    float* row = row_of<float>(action.x, token, head) + action.first_dim;
    float& first = row[action.interleaved ? 2 * i : i];
    float& second = row[action.interleaved ? 2 * i + 1 : i + action.half];
    const float a = first, b = second, c = cosines[i], s = action.inverse ? -sines[i] : sines[i];
    first = rotated_first(a, b, c, s);
    second = rotated_second(a, b, c, s);
  }
}

/// One row by the whole block, several by a warp each.
__device__ void norm(const TokenAction& action, std::int64_t token, BlockRoom& room) {
  const bool one = action.x.inner == 1;
  const int n = action.x.n, lane = one ? static_cast<int>(threadIdx.x) : static_cast<int>(threadIdx.x % kWarp), lanes = one ? kProgramThreads : kWarp;
  for (int r = one ? 0 : static_cast<int>(threadIdx.x / kWarp); r < action.x.inner; r += kProgramThreads / kWarp) {
    const float* x = row_of<const float>(action.x, token, r);
    float* out = row_of<float>(action.out, token, r);
    float squares = 0.0f;
    for (int i = lane; i < n; i += lanes) squares += x[i] * x[i];
    squares = one ? block_sum(squares, room) : warp_sum(squares);
    const float scale = 1.0f / sqrtf(squares / static_cast<float>(n) + action.eps);
    for (int i = lane; i < n; i += lanes) out[i] = x[i] * scale * (action.weight != nullptr ? element_of(action.weight, action.weight_type, i) : 1.0f);
  }
}

template <class To>
__device__ void copy_as(const TokenAction& action, std::int64_t token, std::int64_t to) {
  for (int e = static_cast<int>(threadIdx.x); e < action.x.inner * action.x.n; e += kProgramThreads) {
    const int j = e / action.x.n, i = e % action.x.n;
    row_of<To>(action.out, to, j)[i] = from_float<To>(row_of<const float>(action.x, token, j)[i]);
  }
}

/// To a cache in INT8: a warp a row.
__device__ void copy_as_int8(const TokenAction& action, std::int64_t token, std::int64_t to) {
  auto* const scales = reinterpret_cast<float*>(row_of<std::byte>(action.out, to, 0) + action.out.scales);
  for (int j = static_cast<int>(threadIdx.x) / kWarp; j < action.x.inner; j += kProgramThreads / kWarp)
    write_int8_row(row_of<const float>(action.x, token, j), action.x.n, row_of<std::int8_t>(action.out, to, j), scales + j);
}

__global__ void __launch_bounds__(kProgramThreads) run_program(const __grid_constant__ TokenProgram program) {
  __shared__ BlockRoom room;
  __shared__ int4 own;  // slot, position, end of the token's sequence; slot -1: none
  after_previous();
  const auto token = static_cast<std::int64_t>(blockIdx.x);
  if (program.sequences != nullptr) {
    if (threadIdx.x == 0) own = make_int4(-1, 0, 0, 0);
    __syncthreads();
    for (int s = static_cast<int>(threadIdx.x); s < program.sequence_count; s += kProgramThreads) {
      const int4 sequence = program.sequences[s];
      const auto within = static_cast<int>(token) - sequence.y;
      if (within >= 0 && within < sequence.z) own = make_int4(sequence.x, sequence.w + within, sequence.w + sequence.z, 0);
    }
    __syncthreads();
  }
  for (int i = program.first[blockIdx.y]; i < program.first[blockIdx.y + 1]; ++i) {
    const TokenAction& action = program.actions[i];
    if (i > program.first[blockIdx.y]) __syncthreads();  // what one action wrote the next may read
    if (action.kind == TokenAction::Kind::kRope) {
      rotate(action, token);
    } else if (action.kind == TokenAction::Kind::kNorm) {
      norm(action, token, room);
    } else {
      std::int64_t to = token;
      if (action.kind == TokenAction::Kind::kWrite) {
        if (own.x < 0 || (action.ring && own.y < own.z - action.rows_per_slot)) continue;
        to = own.x * action.rows_per_slot + (action.ring ? own.y % action.rows_per_slot : own.y);
      }
      if (action.out.dtype == DType::f32) copy_as<float>(action, token, to);
      else if (action.out.dtype == DType::f16) copy_as<__half>(action, token, to);
      else if (action.out.dtype == DType::f8e4m3) copy_as<E4m3>(action, token, to);
      else if (action.out.dtype == DType::i8) copy_as_int8(action, token, to);
      else copy_as<__nv_bfloat16>(action, token, to);
    }
  }
}

/// Bytes of a token's rows, from its first to its last.
std::int64_t extent(const TokenRows& rows) { return rows.scales > 0 ? rows.scales + 4 * rows.inner : ((rows.inner - 1) * rows.row + rows.n) * dtype_bytes(rows.dtype); }

/// Whether rows of the same tokens may share bytes. Rows of a cache are never those of an activation; where in a cache a token's
/// row is only the device knows.
bool overlap(const TokenRows& a, bool a_cached, const TokenRows& b, bool b_cached, std::int64_t tokens) {
  if (a_cached != b_cached) return false;
  const std::int64_t step = a.token * dtype_bytes(a.dtype), other = b.token * dtype_bytes(b.dtype), distance = b.data - a.data;
  if (!a_cached) {
    if (distance >= (tokens - 1) * step + extent(a) || -distance >= (tokens - 1) * other + extent(b)) return false;
  } else if (distance >= step || -distance >= other) {
    return false;  // of another cache: rows of one begin within a row
  }
  if (step != other || step <= 0) return true;
  const std::int64_t shift = (distance % step + step) % step;  // columns of one table
  return shift < extent(a) || shift + extent(b) > step;
}
/// Whether two actions have to keep their order: what one writes the other touches.
bool meet(const TokenAction& a, const TokenAction& b, std::int64_t tokens) {
  const auto written = [](const TokenAction& action) { return action.kind == TokenAction::Kind::kRope ? action.x : action.out; };
  const bool a_cached = a.kind == TokenAction::Kind::kWrite, b_cached = b.kind == TokenAction::Kind::kWrite;
  return overlap(written(a), a_cached, written(b), b_cached, tokens) || overlap(written(a), a_cached, b.x, false, tokens) || overlap(a.x, false, written(b), b_cached, tokens);
}

}  // namespace

TokenRows token_rows(const Tensor& x) {
  TokenRows rows;
  if (x.shape.rank < 2 || x.shape.rank > 3 || (x.dtype != DType::f32 && x.dtype != DType::f16 && x.dtype != DType::bf16 && dtype_bytes(x.dtype) != 1)) return rows;
  const std::int64_t inner = x.shape.rank == 3 ? x.dim(1) : 1, n = x.dim(x.shape.rank - 1);
  if (inner * n > TokenProgram::kMostElements) return rows;
  rows.data = x.data;
  rows.dtype = x.dtype;
  rows.token = x.strides[0];
  rows.row = x.shape.rank == 3 ? x.strides[1] : 0;
  rows.inner = static_cast<int>(inner);
  rows.n = static_cast<int>(n);
  if (x.dtype == DType::i8) rows.scales = int8_scales_offset(x);
  return rows;
}

void launch_program(Context& context, const TokenProgram& program) {
  int chain[TokenProgram::kMost], chains = 0;
  for (int i = 0; i < program.count; ++i) {
    chain[i] = chains++;
    for (int j = 0; j < i; ++j) {
      if (chain[j] == chain[i] || !meet(program.actions[i], program.actions[j], program.tokens)) continue;
      const int kept = std::min(chain[i], chain[j]), gone = std::max(chain[i], chain[j]);
      for (int k = 0; k <= i; ++k) {
        if (chain[k] == gone) chain[k] = kept;
        else if (chain[k] > gone) --chain[k];
      }
      --chains;
    }
  }
  TokenProgram sorted = program;
  int to = 0;
  for (int c = 0; c < chains; ++c) {
    sorted.first[c] = to;
    for (int i = 0; i < program.count; ++i)
      if (chain[i] == c) sorted.actions[to++] = program.actions[i];
  }
  sorted.first[chains] = to;
  launch_early(context, &run_program, dim3(static_cast<unsigned>(program.tokens), static_cast<unsigned>(chains)), kProgramThreads, 0, sorted);
}

}  // namespace fathom::cuda
