#include "hardware/gpu_probe.h"

#include <algorithm>
#include <iterator>

#include "base/json.h"
#include "base/strings.h"
#include "hardware/gpu_probe_nvml.h"
#include "hardware/probe_process.h"

namespace fathom::hardware {
namespace {

constexpr double kNvmlSeconds = 20;  // initialising eight cards without persistence mode takes several
constexpr double kToolSeconds = 8;

// Takes `more` into `report`, its links renumbered.
void append(GpuReport& report, GpuReport more) {
  const int shift = static_cast<int>(report.gpus.size());
  std::move(more.gpus.begin(), more.gpus.end(), std::back_inserter(report.gpus));
  std::move(more.notes.begin(), more.notes.end(), std::back_inserter(report.notes));
  for (GpuLink link : more.links) {
    link.a += shift, link.b += shift;
    report.links.push_back(std::move(link));
  }
}

// Leaves out GPUs of `report` that `keep` refuses, with their links and, for all of them, the notes.
template <class Keep>
GpuReport only(GpuReport report, Keep keep) {
  GpuReport out;
  std::vector<int> place(report.gpus.size(), -1);
  for (std::size_t i = 0; i < report.gpus.size(); ++i) {
    if (!keep(report.gpus[i])) continue;
    place[i] = static_cast<int>(out.gpus.size());
    out.gpus.push_back(std::move(report.gpus[i]));
  }
  for (GpuLink link : report.links) {
    link.a = place[static_cast<std::size_t>(link.a)], link.b = place[static_cast<std::size_t>(link.b)];
    if (link.a >= 0 && link.b >= 0) out.links.push_back(std::move(link));
  }
  return out;
}

// "3316 / 65536" -> {3316, 65536}; the last such pair of the text.
std::optional<std::pair<double, double>> last_pair(std::string_view text) {
  const std::size_t slash = text.rfind('/');
  if (slash == std::string_view::npos) return std::nullopt;
  const std::string_view before = trim(text.substr(0, slash));
  const std::size_t blank = before.find_last_of(' ');
  const auto used = parse_leading_number(blank == std::string_view::npos ? before : before.substr(blank + 1));
  const auto total = parse_leading_number(text.substr(slash + 1));
  if (!used || !total || *used < 0 || *total <= 0 || *total > 1e9) return std::nullopt;
  return std::pair(*used, *total);
}

std::vector<std::string_view> words_of(std::string_view text) {
  auto words = split(text, ' ');
  std::erase_if(words, [](std::string_view word) { return word.empty(); });
  return words;
}

}  // namespace

void add_rocm_names(std::string_view text, std::vector<GpuInfo>& gpus) {
  const auto json = parse_json(text, "rocm-smi");
  if (!json || !json->is_object()) return;
  for (const auto& [card, facts] : json->items()) {
    if (!facts.is_object()) continue;
    std::string address, name;
    for (const auto& [key, value] : facts.items()) {
      if (!value.is_string()) continue;
      const std::string lower = to_lower(key), entry = value.template get<std::string>();
      if (lower == "pci bus") address = normal_pci_address(entry);
      // "Card Model" is often a bare number; the series is the name that people know
      const bool useful = !entry.empty() && entry != "N/A" && !entry.starts_with("0x");
      if (useful && (lower == "card series" || (name.empty() && (lower == "device name" || lower == "card model"))))
        name = entry;
    }
    if (const std::size_t open = name.rfind('['); open != std::string::npos && name.ends_with(']'))
      name = name.substr(open + 1, name.size() - open - 2);
    for (GpuInfo& gpu : gpus)
      if (gpu.vendor == GpuVendor::amd && !name.empty() && !address.empty() && gpu.pci_address == address) {
        gpu.name = name;
        gpu.source = "rocm-smi";
      }
  }
}

// Two lines a chip: "| 0  910B3 | OK | …" and "| 0 | 0000:C1:00.0 | … 3316 / 65536 |". The second is known by its
// address.
std::vector<GpuInfo> parse_npu_smi(std::string_view table) {
  std::vector<GpuInfo> gpus;
  std::string name, driver;
  for (const std::string_view line : lines_of(table)) {
    if (const std::size_t at = line.find("Version:"); at != std::string_view::npos) {
      const auto words = words_of(line.substr(at + 8));
      if (!words.empty()) driver = std::string(words[0]);
    }
    const auto cells = split(trim(line), '|');
    if (cells.size() < 5) continue;
    const auto first = words_of(cells[1]);
    const std::string_view second = trim(cells[2]);
    if (std::count(second.begin(), second.end(), ':') == 2) {
      const auto memory = last_pair(cells[3]);
      if (name.empty() || !memory) continue;
      GpuInfo gpu;
      gpu.vendor = GpuVendor::ascend;
      gpu.source = "npu-smi";
      gpu.name = name;
      gpu.driver = driver;
      gpu.pci_address = normal_pci_address(second);
      gpu.memory_total_bytes = static_cast<Bytes>(memory->second) * kMiB;
      gpu.memory_used_bytes = std::min(static_cast<Bytes>(memory->first) * kMiB, gpu.memory_total_bytes);
      gpu.memory_free_bytes = gpu.memory_total_bytes - gpu.memory_used_bytes;
      gpus.push_back(std::move(gpu));
    } else if (first.size() >= 2 && parse_integer(first[0])) {
      name = std::string(first[1]);
      if (!name.starts_with("Ascend")) name = "Ascend " + name;
    }
  }
  return gpus;
}

GpuReport probe_gpus(const SystemFiles& files) {
  GpuReport report;
  if (files.is_real()) {
    const auto nvidia = with_time_limit<GpuReport>(kNvmlSeconds, [] {
      const auto api = load_nvml();
      return api ? gpus_from_nvml(*api) : GpuReport();
    });
    if (nvidia) report = *nvidia;
    for (GpuInfo& gpu : report.gpus)
      if (const auto node = files.integer("sys/bus/pci/devices/" + gpu.pci_address + "/numa_node");
          node && *node >= 0 && *node < 65536)
        gpu.numa_node = static_cast<int>(*node);
    if (!nvidia) report.notes.push_back({"hardware_probe.nvml_hangs", {}});
  }
  GpuReport others = gpus_from_sysfs(files);
  const bool have_nvidia = !report.gpus.empty();
  if (have_nvidia) others = only(std::move(others), [](const GpuInfo& gpu) { return gpu.vendor != GpuVendor::nvidia; });
  const bool amd = std::any_of(others.gpus.begin(), others.gpus.end(),
                               [](const GpuInfo& gpu) { return gpu.vendor == GpuVendor::amd; });
  if (files.is_real() && amd)
    if (const auto names = run_program({"rocm-smi", "--showproductname", "--showbus", "--json"}, kToolSeconds))
      add_rocm_names(*names, others.gpus);
  append(report, std::move(others));
  if (files.is_real())
    if (const auto table = run_program({"npu-smi", "info"}, kToolSeconds)) {
      GpuReport ascend;
      ascend.gpus = parse_npu_smi(*table);
      append(report, std::move(ascend));
    }
  return report;
}

}  // namespace fathom::hardware
