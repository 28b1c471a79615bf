#include "backends/cpu/host_buffer.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>

#include "backends/cpu/thread_pool.h"
#include "backends/cpu/workspace.h"
#include "hardware/probe_memory.h"

namespace fathom::cpu {
namespace {

constexpr Bytes kHugePage = 2 * kMiB;
constexpr Bytes kPage = 4 * kKiB;
constexpr Bytes kSlice = 64 * kMiB;  // populated by one thread at a time

class HostBuffer final : public tensor::Buffer {
 public:
  HostBuffer(std::byte* mapped, Bytes mapped_bytes, std::byte* data, Bytes bytes)
      : mapped_(mapped), mapped_bytes_(mapped_bytes), data_(data), bytes_(bytes) {}
  HostBuffer(const HostBuffer&) = delete;
  HostBuffer& operator=(const HostBuffer&) = delete;
  ~HostBuffer() override {
    if (mapped_bytes_ > 0) ::munmap(mapped_, mapped_bytes_);
  }
  std::byte* data() const override { return data_; }
  Bytes bytes() const override { return bytes_; }

 private:
  std::byte* mapped_;
  Bytes mapped_bytes_;
  std::byte* data_;
  Bytes bytes_;
};

Bytes round_up(Bytes value, Bytes step) { return (value + step - 1) / step * step; }

/// Touches a page at a time where the kernel does not know MADV_POPULATE_WRITE (before 5.14). False: out of memory.
bool populate(std::byte* data, Bytes bytes) {
#if defined(MADV_POPULATE_WRITE)
  if (::madvise(data, bytes, MADV_POPULATE_WRITE) == 0) return true;
  if (errno != EINVAL) return false;
#endif
  for (Bytes at = 0; at < bytes; at += kPage) *reinterpret_cast<volatile char*>(data + at) = 0;
  return true;
}

tl::unexpected<Error> no_memory(Bytes asked, Bytes available) {
  return fail_environment("cpu.no_memory", {{"asked", format_bytes(asked)}, {"available", format_bytes(available)}});
}

}  // namespace

Result<std::unique_ptr<tensor::Buffer>> allocate_pages(Bytes bytes, ThreadPool* pool) {
  if (bytes == 0) return std::make_unique<HostBuffer>(nullptr, 0, nullptr, 0);
  const hardware::SystemFiles files("/");
  const Bytes available = hardware::read_memory(files, hardware::read_cgroup(files)).usable_bytes;
  const bool huge = bytes >= kHugePage;
  if (available > 0 && bytes > available) return no_memory(bytes, available);
  const Bytes mapped_bytes = round_up(bytes, kPage) + (huge ? kHugePage : 0);
  void* memory =
      ::mmap(nullptr, mapped_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return no_memory(bytes, available);
  auto* mapped = static_cast<std::byte*>(memory);
  std::byte* data = mapped;
  if (huge) {
    data = reinterpret_cast<std::byte*>(round_up(reinterpret_cast<std::uintptr_t>(mapped), kHugePage));
    ::madvise(data, round_up(bytes, kPage), MADV_HUGEPAGE);  // a wish: without huge pages it is slower, not wrong
  }
  auto buffer = std::make_unique<HostBuffer>(mapped, mapped_bytes, data, bytes);
  if (pool == nullptr) return buffer;
  const Bytes whole = round_up(bytes, kPage);
  std::atomic<bool> enough{true};
  pool->for_each(static_cast<std::int64_t>(round_up(whole, kSlice) / kSlice), [&](std::int64_t slice, int) {
    const Bytes first = static_cast<Bytes>(slice) * kSlice;
    if (!populate(data + first, std::min(kSlice, whole - first))) enough.store(false);
  });
  if (!enough.load()) return no_memory(bytes, available);
  return buffer;
}

Result<Workspace> Workspace::make(int threads) {
  Workspace workspace;
  FATHOM_TRY(workspace.buffer_, allocate_pages(bytes_for(threads), nullptr));
  std::byte* base = workspace.buffer_->data();
  workspace.shared_ = Scratch(base, kSharedWorkspaceBytes);
  for (int thread = 0; thread < threads; ++thread)
    workspace.threads_.emplace_back(base + kSharedWorkspaceBytes + static_cast<Bytes>(thread) * kThreadWorkspaceBytes,
                                    kThreadWorkspaceBytes);
  return workspace;
}

}  // namespace fathom::cpu
