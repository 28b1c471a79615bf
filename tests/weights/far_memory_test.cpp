// Memory that the host cannot touch: what goes there in pieces, through pinned buffers, is what lies in ordinary
// memory.
#include <gtest/gtest.h>

#include <cstring>

#include "backends/reference/reference_backend.h"
#include "model/architecture.h"
#include "support/paths.h"
#include "weights/synth.h"

namespace fathom::weights {
namespace {

/// A backend whose kDevice memory must not be touched: addresses are shifted, and only upload and download know by how
/// much.
class FarBackend final : public tensor::Backend {
 public:
  explicit FarBackend(std::unique_ptr<tensor::Backend> near) : near_(std::move(near)) {}
  static constexpr std::uintptr_t kShift = std::uintptr_t{1} << 46;
  static std::byte* far(std::byte* at) {
    return reinterpret_cast<std::byte*>(reinterpret_cast<std::uintptr_t>(at) ^ kShift);
  }

  std::string_view name() const override { return "far"; }
  std::string description() const override { return "far"; }
  tensor::Ops& ops() override { return near_->ops(); }
  tensor::GradOps* grad_ops() override { return nullptr; }
  tensor::ActivationMemory& activations() override { return near_->activations(); }
  bool host_addressable() const override { return false; }
  Bytes workspace_bytes() const override { return 0; }
  Status synchronize() override { return {}; }
  Status upload(std::byte* to, std::span<const std::byte> from) override {
    if (fail_after > 0 && --fail_after == 0) return fail_environment("weights.no_staging", {{"bytes", "0"}});
    std::memcpy(far(to), from.data(), from.size());
    return {};
  }
  Result<std::unique_ptr<tensor::Buffer>> allocate_buffer(Bytes bytes, tensor::Placement placement) override {
    FATHOM_TRY(auto buffer, near_->allocate_buffer(bytes, placement));
    if (placement == tensor::Placement::kShared) {
      shared += bytes;
      return buffer;
    }
    return std::unique_ptr<tensor::Buffer>(std::make_unique<FarBuffer>(std::move(buffer)));
  }
  Bytes shared = 0;
  int fail_after = 0;

 private:
  class FarBuffer final : public tensor::Buffer {
   public:
    explicit FarBuffer(std::unique_ptr<tensor::Buffer> near) : near_(std::move(near)) {}
    std::byte* data() const override { return far(near_->data()); }
    Bytes bytes() const override { return near_->bytes(); }

   private:
    std::unique_ptr<tensor::Buffer> near_;
  };
  std::unique_ptr<tensor::Backend> near_;
};

std::unique_ptr<tensor::Backend> near_backend() { return *reference::make_reference_backend({.threads = 1}); }

void expect_same(const LoadedWeights& near, const LoadedWeights& far) {
  ASSERT_EQ(near.plan.arena_bytes, far.plan.arena_bytes);
  ASSERT_EQ(near.set.all().size(), far.set.all().size());
  for (std::size_t i = 0; i < near.set.all().size(); ++i) {
    const tensor::Weight &a = near.set.all()[i], &b = far.set.all()[i];
    if (!a.defined() || a.data == nullptr) continue;
    const Bytes scales = scale_bytes(a.format, a.rows, a.cols),
                data = tensor::weight_bytes(a.format, a.rows, a.cols) - scales;
    EXPECT_EQ(std::memcmp(a.data, FarBackend::far(const_cast<std::byte*>(b.data)), data), 0) << i;
    if (scales > 0) {
      EXPECT_EQ(std::memcmp(a.scales, FarBackend::far(const_cast<std::byte*>(b.scales)), scales), 0) << i;
    }
  }
}

class FarMemory : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Golden, FarMemory, testing::Values("llama3-gqa", "v3", "v4"));

TEST_P(FarMemory, HoldsWhatWasLoadedOrDrawn) {
  const Path folder = fathom::test::fixtures() / "golden" / GetParam();
  const auto spec = model::load_config(folder);
  ASSERT_TRUE(spec) << error_text(spec.error());
  for (const model::Sharding& sharding :
       {model::Sharding{}, model::Sharding{.tp = 2, .tp_rank = 1, .expert_tp = 2, .expert_tp_rank = 1}}) {
    const auto architecture = model::make_architecture(*spec, sharding);
    ASSERT_TRUE(architecture) << error_text(architecture.error());
    for (const std::optional<DType> dtype : {std::optional<DType>(), std::optional<DType>(DType::bf16)}) {
      const auto near = near_backend();
      FarBackend far(near_backend());
      const StoragePolicy storage{.dtype = dtype};
      const auto a = load_weights(**architecture, folder, *near, {.storage = storage}),
                 b = load_weights(**architecture, folder, far, {.storage = storage, .read = {.threads = 3}});
      ASSERT_TRUE(a) << error_text(a.error());
      ASSERT_TRUE(b) << error_text(b.error());
      expect_same(*a, *b);
      EXPECT_LE(far.shared, 3 * (Bytes{4} << 20)) << "pieces, not a copy of everything";
      const auto c = synthesize_in_memory((*architecture)->weights(), *near,
                                          {.storage = storage, .seed = 5, .threads = 2}),
                 d = synthesize_in_memory((*architecture)->weights(), far,
                                          {.storage = storage, .seed = 5, .threads = 2});
      ASSERT_TRUE(c && d);
      expect_same(*c, *d);
    }
  }
}

TEST(FarMemoryFaults, ADeviceThatFailsIsTheError) {
  const Path folder = fathom::test::fixtures() / "golden" / "v3";
  const auto spec = model::load_config(folder);
  ASSERT_TRUE(spec);
  const auto architecture = model::make_architecture(*spec);
  ASSERT_TRUE(architecture);
  FarBackend far(near_backend());
  far.fail_after = 4;
  const auto loaded = load_weights(**architecture, folder, far, {});
  ASSERT_FALSE(loaded);
  EXPECT_EQ(loaded.error().key, "weights.no_staging");
}

}  // namespace
}  // namespace fathom::weights
