// The engine holds what was planned, and answers the same however a text is cut into passes and whoever else is being
// served.
#include "engine/engine.h"

#include <cmath>

#include "support.h"

namespace fathom::engine {
namespace {
using namespace test;  // NOLINT

using Memory = testing::TestWithParam<std::tuple<std::string, std::int64_t, std::string, DType>>;

class PlannedMemory : public Memory {};

// As many tokens a slot as the plan's own trace spreads them.
std::vector<std::int64_t> shares(std::int64_t tokens, std::int64_t slots) {
  std::vector<std::int64_t> out;
  for (std::int64_t s = 0; s < slots; ++s) {
    out.push_back(tokens / (slots - s));
    tokens -= out.back();
  }
  return out;
}

TEST_P(PlannedMemory, IsWhatIsAllocated) {
  const auto& [name, slots, device, cache_type] = GetParam();
  const EngineOptions options{
      .slots = slots, .context = 96, .prefill_chunk = 40, .logit_rows = 0, .cache_dtype = cache_type};
  auto made = make_engine(name, options, device);
  ASSERT_TRUE(made) << error_text(made.error());
  Engine& engine = **made;

  // The plan, made again from nothing but the architecture.
  auto architecture = tiny_architecture(name);
  ASSERT_TRUE(architecture);
  const auto weights = weights::plan_weights((*architecture)->weights(), {});
  ASSERT_TRUE(weights) << error_text(weights.error());
  const auto plan = plan_engine(**architecture, *weights, options, DType::f32);
  ASSERT_TRUE(plan) << error_text(plan.error());

  // Run passes of all three kinds with the most tokens that they may have.
  const std::int64_t vocabulary = engine.spec().vocabulary;
  const auto split = shares(options.prefill_chunk, slots);
  for (int pass = 0; pass < 3; ++pass) {
    std::vector<std::vector<std::int32_t>> ids;
    for (std::int64_t s = 0; s < slots; ++s)
      ids.push_back(some_ids(pass == 2 ? 1 : split[static_cast<std::size_t>(s)], vocabulary, s + 10 * pass));
    std::vector<SlotTokens> parts;
    for (std::int64_t s = 0; s < slots; ++s) parts.push_back({s, ids[static_cast<std::size_t>(s)]});
    const auto logits = engine.step(parts, Logits::kLast);
    ASSERT_TRUE(logits) << error_text(logits.error());
    ASSERT_EQ(logits->size(), static_cast<std::size_t>(slots * vocabulary));
    for (const float x : *logits) ASSERT_TRUE(std::isfinite(x));
  }

  const EngineMemory planned = plan->memory, allocated = engine.allocated();
  EXPECT_EQ(allocated.weights_arena, planned.weights_arena);
  EXPECT_EQ(allocated.cache, planned.cache);
  EXPECT_EQ(allocated.activations, planned.activations);
  EXPECT_EQ(allocated.constants, planned.constants);
  EXPECT_EQ(engine.planned().total(), allocated.total());
  // The cache is what the architecture asks for, but for the alignment of each of its tensors.
  const model::CacheSpec& cache = (*architecture)->cache();
  Bytes asked = 0;
  for (const model::CacheTensor& t : cache.tensors)
    asked += static_cast<Bytes>(slots * t.rows_for(options.context) * t.row_elements(t.type(cache_type)) *
                                dtype_bytes(t.type(cache_type)));
  EXPECT_EQ(asked, cache.bytes(slots, options.context, cache_type));
  EXPECT_GE(planned.cache, asked);
  EXPECT_LE(planned.cache, asked + 64 * cache.tensors.size());
  // Activations that were really alive at once.
  EXPECT_LE(allocated.activations_peak, planned.activations_peak);
  EXPECT_GE(static_cast<double>(allocated.activations_peak), 0.97 * static_cast<double>(planned.activations_peak));
  EXPECT_GE(planned.activations, planned.activations_peak);
}

std::string memory_name(const testing::TestParamInfo<Memory::ParamType>& info) {
  return test_name(std::get<0>(info.param)) + "_slots_" + std::to_string(std::get<1>(info.param)) + "_" +
         std::get<2>(info.param) + "_" + std::string(dtype_name(std::get<3>(info.param)));
}
INSTANTIATE_TEST_SUITE_P(EveryArchitecture, PlannedMemory,
                         testing::Combine(testing::ValuesIn(kTinyModels), testing::Values(1, 3),
                                          testing::Values("reference", "cpu"), testing::Values(DType::f32)),
                         memory_name);
INSTANTIATE_TEST_SUITE_P(EightBits, PlannedMemory,
                         testing::Combine(testing::ValuesIn(kTinyModels), testing::Values(2),
                                          testing::Values("reference", "cpu"),
                                          testing::Values(DType::f8e4m3, DType::i8)),
                         memory_name);

class Every : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Architecture, Every, testing::ValuesIn(kTinyModels),
                         [](const auto& info) { return test_name(info.param); });

TEST_P(Every, PromptInChunksAnswersAsAtOnce) {
  const auto ids = some_ids(61, 500);
  std::vector<float> whole;
  for (const std::int64_t chunk : {64, 16, 7, 1}) {
    auto engine = make_engine(GetParam(), {.slots = 1, .context = 64, .prefill_chunk = chunk});
    ASSERT_TRUE(engine) << error_text(engine.error());
    const auto logits = (*engine)->prefill(0, ids);
    ASSERT_TRUE(logits) << error_text(logits.error());
    EXPECT_EQ((*engine)->length(0), 61);
    if (whole.empty())
      whole.assign(logits->begin(), logits->end());
    else
      expect_close(*logits, whole, 1e-3, "chunks of " + std::to_string(chunk));
  }
}

// Three texts of different length, begun at different times and continued together, against each alone. Afterwards a
// slot is given to a new text, which must not notice what was there before.
TEST_P(Every, SlotsDoNotDisturbEachOther) {
  constexpr std::int64_t kPrompts[] = {23, 5, 38}, kAnswer = 6;
  auto together = make_engine(GetParam(), {.slots = 3, .context = 64, .prefill_chunk = 16});
  ASSERT_TRUE(together) << error_text(together.error());
  std::vector<std::vector<float>> last(3);
  const auto texts = [&](std::int64_t s) { return some_ids(kPrompts[s] + kAnswer, 500, 40 + s); };
  for (const std::int64_t s : {2, 0, 1}) {
    const auto ids = texts(s);
    ASSERT_TRUE((*together)->prefill(s, std::span(ids).first(static_cast<std::size_t>(kPrompts[s]))));
  }
  for (std::int64_t g = 0; g < kAnswer; ++g) {
    std::vector<std::vector<std::int32_t>> ids;
    for (std::int64_t s = 0; s < 3; ++s) ids.push_back({texts(s)[static_cast<std::size_t>(kPrompts[s] + g)]});
    std::vector<SlotTokens> parts;
    for (std::int64_t s = 0; s < 3; ++s) parts.push_back({s, ids[static_cast<std::size_t>(s)]});
    const auto logits = (*together)->step(parts, Logits::kLast);
    ASSERT_TRUE(logits) << error_text(logits.error());
    const auto vocabulary = static_cast<std::size_t>((*together)->spec().vocabulary);
    for (std::size_t s = 0; s < 3; ++s)
      last[s].assign(logits->begin() + static_cast<std::ptrdiff_t>(s * vocabulary),
                     logits->begin() + static_cast<std::ptrdiff_t>((s + 1) * vocabulary));
  }
  auto alone = make_engine(GetParam(), {.slots = 1, .context = 64, .prefill_chunk = 64});
  ASSERT_TRUE(alone);
  for (std::int64_t s = 0; s < 3; ++s) {
    (*alone)->reset(0);
    const auto logits = (*alone)->prefill(0, texts(s));
    ASSERT_TRUE(logits) << error_text(logits.error());
    expect_close(last[static_cast<std::size_t>(s)], *logits, 1e-3, "slot " + std::to_string(s));
  }
  (*together)->reset(1);
  const auto anew = some_ids(19, 500, 77);
  const auto again = (*together)->prefill(1, anew);
  ASSERT_TRUE(again);
  const std::vector<float> kept(again->begin(), again->end());
  (*alone)->reset(0);
  const auto fresh = (*alone)->prefill(0, anew);
  ASSERT_TRUE(fresh);
  expect_close(kept, *fresh, 1e-3, "a slot used again");
}

TEST_P(Every, AllLogitsEndWithTheLast) {
  auto engine = make_engine(GetParam(), {.slots = 1, .context = 32, .prefill_chunk = 32, .logit_rows = 32});
  ASSERT_TRUE(engine) << error_text(engine.error());
  const auto ids = some_ids(21, 500);
  const SlotTokens part{0, ids};
  const auto all = (*engine)->step(std::span(&part, 1), Logits::kAll);
  ASSERT_TRUE(all);
  const auto vocabulary = static_cast<std::size_t>((*engine)->spec().vocabulary);
  ASSERT_EQ(all->size(), ids.size() * vocabulary);
  const std::vector<float> last(all->end() - static_cast<std::ptrdiff_t>(vocabulary), all->end());
  (*engine)->reset(0);
  const auto only = (*engine)->step(std::span(&part, 1), Logits::kLast);
  ASSERT_TRUE(only);
  expect_close(*only, last, 1e-5, "the last row");
}

TEST(Context, IsRefusedBeforeAnythingIsComputed) {
  auto engine = make_engine("llama-mha", {.slots = 1, .context = 16, .prefill_chunk = 8});
  ASSERT_TRUE(engine) << error_text(engine.error());
  const auto long_text = some_ids(17, 500);
  const auto refused = (*engine)->prefill(0, long_text);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().key, "engine.context_full");
  EXPECT_EQ((*engine)->length(0), 0);
  const std::string sentence = error_text(refused.error());
  EXPECT_NE(sentence.find("16"), std::string::npos) << sentence;
  EXPECT_NE(sentence.find("17"), std::string::npos) << sentence;
  EXPECT_NE(sentence.find("256"), std::string::npos) << "the model's own limit: " << sentence;
  ASSERT_TRUE((*engine)->prefill(0, std::span(long_text).first(16)));
  const SlotTokens more{0, std::span(long_text).first(1)};
  const auto full = (*engine)->step(std::span(&more, 1), Logits::kLast);
  ASSERT_FALSE(full);
  EXPECT_EQ(full.error().key, "engine.context_full");
  EXPECT_EQ((*engine)->length(0), 16);
}

TEST(Context, BeyondTheModelsOwnIsRefused) {
  for (const std::int64_t context : {std::int64_t{0}, std::int64_t{-5}, std::int64_t{257}}) {
    const auto engine = make_engine("llama-mha", {.slots = 1, .context = context, .prefill_chunk = 8});
    ASSERT_FALSE(engine) << context;
    EXPECT_EQ(engine.error().key, "engine.context_range");
  }
}

TEST(Tokens, OutsideTheVocabularyAreRefused) {
  auto engine = make_engine("llama-mha", {.slots = 1, .context = 16, .prefill_chunk = 8});
  ASSERT_TRUE(engine);
  for (const std::int32_t id : {-1, 512, INT32_MAX}) {
    const std::vector<std::int32_t> ids = {3, id};
    const auto refused = (*engine)->prefill(0, ids);
    ASSERT_FALSE(refused) << id;
    EXPECT_EQ(refused.error().key, "engine.bad_token");
    EXPECT_EQ((*engine)->length(0), 0);
  }
}

}  // namespace
}  // namespace fathom::engine
