// Family hyper: manifold-constrained hyper-connections (DeepSeek-V4 §2.2).
#include <cmath>

#include "backends/cpu/cpu_ops.h"
#include "backends/cpu/rows.h"

namespace fathom::cpu {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr std::int64_t kMostStreams = 16;
constexpr std::int64_t kColumns = 1024;  // of a token's streams in one task

float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

/// z[t, :] = fn · flatten(streams[t]) / rms(flatten(streams[t])), in the shared workspace. Streams with gaps between
/// them are made dense first, some tokens at a time.
float* mix_logits(const Context& context, Scratch& shared, const Tensor& streams, const Weight& fn, double norm_eps) {
  const std::int64_t tokens = streams.dim(0), c = streams.dim(1), h = streams.dim(2), width = c * h;
  FATHOM_CHECK(fn.cols == width && can_multiply(fn.format));
  float* z = shared.take<float>(tokens * fn.rows);
  const float** x = shared.take<const float*>(tokens);
  const std::size_t mark = shared.used();
  const bool dense = streams.strides[1] == h || c == 1;
  const std::int64_t chunk =
      dense ? tokens : std::clamp<std::int64_t>(static_cast<std::int64_t>(shared.left() / 4) / (width * 4), 1, tokens);
  for (std::int64_t at = 0; at < tokens; at += chunk) {
    const std::int64_t count = std::min(chunk, tokens - at);
    float* copies = dense ? nullptr : shared.take<float>(count * width);
    for (std::int64_t t = 0; t < count; ++t) {
      const float* from = streams.as<float>() + (at + t) * streams.strides[0];
      for (std::int64_t j = 0; j < c && !dense; ++j)
        std::copy_n(from + j * streams.strides[1], h, copies + t * width + j * h);
      x[t] = dense ? from : copies + t * width;
    }
    Product product{.weight = &fn,
                    .first_row = 0,
                    .rows = fn.rows,
                    .x = x,
                    .m_count = count,
                    .out = z + at * fn.rows,
                    .out_stride = fn.rows};
    multiply(context, {&product, 1});
    for_ranges(context.pool, count, width, [&](std::int64_t first, std::int64_t last, int) {
      for (std::int64_t t = first; t < last; ++t) {
        const float mean = context.kernels.sum_of_squares(x[t], width) / static_cast<float>(width);
        context.kernels.scale(1.0f / std::sqrt(mean + static_cast<float>(norm_eps)), z + (at + t) * fn.rows, fn.rows);
      }
    });
    shared.rewind(mark);
  }
  return z;
}

/// m [c, c]: every row (step 1, next c) or column (step c, next 1) divided by its sum + eps.
void divide(float* m, std::int64_t c, std::int64_t step, std::int64_t next, float eps) {
  for (std::int64_t j = 0; j < c; ++j) {
    float sum = 0;
    for (std::int64_t k = 0; k < c; ++k) sum += m[j * next + k * step];
    for (std::int64_t k = 0; k < c; ++k) m[j * next + k * step] /= sum + eps;
  }
}

/// Softmax of the rows, then the alternation towards a doubly stochastic matrix.
void make_stochastic(float* m, std::int64_t c, std::int64_t iterations, float eps) {
  for (std::int64_t j = 0; j < c; ++j) {
    float* row = m + j * c;
    float largest = row[0], sum = 0;
    for (std::int64_t k = 1; k < c; ++k) largest = row[k] > largest ? row[k] : largest;
    for (std::int64_t k = 0; k < c; ++k) sum += row[k] = std::exp(row[k] - largest);
    for (std::int64_t k = 0; k < c; ++k) row[k] = row[k] / sum + eps;
  }
  divide(m, c, c, 1, eps);
  for (std::int64_t i = 1; i < iterations; ++i) {
    divide(m, c, 1, c, eps);
    divide(m, c, c, 1, eps);
  }
}

/// A small vector of any float type as floats.
const float* floats_of(const Kernels& kernels, Scratch& shared, const Tensor& x) {
  FATHOM_CHECK(x.contiguous());
  float* out = shared.take<float>(x.elements());
  kernels.widen(element_of(x.dtype), x.data, x.elements(), out);
  return out;
}

/// out[t, k, :] = sum over j of p[t, k, j] · from(t, j), for outs rows of `out` a token and `parts` rows to mix.
template <class From>
void mix_rows(const Context& context, std::int64_t tokens, std::int64_t h, std::int64_t outs, std::int64_t parts,
              const float* p, const Tensor& out, From from) {
  const std::int64_t blocks = (h + kColumns - 1) / kColumns, out_stride = outs == 1 ? 0 : out.strides[1];
  for_ranges(context.pool, tokens * blocks, outs * parts * std::min(h, kColumns),
             [&](std::int64_t first, std::int64_t last, int) {
               for (std::int64_t task = first; task < last; ++task) {
                 const std::int64_t t = task / blocks, column = task % blocks * kColumns;
                 Row rows[kMostStreams + 1];
                 for (std::int64_t j = 0; j < parts; ++j) rows[j] = reinterpret_cast<Row>(from(t, j) + column);
                 context.kernels.combine_rows({.element = Element::kF32,
                                               .rows = rows,
                                               .row_count = parts,
                                               .n = std::min(kColumns, h - column),
                                               .p = p + t * outs * parts,
                                               .p_stride = parts,
                                               .m_count = outs,
                                               .y = out.as<float>() + t * out.strides[0] + column,
                                               .y_stride = out_stride});
               }
             });
}

}  // namespace

void CpuOps::hyper_mix(const HyperMixArgs& args) {
  const std::int64_t tokens = args.streams.dim(0), c = args.streams.dim(1), h = args.streams.dim(2), rows = (2 + c) * c;
  FATHOM_CHECK(c <= kMostStreams && args.fn.rows == rows && args.base.elements() == rows && args.scale.elements() == 3);
  FATHOM_CHECK(is_f32(args.streams) && is_f32(args.collapsed) && is_f32(args.post) && is_f32(args.comb));
  if (tokens == 0) return;
  Scratch& shared = fresh_shared();
  const float* z = mix_logits(context_, shared, args.streams, args.fn, args.norm_eps);
  const float *base = floats_of(context_.kernels, shared, args.base),
              *scale = floats_of(context_.kernels, shared, args.scale);
  float* pre = shared.take<float>(tokens * c);
  const auto eps = static_cast<float>(args.eps);
  const RowsOfTensor post(args.post);
  for_ranges(context_.pool, tokens, 64 * rows, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t t = first; t < last; ++t) {
      const float* own = z + t * rows;
      for (std::int64_t j = 0; j < c; ++j) {
        pre[t * c + j] = sigmoid(own[j] * scale[0] + base[j]) + eps;
        post.floats(t)[j] = 2.0f * sigmoid(own[c + j] * scale[1] + base[c + j]);
      }
      float matrix[kMostStreams * kMostStreams];
      for (std::int64_t i = 0; i < c * c; ++i) matrix[i] = own[2 * c + i] * scale[2] + base[2 * c + i];
      make_stochastic(matrix, c, args.iterations, eps);
      for (std::int64_t j = 0; j < c; ++j)
        std::copy_n(matrix + j * c, c, args.comb.as<float>() + t * args.comb.strides[0] + j * args.comb.strides[1]);
    }
  });
  mix_rows(context_, tokens, h, 1, c, pre, args.collapsed, [&](std::int64_t t, std::int64_t j) {
    return args.streams.as<float>() + t * args.streams.strides[0] + j * args.streams.strides[1];
  });
}

void CpuOps::hyper_merge(const HyperMergeArgs& args) {
  const std::int64_t tokens = args.streams.dim(0), c = args.streams.dim(1), h = args.streams.dim(2), parts = c + 1;
  FATHOM_CHECK(c <= kMostStreams && args.out.shape == args.streams.shape && args.x.shape == (Shape{tokens, h}));
  FATHOM_CHECK(is_f32(args.x) && is_f32(args.streams) && is_f32(args.post) && is_f32(args.comb) && is_f32(args.out));
  float* p = fresh_shared().take<float>(tokens * c * parts);  // [t, k, (x, stream 0, …)]
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t k = 0; k < c; ++k) {
      float* own = p + (t * c + k) * parts;
      own[0] = args.post.as<float>()[t * args.post.strides[0] + k];
      for (std::int64_t j = 0; j < c; ++j)
        own[1 + j] = args.comb.as<float>()[t * args.comb.strides[0] + j * args.comb.strides[1] + k];
    }
  mix_rows(context_, tokens, h, c, parts, p, args.out, [&](std::int64_t t, std::int64_t j) {
    return j == 0 ? args.x.as<float>() + t * args.x.strides[0]
                  : args.streams.as<float>() + t * args.streams.strides[0] + (j - 1) * args.streams.strides[1];
  });
}

void CpuOps::hyper_head(const HyperHeadArgs& args) {
  const std::int64_t tokens = args.streams.dim(0), c = args.streams.dim(1), h = args.streams.dim(2);
  FATHOM_CHECK(c <= kMostStreams && args.fn.rows == c && args.base.elements() == c && args.scale.elements() == 1);
  FATHOM_CHECK(is_f32(args.streams) && is_f32(args.out));
  if (tokens == 0) return;
  Scratch& shared = fresh_shared();
  float* z = mix_logits(context_, shared, args.streams, args.fn, args.norm_eps);
  const float *base = floats_of(context_.kernels, shared, args.base),
              *scale = floats_of(context_.kernels, shared, args.scale);
  for (std::int64_t i = 0; i < tokens * c; ++i)
    z[i] = sigmoid(z[i] * scale[0] + base[i % c]) + static_cast<float>(args.eps);
  mix_rows(context_, tokens, h, 1, c, z, args.out, [&](std::int64_t t, std::int64_t j) {
    return args.streams.as<float>() + t * args.streams.strides[0] + j * args.streams.strides[1];
  });
}

}  // namespace fathom::cpu
