#include "backends/reference/host_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

namespace fathom::reference {
namespace {

class Pages final : public tensor::Buffer {
 public:
  Pages(std::byte* data, Bytes bytes) : data_(data), bytes_(bytes) {}
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  ~Pages() override {
    if (bytes_ > 0) ::munmap(data_, bytes_);
  }
  std::byte* data() const override { return data_; }
  Bytes bytes() const override { return bytes_; }

 private:
  std::byte* data_;
  Bytes bytes_;
};

/// The first number in a file; the largest there is when the file is absent or says "max".
Bytes number_in(const char* path) {
  std::ifstream file(path);
  Bytes value = 0;
  return file >> value ? value : std::numeric_limits<Bytes>::max();
}

Bytes memory_free_on_host() {
  std::ifstream file("/proc/meminfo");
  std::string name;
  Bytes kib = 0;
  while (file >> name >> kib) {
    if (name == "MemAvailable:") return kib * kKiB;
    file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return std::numeric_limits<Bytes>::max();
}

}  // namespace

Bytes available_memory() {
  Bytes least = memory_free_on_host();
  constexpr const char* kGroups[][2] = {
      {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"},
      {"/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"}};
  for (const auto& [limit_path, used_path] : kGroups) {
    const Bytes limit = number_in(limit_path), used = number_in(used_path);
    if (limit != std::numeric_limits<Bytes>::max() && used != std::numeric_limits<Bytes>::max())
      least = std::min(least, limit > used ? limit - used : 0);
  }
  return least;
}

Result<std::unique_ptr<tensor::Buffer>> allocate_pages(Bytes bytes) {
  if (bytes == 0) return std::make_unique<Pages>(nullptr, 0);
  const Bytes available = available_memory();
  void* memory = bytes > available ? MAP_FAILED
                                   : ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED)
    return fail_environment("reference.no_memory",
                            {{"asked", format_bytes(bytes)}, {"available", format_bytes(available)}});
  return std::make_unique<Pages>(static_cast<std::byte*>(memory), bytes);
}

}  // namespace fathom::reference
