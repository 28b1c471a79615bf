// The backward of every op on `reference`, through the tape, against central differences in doubles: relative error at
// most 1e-5. Choices (experts, selected rows) are frozen: the harness checks that no nudge changed one.
#include "train/finite_difference.h"

namespace fathom::test {
namespace {
using namespace tensor;  // NOLINT: the vocabulary
using Call = Problem::Call;

Held ints(DType dtype, Shape shape, std::initializer_list<double> values) { return Held(dtype, shape, values); }

Value gelu_of(const Call& call, const Tensor& x) {
  Value out = allocate(call.ops, x.shape);
  call.ops.gelu({.x = x, .out = out});
  return out;
}

TEST(TapeOps, Embed) {
  const Held ids = ints(DType::i32, {5}, {2, 0, 2, 3, 2});
  check_gradients({{}, {waves({4, 3}, 1)}, [=](const Call& call) { return embed(call.ops, ids, call.weight(0)); }});
}

TEST(TapeOps, SplitEmbed) {
  const Held ids = ints(DType::i32, {5}, {2, 0, 6, 3, 4});
  check_gradients({{}, {waves({4, 3}, 1)}, [=](const Call& call) {
                     Value out = allocate(call.ops, {5, 3});
                     call.ops.embed({.ids = ids, .table = call.weight(0), .out = out, .first_id = 1, .split = true});
                     return out;
                   }});
}

TEST(TapeOps, GatherRows) {
  const Held rows = ints(DType::i32, {4}, {1, 2, 1, 0});
  check_gradients(
      {{waves({3, 4}, 1)}, {}, [=](const Call& call) { return gather_rows(call.ops, call.inputs[0], rows); }});
}

TEST(TapeOps, CopyIntoColumnsOfOneTensor) {
  check_gradients({{waves({3, 4}, 1), waves({3, 2}, 2)}, {}, [](const Call& call) {
                     Value out = allocate(call.ops, {3, 6});
                     call.ops.copy({.x = call.inputs[0], .out = out->columns(0, 4)});
                     call.ops.copy({.x = call.inputs[1], .out = out->columns(4, 2)});
                     return out;
                   }});
}

TEST(TapeOps, AddApartAndInPlaceAndTwice) {
  check_gradients({{waves({2, 3}, 1), waves({2, 3}, 2)}, {}, [](const Call& call) {
                     Value sum = add(call.ops, call.inputs[0], call.inputs[1]);
                     add_into(call.ops, sum, call.inputs[1]);                    // into a
                     call.ops.add({.a = call.inputs[0], .b = sum, .out = sum});  // into b
                     Value twice = add(call.ops, sum, sum);
                     add_into(call.ops, twice, twice);
                     return gelu_of(call, twice);
                   }});
}

TEST(TapeOps, ExpandStreams) {
  check_gradients({{waves({2, 3}, 1)}, {}, [](const Call& call) {
                     Value out = allocate(call.ops, {2, 4, 3});
                     call.ops.expand_streams({.x = call.inputs[0], .out = out});
                     return out;
                   }});
}

TEST(TapeOps, RmsNorm) {
  check_gradients({{waves({3, 5}, 1)}, {waves({1, 5}, 2, 0.3, 1.0)}, [](const Call& call) {
                     return rms_norm(call.ops, call.inputs[0], call.weight(0), 1e-3);
                   }});
}

TEST(TapeOps, RmsNormOfHeadsWithoutWeight) {
  check_gradients({{waves({3, 8}, 1)}, {}, [](const Call& call) {
                     return rms_norm(call.ops, call.inputs[0].split_last(4), {}, 1e-3);
                   }});
}

TEST(TapeOps, LayerNorm) {
  check_gradients({{waves({3, 5}, 1)}, {waves({1, 5}, 2, 0.3, 1.0), waves({1, 5}, 3)}, [](const Call& call) {
                     return layer_norm(call.ops, call.inputs[0], call.weight(0), call.weight(1), 1e-3);
                   }});
}

TEST(TapeOps, LinearWithBias) {
  check_gradients({{waves({3, 4}, 1)}, {waves({5, 4}, 2), waves({1, 5}, 3)}, [](const Call& call) {
                     return linear(call.ops, call.inputs[0], call.weight(0), call.weight(1));
                   }});
}

TEST(TapeOps, LinearAdded) {
  check_gradients({{waves({3, 4}, 1), waves({3, 5}, 4)}, {waves({5, 4}, 2)}, [](const Call& call) {
                     Value out = gelu_of(call, call.inputs[1]);
                     linear_add(call.ops, call.inputs[0], call.weight(0), out);
                     return gelu_of(call, out);
                   }});
}

TEST(TapeOps, LinearOfOneRow) {
  check_gradients({{waves({3, 4}, 1)}, {waves({1, 4}, 2)}, [](const Call& call) {
                     return linear(call.ops, call.inputs[0], call.weight(0));
                   }});
}

TEST(TapeOps, GroupedLinearBothWays) {
  for (const bool transposed : {false, true})
    check_gradients({{waves({2, 3, transposed ? 2 : 4}, 1)}, {waves({3 * 5, 4}, 2)}, [=](const Call& call) {
                       Value out = allocate(call.ops, {2, 3, transposed ? 4 : 2});
                       call.ops.grouped_linear({.x = call.inputs[0],
                                                .weight = call.weight(0),
                                                .group_rows = 5,
                                                .row_offset = 2,
                                                .rows = 2,
                                                .transposed = transposed,
                                                .out = out});
                       return out;
                     }});
}

TEST(TapeOps, RopeEveryWay) {
  const Held cos = waves({3, 2}, 8, 1.2), sin = waves({3, 2}, 9, 1.2);
  for (const bool interleaved : {false, true})
    for (const bool inverse : {false, true})
      check_gradients({{waves({3, 12}, 1)}, {}, [=](const Call& call) {
                         Value x = gelu_of(call, call.inputs[0]);
                         call.ops.rope({.x = x->split_last(6),
                                        .cos = cos,
                                        .sin = sin,
                                        .first_dim = 1,
                                        .interleaved = interleaved,
                                        .inverse = inverse});
                         return gelu_of(call, x);
                       }});
}

const Sequence kSequences[] = {{.slot = 0, .first_token = 0, .tokens = 5, .past = 0},
                               {.slot = 1, .first_token = 5, .tokens = 3, .past = 0}};
const Batch kBatch{.tokens = 8, .sequences = kSequences};

TEST(TapeOps, AttentionGroupedWithSharedKeysAndSink) {
  check_gradients({{waves({8, 4 * 5}, 1), waves({8, 2 * 3}, 2), waves({8, 2}, 3), waves({8, 2 * 4}, 4)},
                   {waves({1, 4}, 5)},
                   [](const Call& call) {
                     const KvSegment segment{.kind = KvSegment::Kind::kFresh,
                                             .k = call.inputs[1].split_last(3),
                                             .k_shared = call.inputs[2],
                                             .v = call.inputs[3].split_last(4)};
                     return attention(call.ops, call.inputs[0].split_last(5), std::span(&segment, 1), 4, 0.8,
                                      call.weight(0), kBatch);
                   }});
}

TEST(TapeOps, AttentionWhereValuesAreKeysInAWindow) {
  check_gradients({{waves({8, 2 * 4}, 1), waves({8, 4}, 2)}, {}, [](const Call& call) {
                     const Tensor k = call.inputs[1].split_last(4);
                     const KvSegment segment{
                         .kind = KvSegment::Kind::kFresh, .k = k, .k_shared = {}, .v = k.columns(0, 3), .window = 3};
                     return attention(call.ops, call.inputs[0].split_last(4), std::span(&segment, 1), 3, 0.5, {},
                                      kBatch);
                   }});
}

TEST(TapeOps, AttentionOverTokensAndSelectedEntries) {
  const Held selected = ints(DType::i32, {8, 1}, {-1, 0, 0, 1, 0, -1, 0, -1});
  check_gradients(
      {{waves({8, 2 * 4}, 1), waves({8, 4}, 2), waves({5, 4}, 3)}, {waves({1, 2}, 4)}, [=](const Call& call) {
         const Tensor k = call.inputs[1].split_last(4), entries = call.inputs[2].split_last(4);
         const KvSegment segments[] = {{.kind = KvSegment::Kind::kFresh, .k = k, .k_shared = {}, .v = k, .window = 2},
                                       {.kind = KvSegment::Kind::kFreshEntries,
                                        .k = entries,
                                        .k_shared = {},
                                        .v = entries,
                                        .ratio = 2,
                                        .selected = selected}};
         return attention(call.ops, call.inputs[0].split_last(4), segments, 4, 0.5, call.weight(0), kBatch);
       }});
}

TEST(TapeOps, AttentionOverRowsThatTheIndexerChose) {
  check_gradients(
      {{waves({8, 2 * 4}, 1), waves({8, 2 * 4}, 2), waves({8, 2 * 3}, 3), waves({8, 3}, 4), waves({8, 2}, 5)},
       {},
       [](const Call& call) {
         Value selected = allocate(call.ops, DType::i32, {8, 2});
         const Tensor keys = call.inputs[3].split_last(3);
         call.ops.index_select({.q = call.inputs[2].split_last(3),
                                .weights = call.inputs[4],
                                .keys = {.kind = KvSegment::Kind::kFresh, .k = keys, .k_shared = {}, .v = keys},
                                .scale = 1,
                                .selected = selected,
                                .batch = &kBatch});
         call.choose(selected);
         const Tensor k = call.inputs[1].split_last(4);
         const KvSegment segment{.kind = KvSegment::Kind::kFresh, .k = k, .k_shared = {}, .v = k, .selected = selected};
         Value out = attention(call.ops, call.inputs[0].split_last(4), std::span(&segment, 1), 4, 0.5, {}, kBatch);
         // The indexer is not differentiated; something else is, so that its inputs are tested too.
         Value rest = rms_norm(call.ops, call.inputs[2], {}, 1e-2), more = rms_norm(call.ops, call.inputs[3], {}, 1e-2),
               last = rms_norm(call.ops, call.inputs[4], {}, 1e-2);
         Value joined = allocate(call.ops, {8, 19});
         call.ops.copy({.x = out->join_last(), .out = joined->columns(0, 8)});
         call.ops.copy({.x = rest, .out = joined->columns(8, 6)});
         call.ops.copy({.x = more, .out = joined->columns(14, 3)});
         call.ops.copy({.x = last, .out = joined->columns(17, 2)});
         return joined;
       }});
}

TEST(TapeOps, CompressWithAndWithoutOverlap) {
  for (const bool overlap : {false, true}) {
    const std::int64_t w = overlap ? 6 : 3;
    check_gradients({{waves({8, w}, 1), waves({8, w}, 2)}, {waves({2, w}, 3)}, [=](const Call& call) {
                       Value out = allocate(call.ops, {5, 3}), positions = allocate(call.ops, DType::i32, {5});
                       call.ops.compress({.kv = call.inputs[0],
                                          .gate = call.inputs[1],
                                          .ape = call.parameter(0),
                                          .state_kv = {},
                                          .state_gate = {},
                                          .state_rows = 0,
                                          .ratio = 2,
                                          .overlap = overlap,
                                          .out = out,
                                          .positions = positions,
                                          .batch = &kBatch,
                                          .ape_parameter = 0});
                       return out;
                     }});
  }
}

TEST(TapeOps, Swiglu) {
  for (const double limit : {0.0, 0.55})
    check_gradients({{waves({4, 5}, 1), waves({4, 5}, 2)}, {}, [=](const Call& call) {
                       return swiglu(call.ops, call.inputs[0], call.inputs[1], limit);
                     }});
}

TEST(TapeOps, Gelu) {
  check_gradients({{waves({4, 5}, 1, 2.0)}, {}, [](const Call& call) { return gelu_of(call, call.inputs[0]); }});
}

TEST(TapeOps, RouteEveryScoring) {
  for (const Scoring scoring : {Scoring::kSoftmax, Scoring::kSigmoid, Scoring::kSqrtSoftplus})
    for (const bool normalize : {false, true})
      for (const GroupRank rank : {GroupRank::kMax, GroupRank::kTopTwoSum}) {
        const Routing routing{.scoring = scoring,
                              .experts = 8,
                              .top_k = 3,
                              .groups = 4,
                              .top_groups = 2,
                              .group_rank = rank,
                              .normalize = normalize,
                              .scaling = 2.5};
        check_gradients({{waves({4, 8}, 1, 2.0)}, {}, [=](const Call& call) {
                           Routed routed = route(call.ops, call.inputs[0], routing, {}, {}, {});
                           call.choose(routed.indices);
                           return std::move(routed.weights);
                         }});
      }
}

TEST(TapeOps, RouteByTableAndBias) {
  const Held table = ints(DType::i64, {3, 2}, {0, 4, 3, 1, 2, 4}), ids = ints(DType::i32, {4}, {2, 0, 1, 1}),
             bias = waves({5}, 9, 0.4);
  const Routing routing{.scoring = Scoring::kSqrtSoftplus,
                        .experts = 5,
                        .top_k = 2,
                        .groups = 1,
                        .top_groups = 1,
                        .group_rank = GroupRank::kMax,
                        .normalize = true,
                        .scaling = 1.5};
  for (const bool by_table : {false, true})
    check_gradients({{waves({4, 5}, 1, 2.0)}, {}, [=](const Call& call) {
                       Weight added = bias.weight();
                       Routed routed = by_table ? route(call.ops, call.inputs[0], routing, {}, table.weight(), ids)
                                                : route(call.ops, call.inputs[0], routing, added, {}, {});
                       call.choose(routed.indices);
                       return std::move(routed.weights);
                     }});
}

/// Experts 1 and 2 of 4 are here; one token goes to neither, one to both.
TEST(TapeOps, Experts) {
  const Held indices = ints(DType::i32, {4, 2}, {1, 2, 0, 3, 2, 0, 1, 3});
  for (const bool accumulate : {false, true})
    for (const double limit : {0.0, 0.4}) {
      Problem problem{{waves({4, 3}, 1), waves({4, 2}, 2), waves({4, 3}, 3)}, {}, [=](const Call& call) {
                        const std::vector<Weight> gate = {call.weight(0), call.weight(3)},
                                                  up = {call.weight(1), call.weight(4)},
                                                  down = {call.weight(2), call.weight(5)};
                        Value out = gelu_of(call, call.inputs[2]);
                        if (!accumulate) out = allocate(call.ops, {4, 3});
                        call.ops.experts({.x = call.inputs[0],
                                          .indices = indices,
                                          .weights = call.inputs[1],
                                          .gate = gate,
                                          .up = up,
                                          .down = down,
                                          .first_expert = 1,
                                          .total_experts = 4,
                                          .limit = limit,
                                          .out = out,
                                          .accumulate = accumulate});
                        if (!accumulate) {
                          Value more = gelu_of(call, call.inputs[2]);
                          add_into(call.ops, out, more);
                        }
                        return out;
                      }};
      for (int e = 0; e < 2; ++e)
        for (int i = 0; i < 3; ++i)
          problem.parameters.push_back(i < 2 ? waves({5, 3}, 10 + 3 * e + i) : waves({3, 5}, 10 + 3 * e + i));
      check_gradients(problem);
    }
}

TEST(TapeOps, HyperMixAndMerge) {
  for (const std::int64_t iterations : {1, 4}) {
    const std::int64_t c = 3, logits = (2 + c) * c;
    check_gradients({{waves({2, 3 * 4}, 1), waves({2, 4}, 6)},
                     {waves({logits, c * 4}, 2), waves({1, logits}, 3), waves({1, 3}, 4, 0.5, 1.0)},
                     [=](const Call& call) {
                       const Tensor streams = call.inputs[0].split_last(4);
                       Value collapsed = allocate(call.ops, {2, 4}), post = allocate(call.ops, {2, c}),
                             comb = allocate(call.ops, {2, c, c});
                       call.ops.hyper_mix({.streams = streams,
                                           .fn = call.weight(0),
                                           .base = call.weight(1).tensor(),
                                           .scale = call.weight(2).tensor(),
                                           .iterations = iterations,
                                           .eps = 1e-2,
                                           .norm_eps = 1e-3,
                                           .collapsed = collapsed,
                                           .post = post,
                                           .comb = comb,
                                           .base_parameter = 1,
                                           .scale_parameter = 2});
                       add_into(call.ops, collapsed, call.inputs[1]);
                       Value out = allocate(call.ops, {2, c, 4});
                       call.ops.hyper_merge(
                           {.x = collapsed, .streams = streams, .post = post, .comb = comb, .out = out});
                       return out;
                     }});
  }
}

TEST(TapeOps, HyperHead) {
  check_gradients(
      {{waves({2, 3 * 4}, 1)}, {waves({3, 12}, 2), waves({1, 3}, 3), waves({1, 1}, 4, 0.5, 1.0)}, [](const Call& call) {
         Value out = allocate(call.ops, {2, 4});
         call.ops.hyper_head({.streams = call.inputs[0].split_last(4),
                              .fn = call.weight(0),
                              .base = call.weight(1).tensor(),
                              .scale = call.weight(2).tensor(),
                              .eps = 1e-2,
                              .norm_eps = 1e-3,
                              .out = out,
                              .base_parameter = 1,
                              .scale_parameter = 2});
         return out;
       }});
}

TEST(TapeOps, CrossEntropy) {
  const Held targets = ints(DType::i32, {4}, {2, -100, 0, 5});
  check_gradients({{waves({4, 6}, 1, 3.0)}, {}, [=](const Call& call) {
                     Value losses = allocate(call.ops, {4});
                     call.ops.cross_entropy({.logits = call.inputs[0], .targets = targets, .losses = losses});
                     return losses;
                   }});
}

}  // namespace
}  // namespace fathom::test
