// One safetensors file: its header read and checked in full before anything in it is believed.
// Format: 8 bytes little-endian length N, N bytes of JSON {"name": {"dtype", "shape", "data_offsets"}, …,
// "__metadata__": {…}}, then the data, which the offsets must cover exactly, without holes or overlaps.
#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/dtype.h"
#include "base/files.h"
#include "base/result.h"
#include "base/units.h"

namespace fathom::weights {

inline constexpr int kMaxTensorRank = 8;
/// A header larger than this is refused: the largest published one is a hundred times smaller.
inline constexpr Bytes kMaxHeaderBytes = 512 * kMiB;

/// One tensor of a file. `begin`, `end` are bytes from the start of the file.
struct FileTensor {
  std::string name;            // valid UTF-8, unique in its file
  std::string type;            // as the file names it: "BF16"
  std::optional<DType> dtype;  // nullopt: a type that Fathom does not know; its size is then unchecked
  std::array<std::int64_t, kMaxTensorRank> shape{};  // the first `rank`
  int rank = 0;
  Bytes begin = 0, end = 0;

  Bytes bytes() const { return end - begin; }
  std::span<const std::int64_t> dims() const { return {shape.data(), static_cast<std::size_t>(rank)}; }
};
/// "[128, 7168]".
std::string shape_text(std::span<const std::int64_t> shape);

/// What a header says. Tensors are in the order of their data.
struct SafetensorsHeader {
  std::vector<FileTensor> tensors;
  std::vector<std::pair<std::string, std::string>> metadata;
};

/// Reads the JSON of a header that is followed by `data_bytes` of data starting at byte `data_begin`. `what` names the
/// file in errors. Time is n log n in the number of tensors whatever the header says. Errors: not such JSON, names that
/// repeat or are not UTF-8, shapes that overflow or disagree with their bytes, data outside the file, overlapping, or
/// with holes.
Result<SafetensorsHeader> parse_safetensors_header(std::string_view json, Bytes data_begin, Bytes data_bytes,
                                                   std::string_view what);

/// An opened file: the header is in memory, the data is not. Immutable.
class SafetensorsFile {
 public:
  static Result<SafetensorsFile> open(const Path& path);
  const Path& path() const { return path_; }
  Bytes bytes() const { return bytes_; }
  std::span<const FileTensor> tensors() const { return header_.tensors; }
  std::span<const std::pair<std::string, std::string>> metadata() const { return header_.metadata; }

 private:
  Path path_;
  Bytes bytes_ = 0;
  SafetensorsHeader header_;
};

/// An open descriptor, closed on every way out.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Descriptor();
  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

}  // namespace fathom::weights
