#include "hardware/machine.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <system_error>

#include "base/files.h"
#include "base/i18n.h"
#include "hardware/probe.h"

namespace fathom::hardware {
namespace {

constexpr std::string_view kIsaNames[kIsaCount] = {
    "sse4",     "avx",         "avx2",        "fma",          "f16c",      "avx512f",   "avx512bw", "avx512dq",
    "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16",  "avx_vnni",  "amx_tile",  "amx_bf16", "amx_int8",
    "amx_fp16", "neon",        "neon_fp16",   "neon_dotprod", "neon_i8mm", "neon_bf16", "sve",      "sve2"};

// The largest profile that makes sense; more is not ours.
constexpr Bytes kProfileLimit = 16 * kMiB;

}  // namespace

std::string_view isa_name(Isa isa) { return kIsaNames[static_cast<int>(isa)]; }

std::optional<Isa> parse_isa(std::string_view name) {
  for (int i = 0; i < kIsaCount; ++i)
    if (kIsaNames[i] == name) return static_cast<Isa>(i);
  return std::nullopt;
}

std::string_view disk_kind_name(DiskKind kind) {
  constexpr std::string_view names[] = {"unknown", "nvme", "ssd", "hdd", "virtual", "network", "overlay", "ram"};
  return names[static_cast<int>(kind)];
}

std::string_view gpu_vendor_name(GpuVendor vendor) {
  constexpr std::string_view names[] = {"nvidia", "amd", "intel", "ascend", "other"};
  return names[static_cast<int>(vendor)];
}

std::string_view access_name(Access access) {
  constexpr std::string_view names[] = {"read", "copy", "triad"};
  return names[static_cast<int>(access)];
}

std::string_view pages_name(Pages pages) {
  constexpr std::string_view names[] = {"small", "huge", "hugetlb"};
  return names[static_cast<int>(pages)];
}

Bytes CpuInfo::cache_bytes(int level) const {
  Bytes largest = 0;
  for (const CacheInfo& cache : caches)
    if (cache.level == level && cache.kind != "instruction") largest = std::max(largest, cache.bytes);
  return largest;
}

Bytes CpuInfo::last_level_bytes_total() const {
  int level = 0;
  Bytes total = 0;
  for (const CacheInfo& cache : caches) {
    if (cache.kind == "instruction" || cache.level < level) continue;
    if (cache.level > level) total = 0;
    level = cache.level;
    total += cache.bytes * static_cast<Bytes>(std::max(cache.instances, 1));
  }
  return total;
}

std::optional<double> MemoryInfo::theoretical_bytes_per_second() const {
  if (!channels || !speed_mts) return std::nullopt;
  return *channels * *speed_mts * 1e6 * 8;
}

std::string note_text(const Note& note) {
  TextArgs args;
  for (const auto& [name, value] : note.args) args.emplace_back(name, value);
  return tr(note.key, args);
}

int GpuInfo::active_nvlinks() const {
  return static_cast<int>(
      std::count_if(nvlinks.begin(), nvlinks.end(), [](const NvLinkPort& port) { return port.active; }));
}

std::optional<double> GpuInfo::memory_bytes_per_second() const {
  if (!memory_max_mhz || !memory_bus_bits) return std::nullopt;
  return *memory_max_mhz * 1e6 * 2 * *memory_bus_bits / 8;
}

std::optional<double> Machine::read_bandwidth() const {
  if (!measured || !(measured->read_bandwidth_bytes_per_second > 0)) return std::nullopt;
  return measured->read_bandwidth_bytes_per_second;
}

std::optional<double> Machine::read_bandwidth(int threads) const {
  if (!measured || measured->read_curve.empty()) return read_bandwidth();
  const auto& curve = measured->read_curve;
  if (threads >= curve.back().threads) return curve.back().bytes_per_second;
  const auto next =
      std::find_if(curve.begin(), curve.end(), [&](const ThreadPoint& p) { return p.threads >= threads; });
  if (next == curve.begin()) return next->bytes_per_second * std::max(threads, 1) / std::max(next->threads, 1);
  const auto last = next - 1;
  const double share = double(threads - last->threads) / (next->threads - last->threads);
  return last->bytes_per_second + share * (next->bytes_per_second - last->bytes_per_second);
}

std::optional<double> Machine::peak_flops(Precision precision, int threads) const {
  if (!measured) return std::nullopt;
  const bool sixteen = precision == Precision::bf16 || precision == Precision::fp16;
  double best = 0;
  for (const PeakResult& peak : measured->peaks) {
    if (peak.precision != precision && !(sixteen && peak.precision == Precision::fp32)) continue;
    const double all = peak.all_threads_flops > 0 ? peak.all_threads_flops : peak.one_thread_flops;
    best = std::max(best, threads <= 0 ? all : std::min(all, peak.one_thread_flops * threads));
  }
  return best > 0 ? std::optional(best) : std::nullopt;
}

std::string fingerprint(const Machine& machine) {
  const CpuInfo& cpu = machine.cpu;
  std::string line = cpu.model + " | " + std::to_string(cpu.sockets) + " sockets, " + std::to_string(cpu.cores) +
                     " cores, " + std::to_string(cpu.usable_threads) + " threads | " +
                     std::to_string((machine.memory.total_bytes + kGiB / 2) / kGiB) + " GiB";
  for (const GpuInfo& gpu : machine.gpus) {
    if (gpu.integrated) continue;
    line += " | " + gpu.name + " " + std::to_string((gpu.memory_total_bytes + kGiB / 2) / kGiB) + " GiB";
  }
  return line;
}

std::string profile_path() { return (user_folder() / "machine.json").string(); }

Status save_profile(const Machine& machine) {
  std::error_code error;
  std::filesystem::create_directories(user_folder(), error);
  if (error)
    return fail_environment("base.cannot_write", {{"path", user_folder().string()}, {"reason", error.message()}});
  return write_file_atomic(profile_path(), machine_to_json(machine, 2) + "\n");
}

Result<std::optional<Machine>> load_profile(const Machine& now) {
  std::error_code error;
  if (!std::filesystem::exists(profile_path(), error)) return std::nullopt;
  FATHOM_TRY(const std::string text, read_file(profile_path(), kProfileLimit));
  FATHOM_TRY(Machine stored, machine_from_json(text, profile_path()));
  if (fingerprint(stored) != fingerprint(now)) return std::nullopt;
  return stored;
}

Result<std::optional<Machine>> load_profile() {
  std::error_code error;
  if (!std::filesystem::exists(profile_path(), error)) return std::nullopt;  // spares the look at the GPUs
  ProbeOptions options;
  options.effort = Effort::kNone;
  options.disks = false;
  return load_profile(probe(options));
}

}  // namespace fathom::hardware
