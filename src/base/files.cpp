#include "base/files.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "base/embedded.h"
#include "base/units.h"

namespace fathom {
namespace {

// Closes on every way out.
struct Descriptor {
  int fd = -1;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

Status open_regular(const Path& path, Descriptor& file, std::uint64_t& size) {
  file.fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file.fd < 0) return fail("base.cannot_open", {{"path", path.string()}, {"reason", errno_text(errno)}});
  struct stat info = {};
  if (::fstat(file.fd, &info) != 0)
    return fail("base.cannot_open", {{"path", path.string()}, {"reason", errno_text(errno)}});
  if (!S_ISREG(info.st_mode)) return fail("base.not_a_file", {{"path", path.string()}});
  size = static_cast<std::uint64_t>(info.st_size);
  return {};
}

}  // namespace

std::string errno_text(int error_number) {
  char buffer[256] = {};
  return ::strerror_r(error_number, buffer, sizeof buffer);
}

Result<std::string> read_file(const Path& path, std::uint64_t max_bytes) {
  Descriptor file;
  std::uint64_t size = 0;
  FATHOM_TRY_VOID(open_regular(path, file, size));
  if (size > max_bytes)
    return fail("base.file_too_large",
                {{"path", path.string()}, {"size", format_bytes(size)}, {"limit", format_bytes(max_bytes)}});
  std::string contents(size, '\0');
  for (std::size_t done = 0; done < contents.size();) {
    const ssize_t n = ::read(file.fd, contents.data() + done, contents.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_environment("base.cannot_read", {{"path", path.string()}, {"reason", errno_text(errno)}});
    if (n == 0) {
      contents.resize(done);
      break;
    }
    done += static_cast<std::size_t>(n);
  }
  return contents;
}

Status write_file_atomic(const Path& path, std::string_view contents) {
  const Path temporary = path.string() + ".tmp" + std::to_string(::getpid());
  const auto failed = [&](const char* key) {
    const std::string reason = errno_text(errno);
    ::unlink(temporary.c_str());
    return fail_environment(key, {{"path", path.string()}, {"reason", reason}});
  };
  Descriptor file;
  file.fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (file.fd < 0) return failed("base.cannot_write");
  for (std::size_t done = 0; done < contents.size();) {
    const ssize_t n = ::write(file.fd, contents.data() + done, contents.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return failed("base.cannot_write");
    done += static_cast<std::size_t>(n);
  }
  if (::fsync(file.fd) != 0) return failed("base.cannot_write");
  if (::rename(temporary.c_str(), path.c_str()) != 0) return failed("base.cannot_write");
  return {};
}

Result<MappedFile> MappedFile::open(const Path& path) {
  Descriptor file;
  std::uint64_t size = 0;
  FATHOM_TRY_VOID(open_regular(path, file, size));
  MappedFile mapped;
  if (size == 0) return mapped;
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.fd, 0);
  if (data == MAP_FAILED)
    return fail_environment("base.cannot_read", {{"path", path.string()}, {"reason", errno_text(errno)}});
  mapped.data_ = static_cast<const std::byte*>(data);
  mapped.size_ = size;
  return mapped;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

Path user_folder() {
  if (const char* home = std::getenv("FATHOM_HOME"); home != nullptr && *home != '\0') return home;
  if (const char* config = std::getenv("XDG_CONFIG_HOME"); config != nullptr && *config != '\0')
    return Path(config) / "fathom";
  const char* home = std::getenv("HOME");
  return Path(home != nullptr && *home != '\0' ? home : "/") / ".config" / "fathom";
}

std::optional<std::string> data_file(std::string_view relative) {
  if (auto own = read_file(user_folder() / relative, 64 * kMiB)) return std::move(*own);
  if (const auto embedded = embedded_file(relative)) return std::string(*embedded);
  return std::nullopt;
}

}  // namespace fathom
