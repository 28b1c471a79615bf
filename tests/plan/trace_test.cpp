// The shortcut (one layer a kind, rates per token) against the whole thing.
#include <map>

#include "plan/cost_program.h"
#include "plan/formats.h"
#include "plan/model_tracing.h"
#include "support.h"

namespace fathom::plan {
namespace {

using meta::OpKind;
using meta::Rate;

const char* const kModels[] = {"deepseek-llm-7b-chat",
                               "deepseek-coder-1.3b-base",
                               "r1-distill-qwen-1.5b",
                               "deepseek-moe-16b-base",
                               "v2-lite",
                               "r1",
                               "v3.2",
                               "v4-flash",
                               "v4.1-flash",
                               "generic/dense-175b"};

/// Sums that must agree whichever way they were reached.
struct Sums {
  Rate flops, read, written, comm, rows;
  double weight_bytes = 0, weight_elements = 0, attention = 0;
  std::map<OpKind, double> count;
  void add(const meta::Trace& trace, double times) {
    for (const meta::OpRecord& op : trace.ops) {
      flops += op.flops * times;
      read += op.read_bytes * times;
      written += op.written_bytes * times;
      comm += op.comm_bytes * times;
      rows += op.rows * times;
      weight_bytes += static_cast<double>(op.weight_bytes) * times;
      weight_elements += static_cast<double>(op.weight_elements) * times;
      attention += times * op.heads * (op.key_dim + op.value_dim + op.shared_key_dim);
      count[op.kind] += times;
    }
  }
};

Sums sum_of(const ModelTrace& trace) {
  Sums sums;
  sums.add(trace.embed, 1);
  for (const KindTrace& kind : trace.kinds) sums.add(kind.forward, static_cast<double>(kind.layers));
  sums.add(trace.head, 1);
  return sums;
}

void expect_near(double a, double b, const std::string& what) {
  EXPECT_LE(std::abs(a - b), 1e-9 * std::abs(b) + 1e-9) << what << ": " << a << " against " << b;
}

void expect_same(const Rate& a, const Rate& b, const std::string& what) {
  expect_near(a.per_token, b.per_token, what + " per token");
  expect_near(a.per_output, b.per_output, what + " per output");
  expect_near(a.fixed, b.fixed, what + " fixed");
}

TEST(ModelTrace, OneLayerOfEachKindStandsForAll) {
  for (const char* name : kModels) {
    const auto model = named_model(name);
    ASSERT_NE(model, nullptr);
    const auto share = model->share({});
    ASSERT_TRUE(share.has_value());
    for (const Phase phase : {Phase::kPrefill, Phase::kDecode, Phase::kContinue}) {
      const Sums shortcut = sum_of(trace_model(**share, phase, DType::bf16));
      Sums whole;
      whole.add(trace_whole(**share, phase, DType::bf16, 0), 1);
      const std::string where = std::string(name) + " phase " + std::to_string(static_cast<int>(phase));
      EXPECT_EQ(shortcut.count, whole.count) << where;
      expect_same(shortcut.flops, whole.flops, where + " flops");
      expect_same(shortcut.read, whole.read, where + " read");
      expect_same(shortcut.written, whole.written, where + " written");
      expect_same(shortcut.rows, whole.rows, where + " rows");
      expect_near(shortcut.weight_bytes, whole.weight_bytes, where + " weight bytes");
      expect_near(shortcut.weight_elements, whole.weight_elements, where + " weight elements");
      expect_near(shortcut.attention, whole.attention, where + " attention");
    }
  }
}

// 256 tokens: a multiple of every ratio, so that rates are exact there.
TEST(ModelTrace, RatesGiveWhatATraceOfThatSizeGives) {
  constexpr double kTokens = 256;
  for (const char* name : kModels) {
    const auto model = named_model(name);
    const auto share = model->share({});
    ASSERT_TRUE(share.has_value());
    for (const Phase phase : {Phase::kPrefill, Phase::kDecode}) {
      const double outputs = phase == Phase::kDecode ? kTokens : 1;
      const Sums rates = sum_of(trace_model(**share, phase, DType::bf16));
      Sums exact;
      exact.add(trace_whole(**share, phase, DType::bf16, static_cast<std::int64_t>(kTokens)), 1);
      const std::string where = std::string(name) + " phase " + std::to_string(static_cast<int>(phase));
      expect_near(rates.flops.at(kTokens, outputs), exact.flops.fixed, where + " flops");
      expect_near(rates.read.at(kTokens, outputs), exact.read.fixed, where + " read");
      expect_near(rates.written.at(kTokens, outputs), exact.written.fixed, where + " written");
      expect_near(rates.rows.at(kTokens, outputs), exact.rows.fixed, where + " rows");
    }
  }
}

// What attention is priced by: a token's keys and values are as many bytes as the cache has for it.
TEST(ModelTrace, AttentionReadsTheWholeCache) {
  for (const char* name : {"deepseek-llm-7b-chat", "r1-distill-qwen-1.5b", "r1-distill-llama-70b",
                           "deepseek-moe-16b-base", "v2-lite", "r1", "generic/dense-175b"}) {
    const auto model = named_model(name);
    ASSERT_NE(model, nullptr) << name;
    const auto share = model->share({});
    const auto bf16 = find_kv_format("bf16");
    ASSERT_TRUE(share.has_value() && bf16.has_value());
    const auto cache = model->share_cache({}, **bf16);
    ASSERT_TRUE(cache.has_value());
    double held = 0;
    for (const ShareCache::Growth& growth : (*cache)->growing) held += growth.row_bytes_before.back();
    for (const Phase phase : {Phase::kDecode, Phase::kContinue}) {
      double read = 0;
      for (const meta::OpRecord& op : trace_whole(**share, phase, DType::bf16, 0).ops)
        if (op.kind == OpKind::kAttention && op.segment == tensor::KvSegment::Kind::kCache)
          read += cache_row_bytes(op, nullptr);
      EXPECT_DOUBLE_EQ(read, held) << name << " phase " << static_cast<int>(phase);
    }
  }
}

TEST(ModelTrace, PeakIsThatOfTheWholePass) {
  constexpr double kTokens = 512;
  for (const char* name : kModels) {
    const auto model = named_model(name);
    const auto share = model->share({});
    ASSERT_TRUE(share.has_value());
    const double whole =
        meta::live_peak(trace_whole(**share, Phase::kPrefill, DType::f32, static_cast<std::int64_t>(kTokens))).at(0, 0);
    const ModelTrace trace = trace_model(**share, Phase::kPrefill, DType::f32);
    Rate held;
    const double embed = meta::live_peak(trace.embed, &held).at(kTokens, 1);
    double layer = meta::live_peak(trace.head).at(kTokens, 1);
    for (const KindTrace& kind : trace.kinds) layer = std::max(layer, meta::live_peak(kind.forward).at(kTokens, 1));
    const double shortcut = std::max(embed, held.at(kTokens, 1) + layer);
    EXPECT_GT(whole, 0) << name;
    EXPECT_LE(std::abs(shortcut - whole), 0.03 * whole) << name << ": " << shortcut << " against " << whole;
  }
}

TEST(ModelTrace, FlopsAreTwoAParameterAndToken) {
  // Of a dense model: every weight of the layers and the head multiplies every token once.
  const auto model = named_model("deepseek-llm-7b-chat");
  const auto trace = model->trace({}, Phase::kTrain);
  ASSERT_TRUE(trace.has_value());
  double products = 0;
  const auto add = [&](const meta::Trace& part, double times) {
    for (const meta::OpRecord& op : part.ops)
      if (op.kind == OpKind::kLinear) products += op.flops.per_token * times;
  };
  for (const KindTrace& kind : (*trace)->kinds) add(kind.forward, static_cast<double>(kind.layers));
  add((*trace)->head, 1);
  const model::ModelSpec& spec = model->spec();
  const double parameters = static_cast<double>(model->sizes().parameters_active);
  const double norms = static_cast<double>((2 * spec.layers + 1) * spec.hidden);
  EXPECT_NEAR(products, 2 * (parameters - norms), 1e-9 * products);
}

TEST(ModelTrace, BackwardHasBothGradientsOfEveryProduct) {
  for (const char* name : {"deepseek-llm-7b-chat", "r1", "v4-flash"}) {
    const auto model = named_model(name);
    const auto trace = model->trace({}, Phase::kTrain);
    ASSERT_TRUE(trace.has_value()) << name;
    for (const KindTrace& kind : (*trace)->kinds) {
      double forward = 0, inputs = 0, weights = 0;
      for (const meta::OpRecord& op : kind.forward.ops)
        if (op.kind == OpKind::kLinear) forward += op.flops.per_token;
      for (const meta::OpRecord& op : kind.backward.ops) {
        EXPECT_TRUE(op.backward || op.kind == OpKind::kZero) << name << " " << meta::op_name(op.kind);
        if (op.kind == OpKind::kLinear) (op.weight_gradient ? weights : inputs) += op.flops.per_token;
      }
      EXPECT_GT(forward, 0) << name;
      // What an indexer chooses by is not differentiated, nor is what only the indexer reads.
      if (model->spec().index_top_k == 0) {
        EXPECT_DOUBLE_EQ(weights, forward) << name;
      }
      EXPECT_LE(weights, forward) << name;
      EXPECT_GT(weights, 0.8 * forward) << name;
      EXPECT_LE(inputs, forward) << name;
      EXPECT_GT(inputs, 0.8 * forward) << name;
    }
  }
}

TEST(ModelTrace, ShardedWorkAddsUpToTheWhole) {
  for (const char* name : {"deepseek-llm-67b-chat", "r1", "v4-pro"}) {
    const auto model = named_model(name);
    const auto whole = model->trace({}, Phase::kPrefill),
               split = model->trace({.tp = 8, .expert_tp = 8}, Phase::kPrefill);
    ASSERT_TRUE(whole.has_value() && split.has_value()) << name;
    const double one = sum_of(**whole).flops.per_token, part = sum_of(**split).flops.per_token;
    EXPECT_GE(part * 8, one * 0.999) << name;  // replicated parts are computed by everyone
    EXPECT_LE(part * 8, one * 1.6) << name;
    EXPECT_EQ(sum_of(**whole).comm.per_token, 0) << name;
    EXPECT_GT(sum_of(**split).comm.per_token, 0) << name;
  }
}

}  // namespace
}  // namespace fathom::plan
