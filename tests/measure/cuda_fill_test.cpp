// Synthetic weights drawn on a GPU are those that the host draws, to the bit. Skipped without one.
#include <gtest/gtest.h>

#include <cstring>

#include "backends/backends.h"
#include "model/architecture.h"
#include "support/paths.h"
#include "weights/synth.h"

namespace fathom {
namespace {

TEST(CudaFill, DrawsWhatTheHostDraws) {
  auto gpu = backends::make_backend("cuda"), host = backends::make_backend("cpu");
  if (!gpu) GTEST_SKIP() << error_text(gpu.error());
  ASSERT_TRUE(host);
  for (const char* name : {"deepseek-v3", "deepseek-v4-flash", "deepseek-v2-lite"}) {
    const auto found = weights::find_model_spec(name);
    if (!found) continue;
    const auto spec = weights::synthetic_spec(*found, 1, {});
    ASSERT_TRUE(spec) << error_text(spec.error());
    for (const model::Sharding& sharding : {model::Sharding{.tp = 8, .tp_rank = 3, .ep = 64, .ep_rank = 5}}) {
      const auto architecture = model::make_architecture(*spec, sharding);
      ASSERT_TRUE(architecture) << error_text(architecture.error());
      const auto a = weights::synthesize_in_memory((*architecture)->weights(), **host, {.seed = 5}),
                 b = weights::synthesize_in_memory((*architecture)->weights(), **gpu, {.seed = 5});
      ASSERT_TRUE(a && b);
      ASSERT_EQ(a->plan.arena_bytes, b->plan.arena_bytes);
      std::vector<std::byte> got(b->plan.arena_bytes);
      ASSERT_TRUE((*gpu)->download(got, b->arena->data()));
      for (std::size_t i = 0; i < a->set.all().size(); ++i) {
        const tensor::Weight &x = a->set.all()[i], &y = b->set.all()[i];
        if (x.data == nullptr) continue;
        const Bytes scales = weights::scale_bytes(x.format, x.rows, x.cols),
                    data = tensor::weight_bytes(x.format, x.rows, x.cols) - scales;
        EXPECT_EQ(std::memcmp(x.data, got.data() + (y.data - b->arena->data()), data), 0) << name << ", tensor " << i;
        if (scales > 0) {
          EXPECT_EQ(std::memcmp(x.scales, got.data() + (y.scales - b->arena->data()), scales), 0)
              << name << ", scales " << i;
        }
      }
    }
  }
}

}  // namespace
}  // namespace fathom
