// Rates: absolute seconds, bytes and FLOPs a second of one device under one engine: curves times catalog peaks times
// the engine's own kernels. Made once a (cluster, engine); everything below it is arithmetic.
#pragma once
#include <array>

#include "plan/cost_curves.h"
#include "plan/engine_profile.h"

namespace fathom::plan {

/// A way between devices as collectives see it.
struct LinkRates {
  double bytes_per_second = 0;  // one device, one direction, peak
  double direct_seconds = 0, direct_rank_seconds = 0, direct_bytes_per_second = 0;
  double ring_seconds = 0, ring_rank_seconds = 0, ring_bytes_per_second = 0;
  double all_to_all_bytes_per_second = 0, send_bytes_per_second = 0;
};

struct Rates {
  double stream = 0;       // bytes a second, large reads
  double elementwise = 0;  // bytes a second
  double cache_stream = 0, latent_stream = 0;
  double expert_stream = 0;
  double unpack_share = 1;  // of `stream`, packed weights
  double product_floor = 0, small_floor = 0;
  double blend = 3;
  std::array<double, hardware::kPrecisionCount> product{};              // FLOP/s; 0: not native
  double unpack_product = 0;                                            // FLOP/s of products that unpack weights, large
  double expert_share = 1;                                              // of `product`, grouped
  double gradient_product = 1;                                          // of `product`, gradients of weights
  double attention = 0, attention_half = 0, attention_backward = 0.75;  // FLOP/s, keys, against forward
  double decode_attention = 0;                                          // FLOP/s of decode attention
  double expert_independence = 0.85, expert_spill = 1.4, expert_imbalance = 0.25;
  double host = 1;
  double host_link = 0;  // bytes a second to host memory
  LinkRates intra, inter;
  int domain = 1, devices_per_node = 1;
};

Rates make_rates(const Cluster& cluster, const Curves& curves, const EngineProfile& engine);

// ---- collectives of `ranks` ranks, of which `span` consecutive devices form one group member's reach: seconds.

/// Sum over ranks of `bytes` each holds.
double all_reduce_seconds(const LinkRates& link, int ranks, double bytes);
/// `bytes` is the whole tensor that every rank ends up with, or starts from.
double all_gather_seconds(const LinkRates& link, int ranks, double bytes);
/// `bytes` is what one rank sends in all.
double all_to_all_seconds(const LinkRates& link, int ranks, double bytes);
double send_seconds(const LinkRates& link, double bytes);

}  // namespace fathom::plan
