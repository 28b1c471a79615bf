// cuBLASLt made of arithmetic: the functions of it that backends/cuda/blas.cpp looks up, as a library of its name.
// Products are summed in f32 or i32 in the order of k, on the host and on the calling thread. Their work goes to its
// stream as a host function, so that a stream that captures keeps it. What cuBLASLt refuses is refused in the
// heuristic. The runtime it calls is the program's (runtime.h).
#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <type_traits>
#include <vector>

namespace fathom::emulator {
namespace {

constexpr std::int64_t kStretch = 128;  // columns and rows that a scale of blocks is for

/// What the opaque objects are. cublasLtHandle_t stands for nothing.
struct Layout {
  cudaDataType type = CUDA_R_32F;
  std::int64_t rows = 0, columns = 0, stride = 0, step = 0;  // elements, columns `stride` apart and batches `step`
  std::int32_t batch = 1;
};
struct Scale {
  std::int32_t mode = CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F;
  const float* data = nullptr;
};
struct Description {
  cublasComputeType_t compute = CUBLAS_COMPUTE_32F;
  cudaDataType scale = CUDA_R_32F;  // of alpha and beta
  bool a_transposed = false, b_transposed = false;
  Scale of_a, of_b;
};
struct Preference {
  std::uint64_t workspace = 0;
  std::uint32_t reductions = 0;
  std::array<std::uint32_t, 4> alignments{256, 256, 256, 256};  // of A, B, C, D
};

const Layout& layout_of(cublasLtMatrixLayout_t at) { return *reinterpret_cast<const Layout*>(at); }
const Description& description_of(cublasLtMatmulDesc_t at) { return *reinterpret_cast<const Description*>(at); }

std::int64_t bytes_of(cudaDataType type) {
  switch (type) {
    case CUDA_R_32F:
    case CUDA_R_32I:
      return 4;
    case CUDA_R_16F:
    case CUDA_R_16BF:
      return 2;
    default:
      return 1;
  }
}
std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// ---------------------------------------------------------------- what is possible

struct Shape {
  std::int64_t m = 0, n = 0, k = 0;
};

bool consistent(const Description& how, const Layout& a, const Layout& b, const Layout& c, const Layout& d,
                Shape& shape) {
  shape = {d.rows, d.columns, how.a_transposed ? a.rows : a.columns};
  const bool fits = (how.a_transposed ? a.columns : a.rows) == shape.m &&
                    (how.b_transposed ? b.columns : b.rows) == shape.k &&
                    (how.b_transposed ? b.rows : b.columns) == shape.n && c.rows == shape.m && c.columns == shape.n &&
                    c.type == d.type;
  for (const Layout* one : {&a, &b, &c, &d})
    if (one->stride < one->rows || one->batch < 1 || one->batch != d.batch) return false;
  return fits && shape.m > 0 && shape.n > 0 && shape.k > 0;
}

bool in_stretches(std::int32_t mode) {
  return mode == CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F || mode == CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F;
}
bool scales_possible(const Description& how, const Shape& shape, bool eights) {
  constexpr std::int32_t kScalar = CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F,
                         kOuter = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F,
                         kVector = CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F,
                         kBlock = CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F;
  const std::int32_t a = how.of_a.mode, b = how.of_b.mode;
  if (a == kScalar && b == kScalar) return eights || (how.of_a.data == nullptr && how.of_b.data == nullptr);
  if (!eights) return false;
  if (a == kOuter || b == kOuter) return a == b;
  // Scales of vectors lie in columns of m or n, which start at multiples of 16 bytes.
  const bool whole = (a != kVector || shape.m % 4 == 0) && (b != kVector || shape.n % 4 == 0);
  return in_stretches(a) && in_stretches(b) && !(a == kBlock && b == kBlock) && whole;
}

/// Operands of eight bits are for tensor cores alone, which want A transposed and B not.
bool lies_for_eights(const Description& how, const Layout& a, const Layout& b, const Layout& d, const Shape& shape,
                     std::int64_t multiple) {
  return how.a_transposed && !how.b_transposed && shape.k % multiple == 0 && shape.m % multiple == 0 &&
         a.stride % multiple == 0 && b.stride % multiple == 0 &&
         d.stride * bytes_of(d.type) % std::min<std::int64_t>(multiple, 16) == 0;
}

bool possible(const Description& how, const Layout& a, const Layout& b, const Layout& c, const Layout& d,
              Shape& shape) {
  if (a.type != b.type || !consistent(how, a, b, c, d, shape)) return false;
  if (!scales_possible(how, shape, a.type == CUDA_R_8F_E4M3)) return false;
  const bool floats = how.compute == CUBLAS_COMPUTE_32F && how.scale == CUDA_R_32F;
  switch (a.type) {
    case CUDA_R_32F:
      return floats && d.type == CUDA_R_32F;
    case CUDA_R_16F:
    case CUDA_R_16BF:
      return floats && (d.type == CUDA_R_32F || d.type == a.type);
    case CUDA_R_8F_E4M3:
      return floats && (d.type == CUDA_R_32F || d.type == CUDA_R_16F || d.type == CUDA_R_16BF) &&
             lies_for_eights(how, a, b, d, shape, 16);
    case CUDA_R_8I:
      return how.compute == CUBLAS_COMPUTE_32I && how.scale == CUDA_R_32I && d.type == CUDA_R_32I &&
             lies_for_eights(how, a, b, d, shape, 4);
    default:
      return false;
  }
}

// ---------------------------------------------------------------- elements

template <class Sum>
Sum value_of(float x) {
  return static_cast<Sum>(x);
}
template <class Sum>
Sum value_of(std::int8_t x) {
  return static_cast<Sum>(x);
}
template <class Sum>
Sum value_of(__nv_bfloat16 x) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(std::bit_cast<std::uint16_t>(x)) << 16);
}
template <class Sum>
Sum value_of(__half x) {
  const std::uint32_t bits = std::bit_cast<std::uint16_t>(x), plain = bits & 0x7fffu;
  const float size = std::bit_cast<float>(plain << 13) * 0x1p112f;  // exact, of subnormal numbers too
  const std::uint32_t made = plain >= 0x7c00u ? plain << 13 | 0x7f800000u : std::bit_cast<std::uint32_t>(size);
  return std::bit_cast<float>(made | (bits & 0x8000u) << 16);
}
/// Four bits of exponent, three of fraction, no infinities.
struct E4m3 {
  std::uint8_t code;
};
template <class Sum>
Sum value_of(E4m3 x) {
  const std::uint32_t plain = x.code & 0x7fu;
  const std::uint32_t made =
      plain == 0x7f ? 0x7fc00000u : std::bit_cast<std::uint32_t>(std::bit_cast<float>(plain << 20) * 0x1p120f);
  return std::bit_cast<float>(made | static_cast<std::uint32_t>(x.code & 0x80u) << 24);
}

float read(const void* data, cudaDataType type, std::int64_t at) {
  switch (type) {
    case CUDA_R_16F:
      return value_of<float>(static_cast<const __half*>(data)[at]);
    case CUDA_R_16BF:
      return value_of<float>(static_cast<const __nv_bfloat16*>(data)[at]);
    default:
      return static_cast<const float*>(data)[at];
  }
}
void write(void* data, cudaDataType type, std::int64_t at, float x) {
  switch (type) {
    case CUDA_R_16F:
      static_cast<__half*>(data)[at] = __float2half_rn(x);
      break;
    case CUDA_R_16BF:
      static_cast<__nv_bfloat16*>(data)[at] = __float2bfloat16_rn(x);
      break;
    default:
      static_cast<float*>(data)[at] = x;
      break;
  }
}

// ---------------------------------------------------------------- products

struct Product {
  Description how;
  Shape shape;
  Layout a, b, c, d;
  const std::byte *a_data = nullptr, *b_data = nullptr, *c_data = nullptr;
  std::byte* d_data = nullptr;
  float alpha = 1, beta = 0;
  std::int32_t whole_alpha = 1, whole_beta = 0;
};

// A tile of kTall rows and kWide columns is summed in registers; operands are packed in panels of so many, in pieces of
// kDepth, and the pieces of kRows rows and kColumns columns of the product stay in the caches.
constexpr std::int64_t kTall = 16, kWide = 4, kDepth = 2 * kStretch, kRows = 256, kColumns = 512;
static_assert(kRows % kTall == 0 && kColumns % kWide == 0 && kDepth % kStretch == 0);

template <class Sum>
struct Tile {
  const Sum *a, *b;  // panels of `depth`
  std::int64_t depth;
  Sum* sums;  // [kWide, kTall], columns `stride` apart
  std::int64_t stride;
  const Sum *row_factors, *column_factors;  // what these sums are multiplied with before they are added; null: nothing
};
template <class Sum, std::int64_t kBytes>
using Several __attribute__((vector_size(kBytes), aligned(4), may_alias)) = Sum;
/// With registers of kBytes.
template <std::int64_t kBytes, class Sum>
__attribute__((always_inline)) inline void add_tile_in(const Tile<Sum>& t) {
  using Row = Several<Sum, kBytes>;
  constexpr std::int64_t kLanes = kBytes / 4, kParts = kTall / kLanes;
  Row own[kWide][kParts] = {};
  for (std::int64_t k = 0; k < t.depth; ++k)
#pragma GCC unroll 8
    for (std::int64_t part = 0; part < kParts; ++part) {
      const Row left = *reinterpret_cast<const Row*>(t.a + k * kTall + part * kLanes);
#pragma GCC unroll 8
      for (std::int64_t j = 0; j < kWide; ++j) own[j][part] += left * t.b[k * kWide + j];
    }
#pragma GCC unroll 8
  for (std::int64_t j = 0; j < kWide; ++j)
#pragma GCC unroll 8
    for (std::int64_t part = 0; part < kParts; ++part) {
      Row sums = own[j][part];
      if (t.row_factors != nullptr)
        sums *= *reinterpret_cast<const Row*>(t.row_factors + part * kLanes) * t.column_factors[j];
      *reinterpret_cast<Row*>(t.sums + j * t.stride + part * kLanes) += sums;
    }
}
#if defined(__x86_64__)  // the processor chooses as the library is loaded
__attribute__((target("avx2,fma"))) void add_tile(const Tile<float>& tile) { add_tile_in<32>(tile); }
__attribute__((target("avx2,fma"))) void add_tile(const Tile<std::int32_t>& tile) { add_tile_in<32>(tile); }
__attribute__((target("default")))
#endif
void add_tile(const Tile<float>& tile) {
  add_tile_in<16>(tile);
}
#if defined(__x86_64__)
__attribute__((target("default")))
#endif
void add_tile(const Tile<std::int32_t>& tile) {
  add_tile_in<16>(tile);
}

/// Packs `lines` of an operand from line `line` on and `depth` of k from `k` on into panels of kPanel lines:
/// [panel][k][kPanel], zeros beyond the end. Lines lie `line_step` elements apart and k `k_step`.
template <std::int64_t kPanel, class T, class Sum>
void pack(const T* from, std::int64_t lines, std::int64_t line_step, std::int64_t depth, std::int64_t k_step, Sum* to) {
  for (std::int64_t first = 0; first < lines; first += kPanel, to += kPanel * depth) {
    const std::int64_t count = std::min(kPanel, lines - first);
    if (count < kPanel) std::fill(to, to + kPanel * depth, Sum{0});
    const T* panel = from + first * line_step;
    if (line_step == 1) {
      for (std::int64_t k = 0; k < depth; ++k)
        for (std::int64_t i = 0; i < count; ++i) to[k * kPanel + i] = value_of<Sum>(panel[k * k_step + i]);
    } else {
      for (std::int64_t i = 0; i < count; ++i)
        for (std::int64_t k = 0; k < depth; ++k) to[k * kPanel + i] = value_of<Sum>(panel[i * line_step + k * k_step]);
    }
  }
}

/// Scales of lines [first, first + count) for the stretch of k with number `stretch`; ones beyond them.
void take_scales(const Scale& scale, std::int64_t lines, std::int64_t k, std::int64_t first, std::int64_t count,
                 std::int64_t stretch, float* to) {
  const std::int64_t padded = divide_up(divide_up(k, kStretch), 4) * 4;  // stretches in a line of blocks
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t line = std::min(first + i, lines - 1);
    const bool vectors = scale.mode == CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F;
    to[i] = scale.data[vectors ? stretch * lines + line : line / kStretch * padded + stretch];
  }
}

/// One block of the product. Scratch memory is kept from block to block.
template <class T, class Sum>
struct Block {
  const Product& p;
  const T *a, *b;  // of a batch
  bool stretches = in_stretches(p.how.of_a.mode);
  std::vector<Sum> left = room(kRows * kDepth), right = room(kColumns * kDepth), sums = room(kRows * kColumns);
  std::vector<Sum> row_factors = room(kRows), column_factors = room(kColumns);
  static std::vector<Sum> room(std::int64_t elements) { return std::vector<Sum>(static_cast<std::size_t>(elements)); }

  /// sums [columns, kRows] of rows from `row` on and columns from `column` on.
  void add_up(std::int64_t row, std::int64_t rows, std::int64_t column, std::int64_t columns) {
    std::fill(sums.begin(), sums.end(), Sum{0});
    const std::int64_t a_line = p.how.a_transposed ? p.a.stride : 1, a_step = p.how.a_transposed ? 1 : p.a.stride;
    const std::int64_t b_line = p.how.b_transposed ? 1 : p.b.stride, b_step = p.how.b_transposed ? p.b.stride : 1;
    const std::int64_t step = stretches ? kStretch : kDepth;
    for (std::int64_t k = 0; k < p.shape.k; k += step) {
      const std::int64_t depth = std::min(step, p.shape.k - k);
      pack<kTall>(a + row * a_line + k * a_step, rows, a_line, depth, a_step, left.data());
      pack<kWide>(b + column * b_line + k * b_step, columns, b_line, depth, b_step, right.data());
      if constexpr (std::is_same_v<T, E4m3>) {
        if (stretches) {
          take_scales(p.how.of_a, p.shape.m, p.shape.k, row, divide_up(rows, kTall) * kTall, k / kStretch,
                      row_factors.data());
          take_scales(p.how.of_b, p.shape.n, p.shape.k, column, divide_up(columns, kWide) * kWide, k / kStretch,
                      column_factors.data());
        }
      }
      for (std::int64_t j = 0; j < columns; j += kWide)
        for (std::int64_t i = 0; i < rows; i += kTall)
          add_tile(Tile<Sum>{.a = left.data() + i * depth,
                             .b = right.data() + j * depth,
                             .depth = depth,
                             .sums = sums.data() + j * kRows + i,
                             .stride = kRows,
                             .row_factors = stretches ? row_factors.data() + i : nullptr,
                             .column_factors = column_factors.data() + j});
    }
  }

  void finish(std::int64_t row, std::int64_t rows, std::int64_t column, std::int64_t columns, const std::byte* c,
              std::byte* d) {
    const bool outer = p.how.of_a.mode == CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
    const bool scalar = p.how.of_a.mode == CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F;
    float alpha = p.alpha;
    for (const Scale* scale : {&p.how.of_a, &p.how.of_b})
      if (scalar && scale->data != nullptr) alpha *= *scale->data;
    for (std::int64_t j = 0; j < columns; ++j)
      for (std::int64_t i = 0; i < rows; ++i) {
        const Sum sum = sums[static_cast<std::size_t>(j * kRows + i)];
        const std::int64_t c_at = (column + j) * p.c.stride + row + i, d_at = (column + j) * p.d.stride + row + i;
        if constexpr (std::is_same_v<Sum, std::int32_t>) {
          const std::int32_t added =
              p.whole_beta != 0 ? p.whole_beta * reinterpret_cast<const std::int32_t*>(c)[c_at] : 0;
          reinterpret_cast<std::int32_t*>(d)[d_at] = p.whole_alpha * sum + added;
        } else {
          const float scaled = outer ? sum * (p.how.of_a.data[row + i] * p.how.of_b.data[column + j]) : sum;
          const float made = alpha * scaled;
          write(d, p.d.type, d_at, p.beta != 0 ? made + p.beta * read(c, p.c.type, c_at) : made);
        }
      }
  }
};

template <class T, class Sum>
void multiply(const Product& p) {
  for (std::int64_t batch = 0; batch < p.d.batch; ++batch) {
    const auto at = [&](const auto* data, const Layout& layout) {
      return data + batch * layout.step * bytes_of(layout.type);
    };
    Block<T, Sum> block{
        .p = p, .a = reinterpret_cast<const T*>(at(p.a_data, p.a)), .b = reinterpret_cast<const T*>(at(p.b_data, p.b))};
    const std::byte* c = p.c_data != nullptr ? at(p.c_data, p.c) : nullptr;
    std::byte* d = p.d_data + batch * p.d.step * bytes_of(p.d.type);
    for (std::int64_t column = 0; column < p.shape.n; column += kColumns)
      for (std::int64_t row = 0; row < p.shape.m; row += kRows) {
        const std::int64_t rows = std::min(kRows, p.shape.m - row), columns = std::min(kColumns, p.shape.n - column);
        block.add_up(row, rows, column, columns);
        block.finish(row, rows, column, columns, c, d);
      }
  }
}

void multiply_any(const Product& p) {
  switch (p.a.type) {
    case CUDA_R_16F:
      return multiply<__half, float>(p);
    case CUDA_R_16BF:
      return multiply<__nv_bfloat16, float>(p);
    case CUDA_R_8F_E4M3:
      return multiply<E4m3, float>(p);
    case CUDA_R_8I:
      return multiply<std::int8_t, std::int32_t>(p);
    default:
      return multiply<float, float>(p);
  }
}

// ---------------------------------------------------------------- memory and streams

/// Whether a device could reach the first and the last byte of an operand: a device stops where it cannot.
bool reachable(const void* data, std::int64_t bytes, const char* what) {
  for (const std::int64_t at : {std::int64_t{0}, bytes - 1}) {
    cudaPointerAttributes where{};
    const cudaError_t error = cudaPointerGetAttributes(&where, static_cast<const std::byte*>(data) + at);
    if (error == cudaSuccess && where.type != cudaMemoryTypeUnregistered) continue;
    std::fprintf(stderr, "Fathom's emulated cuBLASLt: %s of a product is not in memory of the device\n", what);
    return false;
  }
  return true;
}
bool reachable(const void* data, const Layout& layout, const char* what) {
  const std::int64_t last = (layout.batch - 1) * layout.step + (layout.columns - 1) * layout.stride + layout.rows;
  return reachable(data, last * bytes_of(layout.type), what);
}
bool reachable(const Scale& scale, std::int64_t lines, std::int64_t k, const char* what) {
  const std::int64_t stretches = divide_up(k, kStretch);
  std::int64_t count = 1;
  switch (scale.mode) {
    case CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F:
      count = lines;
      break;
    case CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F:
      count = lines * stretches;
      break;
    case CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F:
      count = (divide_up(lines, kStretch) - 1) * divide_up(stretches, 4) * 4 + stretches;
      break;
    default:
      return scale.data == nullptr || reachable(scale.data, sizeof(float), what);
  }
  return reachable(scale.data, count * static_cast<std::int64_t>(sizeof(float)), what);
}
bool reachable(const Product& p) {
  return reachable(p.a_data, p.a, "A") && reachable(p.b_data, p.b, "B") && reachable(p.d_data, p.d, "D") &&
         (p.c_data == nullptr || reachable(p.c_data, p.c, "C")) &&
         reachable(p.how.of_a, p.shape.m, p.shape.k, "a scale of A") &&
         reachable(p.how.of_b, p.shape.n, p.shape.k, "a scale of B");
}

/// Products in graphs, which may be launched until the process ends.
void keep(std::unique_ptr<Product> product) {
  static std::mutex& mutex = *new std::mutex;
  static auto& kept = *new std::vector<std::unique_ptr<Product>>;
  const std::lock_guard held(mutex);
  kept.push_back(std::move(product));
}

cublasStatus_t submit(std::unique_ptr<Product> product, cudaStream_t stream) {
  cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
  if (cudaStreamIsCapturing(stream, &capturing) != cudaSuccess) return CUBLAS_STATUS_EXECUTION_FAILED;
  const auto work = [](void* data) { multiply_any(*static_cast<const Product*>(data)); };
  if (cudaLaunchHostFunc(stream, work, product.get()) != cudaSuccess) return CUBLAS_STATUS_EXECUTION_FAILED;
  if (capturing != cudaStreamCaptureStatusNone) keep(std::move(product));
  return CUBLAS_STATUS_SUCCESS;
}

// ---------------------------------------------------------------- attributes

template <class T>
cublasStatus_t set(T& to, const void* from, std::size_t bytes) {
  if (from == nullptr || bytes != sizeof(T)) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(&to, from, sizeof(T));
  return CUBLAS_STATUS_SUCCESS;
}
template <class T>
cublasStatus_t set_converted(auto& to, const void* from, std::size_t bytes, auto convert) {
  T value{};
  const cublasStatus_t status = set(value, from, bytes);
  if (status == CUBLAS_STATUS_SUCCESS) to = convert(value);
  return status;
}
/// Attributes that have to be what they are.
template <class T>
cublasStatus_t only(T wanted, const void* from, std::size_t bytes) {
  T value{};
  const cublasStatus_t status = set(value, from, bytes);
  return status == CUBLAS_STATUS_SUCCESS && value != wanted ? CUBLAS_STATUS_NOT_SUPPORTED : status;
}
cublasStatus_t set_transposed(bool& to, const void* from, std::size_t bytes) {
  return set_converted<std::int32_t>(to, from, bytes, [](std::int32_t operation) { return operation != CUBLAS_OP_N; });
}

template <class Object, class Handle, class... Values>
cublasStatus_t make(Handle* to, Values... values) {
  if (to == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  *to = reinterpret_cast<Handle>(new (std::nothrow) Object{values...});
  return *to != nullptr ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_ALLOC_FAILED;
}
template <class Object>
cublasStatus_t unmake(void* object) {
  delete static_cast<Object*>(object);
  return CUBLAS_STATUS_SUCCESS;
}

}  // namespace
}  // namespace fathom::emulator

using namespace fathom::emulator;  // NOLINT: what follows is theirs, under cuBLASLt's names

extern "C" {

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) { return make<int>(handle, 0); }
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) { return unmake<int>(handle); }

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* description, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
  return make<Description>(description, compute, scale, false, false, Scale{}, Scale{});
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t description) { return unmake<Description>(description); }
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t at, cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, std::size_t bytes) {
  if (at == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  auto& description = *reinterpret_cast<Description*>(at);
  switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return set_transposed(description.a_transposed, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return set_transposed(description.b_transposed, value, bytes);
    case CUBLASLT_MATMUL_DESC_A_SCALE_POINTER:
      return set(description.of_a.data, value, bytes);
    case CUBLASLT_MATMUL_DESC_B_SCALE_POINTER:
      return set(description.of_b.data, value, bytes);
    case CUBLASLT_MATMUL_DESC_A_SCALE_MODE:
      return set(description.of_a.mode, value, bytes);
    case CUBLASLT_MATMUL_DESC_B_SCALE_MODE:
      return set(description.of_b.mode, value, bytes);
    case CUBLASLT_MATMUL_DESC_POINTER_MODE:
      return only<std::int32_t>(CUBLASLT_POINTER_MODE_HOST, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      return only<std::uint32_t>(CUBLASLT_EPILOGUE_DEFAULT, value, bytes);
    default:
      return CUBLAS_STATUS_NOT_SUPPORTED;
  }
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type, std::uint64_t rows,
                                          std::uint64_t columns, std::int64_t stride) {
  return make<Layout>(layout, type, static_cast<std::int64_t>(rows), static_cast<std::int64_t>(columns), stride);
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) { return unmake<Layout>(layout); }
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t at, cublasLtMatrixLayoutAttribute_t attribute,
                                                const void* value, std::size_t bytes) {
  if (at == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  auto& layout = *reinterpret_cast<Layout*>(at);
  switch (attribute) {
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT:
      return set(layout.batch, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET:
      return set(layout.step, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_ORDER:
      return only<std::int32_t>(CUBLASLT_ORDER_COL, value, bytes);
    default:
      return CUBLAS_STATUS_NOT_SUPPORTED;
  }
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  return make<Preference>(preference);
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  return unmake<Preference>(preference);
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t at,
                                                    cublasLtMatmulPreferenceAttributes_t attribute, const void* value,
                                                    std::size_t bytes) {
  if (at == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  auto& preference = *reinterpret_cast<Preference*>(at);
  switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
      return set(preference.workspace, value, bytes);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
      return set(preference.reductions, value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
      return set(preference.alignments[0], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
      return set(preference.alignments[1], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
      return set(preference.alignments[2], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
      return set(preference.alignments[3], value, bytes);
    default:
      return CUBLAS_STATUS_NOT_SUPPORTED;
  }
}

/// One way, without a workspace, or none.
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t description,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t* results, int* found) {
  if (found == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  *found = 0;
  for (const void* given :
       {static_cast<const void*>(handle), static_cast<const void*>(description), static_cast<const void*>(a),
        static_cast<const void*>(b), static_cast<const void*>(c), static_cast<const void*>(d),
        static_cast<const void*>(preference), static_cast<const void*>(results)})
    if (given == nullptr || wanted < 1) return CUBLAS_STATUS_INVALID_VALUE;
  Shape shape;
  const auto& alignments = reinterpret_cast<const Preference*>(preference)->alignments;
  const bool eights = layout_of(a).type == CUDA_R_8F_E4M3;
  const bool aligned =
      !eights || std::all_of(alignments.begin(), alignments.end(), [](std::uint32_t bytes) { return bytes % 16 == 0; });
  if (!aligned || !possible(description_of(description), layout_of(a), layout_of(b), layout_of(c), layout_of(d), shape))
    return CUBLAS_STATUS_NOT_SUPPORTED;
  results[0] = {};
  results[0].state = CUBLAS_STATUS_SUCCESS;
  results[0].wavesCount = 1;
  *found = 1;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t description, const void* alpha,
                              const void* a, cublasLtMatrixLayout_t a_layout, const void* b,
                              cublasLtMatrixLayout_t b_layout, const void* beta, const void* c,
                              cublasLtMatrixLayout_t c_layout, void* d, cublasLtMatrixLayout_t d_layout,
                              const cublasLtMatmulAlgo_t*, void*, std::size_t, cudaStream_t stream) {
  for (const void* given :
       {static_cast<const void*>(handle), static_cast<const void*>(description), alpha, a,
        static_cast<const void*>(a_layout), b, static_cast<const void*>(b_layout), beta,
        static_cast<const void*>(c_layout), static_cast<const void*>(d), static_cast<const void*>(d_layout)})
    if (given == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  auto product = std::make_unique<Product>();
  product->how = description_of(description);
  product->a = layout_of(a_layout), product->b = layout_of(b_layout), product->c = layout_of(c_layout),
  product->d = layout_of(d_layout);
  if (!possible(product->how, product->a, product->b, product->c, product->d, product->shape))
    return CUBLAS_STATUS_NOT_SUPPORTED;
  const bool whole = product->how.scale == CUDA_R_32I;
  std::memcpy(whole ? static_cast<void*>(&product->whole_alpha) : &product->alpha, alpha, 4);
  std::memcpy(whole ? static_cast<void*>(&product->whole_beta) : &product->beta, beta, 4);
  const bool adds = whole ? product->whole_beta != 0 : product->beta != 0;
  const bool scaled = product->how.of_a.mode != CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F;
  if ((adds && c == nullptr) || (scaled && (product->how.of_a.data == nullptr || product->how.of_b.data == nullptr)))
    return CUBLAS_STATUS_INVALID_VALUE;
  product->a_data = static_cast<const std::byte*>(a), product->b_data = static_cast<const std::byte*>(b);
  product->c_data = adds ? static_cast<const std::byte*>(c) : nullptr;
  product->d_data = static_cast<std::byte*>(d);
  if (!reachable(*product)) return CUBLAS_STATUS_EXECUTION_FAILED;
  return submit(std::move(product), stream);
}

}  // extern "C"
