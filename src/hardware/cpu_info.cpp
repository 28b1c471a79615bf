#include "hardware/cpu_info.h"

#include <sched.h>
#include <sys/utsname.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <set>
#include <tuple>

#include "base/strings.h"

namespace fathom::hardware {
namespace {

struct FlagName {
  std::string_view flag;
  Isa isa;
};
// As Linux spells them: x86 first, then ARM.
constexpr FlagName kFlags[] = {{"sse4_2", Isa::sse4},
                               {"avx", Isa::avx},
                               {"avx2", Isa::avx2},
                               {"fma", Isa::fma},
                               {"f16c", Isa::f16c},
                               {"avx512f", Isa::avx512f},
                               {"avx512bw", Isa::avx512bw},
                               {"avx512dq", Isa::avx512dq},
                               {"avx512vl", Isa::avx512vl},
                               {"avx512_vnni", Isa::avx512_vnni},
                               {"avx512_bf16", Isa::avx512_bf16},
                               {"avx512_fp16", Isa::avx512_fp16},
                               {"avx_vnni", Isa::avx_vnni},
                               {"amx_tile", Isa::amx_tile},
                               {"amx_bf16", Isa::amx_bf16},
                               {"amx_int8", Isa::amx_int8},
                               {"amx_fp16", Isa::amx_fp16},
                               {"asimd", Isa::neon},
                               {"asimdhp", Isa::neon_fp16},
                               {"asimddp", Isa::neon_dotprod},
                               {"i8mm", Isa::neon_i8mm},
                               {"bf16", Isa::neon_bf16},
                               {"sve", Isa::sve},
                               {"sve2", Isa::sve2}};

// ARM prints numbers where x86 prints a name.
struct ArmPart {
  std::int64_t implementer, part;
  std::string_view name;
};
constexpr ArmPart kArmParts[] = {
    {0x41, 0xd03, "Cortex-A53"},  {0x41, 0xd08, "Cortex-A72"},  {0x41, 0xd0b, "Cortex-A76"},
    {0x41, 0xd0c, "Neoverse-N1"}, {0x41, 0xd40, "Neoverse-V1"}, {0x41, 0xd49, "Neoverse-N2"},
    {0x41, 0xd4f, "Neoverse-V2"}, {0x41, 0xd84, "Neoverse-V3"}, {0x41, 0xd8e, "Neoverse-N3"},
    {0x46, 0x001, "A64FX"},       {0x48, 0xd01, "Kunpeng-920"}, {0x48, 0xd02, "Kunpeng-920B"},
    {0x61, 0x022, "Apple M1"},    {0x61, 0x032, "Apple M2"},    {0xc0, 0xac3, "Ampere-1"},
    {0xc0, 0xac4, "Ampere-1a"}};

std::string arm_name(std::string_view cpuinfo) {
  const auto implementer = parse_integer(value_of(cpuinfo, "CPU implementer").value_or(""));
  const auto part = parse_integer(value_of(cpuinfo, "CPU part").value_or(""));
  if (!implementer || !part) return {};
  for (const ArmPart& known : kArmParts)
    if (known.implementer == *implementer && known.part == *part) return std::string(known.name);
  return "ARM " + std::string(*value_of(cpuinfo, "CPU implementer")) + ":" +
         std::string(*value_of(cpuinfo, "CPU part"));
}

// "2.30" out of "… CPU @ 2.30GHz".
std::optional<double> mhz_in_name(std::string_view model) {
  const std::size_t at = model.find("@ ");
  if (at == std::string_view::npos || model.find("GHz", at) == std::string_view::npos) return std::nullopt;
  const auto ghz = parse_leading_number(model.substr(at + 2));
  return ghz && *ghz > 0 ? std::optional(std::round(*ghz * 1000)) : std::nullopt;
}

std::optional<double> mhz_file(const SystemFiles& files, const char* name) {
  const auto khz = files.integer(std::string("sys/devices/system/cpu/cpu0/cpufreq/") + name);
  return khz && *khz > 0 ? std::optional(static_cast<double>(*khz) / 1000) : std::nullopt;
}

// "32K", "105M", "107520K".
Bytes cache_size(std::string_view text) {
  const auto number = parse_leading_number(text);
  if (!number || *number <= 0 || *number > 1e9) return 0;
  const double unit = text.ends_with('K')   ? 1024.0
                      : text.ends_with('M') ? 1048576.0
                      : text.ends_with('G') ? 1073741824.0
                                            : 1.0;
  return static_cast<Bytes>(*number * unit);
}

// Where each online CPU sits. Without sysfs, /proc/cpuinfo's "physical id" and "core id" serve.
struct Place {
  std::int64_t package = 0, core = 0;
};

std::map<int, Place> places_from_cpuinfo(std::string_view cpuinfo) {
  std::map<int, Place> places;
  std::optional<int> cpu;
  bool has_core = false;
  for (const std::string_view line : lines_of(cpuinfo)) {
    const std::size_t colon = line.find(':');
    if (colon == std::string_view::npos) continue;
    const std::string_view key = trim(line.substr(0, colon));
    const auto value = parse_integer(line.substr(colon + 1));
    if (key == "processor" && value && *value >= 0 && *value < 65536) {
      cpu = static_cast<int>(*value);
      places[*cpu] = {0, *cpu};  // each its own core until told otherwise
      has_core = false;
    } else if (cpu && key == "physical id" && value) {
      places[*cpu].package = *value;
    } else if (cpu && key == "core id" && value && !has_core) {
      places[*cpu].core = *value;
      has_core = true;
    }
  }
  return places;
}

std::map<int, Place> read_places(const SystemFiles& files, std::string_view cpuinfo) {
  std::map<int, Place> places = places_from_cpuinfo(cpuinfo);
  const std::string base = "sys/devices/system/cpu/";
  const auto online = files.line(base + "online");
  for (const int cpu : online ? parse_cpu_list(*online) : std::vector<int>()) places.try_emplace(cpu, Place{0, cpu});
  for (auto& [cpu, place] : places) {
    const std::string topology = base + "cpu" + std::to_string(cpu) + "/topology/";
    const auto package = files.integer(topology + "physical_package_id"), core = files.integer(topology + "core_id");
    if (package && *package >= 0) place.package = *package;
    if (core && *core >= 0) place.core = *core;
  }
  return places;
}

int count_cores(const std::map<int, Place>& places, const std::vector<int>* among) {
  std::set<std::pair<std::int64_t, std::int64_t>> cores;
  for (const auto& [cpu, place] : places)
    if (among == nullptr || std::binary_search(among->begin(), among->end(), cpu))
      cores.emplace(place.package, place.core);
  return static_cast<int>(cores.size());
}

// Where this process may run: asked of the kernel on the real machine, else as /proc/self/status tells.
std::vector<int> allowed_cpus(const SystemFiles& files) {
  if (files.is_real()) {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (::sched_getaffinity(0, sizeof set, &set) == 0) {
      std::vector<int> cpus;
      for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
        if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
      return cpus;
    }
  }
  const auto status = files.text("proc/self/status");
  if (!status) return {};
  const auto list = value_of(*status, "Cpus_allowed_list");
  return list ? parse_cpu_list(*list) : std::vector<int>();
}

std::vector<CacheInfo> read_caches(const SystemFiles& files, const std::map<int, Place>& places) {
  // (level, kind) -> the CPU lists of its instances
  std::map<std::tuple<int, std::string>, std::map<std::string, CacheInfo>> found;
  for (const auto& entry : places) {
    const std::string base = "sys/devices/system/cpu/cpu" + std::to_string(entry.first) + "/cache/";
    for (const std::string& name : files.names(base)) {
      if (!name.starts_with("index")) continue;
      const auto level = files.integer(base + name + "/level");
      const auto type = files.line(base + name + "/type"), size = files.line(base + name + "/size");
      if (!level || *level < 1 || *level > 9 || !type || !size || cache_size(*size) == 0) continue;
      const auto shared = files.line(base + name + "/shared_cpu_list");
      const std::string list = shared.value_or(std::to_string(entry.first));
      CacheInfo& cache = found[{static_cast<int>(*level), to_lower(*type)}][list];
      cache = {static_cast<int>(*level), to_lower(*type), cache_size(*size), 1,
               std::max(static_cast<int>(parse_cpu_list(list).size()), 1)};
    }
  }
  std::vector<CacheInfo> caches;
  for (const auto& [kind, instances] : found) {
    CacheInfo cache = instances.begin()->second;
    for (const auto& [list, one] : instances) cache.bytes = std::max(cache.bytes, one.bytes);
    cache.instances = static_cast<int>(instances.size());
    caches.push_back(cache);
  }
  return caches;
}

std::vector<NumaNode> read_numa(const SystemFiles& files) {
  std::vector<NumaNode> nodes;
  const std::string base = "sys/devices/system/node/";
  for (const std::string& name : files.names(base)) {
    if (!name.starts_with("node")) continue;
    const auto id = parse_integer(std::string_view(name).substr(4));
    if (!id || *id < 0 || *id > 65535) continue;
    NumaNode node;
    node.id = static_cast<int>(*id);
    if (const auto list = files.line(base + name + "/cpulist")) node.cpus = parse_cpu_list(*list);
    if (const auto text = files.text(base + name + "/meminfo"))
      if (const std::size_t at = text->find("MemTotal:"); at != std::string::npos)
        if (const auto kib = parse_leading_number(std::string_view(*text).substr(at + 9));
            kib && *kib >= 0 && *kib < 1e15)
          node.memory_bytes = static_cast<Bytes>(*kib) * kKiB;
    if (const auto line = files.line(base + name + "/distance"))
      for (const std::string_view part : split(*line, ' '))
        if (const auto distance = parse_integer(part); distance && *distance >= 0 && *distance < 65536)
          node.distances.push_back(static_cast<int>(*distance));
    nodes.push_back(std::move(node));
  }
  return nodes;
}

void read_identity(const SystemFiles& files, std::string_view cpuinfo, CpuInfo& cpu) {
  cpu.model = std::string(value_of(cpuinfo, "model name").value_or(""));
  cpu.vendor = std::string(value_of(cpuinfo, "vendor_id").value_or(""));
  if (cpu.model.empty()) cpu.model = arm_name(cpuinfo);
  if (cpu.model.empty()) cpu.model = std::string(trim(files.line("proc/device-tree/model").value_or("")));
  const std::string_view flags = value_of(cpuinfo, "flags").value_or(value_of(cpuinfo, "Features").value_or(""));
  cpu.isa = isa_from_flags(flags);
  cpu.architecture = value_of(cpuinfo, "flags") ? "x86_64" : value_of(cpuinfo, "CPU implementer") ? "aarch64" : "";
  const auto words = split(flags, ' ');
  cpu.virtualized = std::find(words.begin(), words.end(), "hypervisor") != words.end();
  if (const auto mhz = parse_leading_number(value_of(cpuinfo, "cpu MHz").value_or("")); mhz && *mhz > 0)
    cpu.current_mhz = mhz;
  cpu.base_mhz = mhz_file(files, "base_frequency");
  if (!cpu.base_mhz) cpu.base_mhz = mhz_in_name(cpu.model);
  cpu.max_mhz = mhz_file(files, "cpuinfo_max_freq");
}

}  // namespace

IsaSet isa_from_flags(std::string_view flags) {
  IsaSet set;
  for (const std::string_view word : split(flags, ' '))
    for (const FlagName& known : kFlags)
      if (word == known.flag) set.add(known.isa);
  return set;
}

CpuInfo read_cpu(const SystemFiles& files, const CgroupLimits& limits) {
  CpuInfo cpu;
  const std::string cpuinfo = files.text("proc/cpuinfo").value_or("");
  read_identity(files, cpuinfo, cpu);
  const auto places = read_places(files, cpuinfo);
  std::set<std::int64_t> packages;
  for (const auto& [number, place] : places) packages.insert(place.package);
  cpu.sockets = static_cast<int>(packages.size());
  cpu.threads = static_cast<int>(places.size());
  cpu.cores = count_cores(places, nullptr);
  cpu.usable_cpus = allowed_cpus(files);
  if (!places.empty()) std::erase_if(cpu.usable_cpus, [&](int number) { return !places.contains(number); });
  if (cpu.usable_cpus.empty())
    for (const auto& [number, place] : places) cpu.usable_cpus.push_back(number);
  cpu.usable_cores = count_cores(places, &cpu.usable_cpus);
  cpu.quota_cpus = limits.cpus;
  cpu.usable_threads = std::max(static_cast<int>(cpu.usable_cpus.size()), 1);
  if (cpu.quota_cpus && *cpu.quota_cpus < cpu.usable_threads)  // half a CPU more than n is closer to n+1 threads
    cpu.usable_threads = std::max(static_cast<int>(std::floor(*cpu.quota_cpus + 0.5)), 1);
  cpu.caches = read_caches(files, places);
  cpu.numa = read_numa(files);
  if (files.is_real()) {
    if (cpu.isa.bits == 0) cpu.isa = executable_isa();
    if (utsname name = {}; cpu.architecture.empty() && ::uname(&name) == 0) cpu.architecture = name.machine;
    complete_with_hwloc(cpu);
  }
  return cpu;
}

std::vector<CpuPlace> thread_places(const SystemFiles& files, const CpuInfo& cpu) {
  const auto places = read_places(files, files.text("proc/cpuinfo").value_or(""));
  std::map<int, int> node_of;
  for (const NumaNode& node : cpu.numa)
    for (const int number : node.cpus) node_of[number] = node.id;
  // The k-th thread of its core and the m-th such core of its node: sort by (k, m, node).
  std::map<std::pair<std::int64_t, std::int64_t>, int> threads_of_core;
  std::map<std::pair<int, int>, int> cores_of_node;
  std::vector<std::pair<std::array<int, 3>, CpuPlace>> keyed;
  for (const int number : cpu.usable_cpus) {
    const auto found = places.find(number);
    const Place place = found == places.end() ? Place{0, number} : found->second;
    const int node = node_of.contains(number) ? node_of[number] : 0;
    const int sibling = threads_of_core[{place.package, place.core}]++;
    const int rank = cores_of_node[{sibling, node}]++;
    keyed.push_back({{sibling, rank, node}, {number, node}});
  }
  std::sort(keyed.begin(), keyed.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<CpuPlace> order;
  for (const auto& entry : keyed) order.push_back(entry.second);
  return order;
}

}  // namespace fathom::hardware
