#include "measure/offload_rates.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/clock.h"
#include "measure/statistics.h"

namespace fathom::measure {
namespace {

using namespace tensor;  // NOLINT: the vocabulary

constexpr Bytes kCopied = 64 * kMiB, kCopiedOnHost = 4 * kMiB;
constexpr Bytes kTimedExperts = kGiB;       // of experts that are computed with: beyond caches
constexpr std::int64_t kTimedTokens = 512;  // of a pass that is timed; longer ones take as long a token
constexpr int kRounds = 5, kHandovers = 8;

/// Seconds of `body`, which comes back when all is done: the median of a few, after one that does not count.
template <class Body>
Result<double> seconds_of(int rounds, const Body& body) {
  std::vector<double> seconds;
  for (int i = 0; i <= rounds; ++i) {
    const double started = now_seconds();
    FATHOM_TRY_VOID(body());
    if (i > 0) seconds.push_back(now_seconds() - started);
  }
  return median(std::move(seconds));
}

Status measure_link(Backend& device, plan::OffloadRates& rates) {
  const Bytes bytes = device.host_addressable() ? kCopiedOnHost : kCopied;
  FATHOM_TRY(const auto host, device.allocate_buffer(bytes, Placement::kShared));
  FATHOM_TRY(const auto there, device.allocate_buffer(bytes, Placement::kDevice));
  std::memset(host->data(), 1, bytes);
  FATHOM_TRY(const double copied, seconds_of(kRounds, [&]() -> Status {
               device.fetch(0, there->data(), host->data(), bytes);
               device.await(0);
               FATHOM_TRY_VOID(device.synchronize());
               device.leave(0);
               return {};
             }));
  rates.link = static_cast<double>(bytes) / copied;
  constexpr Bytes kSmall = 8 * kKiB;
  FATHOM_TRY(const double handed, seconds_of(kRounds, [&]() -> Status {
               for (int i = 0; i < kHandovers; ++i) {
                 for (int part = 0; part < 4; ++part)
                   device.copy_out(host->data() + static_cast<Bytes>(part) * kSmall,
                                   there->data() + static_cast<Bytes>(part) * kSmall, kSmall);
                 device.call_host([](void*) {}, nullptr);
                 device.copy_in(there->data(), host->data(), kSmall);
               }
               return device.synchronize();
             }));
  rates.handover = handed / kHandovers;
  return {};
}

/// Weights of some experts, of codes and scales that are neither zero nor odd.
class Experts {
 public:
  static Result<Experts> make(Backend& host, const ExpertShape& shape) {
    Experts made;
    const Bytes one =
        2 * bytes_of(shape.gate, shape.inner, shape.hidden) + bytes_of(shape.down, shape.hidden, shape.inner);
    const auto count = std::clamp<std::int64_t>(static_cast<std::int64_t>(kTimedExperts / one),
                                                std::min(shape.top_k, shape.count), shape.count);
    FATHOM_TRY(made.buffer_, host.allocate_buffer(one * static_cast<Bytes>(count)));
    std::byte* at = made.buffer_->data();
    for (std::int64_t e = 0; e < count; ++e) {
      made.gate.push_back(cut(at, shape.gate, shape.inner, shape.hidden));
      made.up.push_back(cut(at, shape.gate, shape.inner, shape.hidden));
      made.down.push_back(cut(at, shape.down, shape.hidden, shape.inner));
    }
    made.one = static_cast<double>(weight_bytes(shape.gate, shape.inner, shape.hidden)) * 2 +
               static_cast<double>(weight_bytes(shape.down, shape.hidden, shape.inner));
    return made;
  }
  std::vector<Weight> gate, up, down;
  double one = 0;  // bytes of an expert

 private:
  static Bytes padded(Bytes bytes) { return (bytes + 63) / 64 * 64; }
  static Bytes bytes_of(WeightFormat format, std::int64_t rows, std::int64_t cols) {
    const Bytes scales = weight_scale_bytes(format, rows, cols);
    return padded(weight_bytes(format, rows, cols) - scales) + padded(scales);
  }
  static Weight cut(std::byte*& at, WeightFormat format, std::int64_t rows, std::int64_t cols) {
    const Bytes scales = weight_scale_bytes(format, rows, cols), codes = weight_bytes(format, rows, cols) - scales;
    Weight weight{.format = format, .rows = rows, .cols = cols, .data = at};
    std::memset(at, 0x3c, codes);
    at += padded(codes);
    if (scales == 0) return weight;
    weight.scales = at;
    std::memset(at, weight_layout(format).scale == DType::e8m0 ? 0x7f : 0x3c, scales);
    at += padded(scales);
    return weight;
  }
  std::unique_ptr<Buffer> buffer_;
};

/// Seconds of one layer for so many tokens, which choose experts in turns.
Result<double> seconds_of_experts(Backend& host, const ExpertShape& shape, const Experts& experts,
                                  std::int64_t tokens) {
  Ops& ops = host.ops();
  const auto make = [&](DType dtype, std::int64_t width) { return Value(ops, ops.allocate(dtype, {tokens, width})); };
  const Value x = make(DType::f32, shape.hidden), out = make(DType::f32, shape.hidden),
              indices = make(DType::i32, shape.top_k), weights = make(DType::f32, shape.top_k);
  std::fill_n(x->as<float>(), tokens * shape.hidden, 0.01f);
  std::fill_n(weights->as<float>(), tokens * shape.top_k, 0.1f);
  std::int64_t next = 0;
  const auto count = std::ssize(experts.gate);
  return seconds_of(kRounds, [&]() -> Status {
    for (std::int64_t i = 0; i < tokens * shape.top_k; ++i)
      indices->as<std::int32_t>()[i] = static_cast<std::int32_t>(next++ % count);
    ops.experts({.x = x,
                 .indices = indices,
                 .weights = weights,
                 .gate = experts.gate,
                 .up = experts.up,
                 .down = experts.down,
                 .total_experts = count,
                 .out = out});
    return host.synchronize();
  });
}

}  // namespace

ExpertShape experts_of(const model::Architecture& architecture, const weights::StoragePolicy& storage) {
  ExpertShape shape;
  const auto plan = weights::plan_weights(architecture.weights(), storage);
  if (!plan) return shape;
  int found = 0;
  for (std::size_t i = 0; i < architecture.weights().entries().size() && found < 3; ++i) {
    const model::WeightEntry& entry = architecture.weights().entries()[i];
    if (entry.cls != model::WeightClass::kRoutedExpert || entry.part != model::WeightPart::kMain) continue;
    if (found++ < 2)
      shape = {.count = entry.experts,
               .hidden = entry.cols,
               .inner = entry.rows,
               .gate = plan->formats[i],
               .down = plan->formats[i]};
    else
      shape.down = plan->formats[i];
  }
  shape.total = architecture.spec().routing.experts;
  shape.top_k = architecture.spec().routing.top_k;
  return shape;
}

Result<plan::OffloadRates> measure_offload_rates(Backend& device, Backend* host, const ExpertShape& shape,
                                                 const plan::OffloadCase& problem) {
  plan::OffloadRates rates;
  FATHOM_TRY_VOID(measure_link(device, rates));
  if (host == nullptr || shape.count == 0) return rates;
  FATHOM_TRY(const Experts experts, Experts::make(*host, shape));
  // Of a rank's experts a token hits its share.
  const auto count = std::ssize(experts.gate);
  const std::int64_t few = problem.decode_tokens,
                     many = std::clamp<std::int64_t>(problem.prefill_tokens, 1, kTimedTokens);
  FATHOM_TRY(const double one_seconds, seconds_of_experts(*host, shape, experts, 1));
  FATHOM_TRY(const double few_seconds, seconds_of_experts(*host, shape, experts, few));
  FATHOM_TRY(const double many_seconds, seconds_of_experts(*host, shape, experts, many));
  const auto hit = [&](std::int64_t tokens) {
    return static_cast<double>(std::min<std::int64_t>(tokens * shape.top_k, count));
  };
  rates.host_stream_one = experts.one * hit(1) / one_seconds;
  rates.host_stream = experts.one * hit(few) / few_seconds;
  rates.host_flops = static_cast<double>(many * shape.top_k) * 6.0 * static_cast<double>(shape.hidden) *
                     static_cast<double>(shape.inner) / many_seconds;
  return rates;
}

}  // namespace fathom::measure
