// Cases of the family linear.
#include <fmt/format.h>

#include <cmath>

#include "backends/op_case_run.h"
#include "support/numbers.h"

namespace fathom::test {
namespace {
using namespace tensor;  // NOLINT: the vocabulary

struct LinearSpec {
  std::string name;
  std::int64_t tokens, n, k;
  bool bias = false, accumulate = false;
  Layout layout = Layout::kDense;
  Fill fill = normal();
  bool exact = false;  // small whole numbers in x and weight
  double magnitude = 1;
  Activations activations = Activations::kAsTheyAre;
};

OpCase linear_case(WeightFormat format, const LinearSpec& spec) {
  return {.op = "linear",
          .name = fmt::format("linear/{}/t{}_n{}_k{}{}", weight_format_name(format), spec.tokens, spec.n, spec.k,
                              spec.name.empty() ? "" : "/" + spec.name),
          .format = format,
          .exact = spec.exact,
          .magnitude = spec.magnitude,
          .body = [=](CaseRun& run) {
            const Tensor x = run.input({spec.tokens, spec.k}, spec.exact ? integers(7) : spec.fill, spec.layout);
            Weight weight = spec.exact
                                ? run.weight(format, spec.n, spec.k, integers(5))
                                : run.weight(format, spec.n, spec.k, 1.0 / std::sqrt(static_cast<double>(spec.k)));
            weight.activations = spec.activations;
            const DType small = weight_scale_count(format, 1, 1) == 0 ? weight_dtype(format) : DType::f32;
            const Tensor bias = spec.bias ? run.input(small, {spec.n}, spec.exact ? integers(9) : normal()) : Tensor{};
            const Tensor out = spec.accumulate ? run.in_place("out", run.activation(), {spec.tokens, spec.n},
                                                              spec.exact ? integers(20) : normal(), spec.layout)
                                               : run.output("out", {spec.tokens, spec.n}, spec.layout);
            run.ops.linear({.x = x, .weight = weight, .bias = bias, .out = out, .accumulate = spec.accumulate});
          }};
}

OpCase grouped_case(WeightFormat format, const std::array<std::int64_t, 6>& sizes, bool transposed, bool exact,
                    Layout layout) {
  const auto [tokens, groups, group_rows, offset, rows, k] = sizes;
  return {.op = "grouped_linear",
          .name = fmt::format("grouped_linear/{}/t{}_g{}_r{}_from{}_of{}_k{}/{}{}{}", weight_format_name(format),
                              tokens, groups, rows, offset, group_rows, k, transposed ? "transposed" : "straight",
                              exact ? "_exact" : "", layout == Layout::kDense ? "" : "_strided"),
          .format = format,
          .exact = exact,
          .magnitude = 1,
          .body = [=, tokens = tokens, groups = groups, group_rows = group_rows, offset = offset, rows = rows,
                   k = k](CaseRun& run) {
            const std::int64_t in = transposed ? rows : k, out = transposed ? k : rows;
            const Tensor x = run.input({tokens, groups, in}, exact ? integers(5) : normal(), layout);
            const Weight weight =
                exact ? run.weight(format, groups * group_rows, k, integers(4))
                      : run.weight(format, groups * group_rows, k, 1.0 / std::sqrt(static_cast<double>(in)));
            run.ops.grouped_linear({.x = x,
                                    .weight = weight,
                                    .group_rows = group_rows,
                                    .row_offset = offset,
                                    .rows = rows,
                                    .transposed = transposed,
                                    .out = run.output("out", {tokens, groups, out}, layout)});
          }};
}

/// A norm, two products of what it makes, their gate, a product of that and a sum, as in a model: a backend may make
/// codes on the way. From copies, of which nothing is known, it must get the same bits. (Beside the reference the last
/// bit of a sum decides between two codes, so that nothing after the second rounding can be compared with it.)
OpCase chain_case(WeightFormat format, Activations activations, std::int64_t tokens, std::int64_t width,
                  std::int64_t inner) {
  return {.op = "linear",
          .name = fmt::format("linear/{}/chain_t{}_w{}_i{}{}", weight_format_name(format), tokens, width, inner,
                              activations == Activations::kPerGroupOfPowers ? "_powers" : ""),
          .format = format,
          .body = [=](CaseRun& run) {
            const auto weight = [&](std::int64_t rows, std::int64_t cols) {
              Weight made = run.weight(format, rows, cols, 1.0 / std::sqrt(static_cast<double>(cols)));
              made.activations = activations;
              return made;
            };
            const Tensor x = run.input({tokens, width}, normal()), norm = run.input({width}, normal(0.1, 1.0));
            const Weight first = weight(width, width), gate = weight(inner, width), up = weight(inner, width),
                         down = weight(width, inner);
            const Tensor mixed = run.output("mixed", {tokens, width}), normed = run.output("normed", {tokens, width});
            run.ops.linear({.x = x, .weight = first, .out = mixed});
            run.ops.add({.a = mixed, .b = x, .out = mixed});
            run.ops.rms_norm({.x = mixed, .weight = norm, .eps = 1e-6, .out = normed});
            const auto copy_of = [&](const Tensor& from) {
              const Tensor to = run.between(from.shape);
              run.ops.copy({.x = from, .out = to});
              return to;
            };
            struct Results {
              Tensor gated, ups, out, again;
            };
            const auto follow = [&](const auto& known) {
              const Results made{run.between({tokens, inner}), run.between({tokens, inner}),
                                 run.between({tokens, width}), run.between({tokens, inner})};
              const Tensor from = run.between({tokens, width});
              run.ops.rms_norm({.x = mixed, .weight = norm, .eps = 1e-6, .out = from});
              run.ops.linear({.x = known(from), .weight = gate, .out = made.gated});
              run.ops.linear({.x = known(from), .weight = up, .out = made.ups});
              run.ops.swiglu({.gate = made.gated, .up = made.ups, .out = made.gated});
              run.ops.linear({.x = known(made.gated), .weight = down, .out = made.out});
              run.ops.add({.a = made.out, .b = mixed, .out = made.out});
              run.ops.linear({.x = known(from), .weight = gate, .out = made.again});
              run.ops.add({.a = from, .b = mixed, .out = from});  // what was known of it is no longer true
              run.ops.linear({.x = known(from), .weight = gate, .out = made.again});
              return made;
            };
            const Results one = follow([](const Tensor&tensor) { return tensor; }), other = follow(copy_of);
            run.alike(one.gated, other.gated);
            run.alike(one.ups, other.ups);
            run.alike(one.out, other.out);
            run.alike(one.again, other.again);
          }};
}

}  // namespace

std::vector<OpCase> linear_cases() {
  std::vector<OpCase> cases;
  const std::vector<LinearSpec> every_format = {
      {"", 1, 2, 2},
      {"", 1, 33, 66},
      {"", 1, 256, 192},
      {"", 2, 8, 16},
      {"bias", 3, 7, 30, true},
      {"bias_accumulate_strided", 5, 64, 64, true, true, Layout::kStrided},
      {"misaligned", 17, 48, 96, false, false, Layout::kMisaligned},
      {"accumulate", 33, 130, 258, false, true},
      {"", 4, 20, 1026},
      {"", 64, 96, 128},
      {"", 1, 37, 2568},
      {"bias_accumulate", 2, 9, 1088, true, true},
      {"", 7, 10, 1032},
      {"", 20, 72, 4160},
      {"", 0, 4, 4},
  };
  const std::vector<LinearSpec> plain_only = {
      {"", 1, 1, 1},
      {"", 1, 3, 5},
      {"misaligned", 1, 65, 127, false, false, Layout::kMisaligned},
      {"bias", 16, 16, 31, true},
      {"", 15, 17, 33},
      {"", 100, 31, 47},
      {"exact", 1, 33, 65, false, false, Layout::kDense, normal(), true},
      {"exact_bias_accumulate", 17, 48, 96, true, true, Layout::kStrided, normal(), true},
      {"exact", 33, 130, 257, false, false, Layout::kMisaligned, normal(), true},
      {"", 9, 16, 64},
      {"", 32, 528, 200},
      {"bias_accumulate", 17, 272, 328, true, true, Layout::kStrided},
      {"exact", 31, 64, 1160, false, false, Layout::kDense, normal(), true},
      {"nan_row", 12, 32, 72, false, false, Layout::kDense, with(normal(), {{72 + 5, kNaN}})},
      {"exact", 64, 64, 512, false, false, Layout::kDense, normal(), true},
      {"nan_row", 4, 9, 24, false, false, Layout::kDense, with(normal(), {{24 + 5, kNaN}})},
      {"infinity_row", 4, 9, 24, false, false, Layout::kDense, with(normal(), {{48 + 5, kInf}})},
      {"large", 3, 20, 64, false, false, Layout::kDense, normal(1e15), false, 1e15},
      {"small", 3, 20, 64, false, false, Layout::kDense, normal(1e-15), false, 1e-15},
      {"zero", 3, 20, 64, false, false, Layout::kDense, constant(0.0)},
  };
  for (int f = 0; f < kWeightFormatCount; ++f) {
    const auto format = static_cast<WeightFormat>(f);
    if (format == WeightFormat::i64) continue;
    for (const LinearSpec& spec : every_format) cases.push_back(linear_case(format, spec));
    if (weight_scale_count(format, 1, 1) == 0)
      for (const LinearSpec& spec : plain_only) cases.push_back(linear_case(format, spec));
  }
  // Eight-bit activations: from 17 tokens on; rows of zeros, tiny and huge ones, NaN and infinity.
  const std::vector<LinearSpec> rounded = {
      {"rounded", 16, 33, 64},
      {"rounded", 17, 48, 96, false, false, Layout::kMisaligned},
      {"rounded_bias_accumulate", 33, 130, 258, true, true, Layout::kStrided},
      {"rounded", 40, 64, 1024},
      {"rounded_zero", 18, 20, 64, true, false, Layout::kDense, constant(0.0)},
      {"rounded_large", 18, 20, 64, false, false, Layout::kDense, normal(1e15), false, 1e15},
      {"rounded_nan_row", 18, 9, 24, false, false, Layout::kDense, with(normal(), {{24 + 5, kNaN}})},
      {"rounded_infinity_row", 18, 9, 24, false, false, Layout::kDense, with(normal(), {{48 + 5, kInf}})},
  };
  for (const WeightFormat format : {WeightFormat::fp8_row, WeightFormat::int8_row})
    for (LinearSpec spec : rounded) {
      spec.activations = Activations::kPerToken;
      cases.push_back(linear_case(format, spec));
    }
  // The same in stretches of 128 columns, and shapes of several tiles: tokens and rows that fill them, and that do not.
  std::vector<LinearSpec> grouped = rounded;
  grouped.push_back({"rounded", 33, 130, 144});
  grouped.push_back({"rounded", 20, 272, 256});
  grouped.push_back({"rounded_bias_accumulate", 300, 144, 400, true, true, Layout::kStrided});
  grouped.push_back({"rounded", 129, 128, 128});
  grouped.push_back({"rounded", 200, 96, 48});
  grouped.push_back({"rounded_accumulate", 513, 400, 272, false, true});
  grouped.push_back({"rounded", 40, 256, 384});
  grouped.push_back({"rounded_bias", 65, 144, 640, true});
  for (const Activations activations : {Activations::kPerGroup, Activations::kPerGroupOfPowers})
    for (LinearSpec spec : grouped) {
      spec.activations = activations;
      spec.name = (activations == Activations::kPerGroup ? "groups_" : "powers_") + spec.name;
      cases.push_back(linear_case(WeightFormat::fp8_block128, spec));
    }
  for (const auto& [tokens, width, inner] :
       {std::array<std::int64_t, 3>{20, 128, 272}, {40, 272, 144}, {18, 64, 48}, {22, 128, 384}}) {
    cases.push_back(chain_case(WeightFormat::fp8_row, Activations::kPerToken, tokens, width, inner));
    cases.push_back(chain_case(WeightFormat::int8_row, Activations::kPerToken, tokens, width, inner));
    cases.push_back(chain_case(WeightFormat::fp8_block128, Activations::kPerGroup, tokens, width, inner));
    cases.push_back(chain_case(WeightFormat::fp8_block128, Activations::kPerGroupOfPowers, tokens, width, inner));
  }
  for (LinearSpec spec :
       {LinearSpec{"rounded", 33, 144, 272},
        LinearSpec{"rounded_bias_accumulate", 300, 144, 400, true, true, Layout::kStrided},
        LinearSpec{"rounded", 70, 16, 128}, LinearSpec{"rounded", 513, 400, 272}, LinearSpec{"rounded", 170, 48, 64}}) {
    spec.activations = Activations::kPerToken;
    cases.push_back(linear_case(WeightFormat::fp8_row, spec));
    cases.push_back(linear_case(WeightFormat::int8_row, spec));
  }
  for (const WeightFormat format :
       {WeightFormat::f32, WeightFormat::f16, WeightFormat::bf16, WeightFormat::f64, WeightFormat::fp8_block128,
        WeightFormat::fp8_block128_e8m0, WeightFormat::fp8_row, WeightFormat::int8_row, WeightFormat::int4_group128,
        WeightFormat::int4_group128_zero_f16})
    for (const bool transposed : {false, true})
      for (const auto& sizes : {std::array<std::int64_t, 6>{1, 4, 24, 0, 16, 32},
                                {1, 4, 24, 16, 8, 32},
                                {5, 3, 7, 2, 5, 33},
                                {18, 2, 40, 8, 32, 64},
                                {3, 1, 1, 0, 1, 1},
                                {0, 2, 4, 0, 4, 8},
                                {33, 2, 17, 0, 17, 130}})
        for (const bool exact : {false, true}) {
          if (exact && weight_scale_count(format, 1, 1) != 0) continue;
          cases.push_back(grouped_case(format, sizes, transposed, exact, exact ? Layout::kMisaligned : Layout::kDense));
          if (!exact) cases.push_back(grouped_case(format, sizes, transposed, exact, Layout::kStrided));
        }
  return cases;
}

}  // namespace fathom::test
