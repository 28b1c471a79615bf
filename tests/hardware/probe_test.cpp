// Processor, memory and limits, read from trees that look like other machines.
#include "hardware/probe.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>
#include <sys/stat.h>

#include "hardware/cgroup.h"
#include "hardware/cpu_info.h"
#include "hardware/fake_tree.h"
#include "hardware/probe_files.h"
#include "hardware/probe_memory.h"
#include "hardware/probe_report.h"

namespace fathom::hardware {
namespace {

using test::FakeTree;

// One SMBIOS type 17 structure: 32 GiB DDR5 at 4800, named by its bank.
std::string dmi_module(const std::string& bank, int size_mib, int type, int speed) {
  std::string raw(0x28, '\0');
  raw[0] = 17, raw[1] = 0x28;
  raw[0x0c] = static_cast<char>(size_mib & 0xff), raw[0x0d] = static_cast<char>(size_mib >> 8 & 0xff);
  raw[0x10] = 1, raw[0x11] = 2, raw[0x12] = static_cast<char>(type);
  raw[0x15] = static_cast<char>(speed & 0xff), raw[0x16] = static_cast<char>(speed >> 8);
  raw[0x20] = raw[0x15], raw[0x21] = raw[0x16];
  return raw + "DIMM_A1" + '\0' + bank + '\0' + '\0';
}

// Two sockets of two cores of two threads each: CPUs 0-3 on node 0, 4-7 on node 1; siblings are n and n+1.
void two_sockets(const FakeTree& tree) {
  std::string cpuinfo;
  for (int cpu = 0; cpu < 8; ++cpu) {
    cpuinfo += "processor\t: " + std::to_string(cpu) +
               "\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R) Platinum 8380 CPU @ 2.30GHz\n";
    cpuinfo += "cpu MHz\t\t: 2301.000\nphysical id\t: " + std::to_string(cpu / 4) +
               "\ncore id\t\t: " + std::to_string(cpu / 2 % 2) + "\n";
    cpuinfo += "flags\t\t: fpu sse4_2 avx avx2 fma f16c avx512f avx512bw avx512dq avx512vl avx512_vnni\n\n";
    const std::string base = "sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/";
    tree.file(base + "topology/physical_package_id", std::to_string(cpu / 4) + "\n");
    tree.file(base + "topology/core_id", std::to_string(cpu / 2 % 2) + "\n");
    const int first = cpu / 2 * 2;
    const std::string pair = std::to_string(first) + "-" + std::to_string(first + 1);
    const std::string socket = cpu < 4 ? "0-3" : "4-7";
    const auto cache = [&](const std::string& index, const char* level, const char* type, const char* size,
                           const std::string& shared) {
      tree.file(base + "cache/" + index + "/level", std::string(level) + "\n");
      tree.file(base + "cache/" + index + "/type", std::string(type) + "\n");
      tree.file(base + "cache/" + index + "/size", std::string(size) + "\n");
      tree.file(base + "cache/" + index + "/shared_cpu_list", shared + "\n");
    };
    cache("index0", "1", "Data", "48K", pair);
    cache("index2", "2", "Unified", "1280K", pair);
    cache("index3", "3", "Unified", "61440K", socket);
  }
  tree.file("proc/cpuinfo", cpuinfo);
  tree.file("proc/self/status", "Name:\ttest\nCpus_allowed_list:\t0-7\n");
  tree.file("sys/devices/system/cpu/online", "0-7\n");
  tree.file("sys/devices/system/cpu/cpu0/cpufreq/base_frequency", "2300000\n");
  tree.file("sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq", "3400000\n");
  for (int node = 0; node < 2; ++node) {
    const std::string base = "sys/devices/system/node/node" + std::to_string(node) + "/";
    tree.file(base + "cpulist", node == 0 ? "0-3\n" : "4-7\n");
    tree.file(base + "meminfo", "Node 0 MemTotal:       134217728 kB\nNode 0 MemFree: 1 kB\n");
    tree.file(base + "distance", node == 0 ? "10 21\n" : "21 10\n");
  }
  tree.file(
      "proc/meminfo",
      "MemTotal:       268435456 kB\nMemFree:        1000 kB\nMemAvailable:   200000000 kB\nSwapTotal:      4096 kB\n");
  tree.file("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n");
  tree.file("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "512\n");
  tree.file("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "500\n");
  for (int i = 0; i < 16; ++i)
    tree.file("sys/firmware/dmi/entries/17-" + std::to_string(i) + "/raw",
              dmi_module("P" + std::to_string(i / 8) + " CHANNEL " + char('A' + i % 8), 16384, 0x1a, 3200));
  tree.file("sys/firmware/dmi/entries/17-16/raw", dmi_module("P1 CHANNEL H", 0, 0x1a, 0));  // an empty socket
}

TEST(ProbeCpu, BareMetalWithTwoSockets) {
  const FakeTree tree;
  two_sockets(tree);
  const SystemFiles files(tree.root());
  const CpuInfo cpu = read_cpu(files, read_cgroup(files));
  EXPECT_EQ(cpu.model, "Intel(R) Xeon(R) Platinum 8380 CPU @ 2.30GHz");
  EXPECT_EQ(cpu.architecture, "x86_64");
  EXPECT_EQ(cpu.sockets, 2);
  EXPECT_EQ(cpu.cores, 4);
  EXPECT_EQ(cpu.threads, 8);
  EXPECT_EQ(cpu.usable_cpus, (std::vector<int>{0, 1, 2, 3, 4, 5, 6, 7}));
  EXPECT_EQ(cpu.usable_cores, 4);
  EXPECT_EQ(cpu.usable_threads, 8);
  EXPECT_EQ(cpu.base_mhz, 2300);
  EXPECT_EQ(cpu.max_mhz, 3400);
  EXPECT_FALSE(cpu.virtualized);
  EXPECT_TRUE(cpu.isa.has(Isa::avx512_vnni));
  EXPECT_FALSE(cpu.isa.has(Isa::amx_tile));
  ASSERT_EQ(cpu.caches.size(), 3u);
  EXPECT_EQ(cpu.caches[0], (CacheInfo{1, "data", 48 * kKiB, 4, 2}));
  EXPECT_EQ(cpu.caches[2], (CacheInfo{3, "unified", 60 * kMiB, 2, 4}));
  EXPECT_EQ(cpu.last_level_bytes_total(), 120 * kMiB);
  EXPECT_EQ(cpu.cache_bytes(2), 1280 * kKiB);
  ASSERT_EQ(cpu.numa.size(), 2u);
  EXPECT_EQ(cpu.numa[1].cpus, (std::vector<int>{4, 5, 6, 7}));
  EXPECT_EQ(cpu.numa[1].distances, (std::vector<int>{21, 10}));
  EXPECT_EQ(cpu.numa[0].memory_bytes, 128 * kGiB);
}

TEST(ProbeCpu, ThreadsTakeCoresOfBothNodesBeforeSiblings) {
  const FakeTree tree;
  two_sockets(tree);
  const SystemFiles files(tree.root());
  const CpuInfo cpu = read_cpu(files, {});
  std::vector<int> order;
  for (const CpuPlace& place : thread_places(files, cpu)) order.push_back(place.cpu);
  EXPECT_EQ(order, (std::vector<int>{0, 4, 2, 6, 1, 5, 3, 7}));
}

TEST(ProbeMemory, BareMetalModulesAndHugePages) {
  const FakeTree tree;
  two_sockets(tree);
  const SystemFiles files(tree.root());
  const MemoryInfo memory = read_memory(files, read_cgroup(files));
  EXPECT_EQ(memory.total_bytes, 256 * kGiB);
  EXPECT_EQ(memory.available_bytes, Bytes{200000000} * kKiB);
  EXPECT_EQ(memory.usable_bytes, memory.available_bytes);
  EXPECT_FALSE(memory.limit_bytes);
  EXPECT_EQ(memory.cgroup_version, 0);
  EXPECT_EQ(memory.transparent_huge_pages, "madvise");
  ASSERT_EQ(memory.pools.size(), 1u);
  EXPECT_EQ(memory.pools[0], (HugePagePool{2 * kMiB, 512, 500}));
  EXPECT_EQ(memory.modules, 16);
  EXPECT_EQ(memory.channels, 16);
  EXPECT_EQ(memory.speed_mts, 3200);
  EXPECT_EQ(memory.kind, "DDR4");
  EXPECT_EQ(memory.modules_source, "dmi");
  EXPECT_DOUBLE_EQ(memory.theoretical_bytes_per_second().value(), 409.6e9);
}

TEST(ProbeMemory, EdacTellsChannelsAndDmiSpeed) {
  const FakeTree tree;
  for (int i = 0; i < 4; ++i) {
    const std::string dimm = "sys/devices/system/edac/mc/mc0/dimm" + std::to_string(i) + "/";
    tree.file(dimm + "size", i < 3 ? "32768\n" : "0\n");
    tree.file(dimm + "dimm_location", "channel " + std::to_string(i % 2) + " slot 0\n");
    tree.file(dimm + "dimm_mem_type", "Registered-DDR5\n");
  }
  tree.file("sys/firmware/dmi/entries/17-0/raw", dmi_module("BANK 0", 16384, 0x22, 5600));
  const MemoryInfo memory = read_memory(SystemFiles(tree.root()), {});
  EXPECT_EQ(memory.modules, 3);
  EXPECT_EQ(memory.channels, 2);
  EXPECT_EQ(memory.speed_mts, 5600);
  EXPECT_EQ(memory.kind, "DDR5");
  EXPECT_EQ(memory.modules_source, "edac");
}

constexpr const char* kHostMemory = "MemTotal:       268435456 kB\nMemAvailable:   200000000 kB\n";

TEST(ProbeCgroup, ContainerWithV2Limits) {
  const FakeTree tree;
  tree.file("proc/meminfo", kHostMemory);
  tree.file("proc/cpuinfo", "processor\t: 0\n\nprocessor\t: 1\n\nprocessor\t: 2\n\nprocessor\t: 3\n");
  tree.file("proc/self/cgroup", "0::/\n");
  tree.file("proc/self/mountinfo", "30 25 0:26 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n");
  tree.file("sys/fs/cgroup/memory.max", "8589934592\n");
  tree.file("sys/fs/cgroup/memory.high", "max\n");
  tree.file("sys/fs/cgroup/memory.current", "3221225472\n");
  tree.file("sys/fs/cgroup/memory.stat", "anon 1073741824\ninactive_file 2147483648\n");
  tree.file("sys/fs/cgroup/cpu.max", "150000 100000\n");
  const SystemFiles files(tree.root());
  const CgroupLimits limits = read_cgroup(files);
  EXPECT_EQ(limits.version, 2);
  EXPECT_EQ(limits.memory_bytes, 8 * kGiB);
  EXPECT_EQ(limits.memory_used_bytes, 1 * kGiB);
  EXPECT_EQ(limits.cpus, 1.5);
  const MemoryInfo memory = read_memory(files, limits);
  EXPECT_EQ(memory.total_bytes, 256 * kGiB);
  EXPECT_EQ(memory.limit_bytes, 8 * kGiB);
  EXPECT_EQ(memory.usable_bytes, 7 * kGiB);
  const CpuInfo cpu = read_cpu(files, limits);
  EXPECT_EQ(cpu.threads, 4);
  EXPECT_EQ(cpu.usable_threads, 2);
}

TEST(ProbeCgroup, TheTightestV2LimitOnTheWayUpCounts) {
  const FakeTree tree;
  tree.file("proc/self/cgroup", "0::/user.slice/app.service/inner\n");
  tree.file("proc/self/mountinfo", "30 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
  tree.file("sys/fs/cgroup/user.slice/app.service/inner/memory.max", "max\n");
  tree.file("sys/fs/cgroup/user.slice/app.service/inner/cpu.max", "max 100000\n");
  tree.file("sys/fs/cgroup/user.slice/app.service/memory.max", "2147483648\n");
  tree.file("sys/fs/cgroup/user.slice/app.service/memory.current", "100\n");
  tree.file("sys/fs/cgroup/user.slice/memory.max", "4294967296\n");
  tree.file("sys/fs/cgroup/user.slice/cpu.max", "400000 100000\n");
  const CgroupLimits limits = read_cgroup(SystemFiles(tree.root()));
  EXPECT_EQ(limits.memory_bytes, 2 * kGiB);
  EXPECT_EQ(limits.memory_used_bytes, Bytes{100});
  EXPECT_EQ(limits.cpus, 4.0);
}

TEST(ProbeCgroup, ContainerWithV1Limits) {
  const FakeTree tree;
  tree.file("proc/meminfo", kHostMemory);
  tree.file("proc/self/cgroup", "12:memory:/docker/3fab\n11:cpu,cpuacct:/docker/3fab\n0::/system.slice\n");
  tree.file("proc/self/mountinfo",
            "40 30 0:30 /docker/3fab /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
            "41 30 0:31 /docker/3fab /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n");
  tree.file("sys/fs/cgroup/memory/memory.limit_in_bytes", "4294967296\n");
  tree.file("sys/fs/cgroup/memory/memory.usage_in_bytes", "1610612736\n");
  tree.file("sys/fs/cgroup/memory/memory.stat", "cache 5\ninactive_file 9\ntotal_inactive_file 536870912\n");
  tree.file("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "50000\n");
  tree.file("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
  const SystemFiles files(tree.root());
  const CgroupLimits limits = read_cgroup(files);
  EXPECT_EQ(limits.version, 1);
  EXPECT_EQ(limits.memory_bytes, 4 * kGiB);
  EXPECT_EQ(limits.memory_used_bytes, 1 * kGiB);
  EXPECT_EQ(limits.cpus, 0.5);
  EXPECT_EQ(read_memory(files, limits).usable_bytes, 3 * kGiB);
  EXPECT_EQ(read_cpu(files, limits).usable_threads, 1);
}

TEST(ProbeCgroup, UnlimitedV1LimitsNothing) {
  const FakeTree tree;
  tree.file("proc/meminfo", kHostMemory);
  tree.file("proc/self/cgroup", "4:memory:/a/b\n1:cpu:/\n");
  tree.file("proc/self/mountinfo",
            "35 31 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
            "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n");
  tree.file("sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "9223372036854771712\n");
  tree.file("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
  tree.file("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  const CgroupLimits limits = read_cgroup(SystemFiles(tree.root()));
  EXPECT_EQ(limits.version, 1);
  EXPECT_FALSE(limits.memory_bytes);
  EXPECT_FALSE(limits.cpus);
}

TEST(ProbeCgroup, ALimitAboveTheMachineIsNone) {
  const FakeTree tree;
  tree.file("proc/meminfo", kHostMemory);
  const MemoryInfo memory = read_memory(SystemFiles(tree.root()), {2, 512 * kGiB, Bytes{0}, std::nullopt});
  EXPECT_FALSE(memory.limit_bytes);
  EXPECT_EQ(memory.usable_bytes, Bytes{200000000} * kKiB);
}

TEST(ProbeCpu, WithoutSysfsCpuinfoServes) {
  const FakeTree tree;
  tree.file("proc/cpuinfo",
            "processor\t: 0\nmodel name\t: Some CPU @ 3.00GHz\nphysical id\t: 0\ncore id\t\t: 0\nflags\t\t: avx2 "
            "hypervisor\n\n"
            "processor\t: 1\nmodel name\t: Some CPU @ 3.00GHz\nphysical id\t: 0\ncore id\t\t: 0\nflags\t\t: avx2 "
            "hypervisor\n\n");
  const CpuInfo cpu = read_cpu(SystemFiles(tree.root()), {});
  EXPECT_EQ(cpu.threads, 2);
  EXPECT_EQ(cpu.cores, 1);
  EXPECT_EQ(cpu.sockets, 1);
  EXPECT_EQ(cpu.usable_threads, 2);
  EXPECT_EQ(cpu.base_mhz, 3000);
  EXPECT_TRUE(cpu.virtualized);
  EXPECT_TRUE(cpu.caches.empty());
  EXPECT_EQ(cpu.last_level_bytes_total(), 0u);
}

TEST(ProbeCpu, AffinityNarrowsWhatIsUsable) {
  const FakeTree tree;
  two_sockets(tree);
  tree.file("proc/self/status", "Cpus_allowed_list:\t2-3,6\n");
  const CpuInfo cpu = read_cpu(SystemFiles(tree.root()), {});
  EXPECT_EQ(cpu.usable_cpus, (std::vector<int>{2, 3, 6}));
  EXPECT_EQ(cpu.usable_cores, 2);
  EXPECT_EQ(cpu.usable_threads, 3);
  EXPECT_EQ(cpu.threads, 8);
}

TEST(ProbeCpu, Arm) {
  const FakeTree tree;
  tree.file("proc/cpuinfo",
            "processor\t: 0\nFeatures\t: fp asimd asimdhp asimddp sve i8mm bf16 sve2\nCPU implementer\t: 0x41\nCPU "
            "part\t: 0xd4f\n");
  const CpuInfo cpu = read_cpu(SystemFiles(tree.root()), {});
  EXPECT_EQ(cpu.model, "Neoverse-V2");
  EXPECT_EQ(cpu.architecture, "aarch64");
  for (const Isa isa :
       {Isa::neon, Isa::neon_fp16, Isa::neon_dotprod, Isa::neon_i8mm, Isa::neon_bf16, Isa::sve, Isa::sve2})
    EXPECT_TRUE(cpu.isa.has(isa));
  EXPECT_FALSE(cpu.isa.has(Isa::avx2));
}

TEST(ProbeFiles, Numbers) {
  EXPECT_EQ(parse_cpu_list("0-3,8,10-11\n"), (std::vector<int>{0, 1, 2, 3, 8, 10, 11}));
  EXPECT_EQ(parse_cpu_list("5-2,x,1,-1,99999999999-2,3-"), (std::vector<int>{1}));
  EXPECT_TRUE(parse_cpu_list("").empty());
  EXPECT_EQ(parse_integer(" 0x10de\n"), 0x10de);
  EXPECT_EQ(parse_integer("99999999999999999999"), std::nullopt);
  EXPECT_EQ(parse_integer("12 apples"), std::nullopt);
  EXPECT_EQ(parse_leading_number("16.0 GT/s PCIe"), 16.0);
  EXPECT_EQ(parse_leading_number("nan"), std::nullopt);
  EXPECT_EQ(parse_leading_number("inf"), std::nullopt);
}

TEST(ProbeFiles, NamesInNumericOrderAndNoBlockingOnPipes) {
  const FakeTree tree;
  for (const char* name : {"cpu10", "cpu2", "cpu1"}) tree.file(std::string("d/") + name, "x");
  EXPECT_EQ(SystemFiles(tree.root()).names("d"), (std::vector<std::string>{"cpu1", "cpu2", "cpu10"}));
  ASSERT_EQ(::mkfifo((tree.root() / "pipe").c_str(), 0600), 0);
  EXPECT_EQ(SystemFiles(tree.root()).text("pipe"), std::nullopt);
  EXPECT_EQ(SystemFiles(tree.root()).text("d"), std::nullopt);
}

TEST(Probe, AnEmptyRootIsAnUnknownMachine) {
  const FakeTree tree;
  ProbeOptions options;
  options.root = tree.root();
  const Machine machine = probe(options);
  EXPECT_EQ(machine.cpu.threads, 0);
  EXPECT_EQ(machine.cpu.usable_threads, 1);
  EXPECT_EQ(machine.memory.total_bytes, 0u);
  EXPECT_EQ(machine.memory.usable_bytes, 0u);
  EXPECT_TRUE(machine.gpus.empty());
  EXPECT_FALSE(machine.measured);
  EXPECT_FALSE(probe_report(machine).empty());
}

// Whatever stands in these files, nothing crashes and what follows from it stays sensible.
RC_GTEST_PROP(Probe, SurvivesAnyContents, ()) {
  const FakeTree tree;
  two_sockets(tree);
  const std::vector<std::string> paths = {"proc/cpuinfo",
                                          "proc/meminfo",
                                          "proc/self/mountinfo",
                                          "proc/self/cgroup",
                                          "proc/self/status",
                                          "etc/os-release",
                                          "sys/devices/system/cpu/online",
                                          "sys/devices/system/cpu/cpu0/topology/core_id",
                                          "sys/devices/system/cpu/cpu0/cache/index0/size",
                                          "sys/devices/system/cpu/cpu0/cache/index0/shared_cpu_list",
                                          "sys/devices/system/node/node0/cpulist",
                                          "sys/devices/system/node/node0/meminfo",
                                          "sys/kernel/mm/transparent_hugepage/enabled",
                                          "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
                                          "sys/firmware/dmi/entries/17-0/raw",
                                          "sys/fs/cgroup/memory.max",
                                          "sys/fs/cgroup/cpu.max",
                                          "sys/class/drm/card0/device/vendor",
                                          "sys/class/drm/card0/device/mem_info_vram_total"};
  const auto words = rc::gen::element<std::string>(
      "0-3", "99999999999999999999", "-1", "[", "]", " - ", ":", "\n", "kB", "MemTotal:", "processor\t: 7\n",
      "0::/../..", "cgroup2", "0x1002", "max", "1e308", "nan", std::string(1, '\0'), "\xff\xfe", ",", "/");
  const auto count = *rc::gen::inRange<int>(1, 6);
  for (int i = 0; i < count; ++i) {
    std::string contents;
    for (const std::string& word :
         *rc::gen::container<std::vector<std::string>>(rc::gen::oneOf(words, rc::gen::arbitrary<std::string>())))
      contents += word;
    tree.file(*rc::gen::elementOf(paths), contents);
  }
  ProbeOptions options;
  options.root = tree.root();
  const Machine machine = probe(options);
  RC_ASSERT(machine.cpu.usable_threads >= 1);
  if (machine.memory.total_bytes > 0) RC_ASSERT(machine.memory.usable_bytes <= machine.memory.total_bytes);
  RC_ASSERT(!probe_report(machine).empty());
  const auto back = machine_from_json(machine_to_json(machine), "round trip");
  RC_ASSERT(back.has_value());
}

}  // namespace
}  // namespace fathom::hardware
