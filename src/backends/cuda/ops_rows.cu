// Families rows and experts (the elementwise part): embedding, gathering, copying, adding, gates.
#include "backends/cuda/cuda_ops.h"
#include "backends/cuda/launch.cuh"
#include "backends/cuda/many_rows.h"
#include "backends/cuda/waiting.cuh"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr int kMapThreads = 256;

/// map(row, column) for every column that is a multiple of `step`; a block covers threadIdx.y rows at a time.
template <class Map>
__global__ void __launch_bounds__(kMapThreads) over_rows(Map map, std::int64_t rows, std::int64_t n, int step) {
  after_previous();
  const std::int64_t row_step = static_cast<std::int64_t>(gridDim.y) * blockDim.y, column_step = static_cast<std::int64_t>(gridDim.x) * blockDim.x * step;
  for (std::int64_t row = static_cast<std::int64_t>(blockIdx.y) * blockDim.y + threadIdx.y; row < rows; row += row_step) {
    const auto use = map.row(row);
    for (std::int64_t i = (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * step; i < n; i += column_step) use(i);
  }
}

/// `ordered`: not before all launches before have finished.
template <class Map>
void launch(Context& context, const Map& map, std::int64_t rows, std::int64_t n, int step, bool ordered = false) {
  if (rows <= 0 || n <= 0) return;
  const std::int64_t items = divide_up(n, step);
  unsigned wide = kWarp;
  while (wide < kMapThreads && wide < items) wide *= 2;
  const dim3 block(wide, kMapThreads / wide);
  const auto across = static_cast<unsigned>(std::min<std::int64_t>(divide_up(items, wide), 1024));
  const auto down = static_cast<unsigned>(std::min<std::int64_t>(divide_up(rows, block.y), 32768));
  if (ordered) {
    over_rows<Map><<<dim3(across, down), block, 0, context.stream>>>(map, rows, n, step);
    return context.note(cudaGetLastError());
  }
  launch_early(context, &over_rows<Map>, dim3(across, down), block, 0, map, rows, n, step);
}

__device__ float read_any(const std::byte* row, DType dtype, std::int64_t i) {
  if (dtype == DType::f32) return reinterpret_cast<const float*>(row)[i];
  return dtype == DType::f16 ? to_float(reinterpret_cast<const __half*>(row)[i]) : to_float(reinterpret_cast<const __nv_bfloat16*>(row)[i]);
}
__device__ void write_any(std::byte* row, DType dtype, std::int64_t i, float value) {
  if (dtype == DType::f32) reinterpret_cast<float*>(row)[i] = value;
  else if (dtype == DType::f16) reinterpret_cast<__half*>(row)[i] = from_float<__half>(value);
  else reinterpret_cast<__nv_bfloat16*>(row)[i] = from_float<__nv_bfloat16>(value);
}
void check_float(const Tensor& x) {
  FATHOM_CHECK(x.dtype == DType::f32 || x.dtype == DType::f16 || x.dtype == DType::bf16, "not a type that the cuda backend computes with");
}

// ---------------------------------------------------------------- rows

struct EmbedMap {
  const std::int32_t* ids;
  WeightView table;
  RowsView out;
  std::int64_t first_id;
  struct Use {
    WeightView table;
    std::byte* out;
    DType dtype;
    std::int64_t id;
    __device__ void operator()(std::int64_t i) const { write_any(out, dtype, i, id >= 0 && id < table.rows ? load_weight(table, id, i) : 0.0f); }
  };
  __device__ Use row(std::int64_t t) const { return {table, out.row<std::byte>(t), out.dtype, ids[t] - first_id}; }
};

/// Copies row `source(i)` of x to row i of out, converting.
struct CopyUse {
  const std::byte* x;
  std::byte* out;
  DType from, to;
  __device__ void operator()(std::int64_t i) const { write_any(out, to, i, read_any(x, from, i)); }
};
struct CopyMap {
  RowsView x, out;
  __device__ CopyUse row(std::int64_t r) const { return {x.row<std::byte>(r), out.row<std::byte>(r), x.dtype, out.dtype}; }
};
struct GatherMap {
  RowsView x, out;
  const std::int32_t* rows;
  __device__ CopyUse row(std::int64_t r) const { return {x.row<std::byte>(rows[r]), out.row<std::byte>(r), x.dtype, out.dtype}; }
};
struct ExpandMap {
  RowsView x, out;
  std::int64_t streams;
  __device__ CopyUse row(std::int64_t r) const { return {x.row<std::byte>(r / streams), out.row<std::byte>(r), x.dtype, out.dtype}; }
};
struct CopyWordsMap {  // the same type on both sides: bits, i32 among them
  RowsView x, out;
  struct Use {
    const std::uint32_t* x;
    std::uint32_t* out;
    __device__ void operator()(std::int64_t i) const { out[i] = x[i]; }
  };
  __device__ Use row(std::int64_t r) const { return {x.row<std::uint32_t>(r), out.row<std::uint32_t>(r)}; }
};

// ---------------------------------------------------------------- elementwise, f32

/// out = f(a, b): four at a time where rows are aligned.
template <class Equation, int kStep>
struct PairMap {
  RowsView a, b, out;
  Equation equation;
  struct Use {
    const float *a, *b;
    float* out;
    Equation equation;
    __device__ void operator()(std::int64_t i) const {
      if constexpr (kStep == 1) {
        out[i] = equation(a[i], b[i]);
      } else {
        const float4 x = *reinterpret_cast<const float4*>(a + i), y = *reinterpret_cast<const float4*>(b + i);
        *reinterpret_cast<float4*>(out + i) = make_float4(equation(x.x, y.x), equation(x.y, y.y), equation(x.z, y.z), equation(x.w, y.w));
      }
    }
  };
  __device__ Use row(std::int64_t r) const { return {a.row<float>(r), b.row<float>(r), out.row<float>(r), equation}; }
};

struct Sum {
  __device__ float operator()(float a, float b) const { return a + b; }
};
struct Gate {
  float limit;
  __device__ float operator()(float gate, float up) const { return gated(gate, up, limit); }
};
struct Gelu {
  __device__ float operator()(float x, float) const {
    return 0.5f * x * (1.0f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
  }
};

template <class Equation>
void map_pairs(Context& context, const Tensor& a, const Tensor& b, const Tensor& out, Equation equation) {
  FATHOM_CHECK(a.shape == b.shape && a.shape == out.shape);
  FATHOM_CHECK(a.dtype == DType::f32 && b.dtype == DType::f32 && out.dtype == DType::f32, "activations are f32");
  const RowsView x = rows_of(a), y = rows_of(b), z = rows_of(out);
  if (z.n % 4 == 0 && rows_aligned(a, 16) && rows_aligned(b, 16) && rows_aligned(out, 16))
    launch(context, PairMap<Equation, 4>{x, y, z, equation}, z.count, z.n, 4);
  else
    launch(context, PairMap<Equation, 1>{x, y, z, equation}, z.count, z.n, 1);
}

}  // namespace

/// A pass begins with this, and what it launches waits for the passes before: kernels may read their cache rows before their own turn. (A later stage's
/// begins with what NCCL brings, which waits as well.)
void CudaOps::embed(const EmbedArgs& args) {
  flush();
  FATHOM_CHECK(args.out.dim(0) == args.ids.dim(0) && args.out.dim(1) == args.table.cols && args.ids.dtype == DType::i32);
  FATHOM_CHECK(args.table.format != WeightFormat::i64 && args.table.format != WeightFormat::f64, "a table that the cuda backend cannot read");
  check_float(args.out);
  launch(context_, EmbedMap{args.ids.as<std::int32_t>(), view_of(args.table), rows_of(args.out), args.first_id}, args.out.dim(0), args.out.dim(1), 1, true);
}

void CudaOps::gather_rows(const GatherRowsArgs& args) {
  flush();
  FATHOM_CHECK(args.out.dim(0) == args.rows.dim(0) && args.out.dim(1) == args.x.dim(1) && args.rows.dtype == DType::i32);
  check_float(args.x), check_float(args.out);
  launch(context_, GatherMap{rows_of(args.x), rows_of(args.out), args.rows.as<std::int32_t>()}, args.out.dim(0), args.out.dim(1), 1);
}

void CudaOps::copy(const CopyArgs& args) {
  FATHOM_CHECK(args.x.shape == args.out.shape);
  if (args.x.shape.rank > 0 && waiting_->has_program(args.x.dim(0)))
    if (const TokenRows rows = token_rows(args.x), out = token_rows(args.out); rows.n > 0 && rows.dtype == DType::f32 && out.n > 0)
      return waiting_->take(context_, {.kind = TokenAction::Kind::kCopy, .x = rows, .out = out}, args.x.dim(0));
  flush();
  const RowsView x = rows_of(args.x), out = rows_of(args.out);
  if (x.dtype == out.dtype && dtype_bytes(x.dtype) == 4) return launch(context_, CopyWordsMap{x, out}, x.count, x.n, 1);
  check_float(args.x), check_float(args.out);
  launch(context_, CopyMap{x, out}, x.count, x.n, 1);
}

void CudaOps::add(const AddArgs& args) {
  if (waiting_->add(context_, args)) return waiting_->settle(context_);
  flush();
  map_pairs(context_, args.a, args.b, args.out, Sum{});
}

void CudaOps::expand_streams(const ExpandStreamsArgs& args) {
  flush();
  const std::int64_t tokens = args.out.dim(0), streams = args.out.dim(1), width = args.out.dim(2);
  FATHOM_CHECK(args.x.dim(0) == tokens && args.x.dim(1) == width);
  check_float(args.x), check_float(args.out);
  launch(context_, ExpandMap{rows_of(args.x), rows_of(args.out), streams}, tokens * streams, width, 1);
}

void CudaOps::swiglu(const SwigluArgs& args) {
  if (waiting_->swiglu(context_, args)) return waiting_->settle(context_);
  if (waiting_->has_gate(args) && can_only_round(args, waiting_->gate_in_one())) {
    waiting_->settle(context_);  // of what the two products multiply
    return waiting_->promise(args);
  }
  flush();
  make_gate(context_, args);
}

void make_gate(Context& context, const SwigluArgs& args) {
  if (gate_and_round(context, args)) return;
  map_pairs(context, args.gate, args.up, args.out, Gate{static_cast<float>(args.limit)});
}

void CudaOps::gelu(const GeluArgs& args) {
  flush();
  map_pairs(context_, args.x, args.x, args.out, Gelu{});
}

}  // namespace fathom::cuda
