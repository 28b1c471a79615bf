// Bytes of formats: block by block, against the released checkpoints, and against the caches' published figures.
#include "plan/formats.h"

#include <map>

#include "model/catalog.h"
#include "support.h"

namespace fathom::plan {
namespace {

const Formats& all() {
  const auto loaded = formats();
  EXPECT_TRUE(loaded.has_value()) << (loaded ? "" : error_text(loaded.error()));
  return **loaded;
}

Bytes bytes_of(const std::string& storage, std::int64_t rows, std::int64_t cols) {
  for (const Storage& item : all().storages)
    if (item.name == storage) return storage_bytes(all(), item, rows, cols);
  ADD_FAILURE() << storage;
  return 0;
}

TEST(Formats, BlocksAreAsTheirMakersSay) {
  EXPECT_EQ(bytes_of("q8_0", 1, 32), 34U);
  EXPECT_EQ(bytes_of("q4_0", 1, 32), 18U);
  EXPECT_EQ(bytes_of("q4_k", 1, 256), 144U);
  EXPECT_EQ(bytes_of("q5_k", 1, 256), 176U);
  EXPECT_EQ(bytes_of("q6_k", 1, 256), 210U);
  EXPECT_EQ(bytes_of("q3_k", 1, 256), 110U);
  EXPECT_EQ(bytes_of("q2_k", 1, 256), 84U);
  EXPECT_EQ(bytes_of("iq4_xs", 1, 256), 136U);
  EXPECT_EQ(bytes_of("mxfp4", 1, 32), 17U);
  EXPECT_EQ(bytes_of("nvfp4", 1, 16), 9U + 4U);
  EXPECT_EQ(bytes_of("int4_group128", 1, 128), 64U + 2U + 1U);  // half a byte of zero rounds up
  EXPECT_EQ(bytes_of("fp8_block128", 128, 128), 128U * 128 + 4);
  EXPECT_EQ(bytes_of("fp8_block128", 129, 128), 129U * 128 + 8);
  EXPECT_EQ(bytes_of("bf16", 3, 5), 30U);
}

TEST(Formats, KQuantsFallBackWhereColumnsDoNotDivide) {
  EXPECT_EQ(bytes_of("q4_k", 2, 896), bytes_of("q5_0", 2, 896));
  EXPECT_EQ(bytes_of("q6_k", 2, 896), bytes_of("q8_0", 2, 896));
}

TEST(Formats, NativeBytesAreThoseOfEveryCheckpoint) {
  const auto catalog = model::model_catalog();
  ASSERT_TRUE(catalog.has_value());
  const auto native = find_weight_format("native");
  ASSERT_TRUE(native.has_value());
  int seen = 0;
  for (const model::ModelEntry& entry : (*catalog)->models()) {
    const auto model = named_model(entry.id);
    ASSERT_NE(model, nullptr) << entry.id;
    Bytes sum = 0;
    for (const model::WeightEntry& weight : model->whole().weights().entries())
      sum += entry_bytes(all(), **native, weight, model->spec().layers, model->spec().tied_embeddings);
    EXPECT_EQ(sum, model->sizes().checkpoint_bytes) << entry.id;
    if (entry.published_checkpoint_bytes && entry.published_checkpoint_precision.starts_with("exact")) {
      EXPECT_EQ(sum, *entry.published_checkpoint_bytes) << entry.id;
    }
    ++seen;
  }
  EXPECT_GE(seen, 60);
}

double bytes_a_token(const ShareCache& cache) {
  double sum = 0;
  for (const ShareCache::Growth& growth : cache.growing)
    sum += growth.row_bytes_before.back() / static_cast<double>(growth.ratio);
  return sum;
}

/// Our format that a figure's key speaks of.
const char* format_of(const std::string& key) {
  static const std::map<std::string, const char*> names = {{"16bit", "bf16"},
                                                           {"bf16", "bf16"},
                                                           {"fp8", "fp8"},
                                                           {"fp8_flashmla", "fp8_ds_mla"},
                                                           {"fp8_fp4index", "fp8_fp4index"},
                                                           {"fp8_fp8index", "fp8"},
                                                           {"nvfp4_mxfp4index", "nvfp4"}};
  const auto at = names.find(key);
  return at == names.end() ? nullptr : at->second;
}

TEST(Formats, CacheBytesAreTheFactsOfEveryModel) {
  const auto catalog = model::model_catalog();
  ASSERT_TRUE(catalog.has_value());
  int figures = 0;
  for (const model::ModelEntry& entry : (*catalog)->models()) {
    const auto model = named_model(entry.id);
    ASSERT_NE(model, nullptr) << entry.id;
    for (const model::KvFigure& figure : model->whole().kv_figures().per_token) {
      const char* name = format_of(figure.key);
      ASSERT_NE(name, nullptr) << entry.id << " " << figure.key;
      const auto kv = find_kv_format(name);
      ASSERT_TRUE(kv.has_value());
      const auto cache = model->share_cache({}, **kv);
      ASSERT_TRUE(cache.has_value());
      EXPECT_DOUBLE_EQ(bytes_a_token(**cache), figure.bytes) << entry.id << " " << figure.key;
      ++figures;
    }
  }
  EXPECT_GE(figures, 120);
}

// Rows in INT8 have a scale a head, and those of latents one more for their rotated part: what the engine allocates.
TEST(Formats, Int8CachesAreAsTheEngineHasThem) {
  struct Known {
    const char* model;
    double bytes;  // a token of the context
  };
  for (const Known& known :
       {Known{"r1-distill-llama-8b", 32.0 * 2 * (8 * 128 + 8 * 4)}, Known{"v2-lite", 27.0 * (512 + 16 + 64 + 16)},
        Known{"v3.2", 61.0 * (512 + 16 + 64 + 16 + 128 + 16)}}) {
    const auto model = named_model(known.model);
    ASSERT_NE(model, nullptr) << known.model;
    const auto kv = find_kv_format("int8");
    ASSERT_TRUE(kv.has_value());
    const auto cache = model->share_cache({}, **kv);
    ASSERT_TRUE(cache.has_value());
    const double allocated = static_cast<double>(model->whole().cache().bytes(1, 64, DType::i8)) / 64;
    EXPECT_DOUBLE_EQ(bytes_a_token(**cache), known.bytes) << known.model;
    EXPECT_DOUBLE_EQ(bytes_a_token(**cache), allocated) << known.model;
  }
}

// In FP8 other engines keep scales of indexer keys and more bits of V4's entries; this program a byte an element.
TEST(Formats, Fp8CachesAreAsTheEngineHasThem) {
  for (const char* name : {"r1-distill-llama-8b", "v2-lite", "v3.2"}) {
    const auto model = named_model(name);
    ASSERT_NE(model, nullptr) << name;
    const auto kv = find_kv_format(" FP8 ", true);
    ASSERT_TRUE(kv.has_value());
    const auto cache = model->share_cache({}, **kv);
    ASSERT_TRUE(cache.has_value());
    EXPECT_DOUBLE_EQ(bytes_a_token(**cache),
                     static_cast<double>(model->whole().cache().bytes(1, 64, DType::f8e4m3)) / 64)
        << name;
  }
  EXPECT_NE(*find_kv_format("fp8"), *find_kv_format("fp8", true));
  EXPECT_EQ(*find_kv_format("bf16"), *find_kv_format("bf16", true));
}

TEST(Formats, FixedCacheBytesOfV4) {
  struct Known {
    const char* model;
    const char* kv;
    double window;
  };
  for (const Known& known : {Known{"v4-flash", "fp8", 3214336}, Known{"v4-flash", "bf16", 5636096},
                             Known{"v4-pro", "fp8", 4559872}, Known{"v4.1-flash", "nvfp4", 2703360}}) {
    const auto model = named_model(known.model);
    const auto kv = find_kv_format(known.kv);
    ASSERT_TRUE(kv.has_value());
    double windows = 0, states = 0;
    for (const model::CacheTensor& tensor : model->whole().cache().tensors) {
      if (tensor.rows != tensor::RowsOf::kRing) continue;
      (tensor.state ? states : windows) +=
          cache_row_bytes(**kv, model->spec(), tensor) * static_cast<double>(tensor.ring_rows);
    }
    EXPECT_DOUBLE_EQ(windows, known.window) << known.model << " " << known.kv;
    if (std::string(known.model) == "v4-flash") {
      EXPECT_DOUBLE_EQ(states, 12206080) << "compressor state";
    }
  }
}

TEST(Formats, Q4KMMixesAsTheQuantizerDoes) {
  // 32 layers: the first 4, the last 4 and every third between store v and down in q6_k: 4 + 4 + 8.
  const auto model = model_of(tiny_config("llama"));
  const auto rule = find_weight_format("q4_k_m");
  ASSERT_TRUE(rule.has_value());
  model::WeightEntry entry{
      .pattern = "model.layers.0.mlp.down_proj.weight", .cls = model::WeightClass::kDenseFfn, .rows = 256, .cols = 512};
  int sixes = 0;
  for (entry.layer = 0; entry.layer < 32; ++entry.layer)
    sixes += entry_bytes(all(), **rule, entry, 32, false) == bytes_of("q6_k", 256, 512) ? 1 : 0;
  EXPECT_EQ(sixes, 16);
  model::WeightEntry head{.pattern = "lm_head.weight", .cls = model::WeightClass::kHead, .rows = 1024, .cols = 256};
  EXPECT_EQ(entry_bytes(all(), **rule, head, 32, false), bytes_of("q6_k", 1024, 256));
  model::WeightEntry table{
      .pattern = "model.embed_tokens.weight", .cls = model::WeightClass::kEmbedding, .rows = 1024, .cols = 256};
  EXPECT_EQ(entry_bytes(all(), **rule, table, 32, false), bytes_of("q4_k", 1024, 256));
  EXPECT_EQ(entry_bytes(all(), **rule, table, 32, true), bytes_of("q6_k", 1024, 256)) << "a tied table is the head";
  model::WeightEntry norm{
      .pattern = "model.norm.weight", .cls = model::WeightClass::kNorm, .rows = 1, .cols = 256, .vector = true};
  EXPECT_EQ(entry_bytes(all(), **rule, norm, 32, false), 1024U) << "f32";
}

TEST(Formats, UnknownNamesAreErrorsThatListTheKnown) {
  const auto weights = find_weight_format("q4_k_xl");
  ASSERT_FALSE(weights.has_value());
  EXPECT_NE(error_text(weights.error()).find("q4_k_m"), std::string::npos);
  const auto kv = find_kv_format("q");
  ASSERT_FALSE(kv.has_value());
  EXPECT_NE(error_text(kv.error()).find("fp8_ds_mla"), std::string::npos);
  EXPECT_TRUE(find_weight_format(" AWQ ").has_value());
}

}  // namespace
}  // namespace fathom::plan
