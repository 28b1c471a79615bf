#include "weights/generate.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "weights/conversion.h"

namespace fathom::weights {
using model::WeightClass;
using model::WeightEntry;
using tensor::WeightFormat;

namespace {

struct Statistics { double mean = 0, deviation = 1; };

Statistics statistics_of(const WeightEntry& entry) {
  const std::string& name = entry.pattern;
  const bool bias = name.ends_with("bias");
  if (entry.cls == WeightClass::kRouter && entry.vector) return {0, 0.2};
  if (bias) return {0, 0.1};
  if (entry.vector) return name.find("norm") != std::string::npos ? Statistics{1, 0.1} : Statistics{0, 0.3};
  if (entry.cls == WeightClass::kEmbedding) return {0, 1};
  return {0, (entry.cls == WeightClass::kHead ? 2.0 : 1.2) / std::sqrt(static_cast<double>(entry.full_cols))};
}

// The value below which a share p of a bell lies, for 0 < p < 1/2: Abramowitz & Stegun 26.2.23, good to 4.5e-4.
double lower_quantile(double p) {
  const double t = std::sqrt(-2 * std::log(p));
  return -(t - (2.515517 + t * (0.802853 + t * 0.010328)) / (1 + t * (1.432788 + t * (0.189269 + t * 0.001308))));
}

constexpr double kFp8Unit = 100;  // e4m3 codes per deviation: the largest of 65536 quantiles, 4.2, then comes to 420 of 448
constexpr double kFp4Unit = 2;    // e2m1 reaches 6: three deviations

std::uint8_t nearest_e2m1(double value) {
  constexpr std::array<double, 8> kValues = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  const double magnitude = std::fabs(value);
  std::size_t best = 0;
  for (std::size_t i = 1; i < kValues.size(); ++i)
    if (std::fabs(kValues[i] - magnitude) < std::fabs(kValues[best] - magnitude)) best = i;
  return static_cast<std::uint8_t>(best | (value < 0 ? 8u : 0u));
}

// The middle of part i of n that are all alike likely.
double quantile(std::size_t i, std::size_t n) {
  const double low = lower_quantile((static_cast<double>(std::min(i, n - 1 - i)) + 0.5) / static_cast<double>(n));
  return i < n / 2 ? low : -low;
}

// The byte of every sixteen-bit draw: one e4m3 code, or two e2m1 codes that eight bits each decide.
std::vector<std::uint8_t> code_table(bool fp4) {
  std::vector<std::uint8_t> table(65536), nibbles(256);
  for (std::size_t i = 0; i < nibbles.size(); ++i) nibbles[i] = nearest_e2m1(quantile(i, nibbles.size()) * kFp4Unit);
  for (std::size_t i = 0; i < table.size(); ++i)
    table[i] = fp4 ? static_cast<std::uint8_t>(nibbles[i & 255] | nibbles[i >> 8] << 4) : f32_to_f8e4m3(static_cast<float>(quantile(i, table.size()) * kFp8Unit));
  return table;
}

const std::vector<std::uint8_t>& codes_of(bool fp4) {
  static const std::vector<std::uint8_t> fp8_codes = code_table(false), fp4_codes = code_table(true);
  return fp4 ? fp4_codes : fp8_codes;
}

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

}  // namespace

WeightGenerator::WeightGenerator(const WeightEntry& entry, std::int64_t expert, WeightFormat format, std::uint64_t seed, std::int64_t experts)
    : format_(format), block_(scale_block(format)), rows_(entry.full_rows), cols_(entry.full_cols), experts_(experts),
      values_(seed, entry.name(expert)), scale_stream_(~seed, entry.name(expert)) {
  const Statistics statistics = statistics_of(entry);
  mean_ = static_cast<float>(statistics.mean);
  deviation_ = static_cast<float>(statistics.deviation);
}

Bytes WeightGenerator::row_bytes() const { return tensor::weight_bytes(format_, 1, cols_) - scale_bytes(format_, 1, cols_); }
Bytes WeightGenerator::scale_row_bytes() const { return scale_bytes(format_, 1, cols_); }
std::int64_t WeightGenerator::scale_rows() const { return block_.rows == 0 ? 0 : ceil_div(rows_, block_.rows); }
std::int64_t WeightGenerator::scale_cols() const { return block_.rows == 0 ? 0 : ceil_div(cols_, block_.cols); }

void WeightGenerator::data(std::uint64_t first, std::span<std::byte> out) const {
  if (block_.rows > 0) return codes(first, out);
  if (format_ == WeightFormat::i64) return choices(first, {reinterpret_cast<std::int64_t*>(out.data()), out.size() / sizeof(std::int64_t)});
  const DType dtype = tensor::weight_dtype(format_);
  const auto size = static_cast<std::size_t>(dtype_bytes(dtype)), n = out.size() / size;
  std::array<float, 4096> chunk;
  for (std::size_t done = 0; done < n; done += chunk.size()) {
    const std::span part(chunk.data(), std::min(chunk.size(), n - done));
    values_.normals(first + done, mean_, deviation_, part);
    convert(DType::f32, std::as_bytes(part), dtype, out.subspan(done * size, part.size() * size));
  }
}

std::optional<tensor::RandomFill> WeightGenerator::fill(std::int64_t first_row, std::int64_t first_col, std::int64_t rows, std::int64_t cols) const {
  if (format_ == WeightFormat::i64) return std::nullopt;
  const std::int64_t packed = block_.rows > 0 && format_ == WeightFormat::mxfp4 ? 2 : 1;
  tensor::RandomFill fill{.dtype = block_.rows > 0 ? DType::u8 : tensor::weight_dtype(format_), .rows = rows, .cols = cols / packed, .key = values_.key(),
                          .first = static_cast<std::uint64_t>((first_row * cols_ + first_col) / packed), .pitch = static_cast<std::uint64_t>(cols_ / packed), .mean = mean_, .factor = RandomStream::factor(deviation_)};
  if (block_.rows > 0) fill.codes = codes_of(format_ == WeightFormat::mxfp4);
  return fill;
}

// One draw a byte.
void WeightGenerator::codes(std::uint64_t first, std::span<std::byte> out) const {
  const bool fp4 = format_ == WeightFormat::mxfp4;
  const std::uint8_t* table = codes_of(fp4).data();
  std::array<std::uint16_t, 4096> draws;
  for (std::size_t done = 0; done < out.size(); done += draws.size()) {
    const std::span part(draws.data(), std::min(draws.size(), out.size() - done));
    auto* bytes = reinterpret_cast<std::uint8_t*>(out.data()) + done;
    values_.bits16((fp4 ? first / 2 : first) + done, part);
    for (std::size_t i = 0; i < part.size(); ++i) bytes[i] = table[part[i]];
  }
}

// f32 scales vary by a fifth; powers of two are drawn from the two around the wanted one so that the variance comes out.
void WeightGenerator::scales(std::uint64_t first, std::span<std::byte> out) const {
  const double wanted = static_cast<double>(deviation_) / (format_ == WeightFormat::mxfp4 ? kFp4Unit : kFp8Unit);
  std::array<std::uint16_t, 1024> draws;
  const bool wide = format_ == WeightFormat::fp8_block128;
  const std::size_t n = out.size() / (wide ? sizeof(float) : 1);
  int exponent = 0;
  const double ratio = 2 * std::frexp(wanted, &exponent);  // wanted = ratio · 2^(exponent - 1), 1 <= ratio < 2
  const double upper = (ratio * ratio - 1) / 3 * 65536;
  for (std::size_t done = 0; done < n; done += draws.size()) {
    const std::span part(draws.data(), std::min(draws.size(), n - done));
    scale_stream_.bits16(first + done, part);
    for (std::size_t i = 0; i < part.size(); ++i) {
      if (wide) reinterpret_cast<float*>(out.data())[done + i] = static_cast<float>(wanted * (0.8 + 0.4 / 65536 * part[i]));
      else out[done + i] = static_cast<std::byte>(std::clamp(126 + exponent + (part[i] < upper ? 1 : 0), 1, 254));
    }
  }
}

// Row r of a hash table: cols_ different experts, a draw without replacement.
void WeightGenerator::choices(std::uint64_t first, std::span<std::int64_t> out) const {
  const auto width = static_cast<std::uint64_t>(cols_), experts = static_cast<std::uint64_t>(std::max(experts_, cols_));
  std::vector<std::int64_t> deck(experts), row(width);
  std::vector<std::uint16_t> draws(2 * width);
  for (std::uint64_t at = first; at < first + out.size();) {
    const std::uint64_t r = at / width;
    std::iota(deck.begin(), deck.end(), 0);
    values_.bits16(r * 2 * width, draws);
    for (std::uint64_t c = 0; c < width; ++c) {
      const std::uint64_t draw = static_cast<std::uint64_t>(draws[2 * c]) << 16 | draws[2 * c + 1];
      std::swap(deck[c], deck[c + draw % (experts - c)]);
      row[c] = deck[c];
    }
    for (std::uint64_t c = at % width; c < width && at < first + out.size(); ++c, ++at) out[at - first] = row[c];
  }
}

std::int64_t experts_beside(const model::WeightTable& table, const WeightEntry& entry) {
  for (const WeightEntry& other : table.entries())
    if (other.cls == WeightClass::kRouter && !other.vector && other.layer == entry.layer) return other.full_rows;
  return entry.full_cols;
}

}  // namespace fathom::weights
