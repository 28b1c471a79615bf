#include "weights/read_engine.h"

#include <fcntl.h>
#include <liburing.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <thread>

#include "weights/safetensors.h"

namespace fathom::weights {
namespace {

constexpr Bytes kPage = 4096;       // what O_DIRECT wants offsets, lengths and memory to be multiples of, at most
constexpr unsigned kDepth = 4;      // tasks in flight a thread
constexpr Bytes kSmallFile = kMiB;  // not worth a second descriptor

struct OpenFile {
  std::string name;
  Descriptor buffered, direct;
};

Bytes page_floor(Bytes x) { return x / kPage * kPage; }
Bytes page_ceil(Bytes x) { return (x + kPage - 1) / kPage * kPage; }

// Whether most of a file is in the page cache: a read that would have to wait says so instead.
bool is_cached(int fd, Bytes bytes) {
  constexpr int kSamples = 32;
  int there = 0;
  for (int i = 0; i < kSamples; ++i) {
    char byte = 0;
    struct iovec place = {&byte, 1};
    const auto offset = static_cast<off_t>(bytes / kSamples * static_cast<Bytes>(i));
    if (::preadv2(fd, &place, 1, offset, RWF_NOWAIT) == 1)
      ++there;
    else if (errno == EOPNOTSUPP || errno == EINVAL || errno == ENOSYS)
      return true;
  }
  return there * 2 >= kSamples;
}

Result<OpenFile> open_file(const Path& path, DirectMode mode) {
  OpenFile file;
  file.name = path.string();
  file.buffered = Descriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.buffered) return fail("base.cannot_open", {{"path", file.name}, {"reason", errno_text(errno)}});
  const off_t size = ::lseek(file.buffered.get(), 0, SEEK_END);
  const bool large = size >= static_cast<off_t>(kSmallFile);
  const bool wanted = mode == DirectMode::kAlways ||
                      (mode == DirectMode::kAuto && large && !is_cached(file.buffered.get(), static_cast<Bytes>(size)));
  if (wanted)
    file.direct = Descriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT));  // refused (tmpfs): buffered
  return file;
}

// The path that always works, and whose error is the one reported.
Status pread_all(const OpenFile& file, std::byte* out, ReadRange range) {
  for (Bytes done = 0; done < range.bytes;) {
    const ssize_t n =
        ::pread(file.buffered.get(), out + done, range.bytes - done, static_cast<off_t>(range.offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_environment("base.cannot_read", {{"path", file.name}, {"reason", errno_text(errno)}});
    if (n == 0)
      return fail("weights.truncated", {{"file", file.name},
                                        {"bytes", std::to_string(range.offset + done)},
                                        {"expected", std::to_string(range.offset + range.bytes)}});
    done += static_cast<Bytes>(n);
  }
  return {};
}

struct FreeDeleter {
  void operator()(std::byte* memory) const { std::free(memory); }
};

// One range of a task on its way: where its bytes will be, and what to ask the kernel for.
struct Transfer {
  const OpenFile* file = nullptr;
  ReadRange range;
  std::byte* bytes = nullptr;  // the first byte that is wanted
  int fd = -1;
  std::byte* read_to = nullptr;
  Bytes read_offset = 0, read_bytes = 0;
};

// A place for one task in flight.
struct Slot {
  std::size_t task = 0;
  unsigned pending = 0;
  std::array<Transfer, 2> transfers;
  std::unique_ptr<std::byte, FreeDeleter> memory;
};

class Worker {
 public:
  Worker(std::span<const OpenFile> files, std::span<const ReadTask> tasks, Bytes slot_bytes,
         const std::function<Status(std::size_t, std::span<const std::byte>, std::span<const std::byte>)>& consume)
      : files_(files), tasks_(tasks), slot_bytes_(slot_bytes), consume_(consume) {}
  ~Worker() {
    if (has_ring_) ::io_uring_queue_exit(&ring_);
  }

  Status run(WorkQueue& queue, bool uring) {
    if (uring) has_ring_ = ::io_uring_queue_init(2 * kDepth, &ring_, 0) == 0;
    return has_ring_ ? run_ring(queue) : run_plain(queue);
  }
  bool used_ring() const { return has_ring_; }

 private:
  // Fills in both transfers of a task. Without O_DIRECT data goes straight to its destination when it has one.
  bool prepare(Slot& slot, std::size_t number) {
    if (!slot.memory) slot.memory.reset(static_cast<std::byte*>(std::aligned_alloc(kPage, slot_bytes_)));
    if (!slot.memory) return false;
    const ReadTask& task = tasks_[number];
    slot.task = number;
    slot.transfers[0] = transfer(files_[task.file], task.data, slot.memory.get(), task.into);
    slot.transfers[1] = transfer(files_[task.scales_file], task.scales,
                                 slot.memory.get() + page_ceil(task.data.bytes) + kPage, nullptr);
    return true;
  }

  static Transfer transfer(const OpenFile& file, ReadRange range, std::byte* memory, std::byte* into) {
    Transfer t{.file = &file, .range = range};
    const Bytes lead = range.offset - page_floor(range.offset);
    if (file.direct) {
      t.bytes = memory + lead;
      t.fd = file.direct.get();
      t.read_to = memory;
      t.read_offset = range.offset - lead;
      t.read_bytes = page_ceil(lead + range.bytes);
    } else {
      t.bytes = into != nullptr ? into : memory + lead;  // keeps the file's alignment
      t.fd = file.buffered.get();
      t.read_to = t.bytes;
      t.read_offset = range.offset;
      t.read_bytes = range.bytes;
    }
    return t;
  }

  // What a request came to; anything but success is done again the plain way.
  static Status settle(Transfer& t, std::int64_t result) {
    const Bytes lead = t.range.offset - t.read_offset;
    if (result >= 0 && static_cast<Bytes>(result) >= lead + t.range.bytes) return {};
    return pread_all(*t.file, t.bytes, t.range);
  }

  Status deliver(WorkQueue& queue, Slot& slot) {
    const ReadTask& task = tasks_[slot.task];
    FATHOM_TRY_VOID(
        consume_(slot.task, {slot.transfers[0].bytes, task.data.bytes}, {slot.transfers[1].bytes, task.scales.bytes}));
    queue.add_done(task.data.bytes + task.scales.bytes);
    return {};
  }

  Status run_plain(WorkQueue& queue) {
    Slot slot;
    while (const auto number = queue.next()) {
      if (!prepare(slot, *number)) return fail_environment("weights.no_memory");
      for (Transfer& t : slot.transfers) {
        if (t.range.bytes == 0) continue;
        const ssize_t n = ::pread(t.fd, t.read_to, t.read_bytes, static_cast<off_t>(t.read_offset));
        FATHOM_TRY_VOID(settle(t, n));
      }
      FATHOM_TRY_VOID(deliver(queue, slot));
    }
    return {};
  }

  void submit(Slot& slot) {
    for (Transfer& t : slot.transfers) {
      if (t.range.bytes == 0) continue;
      io_uring_sqe* request = ::io_uring_get_sqe(&ring_);
      FATHOM_CHECK(request != nullptr, "the ring holds two requests a slot");
      ::io_uring_prep_read(request, t.fd, t.read_to, static_cast<unsigned>(t.read_bytes), t.read_offset);
      ::io_uring_sqe_set_data64(request, static_cast<std::uint64_t>(&slot - slots_.data()) * 2 +
                                             static_cast<std::uint64_t>(&t - slot.transfers.data()));
      ++slot.pending;
    }
  }

  Status run_ring(WorkQueue& queue) {
    const Status status = pump(queue);
    // Memory may not go while the kernel still writes to it.
    for (; in_flight_ > 0; --in_flight_) {
      io_uring_cqe* answer = nullptr;
      int n = 0;
      while ((n = ::io_uring_wait_cqe(&ring_, &answer)) == -EINTR) {
      }
      if (n != 0) std::abort();  // the ring is broken and memory is promised to it
      ::io_uring_cqe_seen(&ring_, answer);
    }
    return status;
  }

  Status pump(WorkQueue& queue) {
    std::array<bool, kDepth> busy{};
    bool more = true;
    for (;;) {
      unsigned added = 0;
      for (unsigned s = 0; s < kDepth && more; ++s) {
        while (!busy[s] && more) {
          const auto number = queue.next();
          more = number.has_value();
          if (!more) break;
          if (!prepare(slots_[s], *number)) return fail_environment("weights.no_memory");
          submit(slots_[s]);
          busy[s] = slots_[s].pending > 0;
          added += slots_[s].pending;
          if (!busy[s]) FATHOM_TRY_VOID(deliver(queue, slots_[s]));  // an empty tensor
        }
      }
      if (added > 0) FATHOM_TRY_VOID(hand_over(added));
      if (in_flight_ == 0) return {};
      io_uring_cqe* answer = nullptr;
      const int n = ::io_uring_wait_cqe(&ring_, &answer);
      if (n == -EINTR) continue;
      if (n != 0) return fail_environment("weights.ring", {{"reason", errno_text(-n)}});
      const std::uint64_t tag = ::io_uring_cqe_get_data64(answer);
      const std::int32_t result = answer->res;
      ::io_uring_cqe_seen(&ring_, answer);
      --in_flight_;
      Slot& slot = slots_[tag / 2];
      FATHOM_TRY_VOID(settle(slot.transfers[tag % 2], result));
      if (--slot.pending > 0) continue;
      FATHOM_TRY_VOID(deliver(queue, slot));
      busy[tag / 2] = false;
      if (queue.stopped()) more = false;
    }
  }

  // Every prepared request, to the kernel.
  Status hand_over(unsigned count) {
    int patience = 1000;  // the kernel may be short of memory for a moment
    while (count > 0) {
      const int n = ::io_uring_submit(&ring_);
      if ((n == -EINTR || n == -EAGAIN || n == -EBUSY) && --patience > 0) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        continue;
      }
      if (n <= 0) return fail_environment("weights.ring", {{"reason", errno_text(n < 0 ? -n : EIO)}});
      in_flight_ += static_cast<unsigned>(n);
      count -= static_cast<unsigned>(n);
    }
    return {};
  }

  std::span<const OpenFile> files_;
  std::span<const ReadTask> tasks_;
  Bytes slot_bytes_;
  const std::function<Status(std::size_t, std::span<const std::byte>, std::span<const std::byte>)>& consume_;
  std::array<Slot, kDepth> slots_;
  io_uring ring_ = {};
  bool has_ring_ = false;
  unsigned in_flight_ = 0;
};

}  // namespace

Result<ReadStats> read_all(std::span<const Path> paths, std::span<const ReadTask> tasks, const ReadOptions& options,
                           const std::function<Status(std::size_t task, std::span<const std::byte> data,
                                                      std::span<const std::byte> scales)>& consume) {
  ReadStats stats{.files = paths.size()};
  std::vector<OpenFile> files;
  files.reserve(paths.size());
  for (const Path& path : paths) {
    FATHOM_TRY(auto file, open_file(path, options.direct));
    stats.direct_files += file.direct ? 1 : 0;
    files.push_back(std::move(file));
  }
  Bytes slot_bytes = kPage;
  for (const ReadTask& task : tasks) {
    stats.bytes += task.data.bytes + task.scales.bytes;
    slot_bytes = std::max(slot_bytes, page_ceil(task.data.bytes) + page_ceil(task.scales.bytes) + 2 * kPage);
  }
  stats.threads = usable_threads(options.threads, tasks.size());
  std::atomic<bool> uring = false;
  const Status status =
      run_workers(tasks.size(), stats.bytes, stats.threads, options.progress, [&](WorkQueue& queue) -> Status {
        Worker worker(files, tasks, slot_bytes, consume);
        const Status done = worker.run(queue, options.io == IoMode::kAuto);
        if (worker.used_ring()) uring = true;
        return done;
      });
  if (!status) return tl::unexpected(status.error());
  stats.uring = uring;
  return stats;
}

}  // namespace fathom::weights
