// A folder with whatever /proc and /sys files a test wants, removed at its end.
#pragma once
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

namespace fathom::test {

class FakeTree {
 public:
  /// In memory where that can be had, since trees are many small files; `on_disk`: in the folder for temporary files.
  explicit FakeTree(bool on_disk = false) {
    const bool memory = !on_disk && ::access("/dev/shm", W_OK | X_OK) == 0;
    std::string name =
        ((memory ? std::filesystem::path("/dev/shm") : std::filesystem::temp_directory_path()) / "fathom-tree-XXXXXX")
            .string();
    if (::mkdtemp(name.data()) == nullptr) ADD_FAILURE() << "no temporary folder";
    root_ = name;
  }
  ~FakeTree() {
    std::error_code error;
    std::filesystem::remove_all(root_, error);
  }
  FakeTree(const FakeTree&) = delete;
  FakeTree& operator=(const FakeTree&) = delete;

  const std::filesystem::path& root() const { return root_; }
  void file(const std::string& path, std::string_view contents) const {
    std::filesystem::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path, std::ios::binary) << contents;
  }
  void folder(const std::string& path) const { std::filesystem::create_directories(root_ / path); }
  /// A relative link, as sysfs has them.
  void link(const std::string& path, const std::string& target) const {
    std::filesystem::create_directories((root_ / path).parent_path());
    std::filesystem::create_symlink(target, root_ / path);
  }

 private:
  std::filesystem::path root_;
};

}  // namespace fathom::test
