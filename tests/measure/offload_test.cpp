// A model whose weights lie in host memory answers bit for bit as one whose weights are all on the device, whatever is
// streamed and however late copies are; what is planned is what is allocated; a pretended limit is kept.
#include "measure/offload.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "backends/backends.h"
#include "base/i18n.h"
#include "engine/engine.h"
#include "measure/verify.h"
#include "support/paths.h"
#include "tensor/forwarding_backend.h"
#include "weights/synth.h"

namespace fathom::measure {
namespace {

const std::vector<std::string> kModels = {"llama3-gqa", "qwen2-tied", "qwen3", "v2-lite",
                                          "v3",         "v32",        "v4",    "v4-mixed"};
bool has_experts(const std::string& name) { return name[0] == 'v'; }

/// The cpu backend, but streamed copies happen as late as they may, a place is spoiled when it is left, and reading
/// what was not awaited is seen.
class LateBackend final : public tensor::ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  void fetch(int place, std::byte* to, const std::byte* from, Bytes bytes) override {
    Copy& copy = copies_[place];
    EXPECT_FALSE(copy.read) << "fetched into a place that is still read";
    copy = {to, from, bytes, true, false};
    ++fetches;
  }
  void await(int place) override {
    Copy& copy = copies_[place];
    if (copy.waits) std::memcpy(copy.to, copy.from, copy.bytes);
    copy.waits = false;
    copy.read = true;
  }
  void leave(int place) override {
    Copy& copy = copies_[place];
    copy.read = false;
    std::memset(copy.to, 0xff, copy.bytes);
  }
  int fetches = 0;

 private:
  struct Copy {
    std::byte* to = nullptr;
    const std::byte* from = nullptr;
    Bytes bytes = 0;
    bool waits = false, read = false;
  };
  std::map<int, Copy> copies_;
};

struct Made {
  std::unique_ptr<engine::Engine> engine;
  std::optional<OffloadReport> report;
  LateBackend* late = nullptr;
};

Result<Made> make(const std::string& name, const std::string& device, const OffloadWishes& wishes,
                  std::int64_t slots = 2) {
  FATHOM_TRY(const model::ModelSpec spec, model::load_config(test::fixtures() / "golden" / name));
  FATHOM_TRY(auto architecture, model::make_architecture(spec));
  FATHOM_TRY(auto backend, backends::make_backend(device == "late" ? "cpu" : device, {.threads = 1}));
  Made made;
  if (device == "late") {
    auto late = std::make_unique<LateBackend>(std::move(backend));
    made.late = late.get();
    backend = std::move(late);
  }
  const engine::EngineOptions options{.slots = slots, .context = 64, .prefill_chunk = 24, .cache_dtype = DType::f32};
  const engine::Seat seat;
  FATHOM_TRY(OffloadChoice choice, prepare_memory({.architecture = architecture.get(),
                                                   .backend = backend.get(),
                                                   .storage = {},
                                                   .engine = options,
                                                   .seat = &seat,
                                                   .work = {},
                                                   .weights = "native",
                                                   .isa = "",
                                                   .threads = 1,
                                                   .mmap = false},
                                                  wishes));
  made.report = std::move(choice.report);
  FATHOM_TRY(auto weights,
             weights::synthesize_in_memory(
                 architecture->weights(), *backend,
                 {.storage = {}, .host = std::move(choice.units), .seed = 3, .threads = 1, .progress = {}}));
  FATHOM_TRY(made.engine, engine::Engine::create(std::move(architecture), std::move(backend), std::move(weights),
                                                 options, {}, std::move(choice.options)));
  return made;
}

/// A prompt in two chunks, some tokens of it and of another sequence, and a prompt from nothing again.
std::vector<float> answers(engine::Engine& engine) {
  std::vector<float> all;
  const auto keep = [&](const Result<std::span<const float>>& logits) {
    ASSERT_TRUE(logits) << error_text(logits.error());
    all.insert(all.end(), logits->begin(), logits->end());
  };
  std::vector<std::int32_t> ids;
  for (int i = 0; i < 30; ++i) ids.push_back(2 + i * 37 % 200);
  keep(engine.prefill(0, ids));
  keep(engine.prefill(1, std::span(ids).first(5)));
  for (std::int32_t i = 0; i < 3; ++i) {
    const std::int32_t a = 5 + i, b = 90 - i;
    const engine::SlotTokens parts[] = {{0, std::span(&a, 1)}, {1, std::span(&b, 1)}};
    keep(engine.step(parts, engine::Logits::kLast));
  }
  engine.reset(1);
  keep(engine.prefill(1, std::span(ids).subspan(3, 9)));
  return all;
}

void expect_same_bits(const std::vector<float>& got, const std::vector<float>& want, const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  ASSERT_FALSE(got.empty());
  for (std::size_t i = 0; i < got.size(); ++i) {
    ASSERT_TRUE(std::isfinite(got[i])) << what << " at " << i;
    ASSERT_EQ(got[i], want[i]) << what << " at " << i;
  }
}

void expect_as_planned(const engine::Engine& engine, const std::string& what) {
  const engine::EngineMemory planned = engine.planned(), allocated = engine.allocated();
  EXPECT_EQ(planned.weights_arena, allocated.weights_arena) << what;
  EXPECT_EQ(planned.ring, allocated.ring) << what;
  EXPECT_EQ(planned.host, allocated.host) << what;
  EXPECT_EQ(planned.total(), allocated.total()) << what;
}

class Offloaded : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(EveryKind, Offloaded, testing::ValuesIn(kModels), [](const auto& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

TEST_P(Offloaded, AnswersBitForBit) {
  for (const char* device : {"cpu", "reference"}) {
    const auto plain = make(GetParam(), device, {});
    ASSERT_TRUE(plain) << error_text(plain.error());
    EXPECT_FALSE(plain->report.has_value());
    EXPECT_EQ(plain->engine->offload(), nullptr);
    const std::vector<float> want = answers(*plain->engine);
    for (const char* way : {"layers", "experts"}) {
      if (std::string(way) == "experts" && !has_experts(GetParam())) continue;
      auto made = make(GetParam(), device, {.memory = "least", .way = way});
      ASSERT_TRUE(made) << error_text(made.error());
      const std::string what = std::string(device) + " " + way;
      ASSERT_TRUE(made->report.has_value()) << what;
      expect_same_bits(answers(*made->engine), want, what);
      EXPECT_GT(made->engine->offload()->fetched_bytes(), 0u) << what;
      EXPECT_EQ(made->engine->offload()->host_calls(), 0) << what;
      EXPECT_LT(made->engine->allocated().weights_arena, plain->engine->allocated().weights_arena) << what;
      expect_as_planned(*made->engine, what);
    }
  }
}

TEST_P(Offloaded, ReadsNothingThatHasNotCome) {
  const auto plain = make(GetParam(), "cpu", {});
  ASSERT_TRUE(plain);
  auto made = make(GetParam(), "late", {.memory = "least", .way = "layers"});
  ASSERT_TRUE(made) << error_text(made.error());
  expect_same_bits(answers(*made->engine), answers(*plain->engine), "late");
  EXPECT_GT(made->late->fetches, 0);
}

TEST_P(Offloaded, HostComputesExpertsAsTheDeviceWould) {
  if (!has_experts(GetParam())) GTEST_SKIP() << "no experts";
  const auto plain = make(GetParam(), "cpu", {});
  ASSERT_TRUE(plain);
  const std::vector<float> want = answers(*plain->engine);
  auto made = make(GetParam(), "cpu", {.memory = "least", .way = "cpu-experts"});
  ASSERT_TRUE(made) << error_text(made.error());
  expect_same_bits(answers(*made->engine), want, "cpu-experts");
  EXPECT_GT(made->engine->offload()->host_calls(), 0);
  EXPECT_EQ(made->engine->offload()->fetched_bytes(), 0u);
  EXPECT_EQ(made->engine->allocated().ring, 0u);
  expect_as_planned(*made->engine, "cpu-experts");
}

TEST_P(Offloaded, SmallPassesOnTheHostAndLongOnesStreamed) {
  if (!has_experts(GetParam())) GTEST_SKIP() << "no experts";
  const auto plain = make(GetParam(), "cpu", {});
  ASSERT_TRUE(plain);
  const std::vector<float> want = answers(*plain->engine);
  // As a plan may decide; here by hand.
  const auto spec = model::load_config(test::fixtures() / "golden" / GetParam());
  ASSERT_TRUE(spec);
  auto architecture = model::make_architecture(*spec);
  ASSERT_TRUE(architecture);
  auto backend = backends::make_backend("cpu", {.threads = 1}), host = backends::make_backend("cpu", {.threads = 1});
  ASSERT_TRUE(backend && host);
  weights::HostUnits units{.units = {}, .places = 2};
  for (int layer = 0; layer < spec->layers; ++layer) {
    std::vector<model::WeightId> unit;
    for (std::size_t i = 0; i < (*architecture)->weights().entries().size(); ++i) {
      const model::WeightEntry& entry = (*architecture)->weights().entries()[i];
      if (entry.layer == layer && entry.cls == model::WeightClass::kRoutedExpert &&
          entry.part == model::WeightPart::kMain)
        unit.push_back(static_cast<model::WeightId>(i));
    }
    if (!unit.empty()) units.units.push_back(std::move(unit));
  }
  auto weights =
      weights::synthesize_in_memory((*architecture)->weights(), **backend,
                                    {.storage = {}, .host = std::move(units), .seed = 3, .threads = 1, .progress = {}});
  ASSERT_TRUE(weights) << error_text(weights.error());
  engine::OffloadOptions offload{.host_tokens = 5, .host = std::move(*host)};
  auto engine = engine::Engine::create(std::move(*architecture), std::move(*backend), std::move(*weights),
                                       {.slots = 2, .context = 64, .prefill_chunk = 24, .cache_dtype = DType::f32}, {},
                                       std::move(offload));
  ASSERT_TRUE(engine) << error_text(engine.error());
  expect_same_bits(answers(**engine), want, "both");
  EXPECT_GT((*engine)->offload()->host_calls(), 0);
  EXPECT_GT((*engine)->offload()->fetched_bytes(), 0u);
  expect_as_planned(**engine, "both");
}

TEST(Limit, IsKept) {
  for (const std::string name : {"llama3-gqa", "v3"}) {
    const auto plain = make(name, "cpu", {});
    ASSERT_TRUE(plain);
    const Bytes needed = engine::reserved_bytes(plain->engine->planned());
    auto enough = make(name, "cpu", {.memory = std::to_string(needed)});
    ASSERT_TRUE(enough) << error_text(enough.error());
    EXPECT_FALSE(enough->report.has_value()) << "all fits";
    int moved = 0;
    for (const Bytes less : {Bytes{1}, needed / 20, needed / 10, needed / 6}) {
      auto made = make(name, "cpu", {.memory = std::to_string(needed - less), .way = "layers"});
      if (!made) {
        EXPECT_EQ(made.error().key, "plan.offload.too_much");
        continue;
      }
      ++moved;
      ASSERT_TRUE(made->report.has_value());
      EXPECT_LE(engine::reserved_bytes(made->engine->allocated()), needed - less);
      expect_same_bits(answers(*made->engine), answers(*plain->engine), name);
      plain->engine->reset(0), plain->engine->reset(1);
    }
    EXPECT_GT(moved, 0) << name;
  }
}

TEST(Limit, SentencesSayWhatIsWrong) {
  const auto key = [](const OffloadWishes& wishes, const std::string& name = "llama3-gqa") {
    const auto made = make(name, "cpu", wishes);
    return made ? std::string("ok") : made.error().key;
  };
  EXPECT_EQ(key({.memory = "much"}), "measure.gpu_memory");
  EXPECT_EQ(key({.memory = "1KiB"}), "measure.offload_rest");
  EXPECT_EQ(key({.memory = "300KiB", .way = "none"}), "measure.offload_none");
  EXPECT_EQ(key({.memory = "least", .way = "experts"}), "plan.offload.no_experts");
  EXPECT_EQ(key({.way = "magic"}), "plan.offload.way");
  for (const char* name :
       {"measure.gpu_memory", "measure.offload_rest", "measure.offload_none", "measure.offload_mmap"})
    EXPECT_NE(tr(name), name);
}

TEST(Text, SaysWhatStaysAndWhy) {
  const auto made = make("v3", "cpu", {.memory = "least"});
  ASSERT_TRUE(made) << error_text(made.error());
  const std::string text = offload_text(*made->report);
  EXPECT_EQ(text.find('{'), std::string::npos) << text;
  EXPECT_EQ(text.find("measure."), std::string::npos) << text;
  EXPECT_GT(made->report->problem.rates.link, 0);
  EXPECT_GT(made->report->problem.rates.host_stream, 0);
}

TEST_P(Offloaded, IsThatOfTransformersToo) {
  for (const char* way : {"layers", "cpu-experts"}) {
    if (std::string(way) == "cpu-experts" && !has_experts(GetParam())) continue;
    VerifyOptions options{.threads = 1};
    options.offload = {.memory = "least", .way = way};
    const auto report = verify(test::fixtures() / "golden" / GetParam(), options);
    ASSERT_TRUE(report) << error_text(report.error());
    EXPECT_TRUE(report->passed) << way << ": " << report->worst;
    EXPECT_EQ(report->fetched_bytes > 0, std::string(way) == "layers");
    EXPECT_EQ(report->host_calls > 0, std::string(way) == "cpu-experts");
  }
}

TEST(Ranks, EachLeavesItsOwnShareInHostMemory) {
  struct Case {
    RankWishes ranks;
    const char* way;
  };
  for (const Case& c : {Case{{.tp = 2}, "layers"},
                        {{.pp = 2}, "layers"},
                        {{.ep = 2, .dp = 2}, "cpu-experts"},
                        {{.ep = 2, .dp = 2}, "experts"}}) {
    VerifyOptions options{.threads = 2};
    options.ranks = c.ranks;
    options.offload = {.memory = "least", .way = c.way};
    const auto report = verify(test::fixtures() / "golden" / "v3", options);
    ASSERT_TRUE(report) << error_text(report.error());
    EXPECT_TRUE(report->passed) << c.way << ": " << report->worst;
    EXPECT_TRUE(report->offload.has_value());
  }
}

}  // namespace
}  // namespace fathom::measure
