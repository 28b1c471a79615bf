#include "backends/cuda/token_program.cuh"

#include <utility>

#include "backends/cuda/eight_bits.cuh"
#include "backends/cuda/launch.cuh"
#include "backends/cuda/mma.cuh"
#include "backends/cuda/product.cuh"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr int kProgramThreads = 1024, kEnterThreads = 256;  // of a block; beside a product, blocks are to find places while those before them run

template <class T>
__device__ T* row_of(const TokenRows& rows, std::int64_t token, int row) { return reinterpret_cast<T*>(rows.data) + token * rows.token + row * rows.row; }

__device__ void rotate(const TokenAction& action, std::int64_t token) {
  const float *cosines = action.cosines + token * action.angle_stride, *sines = action.sines + token * action.angle_stride;
  for (int item = static_cast<int>(threadIdx.x); item < action.x.inner * action.half; item += static_cast<int>(blockDim.x)) {
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
  const int n = action.x.n, lane = one ? static_cast<int>(threadIdx.x) : static_cast<int>(threadIdx.x % kWarp), lanes = one ? static_cast<int>(blockDim.x) : kWarp;
  for (int r = one ? 0 : static_cast<int>(threadIdx.x / kWarp); r < action.x.inner; r += static_cast<int>(blockDim.x) / kWarp) {
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
  for (int e = static_cast<int>(threadIdx.x); e < action.x.inner * action.x.n; e += static_cast<int>(blockDim.x)) {
    const int j = e / action.x.n, i = e % action.x.n;
    row_of<To>(action.out, to, j)[i] = from_float<To>(row_of<const float>(action.x, token, j)[i]);
  }
}

/// To a cache in INT8: a warp a row.
__device__ void copy_as_int8(const TokenAction& action, std::int64_t token, std::int64_t to) {
  auto* const scales = reinterpret_cast<float*>(row_of<std::byte>(action.out, to, 0) + action.out.scales);
  for (int j = static_cast<int>(threadIdx.x) / kWarp; j < action.x.inner; j += static_cast<int>(blockDim.x) / kWarp)
    write_int8_row(row_of<const float>(action.x, token, j), action.x.n, row_of<std::int8_t>(action.out, to, j), scales + j);
}

/// A block: a chain of actions on one token's rows. The table of sequences is there before the launch's turn.
__device__ void run_chain(const TokenProgram& program, std::int64_t token, int chain) {
  __shared__ BlockRoom room;
  __shared__ int4 own;  // slot, position, end of the token's sequence; slot -1: none
  if (program.sequences != nullptr) {
    if (threadIdx.x == 0) own = make_int4(-1, 0, 0, 0);
    __syncthreads();
    for (int s = static_cast<int>(threadIdx.x); s < program.sequence_count; s += static_cast<int>(blockDim.x)) {
      const int4 sequence = program.sequences[s];
      const auto within = static_cast<int>(token) - sequence.y;
      if (within >= 0 && within < sequence.z) own = make_int4(sequence.x, sequence.w + within, sequence.w + sequence.z, 0);
    }
    __syncthreads();
  }
  wait_for_previous();
  for (int i = program.first[chain]; i < program.first[chain + 1]; ++i) {
    const TokenAction& action = program.actions[i];
    if (i > program.first[chain]) __syncthreads();  // what one action wrote the next may read
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

__global__ void __launch_bounds__(kProgramThreads) run_program(const __grid_constant__ TokenProgram program) {
  let_next_start();
  run_chain(program, blockIdx.x, static_cast<int>(blockIdx.y));
}

constexpr int kEnterTokens = 32, kEnterInputs = 128, kEnterColumns = 64;  // of a block that multiplies
constexpr int kEnterBytes = (kEnterInputs * kEnterColumns + kEnterTokens * kEnterInputs) * 2;

struct EnterView {
  TokenProgram program;
  Product product;
  int pieces = 0, blocks = 0;  // of a head's columns; of the product
};

/// Grid: the product's blocks, then the program's, chain after chain. The product: out[t, head, column] = the sum of x[t, head, i] · weight[i, column],
/// the weights (columns side by side) operand A, transposed as they are read, x operand B.
template <class T>
__global__ void __launch_bounds__(kEnterThreads) run_program_and_enter(const __grid_constant__ EnterView view) {
  static_assert(kEnterThreads * 16 == kEnterTokens * kEnterInputs && kEnterThreads * 32 == kEnterInputs * kEnterColumns && kEnterThreads / kWarp == 8);
  constexpr int kChunks = kEnterColumns / 8, kChunksOfX = kEnterInputs / 8;
  extern __shared__ __align__(128) unsigned char enter_room[];  // weights [kEnterInputs, kEnterColumns], x [kEnterTokens, kEnterInputs]
  const int block = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  if (block >= view.blocks) {
    let_next_start();
    const int item = block - view.blocks, tokens = static_cast<int>(view.program.tokens);
    return run_chain(view.program, item % tokens, item / tokens);
  }
  const Product& p = view.product;
  const int head = block / view.pieces, first = block % view.pieces * kEnterColumns;
  const unsigned weights = shared_address(enter_room), x = weights + kEnterInputs * kEnterColumns * 2;
  let_next_start();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int item = i * kEnterThreads + thread, row = item / kChunks, chunk = item % kChunks;
    copy_16(weights + swizzled<kChunks>(row, chunk), p.weight.data + 2 * ((p.first_row + head * p.row_step + row) * p.weight.cols + first + 8 * chunk), true);
  }
  commit_copies();
  wait_for_previous();
  float4 own[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int t = warp + 8 * i;
    own[i] = t < p.tokens ? *reinterpret_cast<const float4*>(p.x + t * p.x_stride + head * p.x_step + 4 * lane) : make_float4(0, 0, 0, 0);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
    *reinterpret_cast<uint2*>(enter_room + (x - weights) + swizzled<kChunksOfX>(warp + 8 * i, lane / 2) + 8 * (lane % 2)) = make_uint2(pack_two<T>(own[i].x, own[i].y), pack_two<T>(own[i].z, own[i].w));
  wait_copies<0>();
  __syncthreads();
  const int sixteen = warp / 2, half = warp % 2;  // of the columns, of the tokens
  float sums[2][4] = {};
#pragma unroll
  for (int step = 0; step < kEnterInputs / 16; ++step) {
    unsigned a[4], b[4];
    load_matrices_transposed(weights + swizzled<kChunks>(16 * step + lane / 16 * 8 + lane % 8, 2 * sixteen + lane / 8 % 2), a);
    load_b<kChunksOfX>(x, 16 * half, step, b);
    multiply_add<T>(sums[0], a, b[0], b[1]);
    multiply_add<T>(sums[1], a, b[2], b[3]);
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const std::int64_t t = 16 * half + i / 4 * 8 + 2 * (lane % 4) + i % 2;
    if (t < p.tokens) p.out[t * p.out_stride + head * p.out_step + first + 16 * sixteen + lane / 4 + 8 * (i % 4 / 2)] = sums[i / 4][i % 4];
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

/// The program with its chains of actions, and how many there are.
std::pair<TokenProgram, int> in_chains(const TokenProgram& program) {
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
  return {sorted, chains};
}

template <class T>
void launch_entering(Context& context, const EnterView& view, unsigned blocks) {
  auto* kernel = &run_program_and_enter<T>;
  context.note(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kEnterBytes));
  launch_early(context, kernel, blocks, kEnterThreads, kEnterBytes, view);
  context.launched();
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
  const auto [sorted, chains] = in_chains(program);
  launch_early(context, &run_program, dim3(static_cast<unsigned>(program.tokens), static_cast<unsigned>(chains)), kProgramThreads, 0, sorted);
}

bool can_enter(const Product& p) {
  const bool shape = p.by_column && p.tokens > kFewTokens && p.tokens <= kEnterTokens && p.rows == kEnterInputs && p.weight.cols % kEnterColumns == 0 && is_half(p.weight.format);
  const bool aligned = reinterpret_cast<std::uintptr_t>(p.weight.data) % 16 == 0 && reinterpret_cast<std::uintptr_t>(p.x) % 16 == 0 && p.x_stride % 4 == 0 && p.x_step % 4 == 0;
  return shape && aligned && p.bias == nullptr && !p.accumulate && p.added == nullptr && p.activations == Activations::kAsTheyAre;
}

void launch_program(Context& context, const TokenProgram& program, const Product& product) {
  const auto [sorted, chains] = in_chains(program);
  EnterView view{.program = sorted, .product = product, .pieces = static_cast<int>(product.weight.cols / kEnterColumns)};
  view.blocks = static_cast<int>(product.groups) * view.pieces;
  const auto blocks = static_cast<unsigned>(view.blocks + program.tokens * chains);
  if (product.weight.format == WeightFormat::bf16) launch_entering<__nv_bfloat16>(context, view, blocks);
  else launch_entering<__half>(context, view, blocks);
}

}  // namespace fathom::cuda
