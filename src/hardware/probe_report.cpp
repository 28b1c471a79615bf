#include "hardware/probe_report.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/i18n.h"
#include "base/json.h"
#include "base/strings.h"
#include "base/terminal.h"

namespace fathom::hardware {
namespace {

std::string text(std::string_view key, const TextArgs& args = {}) {
  return tr("hardware_probe." + std::string(key), args);
}
std::string gb_per_second(double rate) { return fmt::format("{:.1f}", rate / kGB); }
std::string unknown() { return text("unknown"); }

// "name  value" lines with the names padded to one width; empty values are left out.
class Facts {
 public:
  void add(std::string_view key, std::string value) {
    if (!value.empty()) lines_.emplace_back(text(key), std::move(value));
  }
  std::string render() const {
    int width = 0;
    for (const auto& line : lines_) width = std::max(width, display_width(line.first));
    std::string out;
    for (const auto& [name, value] : lines_)
      out += "  " + name + std::string(static_cast<std::size_t>(width - display_width(name) + 2), ' ') + value + "\n";
    return out;
  }

 private:
  std::vector<std::pair<std::string, std::string>> lines_;
};

std::string heading(std::string_view key) { return "\n" + styled(Style::kBold, text(key)) + "\n"; }

std::string indented(const Table& table) {
  std::string out;
  const std::string rendered = table.render();
  for (const std::string_view line : split(std::string_view(rendered).substr(0, rendered.size() - 1), '\n'))
    out += "  " + std::string(line) + "\n";
  return out;
}

Column column(std::string_view key, Align align = Align::kLeft) { return {text(key), align}; }

// What the catalog knows of this CPU and of each GPU; null where it has no match.
const Cpu* catalog_cpu(const Machine& machine) {
  const auto catalog = hardware_catalog();
  if (!catalog || machine.cpu.model.empty()) return nullptr;
  const auto found = (*catalog)->find_cpu(machine.cpu.model);
  return found ? *found : nullptr;
}

const Accelerator* catalog_gpu(const GpuInfo& gpu) {
  const auto catalog = hardware_catalog();
  if (!catalog || gpu.name.empty() || gpu.integrated) return nullptr;
  const auto found = (*catalog)->find(gpu.name, gpu.memory_is_estimate ? 0 : gpu.memory_total_bytes);
  return found ? found->accelerator : nullptr;
}

std::string clocks(const CpuInfo& cpu) {
  std::vector<std::string> parts;
  const auto add = [&](std::string_view key, const std::optional<double>& mhz) {
    if (mhz) parts.push_back(text(key, {{"ghz", fmt::format("{:.2f}", *mhz / 1000)}}));
  };
  add("clock_base", cpu.base_mhz), add("clock_max", cpu.max_mhz);
  if (parts.empty()) add("clock_now", cpu.current_mhz);
  return parts.empty() ? unknown() : join(parts);
}

std::string caches(const CpuInfo& cpu) {
  std::vector<std::string> parts;
  for (const CacheInfo& cache : cpu.caches) {
    const char* kind = cache.kind == "data" ? "d" : cache.kind == "instruction" ? "i" : "";
    parts.push_back(fmt::format("L{}{} {} × {}", cache.level, kind, format_bytes(cache.bytes), cache.instances));
  }
  return join(parts);
}

std::string isa_list(IsaSet set) {
  std::vector<std::string> names;
  for (int i = 0; i < kIsaCount; ++i)
    if (set.has(static_cast<Isa>(i))) names.emplace_back(isa_name(static_cast<Isa>(i)));
  return join(names, " ");
}

std::string processor(const Machine& machine) {
  const CpuInfo& cpu = machine.cpu;
  Facts facts;
  facts.add("model", cpu.model.empty() ? unknown() : printable(cpu.model));
  facts.add("cores", text("cores_line", {{"cores", std::to_string(cpu.cores)},
                                         {"sockets", std::to_string(cpu.sockets)},
                                         {"threads", std::to_string(cpu.threads)},
                                         {"usable", std::to_string(cpu.usable_threads)}}));
  if (cpu.quota_cpus) facts.add("quota", fmt::format("{:.2f}", *cpu.quota_cpus));
  facts.add("clock", clocks(cpu));
  facts.add("isa", isa_list(cpu.isa));
  facts.add("caches", caches(cpu));
  if (cpu.numa.size() > 1) {
    std::vector<std::string> nodes;
    for (const NumaNode& node : cpu.numa)
      nodes.push_back(fmt::format("{}: {}", node.id, format_bytes(node.memory_bytes)));
    facts.add("numa", join(nodes));
  }
  return heading("processor") + facts.render();
}

std::string modules(const MemoryInfo& memory) {
  if (!memory.modules) return text("modules_unknown");
  std::vector<std::string> parts{text("modules_count", {{"count", std::to_string(*memory.modules)}})};
  if (!memory.kind.empty()) parts.push_back(memory.kind);
  if (memory.speed_mts) parts.push_back(fmt::format("{} MT/s", *memory.speed_mts));
  if (memory.channels) parts.push_back(text("channels_count", {{"count", std::to_string(*memory.channels)}}));
  if (const auto peak = memory.theoretical_bytes_per_second())
    parts.push_back(text("theoretical", {{"rate", gb_per_second(*peak)}}));
  return join(parts);
}

std::string main_memory(const Machine& machine) {
  const MemoryInfo& memory = machine.memory;
  Facts facts;
  facts.add("total", format_bytes(memory.total_bytes));
  if (memory.limit_bytes) facts.add("limit", format_bytes(*memory.limit_bytes));
  facts.add("usable", format_bytes(memory.usable_bytes));
  facts.add("modules", modules(memory));
  facts.add("huge_pages", memory.transparent_huge_pages.empty() ? unknown() : memory.transparent_huge_pages);
  std::vector<std::string> pools;
  for (const HugePagePool& pool : memory.pools)
    if (pool.total > 0)
      pools.push_back(fmt::format("{} × {} ({})", pool.total, format_bytes(pool.page_bytes), pool.free));
  facts.add("pools", join(pools));
  return heading("memory") + facts.render();
}

std::string bandwidth(const Machine& machine) {
  const Measured& measured = *machine.measured;
  if (measured.bandwidth.empty()) return {};
  Table table({column("access"), column("pages"), column("threads", Align::kRight), column("best", Align::kRight),
               column("median", Align::kRight), column("loop")});
  for (const BandwidthResult& result : measured.bandwidth)
    table.add_row({text("access_" + std::string(access_name(result.access))),
                   text("pages_" + std::string(pages_name(result.pages))), std::to_string(result.threads),
                   gb_per_second(result.best_bytes_per_second), gb_per_second(result.median_bytes_per_second),
                   result.variant});
  std::string out = heading("bandwidth") + indented(table);
  Facts facts;
  facts.add("best_read", text("rate", {{"rate", gb_per_second(measured.read_bandwidth_bytes_per_second)}}));
  if (measured.read_curve.size() > 2) {
    std::vector<std::string> points;
    for (const ThreadPoint& point : measured.read_curve)
      points.push_back(fmt::format("{}: {}", point.threads, gb_per_second(point.bytes_per_second)));
    facts.add("by_threads", join(points));
  }
  double peak = machine.memory.theoretical_bytes_per_second().value_or(0);
  if (const Cpu* known = catalog_cpu(machine); known != nullptr && known->peak_bytes_per_second) {
    peak = *known->peak_bytes_per_second * std::max(machine.cpu.sockets, 1);
    facts.add(
        "catalog",
        text("catalog_cpu", {{"name", known->name},
                             {"rate", gb_per_second(peak)},
                             {"share", fmt::format("{:.0f}", 100 * measured.read_bandwidth_bytes_per_second / peak)}}));
  } else if (peak > 0) {
    facts.add("catalog",
              text("theory_share",
                   {{"rate", gb_per_second(peak)},
                    {"share", fmt::format("{:.0f}", 100 * measured.read_bandwidth_bytes_per_second / peak)}}));
  } else {
    facts.add("catalog", text("catalog_none"));
  }
  return out + facts.render();
}

std::string cache_speeds(const Measured& measured) {
  if (measured.caches.empty()) return {};
  Table table({column("level"), column("buffer", Align::kRight), column("latency", Align::kRight),
               column("one_thread_rate", Align::kRight)});
  for (const CacheResult& cache : measured.caches)
    table.add_row({cache.level > 3 ? text("main_memory") : fmt::format("L{}", cache.level),
                   format_bytes(cache.buffer_bytes), fmt::format("{:.1f} ns", cache.latency_seconds * 1e9),
                   cache.bytes_per_second ? gb_per_second(*cache.bytes_per_second) : "-"});
  return heading("cache_speeds") + indented(table);
}

std::string peaks(const Measured& measured) {
  if (measured.peaks.empty()) return {};
  Table table({column("instructions"), column("precision"), column("one_thread", Align::kRight),
               column("all_threads", Align::kRight)});
  for (const PeakResult& peak : measured.peaks)
    table.add_row({peak.kernel, std::string(precision_name(peak.precision)),
                   fmt::format("{:.0f}", peak.one_thread_flops / 1e9),
                   fmt::format("{:.0f}", peak.all_threads_flops / 1e9)});
  return heading("peaks") + indented(table);
}

std::string disks(const Machine& machine) {
  if (machine.disks.empty()) return {};
  Table table({column("use"), column("mount"), column("device"), column("kind"), column("filesystem"),
               column("free", Align::kRight), column("read", Align::kRight), column("how")});
  std::string notes;
  for (const DiskInfo& disk : machine.disks) {
    std::vector<std::string> uses;
    for (const std::string& use : disk.uses) uses.push_back(text("use_" + use));
    table.add_row({join(uses), printable(disk.mount), printable(disk.device),
                   text("disk_kind_" + std::string(disk_kind_name(disk.kind))), disk.filesystem,
                   format_bytes(disk.free_bytes),
                   disk.read ? fmt::format("{:.2f}", disk.read->bytes_per_second / kGB) : "-",
                   disk.read ? disk.read->method : ""});
    if (disk.note) notes += "  " + printable(disk.mount) + ": " + note_text(*disk.note) + "\n";
  }
  return heading("disks") + indented(table) + notes;
}

std::string pcie(const GpuInfo& gpu) {
  const auto one = [](const std::optional<int>& generation, const std::optional<int>& width) {
    return fmt::format("{}×{}", generation ? std::to_string(*generation) : "?", width ? std::to_string(*width) : "?");
  };
  if (!gpu.pcie_generation && !gpu.pcie_max_generation) return "-";
  return one(gpu.pcie_generation, gpu.pcie_width) + " (" + one(gpu.pcie_max_generation, gpu.pcie_max_width) + ")";
}

std::string gpu_links(const Machine& machine) {
  const std::size_t count = machine.gpus.size();
  if (count < 2 || count > 32) return {};
  std::vector<Column> columns{{""}};
  for (std::size_t i = 0; i < count; ++i) columns.push_back({fmt::format("GPU{}", i), Align::kRight});
  std::vector<std::vector<std::string>> cells(count, std::vector<std::string>(count + 1, "?"));
  for (std::size_t i = 0; i < count; ++i) cells[i][0] = fmt::format("GPU{}", i), cells[i][i + 1] = "-";
  for (const GpuLink& link : machine.gpu_links) {
    const auto a = static_cast<std::size_t>(link.a), b = static_cast<std::size_t>(link.b);
    if (link.a < 0 || link.b < 0 || a >= count || b >= count || link.path.empty()) continue;
    cells[a][b + 1] = cells[b][a + 1] = link.path;
  }
  Table table(std::move(columns));
  for (auto& row : cells) table.add_row(std::move(row));
  return heading("gpu_links") + indented(table);
}

std::string gpus(const Machine& machine) {
  if (machine.gpus.empty()) return heading("gpus") + "  " + text("no_gpus") + "\n";
  Table table({{"", Align::kRight},
               column("name"),
               column("memory_column", Align::kRight),
               column("free", Align::kRight),
               column("clocks"),
               column("power", Align::kRight),
               {"PCIe"},
               {"NVLink"},
               column("catalog")});
  for (std::size_t i = 0; i < machine.gpus.size(); ++i) {
    const GpuInfo& gpu = machine.gpus[i];
    const auto mhz = [](const std::optional<double>& value) {
      return value ? fmt::format("{:.0f}", *value) : std::string("?");
    };
    const Accelerator* known = catalog_gpu(gpu);
    std::string links = "-";
    if (gpu.active_nvlinks() > 0)
      links =
          std::to_string(gpu.active_nvlinks()) +
          (gpu.nvlink_bytes_per_second ? fmt::format(" × {} GB/s", gb_per_second(*gpu.nvlink_bytes_per_second)) : "");
    table.add_row({std::to_string(i), printable(gpu.name),
                   (gpu.memory_is_estimate ? "~" : "") + format_bytes(gpu.memory_total_bytes),
                   format_bytes(gpu.memory_free_bytes),
                   mhz(gpu.core_max_mhz) + " / " + mhz(gpu.memory_max_mhz) + " MHz",
                   gpu.power_limit_watts ? fmt::format("{:.0f} W", *gpu.power_limit_watts) : "-", pcie(gpu), links,
                   known != nullptr ? known->id : "-"});
  }
  std::string out = heading("gpus") + indented(table);
  Facts facts;
  const GpuInfo& first = machine.gpus.front();
  facts.add("driver", first.driver + (first.runtime.empty() ? "" : ", " + first.runtime));
  for (std::size_t i = 0; i < machine.gpus.size(); ++i) {
    const GpuInfo& gpu = machine.gpus[i];
    const Accelerator* known = catalog_gpu(gpu);
    const auto theory = gpu.memory_bytes_per_second();
    if (known == nullptr || !known->memory.bandwidth_bytes_per_second || !theory ||
        (i > 0 && machine.gpus[i - 1].name == gpu.name))
      continue;
    facts.add("catalog", text("catalog_gpu", {{"name", known->name},
                                              {"rate", gb_per_second(*known->memory.bandwidth_bytes_per_second)},
                                              {"clocked", gb_per_second(*theory)}}));
  }
  return out + facts.render() + gpu_links(machine);
}

std::string notes(const Machine& machine) {
  if (machine.notes.empty()) return {};
  std::string out = heading("notes");
  for (const Note& note : machine.notes) out += "  - " + note_text(note) + "\n";
  return out;
}

}  // namespace

std::string probe_report(const Machine& machine) {
  Facts facts;
  facts.add("system", machine.os + (machine.kernel.empty() ? "" : ", Linux " + printable(machine.kernel)));
  std::vector<std::string> around;
  if (machine.container) around.push_back(text("in_container"));
  if (machine.cpu.virtualized) around.push_back(text("in_virtual_machine"));
  facts.add("runs_in", join(around));
  std::string out = facts.render() + processor(machine) + main_memory(machine);
  if (machine.measured) out += bandwidth(machine) + cache_speeds(*machine.measured) + peaks(*machine.measured);
  return out + disks(machine) + gpus(machine) + notes(machine);
}

std::string probe_json(const Machine& machine) {
  auto parsed = parse_json(machine_to_json(machine), "probe");
  Json json = parsed ? std::move(*parsed) : Json::object();
  Json catalog = Json::object();
  if (const Cpu* cpu = catalog_cpu(machine); cpu != nullptr) {
    catalog["cpu"] = {{"id", cpu->id}};
    if (cpu->peak_bytes_per_second) catalog["cpu"]["peak_bytes_per_second"] = *cpu->peak_bytes_per_second;
  }
  catalog["gpus"] = Json::array();
  for (const GpuInfo& gpu : machine.gpus) {
    const Accelerator* known = catalog_gpu(gpu);
    Json entry = nullptr;
    if (known != nullptr) {
      entry = {{"id", known->id}};
      if (known->memory.bandwidth_bytes_per_second)
        entry["bandwidth_bytes_per_second"] = *known->memory.bandwidth_bytes_per_second;
    }
    catalog["gpus"].push_back(std::move(entry));
  }
  json["catalog"] = std::move(catalog);
  return dump_json(json, 2);
}

}  // namespace fathom::hardware
