// Cases of the families rows, norm, rope and loss.
#include <fmt/format.h>

#include <cmath>

#include "backends/op_case_run.h"
#include "support/numbers.h"

namespace fathom::test {
namespace {
using namespace tensor;  // NOLINT: the vocabulary

std::vector<std::int64_t> picks(Random& random, std::int64_t count, std::int64_t below) {
  std::vector<std::int64_t> out;
  for (std::int64_t i = 0; i < count; ++i) out.push_back(random.below(below));
  return out;
}
constexpr WeightFormat kPlain[] = {WeightFormat::f32, WeightFormat::f16, WeightFormat::bf16, WeightFormat::f64};
void add_embed(std::vector<OpCase>& cases) {
  for (int f = 0; f < kWeightFormatCount; ++f) {
    const auto format = static_cast<WeightFormat>(f);
    if (format == WeightFormat::i64) continue;
    for (const auto& [tokens, width] : {std::pair<std::int64_t, std::int64_t>{1, 64}, {5, 34}, {3, 258}, {0, 8}})
      cases.push_back({.op = "embed",
                       .name = fmt::format("embed/{}/t{}_h{}", weight_format_name(format), tokens, width),
                       .format = format,
                       .exact = true,
                       .body = [=](CaseRun& run) {
                         const Weight table = run.weight(format, 37, width, 1.0);
                         const Tensor ids = run.ints(DType::i32, {tokens}, picks(run.random, tokens, 37));
                         run.ops.embed({.ids = ids,
                                        .table = table,
                                        .out = run.output("out", {tokens, width},
                                                          width == 34 ? Layout::kMisaligned : Layout::kDense)});
                       }});
  }
}

void add_split_embed(std::vector<OpCase>& cases) {
  for (const WeightFormat format : kPlain)
    for (const std::int64_t first : {0, 9, 30})
      cases.push_back(
          {.op = "embed",
           .name = fmt::format("embed/{}/split_from_{}", weight_format_name(format), first),
           .format = format,
           .exact = true,
           .body = [=](CaseRun& run) {
             const Weight table = run.weight(format, 10, 33, 1.0);
             const Tensor ids = run.ints(DType::i32, {17}, picks(run.random, 17, 40));
             run.ops.embed(
                 {.ids = ids, .table = table, .out = run.output("out", {17, 33}), .first_id = first, .split = true});
           }});
}

void add_gather(std::vector<OpCase>& cases) {
  for (const Layout layout : kLayouts)
    for (const auto& [n, m, width] :
         {std::tuple<std::int64_t, std::int64_t, std::int64_t>{7, 3, 33}, {2, 9, 64}, {4, 0, 5}, {1, 1, 1}})
      cases.push_back({.op = "gather_rows",
                       .name = fmt::format("gather_rows/n{}_m{}_w{}/{}", n, m, width, name_of(layout)),
                       .exact = true,
                       .body = [=](CaseRun& run) {
                         const Tensor x = run.input({n, width}, normal(), layout);
                         const Tensor rows = run.ints(DType::i32, {m}, picks(run.random, m, n));
                         run.ops.gather_rows({.x = x, .rows = rows, .out = run.output("out", {m, width}, layout)});
                       }});
}

void add_copy(std::vector<OpCase>& cases) {
  for (const DType from : {DType::f32, DType::f16, DType::bf16})
    for (const DType to : {DType::f32, DType::f16, DType::bf16})
      for (const Layout layout : kLayouts)
        cases.push_back({.op = "copy",
                         .name = fmt::format("copy/{}_to_{}/{}", dtype_name(from), dtype_name(to), name_of(layout)),
                         .exact = true,
                         .body = [=](CaseRun& run) {
                           // Ties between neighbours, overflow, subnormals and specials among ordinary numbers.
                           const Fill fill = with(normal(3.0), {{0, kNaN},
                                                                {1, kInf},
                                                                {2, -kInf},
                                                                {3, 65519.0},
                                                                {4, 65520.0},
                                                                {5, 1e-7},
                                                                {6, 1 + 0x1p-8},
                                                                {7, 1 + 3 * 0x1p-8},
                                                                {8, 1 + 0x1p-11},
                                                                {9, -0.0},
                                                                {10, 3.4e38},
                                                                {11, 0x1p-25}});
                           const Tensor x = run.input(from, {3, 5, 17}, fill, layout);
                           run.ops.copy({.x = x, .out = run.output("out", to, {3, 5, 17}, layout)});
                         }});
  cases.push_back({.op = "copy", .name = "copy/zero_rows", .exact = true, .body = [](CaseRun& run) {
                     run.ops.copy({.x = run.input({0, 3}, normal()), .out = run.output("out", {0, 3})});
                   }});
}

void add_add(std::vector<OpCase>& cases) {
  enum Where { kApart, kIntoA, kIntoB };
  for (const Where where : {kApart, kIntoA, kIntoB})
    for (const Layout layout : kLayouts)
      for (const auto& [rows, width] : {std::pair<std::int64_t, std::int64_t>{1, 1}, {3, 65}, {0, 4}, {2, 1031}})
        cases.push_back({.op = "add",
                         .name = fmt::format("add/{}/r{}_w{}/{}",
                                             where == kApart   ? "apart"
                                             : where == kIntoA ? "into_a"
                                                               : "into_b",
                                             rows, width, name_of(layout)),
                         .exact = true,
                         .body = [=](CaseRun& run) {
                           const Fill fill = width == 65 ? with(normal(), {{0, kInf}, {66, kNaN}}) : normal();
                           const auto operand = [&](bool in_place) {
                             return in_place ? run.in_place("out", run.activation(), {rows, width}, fill, layout)
                                             : run.input({rows, width}, fill, layout);
                           };
                           const Tensor a = operand(where == kIntoA), b = operand(where == kIntoB);
                           run.ops.add({.a = a,
                                        .b = b,
                                        .out = where == kIntoA   ? a
                                               : where == kIntoB ? b
                                                                 : run.output("out", {rows, width}, layout)});
                         }});
}

void add_expand(std::vector<OpCase>& cases) {
  for (const Layout layout : kLayouts)
    for (const auto& [tokens, streams, width] :
         {std::tuple<std::int64_t, std::int64_t, std::int64_t>{3, 4, 33}, {1, 1, 8}, {0, 4, 8}})
      cases.push_back({.op = "expand_streams",
                       .name = fmt::format("expand_streams/t{}_s{}_h{}/{}", tokens, streams, width, name_of(layout)),
                       .exact = true,
                       .body = [=](CaseRun& run) {
                         const Tensor x = run.input({tokens, width}, normal(), layout);
                         run.ops.expand_streams({.x = x, .out = run.output("out", {tokens, streams, width}, layout)});
                       }});
}

struct NormSpec {
  const char* name;
  Shape shape;
  Fill fill = normal();
  double eps = 1e-6;
  Layout layout = Layout::kDense;
  bool in_place = false;
};

std::vector<NormSpec> norm_specs() {
  return {{"t1_d1", {1, 1}},
          {"t1_d64", {1, 64}},
          {"t3_d7", {3, 7}, normal(), 1e-5, Layout::kStrided},
          {"t5_d33", {5, 33}, normal(2.0, 0.5), 1e-6, Layout::kMisaligned},
          {"t2_h3_d127", {2, 3, 127}, normal(), 1e-6, Layout::kStrided},
          {"t4_h16_d24_in_place", {4, 16, 24}, normal(), 1e-6, Layout::kMisaligned, true},
          {"t2_d1543", {2, 1543}},
          {"t3_d96_in_place", {3, 96}, normal(), 1e-6, Layout::kDense, true},
          {"zero_rows", {0, 16}},
          {"all_zero", {2, 19}, constant(0.0)},
          {"large", {2, 40}, normal(1e15)},
          {"small", {2, 40}, normal(1e-12), 1e-20},
          {"nan_row", {3, 20}, with(normal(), {{23, kNaN}})},
          {"one_large", {2, 36}, with(normal(), {{5, 3e4}})}};
}

void add_rms_norm(std::vector<OpCase>& cases) {
  for (const WeightFormat format : kPlain)
    for (const NormSpec& spec : norm_specs())
      for (const bool weighted : {true, false}) {
        if (!weighted && format != WeightFormat::f32) continue;
        cases.push_back(
            {.op = "rms_norm",
             .name = fmt::format("rms_norm/{}/{}", weighted ? weight_format_name(format) : "unweighted", spec.name),
             .format = format,
             .body = [=](CaseRun& run) {
               const std::int64_t d = spec.shape[spec.shape.rank - 1];
               const Tensor x = spec.in_place
                                    ? run.in_place("out", run.activation(), spec.shape, spec.fill, spec.layout)
                                    : run.input(spec.shape, spec.fill, spec.layout);
               const Tensor weight = weighted ? run.input(weight_dtype(format), {d}, normal(0.3, 1.0)) : Tensor{};
               run.ops.rms_norm({.x = x,
                                 .weight = weight,
                                 .eps = spec.eps,
                                 .out = spec.in_place ? x : run.output("out", spec.shape, spec.layout)});
             }});
      }
}

void add_layer_norm(std::vector<OpCase>& cases) {
  for (const WeightFormat format : kPlain)
    for (const NormSpec& spec : norm_specs()) {
      if (spec.in_place) continue;
      cases.push_back({.op = "layer_norm",
                       .name = fmt::format("layer_norm/{}/{}", weight_format_name(format), spec.name),
                       .format = format,
                       .body = [=](CaseRun& run) {
                         const std::int64_t d = spec.shape[spec.shape.rank - 1];
                         const Tensor x = run.input(spec.shape, spec.fill, spec.layout);
                         const Tensor weight = run.input(weight_dtype(format), {d}, normal(0.3, 1.0)),
                                      bias = run.input(weight_dtype(format), {d}, normal(0.5));
                         run.ops.layer_norm({.x = x,
                                             .weight = weight,
                                             .bias = bias,
                                             .eps = spec.eps,
                                             .out = run.output("out", spec.shape, spec.layout)});
                       }});
    }
}

void add_rope(std::vector<OpCase>& cases) {
  for (const bool interleaved : {false, true})
    for (const bool inverse : {false, true})
      for (const auto& [n, heads, width, first, half] : {std::array<std::int64_t, 5>{3, 4, 64, 0, 32},
                                                         {5, 1, 40, 8, 16},
                                                         {2, 3, 7, 1, 3},
                                                         {1, 16, 24, 22, 1},
                                                         {9, 2, 13, 3, 5},
                                                         {0, 2, 8, 0, 4}})
        for (const Layout layout : kLayouts)
          cases.push_back(
              {.op = "rope",
               .name = fmt::format("rope/{}{}/n{}_h{}_d{}_from{}_half{}/{}", interleaved ? "pairs" : "halves",
                                   inverse ? "_inverse" : "", n, heads, width, first, half, name_of(layout)),
               .body = [=](CaseRun& run) {
                 const Fill fill = n == 9 ? with(normal(), {{0, kNaN}, {30, kInf}}) : normal();
                 const Tensor x = run.in_place("x", run.activation(), {n, heads, width}, fill, layout);
                 std::vector<double> cosines, sines;
                 for (std::int64_t i = 0; i < n * half; ++i) {
                   const double angle = 100 * run.random.uniform();
                   cosines.push_back(1.1 * std::cos(angle)), sines.push_back(1.1 * std::sin(angle));
                 }
                 const Tensor cos = run.input(run.wide(), {n, half}, listed(cosines)),
                              sin = run.input(run.wide(), {n, half}, listed(sines));
                 run.ops.rope({.x = x,
                               .cos = cos,
                               .sin = sin,
                               .first_dim = first,
                               .interleaved = interleaved,
                               .inverse = inverse});
               }});
}

void add_rotary(std::vector<OpCase>& cases) {
  for (const std::int64_t half : {1, 4, 5, 16, 32, 64})
    cases.push_back(
        {.op = "rotary", .name = fmt::format("rotary/half{}", half), .body = [=](CaseRun& run) {
           const std::vector<std::int64_t> at = {0, 1, -1, 2, 17, 4095, 100'000, 163'839, 1'048'575};
           const auto n = static_cast<std::int64_t>(at.size());
           std::vector<double> frequencies;
           for (std::int64_t i = 0; i < half; ++i)
             frequencies.push_back(std::pow(10'000.0, -static_cast<double>(i) / static_cast<double>(half)));
           const Tensor positions = run.ints(DType::i32, {n}, at),
                        frequency = run.input(DType::f32, {half}, listed(frequencies));
           const Tensor cos = run.output("cos", run.wide(), {n, half}), sin = run.output("sin", run.wide(), {n, half});
           run.ops.rotary({.positions = positions,
                           .inverse_frequency = frequency,
                           .scale = half == 4 ? 1.369 : 1.0,
                           .cos = cos,
                           .sin = sin});
         }});
  cases.push_back({.op = "rotary", .name = "rotary/zero_rows", .body = [](CaseRun& run) {
                     const Tensor positions = run.ints(DType::i32, {0}, {}),
                                  frequency = run.input(DType::f32, {4}, normal());
                     run.ops.rotary({.positions = positions,
                                     .inverse_frequency = frequency,
                                     .scale = 1,
                                     .cos = run.output("cos", run.wide(), {0, 4}),
                                     .sin = run.output("sin", run.wide(), {0, 4})});
                   }});
}

}  // namespace

std::vector<OpCase> rows_cases() {
  std::vector<OpCase> cases;
  add_embed(cases), add_split_embed(cases), add_gather(cases), add_copy(cases), add_add(cases), add_expand(cases);
  return cases;
}

std::vector<OpCase> norm_cases() {
  std::vector<OpCase> cases;
  add_rms_norm(cases), add_layer_norm(cases);
  return cases;
}

std::vector<OpCase> rope_cases() {
  std::vector<OpCase> cases;
  add_rotary(cases), add_rope(cases);
  return cases;
}

std::vector<OpCase> loss_cases() {
  struct Spec {
    const char* name;
    std::int64_t tokens, vocabulary;
    Fill fill;
    Layout layout;
    double magnitude;
  };
  std::vector<OpCase> cases;
  for (const Spec& spec :
       {Spec{"t1_v1", 1, 1, normal(), Layout::kDense, 1}, Spec{"t3_v7", 3, 7, normal(), Layout::kStrided, 1},
        Spec{"t4_v1003", 4, 1003, normal(3.0), Layout::kMisaligned, 1},
        Spec{"t2_v129280", 2, 129'280, normal(2.0), Layout::kDense, 4},
        Spec{"equal", 2, 33, constant(5.0), Layout::kDense, 1}, Spec{"large", 3, 50, normal(1e4), Layout::kDense, 1e3},
        Spec{"minus_infinity", 2, 20, with(normal(), {{3, -kInf}, {27, -kInf}}), Layout::kDense, 1},
        Spec{"nan_row", 3, 12, with(normal(), {{15, kNaN}}), Layout::kDense, 1},
        Spec{"zero_rows", 0, 9, normal(), Layout::kDense, 1}})
    cases.push_back({.op = "cross_entropy",
                     .name = fmt::format("cross_entropy/{}", spec.name),
                     .magnitude = spec.magnitude,
                     .body = [=](CaseRun& run) {
                       const Tensor logits = run.input({spec.tokens, spec.vocabulary}, spec.fill, spec.layout);
                       std::vector<std::int64_t> at = picks(run.random, spec.tokens, spec.vocabulary);
                       if (spec.tokens >= 4) at[1] = -100;
                       for (std::int64_t& target : at)
                         if (target == 3 && spec.vocabulary == 20) target = 4;  // not the one that has no probability
                       run.ops.cross_entropy({.logits = logits,
                                              .targets = run.ints(DType::i32, {spec.tokens}, at),
                                              .losses = run.output("losses", run.wide(), {spec.tokens})});
                     }});
  return cases;
}

}  // namespace fathom::test
