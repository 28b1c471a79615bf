#include "hardware/disk_bench.h"

#include <fcntl.h>
#include <liburing.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"

namespace fathom::hardware {
namespace {

constexpr std::size_t kBlock = kMiB;
constexpr unsigned kInFlight = 16;
constexpr int kReaders = 8;
constexpr Bytes kLeastBytes = 16 * kMiB;  // less says nothing

struct Descriptor {
  int fd = -1;
  Descriptor() = default;
  Descriptor(Descriptor&& other) noexcept : fd(std::exchange(other.fd, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(fd, other.fd);
    return *this;
  }
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

// Page-aligned memory, as direct reads want it.
struct Buffer {
  std::byte* data = nullptr;
  std::size_t size = 0;
  explicit Buffer(std::size_t bytes) : size(bytes) {
    void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    data = memory == MAP_FAILED ? nullptr : static_cast<std::byte*>(memory);
  }
  ~Buffer() {
    if (data != nullptr) ::munmap(data, size);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
};

tl::unexpected<Error> failed(const char* key, const Path& path, int error_number) {
  return fail_environment(key, {{"path", path.string()}, {"reason", errno_text(error_number)}});
}

struct OpenFile {
  Descriptor file;
  bool direct = true;
  Bytes bytes = 0;
  std::string source;
};

// A nameless file: O_TMPFILE where the file system has it, else created and unlinked at once.
int open_nameless(const Path& folder, int extra_flags) {
  const int fd = ::open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC | extra_flags, 0600);
  if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR && errno != ENOENT)) return fd;
  std::string name = (folder / ".fathom-probe-XXXXXX").string();
  const int named = ::mkostemp(name.data(), O_CLOEXEC | extra_flags);
  if (named >= 0) ::unlink(name.c_str());
  return named;
}

void fill_with_noise(Buffer& buffer) {
  std::uint64_t state = 0x9e3779b97f4a7c15u;
  for (std::size_t i = 0; i + 8 <= buffer.size; i += 8) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    std::memcpy(buffer.data + i, &state, 8);
  }
}

Result<OpenFile> write_temporary(const DiskBenchOptions& options) {
  OpenFile out;
  out.source = "temporary file";
  out.file.fd = open_nameless(options.folder, O_DIRECT);
  if (out.file.fd < 0 && errno == EINVAL) {
    out.direct = false;
    out.file.fd = open_nameless(options.folder, 0);
  }
  if (out.file.fd < 0) return failed("hardware_probe.disk_cannot_write", options.folder, errno);
  Buffer noise(4 * kBlock);
  if (noise.data == nullptr) return failed("hardware_probe.disk_cannot_write", options.folder, ENOMEM);
  fill_with_noise(noise);
  const double deadline = now_seconds() + options.write_seconds;
  while (out.bytes < options.bytes && (out.bytes < kLeastBytes || now_seconds() < deadline)) {
    const std::size_t want = std::min<Bytes>(noise.size, options.bytes - out.bytes);
    std::memcpy(noise.data, &out.bytes, sizeof out.bytes);  // no two blocks alike
    const ssize_t n = ::pwrite(out.file.fd, noise.data, want, static_cast<off_t>(out.bytes));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && (errno == ENOSPC || errno == EDQUOT) && out.bytes >= kLeastBytes) break;
    if (n <= 0) return failed("hardware_probe.disk_cannot_write", options.folder, n == 0 ? ENOSPC : errno);
    out.bytes += static_cast<Bytes>(n);
  }
  out.bytes = out.bytes / kBlock * kBlock;
  if (!out.direct) ::fdatasync(out.file.fd);
  return out;
}

Result<OpenFile> open_existing(const Path& path, Bytes max_bytes) {
  OpenFile out;
  out.source = "existing file";
  out.file.fd = ::open(path.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC);
  if (out.file.fd < 0 && errno == EINVAL) {
    out.direct = false;
    out.file.fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  }
  struct stat info = {};
  if (out.file.fd < 0 || ::fstat(out.file.fd, &info) != 0)
    return failed("hardware_probe.disk_cannot_read", path, errno);
  out.bytes = std::min<Bytes>(static_cast<Bytes>(std::max<off_t>(info.st_size, 0)), max_bytes) / kBlock * kBlock;
  if (!S_ISREG(info.st_mode) || out.bytes == 0) return failed("hardware_probe.disk_cannot_read", path, EINVAL);
  return out;
}

struct Ring {
  io_uring ring = {};
  bool ready = false;
  Ring() { ready = ::io_uring_queue_init(kInFlight, &ring, 0) == 0; }  // containers often forbid it
  ~Ring() {
    if (ready) ::io_uring_queue_exit(&ring);
  }
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;
};

// Bytes read until the end or the deadline; a negative errno on failure. No request is left in flight.
std::int64_t read_with_ring(io_uring& ring, int fd, Bytes total, double deadline, Buffer& buffer) {
  Bytes next = 0, done = 0;
  unsigned flying = 0;
  int error = 0;
  const auto submit = [&](std::uint64_t slot) {
    io_uring_sqe* sqe = ::io_uring_get_sqe(&ring);
    if (sqe == nullptr) return;
    ::io_uring_prep_read(sqe, fd, buffer.data + slot * kBlock, kBlock, next);
    ::io_uring_sqe_set_data(sqe, reinterpret_cast<void*>(slot + 1));
    next += kBlock;
    ++flying;
  };
  for (std::uint64_t slot = 0; slot < kInFlight && next < total; ++slot) submit(slot);
  while (flying > 0) {
    const int submitted = ::io_uring_submit_and_wait(&ring, 1);
    if (submitted < 0 && submitted != -EINTR) return submitted;
    io_uring_cqe* cqe = nullptr;
    while (flying > 0 && ::io_uring_peek_cqe(&ring, &cqe) == 0 && cqe != nullptr) {
      const std::uint64_t slot = reinterpret_cast<std::uint64_t>(::io_uring_cqe_get_data(cqe)) - 1;
      if (cqe->res > 0)
        done += static_cast<Bytes>(cqe->res);
      else
        error = cqe->res == 0 ? EIO : -cqe->res;
      ::io_uring_cqe_seen(&ring, cqe);
      --flying;
      if (error == 0 && next < total && now_seconds() < deadline) submit(slot);
    }
  }
  return error != 0 ? -error : static_cast<std::int64_t>(done);
}

std::int64_t read_with_threads(int fd, Bytes total, double deadline, Buffer& buffer) {
  std::atomic<Bytes> next{0}, done{0};
  std::atomic<int> error{0};
  const auto reader = [&](int index) {
    for (;;) {
      const Bytes at = next.fetch_add(kBlock);
      if (at >= total || error.load() != 0 || now_seconds() >= deadline) return;
      const ssize_t n =
          ::pread(fd, buffer.data + static_cast<std::size_t>(index) * kBlock, kBlock, static_cast<off_t>(at));
      if (n <= 0)
        error = n == 0 ? EIO : errno;
      else
        done += static_cast<Bytes>(n);
    }
  };
  std::vector<std::thread> threads;
  try {
    for (int i = 1; i < kReaders; ++i) threads.emplace_back(reader, i);
  } catch (const std::system_error&) {  // fewer readers will do
  }
  reader(0);
  for (std::thread& thread : threads) thread.join();
  return error != 0 ? -error : static_cast<std::int64_t>(done.load());
}

}  // namespace

Result<DiskRead> measure_disk_read(const DiskBenchOptions& options) {
  FATHOM_TRY(OpenFile target,
             options.existing ? open_existing(*options.existing, options.bytes) : write_temporary(options));
  if (!target.direct) ::posix_fadvise(target.file.fd, 0, 0, POSIX_FADV_DONTNEED);
  Buffer buffer(kInFlight * kBlock);
  if (buffer.data == nullptr) return failed("hardware_probe.disk_cannot_read", options.folder, ENOMEM);
  std::memset(buffer.data, 0, buffer.size);
  DiskRead result;
  result.source = target.source;
  std::int64_t done = -ENOSYS;
  double start = 0;
  if (options.use_io_uring) {
    Ring ring;
    if (ring.ready) {
      result.method = "io_uring";
      start = now_seconds();
      done = read_with_ring(ring.ring, target.file.fd, target.bytes, start + options.read_seconds, buffer);
    }
  }
  if (done < 0) {
    result.method = "pread";
    start = now_seconds();
    done = read_with_threads(target.file.fd, target.bytes, start + options.read_seconds, buffer);
  }
  const double seconds = now_seconds() - start;
  if (done <= 0)
    return failed("hardware_probe.disk_cannot_read", options.existing.value_or(options.folder),
                  done == 0 ? EIO : static_cast<int>(-done));
  if (!target.direct) result.method += ", buffered";
  result.bytes = static_cast<Bytes>(done);
  result.bytes_per_second = static_cast<double>(done) / std::max(seconds, 1e-9);
  return result;
}

std::optional<Path> find_large_file(const Path& folder, Bytes min_bytes) {
  constexpr int kMaxEntries = 4000, kMaxDepth = 6;
  std::error_code error;
  using Walker = std::filesystem::recursive_directory_iterator;
  Walker entry(folder, std::filesystem::directory_options::skip_permission_denied, error);
  for (int seen = 0; !error && entry != Walker() && seen < kMaxEntries; entry.increment(error), ++seen) {
    if (entry.depth() >= kMaxDepth) entry.disable_recursion_pending();
    std::error_code ignored;
    if (entry->is_symlink(ignored) || !entry->is_regular_file(ignored)) continue;
    const auto size = entry->file_size(ignored);
    if (!ignored && size >= min_bytes && ::access(entry->path().c_str(), R_OK) == 0) return entry->path();
  }
  return std::nullopt;
}

}  // namespace fathom::hardware
