// Writes a checkpoint as a stream: all or nothing.
#pragma once
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "weights/safetensors.h"

namespace fathom::weights {

struct TensorSpec {
  std::string name;  // valid UTF-8, unique
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;  // up to kMaxTensorRank

  /// Their product must fit 64 bits.
  Bytes bytes() const;
};

struct WriteOptions {
  Bytes shard_bytes = 5'000'000'000;  // a new file begins before this is passed; a tensor is never split
  bool overwrite = false;             // an existing checkpoint folder is replaced; one that holds other files never is
  std::map<std::string, std::string> metadata = {{"format", "pt"}};
};

/// Makes `folder` with one model.safetensors, or shards and their index. Everything is written into a hidden folder
/// beside it, whose space is reserved at once; commit() puts it on the disk and gives it its name in one step. Whatever
/// happens before that, the folder `folder` is as it was, and the hidden one is removed by the destructor (or, after a
/// kill, by the next create for the same name).
class CheckpointWriter {
 public:
  /// Errors: the folder exists (and is not to be replaced, or holds other files), no such parent, too little space (by
  /// how much).
  static Result<CheckpointWriter> create(const Path& folder, std::vector<TensorSpec> tensors,
                                         const WriteOptions& options = {});
  CheckpointWriter(CheckpointWriter&&) noexcept;
  CheckpointWriter& operator=(CheckpointWriter&&) noexcept;
  ~CheckpointWriter();

  /// Bytes of tensor number `tensor` (of create's list) from `offset` on. Any order, any thread; what is never written
  /// is zero.
  Status write(std::size_t tensor, Bytes offset, std::span<const std::byte> bytes);
  /// A further file of the folder, such as config.json.
  Status add_file(std::string_view name, std::string_view contents);
  Status commit();

  std::size_t files() const;  // .safetensors only
  Bytes file_bytes() const;   // their size, headers included

 private:
  struct State;
  explicit CheckpointWriter(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace fathom::weights
