// Cases of GradOps. Every gradient output starts with numbers in it, to which the gradient is added.
#include <fmt/format.h>

#include <cmath>

#include "backends/op_case_run.h"

namespace fathom::test {
namespace {
using namespace tensor;  // NOLINT: the vocabulary

Tensor sum(CaseRun& run, const std::string& name, Shape shape, Layout layout = Layout::kDense) {
  return run.in_place(name, run.activation(), shape, normal(), layout);
}
/// A parameter's gradient: f32 or f64, dense.
Tensor parameter_sum(CaseRun& run, const std::string& name, Shape shape) {
  return run.in_place(name, run.wide(), shape, normal());
}

struct BackwardSpec {
  const char* name;
  std::int64_t tokens, n, k;
  Layout layout = Layout::kDense;
  bool dx = true, dweight = true, bias = false;
};

void add_linear(std::vector<OpCase>& cases) {
  for (const WeightFormat format : {WeightFormat::f32, WeightFormat::f16, WeightFormat::bf16, WeightFormat::f64,
                                    WeightFormat::fp8_block128, WeightFormat::mxfp4})
    for (const BackwardSpec& spec :
         {BackwardSpec{"one", 1, 1, 2}, BackwardSpec{"row", 1, 33, 66, Layout::kDense, true, true, true},
          BackwardSpec{"odd", 5, 7, 18, Layout::kMisaligned, true, true, true},
          BackwardSpec{"strided", 17, 48, 96, Layout::kStrided}, BackwardSpec{"deep", 300, 40, 34},
          BackwardSpec{"tall", 3, 530, 64, Layout::kDense, true, true, true}, BackwardSpec{"wide", 9, 20, 300},
          BackwardSpec{"frozen", 19, 24, 40, Layout::kDense, true, false},
          BackwardSpec{"first", 19, 24, 40, Layout::kDense, false, true, true}, BackwardSpec{"zero_rows", 0, 4, 6},
          BackwardSpec{"many", 530, 12, 20, Layout::kDense, true, true, true}})
      cases.push_back({.op = "linear_backward",
                       .name = fmt::format("linear_backward/{}/{}", weight_format_name(format), spec.name),
                       .format = format,
                       .body = [=](CaseRun& run) {
                         LinearGrad grad;
                         grad.f.x = run.input({spec.tokens, spec.k}, normal(), spec.layout);
                         grad.f.weight =
                             run.weight(format, spec.n, spec.k, 1.0 / std::sqrt(static_cast<double>(spec.n)));
                         grad.f.out = run.input({spec.tokens, spec.n}, normal(), spec.layout);
                         grad.dout = run.input({spec.tokens, spec.n}, normal(), spec.layout);
                         if (spec.dx) grad.dx = sum(run, "dx", {spec.tokens, spec.k}, spec.layout);
                         if (spec.dweight)
                           grad.dweight = parameter_sum(run, "dweight", {spec.n, spec.k});
                         else
                           grad.f.x.data = nullptr;  // a frozen weight: only the shape of x is there
                         if (spec.bias) grad.dbias = parameter_sum(run, "dbias", {spec.n});
                         run.grad().linear_backward(grad);
                       }});
}

void add_rows_and_norms(std::vector<OpCase>& cases) {
  const auto add = [&](const std::string& op, std::function<void(CaseRun&)> body, const char* which = "") {
    cases.push_back({.op = op + "_backward", .name = op + "_backward" + which, .body = std::move(body)});
  };
  add("embed", [](CaseRun& run) {
    const Tensor ids = run.ints(DType::i32, {6}, {4, 1, 4, 9, 4, 2});
    run.grad().embed_backward(
        {.f = {.ids = ids, .table = run.weight(WeightFormat::f32, 5, 33, 1.0), .out = {}, .first_id = 1, .split = true},
         .dout = run.input({6, 33}, normal(), Layout::kStrided),
         .dtable = parameter_sum(run, "dtable", {5, 33})});
  });
  add(
      "embed",
      [](CaseRun& run) {
        std::vector<std::int64_t> ids;
        for (std::int64_t i = 0; i < 600; ++i) ids.push_back(i * i % 11);
        run.grad().embed_backward({.f = {.ids = run.ints(DType::i32, {600}, ids),
                                         .table = run.weight(WeightFormat::f32, 11, 300, 1.0),
                                         .out = {}},
                                   .dout = run.input({600, 300}, normal()),
                                   .dtable = parameter_sum(run, "dtable", {11, 300})});
      },
      "/many");
  add("gather_rows", [](CaseRun& run) {
    const Tensor rows = run.ints(DType::i32, {4}, {2, 0, 2, 2});
    run.grad().gather_rows_backward({.f = {.x = {}, .rows = rows, .out = {}},
                                     .dout = run.input({4, 17}, normal()),
                                     .dx = sum(run, "dx", {3, 17}, Layout::kStrided)});
  });
  add("accumulate", [](CaseRun& run) {
    run.grad().accumulate({.dout = run.input({3, 2, 17}, normal(), Layout::kStrided),
                           .dx = sum(run, "dx", {3, 2, 17}, Layout::kMisaligned)});
  });
  add("expand_streams", [](CaseRun& run) {
    run.grad().expand_streams_backward(
        {.f = {}, .dout = run.input({3, 4, 9}, normal()), .dx = sum(run, "dx", {3, 9}, Layout::kStrided)});
  });
  add("rms_norm", [](CaseRun& run) {
    RmsNormGrad grad{.f = {.x = run.input({3, 2, 33}, normal(), Layout::kStrided),
                           .weight = run.input({33}, normal(0.3, 1.0)),
                           .eps = 1e-6,
                           .out = {}},
                     .dout = run.input({3, 2, 33}, normal()),
                     .dx = sum(run, "dx", {3, 2, 33}, Layout::kMisaligned),
                     .dweight = parameter_sum(run, "dweight", {33})};
    run.grad().rms_norm_backward(grad);
  });
  add(
      "rms_norm",
      [](CaseRun& run) {
        RmsNormGrad grad{.f = {.x = run.input({350, 2, 40}, normal(), Layout::kStrided),
                               .weight = run.input({40}, normal(0.3, 1.0)),
                               .eps = 1e-6,
                               .out = {}},
                         .dout = run.input({350, 2, 40}, normal()),
                         .dx = sum(run, "dx", {350, 2, 40}),
                         .dweight = parameter_sum(run, "dweight", {40})};
        run.grad().rms_norm_backward(grad);
      },
      "/many");
  add("layer_norm", [](CaseRun& run) {
    LayerNormGrad grad{.f = {.x = run.input({5, 33}, normal(1.0, 0.5), Layout::kStrided),
                             .weight = run.input({33}, normal(0.3, 1.0)),
                             .bias = run.input({33}, normal()),
                             .eps = 1e-6,
                             .out = {}},
                       .dout = run.input({5, 33}, normal()),
                       .dx = sum(run, "dx", {5, 33}),
                       .dweight = parameter_sum(run, "dweight", {33}),
                       .dbias = parameter_sum(run, "dbias", {33})};
    run.grad().layer_norm_backward(grad);
  });
  add("rope", [](CaseRun& run) {
    RopeGrad grad{.f = {.x = {},
                        .cos = run.input(run.wide(), {3, 4}, normal()),
                        .sin = run.input(run.wide(), {3, 4}, normal()),
                        .first_dim = 2,
                        .interleaved = true,
                        .inverse = false},
                  .dx = sum(run, "dx", {3, 2, 11}, Layout::kStrided)};
    grad.f.x = grad.dx;
    run.grad().rope_backward(grad);
  });
  add("cross_entropy", [](CaseRun& run) {
    const Tensor targets = run.ints(DType::i32, {4}, {7, -100, 0, 32});
    run.grad().cross_entropy_backward(
        {.f = {.logits = run.input({4, 33}, normal(3.0), Layout::kStrided), .targets = targets, .losses = {}},
         .dlosses = run.input(run.wide(), {4}, normal()),
         .dlogits = sum(run, "dlogits", {4, 33}, Layout::kMisaligned)});
  });
  add("zero", [](CaseRun& run) { run.grad().zero(sum(run, "x", {3, 2, 17}, Layout::kStrided)); });
}

/// Sequences that are longer than what a kernel takes at a time: a window and some of the entries (chosen), or all
/// keys.
void add_long_attention(std::vector<OpCase>& cases) {
  for (const bool chosen : {false, true})
    cases.push_back(
        {.op = "attention_backward",
         .name = chosen ? "attention_backward/long_window_chosen_entries" : "attention_backward/long_grouped",
         .body = [=](CaseRun& run) {
           const Batch& batch = run.batch({{.slot = 0, .first_token = 0, .tokens = 141, .past = 0},
                                           {.slot = 1, .first_token = 0, .tokens = 3, .past = 0},
                                           {.slot = 2, .first_token = 0, .tokens = 89, .past = 0}});
           const std::int64_t tokens = 233, heads = 4, kv_heads = chosen ? 1 : 2, d = 20, entries = 36 + 1 + 23;
           std::vector<KvSegment> segments{{.kind = KvSegment::Kind::kFresh,
                                            .k = run.input({tokens, kv_heads, d}, normal()),
                                            .k_shared = {},
                                            .v = run.input({tokens, kv_heads, d}, normal()),
                                            .window = chosen ? 50 : 0}};
           std::vector<KvSegmentGrad> grads{
               {.dk = sum(run, "dk", segments[0].k.shape), .dk_shared = {}, .dv = sum(run, "dv", segments[0].v.shape)}};
           if (chosen) {
             std::vector<std::int64_t> names;
             for (std::int64_t t = 0; t < tokens; ++t)
               for (const std::int64_t name : {t % 3, 3 + t % 5, std::int64_t{9}, 10 + t % 25, std::int64_t{-1}})
                 names.push_back(name);
             segments.push_back({.kind = KvSegment::Kind::kFreshEntries,
                                 .k = run.input({entries, 1, d}, normal()),
                                 .k_shared = {},
                                 .v = {},
                                 .ratio = 4,
                                 .selected = run.ints(DType::i32, {tokens, 5}, names)});
             segments[1].v = segments[1].k;
             grads.push_back({.dk = sum(run, "dentries", segments[1].k.shape), .dk_shared = {}, .dv = {}});
             grads[1].dv = grads[1].dk;
           }
           AttentionGrad grad{.f = {.q = run.input({tokens, heads, d}, normal()),
                                    .segments = segments,
                                    .scale = 0.2,
                                    .sink = chosen ? run.input(run.wide(), {heads}, normal()) : Tensor{},
                                    .out = run.output("out", {tokens, heads, d}),
                                    .lse = run.output("lse", run.wide(), {tokens, heads}),
                                    .batch = &batch},
                              .dout = run.input({tokens, heads, d}, normal()),
                              .dq = sum(run, "dq", {tokens, heads, d}),
                              .segments = grads,
                              .dsink = {}};
           if (chosen) grad.dsink = parameter_sum(run, "dsink", {heads});
           run.ops.attention(grad.f);
           run.grad().attention_backward(grad);
         }});
}

void add_attention(std::vector<OpCase>& cases) {
  for (const bool latent : {false, true})
    cases.push_back(
        {.op = "attention_backward",
         .name = latent ? "attention_backward/window_entries_sink" : "attention_backward/grouped_shared_keys",
         .body = [=](CaseRun& run) {
           const Batch& batch = run.batch({{.slot = 0, .first_token = 0, .tokens = 9, .past = 0},
                                           {.slot = 1, .first_token = 0, .tokens = 6, .past = 0}});
           const std::int64_t heads = 4, kv_heads = latent ? 1 : 2, dk = 12, dr = latent ? 0 : 4, dv = latent ? 12 : 7;
           const Tensor q = run.input({15, heads, dk + dr}, normal(), Layout::kStrided);
           std::vector<KvSegment> segments{{.kind = KvSegment::Kind::kFresh,
                                            .k = run.input({15, kv_heads, dk}, normal()),
                                            .k_shared = {},
                                            .v = {},
                                            .window = latent ? 4 : 0}};
           if (latent)
             segments.push_back({.kind = KvSegment::Kind::kFreshEntries,
                                 .k = run.input({5, 1, dk}, normal()),
                                 .k_shared = {},
                                 .v = {},
                                 .ratio = 4});
           else
             segments[0].k_shared = run.input({15, dr}, normal()),
             segments[0].v = run.input({15, kv_heads, dv}, normal(), Layout::kStrided);
           std::vector<KvSegmentGrad> grads;
           for (KvSegment& segment : segments) {
             if (latent) segment.v = segment.k;
             KvSegmentGrad grad{
                 .dk = sum(run, fmt::format("dk{}", grads.size()), segment.k.shape), .dk_shared = {}, .dv = {}};
             grad.dv = latent ? grad.dk : sum(run, "dv", segment.v.shape);
             if (segment.k_shared.defined()) grad.dk_shared = sum(run, "dk_shared", segment.k_shared.shape);
             grads.push_back(grad);
           }
           AttentionGrad grad{.f = {.q = q,
                                    .segments = segments,
                                    .scale = 0.3,
                                    .sink = latent ? run.input(run.wide(), {heads}, normal()) : Tensor{},
                                    .out = {},
                                    .lse = {},
                                    .batch = &batch},
                              .dout = run.input({15, heads, dv}, normal()),
                              .dq = sum(run, "dq", {15, heads, dk + dr}, Layout::kStrided),
                              .segments = grads,
                              .dsink = {}};
           if (latent) grad.dsink = parameter_sum(run, "dsink", {heads});
           grad.f.out = run.output("out", {15, heads, dv}), grad.f.lse = run.output("lse", run.wide(), {15, heads});
           run.ops.attention(grad.f);  // backward reads what forward wrote
           run.grad().attention_backward(grad);
         }});
  add_long_attention(cases);
  for (const bool overlap : {false, true})
    cases.push_back({.op = "compress_backward",
                     .name = fmt::format("compress_backward/{}", overlap ? "overlap" : "own"),
                     .body = [=](CaseRun& run) {
                       const Batch& batch = run.batch({{.slot = 0, .first_token = 0, .tokens = 9, .past = 0},
                                                       {.slot = 1, .first_token = 0, .tokens = 6, .past = 0}});
                       const std::int64_t d = 5, w = overlap ? 2 * d : d;
                       CompressGrad grad{.f = {.kv = run.input({15, w}, normal()),
                                               .gate = run.input({15, w}, normal()),
                                               .ape = run.input(run.wide(), {4, w}, normal()),
                                               .state_kv = {},
                                               .state_gate = {},
                                               .ratio = 4,
                                               .overlap = overlap,
                                               .out = run.input({5, d}, normal()),
                                               .positions = {},
                                               .batch = &batch},
                                         .dout = run.input({5, d}, normal()),
                                         .dkv = sum(run, "dkv", {15, w}),
                                         .dgate = sum(run, "dgate", {15, w}),
                                         .dape = parameter_sum(run, "dape", {4, w})};
                       run.grad().compress_backward(grad);
                     }});
}

void add_experts(std::vector<OpCase>& cases) {
  for (const double limit : {0.0, 0.5}) {
    cases.push_back(
        {.op = "swiglu_backward", .name = fmt::format("swiglu_backward/limit{}", limit), .body = [=](CaseRun& run) {
           run.grad().swiglu_backward({.f = {.gate = run.input({3, 33}, normal(2.0), Layout::kStrided),
                                             .up = run.input({3, 33}, normal(2.0)),
                                             .limit = limit,
                                             .out = {}},
                                       .dout = run.input({3, 33}, normal()),
                                       .dgate = sum(run, "dgate", {3, 33}),
                                       .dup = sum(run, "dup", {3, 33}, Layout::kStrided)});
         }});
    for (const WeightFormat format : {WeightFormat::f32, WeightFormat::bf16, WeightFormat::mxfp4})
      for (const bool frozen : {false, true})
        cases.push_back(
            {.op = "experts_backward",
             .name = fmt::format("experts_backward/{}/limit{}{}", weight_format_name(format), limit,
                                 frozen ? "_frozen" : ""),
             .format = format,
             .body = [=](CaseRun& run) {
               const std::int64_t tokens = 7, h = 34, inner = 18;
               std::vector<Weight> gate, up, down;
               std::vector<Tensor> dgate, dup, ddown;
               for (int e = 0; e < 2; ++e) {
                 gate.push_back(run.weight(format, inner, h, 0.2)), up.push_back(run.weight(format, inner, h, 0.2)),
                     down.push_back(run.weight(format, h, inner, 0.2));
                 if (frozen) continue;
                 dgate.push_back(parameter_sum(run, fmt::format("dgate{}", e), {inner, h})),
                     dup.push_back(parameter_sum(run, fmt::format("dup{}", e), {inner, h}));
                 ddown.push_back(parameter_sum(run, fmt::format("ddown{}", e), {h, inner}));
               }
               const Tensor indices = run.ints(DType::i32, {tokens, 2}, {1, 2, 0, 3, 2, 0, 1, 3, 2, 1, 0, 1, 3, 0});
               ExpertsGrad grad{.f = {.x = run.input({tokens, h}, normal(), Layout::kStrided),
                                      .indices = indices,
                                      .weights = run.input({tokens, 2}, normal()),
                                      .gate = gate,
                                      .up = up,
                                      .down = down,
                                      .first_expert = 1,
                                      .total_experts = 4,
                                      .limit = limit,
                                      .out = {}},
                                .dout = run.input({tokens, h}, normal()),
                                .dx = sum(run, "dx", {tokens, h}),
                                .dweights = sum(run, "dweights", {tokens, 2}),
                                .dgate = dgate,
                                .dup = dup,
                                .ddown = ddown};
               run.grad().experts_backward(grad);
             }});
  }
  cases.push_back({.op = "experts_backward",
                   .name = "experts_backward/bf16/many",
                   .format = WeightFormat::bf16,
                   .body = [](CaseRun& run) {
                     const std::int64_t tokens = 190, h = 40, inner = 24;
                     std::vector<Weight> gate, up, down;
                     std::vector<Tensor> dgate, dup, ddown;
                     for (int e = 0; e < 3; ++e) {
                       gate.push_back(run.weight(WeightFormat::bf16, inner, h, 0.2));
                       up.push_back(run.weight(WeightFormat::bf16, inner, h, 0.2));
                       down.push_back(run.weight(WeightFormat::bf16, h, inner, 0.2));
                       // One matrix is frozen.
                       dgate.push_back(e == 1 ? Tensor{} : parameter_sum(run, fmt::format("dgate{}", e), {inner, h}));
                       dup.push_back(parameter_sum(run, fmt::format("dup{}", e), {inner, h}));
                       ddown.push_back(parameter_sum(run, fmt::format("ddown{}", e), {h, inner}));
                     }
                     std::vector<std::int64_t> chosen;  // expert 2 by all, 3 by half, 4 by nobody
                     for (std::int64_t t = 0; t < tokens; ++t)
                       chosen.push_back(2), chosen.push_back(t % 2 == 0 ? 3 : 0);
                     ExpertsGrad grad{.f = {.x = run.input({tokens, h}, normal()),
                                            .indices = run.ints(DType::i32, {tokens, 2}, chosen),
                                            .weights = run.input({tokens, 2}, normal()),
                                            .gate = gate,
                                            .up = up,
                                            .down = down,
                                            .first_expert = 2,
                                            .total_experts = 8,
                                            .out = {}},
                                      .dout = run.input({tokens, h}, normal()),
                                      .dx = sum(run, "dx", {tokens, h}),
                                      .dweights = sum(run, "dweights", {tokens, 2}),
                                      .dgate = dgate,
                                      .dup = dup,
                                      .ddown = ddown};
                     run.grad().experts_backward(grad);
                   }});
  cases.push_back({.op = "gelu_backward", .name = "gelu_backward", .body = [](CaseRun& run) {
                     run.grad().gelu_backward({.f = {.x = run.input({3, 33}, normal(2.0), Layout::kStrided), .out = {}},
                                               .dout = run.input({3, 33}, normal()),
                                               .dx = sum(run, "dx", {3, 33})});
                   }});
  for (const Scoring scoring : {Scoring::kSoftmax, Scoring::kSigmoid, Scoring::kSqrtSoftplus})
    for (const bool normalize : {false, true})
      cases.push_back(
          {.op = "route_backward",
           .name = fmt::format("route_backward/{}{}", static_cast<int>(scoring), normalize ? "_normalized" : ""),
           .body = [=](CaseRun& run) {
             const Routing routing{.scoring = scoring,
                                   .experts = 9,
                                   .top_k = 3,
                                   .groups = 1,
                                   .top_groups = 1,
                                   .group_rank = GroupRank::kMax,
                                   .normalize = normalize,
                                   .scaling = 2.5};
             RouteGrad grad{.f = {.logits = run.input({4, 9}, normal(2.0)),
                                  .bias = {},
                                  .table = {},
                                  .ids = {},
                                  .routing = routing,
                                  .indices = run.ints(DType::i32, {4, 3}, {0, 1, 2, 8, 3, 1, 4, 5, 6, 7, 0, 3}),
                                  .weights = run.input({4, 3}, normal())},
                            .dweights = run.input({4, 3}, normal()),
                            .dlogits = sum(run, "dlogits", {4, 9})};
             run.grad().route_backward(grad);
           }});
  for (const WeightFormat format : {WeightFormat::f32, WeightFormat::bf16})
    for (const bool transposed : {false, true})
      cases.push_back({.op = "grouped_linear_backward",
                       .name = fmt::format("grouped_linear_backward/{}{}", weight_format_name(format),
                                           transposed ? "_transposed" : ""),
                       .format = format,
                       .body = [=](CaseRun& run) {
                         const std::int64_t in = transposed ? 5 : 18, out = transposed ? 18 : 5;
                         GroupedLinearGrad grad{.f = {.x = run.input({7, 3, in}, normal(), Layout::kStrided),
                                                      .weight = run.weight(format, 3 * 8, 18, 0.3),
                                                      .group_rows = 8,
                                                      .row_offset = 2,
                                                      .rows = 5,
                                                      .transposed = transposed,
                                                      .out = {}},
                                                .dout = run.input({7, 3, out}, normal()),
                                                .dx = sum(run, "dx", {7, 3, in}),
                                                .dweight = parameter_sum(run, "dweight", {24, 18})};
                         run.grad().grouped_linear_backward(grad);
                       }});
}

void add_hyper(std::vector<OpCase>& cases) {
  const std::int64_t tokens = 3, c = 4, h = 9, logits = (2 + c) * c;
  cases.push_back({.op = "hyper_mix_backward", .name = "hyper_mix_backward", .body = [=](CaseRun& run) {
                     HyperMixGrad grad{.f = {.streams = run.input({tokens, c, h}, normal(), Layout::kStrided),
                                             .fn = run.weight(WeightFormat::f32, logits, c * h, 0.2),
                                             .base = run.input(run.wide(), {logits}, normal()),
                                             .scale = run.input(run.wide(), {3}, normal(0.3, 1.0)),
                                             .iterations = 20,
                                             .eps = 1e-6,
                                             .norm_eps = 1e-6,
                                             .collapsed = {},
                                             .post = {},
                                             .comb = {}},
                                       .dcollapsed = run.input({tokens, h}, normal()),
                                       .dpost = run.input({tokens, c}, normal()),
                                       .dcomb = run.input({tokens, c, c}, normal()),
                                       .dstreams = sum(run, "dstreams", {tokens, c, h}),
                                       .dfn = parameter_sum(run, "dfn", {logits, c * h}),
                                       .dbase = parameter_sum(run, "dbase", {logits}),
                                       .dscale = parameter_sum(run, "dscale", {3})};
                     run.grad().hyper_mix_backward(grad);
                   }});
  cases.push_back({.op = "hyper_merge_backward", .name = "hyper_merge_backward", .body = [=](CaseRun& run) {
                     HyperMergeGrad grad{.f = {.x = run.input({tokens, h}, normal()),
                                               .streams = run.input({tokens, c, h}, normal(), Layout::kStrided),
                                               .post = run.input({tokens, c}, normal()),
                                               .comb = run.input({tokens, c, c}, normal()),
                                               .out = {}},
                                         .dout = run.input({tokens, c, h}, normal()),
                                         .dx = sum(run, "dx", {tokens, h}),
                                         .dstreams = sum(run, "dstreams", {tokens, c, h}),
                                         .dpost = sum(run, "dpost", {tokens, c}),
                                         .dcomb = sum(run, "dcomb", {tokens, c, c})};
                     run.grad().hyper_merge_backward(grad);
                   }});
  cases.push_back({.op = "hyper_head_backward", .name = "hyper_head_backward", .body = [=](CaseRun& run) {
                     HyperHeadGrad grad{.f = {.streams = run.input({tokens, c, h}, normal()),
                                              .fn = run.weight(WeightFormat::f32, c, c * h, 0.2),
                                              .base = run.input(run.wide(), {c}, normal()),
                                              .scale = run.input(run.wide(), {1}, normal(0.3, 1.0)),
                                              .eps = 1e-6,
                                              .norm_eps = 1e-6,
                                              .out = {}},
                                        .dout = run.input({tokens, h}, normal()),
                                        .dstreams = sum(run, "dstreams", {tokens, c, h}),
                                        .dfn = parameter_sum(run, "dfn", {c, c * h}),
                                        .dbase = parameter_sum(run, "dbase", {c}),
                                        .dscale = parameter_sum(run, "dscale", {1})};
                     run.grad().hyper_head_backward(grad);
                   }});
}

}  // namespace

std::vector<OpCase> grad_cases() {
  std::vector<OpCase> cases;
  add_linear(cases), add_rows_and_norms(cases), add_attention(cases), add_experts(cases), add_hyper(cases);
  return cases;
}

}  // namespace fathom::test
