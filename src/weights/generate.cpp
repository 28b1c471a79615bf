#include "weights/generate.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <numeric>

#include "base/math.h"
#include "weights/conversion.h"

namespace fathom::weights {
using model::WeightClass;
using model::WeightEntry;
using tensor::WeightCode;
using tensor::WeightFormat;

namespace {

struct Statistics {
  double mean = 0, deviation = 1;
};

Statistics statistics_of(const WeightEntry& entry) {
  const std::string& name = entry.pattern;
  const bool bias = name.ends_with("bias");
  // A correction of the scores makes all experts about as busy; a wide one would send most tokens to a few of them.
  if (entry.cls == WeightClass::kRouter && entry.vector) return {0, 0.02};
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

constexpr double kFp8Unit =
    100;  // e4m3 codes per deviation: the largest of 65536 quantiles, 4.2, then comes to 420 of 448
constexpr double kFp4Unit = 2;  // e2m1 reaches 6: three deviations

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

constexpr double kInt8Unit = 30;   // 127 is 4.2 deviations
constexpr double kInt4Unit = 2.5;  // seven is 2.8 deviations

double unit_of(WeightCode code) {
  return code == WeightCode::kE2m1    ? kFp4Unit
         : code == WeightCode::kInt8  ? kInt8Unit
         : code == WeightCode::kUint4 ? kInt4Unit
                                      : kFp8Unit;
}
std::uint8_t nibble_of(WeightCode code, double value) {
  if (code == WeightCode::kE2m1) return nearest_e2m1(value * kFp4Unit);
  return static_cast<std::uint8_t>(8 + std::clamp<long>(std::lround(value * kInt4Unit), -8, 7));
}
std::uint8_t byte_of(WeightCode code, double value) {
  if (code == WeightCode::kE4m3) return f32_to_f8e4m3(static_cast<float>(value * kFp8Unit));
  return static_cast<std::uint8_t>(
      static_cast<std::int8_t>(std::clamp<long>(std::lround(value * kInt8Unit), -127, 127)));
}

// The byte of every sixteen-bit draw: one code of eight bits, or two of four that eight bits each decide.
std::vector<std::uint8_t> code_table(WeightCode code) {
  const bool halves = code == WeightCode::kE2m1 || code == WeightCode::kUint4;
  std::vector<std::uint8_t> table(65536), nibbles(256);
  for (std::size_t i = 0; i < nibbles.size(); ++i) nibbles[i] = nibble_of(code, quantile(i, nibbles.size()));
  for (std::size_t i = 0; i < table.size(); ++i)
    table[i] = halves ? static_cast<std::uint8_t>(nibbles[i & 255] | nibbles[i >> 8] << 4)
                      : byte_of(code, quantile(i, table.size()));
  return table;
}

const std::vector<std::uint8_t>& codes_of(WeightCode code) {
  static const std::array<std::vector<std::uint8_t>, 4> tables = {
      code_table(WeightCode::kE4m3), code_table(WeightCode::kE2m1), code_table(WeightCode::kInt8),
      code_table(WeightCode::kUint4)};
  return tables[static_cast<std::size_t>(code) - 1];
}

}  // namespace

WeightGenerator::WeightGenerator(const WeightEntry& entry, std::int64_t expert, WeightFormat format, std::uint64_t seed,
                                 std::int64_t experts)
    : format_(format),
      layout_(tensor::weight_layout(format)),
      block_(scale_block(format)),
      rows_(entry.full_rows),
      cols_(entry.full_cols),
      experts_(experts),
      values_(seed, entry.name(expert)),
      scale_stream_(~seed, entry.name(expert)) {
  const Statistics statistics = statistics_of(entry);
  mean_ = static_cast<float>(statistics.mean);
  deviation_ = static_cast<float>(statistics.deviation);
}

Bytes WeightGenerator::row_bytes() const { return tensor::weight_row_bytes(format_, cols_); }
Bytes WeightGenerator::scale_row_bytes() const {
  return tensor::weight_scale_count(format_, 1, cols_) * static_cast<Bytes>(dtype_bytes(layout_.scale));
}
std::int64_t WeightGenerator::scale_rows() const { return block_.rows == 0 ? 0 : ceil_div(rows_, block_.rows); }
std::int64_t WeightGenerator::scale_cols() const { return block_.rows == 0 ? 0 : ceil_div(cols_, block_.cols); }

void WeightGenerator::data(std::uint64_t first, std::span<std::byte> out) const {
  if (block_.rows > 0) return codes(first, out);
  if (format_ == WeightFormat::i64)
    return choices(first, {reinterpret_cast<std::int64_t*>(out.data()), out.size() / sizeof(std::int64_t)});
  const DType dtype = tensor::weight_dtype(format_);
  const auto size = static_cast<std::size_t>(dtype_bytes(dtype)), n = out.size() / size;
  std::array<float, 4096> chunk;
  for (std::size_t done = 0; done < n; done += chunk.size()) {
    const std::span part(chunk.data(), std::min(chunk.size(), n - done));
    values_.normals(first + done, mean_, deviation_, part);
    convert(DType::f32, std::as_bytes(part), dtype, out.subspan(done * size, part.size() * size));
  }
}

std::optional<tensor::RandomFill> WeightGenerator::fill(std::int64_t first_row, std::int64_t first_col,
                                                        std::int64_t rows, std::int64_t cols) const {
  if (format_ == WeightFormat::i64) return std::nullopt;
  tensor::RandomFill fill{.dtype = DType::u8,
                          .rows = rows,
                          .cols = cols,
                          .key = values_.key(),
                          .first = static_cast<std::uint64_t>(first_row * cols_ + first_col),
                          .pitch = static_cast<std::uint64_t>(cols_),
                          .mean = mean_,
                          .factor = RandomStream::factor(deviation_)};
  if (layout_.code == tensor::WeightCode::kPlain) {
    fill.dtype = tensor::weight_dtype(format_);
  } else {  // one draw a byte
    fill.cols = static_cast<std::int64_t>(tensor::weight_row_bytes(format_, cols));
    fill.pitch = row_bytes();
    fill.first = static_cast<std::uint64_t>(first_row) * row_bytes() +
                 static_cast<std::uint64_t>(first_col) * row_bytes() / static_cast<std::uint64_t>(cols_);
    fill.codes = codes_of(layout_.code);
  }
  return fill;
}

// One draw a byte.
void WeightGenerator::codes(std::uint64_t first, std::span<std::byte> out) const {
  const std::uint8_t* table = codes_of(layout_.code).data();
  const auto cols = static_cast<std::uint64_t>(cols_);
  const std::uint64_t first_byte = first / cols * row_bytes() + first % cols * row_bytes() / cols;
  std::array<std::uint16_t, 4096> draws;
  for (std::size_t done = 0; done < out.size(); done += draws.size()) {
    const std::span part(draws.data(), std::min(draws.size(), out.size() - done));
    auto* bytes = reinterpret_cast<std::uint8_t*>(out.data()) + done;
    values_.bits16(first_byte + done, part);
    for (std::size_t i = 0; i < part.size(); ++i) bytes[i] = table[part[i]];
  }
}

// Wide scales vary by a fifth; powers of two are drawn from the two around the wanted one so that the variance comes
// out.
void WeightGenerator::scales(std::uint64_t first, std::span<std::byte> out) const {
  const double wanted = static_cast<double>(deviation_) / unit_of(layout_.code);
  std::array<std::uint16_t, 1024> draws;
  const auto size = static_cast<std::size_t>(dtype_bytes(layout_.scale));
  const std::size_t n = out.size() / size;
  int exponent = 0;
  const double ratio = 2 * std::frexp(wanted, &exponent);  // wanted = ratio · 2^(exponent - 1), 1 <= ratio < 2
  const double upper = (ratio * ratio - 1) / 3 * 65536;
  for (std::size_t done = 0; done < n; done += draws.size()) {
    const std::span part(draws.data(), std::min(draws.size(), n - done));
    scale_stream_.bits16(first + done, part);
    for (std::size_t i = 0; i < part.size(); ++i) {
      std::byte* at = out.data() + (done + i) * size;
      const auto wide = static_cast<float>(wanted * (0.8 + 0.4 / 65536 * part[i]));
      if (layout_.scale == DType::f32)
        std::memcpy(at, &wide, sizeof wide);
      else if (layout_.scale == DType::e8m0)
        *at = static_cast<std::byte>(std::clamp(126 + exponent + (part[i] < upper ? 1 : 0), 1, 254));
      else
        convert(DType::f32, std::as_bytes(std::span(&wide, 1)), layout_.scale, {at, size});
    }
  }
}

// Seven, eight and nine, alike likely: codes are drawn around eight.
void WeightGenerator::zeros(std::uint64_t first, std::span<std::byte> out) const {
  std::array<std::uint16_t, 8> draws;
  for (std::size_t i = 0; i < out.size() / 4; ++i) {
    scale_stream_.bits16((std::uint64_t{1} << 40) + (first + i) * 8, draws);
    std::uint32_t word = 0;
    for (std::size_t j = 0; j < 8; ++j) word |= (7u + draws[j] % 3u) << (4 * j);
    std::memcpy(out.data() + i * 4, &word, 4);
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
