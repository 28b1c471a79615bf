#include "plan/cost_rates.h"

#include <algorithm>

namespace fathom::plan {
namespace {

LinkRates link_rates(const Wire& wire, const LinkCurves& curves, double latency) {
  LinkRates link;
  link.bytes_per_second = wire.bytes_per_second;
  link.direct_seconds = curves.direct_seconds * latency;
  link.direct_rank_seconds = curves.direct_rank_seconds * latency;
  link.direct_bytes_per_second = wire.bytes_per_second * curves.direct_share;
  link.ring_seconds = curves.ring_seconds;
  link.ring_rank_seconds = curves.ring_rank_seconds;
  link.ring_bytes_per_second = wire.bytes_per_second * curves.ring_share;
  link.all_to_all_bytes_per_second = wire.bytes_per_second * curves.all_to_all_share;
  link.send_bytes_per_second = wire.bytes_per_second * curves.send_share;
  return link;
}

std::size_t index(hardware::Precision precision) { return static_cast<std::size_t>(precision); }

/// Timed kernels instead of shares of peaks. What was not timed keeps its share.
void use_measured(const KernelRates& timed, const DeviceCurves& curves, Rates& r) {
  r.stream = timed.stream_bytes;
  r.expert_stream = timed.expert_bytes;
  r.cache_stream = r.latent_stream = timed.stream_bytes * curves.cache_stream;
  r.elementwise = timed.elementwise_bytes;
  r.product.fill(timed.product_flops);
  r.unpack_product = timed.product_flops;
  r.expert_share = timed.expert_flops / timed.product_flops;
  r.attention = timed.attention_flops * (timed.attention_keys + r.attention_half) / timed.attention_keys;
  r.decode_attention = timed.decode_attention_flops;
}

}  // namespace

Rates make_rates(const Cluster& cluster, const Curves& curves, const EngineProfile& engine) {
  const DeviceCurves& c = curves.device;
  Rates r;
  r.stream = cluster.device.bandwidth_bytes_per_second * c.stream;
  r.elementwise = r.stream * c.elementwise;
  r.cache_stream = r.stream * c.cache_stream * engine.attention_decode;
  r.latent_stream = r.stream * c.cache_stream * engine.latent_decode;
  r.expert_stream = r.stream * c.expert_stream * engine.experts;
  r.unpack_share = engine.unpack_stream;
  r.product_floor = c.kernel_floor * engine.product_kernel;
  r.small_floor = c.small_floor * engine.small_kernel;
  r.blend = c.blend;
  for (std::size_t i = 0; i < r.product.size(); ++i)
    r.product[i] = cluster.device.peak_flops[i].value_or(0) * c.gemm[i] * engine.gemm[i];
  const std::size_t half = r.product[index(hardware::Precision::bf16)] > 0   ? index(hardware::Precision::bf16)
                           : r.product[index(hardware::Precision::fp16)] > 0 ? index(hardware::Precision::fp16)
                                                                             : index(hardware::Precision::fp32);
  const double peak16 = cluster.device.peak_flops[half].value_or(1e9);
  if (r.product[half] <= 0) r.product[half] = peak16 * 0.5;
  r.product[index(hardware::Precision::bf16)] = std::max(r.product[index(hardware::Precision::bf16)], r.product[half]);
  r.unpack_product = r.product[half] * engine.unpack_gemm;
  r.expert_share = c.expert_gemm * engine.experts;
  r.gradient_product = engine.training.gradient_product;
  r.attention = peak16 * c.attention * engine.attention_prefill;
  r.attention_half = c.attention_half;
  r.attention_backward = c.attention_backward;
  r.decode_attention = peak16 * c.attention * 0.8;
  r.expert_independence = engine.expert_independence;
  r.expert_spill = engine.expert_spill;
  r.expert_imbalance = engine.expert_imbalance;
  r.host = c.host;
  r.host_link = cluster.host.bytes_per_second * c.pcie;
  r.intra = link_rates(cluster.intra, curves.intra, engine.all_reduce);
  r.inter = link_rates(cluster.inter, curves.inter, 1);
  if (engine.own_kernels && cluster.device.kernels) use_measured(*cluster.device.kernels, c, r);
  r.domain = std::max(cluster.domain, 1);
  r.devices_per_node = std::max(cluster.devices_per_node, 1);
  return r;
}

double all_reduce_seconds(const LinkRates& link, int ranks, double bytes) {
  if (ranks <= 1 || link.bytes_per_second <= 0) return 0;
  const double n = ranks, moved = 2 * (n - 1) / n * bytes;
  const double direct = link.direct_seconds + (n - 2) * link.direct_rank_seconds + moved / link.direct_bytes_per_second;
  const double ring = link.ring_seconds + n * link.ring_rank_seconds + moved / link.ring_bytes_per_second;
  return std::min(direct, ring);
}

double all_gather_seconds(const LinkRates& link, int ranks, double bytes) {
  if (ranks <= 1 || link.bytes_per_second <= 0) return 0;
  const double n = ranks, moved = (n - 1) / n * bytes;
  const double direct = link.direct_seconds + (n - 2) * link.direct_rank_seconds + moved / link.direct_bytes_per_second;
  const double ring = link.ring_seconds + n * link.ring_rank_seconds + moved / link.ring_bytes_per_second;
  return std::min(direct, ring);
}

double all_to_all_seconds(const LinkRates& link, int ranks, double bytes) {
  if (ranks <= 1 || link.bytes_per_second <= 0) return 0;
  const double n = ranks;
  return link.direct_seconds + (n - 2) * link.direct_rank_seconds +
         (n - 1) / n * bytes / link.all_to_all_bytes_per_second;
}

double send_seconds(const LinkRates& link, double bytes) {
  return link.bytes_per_second > 0 ? link.direct_seconds + bytes / link.send_bytes_per_second : 0;
}

}  // namespace fathom::plan
