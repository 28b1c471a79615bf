// Machine: JSON both ways, profiles, and what the planner asks of it.
#include "hardware/machine.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cstdlib>

#include "base/files.h"
#include "base/i18n.h"
#include "hardware/fake_tree.h"
#include "hardware/probe.h"
#include "hardware/probe_report.h"

namespace fathom::hardware {
namespace {

using test::FakeTree;

template <class T>
rc::Gen<T> any() {
  return rc::gen::arbitrary<T>();
}
// Text as JSON carries it: any valid UTF-8.
rc::Gen<std::string> any_text() {
  return rc::gen::map(rc::gen::container<std::vector<std::string>>(rc::gen::element<std::string>(
                          "a", "B", " ", "\"", "\\", "\n", "é", "内存", "🙂", "{", "7", "\t")),
                      [](const std::vector<std::string>& parts) {
                        std::string text;
                        for (const std::string& part : parts) text += part;
                        return text;
                      });
}
rc::Gen<double> any_number() {
  return rc::gen::suchThat(rc::gen::arbitrary<double>(), [](double x) { return std::isfinite(x); });
}
template <class T>
std::optional<T> maybe(const rc::Gen<T>& gen) {
  return *any<bool>() ? std::optional<T>(*gen) : std::nullopt;
}
template <class F>
auto several(F make) {
  std::vector<decltype(make())> list(static_cast<std::size_t>(*rc::gen::inRange(0, 4)));
  for (auto& item : list) item = make();
  return list;
}
template <class E>
E any_of(int count) {
  return static_cast<E>(*rc::gen::inRange(0, count));
}

Note any_note() {
  Note note{*any_text(), {}};
  for (int i = *rc::gen::inRange(0, 3); i > 0; --i) note.args.emplace_back("k" + std::to_string(i), *any_text());
  return note;
}

GpuInfo any_gpu() {
  GpuInfo gpu;
  gpu.vendor = any_of<GpuVendor>(5);
  gpu.name = *any_text(), gpu.uuid = *any_text(), gpu.pci_address = *any_text(), gpu.driver = *any_text();
  gpu.memory_total_bytes = *any<Bytes>(), gpu.memory_is_estimate = *any<bool>(), gpu.integrated = *any<bool>();
  gpu.memory_bus_bits = maybe(any<int>()), gpu.core_mhz = maybe(any_number()),
  gpu.power_limit_watts = maybe(any_number());
  gpu.pcie_generation = maybe(any<int>()), gpu.mig = maybe(any<bool>()),
  gpu.nvlink_bytes_per_second = maybe(any_number());
  gpu.nvlinks = several([] { return NvLinkPort{*any<int>(), *any<bool>(), *any<int>(), *any_text(), *any_text()}; });
  return gpu;
}

DiskInfo any_disk() {
  DiskInfo disk;
  disk.uses = several([] { return *any_text(); });
  disk.path = *any_text(), disk.kind = any_of<DiskKind>(8), disk.writable = *any<bool>(),
  disk.free_bytes = *any<Bytes>();
  if (*any<bool>()) disk.read = DiskRead{*any_number(), *any<Bytes>(), *any_text(), *any_text()};
  if (*any<bool>()) disk.note = any_note();
  return disk;
}

Measured any_measured() {
  Measured m;
  m.effort = *any_text(), m.seconds = *any_number(), m.others_share = *any_number(), m.buffer_bytes = *any<Bytes>(),
  m.read_bandwidth_bytes_per_second = *any_number();
  m.bandwidth = several([] {
    return BandwidthResult{any_of<Access>(3), any_of<Pages>(3), *any<int>(), *any_number(),
                           *any_number(),     *any<int>(),      *any_text()};
  });
  m.read_curve = several([] { return ThreadPoint{*any<int>(), *any_number()}; });
  m.caches = several([] { return CacheResult{*any<int>(), *any<Bytes>(), *any_number(), maybe(any_number())}; });
  m.peaks = several([] {
    return PeakResult{*any_text(), any_of<Precision>(kPrecisionCount), *any_number(), *any<int>(), *any_number()};
  });
  return m;
}

Machine any_machine() {
  Machine m;
  m.os = *any_text(), m.kernel = *any_text(), m.container = *any<bool>();
  m.cpu.model = *any_text(), m.cpu.sockets = *any<int>(), m.cpu.usable_cpus = *any<std::vector<int>>();
  m.cpu.quota_cpus = maybe(any_number()), m.cpu.base_mhz = maybe(any_number()),
  m.cpu.isa.bits = *rc::gen::inRange<std::uint32_t>(0, 1u << kIsaCount);
  m.cpu.caches = several([] { return CacheInfo{*any<int>(), *any_text(), *any<Bytes>(), *any<int>(), *any<int>()}; });
  m.cpu.numa = several([] {
    return NumaNode{*any<int>(), *any<Bytes>(), *any<std::vector<int>>(), *any<std::vector<int>>()};
  });
  m.memory.total_bytes = *any<Bytes>(), m.memory.limit_bytes = maybe(any<Bytes>()),
  m.memory.modules = maybe(any<int>());
  m.memory.pools = several([] { return HugePagePool{*any<Bytes>(), *any<std::int64_t>(), *any<std::int64_t>()}; });
  m.disks = several(any_disk), m.gpus = several(any_gpu), m.notes = several(any_note);
  m.gpu_links = several([] { return GpuLink{*any<int>(), *any<int>(), *any_text(), *any<int>(), maybe(any<bool>())}; });
  if (*any<bool>()) m.measured = any_measured();
  return m;
}

RC_GTEST_PROP(MachineJson, RoundTrip, ()) {
  const Machine machine = any_machine();
  const auto back = machine_from_json(machine_to_json(machine), "text");
  RC_ASSERT(back.has_value());
  RC_ASSERT(*back == machine);
}

RC_GTEST_PROP(MachineJson, DamagedTextIsAnErrorOrAMachine, ()) {
  std::string text = machine_to_json(any_machine());
  for (int i = *rc::gen::inRange(1, 4); i > 0; --i)
    text[static_cast<std::size_t>(*rc::gen::inRange<int>(0, static_cast<int>(text.size())))] =
        *rc::gen::element('"', '{', ']', '0', 'e', '-', ',', '\0', '\xff');
  const auto back = machine_from_json(text, "text");
  if (!back) RC_ASSERT(!error_text(back.error()).empty());
}

TEST(MachineJson, WrongTypesAreNamed) {
  const auto key_of = [](std::string_view text) {
    const auto machine = machine_from_json(text, "file");
    return machine ? std::string("accepted") : error_text(machine.error());
  };
  EXPECT_NE(key_of(R"({"version":1,"cpu":{"cores":"two"}})").find("file.cpu.cores"), std::string::npos);
  EXPECT_NE(key_of(R"({"version":1,"cpu":{"cores":99999999999}})").find("file.cpu.cores"), std::string::npos);
  EXPECT_NE(key_of(R"({"version":1,"memory":{"total_bytes":-1}})").find("file.memory.total_bytes"), std::string::npos);
  EXPECT_NE(key_of(R"({"version":1,"gpus":[{"vendor":"acme"}]})").find("file.gpus.vendor"), std::string::npos);
  EXPECT_NE(key_of(R"({"version":1,"gpus":{}})").find("file.gpus"), std::string::npos);
  EXPECT_NE(key_of(R"({"version":2})").find("2"), std::string::npos);
  EXPECT_NE(key_of("[]"), "accepted");
  EXPECT_NE(key_of("{}"), "accepted");
  EXPECT_EQ(key_of(R"({"version":1,"from_the_future":[1],"cpu":{"isa":["avx9"]}})"), "accepted");
}

Machine some_machine() {
  Machine machine;
  machine.cpu.model = "Some CPU", machine.cpu.sockets = 1, machine.cpu.cores = 8, machine.cpu.usable_threads = 16;
  machine.memory.total_bytes = 64 * kGiB, machine.memory.usable_bytes = 60 * kGiB;
  Measured measured;
  measured.read_bandwidth_bytes_per_second = 80e9;
  measured.read_curve = {{1, 20e9}, {4, 65e9}, {16, 80e9}};
  measured.peaks = {{"avx2_fp32", Precision::fp32, 100e9, 16, 1200e9},
                    {"amx_bf16", Precision::bf16, 2e12, 16, 30e12},
                    {"avx512_vnni_int8", Precision::int8, 700e9, 16, 9e12}};
  machine.measured = measured;
  return machine;
}

TEST(Machine, BandwidthByThreads) {
  const Machine machine = some_machine();
  EXPECT_EQ(machine.read_bandwidth(), 80e9);
  EXPECT_DOUBLE_EQ(machine.read_bandwidth(1).value(), 20e9);
  EXPECT_DOUBLE_EQ(machine.read_bandwidth(2).value(), 35e9);
  EXPECT_DOUBLE_EQ(machine.read_bandwidth(10).value(), 72.5e9);
  EXPECT_DOUBLE_EQ(machine.read_bandwidth(64).value(), 80e9);
  EXPECT_FALSE(Machine().read_bandwidth());
  EXPECT_FALSE(Machine().read_bandwidth(3));
}

TEST(Machine, PeaksByPrecision) {
  const Machine machine = some_machine();
  EXPECT_EQ(machine.peak_flops(Precision::fp32), 1200e9);
  EXPECT_EQ(machine.peak_flops(Precision::fp32, 2), 200e9);
  EXPECT_EQ(machine.peak_flops(Precision::bf16), 30e12);
  EXPECT_EQ(machine.peak_flops(Precision::fp16), 1200e9) << "computed in fp32";
  EXPECT_EQ(machine.peak_flops(Precision::int8), 9e12);
  EXPECT_FALSE(machine.peak_flops(Precision::fp4));
  EXPECT_FALSE(Machine().peak_flops(Precision::fp32));
}

// $FATHOM_HOME for one test.
class Profile : public ::testing::Test {
 protected:
  Profile() { ::setenv("FATHOM_HOME", (tree_.root() / "new" / "folder").c_str(), 1); }
  ~Profile() override { ::unsetenv("FATHOM_HOME"); }
  FakeTree tree_;
};

TEST_F(Profile, ComesBackOnTheSameMachineOnly) {
  const Machine machine = some_machine();
  const auto none = load_profile(machine);
  ASSERT_TRUE(none);
  EXPECT_FALSE(none->has_value());
  ASSERT_TRUE(save_profile(machine));
  const auto stored = load_profile(machine);
  ASSERT_TRUE(stored && stored->has_value());
  EXPECT_EQ(**stored, machine);
  Machine other = machine;
  other.memory.available_bytes = 1;  // differs from day to day
  EXPECT_TRUE(load_profile(other)->has_value());
  for (int change = 0; change < 4; ++change) {
    other = machine;
    if (change == 0) other.cpu.model = "Another CPU";
    if (change == 1) other.cpu.usable_threads = 8;
    if (change == 2) other.memory.total_bytes = 32 * kGiB;
    if (change == 3) other.gpus.emplace_back();
    const auto stale = load_profile(other);
    ASSERT_TRUE(stale);
    EXPECT_FALSE(stale->has_value()) << change;
  }
}

TEST_F(Profile, ABrokenFileIsAnError) {
  ASSERT_TRUE(save_profile(some_machine()));
  ASSERT_TRUE(write_file_atomic(profile_path(), "{\"version\": 1, \"cpu\": 3}"));
  EXPECT_FALSE(load_profile(some_machine()));
  EXPECT_FALSE(load_profile());
  ASSERT_TRUE(write_file_atomic(profile_path(), "{"));
  EXPECT_FALSE(load_profile());
}

TEST(Report, HasNoMissingTexts) {
  Machine machine = some_machine();
  machine.container = machine.cpu.virtualized = true;
  machine.cpu.quota_cpus = 1.5, machine.cpu.base_mhz = 2000, machine.cpu.max_mhz = 3000;
  machine.memory.limit_bytes = kGiB, machine.memory.modules = 2, machine.memory.channels = 2,
  machine.memory.speed_mts = 4800;
  machine.measured->bandwidth = {{Access::read, Pages::small, 1, 1e9, 1e9, 1, "x"},
                                 {Access::copy, Pages::hugetlb, 1, 1e9, 1e9, 1, "x"},
                                 {Access::triad, Pages::transparent_huge, 1, 1e9, 1e9, 1, "x"}};
  machine.measured->caches = {{2, kMiB, 5e-9, 1e11}, {4, kGiB, 1e-7, std::nullopt}};
  for (int kind = 0; kind < 8; ++kind) {
    machine.disks.emplace_back();
    machine.disks.back().kind = static_cast<DiskKind>(kind);
    machine.disks.back().uses = {"work", "home", "models"};
  }
  GpuInfo gpu;
  gpu.vendor = GpuVendor::nvidia, gpu.name = "NVIDIA H200", gpu.memory_total_bytes = 143771 * kMiB;
  gpu.memory_max_mhz = 3201, gpu.memory_bus_bits = 6144;
  gpu.nvlinks.push_back({0, true, 4, "switch", ""});
  machine.gpus = {gpu, gpu};
  machine.gpu_links = {{0, 1, "NV18", 18, true}, {0, 99, "PIX", 0, true}, {-1, 1, "PIX", 0, true}};
  machine.notes = {{"hardware_probe.no_huge_pages", {}}};
  for (const Language language : {Language::kEnglish, Language::kChinese}) {
    set_language(language);
    const std::string report = probe_report(machine);
    EXPECT_EQ(report.find("hardware_probe."), std::string::npos) << report;
    EXPECT_EQ(report.find('{'), std::string::npos) << report;
    EXPECT_NE(report.find("NV18"), std::string::npos);
  }
  set_language(Language::kEnglish);
  EXPECT_NE(probe_json(machine).find("\"catalog\""), std::string::npos);
  EXPECT_TRUE(machine_from_json(probe_json(machine), "probe"));
}

}  // namespace
}  // namespace fathom::hardware
