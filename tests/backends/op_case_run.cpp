#include "backends/op_case_run.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <numbers>

#include "backends/held.h"

namespace fathom::test {
namespace {
using tensor::Shape;
using tensor::Tensor;
using tensor::Weight;
using tensor::WeightFormat;

constexpr std::int64_t kGuardBytes = 256;
constexpr std::byte kGuard{0xa5};

/// Of a cache in INT8: scales behind each row, and room behind those where there are gaps.
std::array<std::int64_t, 4> int8_strides_of(const Shape& shape, Layout layout) {
  const std::int64_t n = shape[shape.rank - 1], heads = shape.rank == 3 ? shape[1] : 1;
  const std::int64_t head = layout == Layout::kDense ? n : n + 3, gap = layout == Layout::kDense ? 0 : 20;
  const std::int64_t row = tensor::int8_row_bytes(1, (heads - 1) * head + n + 4 * (heads - 1)) + gap;
  if (shape.rank == 2) return {row, 1};
  return {row, head, 1};
}

/// Strides with gaps after the rows of the two outermost dimensions.
std::array<std::int64_t, 4> strides_of(DType dtype, const Shape& shape, Layout layout) {
  if (dtype == DType::i8) return int8_strides_of(shape, layout);
  std::array<std::int64_t, 4> strides{};
  std::int64_t step = 1;
  for (int i = shape.rank - 1; i >= 0; --i) {
    strides[static_cast<std::size_t>(i)] = step;
    step *= shape[i];
    if (layout != Layout::kDense && (i == 1 || i == 2)) step += i == 1 ? 7 : 3;
  }
  return strides;
}

/// Elements from the first to one past the last.
std::int64_t extent_of(const Tensor& x) {
  if (x.elements() == 0) return 0;
  std::int64_t last = 0;
  if (x.dtype == DType::i8) return x.shape[0] * x.strides[0];
  for (int i = 0; i < x.shape.rank; ++i) last += (x.shape[i] - 1) * x.strides[static_cast<std::size_t>(i)];
  return last + 1;
}
}  // namespace

std::uint64_t Random::next() {
  std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}
double Random::uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }
// The sum of four sixteen-bit draws, scaled to variance one: near enough to a bell, and the cases draw most of a
// test's time.
double Random::normal() {
  const std::uint64_t bits = next();
  std::int64_t sum = -2 * 0xffff;
  for (int i = 0; i < 64; i += 16) sum += static_cast<std::int64_t>(bits >> i & 0xffffu);
  return static_cast<double>(sum) * (std::numbers::sqrt3 / 65536.0);
}

Fill normal(double scale, double mean) {
  return [=](Random& random, std::int64_t) { return mean + scale * random.normal(); };
}
Fill integers(std::int64_t largest) {
  return [=](Random& random, std::int64_t) { return static_cast<double>(random.below(2 * largest + 1) - largest); };
}
Fill constant(double value) {
  return [=](Random&, std::int64_t) { return value; };
}
Fill listed(std::vector<double> values) {
  return [values = std::move(values)](Random&, std::int64_t i) {
    return values[static_cast<std::size_t>(i) % values.size()];
  };
}
Fill with(Fill base, std::vector<std::pair<std::int64_t, double>> replaced) {
  return [base = std::move(base), replaced = std::move(replaced)](Random& random, std::int64_t i) {
    const double value = base(random, i);
    for (const auto& [at, other] : replaced)
      if (at == i) return other;
    return value;
  };
}

void CaseRun::Free::operator()(std::byte* memory) const {
  if (!theirs) std::free(memory);
}

std::unique_ptr<std::byte, CaseRun::Free> CaseRun::allocate(std::size_t bytes) {
  if (memory_ != nullptr) return {memory_->take(bytes), Free{.theirs = true}};
  std::unique_ptr<std::byte, Free> memory(static_cast<std::byte*>(std::aligned_alloc(64, bytes)), Free{});
  FATHOM_CHECK(memory != nullptr);
  return memory;
}

Tensor CaseRun::make(const std::string& name, DType dtype, Shape shape, const Fill& fill, Layout layout) {
  Tensor x{.data = nullptr, .dtype = dtype, .shape = shape, .strides = strides_of(dtype, shape, layout), .root = 0};
  const std::int64_t size = dtype_bytes(dtype), least = dtype == DType::i8 ? 4 : size,
                     offset = kGuardBytes + (layout == Layout::kMisaligned ? least : 0);
  const auto total = static_cast<std::size_t>((offset + extent_of(x) * size + kGuardBytes + 63) / 64 * 64);
  Block block;
  block.memory = allocate(total);
  // Inputs are surrounded by NaN, outputs by a pattern that no result has.
  std::memset(block.memory.get(), name.empty() ? 0xff : static_cast<int>(kGuard), total);
  x.data = block.memory.get() + offset;
  block.writable.assign(total, false);
  const auto may_change = [&](const void* at, std::int64_t bytes) {
    if (name.empty()) return;
    std::fill_n(block.writable.begin() + (static_cast<const std::byte*>(at) - block.memory.get()), bytes, true);
  };
  std::vector<double> rows;
  for (std::int64_t i = 0; i < x.elements(); ++i) {
    std::byte* at = element_address(x, i);
    may_change(at, size);
    if (dtype == DType::i8)
      rows.push_back(fill(random, i)), may_change(scale_of_element(x, i), 4);
    else
      put_element(at, dtype, fill(random, i));
  }
  if (dtype == DType::i8) put_int8_rows(x, rows);
  block.before.assign(block.memory.get(), block.memory.get() + total);
  block.name = name;
  block.tensor = x;
  blocks_.push_back(std::move(block));
  return x;
}

Tensor CaseRun::input(DType dtype, Shape shape, const Fill& fill, Layout layout) {
  return make("", dtype, shape, fill, layout);
}

Tensor CaseRun::ints(DType dtype, Shape shape, const std::vector<std::int64_t>& values, Layout layout) {
  FATHOM_CHECK(shape.elements() == static_cast<std::int64_t>(values.size()));
  return make(
      "", dtype, shape,
      [&](Random&, std::int64_t i) { return static_cast<double>(values[static_cast<std::size_t>(i)]); }, layout);
}

Tensor CaseRun::output(const std::string& name, DType dtype, Shape shape, Layout layout) {
  const double unwritten = dtype_is_float(dtype) ? std::numeric_limits<double>::quiet_NaN() : -123456.0;
  return make(name, dtype, shape, constant(unwritten), layout);
}

Tensor CaseRun::between(Shape shape) {
  const Tensor made = output("what lies between", shape);
  blocks_.back().compared = false;
  return made;
}

Tensor CaseRun::in_place(const std::string& name, DType dtype, Shape shape, const Fill& fill, Layout layout) {
  return make(name, dtype, shape, fill, layout);
}

std::byte* CaseRun::bytes(std::vector<std::uint8_t> values) {
  Block block;
  const std::size_t total = (values.size() + 2 * kGuardBytes + 63) / 64 * 64;
  block.memory = allocate(total);
  std::memset(block.memory.get(), 0xff, total);
  if (!values.empty()) std::memcpy(block.memory.get() + kGuardBytes, values.data(), values.size());
  block.writable.assign(total, false);
  block.before.assign(block.memory.get(), block.memory.get() + total);
  std::byte* data = block.memory.get() + kGuardBytes;
  blocks_.push_back(std::move(block));
  return data;
}

Weight CaseRun::weight(WeightFormat format, std::int64_t rows, std::int64_t cols, const Fill& fill) {
  const Tensor x = make("", tensor::weight_dtype(format), {rows, cols}, fill, Layout::kDense);
  return {.format = format, .rows = rows, .cols = cols, .data = x.data};
}

Weight CaseRun::weight(WeightFormat format, std::int64_t rows, std::int64_t cols, double scale) {
  using tensor::WeightCode;
  const tensor::WeightLayout layout = tensor::weight_layout(format);
  if (layout.code == WeightCode::kPlain) return weight(format, rows, cols, normal(scale));
  const bool four_bits = layout.code == WeightCode::kE2m1 || layout.code == WeightCode::kUint4;
  std::vector<std::uint8_t> data, scales;
  const std::uint64_t data_bytes = tensor::weight_row_bytes(format, cols) * static_cast<std::uint64_t>(rows);
  while (data.size() < data_bytes) {
    if (four_bits)
      data.push_back(static_cast<std::uint8_t>(random.next()));
    else if (layout.code == WeightCode::kInt8)
      data.push_back(static_cast<std::uint8_t>(random.below(255) - 127));
    else
      data.push_back(f32_to_f8e4m3(static_cast<float>(8.0 * random.normal())));
  }
  // Root mean square of an element before its scale.
  const double element_size = layout.code == WeightCode::kE2m1    ? 2.8
                              : layout.code == WeightCode::kUint4 ? 4.6
                              : layout.code == WeightCode::kInt8  ? 73
                                                                  : 8.0;
  const auto append = [&](const auto& value) {
    const auto* raw = reinterpret_cast<const std::uint8_t*>(&value);
    scales.insert(scales.end(), raw, raw + sizeof value);
  };
  for (std::uint64_t i = 0; i < tensor::weight_scale_count(format, rows, cols); ++i) {
    const double wanted = scale / element_size * std::exp2(random.uniform() * 2 - 1);
    if (layout.scale == DType::f32)
      append(static_cast<float>(wanted));
    else if (layout.scale == DType::bf16)
      append(f32_to_bf16(static_cast<float>(wanted)));
    else if (layout.scale == DType::f16)
      append(f32_to_f16(static_cast<float>(wanted)));
    else
      scales.push_back(static_cast<std::uint8_t>(127 + std::lround(std::log2(wanted))));
  }
  if (layout.zeros) scales.resize(static_cast<std::size_t>(tensor::zeros_offset(format, rows, cols)), 0xff);
  while (scales.size() < tensor::weight_scale_bytes(format, rows, cols))
    scales.push_back(static_cast<std::uint8_t>(random.next()));
  return {
      .format = format, .rows = rows, .cols = cols, .data = bytes(std::move(data)), .scales = bytes(std::move(scales))};
}

Weight CaseRun::whole_weight(WeightFormat format, std::int64_t rows, std::int64_t cols, std::int64_t largest,
                             float scale) {
  std::vector<std::uint8_t> data, scales;
  for (std::int64_t i = 0; i < rows * cols; ++i)
    data.push_back(f32_to_f8e4m3(static_cast<float>(random.below(2 * largest + 1) - largest)));
  const auto* raw = reinterpret_cast<const std::uint8_t*>(&scale);
  for (std::uint64_t i = 0; i < tensor::weight_scale_count(format, rows, cols); ++i)
    scales.insert(scales.end(), raw, raw + sizeof scale);
  return {
      .format = format, .rows = rows, .cols = cols, .data = bytes(std::move(data)), .scales = bytes(std::move(scales))};
}

const tensor::Batch& CaseRun::batch(std::vector<tensor::Sequence> sequences) {
  HeldBatch& held = batches_.emplace_back();
  held.sequences = std::move(sequences);
  std::vector<std::int64_t> table, ids, positions, outputs;
  for (tensor::Sequence& sequence : held.sequences) {
    sequence.first_token = static_cast<std::int32_t>(ids.size());
    for (const std::int32_t value : {sequence.slot, sequence.first_token, sequence.tokens, sequence.past})
      table.push_back(value);
    for (std::int32_t i = 0; i < sequence.tokens; ++i) {
      ids.push_back(static_cast<std::int64_t>(ids.size()));
      positions.push_back(sequence.past + i);
    }
    outputs.push_back(static_cast<std::int64_t>(ids.size()) - 1);
  }
  const auto count = static_cast<std::int64_t>(held.sequences.size()), tokens = static_cast<std::int64_t>(ids.size());
  held.batch.tokens = tokens;
  held.batch.sequences = held.sequences;
  held.batch.sequence_table = ints(DType::i32, {count, 4}, table);
  held.batch.ids = ints(DType::i32, {tokens}, ids);
  held.batch.positions = ints(DType::i32, {tokens}, positions);
  held.batch.output_rows = ints(DType::i32, {count}, outputs);
  return held.batch;
}

CaseResult CaseRun::finish() {
  CaseResult result;
  if (memory_ != nullptr) {
    if (const Status status = memory_->settle(); !status) {
      result.faults.push_back(error_text(status.error()));
      return result;
    }
  }
  for (const Block& block : blocks_) {
    const bool untouched = std::memcmp(block.memory.get(), block.before.data(), block.before.size()) == 0;
    for (std::size_t i = 0; i < block.before.size() && !untouched; ++i) {
      if (block.writable[i] || block.memory.get()[i] == block.before[i]) continue;
      const auto at = static_cast<std::int64_t>(i) -
                      (block.tensor.data == nullptr ? kGuardBytes : block.tensor.data - block.memory.get());
      result.faults.push_back(fmt::format("a stray write {} bytes after the start of {}", at,
                                          block.name.empty() ? "an input " + describe(block.tensor)
                                                             : "'" + block.name + "' " + describe(block.tensor)));
      break;
    }
    if (block.name.empty() || !block.compared) continue;
    result.outputs.push_back({.name = block.name,
                              .shape = block.tensor.shape,
                              .values = values_of(block.tensor),
                              .integers = !dtype_is_float(block.tensor.dtype) && block.tensor.dtype != DType::i8});
  }
  for (const auto& [a, b] : alike_) {
    const std::vector<double> left = values_of(a), right = values_of(b);
    const auto bits = [](double value) { return std::bit_cast<std::uint64_t>(value); };
    for (std::size_t i = 0; i < left.size(); ++i) {
      if (bits(left[i]) == bits(right[i])) continue;
      result.faults.push_back(fmt::format("{} and {} differ at element {}: {:.9g} and {:.9g}", describe(a), describe(b),
                                          i, left[i], right[i]));
      break;
    }
  }
  return result;
}

}  // namespace fathom::test
