#include "hardware/probe.h"

#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "base/strings.h"
#include "hardware/cgroup.h"
#include "hardware/cpu_info.h"
#include "hardware/disk_bench.h"
#include "hardware/gpu_probe.h"
#include "hardware/memory_bench.h"
#include "hardware/probe_compute.h"
#include "hardware/probe_crew.h"
#include "hardware/probe_disk.h"
#include "hardware/probe_memory.h"
#include "hardware/probe_process.h"

namespace fathom::hardware {
namespace {

constexpr Bytes kDiskSpare = 512 * kMiB;  // left free beside the temporary file
constexpr Bytes kDiskLeast = 32 * kMiB;
constexpr double kDiskSeconds = 20;  // for one disk, before we take it to hang

void read_system(const SystemFiles& files, Machine& machine) {
  const std::string release = files.text("etc/os-release").value_or("");
  for (const std::string_view line : lines_of(release))
    if (line.starts_with("PRETTY_NAME=")) {
      std::string_view name = trim(line.substr(12));
      if (name.size() >= 2 && name.front() == '"' && name.back() == '"') name = name.substr(1, name.size() - 2);
      machine.os = printable(name);
    }
  machine.kernel = files.line("proc/sys/kernel/osrelease").value_or("");
  if (utsname name = {}; machine.kernel.empty() && files.is_real() && ::uname(&name) == 0)
    machine.kernel = name.release;
  machine.container = files.exists(".dockerenv") || files.exists("run/.containerenv");
  const std::string groups = files.text("proc/1/cgroup").value_or("");
  for (const char* sign : {"docker", "kubepods", "containerd", "libpod", "lxc"})
    machine.container = machine.container || groups.find(sign) != std::string::npos;
}

void read_notes(Machine& machine) {
  const CpuInfo& cpu = machine.cpu;
  if (machine.memory.limit_bytes)
    machine.notes.push_back(
        {"hardware_probe.memory_limited",
         {{"limit", format_bytes(*machine.memory.limit_bytes)}, {"total", format_bytes(machine.memory.total_bytes)}}});
  if (cpu.usable_threads < cpu.threads)
    machine.notes.push_back({"hardware_probe.cpus_limited",
                             {{"usable", std::to_string(cpu.usable_threads)}, {"total", std::to_string(cpu.threads)}}});
  if (machine.memory.transparent_huge_pages == "never") machine.notes.push_back({"hardware_probe.no_huge_pages", {}});
  for (const GpuInfo& gpu : machine.gpus)
    if (gpu.pcie_width && gpu.pcie_max_width && *gpu.pcie_width < *gpu.pcie_max_width)
      machine.notes.push_back({"hardware_probe.gpu_narrow_link",
                               {{"name", gpu.name},
                                {"width", std::to_string(*gpu.pcie_width)},
                                {"max", std::to_string(*gpu.pcie_max_width)}}});
}

void measure_disk(DiskInfo& disk, Effort effort) {
  if (disk.note) return;
  if (disk.kind == DiskKind::ram) {
    disk.note = Note{"hardware_probe.disk_in_memory", {{"mount", disk.mount}}};
    return;
  }
  DiskBenchOptions options;
  options.folder = disk.path;
  const bool quick = effort == Effort::kQuick || effort == Effort::kTiny;
  options.bytes = effort == Effort::kTiny ? 16 * kMiB : quick ? 64 * kMiB : 256 * kMiB;
  options.write_seconds = effort == Effort::kThorough ? 3 : quick ? 0.15 : 0.8;
  options.read_seconds = effort == Effort::kThorough ? 2 : quick ? 0.15 : 0.5;
  const bool models = std::find(disk.uses.begin(), disk.uses.end(), "models") != disk.uses.end();
  const Bytes bytes = options.bytes;
  const Bytes room = disk.free_bytes > kDiskSpare ? disk.free_bytes - kDiskSpare : 0;
  const bool writable = disk.writable && room >= kDiskLeast;
  options.bytes = std::min(options.bytes, writable ? room : options.bytes);
  struct Answer {
    Result<DiskRead> read = DiskRead();
    bool nothing_to_read = false;
  };
  const auto answer = with_time_limit<Answer>(kDiskSeconds, [options, models, writable, bytes]() mutable {
    if (models || !writable) options.existing = find_large_file(options.folder, bytes);
    if (!options.existing && !writable) return Answer{DiskRead(), true};
    return Answer{measure_disk_read(options), false};
  });
  if (!answer)
    disk.note = Note{"hardware_probe.disk_no_answer", {{"path", disk.path}}};
  else if (answer->nothing_to_read && !disk.writable)
    disk.note = Note{"hardware_probe.disk_read_only", {{"path", disk.path}}};
  else if (answer->nothing_to_read)
    disk.note = Note{"hardware_probe.disk_full", {{"path", disk.path}, {"free", format_bytes(disk.free_bytes)}}};
  else if (!answer->read)
    disk.note = Note{answer->read.error().key, answer->read.error().args};
  else
    disk.read = *answer->read;
  if (disk.read && disk.kind == DiskKind::virtual_disk) disk.note = Note{"hardware_probe.disk_virtual", {}};
  if (disk.read && disk.kind == DiskKind::network) disk.note = Note{"hardware_probe.disk_network", {}};
  if (disk.read && disk.kind == DiskKind::overlay) disk.note = Note{"hardware_probe.disk_overlay", {}};
}

// Seconds that the CPUs of `cpus` have been busy, or taken away by a hypervisor, since they started.
double busy_seconds(const SystemFiles& files, const std::vector<int>& cpus) {
  constexpr int kIdle = 3, kWait = 4, kSteal = 7;
  const std::string text = files.text("proc/stat").value_or("");
  double ticks = 0;
  for (const std::string_view line : lines_of(text)) {
    const auto words = split(line, ' ');
    if (!words[0].starts_with("cpu")) continue;
    const auto cpu = parse_integer(words[0].substr(3));
    if (!cpu || !std::binary_search(cpus.begin(), cpus.end(), static_cast<int>(*cpu))) continue;
    for (int i = 0; i <= kSteal && i + 1 < static_cast<int>(words.size()); ++i)
      if (i != kIdle && i != kWait)
        ticks += static_cast<double>(parse_integer(words[static_cast<std::size_t>(i) + 1]).value_or(0));
  }
  return ticks / static_cast<double>(std::max(::sysconf(_SC_CLK_TCK), 1L));
}

double own_seconds() {
  rusage usage = {};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// Others at work make every figure too low: say so.
void note_others(Machine& machine, double others, double seconds) {
  constexpr double kWorthSaying = 0.05;
  Measured& measured = *machine.measured;
  const double capacity = seconds * static_cast<double>(std::max<std::size_t>(machine.cpu.usable_cpus.size(), 1));
  measured.others_share = std::clamp(others / std::max(capacity, 1e-9), 0.0, 1.0);
  if (measured.others_share > kWorthSaying)
    machine.notes.push_back(
        {"hardware_probe.busy", {{"percent", std::to_string(std::lround(measured.others_share * 100))}}});
}

void measure(const SystemFiles& files, Effort effort, Machine& machine) {
  const double start = now_seconds(), busy = busy_seconds(files, machine.cpu.usable_cpus), own = own_seconds();
  Measured measured;
  measured.effort = effort_name(effort);
  auto places = thread_places(files, machine.cpu);
  const bool pin = machine.cpu.usable_threads >= static_cast<int>(places.size());
  if (static_cast<int>(places.size()) > machine.cpu.usable_threads)
    places.resize(static_cast<std::size_t>(machine.cpu.usable_threads));
  const IsaSet isa = executable_isa();
  {
    Crew crew(places, pin);
    MemoryBenchOptions options;
    options.effort = effort;
    options.usable_bytes = machine.memory.usable_bytes;
    options.last_level_bytes = machine.cpu.last_level_bytes_total();
    options.level2_bytes = machine.cpu.cache_bytes(2);
    options.level3_bytes = machine.cpu.cache_bytes(3);
    options.pools = machine.memory.pools;
    measure_memory(options, crew, measured, machine.notes);
    measured.peaks = measure_peaks(crew, isa, effort);
  }
  measured.seconds = now_seconds() - start;
  machine.measured = std::move(measured);
  if (effort != Effort::kTiny)
    note_others(machine, busy_seconds(files, machine.cpu.usable_cpus) - busy - (own_seconds() - own),
                machine.measured->seconds);
}

}  // namespace

std::string_view effort_name(Effort effort) {
  constexpr std::string_view names[] = {"none", "tiny", "quick", "default", "thorough"};
  return names[static_cast<int>(effort)];
}

Machine probe(const ProbeOptions& options) {
  const SystemFiles files(options.root);
  const auto stage = [&](std::string_view key) {
    if (options.on_stage) options.on_stage(key);
  };
  Machine machine;
  read_system(files, machine);
  const CgroupLimits limits = read_cgroup(files);
  machine.cpu = read_cpu(files, limits);
  machine.memory = read_memory(files, limits);
  if (options.gpus) {
    stage("hardware_probe.stage_gpus");
    GpuReport gpus = probe_gpus(files);
    machine.gpus = std::move(gpus.gpus);
    machine.gpu_links = std::move(gpus.links);
    machine.notes = std::move(gpus.notes);
  }
  read_notes(machine);
  if (options.disks) machine.disks = read_disks(files, folders_of_interest());
  if (options.effort == Effort::kNone || !files.is_real()) return machine;
  stage("hardware_probe.stage_memory");
  measure(files, options.effort, machine);
  if (options.disks && options.measure_disks) {
    stage("hardware_probe.stage_disks");
    for (DiskInfo& disk : machine.disks) measure_disk(disk, options.effort);
  }
  return machine;
}

}  // namespace fathom::hardware
