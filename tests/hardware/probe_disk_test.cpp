// Disks: what lies under a folder, and measuring it without leaving anything behind.
#include "hardware/probe_disk.h"

#include <gtest/gtest.h>

#include "hardware/disk_bench.h"
#include "hardware/fake_tree.h"

namespace fathom::hardware {
namespace {

using test::FakeTree;

void block_device(const FakeTree& tree, const std::string& number, const std::string& name, const std::string& disk,
                  int rotational, const char* model) {
  const std::string folder = "sys/devices/pci0000:00/host0/block/" + disk;
  tree.file(folder + "/queue/rotational", std::to_string(rotational) + "\n");
  tree.file(folder + "/device/model", std::string(model) + "\n");
  const std::string own = name == disk ? folder : folder + "/" + name;
  tree.folder(own);
  if (name != disk) tree.file(own + "/partition", "1\n");
  const std::string target = own.substr(std::string("sys/").size());
  tree.link("sys/dev/block/" + number, "../../" + target);
  tree.link("sys/class/block/" + name, "../../" + target);
  if (name != disk && !std::filesystem::exists(tree.root() / "sys/class/block" / disk))
    tree.link("sys/class/block/" + disk, "../../" + folder.substr(std::string("sys/").size()));
}

constexpr const char* kMounts =
    "27 1 259:2 / / rw,relatime - ext4 /dev/nvme0n1p2 rw\n"
    "28 27 8:17 / /data rw - xfs /dev/sdb1 rw\n"
    "29 27 253:0 / /models rw shared:1 - ext4 /dev/mapper/vg-models rw\n"
    "30 27 0:45 / /share rw - nfs4 server:/export rw\n"
    "31 27 0:46 / /dev/shm rw - tmpfs tmpfs rw\n"
    "32 27 0:47 / /containers/merged rw - overlay overlay rw,lowerdir=/a\n"
    "33 27 254:0 / /virtual rw - ext4 /dev/vda rw\n"
    "34 27 8:33 / /with\\040blank rw - ext4 /dev/sdc1 rw\n"
    "35 28 0:48 / /data rw - tmpfs tmpfs rw\n"
    "garbage\n - \n";

class DiskTree : public ::testing::Test {
 protected:
  DiskTree() {
    tree_.file("proc/self/mountinfo", kMounts);
    block_device(tree_, "259:2", "nvme0n1p2", "nvme0n1", 0, "Samsung SSD 990 PRO 2TB");
    block_device(tree_, "8:17", "sdb1", "sdb", 1, "WDC WD120");
    block_device(tree_, "8:33", "sdc1", "sdc", 0, "QEMU HARDDISK");
    block_device(tree_, "254:0", "vda", "vda", 1, "");
    block_device(tree_, "8:49", "sdd1", "sdd", 0, "INTEL SSDSC2");
    block_device(tree_, "253:0", "dm-0", "dm-0", 0, "");
    tree_.folder("sys/devices/pci0000:00/host0/block/dm-0/slaves/nvme0n1p2");
    tree_.folder("sys/devices/pci0000:00/host0/block/dm-0/slaves/sdd1");
  }
  DiskInfo at(const char* folder) const { return describe_disk(SystemFiles(tree_.root()), folder); }
  FakeTree tree_;
};

TEST_F(DiskTree, Kinds) {
  EXPECT_EQ(at("/home/me").kind, DiskKind::nvme);
  EXPECT_EQ(at("/home/me").device, "nvme0n1");
  EXPECT_EQ(at("/home/me").model, "Samsung SSD 990 PRO 2TB");
  EXPECT_EQ(at("/home/me").mount, "/");
  EXPECT_EQ(at("/share/x").kind, DiskKind::network);
  EXPECT_EQ(at("/share/x").device, "server:/export");
  EXPECT_EQ(at("/dev/shm").kind, DiskKind::ram);
  EXPECT_EQ(at("/containers/merged/a").kind, DiskKind::overlay);
  EXPECT_EQ(at("/virtual").kind, DiskKind::virtual_disk) << "a virtual disk that calls itself rotating";
  EXPECT_EQ(at("/with blank/x").mount, "/with blank");
  EXPECT_EQ(at("/with blank/x").kind, DiskKind::virtual_disk);
}

TEST_F(DiskTree, AMappedDiskIsAsSlowAsItsSlowestPart) {
  EXPECT_EQ(at("/models/hub").kind, DiskKind::ssd);
  EXPECT_EQ(at("/models/hub").device, "dm-0");
}

TEST_F(DiskTree, AMountPointIsNoPrefixOfAnotherName) { EXPECT_EQ(at("/database").mount, "/"); }

TEST_F(DiskTree, TheLastMountCoversEarlierOnes) {
  EXPECT_EQ(at("/data").kind, DiskKind::ram);
  EXPECT_EQ(at("/data").filesystem, "tmpfs");
}

TEST_F(DiskTree, UsesOfOneMountGoTogether) {
  const auto disks =
      read_disks(SystemFiles(tree_.root()), {{"work", "/home/me"}, {"home", "/home"}, {"models", "/models"}});
  ASSERT_EQ(disks.size(), 2u);
  EXPECT_EQ(disks[0].uses, (std::vector<std::string>{"work", "home"}));
  EXPECT_EQ(disks[1].uses, (std::vector<std::string>{"models"}));
}

TEST(ProbeDisk, NoMountsNoDisk) {
  const FakeTree tree;
  const DiskInfo disk = describe_disk(SystemFiles(tree.root()), "/home");
  EXPECT_EQ(disk.kind, DiskKind::unknown);
  EXPECT_TRUE(disk.mount.empty());
}

DiskBenchOptions tiny(const FakeTree& tree, bool use_io_uring) {
  DiskBenchOptions options;
  options.folder = tree.root();
  options.bytes = 16 * kMiB;
  options.use_io_uring = use_io_uring;
  options.read_seconds = 60;  // all of it, however slow the disk
  return options;
}

TEST(DiskBench, ReadsEverythingAndLeavesNothing) {
  for (const bool use_io_uring : {true, false}) {
    const FakeTree tree(true);
    const auto read = measure_disk_read(tiny(tree, use_io_uring));
    ASSERT_TRUE(read) << error_text(read.error());
    EXPECT_EQ(read->bytes, 16 * kMiB);
    EXPECT_GT(read->bytes_per_second, 0);
    EXPECT_EQ(read->source, "temporary file");
    EXPECT_TRUE(use_io_uring || read->method.starts_with("pread")) << read->method;
    EXPECT_TRUE(std::filesystem::is_empty(tree.root()));
  }
}

TEST(DiskBench, ReadsAnExistingFile) {
  const FakeTree tree(true);
  tree.file("models/blobs/abc", std::string(3 * kMiB + 17, 'x'));
  tree.file("models/small", "x");
  const auto found = find_large_file(tree.root(), 2 * kMiB);
  ASSERT_TRUE(found);
  EXPECT_EQ(found->filename(), "abc");
  EXPECT_FALSE(find_large_file(tree.root(), 4 * kMiB));
  DiskBenchOptions options = tiny(tree, true);
  options.existing = *found;
  const auto read = measure_disk_read(options);
  ASSERT_TRUE(read) << error_text(read.error());
  EXPECT_EQ(read->bytes, 3 * kMiB);
  EXPECT_EQ(read->source, "existing file");
}

TEST(DiskBench, SaysWhatIsWrong) {
  const FakeTree tree(true);
  DiskBenchOptions options = tiny(tree, true);
  options.folder = tree.root() / "none";
  const auto missing = measure_disk_read(options);
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().key, "hardware_probe.disk_cannot_write");
  options.existing = tree.root();
  const auto folder = measure_disk_read(options);
  ASSERT_FALSE(folder);
  EXPECT_EQ(folder.error().key, "hardware_probe.disk_cannot_read");
}

}  // namespace
}  // namespace fathom::hardware
