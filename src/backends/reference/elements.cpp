#include "backends/reference/elements.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "tensor/int8_rows.h"

namespace fathom::reference {
namespace {

/// To float so that a second rounding to 16 bits gives what one rounding would have given: inexact results become odd.
float narrow_to_odd(double value) {
  const auto near = static_cast<float>(value);
  if (static_cast<double>(near) == value || std::isnan(value) || std::isinf(near)) return near;
  auto bits = __builtin_bit_cast(std::uint32_t, near);
  if (std::fabs(static_cast<double>(near)) > std::fabs(value)) --bits;
  return __builtin_bit_cast(float, bits | 1u);
}

template <class T, class Convert>
void read_as(const std::byte* data, std::int64_t count, double* out, Convert convert) {
  for (std::int64_t i = 0; i < count; ++i) {
    T value;
    std::memcpy(&value, data + i * static_cast<std::int64_t>(sizeof(T)), sizeof(T));
    out[i] = convert(value);
  }
}

template <class T, class Convert>
void write_as(std::byte* data, std::int64_t count, const double* values, Convert convert) {
  for (std::int64_t i = 0; i < count; ++i) {
    const T value = convert(values[i]);
    std::memcpy(data + i * static_cast<std::int64_t>(sizeof(T)), &value, sizeof(T));
  }
}

/// Calls use(address of the row, index of the row) for every innermost row.
template <class Use>
void for_rows(const Tensor& x, Use use) {
  const int last = x.shape.rank - 1;
  FATHOM_CHECK(last >= 0 && (x.strides[static_cast<std::size_t>(last)] == 1 || x.shape[last] <= 1),
               "innermost stride must be 1");
  std::int64_t rows = 1;
  for (int i = 0; i < last; ++i) rows *= x.shape[i];
  for (std::int64_t row = 0; row < rows; ++row) {
    std::int64_t rest = row, offset = 0;
    for (int i = last - 1; i >= 0; --i) {
      offset += rest % x.shape[i] * x.strides[static_cast<std::size_t>(i)];
      rest /= x.shape[i];
    }
    use(x.data + offset * dtype_bytes(x.dtype), row);
  }
}

std::int64_t row_length(const Tensor& x) { return x.shape[x.shape.rank - 1]; }

/// Where the scale of innermost row `row` of a cache in INT8 lies.
float* scale_of(const Tensor& x, std::int64_t row) {
  const std::int64_t heads = x.shape.rank == 3 ? x.dim(1) : 1;
  return tensor::int8_scale(x, row / heads, row % heads);
}

/// Codes times their scale.
void read_codes(const std::byte* data, float scale, std::int64_t count, double* out) {
  read_as<std::int8_t>(data, count, out,
                       [&](std::int8_t code) { return static_cast<double>(scale) * static_cast<double>(code); });
}

void write_codes(std::byte* data, float& scale, std::int64_t count, const double* values) {
  float largest = 0;
  bool finite = true;
  for (std::int64_t i = 0; i < count; ++i) {
    const auto x = static_cast<float>(values[i]);
    largest = std::max(largest, std::fabs(x));
    finite = finite && std::isfinite(x);
  }
  scale = largest / 127.0f;
  if (scale == 0) scale = 1;
  if (!finite) scale = std::numeric_limits<float>::quiet_NaN();
  write_as<std::int8_t>(data, count, values, [&](double value) {
    const float code = std::nearbyint(static_cast<float>(value) / scale);
    return finite ? static_cast<std::int8_t>(std::clamp(code, -127.0f, 127.0f)) : std::int8_t{0};
  });
}

/// Writes innermost row `row` of x, at `at`.
void write_row(const Tensor& x, std::byte* at, std::int64_t row, const double* values) {
  if (x.dtype == DType::i8) return write_codes(at, *scale_of(x, row), row_length(x), values);
  write_elements(at, x.dtype, row_length(x), values);
}

}  // namespace

void read_elements(const std::byte* data, DType dtype, std::int64_t count, double* out) {
  switch (dtype) {
    case DType::f64:
      return read_as<double>(data, count, out, [](double v) { return v; });
    case DType::f32:
      return read_as<float>(data, count, out, [](float v) { return static_cast<double>(v); });
    case DType::f16:
      return read_as<std::uint16_t>(data, count, out,
                                    [](std::uint16_t v) { return static_cast<double>(f16_to_f32(v)); });
    case DType::bf16:
      return read_as<std::uint16_t>(data, count, out,
                                    [](std::uint16_t v) { return static_cast<double>(bf16_to_f32(v)); });
    case DType::f8e4m3:
      return read_as<std::uint8_t>(data, count, out,
                                   [](std::uint8_t v) { return static_cast<double>(f8e4m3_to_f32(v)); });
    default:
      FATHOM_CHECK(false, "not a plain float type");
  }
}

void write_elements(std::byte* data, DType dtype, std::int64_t count, const double* values) {
  switch (dtype) {
    case DType::f64:
      return write_as<double>(data, count, values, [](double v) { return v; });
    case DType::f32:
      return write_as<float>(data, count, values, [](double v) { return static_cast<float>(v); });
    case DType::f16:
      return write_as<std::uint16_t>(data, count, values, [](double v) { return f32_to_f16(narrow_to_odd(v)); });
    case DType::bf16:
      return write_as<std::uint16_t>(data, count, values, [](double v) { return f32_to_bf16(narrow_to_odd(v)); });
    case DType::f8e4m3:
      return write_as<std::uint8_t>(data, count, values, [](double v) { return f32_to_f8e4m3(narrow_to_odd(v)); });
    default:
      FATHOM_CHECK(false, "not a plain float type");
  }
}

Array load(const Tensor& x) {
  Array out(x.shape);
  const std::int64_t n = row_length(x);
  for_rows(x, [&](const std::byte* row, std::int64_t i) {
    if (x.dtype == DType::i8) return read_codes(row, *scale_of(x, i), n, out.values.data() + i * n);
    read_elements(row, x.dtype, n, out.values.data() + i * n);
  });
  return out;
}

Array load_row(const Tensor& x, std::int64_t i) { return load(x.rows(i, 1)); }

std::vector<std::int64_t> load_ints(const Tensor& x) {
  std::vector<std::int64_t> out(static_cast<std::size_t>(x.elements()));
  const std::int64_t n = row_length(x);
  for_rows(x, [&](const std::byte* row, std::int64_t r) {
    for (std::int64_t i = 0; i < n; ++i) {
      auto& value = out[static_cast<std::size_t>(r * n + i)];
      if (x.dtype == DType::i32) {
        std::int32_t narrow = 0;
        std::memcpy(&narrow, row + i * 4, 4);
        value = narrow;
      } else {
        FATHOM_CHECK(x.dtype == DType::i64, "not an integer tensor");
        std::memcpy(&value, row + i * 8, 8);
      }
    }
  });
  return out;
}

void store(const Tensor& out, const Array& values) {
  if (!out.defined()) return;
  FATHOM_CHECK(out.elements() == static_cast<std::int64_t>(values.values.size()), "a result does not fit its output");
  const std::int64_t n = row_length(out);
  for_rows(out, [&](std::byte* row, std::int64_t i) { write_row(out, row, i, values.values.data() + i * n); });
}

void store_row(const Tensor& out, std::int64_t i, const double* values) {
  const Tensor part = out.rows(i, 1);
  const std::int64_t n = row_length(part);
  for_rows(part, [&](std::byte* row, std::int64_t r) { write_row(part, row, r, values + r * n); });
}

void add_to(const Tensor& out, const Array& values) {
  if (!out.defined()) return;
  Array sum = load(out);
  FATHOM_CHECK(sum.values.size() == values.values.size(), "a gradient does not fit its tensor");
  for (std::size_t i = 0; i < sum.values.size(); ++i) sum.values[i] += values.values[i];
  store(out, sum);
}

void add_to_row(const Tensor& out, std::int64_t i, const double* values) {
  if (!out.defined()) return;
  Array sum = load_row(out, i);
  for (std::size_t n = 0; n < sum.values.size(); ++n) sum.values[n] += values[n];
  store_row(out, i, sum.values.data());
}

void store_ints(const Tensor& out, const std::vector<std::int64_t>& values) {
  FATHOM_CHECK(out.dtype == DType::i32 && out.elements() == static_cast<std::int64_t>(values.size()));
  const std::int64_t n = row_length(out);
  for_rows(out, [&](std::byte* row, std::int64_t r) {
    for (std::int64_t i = 0; i < n; ++i) {
      const auto value = static_cast<std::int32_t>(values[static_cast<std::size_t>(r * n + i)]);
      std::memcpy(row + i * 4, &value, 4);
    }
  });
}

double dot(const double* a, const double* b, std::int64_t count) {
  double sums[8] = {};  // eight partial sums, so that the loop is not one chain of additions
  std::int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    for (int lane = 0; lane < 8; ++lane) sums[lane] += a[i + lane] * b[i + lane];
  for (; i < count; ++i) sums[0] += a[i] * b[i];
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

void add_scaled(double factor, const double* x, double* y, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) y[i] += factor * x[i];
}

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }
double silu(double x) { return x * sigmoid(x); }

}  // namespace fathom::reference
