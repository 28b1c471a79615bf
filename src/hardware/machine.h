// What this machine is: found by probe(), kept as a profile, read by the planner.
// Units: bytes, bytes per second, FLOP per second (a multiply-add is two), seconds, MHz as vendors print them.
// An absent optional means "could not be read here", never zero.
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"
#include "base/units.h"
#include "hardware/catalog.h"

namespace fathom::hardware {

/// Instruction sets that matter to kernels. What the operating system lets a program use, not what the chip could.
enum class Isa : std::uint8_t {
  sse4,
  avx,
  avx2,
  fma,
  f16c,
  avx512f,
  avx512bw,
  avx512dq,
  avx512vl,
  avx512_vnni,
  avx512_bf16,
  avx512_fp16,
  avx_vnni,
  amx_tile,
  amx_bf16,
  amx_int8,
  amx_fp16,
  neon,
  neon_fp16,
  neon_dotprod,
  neon_i8mm,
  neon_bf16,
  sve,
  sve2,
};
inline constexpr int kIsaCount = 24;
std::string_view isa_name(Isa isa);  // "avx512_bf16"
std::optional<Isa> parse_isa(std::string_view name);

struct IsaSet {
  std::uint32_t bits = 0;
  bool has(Isa isa) const { return (bits >> static_cast<int>(isa) & 1u) != 0; }
  void add(Isa isa) { bits |= 1u << static_cast<int>(isa); }
  bool operator==(const IsaSet&) const = default;
};

struct CacheInfo {
  int level = 0;            // 1, 2, 3
  std::string kind;         // "data", "instruction", "unified"
  Bytes bytes = 0;          // of one instance
  int instances = 0;        // in the whole machine
  int threads_sharing = 0;  // hardware threads that share one instance
  bool operator==(const CacheInfo&) const = default;
};

struct NumaNode {
  int id = 0;
  Bytes memory_bytes = 0;
  std::vector<int> cpus;
  std::vector<int> distances;  // to every node, in the order of the nodes; 10 is "here"
  bool operator==(const NumaNode&) const = default;
};

struct CpuInfo {
  std::string model, vendor, architecture;  // architecture: "x86_64", "aarch64", …
  int sockets = 0, cores = 0, threads = 0;  // of the machine, those that are online
  std::vector<int> usable_cpus;             // this process may run there (affinity, cpuset); ascending
  int usable_cores = 0;                     // physical cores among them
  std::optional<double> quota_cpus;         // a cgroup's limit in CPUs' worth of time
  int usable_threads = 0;                   // how many threads to start: usable_cpus held against the quota, at least 1
  std::optional<double> base_mhz, max_mhz, current_mhz;
  IsaSet isa;
  bool virtualized = false;  // a hypervisor is beneath
  std::vector<CacheInfo> caches;
  std::vector<NumaNode> numa;
  bool operator==(const CpuInfo&) const = default;
  /// Bytes of one instance of the largest data cache of `level`, 0 when unknown.
  Bytes cache_bytes(int level) const;
  /// All instances of the last level together, 0 when unknown.
  Bytes last_level_bytes_total() const;
};

struct HugePagePool {
  Bytes page_bytes = 0;
  std::int64_t total = 0, free = 0;
  bool operator==(const HugePagePool&) const = default;
};

struct MemoryInfo {
  Bytes total_bytes = 0;      // of the host as this kernel sees it
  Bytes available_bytes = 0;  // the host's estimate of what a program started now may take
  Bytes swap_total_bytes = 0;
  std::optional<Bytes> limit_bytes;                 // the tightest cgroup limit
  std::optional<Bytes> limit_used_bytes;            // what counts against it already, without what the kernel can drop
  int cgroup_version = 0;                           // 0: no cgroup found, 1 or 2
  Bytes usable_bytes = 0;                           // what we may take now: available, held against the limit's room
  std::string transparent_huge_pages;               // "always", "madvise", "never"; empty unknown
  std::vector<HugePagePool> pools;                  // reserved huge pages (hugetlbfs)
  std::optional<int> modules, channels, speed_mts;  // populated DIMMs; channels in use; transfers per second in 10^6
  std::string kind;                                 // "DDR5"; empty unknown
  std::string modules_source;                       // "edac", "dmi"; empty when neither can be read (DMI needs root)
  bool operator==(const MemoryInfo&) const = default;
  /// channels x speed x 8 bytes where both are known.
  std::optional<double> theoretical_bytes_per_second() const;
};

/// A sentence for people: a key of the text catalog with its arguments.
struct Note {
  std::string key;
  std::vector<std::pair<std::string, std::string>> args;
  bool operator==(const Note&) const = default;
};
std::string note_text(const Note& note);

enum class DiskKind : std::uint8_t { unknown, nvme, ssd, hdd, virtual_disk, network, overlay, ram };
std::string_view disk_kind_name(DiskKind kind);

struct DiskRead {
  double bytes_per_second = 0;
  Bytes bytes = 0;     // read in all
  std::string method;  // "io_uring", "pread"; with "+cached" when the file system refuses direct reads
  std::string source;  // "temporary file", "existing file"
  bool operator==(const DiskRead&) const = default;
};

struct DiskInfo {
  std::vector<std::string> uses;  // "work" (the current folder), "home", "models" (the cache of downloads)
  std::string path;               // the folder asked about, or its nearest parent that exists
  std::string mount, filesystem, device, model;  // device: "nvme0n1", "server:/export", …
  DiskKind kind = DiskKind::unknown;
  bool writable = false;
  Bytes total_bytes = 0, free_bytes = 0;  // free: for this user
  std::optional<DiskRead> read;
  std::optional<Note> note;  // why it was not measured, or what the figure may hide
  bool operator==(const DiskInfo&) const = default;
};

enum class GpuVendor : std::uint8_t { nvidia, amd, intel, ascend, other };
std::string_view gpu_vendor_name(GpuVendor vendor);

struct NvLinkPort {
  int index = 0;
  bool active = false;
  int version = 0;          // NVML's number, 0 unknown
  std::string remote_kind;  // "gpu", "switch", "other", empty unknown
  std::string remote_pci;   // lower case, "0000:1b:00.0"
  bool operator==(const NvLinkPort&) const = default;
};

struct GpuInfo {
  GpuVendor vendor = GpuVendor::other;
  std::string name, uuid, pci_address, driver, runtime;  // pci_address: "0000:1b:00.0"; runtime: "CUDA 13.0"
  std::string compute_capability;                        // "9.0", "gfx942"
  Bytes memory_total_bytes = 0, memory_free_bytes = 0, memory_used_bytes = 0;
  bool memory_is_estimate = false;  // from the size of a PCI window
  bool integrated = false;          // shares the machine's memory
  std::optional<int> memory_bus_bits;
  std::optional<double> core_mhz, core_max_mhz, memory_mhz, memory_max_mhz, power_limit_watts;
  std::optional<int> pcie_generation, pcie_width, pcie_max_generation, pcie_max_width, numa_node;
  std::optional<bool> mig;
  std::vector<NvLinkPort> nvlinks;
  std::optional<double> nvlink_bytes_per_second;  // of one link, one direction
  std::string source;                             // "nvml", "sysfs", "rocm-smi", "npu-smi", "pci"
  bool operator==(const GpuInfo&) const = default;
  int active_nvlinks() const;
  /// Highest memory clock x 2 x bus width, where both are known: the rate that vendors print.
  std::optional<double> memory_bytes_per_second() const;
};

/// What lies between two GPUs; a < b are indices into Machine::gpus.
struct GpuLink {
  int a = 0, b = 0;
  std::string
      path;         // nvidia-smi's words: "NV18", "PIX", "PXB", "PHB", "NODE", "SYS"; "BOARD": one board; empty unknown
  int nvlinks = 0;  // links between the two, directly or through a switch
  std::optional<bool> peer_to_peer;
  bool operator==(const GpuLink&) const = default;
};

enum class Access : std::uint8_t { read, copy, triad };
std::string_view access_name(Access access);
enum class Pages : std::uint8_t { small, transparent_huge, hugetlb };
std::string_view pages_name(Pages pages);

/// Memory bandwidth. Copy counts bytes read + written, triad (a = b + s c) bytes read twice + written once.
struct BandwidthResult {
  Access access = Access::read;
  Pages pages = Pages::small;
  int threads = 0;
  double best_bytes_per_second = 0, median_bytes_per_second = 0;
  int repetitions = 0;
  std::string variant;  // the loop that was fastest: "avx512 8 streams"
  bool operator==(const BandwidthResult&) const = default;
};

struct ThreadPoint {
  int threads = 0;
  double bytes_per_second = 0;
  bool operator==(const ThreadPoint&) const = default;
};

struct CacheResult {
  int level = 0;  // 4 stands for main memory
  Bytes buffer_bytes = 0;
  double latency_seconds = 0;              // one dependent load
  std::optional<double> bytes_per_second;  // one thread reading
  bool operator==(const CacheResult&) const = default;
};

/// The highest rate that a loop of one kind of instruction reaches with everything in registers. int8: operations.
struct PeakResult {
  std::string kernel;  // "avx512_fp32", "amx_bf16"
  Precision precision = Precision::fp32;
  double one_thread_flops = 0;
  int threads = 0;
  double all_threads_flops = 0;  // of `threads` together
  bool operator==(const PeakResult&) const = default;
};

struct Measured {
  std::string effort;  // "quick", "default", "thorough"
  double seconds = 0;
  double others_share =
      0;  // of the usable CPUs' time, what went to other programs and other virtual machines meanwhile
  Bytes buffer_bytes = 0;
  double read_bandwidth_bytes_per_second = 0;  // the best of everything below: what decode is held against
  std::vector<BandwidthResult> bandwidth;
  std::vector<ThreadPoint> read_curve;  // by threads, ascending
  std::vector<CacheResult> caches;
  std::vector<PeakResult> peaks;
  bool operator==(const Measured&) const = default;
};

struct Machine {
  std::string os, kernel;
  bool container = false;
  CpuInfo cpu;
  MemoryInfo memory;
  std::vector<DiskInfo> disks;
  std::vector<GpuInfo> gpus;
  std::vector<GpuLink> gpu_links;
  std::optional<Measured> measured;
  std::vector<Note> notes;
  bool operator==(const Machine&) const = default;

  /// Bytes of main memory that a program may take now.
  Bytes usable_memory_bytes() const { return memory.usable_bytes; }
  /// Best measured read bandwidth of main memory; nullopt when it was not measured.
  std::optional<double> read_bandwidth() const;
  /// The same with `threads` threads, interpolated in the measured curve.
  std::optional<double> read_bandwidth(int threads) const;
  /// Measured peak of the fastest instruction for `precision`, of one thread times `threads`, never above what all
  /// threads reached together (0: all). 16-bit formats fall back on fp32, which every CPU computes them with.
  std::optional<double> peak_flops(Precision precision, int threads = 0) const;
};

/// One JSON document with everything; strings that are not UTF-8 are repaired.
std::string machine_to_json(const Machine& machine, int indent = -1);
/// The way back. Absent fields keep their defaults, unknown ones are ignored; a wrong type is an error that names it.
Result<Machine> machine_from_json(std::string_view text, std::string_view what);

/// CPU model, cores, threads, memory in GiB and GPUs as one line: what must agree for measurements to carry over.
std::string fingerprint(const Machine& machine);

/// The file of this machine's profile: user_folder()/machine.json.
std::string profile_path();
/// Stores `machine` there, whole or not at all.
Status save_profile(const Machine& machine);
/// The stored profile; nullopt when there is none or when it is of another machine than `now` (by fingerprint).
/// A file that cannot be understood is an error.
Result<std::optional<Machine>> load_profile(const Machine& now);
/// The same against a fresh look at this machine that measures nothing.
Result<std::optional<Machine>> load_profile();

}  // namespace fathom::hardware
