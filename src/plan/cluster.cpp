#include "plan/cluster.h"

#include <algorithm>

#include "base/strings.h"
#include "plan/calibration.h"

namespace fathom::plan {
namespace {

using hardware::Accelerator;
using hardware::Link;

bool starts_with_any(std::string_view text, std::initializer_list<std::string_view> starts) {
  return std::any_of(starts.begin(), starts.end(), [&](std::string_view start) { return text.starts_with(start); });
}

/// Whether a link is a network between nodes, by what it is.
bool is_network(const Link& link) { return starts_with_any(link.id, {"ib-", "eth-", "efa", "roce", "thunderbolt"}); }

double latency_of(const Link& link, double otherwise) {
  if (link.latency_low_seconds && link.latency_high_seconds)
    return (*link.latency_low_seconds + *link.latency_high_seconds) / 2;
  return link.latency_low_seconds.value_or(link.latency_high_seconds.value_or(otherwise));
}

constexpr double kIntraLatency = 2e-6, kInterLatency = 5e-6, kHostLatency = 1e-6;  // where the catalog has none

Wire wire_of(const Link& link, double latency) {
  return {link.id, link.bytes_per_second.value_or(0), latency_of(link, latency)};
}

Wire host_wire(const hardware::Catalog& catalog, const Accelerator& accelerator) {
  const auto generation = accelerator.connection.pcie_generation;
  if (!generation) return {};
  const auto link = catalog.find_link("pcie" + std::to_string(*generation) + "-x16");
  if (!link) return {};
  Wire wire = wire_of(**link, kHostLatency);
  wire.bytes_per_second *= accelerator.connection.pcie_lanes.value_or(16) / 16.0;
  return wire;
}

}  // namespace

Device device_of(const hardware::HardwareChoice& choice) {
  const Accelerator& a = *choice.accelerator;
  Device device{.id = a.id, .name = a.name, .accelerator = &a};
  device.capacity_bytes = choice.usable_bytes > 0 ? choice.usable_bytes : a.usable_memory_bytes();
  device.bandwidth_bytes_per_second = a.memory.bandwidth_bytes_per_second.value_or(0);
  device.peak_flops = a.peak_flops;
  return device;
}

Result<Cluster> make_cluster(const hardware::HardwareChoice& choice, int devices, std::optional<int> per_node,
                             std::span<const std::string> network) {
  FATHOM_TRY(const hardware::Catalog* catalog, hardware::hardware_catalog());
  const Accelerator& a = *choice.accelerator;
  Cluster cluster{.device = device_of(choice), .devices = devices};
  FATHOM_TRY(cluster.device.calibration, find_calibration(cluster.device));
  cluster.devices_per_node = std::max(1, per_node.value_or(a.devices_per_node(devices)));
  cluster.domain = std::max(
      per_node ? std::min(a.node.domain, a.node.domain > a.node.devices ? a.node.domain : *per_node) : a.node.domain,
      1);
  if (const auto link = catalog->find_link(a.node.intra_link); !a.node.intra_link.empty() && link)
    cluster.intra = wire_of(**link, kIntraLatency);
  if (a.node.intra_bytes_per_second) cluster.intra.bytes_per_second = *a.node.intra_bytes_per_second;
  if (cluster.intra.latency_seconds == 0) cluster.intra.latency_seconds = kIntraLatency;
  // Cards that share a host reach each other over its bus.
  if (cluster.intra.bytes_per_second > 0) cluster.domain = std::max(cluster.domain, cluster.devices_per_node);
  if (const auto link = catalog->find_link(a.node.inter_link); !a.node.inter_link.empty() && link)
    cluster.inter = wire_of(**link, kInterLatency);
  const double ports = a.node.inter_ports.value_or(a.node.devices);
  cluster.inter.bytes_per_second =
      a.node.inter_bytes_per_second.value_or(cluster.inter.bytes_per_second * ports) / std::max(a.node.devices, 1);
  cluster.host = host_wire(*catalog, a);
  for (const std::string& name : network) {
    FATHOM_TRY(const Link* link, catalog->find_link(name));
    if (is_network(*link)) {
      cluster.inter = wire_of(*link, kInterLatency);
      cluster.inter.bytes_per_second *= ports / std::max(a.node.devices, 1);
    } else {
      cluster.intra = wire_of(*link, kIntraLatency);
      cluster.domain = std::max(cluster.domain, cluster.devices_per_node);
    }
  }
  return cluster;
}

}  // namespace fathom::plan
