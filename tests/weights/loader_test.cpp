#include "weights/loader.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "support.h"
#include "weights/conversion.h"
#include "weights/resolve.h"

namespace fathom::weights {
namespace {
using namespace test;  // NOLINT
using model::WeightClass;
using model::WeightEntry;
using model::WeightTable;
using tensor::Weight;
using tensor::WeightFormat;

struct Stored {
  TensorSpec spec;
  std::string data;
};

std::string random_bytes(std::size_t n, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::string out(n, '\0');
  for (char& c : out) c = static_cast<char>(random());
  return out;
}

// Random numbers between -2 and 2 in a plain type.
Stored plain(std::string name, DType dtype, std::vector<std::int64_t> shape, std::uint32_t seed) {
  Stored out{{std::move(name), dtype, std::move(shape)}, {}};
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> even(-2, 2);
  std::vector<float> values(out.spec.bytes() / static_cast<Bytes>(dtype_bytes(dtype)));
  for (float& x : values) x = even(random);
  out.data.resize(out.spec.bytes());
  convert(DType::f32, std::as_bytes(std::span(values)), dtype, std::as_writable_bytes(std::span(out.data)));
  return out;
}

// e4m3 or packed e2m1 codes without NaN, and scales of a few powers of two.
Stored codes(std::string name, DType dtype, std::vector<std::int64_t> shape, std::uint32_t seed) {
  Stored out{{std::move(name), dtype, std::move(shape)}, {}};
  out.data = random_bytes(out.spec.bytes(), seed);
  if (dtype == DType::f8e4m3)
    for (char& c : out.data)
      if ((c & 0x7f) == 0x7f) c = 1;
  if (dtype == DType::e8m0)
    for (char& c : out.data) c = static_cast<char>(120 + (c & 7));
  return out;
}

void save(const Path& folder, const std::vector<Stored>& tensors, WriteOptions options = {}) {
  std::vector<TensorSpec> specs;
  std::vector<std::string> data;
  for (const Stored& tensor : tensors) {
    specs.push_back(tensor.spec);
    data.push_back(tensor.data);
  }
  write_checkpoint(folder, specs, data, options);
}

Result<LoadedWeights> load(const WeightTable& table, const Path& folder, const LoadOptions& options = {}) {
  static MemoryBackend backend;
  FATHOM_TRY(const Checkpoint checkpoint, Checkpoint::open(folder));
  return load_weights(table, table, checkpoint, backend, options);
}

// All elements of a weight as floats, by the plain rules of base/dtype.h.
std::vector<float> values_of(const Weight& w) {
  std::vector<float> out;
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(w.data);
  const auto* scales = reinterpret_cast<const std::uint8_t*>(w.scales);
  const ScaleBlock block = scale_block(w.format);
  const std::int64_t across = block.cols > 0 ? (w.cols + block.cols - 1) / block.cols : 0;
  for (std::int64_t r = 0; r < w.rows; ++r) {
    for (std::int64_t c = 0; c < w.cols; ++c) {
      const std::int64_t i = r * w.cols + c;
      float scale = 1;
      if (block.rows > 0) {
        const std::int64_t s = r / block.rows * across + c / block.cols;
        if (w.format == WeightFormat::fp8_block128)
          std::memcpy(&scale, scales + 4 * s, 4);
        else
          scale = e8m0_to_f32(scales[s]);
      }
      static constexpr float kFp4[16] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};
      std::uint16_t half = 0;
      double wide = 0;
      float value = 0;
      switch (w.format) {
        case WeightFormat::f64:
          std::memcpy(&wide, bytes + 8 * i, 8);
          value = static_cast<float>(wide);
          break;
        case WeightFormat::f32:
          std::memcpy(&value, bytes + 4 * i, 4);
          break;
        case WeightFormat::f16:
          std::memcpy(&half, bytes + 2 * i, 2);
          value = f16_to_f32(half);
          break;
        case WeightFormat::bf16:
          std::memcpy(&half, bytes + 2 * i, 2);
          value = bf16_to_f32(half);
          break;
        case WeightFormat::mxfp4:
          value = kFp4[bytes[i / 2] >> (i % 2 * 4) & 15] * scale;
          break;
        default:
          value = f8e4m3_to_f32(bytes[i]) * scale;
      }
      out.push_back(value);
    }
  }
  return out;
}

float rounded(float value, DType dtype) {
  return dtype == DType::bf16  ? bf16_to_f32(f32_to_bf16(value))
         : dtype == DType::f16 ? f16_to_f32(f32_to_f16(value))
                               : value;
}

// ---------------------------------------------------------------- plans

TEST(Plan, CountsTensorsToTheByteAndAlignsTheArena) {
  WeightTable table;
  table.add(matrix("a", 3, 5, WeightFormat::bf16));
  table.add(vector("n", 7, WeightFormat::f32));
  WeightEntry experts = matrix("e.{e}", 4, 32, WeightFormat::mxfp4, WeightClass::kRoutedExpert);
  experts.experts = 3;
  experts.per_expert = true;
  table.add(experts);
  WeightEntry tied = matrix("head", 3, 5, WeightFormat::bf16, WeightClass::kHead);
  tied.tied_to = 0;
  table.add(tied);
  WeightEntry draft = matrix("mtp.x", 9, 9, WeightFormat::bf16, WeightClass::kMtp);
  draft.part = model::WeightPart::kMtp;
  table.add(draft);
  const auto plan = plan_weights(table, {});
  ASSERT_TRUE(plan);
  EXPECT_EQ(plan->tensor_bytes, 30u + 28u + 3u * (64u + 4u));
  EXPECT_EQ(plan->arena_bytes, 64u + 64u + 3u * (64u + 64u));
  EXPECT_EQ(plan->by_class[static_cast<std::size_t>(WeightClass::kRoutedExpert)], 204u);
  EXPECT_EQ(plan->tensors.back().data, kNotInArena);
  EXPECT_EQ(plan_weights(table, {.main_only = false})->tensor_bytes, plan->tensor_bytes + 162);
  EXPECT_EQ(plan_weights(table, {.dtype = DType::f32})->tensor_bytes, 60u + 28u + 3u * 512u);
}

TEST(Plan, SixteenBitsSpareWhatMustStayExact) {
  WeightTable table;
  table.add(matrix("embed", 4, 4, WeightFormat::bf16, WeightClass::kEmbedding));
  table.add(matrix("hc", 4, 4, WeightFormat::f32, WeightClass::kHyper));
  table.add(vector("gate.bias", 4, WeightFormat::f32, WeightClass::kRouter));
  table.add(matrix("ape", 4, 4, WeightFormat::f32, WeightClass::kCompressor));
  table.add(matrix("table", 4, 4, WeightFormat::i64, WeightClass::kHashTable));
  const auto plan = plan_weights(table, {.dtype = DType::f16});
  ASSERT_TRUE(plan);
  EXPECT_EQ(plan->formats, (std::vector{WeightFormat::f16, WeightFormat::f32, WeightFormat::f32, WeightFormat::f32,
                                        WeightFormat::i64}));
}

TEST(Plan, PolicyNames) {
  EXPECT_FALSE(parse_storage_policy("native")->dtype);
  EXPECT_EQ(parse_storage_policy("bf16")->dtype, DType::bf16);
  EXPECT_EQ(outcome(parse_storage_policy("int4")), "weights.unknown_dtype");
  EXPECT_EQ(outcome(parse_storage_policy("i64")), "weights.unknown_dtype");
}

// ---------------------------------------------------------------- loading

TEST(Load, PlannedBytesAreAllocatedBytes) {
  const Folder folder;
  save(folder / "m", {plain("a", DType::bf16, {3, 5}, 1), plain("n", DType::f32, {7}, 2)});
  WeightTable table;
  table.add(matrix("a", 3, 5, WeightFormat::bf16));
  table.add(vector("n", 7, WeightFormat::f32));
  MemoryBackend backend;
  const auto checkpoint = Checkpoint::open(folder / "m");
  const auto loaded = load_weights(table, table, *checkpoint, backend);
  ASSERT_TRUE(loaded) << error_text(loaded.error());
  EXPECT_EQ(backend.allocated, loaded->plan.arena_bytes);
  EXPECT_EQ(loaded->arena->bytes(), plan_weights(table, {})->arena_bytes);
  EXPECT_EQ(loaded->stats.bytes, loaded->plan.tensor_bytes);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(loaded->set[1].data) % 64, 0u);
}

RC_GTEST_PROP(Load, EveryPlainPairAndEveryWayOfReading, ()) {
  static const std::vector<DType> kTypes = {DType::f64, DType::f32, DType::f16, DType::bf16};
  const DType from = *rc::gen::elementOf(kTypes), to = *rc::gen::elementOf(kTypes);
  const auto rows = *rc::gen::inRange<std::int64_t>(1, 40), cols = *rc::gen::inRange<std::int64_t>(1, 40);
  const auto odd = *rc::gen::inRange<std::int64_t>(0, 9);  // shifts the next tensor to odd places
  const Folder folder;
  const Stored stored = plain("w", from, {rows, cols}, 7);
  save(folder / "m", {codes("pad", DType::i8, {odd}, 1), stored});
  WeightTable table;
  table.add(matrix("w", rows, cols, WeightFormat::bf16));
  LoadOptions options{.storage = {.dtype = to}, .check_finite = true, .allow_extra = true};
  options.read.io = *rc::gen::element(IoMode::kAuto, IoMode::kPread);
  options.read.direct = *rc::gen::element(DirectMode::kNever, DirectMode::kAlways);
  options.read.threads = *rc::gen::inRange(1, 4);
  const auto loaded = load(table, folder / "m", options);
  RC_ASSERT(outcome(loaded) == "ok");
  std::string expected(static_cast<std::size_t>(rows * cols * dtype_bytes(to)), '\0');
  convert(from, std::as_bytes(std::span(stored.data)), to, std::as_writable_bytes(std::span(expected)));
  RC_ASSERT(std::memcmp(loaded->set[0].data, expected.data(), expected.size()) == 0);
}

// One quantized layout, of a size that is no multiple of its blocks.
struct Layout {
  WeightFormat format;
  DType codes, scales;
  std::int64_t rows, cols;
  const char* ending;
};
const Layout kLayouts[] = {
    {WeightFormat::fp8_block128, DType::f8e4m3, DType::f32, 300, 260, ".weight_scale_inv"},
    {WeightFormat::fp8_block128_e8m0, DType::f8e4m3, DType::e8m0, 300, 260, ".scale"},
    {WeightFormat::fp8_block32_e8m0, DType::f8e4m3, DType::e8m0, 70, 100, ".scale"},
    {WeightFormat::fp8_row32_e8m0, DType::f8e4m3, DType::e8m0, 50, 256, ".scale"},
    {WeightFormat::mxfp4, DType::i8, DType::e8m0, 50, 96, ".scale"},
};

std::vector<Stored> quantized(const Layout& layout, const std::string& stem) {
  const ScaleBlock block = scale_block(layout.format);
  const std::vector<std::int64_t> scale_shape = {(layout.rows + block.rows - 1) / block.rows,
                                                 (layout.cols + block.cols - 1) / block.cols};
  const bool fp4 = layout.format == WeightFormat::mxfp4;
  Stored scales = layout.scales == DType::f32 ? plain(stem + layout.ending, DType::f32, scale_shape, 5)
                                              : codes(stem + layout.ending, DType::e8m0, scale_shape, 5);
  return {codes(stem + ".weight", layout.codes, {layout.rows, fp4 ? layout.cols / 2 : layout.cols}, 4), scales};
}

TEST(Load, QuantizedAsStoredAndDequantized) {
  for (const Layout& layout : kLayouts) {
    const Folder folder;
    save(folder / "m", quantized(layout, "x"));
    WeightTable table;
    table.add(matrix("x.weight", layout.rows, layout.cols, layout.format));
    const auto kept = load(table, folder / "m");
    ASSERT_TRUE(kept) << error_text(kept.error());
    EXPECT_EQ(kept->set[0].format, layout.format);
    const std::vector<float> exact = values_of(kept->set[0]);
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
      const auto wide = load(table, folder / "m", {.storage = {.dtype = dtype}, .check_finite = true});
      ASSERT_TRUE(wide) << error_text(wide.error());
      const std::vector<float> values = values_of(wide->set[0]);
      ASSERT_EQ(values.size(), exact.size());
      for (std::size_t i = 0; i < exact.size(); ++i)
        ASSERT_EQ(values[i], rounded(exact[i], dtype)) << tensor::weight_format_name(layout.format) << " element " << i;
    }
  }
}

// What compressed-tensors writes, decoded here by hand: int4 with zero points from words of eight columns and of eight
// rows.
TEST(Load, CompressedTensorsLayouts) {
  constexpr std::int64_t kRows = 24, kCols = 256;
  for (const auto& [format, scale_type] : {std::pair{WeightFormat::int4_group128_zero, DType::bf16},
                                           std::pair{WeightFormat::int4_group128_zero_f16, DType::f16}}) {
    const Folder folder;
    const Stored packed = codes("x.weight_packed", DType::i32, {kRows, kCols / 8}, 4),
                 zeros = codes("x.weight_zero_point", DType::i32, {kRows / 8, 2}, 6);
    const Stored scales = plain("x.weight_scale", scale_type, {kRows, 2}, 5),
                 shape = codes("x.weight_shape", DType::i64, {2}, 7);
    save(folder / "m", {packed, scales, zeros, shape});
    WeightTable table;
    table.add(matrix("x.weight", kRows, kCols, format));
    const auto word = [](const Stored& stored, std::int64_t i) {
      std::uint32_t value = 0;
      std::memcpy(&value, stored.data.data() + i * 4, 4);
      return value;
    };
    const auto value = [&](std::int64_t r, std::int64_t c) {
      std::uint16_t half = 0;
      std::memcpy(&half, scales.data.data() + (r * 2 + c / 128) * 2, 2);
      const int code = static_cast<int>(word(packed, r * kCols / 8 + c / 8) >> (c % 8 * 4) & 15u),
                zero = static_cast<int>(word(zeros, r / 8 * 2 + c / 128) >> (r % 8 * 4) & 15u);
      return static_cast<float>(code - zero) * (scale_type == DType::bf16 ? bf16_to_f32(half) : f16_to_f32(half));
    };
    const auto wide = load(table, folder / "m", {.storage = {.dtype = DType::f32}});
    ASSERT_TRUE(wide) << error_text(wide.error());
    const std::vector<float> values = values_of(wide->set[0]);
    for (std::int64_t i = 0; i < kRows * kCols; ++i)
      ASSERT_EQ(values[static_cast<std::size_t>(i)], value(i / kCols, i % kCols)) << i;
    // As stored, and a slice of rows and of columns: the same bytes.
    const auto kept = load(table, folder / "m");
    ASSERT_TRUE(kept) << error_text(kept.error());
    EXPECT_EQ(kept->plan.tensor_bytes, tensor::weight_bytes(format, kRows, kCols));
    EXPECT_EQ(std::memcmp(kept->set[0].data, packed.data.data(), packed.data.size()), 0);
    EXPECT_EQ(std::memcmp(kept->set[0].scales, scales.data.data(), scales.data.size()), 0);
    EXPECT_EQ(std::memcmp(kept->set[0].scales + tensor::zeros_offset(format, kRows, kCols), zeros.data.data(),
                          zeros.data.size()),
              0);
    WeightEntry part = table[0];
    part.rows = 8, part.first_row = 16, part.cols = 128, part.first_col = 128;
    WeightTable parts;
    parts.add(part);
    const auto slice = load(parts, folder / "m");
    ASSERT_TRUE(slice) << error_text(slice.error());
    EXPECT_EQ(std::memcmp(slice->set[0].data + 3 * 64, packed.data.data() + 19 * 128 + 64, 64), 0);
    EXPECT_EQ(std::memcmp(slice->set[0].scales + 3 * 2, scales.data.data() + (19 * 2 + 1) * 2, 2), 0);
    EXPECT_EQ(std::memcmp(slice->set[0].scales + tensor::zeros_offset(format, 8, 128),
                          zeros.data.data() + (2 * 2 + 1) * 4, 4),
              0);
    part.rows = 4;
    WeightTable cut;
    cut.add(part);
    EXPECT_EQ(outcome(load(cut, folder / "m")), "weights.cuts_block");
    WeightTable without;
    without.add(matrix(
        "x.weight", kRows, kCols,
        format == WeightFormat::int4_group128_zero ? WeightFormat::int4_group128 : WeightFormat::int4_group128_f16));
    EXPECT_EQ(outcome(load(without, folder / "m")), "weights.zero_points");
  }
}

// One scale a row in three shapes and types, or one for all.
TEST(Load, ScalesOfRows) {
  for (const WeightFormat format : {WeightFormat::fp8_row, WeightFormat::int8_row})
    for (const auto& shape : {std::vector<std::int64_t>{5, 1}, {5}, {1}, {}})
      for (const DType type : {DType::f32, DType::bf16, DType::f16}) {
        const Folder folder;
        const Stored data = codes("x.weight", format == WeightFormat::fp8_row ? DType::f8e4m3 : DType::i8, {5, 12}, 4),
                     scales = plain("x.weight_scale", type, shape, 5);
        save(folder / "m", {data, scales});
        WeightTable table;
        table.add(matrix("x.weight", 5, 12, format));
        std::vector<float> wanted(shape.size() < 2 && (shape.empty() || shape[0] == 1) ? 1 : 5);
        convert(type, std::as_bytes(std::span(scales.data)), DType::f32, std::as_writable_bytes(std::span(wanted)));
        wanted.resize(5, wanted[0]);
        const auto kept = load(table, folder / "m");
        ASSERT_TRUE(kept) << error_text(kept.error());
        EXPECT_EQ(std::memcmp(kept->set[0].scales, wanted.data(), 20), 0);
        const auto wide = load(table, folder / "m", {.storage = {.dtype = DType::f32}});
        ASSERT_TRUE(wide) << error_text(wide.error());
        const std::vector<float> values = values_of(wide->set[0]);
        for (std::size_t i = 0; i < 60; ++i) {
          const auto code = static_cast<std::uint8_t>(data.data[i]);
          ASSERT_EQ(values[i], (format == WeightFormat::fp8_row ? f8e4m3_to_f32(code)
                                                                : static_cast<float>(static_cast<std::int8_t>(code))) *
                                   wanted[i / 12]);
        }
      }
}

TEST(Load, SlicesEqualTheWhole) {
  for (const Layout& layout : kLayouts) {
    const Folder folder;
    save(folder / "m", quantized(layout, "x"));
    WeightTable whole;
    whole.add(matrix("x.weight", layout.rows, layout.cols, layout.format));
    const std::vector<float> all = values_of(load(whole, folder / "m")->set[0]);
    const ScaleBlock block = scale_block(layout.format);
    for (const bool native : {true, false}) {
      WeightEntry part = whole[0];
      part.first_row = native ? block.rows : 1;
      part.rows = layout.rows - part.first_row;
      part.first_col = native ? block.cols : 2;
      part.cols = layout.cols - part.first_col - (native ? 0 : 2);
      WeightTable table;
      table.add(part);
      const auto loaded =
          load(table, folder / "m", {.storage = {.dtype = native ? std::nullopt : std::optional(DType::f32)}});
      ASSERT_TRUE(loaded) << error_text(loaded.error());
      const std::vector<float> values = values_of(loaded->set[0]);
      for (std::int64_t r = 0; r < part.rows; ++r)
        for (std::int64_t c = 0; c < part.cols; ++c)
          ASSERT_EQ(values[static_cast<std::size_t>(r * part.cols + c)],
                    all[static_cast<std::size_t>((r + part.first_row) * layout.cols + c + part.first_col)])
              << tensor::weight_format_name(layout.format) << " " << r << " " << c;
    }
  }
}

TEST(Load, PlainSlicesAndVectors) {
  const Folder folder;
  save(folder / "m", {plain("w", DType::bf16, {33, 21}, 1), plain("b", DType::bf16, {20}, 2)});
  WeightTable whole;
  whole.add(matrix("w", 33, 21, WeightFormat::bf16));
  whole.add(vector("b", 20, WeightFormat::bf16, WeightClass::kBias));
  const auto all = load(whole, folder / "m");
  ASSERT_TRUE(all);
  const std::vector<float> w = values_of(all->set[0]), b = values_of(all->set[1]);
  WeightEntry part = whole[0], piece = whole[1];
  part.first_row = 5, part.rows = 17, part.first_col = 3, part.cols = 11;
  piece.first_col = 7, piece.cols = 6;
  WeightTable table;
  table.add(part);
  table.add(piece);
  for (const auto dtype : {std::optional<DType>(), std::optional(DType::f32)}) {
    const auto loaded = load(table, folder / "m", {.storage = {.dtype = dtype}});
    ASSERT_TRUE(loaded) << error_text(loaded.error());
    const std::vector<float> x = values_of(loaded->set[0]), y = values_of(loaded->set[1]);
    for (std::size_t r = 0; r < 17; ++r)
      for (std::size_t c = 0; c < 11; ++c) ASSERT_EQ(x[r * 11 + c], w[(r + 5) * 21 + c + 3]);
    for (std::size_t c = 0; c < 6; ++c) ASSERT_EQ(y[c], b[c + 7]);
  }
}

TEST(Load, LargeTensorsInManyPieces) {
  const Folder folder;
  const Stored stored = plain("w", DType::bf16, {1500, 3001}, 3);  // 9 MB: several pieces, odd rows
  save(folder / "m", {stored});
  WeightTable table;
  table.add(matrix("w", 1500, 3001, WeightFormat::bf16));
  Bytes last = 0;
  LoadOptions options;
  options.read.progress = [&](Bytes done, Bytes) {
    last = done;
    return true;
  };
  const auto loaded = load(table, folder / "m", options);
  ASSERT_TRUE(loaded);
  EXPECT_EQ(std::memcmp(loaded->set[0].data, stored.data.data(), stored.data.size()), 0);
  EXPECT_EQ(last, stored.data.size());
}

TEST(Load, ExpertsNamingsAndTies) {
  const Folder folder;
  save(folder / "m", {plain("model.l.0.w", DType::f32, {2, 2}, 1), plain("model.l.1.w", DType::f32, {2, 2}, 2),
                      plain("embed", DType::f32, {3, 2}, 3)});
  WeightTable table;
  WeightEntry experts = matrix("l.{e}.w", 2, 2, WeightFormat::f32, WeightClass::kRoutedExpert);
  experts.aliases = {"model.l.{e}.w"};
  experts.experts = 1;
  experts.first_expert = 1;
  experts.per_expert = true;
  table.add(experts);
  WeightEntry embed = matrix("model.embed", 3, 2, WeightFormat::f32, WeightClass::kEmbedding);
  embed.aliases = {"embed"};
  table.add(embed);
  WeightEntry tied = matrix("lm_head.weight", 3, 2, WeightFormat::f32, WeightClass::kHead);
  tied.tied_to = 1;
  table.add(tied);
  const auto loaded = load(table, folder / "m", {.allow_extra = true});
  ASSERT_TRUE(loaded) << error_text(loaded.error());
  EXPECT_EQ(std::memcmp(loaded->set[0].data, plain("", DType::f32, {2, 2}, 2).data.data(), 16), 0);
  EXPECT_EQ(loaded->set[2].data, loaded->set[1].data);
}

TEST(Load, MappedWeightsAreTheLoadedOnes) {
  const Folder folder;
  std::vector<Stored> tensors = quantized(kLayouts[1], "x");
  tensors.push_back(plain("w", DType::bf16, {8, 6}, 1));
  save(folder / "m", tensors, {.shard_bytes = 100});
  WeightTable table;
  table.add(matrix("x.weight", kLayouts[1].rows, kLayouts[1].cols, kLayouts[1].format));
  table.add(matrix("w", 8, 6, WeightFormat::bf16));
  const auto copied = load(table, folder / "m"),
             mapped = load(table, folder / "m", {.mmap = true, .check_finite = true});
  ASSERT_TRUE(mapped) << error_text(mapped.error());
  EXPECT_EQ(mapped->arena, nullptr);
  for (const int id : {0, 1}) EXPECT_EQ(values_of(mapped->set[id]), values_of(copied->set[id]));
  EXPECT_EQ(outcome(load(table, folder / "m", {.storage = {.dtype = DType::f32}, .mmap = true})),
            "weights.mmap_needs_copy");
  WeightEntry part = table[1];
  part.rows = 4, part.first_row = 2;
  WeightTable rows;
  rows.add(part);
  const auto slice = load(rows, folder / "m", {.mmap = true, .allow_extra = true});
  ASSERT_TRUE(slice);
  EXPECT_EQ(std::memcmp(slice->set[0].data, copied->set[1].data + 2 * 6 * 2, 48), 0);
}

// ---------------------------------------------------------------- what can be wrong

std::string trouble(const std::vector<Stored>& tensors, const WeightEntry& entry, const LoadOptions& options = {}) {
  const Folder folder;
  save(folder / "m", tensors);
  WeightTable table;
  table.add(entry);
  const auto loaded = load(table, folder / "m", options);
  if (!loaded) {
    EXPECT_NE(error_text(loaded.error()), loaded.error().key);  // has a sentence
  }
  return outcome(loaded);
}

TEST(LoadErrors, NameWhatIsWrong) {
  const WeightEntry w = matrix("w", 4, 6, WeightFormat::bf16);
  EXPECT_EQ(trouble({plain("v", DType::bf16, {4, 6}, 1)}, w), "weights.missing_tensors");
  EXPECT_EQ(trouble({plain("w", DType::bf16, {6, 4}, 1)}, w), "weights.wrong_shape");
  EXPECT_EQ(trouble({plain("w", DType::bf16, {24}, 1)}, w), "weights.wrong_shape");
  EXPECT_EQ(trouble({codes("w", DType::i32, {4, 6}, 1)}, w), "weights.wrong_type");
  EXPECT_EQ(trouble({codes("w", DType::i64, {4, 6}, 1)}, w), "weights.wrong_type");
  EXPECT_EQ(trouble({plain("w", DType::f32, {4, 6}, 1)}, matrix("w", 4, 6, WeightFormat::i64)), "weights.wrong_type");
  EXPECT_EQ(trouble({codes("w", DType::f8e4m3, {4, 6}, 1)}, w), "weights.missing_scales");
  EXPECT_EQ(trouble({codes("w", DType::f8e4m3, {4, 6}, 1), plain("w_scale_inv", DType::f32, {2, 2}, 1)}, w),
            "weights.wrong_shape");
  EXPECT_EQ(trouble({codes("w", DType::f8e4m3, {4, 6}, 1), codes("w_scale_inv", DType::i32, {1, 1}, 1)}, w),
            "weights.wrong_type");
  EXPECT_EQ(trouble({plain("w", DType::bf16, {4, 6}, 1)}, matrix("w", 4, 6, WeightFormat::fp8_block128)),
            "weights.cannot_quantize");
  EXPECT_EQ(trouble({codes("w", DType::f8e4m3, {4, 6}, 1), plain("w.scale", DType::f32, {1, 1}, 1)},
                    matrix("w", 4, 6, WeightFormat::fp8_block128_e8m0)),
            "weights.cannot_quantize");
  EXPECT_EQ(trouble({plain("w", DType::bf16, {4, 6}, 1), plain("lora_A", DType::bf16, {1}, 1)}, w),
            "weights.extra_tensor");
  EXPECT_EQ(
      trouble({plain("w", DType::bf16, {4, 6}, 1), plain("lora_A", DType::bf16, {1}, 1)}, w, {.allow_extra = true}),
      "ok");
  WeightEntry cut = matrix("w", 300, 260, WeightFormat::fp8_block128);
  cut.rows = 100, cut.first_row = 100;
  EXPECT_EQ(trouble({codes("w", DType::f8e4m3, {300, 260}, 1), plain("w_scale_inv", DType::f32, {3, 3}, 1)}, cut),
            "weights.cuts_block");
  Stored bad = plain("w", DType::f32, {4, 6}, 1);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::memcpy(bad.data.data() + 4 * 13, &nan, 4);
  EXPECT_EQ(trouble({bad}, w, {.check_finite = true}), "weights.not_finite");
  EXPECT_EQ(trouble({bad}, w), "ok");
}

TEST(LoadErrors, UnneededUnknownTypesAreNoTrouble) {
  const Folder folder;
  std::filesystem::create_directory(folder / "m");
  const std::string numbers(48, '\0');
  spit(
      folder / "m" / "model.safetensors",
      file_bytes(
          R"({"w":{"dtype":"BF16","shape":[4,6],"data_offsets":[0,48]},"mtp.x":{"dtype":"F4","shape":[4],"data_offsets":[48,50]}})",
          numbers + "xx"));
  WeightTable table;
  table.add(matrix("w", 4, 6, WeightFormat::bf16));
  EXPECT_EQ(outcome(load(table, folder / "m")), "ok");
  table.add(matrix("mtp.x", 2, 2, WeightFormat::bf16));
  EXPECT_EQ(outcome(load(table, folder / "m")), "weights.wrong_type");
}

TEST(LoadErrors, KnownExtrasAreAnExplicitList) {
  const Folder folder;
  save(folder / "m", {plain("w", DType::f32, {2, 2}, 1), plain("mtp.0.x", DType::f32, {1}, 1),
                      plain("model.layers.0.self_attn.rotary_emb.inv_freq", DType::f32, {1}, 1),
                      plain("model.layers.1.eh_proj.weight", DType::f32, {1}, 1),
                      plain("model.layers.1.mlp.x", DType::f32, {1}, 1), plain("vision.x", DType::f32, {1}, 1)});
  WeightTable table;
  table.add(matrix("w", 2, 2, WeightFormat::f32));
  EXPECT_EQ(outcome(load(table, folder / "m")), "ok");
  const Folder other;
  save(other / "m", {plain("w", DType::f32, {2, 2}, 1),
                     plain("model.layers.1.mlp.x", DType::f32, {1}, 1)});  // a layer too many, no draft
  EXPECT_EQ(outcome(load(table, other / "m")), "weights.extra_tensor");
}

TEST(LoadErrors, MemoryProgressAndShrinkingFiles) {
  const Folder folder;
  save(folder / "m", {plain("w", DType::f32, {1000, 1000}, 1)});
  WeightTable table;
  table.add(matrix("w", 1000, 1000, WeightFormat::f32));
  const auto checkpoint = Checkpoint::open(folder / "m");
  MemoryBackend small;
  small.limit = 100;
  EXPECT_EQ(outcome(load_weights(table, table, *checkpoint, small)), "weights.no_memory");
  MemoryBackend backend;
  LoadOptions stop;
  stop.read.progress = [](Bytes, Bytes) { return false; };
  EXPECT_EQ(outcome(load_weights(table, table, *checkpoint, backend, stop)), "weights.interrupted");
  std::filesystem::resize_file(folder / "m" / "model.safetensors", 2'000'000);
  for (const IoMode io : {IoMode::kAuto, IoMode::kPread})
    for (const DirectMode direct : {DirectMode::kAlways, DirectMode::kNever}) {
      LoadOptions options;
      options.read.io = io;
      options.read.direct = direct;
      EXPECT_EQ(outcome(load_weights(table, table, *checkpoint, backend, options)), "weights.truncated");
    }
  EXPECT_EQ(outcome(load_weights(table, table, *checkpoint, backend, {.mmap = true})), "weights.truncated");
  std::filesystem::remove(folder / "m" / "model.safetensors");
  EXPECT_EQ(outcome(load_weights(table, table, *checkpoint, backend)), "base.cannot_open");
}

}  // namespace
}  // namespace fathom::weights
