// What the tests of this room share: a folder that goes away, memory for weights, small tables, hand-made safetensors
// bytes.
#pragma once
#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "model/weight_table.h"
#include "tensor/backend.h"
#include "weights/checkpoint_writer.h"

namespace fathom::weights::test {

inline std::string slurp(const Path& path);

class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "fathom-weights-XXXXXX").string();
    path_ = ::mkdtemp(name.data());
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  const Path& path() const { return path_; }
  Path operator/(std::string_view name) const { return path_ / name; }
  std::size_t entries() const {
    return static_cast<std::size_t>(
        std::distance(std::filesystem::directory_iterator(path_), std::filesystem::directory_iterator()));
  }

 private:
  Path path_;
};

inline void spit(const Path& path, std::string_view text) {
  std::ofstream(path, std::ios::binary).write(text.data(), static_cast<std::streamsize>(text.size()));
}
inline std::string slurp(const Path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// Only memory, and exactly as much as was asked for.
class MemoryBackend : public tensor::Backend {
 public:
  class Block : public tensor::Buffer {
   public:
    explicit Block(Bytes bytes)
        : bytes_(bytes), data_(static_cast<std::byte*>(std::aligned_alloc(4096, bytes / 4096 * 4096 + 4096))) {
      std::memset(data_, 0x5a, bytes);
    }
    ~Block() override { std::free(data_); }
    std::byte* data() const override { return data_; }
    Bytes bytes() const override { return bytes_; }

   private:
    Bytes bytes_;
    std::byte* data_;
  };
  std::string_view name() const override { return "memory"; }
  std::string description() const override { return "memory"; }
  tensor::Ops& ops() override { std::abort(); }
  tensor::GradOps* grad_ops() override { return nullptr; }
  tensor::ActivationMemory& activations() override { std::abort(); }
  Result<std::unique_ptr<tensor::Buffer>> allocate_buffer(Bytes bytes, tensor::Placement) override {
    allocated += bytes;
    if (bytes > limit) return fail_environment("weights.no_memory");
    return std::make_unique<Block>(bytes);
  }
  Bytes workspace_bytes() const override { return 0; }
  Status synchronize() override { return {}; }

  Bytes allocated = 0, limit = ~Bytes{0};
};

/// A file with this header text and these data.
inline std::string file_bytes(std::string_view header, std::string_view data) {
  const std::uint64_t length = header.size();
  std::string out(8, '\0');
  std::memcpy(out.data(), &length, 8);
  return out + std::string(header) + std::string(data);
}

inline model::WeightEntry matrix(std::string name, std::int64_t rows, std::int64_t cols, tensor::WeightFormat native,
                                 model::WeightClass cls = model::WeightClass::kAttention) {
  return {.pattern = std::move(name),
          .cls = cls,
          .layer = 0,
          .rows = rows,
          .cols = cols,
          .full_rows = rows,
          .full_cols = cols,
          .native = native};
}
inline model::WeightEntry vector(std::string name, std::int64_t size, tensor::WeightFormat native,
                                 model::WeightClass cls = model::WeightClass::kNorm) {
  model::WeightEntry entry = matrix(std::move(name), 1, size, native, cls);
  entry.vector = true;
  return entry;
}

/// Writes one tensor after the other; bytes must fit.
inline void write_checkpoint(const Path& folder, const std::vector<TensorSpec>& tensors,
                             const std::vector<std::string>& data, WriteOptions options = {}) {
  auto writer = CheckpointWriter::create(folder, tensors, options);
  ASSERT_TRUE(writer) << error_text(writer.error());
  for (std::size_t i = 0; i < tensors.size(); ++i) ASSERT_TRUE(writer->write(i, 0, std::as_bytes(std::span(data[i]))));
  const Status done = writer->commit();
  ASSERT_TRUE(done) << error_text(done.error());
}

template <class T>
std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

/// The key of what failed, or "ok".
template <class T>
std::string outcome(const Result<T>& result) {
  return result ? "ok" : result.error().key;
}
inline std::string outcome(const Status& status) { return status ? "ok" : status.error().key; }

}  // namespace fathom::weights::test
