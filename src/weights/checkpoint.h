// A checkpoint: one safetensors file, or a folder of them with or without an index. Only headers are read.
#pragma once
#include <string_view>
#include <vector>

#include "weights/safetensors.h"

namespace fathom::weights {

inline constexpr std::string_view kIndexName = "model.safetensors.index.json";

/// Where a tensor lies.
struct TensorPlace {
  const SafetensorsFile* file = nullptr;
  const FileTensor* tensor = nullptr;
  explicit operator bool() const { return tensor != nullptr; }
};

/// Immutable after open(); pointers into it stay valid while it lives, also when it is moved.
class Checkpoint {
 public:
  /// `path` is a .safetensors file or a folder. In a folder: the index if there is one (every shard it names must be
  /// there and hold what it says), else model.safetensors, else all numbered shards model-00001-of-0000N.safetensors
  /// (none may be missing), else every .safetensors file but reference.safetensors and adapters. A tensor in two files
  /// is an error unless an index decides.
  static Result<Checkpoint> open(const Path& path);

  const Path& path() const { return path_; }
  std::span<const SafetensorsFile> files() const { return files_; }
  /// Not there: a false place. log n.
  TensorPlace find(std::string_view name) const;
  /// All tensors, sorted by name.
  std::span<const TensorPlace> tensors() const { return places_; }
  Bytes data_bytes() const;

 private:
  Status open_folder();
  Status open_indexed(const Path& index);
  Status open_files(const std::vector<std::string>& names);
  Status gather();
  Status check_twins() const;

  Path path_;
  std::vector<SafetensorsFile> files_;
  std::vector<TensorPlace> places_;
};

/// The weight_map of an index: tensor name -> file name, in the order of the file. File names must be plain names.
Result<std::vector<std::pair<std::string, std::string>>> parse_index(std::string_view json, std::string_view what);

}  // namespace fathom::weights
