// The closed loop: conservation of users, and how figures move with load.
#include "plan/cost_serving.h"

#include <utility>
#include <vector>

#include "cost_support.h"

namespace fathom::plan {
namespace {

std::string serve(const std::string& engine, int users, int input, int output) {
  return R"({"model": "r1-distill-llama-70b", "hardware": "h200-sxm-141gb", "gpus": 4, "task": "serve", "weights": "fp8", "kv": "fp8", "tp": 4, "engine": ")" +
         engine + R"(", "batch": )" + std::to_string(users) + R"(, "input": )" + std::to_string(input) +
         R"(, "output": )" + std::to_string(output) + "}";
}

TEST(CostServing, UsersAreRateTimesTimeInTheSystem) {
  for (const char* engine : {"vllm", "sglang", "trtllm"}) {
    for (const int users : {1, 2, 7, 32, 128}) {
      const auto p = priced(serve(engine, users, 2048, 300));
      ASSERT_NE(p, nullptr);
      p->engine.burst = 0;  // the steady state alone
      const TimeEstimate t = p->time();
      const double cycle = (t.ttft_ms->value + 299 * t.tpot_ms->value) / 1e3;
      const double rate = *t.decode_tokens_per_second / 300;
      EXPECT_NEAR(rate * cycle, users, 0.02 * users) << engine << " " << users;
    }
  }
}

TEST(CostServing, UsersBeyondTheCacheWaitOutside) {
  const auto p = priced(serve("vllm", 64, 2048, 300));
  ASSERT_NE(p, nullptr);
  p->engine.burst = 0;
  const TimeEstimate all = p->time();
  p->inputs.concurrent = 16;
  const TimeEstimate few = p->time();
  EXPECT_GT(few.ttft_ms->value, 3 * all.ttft_ms->value);
  EXPECT_LT(few.tpot_ms->value, all.tpot_ms->value);
  EXPECT_LT(*few.decode_tokens_per_second, *all.decode_tokens_per_second);
  const double cycle = (few.ttft_ms->value + 299 * few.tpot_ms->value) / 1e3;
  EXPECT_NEAR(*few.decode_tokens_per_second / 300 * cycle, 64, 1.5);
}

TEST(CostServing, LoadRaisesBothTimesAndThroughput) {
  double tpot = 0, ttft = 0, rate = 0;
  for (const int users : {1, 4, 16, 64}) {
    const auto p = priced(serve("vllm", users, 4096, 512));
    ASSERT_NE(p, nullptr);
    const TimeEstimate t = p->time();
    EXPECT_GT(t.tpot_ms->value, tpot);
    EXPECT_GT(t.ttft_ms->value, ttft);
    EXPECT_GT(*t.decode_tokens_per_second, rate);
    tpot = t.tpot_ms->value, ttft = t.ttft_ms->value, rate = *t.decode_tokens_per_second;
  }
}

TEST(CostServing, OthersPromptsStallDecoding) {
  const auto brief = priced(serve("vllm", 32, 128, 512)), long_prompts = priced(serve("vllm", 32, 8192, 512));
  ASSERT_NE(brief, nullptr);
  ASSERT_NE(long_prompts, nullptr);
  EXPECT_GT(long_prompts->time().tpot_ms->value, 1.5 * brief->time().tpot_ms->value);
}

/// The same loop step by step: lengths between 80 and 100 % of their largest (as the loop's `spread` means), everybody
/// at once at first, ten requests a user. Linear prices.
struct Walk {
  double step, sequence, token;  // seconds: a step, a decoding sequence, a token of a prompt
  double budget;
  static constexpr double kFront = 0.03;  // from a user to the queue
  std::pair<double, double> run(int users, double input, double output) const {
    struct Request {
      double at = 0, left = 0, first = 0;
      int got = 0, want = 0;
    };
    std::uint64_t state = 12345;
    const auto varied = [&](double length) {
      state = state * 6364136223846793005ULL + 1442695040888963407ULL;
      return length * (0.889 + 0.222 * static_cast<double>(state >> 40) / static_cast<double>(1 << 24));
    };
    std::vector<Request> coming, waiting, running;
    const auto arrive = [&](double at) {
      coming.push_back({at, varied(input), 0, 0, static_cast<int>(varied(output))});
    };
    for (int i = 0; i < users; ++i) arrive(0);
    int sent = users;
    double now = 0, ttft = 0, tpot = 0, done = 0, started = 0;
    while (!coming.empty() || !waiting.empty() || !running.empty()) {
      if (waiting.empty() && running.empty()) now = std::max(now, coming.front().at + kFront);
      while (!coming.empty() && coming.front().at + kFront <= now) {
        waiting.push_back(coming.front());
        coming.erase(coming.begin());
      }
      double room = budget - static_cast<double>(running.size()), tokens = 0;
      std::size_t ready = 0;
      while (ready < waiting.size() && room > 0) {
        const double part = std::min(room, waiting[ready].left);
        waiting[ready].left -= part, room -= part, tokens += part;
        if (waiting[ready].left > 0) break;
        ++ready;
      }
      now += step + sequence * static_cast<double>(running.size()) + token * tokens;
      std::vector<Request> on;
      int back = 0;
      for (Request& r : running) {
        if (++r.got < r.want)
          on.push_back(r);
        else
          tpot += (now - r.first) / (r.want - 1), ++done, ++back;
      }
      for (std::size_t i = 0; i < ready; ++i) {
        waiting[i].first = now, waiting[i].got = 1;
        ttft += now - waiting[i].at, ++started;
        on.push_back(waiting[i]);
      }
      waiting.erase(waiting.begin(), waiting.begin() + static_cast<std::ptrdiff_t>(ready));
      running = std::move(on);
      for (; back > 0 && sent < 10 * users; --back, ++sent) arrive(now);
    }
    return {ttft / started, tpot / done};
  }
};

/// A model whose steps have just those prices.
StepModel linear(const Walk& walk, const EngineProfile& engine) {
  StepModel m;
  m.engine = &engine;
  m.rates.stream = m.rates.elementwise = 1e30;
  m.rates.product.fill(1e15);
  Kernel fixed;
  fixed.kind = Kernel::Kind::kElementwise;
  fixed.bytes.fixed = walk.step * 1e30;
  Kernel work;
  work.kind = Kernel::Kind::kProduct;
  work.flops.per_token = walk.token * 1e15;
  m.prefill.kernels = {fixed, work};
  work.flops.per_token = walk.sequence * 1e15;
  m.decode.kernels = {fixed, work};
  return m;
}

TEST(CostServing, AgreesWithTheLoopWalkedStepByStep) {
  EngineProfile engine;
  engine.scheduler = Scheduler::kMixed;
  engine.host = {.launch = 0};
  engine.host.request = Walk::kFront;
  engine.burst = 0.1;
  engine.spread = 0.25;
  for (const Walk& walk : {Walk{8e-3, 0, 5e-5, 8192}, Walk{15e-3, 0, 7e-5, 8192}})
    for (const double input : {1024.0, 4096.0, 8192.0})
      for (const int users : {4, 16, 64}) {
        const auto [ttft, tpot] = walk.run(users, input, 500);
        const LoopResult result =
            solve_loop(linear(walk, engine), {.users = static_cast<double>(users), .input = input, .output = 500});
        EXPECT_NEAR(result.ttft, ttft, 0.25 * ttft) << input << " " << users;
        EXPECT_NEAR(result.tpot, tpot, 0.08 * tpot) << input << " " << users;
      }
}

TEST(CostServing, AStaticBatchPrefillsThenDecodes) {
  const auto p = priced(
      R"({"model": "r1-distill-qwen-7b", "hardware": "a100-sxm4-80gb", "gpus": 1, "task": "chat", "engine": "transformers", "weights": "bf16", "batch": 4, "input": 1000, "output": 100})");
  ASSERT_NE(p, nullptr);
  const TimeEstimate t = p->time();
  EXPECT_NEAR(*t.prefill_tokens_per_second, 4000 / (t.ttft_ms->value / 1e3), 1);
  EXPECT_NEAR(*t.decode_tokens_per_second, 4 / (t.tpot_ms->value / 1e3), 0.1);
}

TEST(CostServing, SpeculationIsFasterForAFewUsers) {
  const std::string base =
      R"({"model": "r1", "hardware": "h200-sxm-141gb", "gpus": 8, "task": "serve", "engine": "sglang", "tp": 8, "batch": 2, "input": 1024, "output": 1024)";
  const auto plain = priced(base + "}"), drafted = priced(base + R"(, "speculative": "mtp:1"})");
  ASSERT_NE(plain, nullptr);
  ASSERT_NE(drafted, nullptr);
  const double ratio = plain->time().tpot_ms->value / drafted->time().tpot_ms->value;
  EXPECT_GT(ratio, 1.2);
  EXPECT_LT(ratio, 1.9);
}

}  // namespace
}  // namespace fathom::plan
