#include "weights/safetensors.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/strings.h"
#include "weights/json_scanner.h"

namespace fathom::weights {
namespace {

constexpr int kMetadataDepth = 16;

// One header on its way in. The first thing that is wrong is kept as the error; reading stops there.
class HeaderReader {
 public:
  HeaderReader(std::string_view json, Bytes data_begin, Bytes data_bytes, std::string_view what)
      : json_(json), data_begin_(data_begin), data_bytes_(data_bytes), what_(what) {}

  Result<SafetensorsHeader> read() {
    const bool good =
        scan_object(json_, name_,
                    [&](const std::string& name) { return name == "__metadata__" ? metadata() : tensor(name); }) &&
        json_.at_end();
    if (!good) return tl::unexpected(problem_ ? *problem_ : malformed());
    FATHOM_TRY_VOID(check_places());
    FATHOM_TRY_VOID(check_names());
    return std::move(header_);
  }

 private:
  Error malformed() {
    return fail("weights.header_json", {{"file", what_}, {"byte", std::to_string(json_.position())}}).value();
  }
  bool refuse(tl::unexpected<Error> error) {
    problem_ = std::move(error).value();
    return false;
  }

  bool metadata() {
    if (std::exchange(has_metadata_, true))
      return refuse(fail("weights.duplicate_name", {{"file", what_}, {"name", "__metadata__"}}));
    std::string key, value;
    return scan_object(json_, key, [&](const std::string& name) {
      if (!json_.string(value)) return false;
      header_.metadata.emplace_back(name, value);
      return true;
    });
  }

  bool tensor(const std::string& name) {
    FileTensor tensor{.name = name};
    bool has_type = false, has_shape = false, has_place = false;
    const bool good = scan_object(json_, field_, [&](const std::string& key) {
      if (key == "dtype") return !std::exchange(has_type, true) && json_.string(tensor.type);
      if (key == "shape") return !std::exchange(has_shape, true) && shape(tensor);
      if (key == "data_offsets") return !std::exchange(has_place, true) && place(tensor);
      return json_.skip(kMetadataDepth);
    });
    if (!good) return false;
    if (!has_type || !has_shape || !has_place)
      return refuse(fail("weights.header_incomplete", {{"file", what_}, {"name", printable(name)}}));
    tensor.dtype = parse_type(tensor.type);
    if (!check_size(tensor)) return false;
    header_.tensors.push_back(std::move(tensor));
    return true;
  }

  // Only the names that the format defines: parse_dtype also knows ours and torch's.
  static std::optional<DType> parse_type(const std::string& type) {
    const auto dtype = parse_dtype(type);
    return dtype && dtype_safetensors_name(*dtype) == type ? dtype : std::nullopt;
  }

  bool shape(FileTensor& tensor) {
    if (!json_.take('[')) return false;
    if (json_.next_is(']')) return json_.take(']');
    do {
      std::uint64_t dim = 0;
      if (!json_.integer(dim)) return false;
      if (tensor.rank == kMaxTensorRank)
        return refuse(
            fail("weights.rank",
                 {{"file", what_}, {"name", printable(tensor.name)}, {"limit", std::to_string(kMaxTensorRank)}}));
      tensor.shape[static_cast<std::size_t>(tensor.rank++)] = static_cast<std::int64_t>(dim);
    } while (json_.take(','));
    return json_.take(']');
  }

  bool place(FileTensor& tensor) {
    std::uint64_t begin = 0, end = 0;
    if (!json_.take('[') || !json_.integer(begin) || !json_.take(',') || !json_.integer(end) || !json_.take(']'))
      return false;
    if (begin > end || end > data_bytes_)
      return refuse(fail("weights.outside", {{"file", what_},
                                             {"name", printable(tensor.name)},
                                             {"begin", std::to_string(begin)},
                                             {"end", std::to_string(end)},
                                             {"bytes", std::to_string(data_bytes_)}}));
    tensor.begin = data_begin_ + begin;
    tensor.end = data_begin_ + end;
    return true;
  }

  // The product of a shape with a zero in it is zero, however large the rest.
  bool check_size(const FileTensor& tensor) {
    const auto dims = tensor.dims();
    std::uint64_t bytes = 1;
    bool fits = true;
    for (const std::int64_t dim : dims) fits = fits && checked_mul(bytes, static_cast<std::uint64_t>(dim), bytes);
    if (std::find(dims.begin(), dims.end(), 0) != dims.end()) {
      bytes = 0;
      fits = true;
    }
    if (tensor.dtype) fits = fits && checked_mul(bytes, static_cast<std::uint64_t>(dtype_bytes(*tensor.dtype)), bytes);
    if (!fits)
      return refuse(fail("weights.shape_overflow",
                         {{"file", what_}, {"name", printable(tensor.name)}, {"shape", shape_text(dims)}}));
    if (tensor.dtype && bytes != tensor.bytes())
      return refuse(fail("weights.size_mismatch", {{"file", what_},
                                                   {"name", printable(tensor.name)},
                                                   {"shape", shape_text(dims)},
                                                   {"type", tensor.type},
                                                   {"expected", std::to_string(bytes)},
                                                   {"found", std::to_string(tensor.bytes())}}));
    return true;
  }

  Status check_places() {
    auto& tensors = header_.tensors;
    std::sort(tensors.begin(), tensors.end(), [](const FileTensor& a, const FileTensor& b) {
      return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
    });
    Bytes expected = data_begin_;
    const std::string* before = nullptr;
    for (const FileTensor& tensor : tensors) {
      if (tensor.begin < expected)
        return fail("weights.overlap",
                    {{"file", what_}, {"name", printable(tensor.name)}, {"other", printable(*before)}});
      if (tensor.begin > expected)
        return fail(
            "weights.hole",
            {{"file", what_}, {"name", printable(tensor.name)}, {"bytes", std::to_string(tensor.begin - expected)}});
      expected = tensor.end;
      before = &tensor.name;
    }
    if (expected != data_begin_ + data_bytes_)
      return fail("weights.trailing",
                  {{"file", what_}, {"bytes", std::to_string(data_begin_ + data_bytes_ - expected)}});
    return {};
  }

  Status check_names() {
    std::vector<std::string_view> names;
    names.reserve(header_.tensors.size());
    for (const FileTensor& tensor : header_.tensors) names.push_back(tensor.name);
    std::sort(names.begin(), names.end());
    const auto twin = std::adjacent_find(names.begin(), names.end());
    if (twin != names.end()) return fail("weights.duplicate_name", {{"file", what_}, {"name", printable(*twin)}});
    return {};
  }

  JsonScanner json_;
  Bytes data_begin_, data_bytes_;
  std::string what_, name_, field_;
  SafetensorsHeader header_;
  std::optional<Error> problem_;
  bool has_metadata_ = false;
};

Status read_exactly(int fd, char* out, Bytes count, Bytes offset, const std::string& what) {
  for (Bytes done = 0; done < count;) {
    const ssize_t n = ::pread(fd, out + done, count - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_environment("base.cannot_read", {{"path", what}, {"reason", errno_text(errno)}});
    if (n == 0)
      return fail(
          "weights.truncated",
          {{"file", what}, {"bytes", std::to_string(offset + done)}, {"expected", std::to_string(offset + count)}});
    done += static_cast<Bytes>(n);
  }
  return {};
}

}  // namespace

std::string shape_text(std::span<const std::int64_t> shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

Result<SafetensorsHeader> parse_safetensors_header(std::string_view json, Bytes data_begin, Bytes data_bytes,
                                                   std::string_view what) {
  if (!is_valid_utf8(json)) return fail("weights.header_utf8", {{"file", std::string(what)}});
  return HeaderReader(json, data_begin, data_bytes, what).read();
}

Descriptor::~Descriptor() {
  if (fd_ >= 0) ::close(fd_);
}

Result<SafetensorsFile> SafetensorsFile::open(const Path& path) {
  const std::string what = path.string();
  const Descriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  struct stat info = {};
  if (!fd || ::fstat(fd.get(), &info) != 0)
    return fail("base.cannot_open", {{"path", what}, {"reason", errno_text(errno)}});
  if (!S_ISREG(info.st_mode)) return fail("base.not_a_file", {{"path", what}});
  SafetensorsFile file;
  file.path_ = path;
  file.bytes_ = static_cast<Bytes>(info.st_size);
  if (file.bytes_ < 8)
    return fail("weights.truncated", {{"file", what}, {"bytes", std::to_string(file.bytes_)}, {"expected", "8"}});
  std::uint64_t length = 0;
  static_assert(std::endian::native == std::endian::little);
  FATHOM_TRY_VOID(read_exactly(fd.get(), reinterpret_cast<char*>(&length), 8, 0, what));
  if (length > file.bytes_ - 8)
    return fail("weights.header_beyond_file",
                {{"file", what}, {"length", std::to_string(length)}, {"bytes", std::to_string(file.bytes_)}});
  if (length > kMaxHeaderBytes)
    return fail("weights.header_too_long",
                {{"file", what}, {"length", format_bytes(length)}, {"limit", format_bytes(kMaxHeaderBytes)}});
  std::string json(length, '\0');
  FATHOM_TRY_VOID(read_exactly(fd.get(), json.data(), length, 8, what));
  FATHOM_TRY(file.header_, parse_safetensors_header(json, 8 + length, file.bytes_ - 8 - length, what));
  return file;
}

}  // namespace fathom::weights
