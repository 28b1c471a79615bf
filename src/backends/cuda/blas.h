// Blas: matrix products by cuBLASLt, which is found when the program runs: a build with CUDA starts on machines without
// it.
#pragma once
#include <memory>

#include "backends/cuda/context.h"

namespace fathom::cuda {

/// Element types of a product's operands. Sums are f32 and so is the output, unless `rounded`; of i8 they are i32. e4m3
/// and i8 want k and n in multiples of 16 and `transposed`.
enum class BlasType : std::uint8_t { f32, f16, bf16, e4m3, i8 };

/// What e4m3 products are multiplied with, in f32: nothing; a factor a row of x and one a row of w; or factors of every
/// 128 columns of each row of x ([k / 128, T], T a multiple of 4) and of every 128 × 128 block of w ([n / 128, k / 128
/// padded to 4]), with which the sums of a stretch are multiplied before they are added up.
enum class BlasScales : std::uint8_t { none, rows, blocks };

/// out [T, n] (+)= x [T, k] · w, row-major, for `batch` independent products whose operands lie `…_step` elements
/// apart. w is weight [n, k] used transposed, or [k, n] as it lies when `transposed` is false. x lies as [k, T] when
/// `x_transposed` (f32 alone). Rows of x, w and out lie `…_stride` elements apart. Every pointer and row starts at a
/// multiple of 16 bytes.
struct BlasProduct {
  std::int64_t tokens = 0, n = 0, k = 0, batch = 1;
  BlasType type = BlasType::f32;  // of x and w
  bool transposed = true;
  bool x_transposed = false;
  const void* x = nullptr;
  const void* w = nullptr;
  void* out = nullptr;
  std::int64_t x_stride = 0, w_stride = 0, out_stride = 0;
  std::int64_t x_step = 0, w_step = 0, out_step = 0;
  bool accumulate = false;
  bool rounded = false;  // f16, bf16: the output is of the operands' type, its stride and step count that
  BlasScales scales = BlasScales::none;
  const float *x_scales = nullptr, *w_scales = nullptr;
  const float* added = nullptr;  // lies like out and is added to the product instead of out itself; null: nothing is
};

class Blas {
 public:
  virtual ~Blas() = default;
  /// "cuda.no_cublas" (no library), "cuda.cublas_failed" (it would not start): kEnvironment.
  static Result<std::unique_ptr<Blas>> load();
  /// Launches on the context's stream; the workspace is kWorkspaceBytes, aligned to 256. The algorithm is chosen once a
  /// shape and gives the same bits every time. f32 is computed in f32 (no TF32). False: cuBLASLt knows no way; nothing
  /// was launched.
  virtual bool multiply(Context& context, const BlasProduct& product, std::byte* workspace) = 0;
  /// Whether it knows a way for products like this one.
  virtual bool knows(const BlasProduct& product) = 0;
  static constexpr Bytes kWorkspaceBytes = 32 * kMiB;
};

/// What a backend has beside weights, caches and activations: room for rounded activations, and what an op may take.
inline constexpr Bytes kWorkspaceBytes = 256 * kMiB, kOpBytes = kWorkspaceBytes - kRoundedBytes - kStagesBytes;
/// Of that and beside what cuBLASLt has: weights that products of many tokens widen.
inline constexpr Bytes kWidenedBytes = 96 * kMiB;

}  // namespace fathom::cuda
