// What backend cpu promises beside right numbers: which instruction set it takes and how it refuses, the same bits
// again and again, tokens that do not disturb each other, and memory that is what it says.
#include "backends/cpu/cpu_backend.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "backends/cpu/thread_pool.h"
#include "backends/cpu_isas.h"
#include "backends/held.h"

namespace fathom::test {
namespace {
using namespace tensor;  // NOLINT: the vocabulary

std::unique_ptr<Backend> backend_of(const std::string& isa, int threads) {
  return std::move(*cpu::make_cpu_backend({.threads = threads, .isa = isa}));
}

/// Sets a variable of the environment while it lives.
class Environment {
 public:
  Environment(const char* name, const char* value) : name_(name) {
    if (const char* before = std::getenv(name)) before_ = before, had_ = true;
    ::setenv(name, value, 1);
  }
  ~Environment() {
    if (had_)
      ::setenv(name_, before_.c_str(), 1);
    else
      ::unsetenv(name_);
  }

 private:
  const char* name_;
  std::string before_;
  bool had_ = false;
};

TEST(CpuBackend, NamesWhatThereIsWhenAskedForTheUnknown) {
  const auto backend = cpu::make_cpu_backend({.isa = "mmx"});
  ASSERT_FALSE(backend.has_value());
  EXPECT_EQ(backend.error().key, "cpu.unknown_isa");
  EXPECT_EQ(backend.error().kind, ErrorKind::kInput);
  const std::string text = error_text(backend.error());
  EXPECT_NE(text.find("mmx"), std::string::npos) << text;
  for (const std::string& isa : isas_here()) EXPECT_NE(text.find(isa), std::string::npos) << text;
}

TEST(CpuBackend, SaysWhatIsMissing) {
  hardware::IsaSet set;
  for (const hardware::Isa isa : {hardware::Isa::avx2, hardware::Isa::fma}) set.add(isa);
  for (const cpu::Implementation& each : cpu::implementations()) {
    const std::string missing = cpu::missing_for(each, set);
    if (each.name == "scalar") {
      EXPECT_EQ(missing, "");
    }
    if (each.name == "avx2") {
      EXPECT_EQ(missing, "f16c");
    }
    if (each.name == "amx") {
      EXPECT_EQ(missing.rfind("amx_bf16, amx_tile", 0), 0u) << missing;
    }
  }
}

TEST(CpuBackend, TakesTheInstructionSetThatIsNamed) {
  for (const std::string& isa : isas_here()) {
    EXPECT_EQ(backend_of(isa, 1)->description(), "cpu: " + isa + ", 1 thread");
    const Environment environment("FATHOM_ISA", isa.c_str());
    EXPECT_EQ(backend_of("", 2)->description(), "cpu: " + isa + ", 2 threads");
    EXPECT_EQ(backend_of("scalar", 2)->description(), "cpu: scalar, 2 threads")
        << "what is asked for goes before the environment";
  }
  const Environment environment("FATHOM_ISA", "nonsense");
  EXPECT_EQ(cpu::make_cpu_backend({}).error().key, "cpu.unknown_isa");
}

TEST(CpuBackend, TakesTheBestWithoutBeingTold) {
  const Environment environment("FATHOM_ISA", "");
  EXPECT_EQ(backend_of("", 1)->description(), "cpu: " + isas_here().front() + ", 1 thread");
}

TEST(CpuBackend, RefusesWhatItCannotCompute) {
  EXPECT_EQ(cpu::make_cpu_backend({.activation_dtype = DType::f64}).error().key, "cpu.activation_dtype");
  EXPECT_EQ(cpu::make_cpu_backend({.threads = -1}).error().key, "cpu.threads");
  EXPECT_EQ(cpu::make_cpu_backend({.threads = 100000}).error().key, "cpu.threads");
  EXPECT_FALSE(cpu::supports(WeightFormat::f64));
  EXPECT_TRUE(cpu::supports(WeightFormat::mxfp4));
}

TEST(CpuBackend, KeepsTheWorkspaceThatItAnnounces) {
  for (const int threads : {1, 2, 5})
    EXPECT_EQ(backend_of("", threads)->workspace_bytes(), cpu::workspace_bytes(threads));
}

TEST(CpuBackend, BuffersAreZeroedAlignedAndRefusedWithSizes) {
  const auto backend = backend_of("", 2);
  for (const Bytes bytes : {Bytes{0}, Bytes{1}, Bytes{4097}, 2 * kMiB, 3 * kMiB + 5}) {
    const auto buffer = backend->allocate_buffer(bytes);
    ASSERT_TRUE(buffer.has_value());
    EXPECT_EQ((*buffer)->bytes(), bytes);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>((*buffer)->data()) % (bytes >= 2 * kMiB ? 2 * kMiB : 64), 0u);
    for (Bytes i = 0; i < bytes; i += 1021) EXPECT_EQ((*buffer)->data()[i], std::byte{0});
  }
  const auto refused = backend->allocate_buffer(Bytes{1} << 60);
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().key, "cpu.no_memory");
  EXPECT_EQ(refused.error().kind, ErrorKind::kEnvironment);
}

float pattern(std::int64_t i) { return static_cast<float>(i * 7919 % 2003 - 1001) / 1001.0f; }
Held patterned(DType dtype, Shape shape) {
  return Held(dtype, shape, [](std::int64_t i) { return static_cast<double>(pattern(i)); });
}

/// The bits of out [tokens, n] = x · wᵀ.
std::vector<float> multiply(Backend& backend, const Tensor& x, const Weight& weight) {
  std::vector<float> out(static_cast<std::size_t>(x.dim(0) * weight.rows));
  backend.ops().linear({.x = x, .weight = weight, .out = make_tensor(out.data(), DType::f32, {x.dim(0), weight.rows})});
  return out;
}
bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * 4) == 0;
}

class CpuBits : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(EveryIsa, CpuBits, testing::ValuesIn(isas_here()),
                         [](const auto& info) { return info.param; });

TEST_P(CpuBits, ProductsRepeatForEveryNumberOfThreads) {
  const Held x = patterned(DType::f32, {70, 330});
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    const Held weight = patterned(dtype, {301, 330});
    for (const std::int64_t tokens : {1, 3, 7, 20, 70}) {
      const Tensor part = x.tensor().rows(0, tokens);
      const std::vector<float> one = multiply(*backend_of(GetParam(), 1), part, weight.weight());
      for (const int threads : {1, 2, 3}) {
        const auto backend = backend_of(GetParam(), threads);
        for (int again = 0; again < 3; ++again)
          EXPECT_TRUE(same_bits(one, multiply(*backend, part, weight.weight())))
              << dtype_name(dtype) << " " << tokens << " tokens " << threads << " threads";
      }
    }
  }
}

TEST_P(CpuBits, TokensDoNotDisturbEachOther) {
  const auto backend = backend_of(GetParam(), 2);
  const Held weight = patterned(DType::bf16, {96, 160});
  for (const std::int64_t tokens : {2, 8, 40}) {
    const Held x = patterned(DType::f32, {tokens, 160});
    const std::vector<float> before = multiply(*backend, x, weight.weight());
    for (std::int64_t i = 0; i < 160; ++i)
      x.tensor().as<float>()[i] = std::numeric_limits<float>::quiet_NaN();  // the first token
    const std::vector<float> after = multiply(*backend, x, weight.weight());
    for (std::size_t i = 0; i < after.size(); ++i) {
      if (i < 96)
        EXPECT_TRUE(std::isnan(after[i])) << i;
      else
        EXPECT_EQ(after[i], before[i]) << i;
    }
  }
}

/// Attention of one token over a long cache, and of a batch: split among threads, the same bits each time.
TEST_P(CpuBits, AttentionRepeats) {
  const std::int64_t rows = 900, heads = 4, kv_heads = 2, d = 24;
  const Held k = patterned(DType::bf16, {rows, kv_heads, d}), v = patterned(DType::f32, {rows, kv_heads, d});
  for (const std::int32_t tokens : {1, 37}) {
    const Held q = patterned(DType::f32, {tokens, heads, d});
    const Sequence sequence{
        .slot = 0, .first_token = 0, .tokens = tokens, .past = static_cast<std::int32_t>(rows) - tokens};
    Batch batch;
    batch.tokens = tokens;
    batch.sequences = {&sequence, 1};
    const KvSegment segment{.kind = KvSegment::Kind::kCache, .k = k, .v = v, .rows_per_slot = rows};
    for (const int threads : {1, 2, 3}) {
      const auto backend = backend_of(GetParam(), threads);
      std::vector<float> first;
      for (int again = 0; again < 4; ++again) {
        std::vector<float> out(static_cast<std::size_t>(tokens * heads * d));
        backend->ops().attention({.q = q,
                                  .segments = {&segment, 1},
                                  .scale = 0.3,
                                  .out = make_tensor(out.data(), DType::f32, {tokens, heads, d}),
                                  .batch = &batch});
        if (again == 0) first = out;
        EXPECT_TRUE(same_bits(first, out)) << tokens << " tokens " << threads << " threads";
      }
    }
  }
}

TEST(ThreadPool, EveryTaskIsDoneOnceAndThreadsWakeAfterSleeping) {
  for (const bool spin : {false, true})
    for (const int threads : {1, 2, 3, 5}) {
      cpu::ThreadPool pool(threads, spin);
      for (int round = 0; round < 20; ++round) {
        if (round % 10 == 9) std::this_thread::sleep_for(std::chrono::milliseconds(3));  // longer than threads spin
        std::vector<std::atomic<int>> done(97);
        pool.for_each(97, [&](std::int64_t task, int thread) {
          EXPECT_LT(thread, threads);
          done[static_cast<std::size_t>(task)].fetch_add(1);
        });
        pool.for_each_ahead(97, [&](std::int64_t task, std::int64_t following, int) {
          EXPECT_TRUE(following == -1 || (following > task && following < 97));
          done[static_cast<std::size_t>(task)].fetch_add(1);
        });
        for (const auto& count : done) EXPECT_EQ(count.load(), 2);
      }
    }
}

}  // namespace
}  // namespace fathom::test
