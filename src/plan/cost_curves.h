// Curves: what a piece of hardware reaches of its catalog peaks, and the floors below which no kernel goes.
// Facts live in data/curves/*.json, one record an accelerator or a link; a device without one takes a sibling's shares
// (same architecture) of its own peaks, else the defaults. Units: shares of peaks, seconds.
#pragma once
#include <array>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "hardware/catalog.h"
#include "plan/answer.h"
#include "plan/cluster.h"

namespace fathom::plan {

struct DeviceCurves {
  std::string id;                    // of the accelerator; "" for a default
  std::string arch;                  // as the catalog writes it
  std::string base;                  // the record this one starts from
  bool hbm = true;                   // stacked memory: tells siblings of one architecture apart
  std::vector<std::string> sources;  // what it was measured on or fitted to
  bool measured = false;             // by us or by published kernels of this very device

  double stream = 0.88;          // of the memory bandwidth, large reads
  double kernel_floor = 4.5e-6;  // a product kernel in a replayed graph: fill, drain, dependence on the one before
  double small_floor = 2.5e-6;   // an elementwise kernel
  double blend = 3;              // compute and streaming overlap: (a^p + b^p)^(1/p)
  std::array<double, hardware::kPrecisionCount>
      gemm{};                        // of the dense peak, large products; 0: the format is not native here
  double attention = 0.6;            // prefill attention, of the 16-bit peak, at long lengths
  double attention_half = 500;       // keys at which it reaches half of that
  double attention_backward = 0.75;  // backward against forward
  double cache_stream = 0.85;        // decode attention against `stream`
  double elementwise = 0.85;         // elementwise kernels against `stream`
  double expert_stream = 0.85;       // grouped products against `stream`
  double expert_gemm = 0.8;          // and against `gemm`
  double host = 1;                   // time of host work against the reference host (x86 server of 2024)
  double pcie = 0.85;                // of the host link
};

/// One kind of connection between devices: within a domain ("nvswitch", "nvlink", "pcie", …) or a network.
struct LinkCurves {
  std::string kind;
  double direct_seconds = 7e-6;         // small all-reduce by direct reads of peers, two ranks
  double direct_rank_seconds = 0.3e-6;  // and each further rank
  double direct_share = 0.6;            // of the bandwidth, direct
  double ring_seconds = 13e-6;          // collectives of the library, base
  double ring_rank_seconds = 0.5e-6;
  double ring_share = 0.76;  // of the bandwidth, large messages
  double all_to_all_share = 0.7;
  double send_share = 0.8;
};

struct Curves {
  DeviceCurves device;
  LinkCurves intra, inter;
  ProvenanceTier tier = ProvenanceTier::kDefault;
};

/// The tables, loaded once. Thread-safe.
struct CurveTables {
  std::vector<DeviceCurves> devices;
  std::vector<LinkCurves> links;
};
Result<const CurveTables*> curve_tables();
/// Of a cluster's device and wires. `links` by the catalog's kind of connection.
Curves find_curves(const CurveTables& tables, const Cluster& cluster);

}  // namespace fathom::plan
