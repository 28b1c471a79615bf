// The hardware catalog: what accelerators, CPUs, links, disks and cloud machines are, as facts with provenance.
// Facts live in data/hardware/*.json, embedded in the binary, overlaid by the user's hardware/*.json (see
// docs/adding-hardware): a record with a known id changes the fields it names, one with a new id is added. Loaded once;
// immutable afterwards. Units: bytes, bytes per second, FLOP per second (dense, never sparse). An absent optional means
// "not known".
#pragma once
#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/files.h"
#include "base/result.h"
#include "base/units.h"

namespace fathom::hardware {

struct Source {
  std::string id, url, what, date;
  std::string tier;  // A vendor file, driver output or price API; B curated table; C blog; U kept as a counter-example
};

/// Where the figures of one record come from. Field names are paths in the data file: "memory.bandwidth_gb_s".
struct Provenance {
  std::vector<std::string> sources;     // ids of Source; empty only when everything is listed as unverified
  std::string as_of;                    // when the record was last checked
  std::string confidence;               // "high", "medium", "low"; "user" for a record that the user wrote
  std::vector<std::string> unverified;  // from memory or by a rule: a path, the start of paths ("memory"), or "*"
  std::string unverified_note;
  std::vector<std::string> link_lost;  // read once, the source's address is lost
  std::string cross_check;             // "agree", "agree_with_notes", "conflict", "single", "none"; accelerators only
  std::string cross_check_fields;
  std::map<std::string, std::string> overridden;  // path -> the user's file that set it

  bool is_unverified(std::string_view path) const;
  bool is_link_lost(std::string_view path) const;
};

enum class Precision : std::uint8_t { fp32, tf32, fp16, bf16, fp8, int8, fp4, int4 };
inline constexpr int kPrecisionCount = 8;
std::string_view precision_name(Precision precision);
std::optional<Precision> parse_precision(std::string_view name);

struct Memory {
  std::string kind;                         // "HBM3"
  std::optional<Bytes> marketed_bytes;      // the label, in decimal GB
  std::optional<Bytes> reported_bytes;      // the driver's total
  std::optional<Bytes> cuda_visible_bytes;  // what a process sees
  std::optional<Bytes> usable_bytes;
  std::optional<double> bandwidth_bytes_per_second;
  bool configurable = false;  // sold with several sizes or shared with the system; figures are of the largest
  int appears_as = 1;         // one package shows as this many devices, each with its part of the memory
  std::string note;
};

struct Connection {
  std::optional<int> nvlink_generation;
  std::optional<double> nvlink_bytes_per_second;  // both directions together, as marketed
  std::optional<int> pcie_generation, pcie_lanes;
  std::string note;
};

/// What the accelerator is sold as, and what then lies between two of them. Rates are per direction; intra: of one
/// device.
struct Node {
  int devices = 1;         // devices of one node as sold: 8 for HGX, 4 for an NVL72 tray, 1 for a card sold singly
  int host_slots = 1;      // cards sold singly: how many one host commonly takes
  int domain = 1;          // devices that reach each other over intra_link; larger than a node for NVL72
  std::string intra_kind;  // "nvswitch", "nvlink", "xgmi", "hccs", "ub", "roce", "pcie", "none"
  std::string intra_link;  // id of a Link, or empty
  std::optional<double> intra_bytes_per_second;
  std::string inter_link;                        // id of a Link: the network that such a node usually has
  std::optional<int> inter_ports;                // such links a node has
  std::optional<double> inter_bytes_per_second;  // of the whole node: inter_ports times the link
  int bridge_cards = 0;                          // cards that an optional NVLink bridge joins; 0: no bridge exists
  std::optional<double> bridge_bytes_per_second;
};

struct StreetPrice {
  std::optional<double> low_usd, high_usd;
  std::string condition, date, source;
};
struct CloudPrice {  // for one device and one hour
  std::string provider, currency, kind, date, source, note;
  double per_hour = 0;
};

struct Accelerator {
  std::string id, vendor, name, arch, form;
  std::string compute_capability, gfx;
  std::vector<std::string> driver_names;  // as nvidia-smi, rocm-smi … print them
  std::vector<std::string> short_names;
  std::vector<std::string> shared_names;  // driver names that other products carry too: need the memory size
  Memory memory;
  std::array<std::optional<double>, kPrecisionCount> peak_flops;      // dense, by Precision; see peak()
  std::array<std::optional<double>, kPrecisionCount> measured_flops;  // largest matrix product measured
  std::vector<std::string> measured_sources;
  std::map<std::string, double> other_peak;  // other published figures, by name, in FLOP/s: never for planning
  std::string peak_note;
  std::optional<Bytes> l2_bytes;
  std::optional<int> sm_count;
  std::optional<double> boost_hz, tdp_watts;
  Connection connection;
  Node node;
  std::string launched;
  std::optional<double> msrp_usd;
  std::string msrp_source, msrp_note;
  std::vector<StreetPrice> street;
  std::vector<CloudPrice> cloud;
  std::string note;
  bool advise = true;  // false: too little is known for automatic advice
  Provenance provenance;
  std::string record;  // the merged record, JSON in the form of the data files

  std::optional<double> peak(Precision precision) const { return peak_flops[static_cast<int>(precision)]; }
  /// What a plan may count on: usable, else reported, else the label read as GiB. Zero only when nothing is known.
  Bytes usable_memory_bytes() const;
  /// Devices of one node when `devices` of them are asked for: node.devices, or for single cards what one host takes.
  int devices_per_node(int devices) const;
};

struct Cpu {
  std::string id, name, isa, ddr, launched, note;
  std::vector<std::string> driver_names;  // /proc/cpuinfo "model name"
  std::vector<std::string> short_names;
  std::optional<int> cores, threads, memory_channels, max_mts;
  std::optional<double> peak_bytes_per_second, sustained_bytes_per_second;  // sustained: an estimate
  std::map<std::string, double> other_bytes_per_second;                     // with other memory: "DDR5-6400"
  bool avx2 = false, avx512 = false, amx = false;
  std::optional<double> tdp_watts;
  Provenance provenance;
  std::string record;
};

struct Link {
  std::string id, name, kind, latency_note, note;  // kind: "link" or "domain"
  std::optional<double> bytes_per_second;          // each direction
  std::optional<double> latency_low_seconds, latency_high_seconds;
  std::map<std::string, double> measured;  // bytes per second, by what was measured
  std::vector<std::string> measured_sources;
  Provenance provenance;
  std::string record;
};

struct Storage {
  std::string id, name, note;
  std::optional<double> read_bytes_per_second;  // sequential
  std::optional<double> read_low_bytes_per_second, read_high_bytes_per_second;
  std::optional<double> factor_per_drive;  // RAID 0: this times drives times one drive, instead of a rate
  Provenance provenance;
  std::string record;
};

struct CloudOffer {
  std::string id, provider, instance, accelerator, region, date, spot_date, note;  // accelerator: its id
  int devices = 1;
  std::optional<double> on_demand_usd_per_hour, spot_usd_per_hour;  // the whole machine; absent: not found
  std::string spot_source;
  Provenance provenance;
  std::string record;
};

/// Which accelerators to list; what is empty or zero does not restrict.
struct HardwareFilter {
  std::string vendor, arch, search;  // parts of names, any case; every word of search must occur somewhere
  Bytes min_memory_bytes = 0;        // of the larger of label and driver's total
};

class NameIndex;

/// What a name means: `count` of `*accelerator`.
struct HardwareChoice {
  const Accelerator* accelerator = nullptr;  // never null in a result
  int count = 1;
  Bytes usable_bytes = 0;             // of one device; follows a size in the name where memory is configurable
  const CloudOffer* offer = nullptr;  // when the name was that of a cloud machine
};

class Catalog {
 public:
  /// Embedded facts overlaid by `user_folder`/hardware/*.json in name order; a folder that is not there is no error.
  /// Errors name the file and the field.
  static Result<Catalog> load(const Path& user_folder);

  Catalog() = default;
  Catalog(Catalog&&) = default;  // what the find functions answered stays valid
  Catalog& operator=(Catalog&&) = default;

  std::span<const Accelerator> accelerators() const { return accelerators_; }
  std::span<const Cpu> cpus() const { return cpus_; }
  std::span<const Link> links() const { return links_; }
  std::span<const Storage> storage() const { return storage_; }
  std::span<const CloudOffer> offers() const { return offers_; }
  std::span<const Source> sources() const { return sources_; }
  const Source* source(std::string_view id) const;  // nullptr when there is none

  /// By id, driver name, short name or class ("a100-80g", "NVIDIA H100 80GB HBM3"); case, blanks and dashes do not
  /// matter. `memory_bytes` (the driver's total, 0 unknown) tells products of one name apart and refuses a size that
  /// does not fit. Ambiguous and unknown names are errors that list candidates.
  Result<HardwareChoice> find(std::string_view name, Bytes memory_bytes = 0) const;
  /// find() with a count: "8xH100-SXM", "8 x h200", "H100 x8", or a cloud machine: "p5.48xlarge".
  Result<HardwareChoice> parse(std::string_view text) const;
  std::vector<const Accelerator*> list(const HardwareFilter& filter) const;
  Result<const Cpu*> find_cpu(std::string_view name) const;
  Result<const Link*> find_link(std::string_view name) const;
  Result<const Storage*> find_storage(std::string_view name) const;
  Result<const CloudOffer*> find_offer(std::string_view name) const;

 private:
  friend class CatalogLoader;
  std::vector<Accelerator> accelerators_;
  std::vector<Cpu> cpus_;
  std::vector<Link> links_;
  std::vector<Storage> storage_;
  std::vector<CloudOffer> offers_;
  std::vector<Source> sources_;
  std::shared_ptr<const NameIndex> names_;
};

/// The catalog of this process, with user_folder() overlaid; loaded at the first call. Thread-safe.
Result<const Catalog*> hardware_catalog();

/// hardware_catalog()->parse(text).
Result<HardwareChoice> parse_hardware(std::string_view text);

}  // namespace fathom::hardware
