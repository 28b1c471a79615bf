// Cases of the families experts (with routing) and hyper.
#include <fmt/format.h>

#include <cmath>

#include "backends/op_case_run.h"
#include "support/numbers.h"

namespace fathom::test {
namespace {
using namespace tensor;  // NOLINT: the vocabulary
void add_activations(std::vector<OpCase>& cases) {
  for (const Layout layout : kLayouts)
    for (const bool in_place : {false, true})
      for (const auto& [rows, width] : {std::pair<std::int64_t, std::int64_t>{1, 1}, {3, 33}, {2, 1024}, {0, 8}}) {
        const std::string shape =
            fmt::format("r{}_w{}/{}{}", rows, width, name_of(layout), in_place ? "_in_place" : "");
        for (const double limit : {0.0, 1.5})
          cases.push_back(
              {.op = "swiglu", .name = fmt::format("swiglu/limit{}/{}", limit, shape), .body = [=](CaseRun& run) {
                 const Fill fill =
                     width == 33
                         ? with(normal(3.0), {{0, 0.0}, {1, 90.0}, {2, -90.0}, {3, kInf}, {40, kNaN}, {41, -200.0}})
                         : normal(2.0);
                 const Tensor gate = in_place ? run.in_place("out", run.activation(), {rows, width}, fill, layout)
                                              : run.input({rows, width}, fill, layout);
                 const Tensor up = run.input({rows, width}, normal(2.0), layout);
                 run.ops.swiglu({.gate = gate,
                                 .up = up,
                                 .limit = limit,
                                 .out = in_place ? gate : run.output("out", {rows, width}, layout)});
               }});
        cases.push_back({.op = "gelu", .name = fmt::format("gelu/{}", shape), .body = [=](CaseRun& run) {
                           const Fill fill =
                               width == 33 ? with(normal(3.0), {{0, 0.0}, {1, 90.0}, {2, -90.0}, {3, kInf}, {40, kNaN}})
                                           : normal(2.0);
                           const Tensor x = in_place
                                                ? run.in_place("out", run.activation(), {rows, width}, fill, layout)
                                                : run.input({rows, width}, fill, layout);
                           run.ops.gelu({.x = x, .out = in_place ? x : run.output("out", {rows, width}, layout)});
                         }});
      }
}

struct ExpertsSpec {
  const char* name;
  std::int64_t tokens, hidden, inner, total, first, here, top_k;
  double limit = 0;
  bool accumulate = false;
  Layout layout = Layout::kDense;
  bool one_for_all = false;  // every token goes to the same experts
  Fill x = normal();
  Activations activations = Activations::kAsTheyAre;
  bool whole = false;  // x and gate and up: whole numbers, so that their sums are exact in any order and precision
};

/// Whole numbers whose codes are exact: the largest of every 128 columns is 448 / 64.
Fill whole_stretches(std::int64_t cols) {
  return [cols](Random& random, std::int64_t i) {
    return i % cols % 128 == 0 ? 7.0 : static_cast<double>(random.below(5) - 2);
  };
}

OpCase experts_case(WeightFormat format, const ExpertsSpec& spec) {
  return {
      .op = "experts",
      .name = fmt::format("experts/{}/{}", weight_format_name(format), spec.name),
      .format = format,
      // A step of an element of swiglu's result (1/16 of it, mostly below 1/4; of whole numbers below 4) by an element
      // of the down matrix (about 1/8): in f32 some of many elements fall on the other side of a code's edge.
      .codes = format != WeightFormat::fp8_block128 || spec.activations == Activations::kAsTheyAre ? 0
               : spec.whole                                                                        ? 3e-2
                                                                                                   : 2e-3,
      .body = [=](CaseRun& run) {
        const Tensor x =
            run.input({spec.tokens, spec.hidden}, spec.whole ? whole_stretches(spec.hidden) : spec.x, spec.layout);
        std::vector<std::int64_t> chosen;
        for (std::int64_t t = 0; t < spec.tokens; ++t) {
          const std::int64_t start = spec.one_for_all ? spec.first : run.random.below(spec.total),
                             step = spec.one_for_all ? 1 : 1 + 2 * run.random.below(spec.total / 2);
          for (std::int64_t j = 0; j < spec.top_k; ++j)
            chosen.push_back((start + j * step) %
                             spec.total);  // an odd step and a total that is a power of two: all distinct
        }
        const Tensor indices = run.ints(DType::i32, {spec.tokens, spec.top_k}, chosen),
                     weights = run.input({spec.tokens, spec.top_k}, normal(0.2, 0.5));
        std::vector<Weight> gate, up, down;
        for (std::int64_t e = 0; e < spec.here; ++e) {
          for (std::vector<Weight>* list : {&gate, &up})
            list->push_back(spec.whole ? run.whole_weight(format, spec.inner, spec.hidden, 2, 0x1p-5f)
                                       : run.weight(format, spec.inner, spec.hidden,
                                                    1.0 / std::sqrt(static_cast<double>(spec.hidden))));
          down.push_back(run.weight(format, spec.hidden, spec.inner, 1.0 / std::sqrt(static_cast<double>(spec.inner))));
        }
        for (std::vector<Weight>* list : {&gate, &up, &down})
          for (Weight& weight : *list) weight.activations = spec.activations;
        const Tensor out =
            spec.accumulate ? run.in_place("out", run.activation(), {spec.tokens, spec.hidden}, normal(), spec.layout)
                            : run.output("out", {spec.tokens, spec.hidden}, spec.layout);
        run.ops.experts({.x = x,
                         .indices = indices,
                         .weights = weights,
                         .gate = gate,
                         .up = up,
                         .down = down,
                         .first_expert = spec.first,
                         .total_experts = spec.total,
                         .limit = spec.limit,
                         .out = out,
                         .accumulate = spec.accumulate});
      }};
}

struct RouteSpec {
  const char* name;
  Routing routing;
  std::int64_t tokens = 9;
  bool bias = false, table = false;
  Fill logits = normal(1.5);
  Layout layout = Layout::kDense;
  bool exact_choice = false;
};

std::vector<RouteSpec> route_specs() {
  using enum Scoring;
  using enum GroupRank;
  const auto routing = [](Scoring scoring, std::int64_t experts, std::int64_t top_k, std::int64_t groups,
                          std::int64_t top_groups, GroupRank rank, bool normalize, double scaling) {
    return Routing{.scoring = scoring,
                   .experts = experts,
                   .top_k = top_k,
                   .groups = groups,
                   .top_groups = top_groups,
                   .group_rank = rank,
                   .normalize = normalize,
                   .scaling = scaling};
  };
  return {
      {"softmax_greedy", routing(kSoftmax, 64, 6, 1, 1, kMax, false, 1)},
      {"softmax_normalized", routing(kSoftmax, 10, 3, 1, 1, kMax, true, 1), 5, false, false, normal(),
       Layout::kMisaligned},
      {"softmax_groups", routing(kSoftmax, 16, 4, 4, 2, kMax, false, 16)},
      {"softmax_groups_160", routing(kSoftmax, 160, 6, 8, 3, kMax, false, 16), 33, false, false, normal(2.0),
       Layout::kStrided},
      {"sigmoid_noaux", routing(kSigmoid, 32, 4, 4, 2, kTopTwoSum, true, 2.5), 17, true},
      {"sigmoid_noaux_256", routing(kSigmoid, 256, 8, 8, 4, kTopTwoSum, true, 2.5), 33, true, false, normal(),
       Layout::kMisaligned},
      {"sigmoid_one_group", routing(kSigmoid, 24, 4, 1, 1, kTopTwoSum, false, 1), 7, true},
      {"sqrt_softplus", routing(kSqrtSoftplus, 32, 6, 1, 1, kMax, true, 1.5), 9, true, false, normal(4.0)},
      {"sqrt_softplus_far", routing(kSqrtSoftplus, 8, 3, 1, 1, kMax, true, 1), 4, false, false, normal(40.0)},
      {"table", routing(kSqrtSoftplus, 32, 6, 1, 1, kMax, true, 1.5), 9, false, true},
      {"single_expert", routing(kSoftmax, 1, 1, 1, 1, kMax, true, 1), 3},
      {"all_experts", routing(kSigmoid, 5, 5, 1, 1, kMax, true, 1), 3},
      {"all_equal", routing(kSoftmax, 16, 4, 4, 2, kMax, false, 1), 2, false, false, constant(0.5)},
      {"ties_softmax", routing(kSoftmax, 24, 5, 4, 2, kMax, true, 1), 20, false, false, integers(1)},
      {"ties_sigmoid", routing(kSigmoid, 24, 5, 4, 2, kTopTwoSum, true, 1), 20, false, false, integers(1)},
      {"ties_sqrt_softplus", routing(kSqrtSoftplus, 24, 5, 1, 1, kMax, true, 1), 20, false, false, integers(2)},
      {"sharp", routing(kSoftmax, 8, 2, 1, 1, kMax, false, 1), 4, false, false, listed({50, -3, 0, 7, -80, 2, 30, 1})},
      {"nan_row", routing(kSigmoid, 8, 2, 1, 1, kMax, true, 1), 3, false, false, with(normal(), {{8 + 5, kNaN}})},
      {"nan_row_softmax", routing(kSoftmax, 8, 2, 1, 1, kMax, false, 1), 3, false, false,
       with(normal(), {{8 + 5, kNaN}})},
      {"zero_tokens", routing(kSigmoid, 8, 2, 1, 1, kMax, true, 1), 0},
  };
}

void add_hyper_mix(std::vector<OpCase>& cases, WeightFormat format, std::int64_t tokens, std::int64_t c, std::int64_t h,
                   std::int64_t iterations, Layout layout) {
  cases.push_back({.op = "hyper_mix",
                   .name = fmt::format("hyper_mix/{}/t{}_c{}_h{}_i{}/{}", weight_format_name(format), tokens, c, h,
                                       iterations, name_of(layout)),
                   .format = format,
                   .body = [=](CaseRun& run) {
                     const Tensor streams =
                         run.input({tokens, c, h}, h == 33 ? with(normal(), {{4 * 33 + 2, kNaN}}) : normal(), layout);
                     const Weight fn =
                         run.weight(format, (2 + c) * c, c * h, 1.0 / std::sqrt(static_cast<double>(c * h)));
                     const Tensor base = run.input(run.wide(), {(2 + c) * c}, normal()),
                                  scale = run.input(run.wide(), {3}, normal(0.3, 1.0));
                     const Tensor collapsed = run.output("collapsed", {tokens, h}, layout),
                                  post = run.output("post", run.wide(), {tokens, c}),
                                  comb = run.output("comb", run.wide(), {tokens, c, c});
                     run.ops.hyper_mix({.streams = streams,
                                        .fn = fn,
                                        .base = base,
                                        .scale = scale,
                                        .iterations = iterations,
                                        .eps = 1e-6,
                                        .norm_eps = 1e-6,
                                        .collapsed = collapsed,
                                        .post = post,
                                        .comb = comb});
                   }});
}

void add_hyper_merge_and_head(std::vector<OpCase>& cases, WeightFormat format, std::int64_t tokens, std::int64_t c,
                              std::int64_t h, Layout layout) {
  const std::string shape = fmt::format("t{}_c{}_h{}/{}", tokens, c, h, name_of(layout));
  if (format == WeightFormat::f32)
    cases.push_back({.op = "hyper_merge", .name = "hyper_merge/" + shape, .body = [=](CaseRun& run) {
                       const Tensor x = run.input({tokens, h}, normal(), layout),
                                    streams = run.input({tokens, c, h}, normal(), layout);
                       const Tensor post = run.input(run.wide(), {tokens, c}, normal()),
                                    comb = run.input(run.wide(), {tokens, c, c}, normal());
                       run.ops.hyper_merge({.x = x,
                                            .streams = streams,
                                            .post = post,
                                            .comb = comb,
                                            .out = run.output("out", {tokens, c, h}, layout)});
                     }});
  cases.push_back({.op = "hyper_head",
                   .name = fmt::format("hyper_head/{}/{}", weight_format_name(format), shape),
                   .format = format,
                   .body = [=](CaseRun& run) {
                     const Tensor streams = run.input({tokens, c, h}, normal(), layout);
                     const Weight fn = run.weight(format, c, c * h, 1.0 / std::sqrt(static_cast<double>(c * h)));
                     const Tensor base = run.input(run.wide(), {c}, normal()),
                                  scale = run.input(run.wide(), {1}, normal(0.3, 1.0));
                     run.ops.hyper_head({.streams = streams,
                                         .fn = fn,
                                         .base = base,
                                         .scale = scale,
                                         .eps = 1e-6,
                                         .norm_eps = 1e-6,
                                         .out = run.output("out", {tokens, h}, layout)});
                   }});
}

}  // namespace

std::vector<OpCase> expert_cases() {
  std::vector<OpCase> cases;
  add_activations(cases);
  const std::vector<ExpertsSpec> specs = {
      {"t1", 1, 32, 16, 8, 0, 8, 2},
      {"t4_odd", 4, 34, 22, 8, 0, 8, 3, 0, false, Layout::kMisaligned},
      {"t33", 33, 64, 48, 16, 0, 16, 6, 0, true},
      {"limit", 5, 32, 24, 8, 0, 8, 2, 0.5, true, Layout::kStrided},
      {"part", 19, 32, 18, 16, 5, 4, 4},
      {"part_accumulate", 19, 32, 18, 16, 12, 4, 4, 0, true},
      {"none_here", 3, 16, 8, 8, 3, 0, 2, 0, true},
      {"all_to_one", 40, 48, 32, 8, 2, 3, 2, 0, false, Layout::kDense, true},
      {"wide", 3, 162, 98, 2, 0, 2, 2},
      {"zero_tokens", 0, 16, 8, 4, 0, 4, 2},
      {"many_hits", 150, 72, 40, 8, 0, 8, 2, 0, true},
      {"some_hits", 60, 136, 72, 16, 0, 16, 2},
      {"stretches", 12, 272, 144, 16, 4, 8, 4, 0, true},
      {"stretches_more", 40, 272, 144, 16, 4, 8, 4, 0.5},
      {"uneven", 170, 64, 48, 8, 2, 5, 3, 0.5, false, Layout::kDense, true},
      {"nan_token", 6, 16, 8, 4, 0, 2, 1, 0, false, Layout::kDense, false, with(normal(), {{35, kNaN}})},
  };
  for (int f = 0; f < kWeightFormatCount; ++f)
    if (static_cast<WeightFormat>(f) != WeightFormat::i64)
      for (const ExpertsSpec& spec : specs) cases.push_back(experts_case(static_cast<WeightFormat>(f), spec));
  const std::vector<ExpertsSpec> rounded = {
      {"rounded_few", 16, 64, 48, 16, 0, 16, 6},
      {"rounded_t33", 33, 64, 48, 16, 0, 16, 6, 0, true},
      {"rounded_part", 19, 32, 18, 16, 5, 4, 4, 0.5, false, Layout::kStrided},
      {"rounded_all_to_one", 40, 48, 32, 8, 2, 3, 2, 0, false, Layout::kDense, true},
      {"rounded_nan", 18, 16, 8, 4, 0, 2, 1, 0, false, Layout::kDense, false, with(normal(), {{35, kNaN}})},
  };
  for (const WeightFormat format : {WeightFormat::fp8_row, WeightFormat::int8_row})
    for (ExpertsSpec spec : rounded) {
      spec.activations = Activations::kPerToken;
      cases.push_back(experts_case(format, spec));
    }
  // In stretches of 128 columns: runs of many lengths, experts beyond one run, hidden sizes of whole and of parts of
  // stretches.
  std::vector<ExpertsSpec> grouped = rounded;
  grouped.push_back({"rounded_stretches", 40, 272, 144, 8, 0, 8, 2});
  grouped.push_back({"rounded_whole_stretches", 70, 256, 256, 4, 0, 4, 1, 0.5, true});
  grouped.push_back({"rounded_part_of_experts", 33, 144, 272, 16, 4, 4, 4});
  grouped.push_back({"rounded_two_runs", 300, 128, 48, 4, 1, 2, 2, 0, false, Layout::kDense, true});
  grouped.push_back({"rounded_run_of_160", 160, 128, 48, 4, 1, 2, 2, 0, false, Layout::kDense, true});
  grouped.push_back({"rounded_run_of_210", 210, 64, 144, 4, 1, 2, 2, 0, false, Layout::kDense, true});
  grouped.push_back({"rounded_wide", 18, 4240, 16, 4, 1, 2, 2});
  grouped.push_back({"rounded_many_choices", 140, 16, 16, 64, 5, 2, 64});
  grouped.push_back({"rounded_nan_row", 20, 128, 128, 4, 0, 2, 1, 0, false, Layout::kDense, false,
                     with(normal(), {{35, kNaN}, {300, kInf}})});
  for (ExpertsSpec spec : grouped) {
    spec.activations = Activations::kPerGroup;
    cases.push_back(experts_case(WeightFormat::fp8_block128, spec));
  }
  for (const auto& [name, tokens, hidden, inner, accumulate] :
       {std::tuple<const char*, std::int64_t, std::int64_t, std::int64_t, bool>{"whole_t90", 90, 256, 144, false},
        {"whole_t300", 300, 128, 256, true},
        {"whole_t470", 470, 144, 48, false}}) {
    cases.push_back(experts_case(WeightFormat::fp8_block128, {.name = name,
                                                              .tokens = tokens,
                                                              .hidden = hidden,
                                                              .inner = inner,
                                                              .total = 4,
                                                              .first = 1,
                                                              .here = 2,
                                                              .top_k = 2,
                                                              .accumulate = accumulate,
                                                              .one_for_all = tokens == 300,
                                                              .activations = Activations::kPerGroup,
                                                              .whole = true}));
  }
  for (ExpertsSpec spec : {grouped[1], grouped[5]}) {
    spec.name = spec.tokens == 40 ? "powers_stretches" : "powers_t33";
    spec.activations = Activations::kPerGroupOfPowers;
    cases.push_back(experts_case(WeightFormat::fp8_block128, spec));
  }
  return cases;
}

std::vector<OpCase> route_cases() {
  std::vector<OpCase> cases;
  for (const RouteSpec& spec : route_specs())
    cases.push_back({.op = "route", .name = fmt::format("route/{}", spec.name), .body = [=](CaseRun& run) {
                       const Routing& routing = spec.routing;
                       const Tensor logits = run.input({spec.tokens, routing.experts}, spec.logits, spec.layout);
                       const Tensor bias =
                           spec.bias ? run.input(run.wide(), {routing.experts}, normal(0.3, -0.2)) : Tensor{};
                       Weight table;
                       Tensor ids;
                       if (spec.table) {
                         std::vector<std::int64_t> at;
                         for (std::int64_t t = 0; t < spec.tokens; ++t) at.push_back(run.random.below(50));
                         ids = run.ints(DType::i32, {spec.tokens}, at);
                         table = run.weight(WeightFormat::i64, 50, routing.top_k, [&](Random& random, std::int64_t i) {
                           return static_cast<double>(
                               (i / routing.top_k * 7 + i % routing.top_k * 5 + random.below(2)) % routing.experts);
                         });
                       }
                       run.ops.route({.logits = logits,
                                      .bias = bias,
                                      .table = table,
                                      .ids = ids,
                                      .routing = routing,
                                      .indices = run.output("indices", DType::i32, {spec.tokens, routing.top_k}),
                                      .weights = run.output("weights", {spec.tokens, routing.top_k})});
                     }});
  return cases;
}

std::vector<OpCase> hyper_cases() {
  std::vector<OpCase> cases;
  for (const WeightFormat format : {WeightFormat::f32, WeightFormat::f16, WeightFormat::bf16, WeightFormat::f64})
    for (const auto& [tokens, c, h] : {std::tuple<std::int64_t, std::int64_t, std::int64_t>{3, 4, 32},
                                       {1, 4, 65},
                                       {2, 4, 33},
                                       {4, 2, 7},
                                       {2, 1, 5},
                                       {0, 4, 8}})
      for (const Layout layout : kLayouts) {
        if (layout != Layout::kDense && format != WeightFormat::f32) continue;
        for (const std::int64_t iterations : {1, 20}) add_hyper_mix(cases, format, tokens, c, h, iterations, layout);
        add_hyper_merge_and_head(cases, format, tokens, c, h, layout);
      }
  return cases;
}

}  // namespace fathom::test
