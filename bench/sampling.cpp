// What choosing tokens on the device brings: microseconds a step, against bringing the logits to the host and choosing
// there.
//   bench_sampling [VOCABULARY]
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "backends/backends.h"
#include "base/clock.h"
#include "engine/sampler.h"

namespace {

using namespace fathom;  // NOLINT

Status measure(std::int64_t vocabulary) {
  FATHOM_TRY(const auto backend, backends::make_backend("cuda"));
  std::printf("%lld logits a row; microseconds a step\n%-34s %6s %10s %10s %10s\n", static_cast<long long>(vocabulary),
              "", "rows", "device", "copy", "host");
  const std::pair<const char*, engine::SamplingOptions> ways[] = {
      {"greedy", {}},
      {"temperature 1", {.temperature = 1}},
      {"temperature 0.7, top-k 40", {.temperature = 0.7, .top_k = 40}},
      {"temperature 1, top-p 0.95", {.temperature = 1, .top_p = 0.95}},
      {"all, and repetition 1.1",
       {.temperature = 0.8, .top_k = 50, .top_p = 0.95, .min_p = 0.02, .repetition_penalty = 1.1}}};
  for (const std::int64_t rows : {std::int64_t{1}, std::int64_t{32}}) {
    std::vector<float> values(static_cast<std::size_t>(rows * vocabulary));
    std::uint32_t state = 1;
    for (float& x : values) {
      float sum = 0;
      for (int i = 0; i < 4; ++i)
        state = state * 1664525u + 1013904223u, sum += static_cast<float>(state >> 8) * 0x1p-24f;
      x = (sum - 2) * 6;  // like a bell, deviation 3.5
    }
    const Bytes bytes = values.size() * sizeof(float),
                asked_bytes = static_cast<Bytes>(rows) * sizeof(tensor::SamplingRow);
    FATHOM_TRY(const auto logits, backend->allocate_buffer(bytes));
    FATHOM_TRY(const auto seen, backend->allocate_buffer(static_cast<Bytes>(rows * ((vocabulary + 31) / 32)) * 4));
    FATHOM_TRY(const auto shared,
               backend->allocate_buffer(asked_bytes + static_cast<Bytes>(rows) * 4, tensor::Placement::kShared));
    FATHOM_TRY(const auto host, backend->allocate_buffer(bytes, tensor::Placement::kShared));
    FATHOM_TRY_VOID(backend->upload(logits->data(), std::as_bytes(std::span(values))));
    for (const auto& [name, options] : ways) {
      std::vector<engine::Sampler> samplers(static_cast<std::size_t>(rows), engine::Sampler(options, vocabulary));
      auto* asked = reinterpret_cast<tensor::SamplingRow*>(shared->data());
      double device = 0, copy = 0, choose = 0;
      const int rounds = rows == 1 ? 20 : 5;
      for (int i = -1; i < rounds; ++i) {
        double started = now_seconds();
        for (std::size_t r = 0; r < samplers.size(); ++r)
          asked[r] = samplers[r].next_row(), asked[r].seen = static_cast<std::int64_t>(r);
        backend->sample({.logits = reinterpret_cast<const float*>(logits->data()),
                         .rows = rows,
                         .vocabulary = vocabulary,
                         .asked = asked,
                         .seen = reinterpret_cast<std::uint32_t*>(seen->data()),
                         .ids = reinterpret_cast<std::int32_t*>(shared->data() + asked_bytes)});
        FATHOM_TRY_VOID(backend->synchronize());
        if (i >= 0) device += now_seconds() - started;
        started = now_seconds();
        FATHOM_TRY_VOID(backend->download({host->data(), bytes}, logits->data()));
        if (i >= 0) copy += now_seconds() - started;
        started = now_seconds();
        for (std::size_t r = 0; r < samplers.size(); ++r)
          FATHOM_TRY_VOID(samplers[r].sample(
              {reinterpret_cast<const float*>(host->data()) + r * static_cast<std::size_t>(vocabulary),
               static_cast<std::size_t>(vocabulary)}));
        if (i >= 0) choose += now_seconds() - started;
      }
      std::printf("%-34s %6lld %10.1f %10.1f %10.1f\n", name, static_cast<long long>(rows), 1e6 * device / rounds,
                  1e6 * copy / rounds, 1e6 * choose / rounds);
    }
  }
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  const Status status = measure(argc > 1 ? std::atoll(argv[1]) : 102400);
  if (!status) std::fprintf(stderr, "%s\n", error_text(status.error()).c_str());
  return status ? 0 : 1;
}
