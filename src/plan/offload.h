// Offload: what to do with a model whose weights do not fit on the device. Layers, or their routed experts alone, stay
// in host memory. From there they are streamed into a few places on the device while it computes, or (experts) the
// host's CPU computes with them where they are. Pure arithmetic: the same for a run, which measured its rates, and for
// a plan on paper.
#pragma once
#include <cstdint>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/units.h"

namespace fathom::plan {

/// What a person asked for.
enum class OffloadWish : std::uint8_t { kAuto, kNone, kLayers, kExperts, kCpuExperts };
std::string_view offload_wish_name(OffloadWish wish);  // "auto", "none", "layers", "experts", "cpu-experts"
/// Error "plan.offload.way" names them.
Result<OffloadWish> parse_offload_wish(std::string_view name);

/// Bytes of one layer that can leave the device: of its large matrices, and of its routed experts alone (0: it has
/// none).
struct OffloadLayer {
  Bytes all = 0, experts = 0;
};

/// Reached on the machine: bytes and FLOPs a second, and what one op costs that goes to the host and back.
struct OffloadRates {
  double link = 25e9;             // host memory to device
  double host_stream_one = 60e9;  // weights of one token's experts, by the CPU's kernels
  double host_stream = 60e9;      // of decode_tokens tokens'
  double host_flops = 1e12;       // many tokens' experts
  double handover = 60e-6;        // seconds
};

struct OffloadCase {
  std::vector<OffloadLayer> layers;
  Bytes over = 0;           // what must leave the device, places not counted
  bool everything = false;  // all that can leave does
  bool beside = true;  // copies run beside the device's work; a host that stands for a device does one after the other
  double experts = 0, experts_total = 0, experts_per_token = 0;  // on this rank, of the model, a token's
  double expert_flops = 0;                                       // one token, one expert, on this rank
  std::int64_t prefill_tokens = 512, decode_tokens = 1;          // of one pass
  double prefill_passes = 1, decode_passes = 128;
  double prefill_seconds = 0, decode_seconds = 0;  // of one pass with all weights on the device; 0: not known
  OffloadRates rates;
};

/// Times of one pass.
struct OffloadTimes {
  double streamed = 0, on_host = 0;
};

struct OffloadPlan {
  bool experts = false;          // routed experts alone; else layers
  std::vector<int> layers;       // that leave, spread evenly
  int places = 0;                // on the device; 0: nothing is streamed
  std::int64_t host_tokens = 0;  // passes of at most so many tokens are computed on the host; kAllTokens: all
  Bytes moved_bytes = 0, place_bytes = 0;
  OffloadTimes prefill, decode;                    // whichever is taken; on_host 0: not possible
  double prefill_seconds = 0, decode_seconds = 0;  // of one pass, as taken

  /// 0 where places take more than what leaves.
  Bytes freed() const {
    const Bytes taken = place_bytes * static_cast<Bytes>(places);
    return moved_bytes > taken ? moved_bytes - taken : 0;
  }
  bool on_host(std::int64_t tokens) const { return tokens <= host_tokens; }
};
inline constexpr std::int64_t kAllTokens = std::int64_t{1} << 40;

/// The fastest way that frees what is over. Errors: "plan.offload.too_much", naming what remains;
/// "plan.offload.no_experts".
Result<OffloadPlan> plan_offload(const OffloadCase& problem, OffloadWish wish);
/// One pass of so many tokens under `plan`, which would take `resident` seconds with all weights on the device.
double offload_seconds(const OffloadCase& problem, const OffloadPlan& plan, std::int64_t tokens, double resident);
/// Both ways of it.
OffloadTimes offload_times(const OffloadCase& problem, const OffloadPlan& plan, std::int64_t tokens, double resident);

}  // namespace fathom::plan
