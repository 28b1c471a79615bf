// GPUs: a make-believe NVML, sysfs trees of AMD, Intel and driverless NVIDIA cards, and what vendors' tools print.
#include "hardware/gpu_probe.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <cstring>

#include "hardware/fake_tree.h"
#include "hardware/gpu_probe_nvml.h"

namespace fathom::hardware {
namespace {

using test::FakeTree;

// Two or more cards; handles are 1, 2, …; MIG instances 100 + n.
struct FakeNvml {
  int devices = 2;
  int links = 18;        // active ones of each card
  bool switched = true;  // through switches, else straight to the other of two
  bool mig = false;
  bool common_speed = true;  // tells the speed of all links at once
  int init_code = 0;
} fake;

long handle_number(NvmlDevice device) { return reinterpret_cast<long>(device); }

NvmlApi fake_api() {
  NvmlApi api;
  api.init = [] { return fake.init_code; };
  api.shutdown = [] { return 0; };
  api.driver_version = [](char* text, unsigned size) { return std::snprintf(text, size, "570.86.15") > 0 ? 0 : 1; };
  api.cuda_version = [](int* version) { return *version = 12080, 0; };
  api.device_count = [](unsigned* count) { return *count = static_cast<unsigned>(fake.devices), 0; };
  api.device_by_index = [](unsigned index, NvmlDevice* device) {
    return *device = reinterpret_cast<NvmlDevice>(static_cast<long>(index) + 1), 0;
  };
  api.name = [](NvmlDevice device, char* text, unsigned size) {
    return std::snprintf(text, size, handle_number(device) > 100 ? "NVIDIA H200 MIG 1g.18gb" : "NVIDIA H200") > 0 ? 0
                                                                                                                  : 1;
  };
  api.uuid = [](NvmlDevice device, char* text, unsigned size) {
    return std::snprintf(text, size, "GPU-%ld", handle_number(device)) > 0 ? 0 : 1;
  };
  api.memory = [](NvmlDevice device, NvmlMemory* memory) {
    *memory = handle_number(device) > 100 ? NvmlMemory{16 * kGiB, 15 * kGiB, 1 * kGiB}
                                          : NvmlMemory{140 * kGiB, 139 * kGiB, 1 * kGiB};
    return 0;
  };
  api.pci = [](NvmlDevice device, NvmlPci* pci) {
    return std::snprintf(pci->bus_id, sizeof pci->bus_id, "00000000:%02lX:00.0", handle_number(device) + 0x19) > 0 ? 0
                                                                                                                   : 1;
  };
  api.max_clock = [](NvmlDevice, int type, unsigned* mhz) { return *mhz = type == 2 ? 3201 : 1980, 0; };
  api.power_limit = [](NvmlDevice, unsigned* milliwatts) { return *milliwatts = 700000, 0; };
  api.pcie_generation = [](NvmlDevice, unsigned* value) { return *value = 4, 0; };
  api.pcie_width = [](NvmlDevice, unsigned* value) { return *value = 8, 0; };
  api.pcie_max_generation = [](NvmlDevice, unsigned* value) { return *value = 5, 0; };
  api.pcie_max_width = [](NvmlDevice, unsigned* value) { return *value = 16, 0; };
  api.bus_width = [](NvmlDevice, unsigned* bits) { return *bits = 6144, 0; };
  api.compute_capability = [](NvmlDevice, int* major, int* minor) { return *major = 9, *minor = 0, 0; };
  api.mig_mode = [](NvmlDevice, unsigned* now, unsigned* later) { return *now = *later = fake.mig, 0; };
  api.mig_count = [](NvmlDevice, unsigned* count) { return *count = 7, 0; };
  api.mig_by_index = [](NvmlDevice, unsigned index, NvmlDevice* device) {
    if (index > 1) return 6;  // not found
    return *device = reinterpret_cast<NvmlDevice>(101L + index), 0;
  };
  api.nvlink_state = [](NvmlDevice, unsigned link, unsigned* active) {
    if (link >= 18) return 2;
    return *active = link < static_cast<unsigned>(fake.links), 0;
  };
  api.nvlink_version = [](NvmlDevice, unsigned, unsigned* version) { return *version = 4, 0; };
  api.nvlink_remote_type = [](NvmlDevice, unsigned, unsigned* type) { return *type = fake.switched ? 2 : 0, 0; };
  api.nvlink_remote_pci = [](NvmlDevice device, unsigned, NvmlPci* pci) {
    const long other = handle_number(device) == 1 ? 2 : 1;
    return std::snprintf(pci->bus_id, sizeof pci->bus_id, "00000000:%02lX:00.0", fake.switched ? 0xf0 : other + 0x19) >
                   0
               ? 0
               : 1;
  };
  api.common_ancestor = [](NvmlDevice, NvmlDevice, unsigned* level) { return *level = 40, 0; };
  api.p2p_status = [](NvmlDevice, NvmlDevice, int, unsigned* status) { return *status = 0, 0; };
  api.field_values = [](NvmlDevice, int, NvmlField* field) {
    if (field->field == 90 && !fake.common_speed) return field->result = 3, 0;  // not supported, as new drivers say
    return field->result = 0, field->value.as_unsigned = field->field == 90 ? 26562 : 50000 + field->scope, 0;
  };
  return api;
}

TEST(Nvml, CardsBehindSwitches) {
  fake = {};
  const GpuReport report = gpus_from_nvml(fake_api());
  ASSERT_EQ(report.gpus.size(), 2u);
  const GpuInfo& gpu = report.gpus[1];
  EXPECT_EQ(gpu.name, "NVIDIA H200");
  EXPECT_EQ(gpu.pci_address, "0000:1b:00.0");
  EXPECT_EQ(gpu.memory_total_bytes, 140 * kGiB);
  EXPECT_EQ(gpu.driver, "570.86.15");
  EXPECT_EQ(gpu.runtime, "CUDA 12.8");
  EXPECT_EQ(gpu.compute_capability, "9.0");
  EXPECT_EQ(gpu.power_limit_watts, 700);
  EXPECT_EQ(gpu.pcie_generation, 4);
  EXPECT_EQ(gpu.pcie_max_width, 16);
  EXPECT_FALSE(gpu.core_mhz) << "this library has no such function";
  EXPECT_EQ(gpu.core_max_mhz, 1980);
  EXPECT_NEAR(gpu.memory_bytes_per_second().value(), 4.917e12, 1e9);
  EXPECT_EQ(gpu.active_nvlinks(), 18);
  EXPECT_EQ(gpu.nvlinks.size(), 18u);
  EXPECT_DOUBLE_EQ(gpu.nvlink_bytes_per_second.value(), 26.562e9);
  ASSERT_EQ(report.links.size(), 1u);
  EXPECT_EQ(report.links[0], (GpuLink{0, 1, "NV18", 18, true}));
}

TEST(Nvml, LinkSpeedFromOneLinkWhereTheCommonOneIsGone) {
  fake = {};
  fake.common_speed = false;
  EXPECT_DOUBLE_EQ(gpus_from_nvml(fake_api()).gpus[0].nvlink_bytes_per_second.value(), 50e9);
}

TEST(Nvml, BridgedPairAndPlainPcie) {
  fake = {};
  fake.links = 4, fake.switched = false;
  EXPECT_EQ(gpus_from_nvml(fake_api()).links[0].path, "NV4");
  fake.links = 0;
  const GpuReport plain = gpus_from_nvml(fake_api());
  EXPECT_EQ(plain.links[0].path, "NODE");
  EXPECT_EQ(plain.links[0].nvlinks, 0);
  EXPECT_EQ(plain.gpus[0].active_nvlinks(), 0);
}

TEST(Nvml, MigInstancesStandForTheirCard) {
  fake = {};
  fake.devices = 1, fake.mig = true;
  const GpuReport report = gpus_from_nvml(fake_api());
  ASSERT_EQ(report.gpus.size(), 2u);
  EXPECT_EQ(report.gpus[0].name, "NVIDIA H200 MIG 1g.18gb");
  EXPECT_EQ(report.gpus[0].memory_total_bytes, 16 * kGiB);
  EXPECT_EQ(report.gpus[0].mig, true);
  EXPECT_TRUE(report.gpus[0].nvlinks.empty());
  EXPECT_EQ(report.links[0].path, "BOARD");
}

TEST(Nvml, AnOldLibraryAndADeadDriver) {
  fake = {};
  NvmlApi old;
  old.init = fake_api().init, old.device_count = fake_api().device_count,
  old.device_by_index = fake_api().device_by_index;
  const GpuReport report = gpus_from_nvml(old);
  ASSERT_EQ(report.gpus.size(), 2u);
  EXPECT_TRUE(report.gpus[0].name.empty());
  EXPECT_EQ(report.links[0].path, "");
  EXPECT_EQ(report.links[0].peer_to_peer, std::nullopt);
  fake.init_code = 9;
  const GpuReport dead = gpus_from_nvml(fake_api());
  EXPECT_TRUE(dead.gpus.empty());
  ASSERT_EQ(dead.notes.size(), 1u);
  EXPECT_EQ(dead.notes[0].key, "hardware_probe.nvml_failed");
}

void pci_card(const FakeTree& tree, int card, const std::string& path, const std::string& vendor,
              const std::string& device) {
  const std::string folder = "sys/devices/" + path;
  tree.file(folder + "/vendor", vendor + "\n");
  tree.file(folder + "/device", device + "\n");
  tree.file(folder + "/class", "0x030000\n");
  tree.file(folder + "/numa_node", "1\n");
  tree.link("sys/class/drm/card" + std::to_string(card) + "/device", "../../../devices/" + path);
  tree.file("sys/class/drm/card" + std::to_string(card) + "-HDMI-A-1/status", "connected\n");
  tree.link("sys/bus/pci/devices/" + path.substr(path.rfind('/') + 1), "../../../devices/" + path);
}

void amd_card(const FakeTree& tree, int card, const std::string& path) {
  pci_card(tree, card, path, "0x1002", "0x74a1");
  const std::string folder = "sys/devices/" + path + "/";
  tree.file(folder + "mem_info_vram_total", "206141652992\n");
  tree.file(folder + "mem_info_vram_used", "301989888\n");
  tree.file(folder + "current_link_speed", "32.0 GT/s PCIe\n");
  tree.file(folder + "max_link_speed", "32.0 GT/s PCIe\n");
  tree.file(folder + "current_link_width", "16\n");
  tree.file(folder + "max_link_width", "16\n");
  tree.file(folder + "pp_dpm_sclk", "0: 132Mhz *\n1: 2100Mhz\n");
  tree.file(folder + "pp_dpm_mclk", "0: 900Mhz *\n1: 1300Mhz\n");
  tree.file(folder + "hwmon/hwmon4/power1_cap", "750000000\n");
  tree.file(folder + "unique_id", "deadbeef\n");
  tree.file(folder + "xgmi_hive_info/xgmi_hive_id", "77\n");
}

TEST(GpuSysfs, AmdCards) {
  const FakeTree tree;
  amd_card(tree, 1, "pci0000:00/0000:00:01.0/0000:0c:00.0");
  amd_card(tree, 2, "pci0000:80/0000:80:01.0/0000:8c:00.0");
  tree.file("sys/class/kfd/kfd/topology/nodes/2/properties",
            "cpu_cores_count 0\nsimd_count 1216\ngfx_target_version 90402\nlocation_id 3072\ndomain 0\n");
  tree.file("usr/share/misc/pci.ids",
            "# comment\n1001  Other\n\t74a1  Wrong\n1002  Advanced Micro Devices, Inc. [AMD/ATI]\n\t74a0  Aqua "
            "Vanjaram [Instinct MI300A]\n\t74a1  Aqua Vanjaram [Instinct MI300X]\n\t\t1002 74a1  MI300X\n");
  tree.file("sys/module/amdgpu/version", "6.10.5\n");
  const GpuReport report = gpus_from_sysfs(SystemFiles(tree.root()));
  ASSERT_EQ(report.gpus.size(), 2u);
  const GpuInfo& gpu = report.gpus[0];
  EXPECT_EQ(gpu.vendor, GpuVendor::amd);
  EXPECT_EQ(gpu.name, "Instinct MI300X");
  EXPECT_EQ(gpu.pci_address, "0000:0c:00.0");
  EXPECT_EQ(gpu.compute_capability, "gfx942");
  EXPECT_EQ(report.gpus[1].compute_capability, "") << "another card's node";
  EXPECT_EQ(gpu.memory_total_bytes, 206141652992u);
  EXPECT_EQ(gpu.memory_free_bytes, 206141652992u - 301989888u);
  EXPECT_FALSE(gpu.integrated);
  EXPECT_EQ(gpu.pcie_generation, 5);
  EXPECT_EQ(gpu.pcie_width, 16);
  EXPECT_EQ(gpu.core_mhz, 132);
  EXPECT_EQ(gpu.core_max_mhz, 2100);
  EXPECT_EQ(gpu.memory_max_mhz, 1300);
  EXPECT_EQ(gpu.power_limit_watts, 750);
  EXPECT_EQ(gpu.numa_node, 1);
  EXPECT_EQ(gpu.driver, "6.10.5");
  ASSERT_EQ(report.links.size(), 1u);
  EXPECT_EQ(report.links[0].path, "XGMI");
}

TEST(GpuSysfs, IntelCards) {
  const FakeTree tree;
  pci_card(tree, 0, "pci0000:00/0000:00:02.0", "0x8086", "0x4680");
  pci_card(tree, 1, "pci0000:00/0000:00:01.0/0000:03:00.0", "0x8086", "0x56a0");
  tree.file("sys/devices/pci0000:00/0000:00:01.0/0000:03:00.0/resource",
            "0x0000000081000000 0x0000000081ffffff 0x0000000000140204\n0x0 0x0 0x0\n0x0000004000000000 "
            "0x00000043ffffffff 0x000000000014220c\n");
  const GpuReport report = gpus_from_sysfs(SystemFiles(tree.root()));
  ASSERT_EQ(report.gpus.size(), 2u);
  EXPECT_TRUE(report.gpus[0].integrated);
  EXPECT_EQ(report.gpus[0].memory_total_bytes, 0u);
  EXPECT_FALSE(report.gpus[1].integrated);
  EXPECT_EQ(report.gpus[1].memory_total_bytes, 16 * kGiB);
  EXPECT_TRUE(report.gpus[1].memory_is_estimate);
  EXPECT_EQ(report.gpus[1].name, "Intel 8086:56a0");
  EXPECT_EQ(report.links[0].path, "PHB");
}

TEST(GpuSysfs, NvidiaWithoutADriverIsNoted) {
  const FakeTree tree;
  pci_card(tree, 0, "pci0000:00/0000:00:01.0/0000:01:00.0", "0x10de", "0x2684");
  const GpuReport report = gpus_from_sysfs(SystemFiles(tree.root()));
  ASSERT_EQ(report.gpus.size(), 1u);
  EXPECT_EQ(report.gpus[0].source, "pci");
  EXPECT_EQ(report.gpus[0].memory_total_bytes, 0u);
  ASSERT_EQ(report.notes.size(), 1u);
  EXPECT_EQ(report.notes[0].key, "hardware_probe.nvidia_without_library");
}

TEST(GpuSysfs, NothingThere) {
  const FakeTree tree;
  EXPECT_TRUE(probe_gpus(SystemFiles(tree.root())).gpus.empty());
}

TEST(GpuTools, RocmNamesGoToTheirAddress) {
  std::vector<GpuInfo> gpus(2);
  gpus[0].vendor = gpus[1].vendor = GpuVendor::amd;
  gpus[0].pci_address = "0000:03:00.0", gpus[1].pci_address = "0000:c4:00.0";
  add_rocm_names(
      R"({"card1": {"Card Series": "Navi 31 [Radeon RX 7900 XT]", "Card Model": "0x744c", "PCI Bus": "0000:C4:00.0"},
                     "card0": {"Device Name": "Phoenix3", "Card Model": "N/A", "PCI Bus": "0000:03:00.0"}, "system": 3})",
      gpus);
  EXPECT_EQ(gpus[1].name, "Radeon RX 7900 XT");
  EXPECT_EQ(gpus[0].name, "Phoenix3");
  add_rocm_names("not json", gpus);
  add_rocm_names("[1,2]", gpus);
  EXPECT_EQ(gpus[0].name, "Phoenix3");
}

TEST(GpuTools, AscendTables) {
  const auto one = parse_npu_smi(
      "+------------------------------------------------------------------------------------------------+\n"
      "| npu-smi 25.2.0                   Version: 25.2.0                                               |\n"
      "+---------------------------+---------------+----------------------------------------------------+\n"
      "| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|\n"
      "| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |\n"
      "+===========================+===============+====================================================+\n"
      "| 0     910B4-1             | OK            | 91.3        33                0    / 0             |\n"
      "| 0                         | 0000:C1:00.0  | 0           0    / 0          3197 / 65536         |\n"
      "+===========================+===============+====================================================+\n"
      "| 1     910B4-1             | OK            | 88.1        33                0    / 0             |\n"
      "| 0                         | 0000:01:00.0  | 0           0    / 0          3200 / 65536         |\n");
  ASSERT_EQ(one.size(), 2u);
  EXPECT_EQ(one[0].name, "Ascend 910B4-1");
  EXPECT_EQ(one[0].pci_address, "0000:c1:00.0");
  EXPECT_EQ(one[0].memory_total_bytes, 64 * kGiB);
  EXPECT_EQ(one[1].memory_used_bytes, 3200 * kMiB);
  EXPECT_EQ(one[0].driver, "25.2.0");
  const auto two_chips = parse_npu_smi(
      "| 0     Ascend910           | OK            | 178.5       36                0    / 0             |\n"
      "| 0     0                   | 0000:9D:00.0  | 0           0    / 0          3416 / 65536         |\n"
      "| 0     Ascend910           | OK            | -           36                0    / 0             |\n"
      "| 1     1                   | 0000:9F:00.0  | 0           0    / 0          3195 / 65536         |\n");
  ASSERT_EQ(two_chips.size(), 2u);
  EXPECT_EQ(two_chips[1].pci_address, "0000:9f:00.0");
  EXPECT_EQ(two_chips[1].name, "Ascend910");
  EXPECT_TRUE(parse_npu_smi("| | | | |\n| 0 | a:b:c | x / y | |\n||||||\n").empty());
}

TEST(GpuTools, SmallParsers) {
  EXPECT_EQ(normal_pci_address("00000000:1B:00.0"), "0000:1b:00.0");
  EXPECT_EQ(normal_pci_address("00010000:1B:00.0"), "10000:1b:00.0");
  EXPECT_EQ(pcie_generation("2.5 GT/s PCIe"), 1);
  EXPECT_EQ(pcie_generation("64.0 GT/s PCIe"), 6);
  EXPECT_EQ(pcie_generation("Unknown"), std::nullopt);
}

}  // namespace
}  // namespace fathom::hardware
