// Stager: pieces of data made on the host, put into memory that only the device can touch, by way of a few pinned
// buffers.
#pragma once
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "tensor/backend.h"

namespace fathom::weights {

inline constexpr int kMostStaged = 16;  // pieces at once that are worth their pinned memory

class Stager {
 public:
  /// Room for `pieces` pieces of up to `piece_bytes` at once. Errors: those of allocate_buffer (pinned memory).
  static Result<std::unique_ptr<Stager>> make(tensor::Backend& backend, int pieces, Bytes piece_bytes);
  /// `fill` writes the piece; it then lies at `to`. From any thread: pieces are filled side by side and copied one
  /// after the other.
  Status put(std::byte* to, Bytes bytes, const std::function<Status(std::span<std::byte> piece)>& fill);

 private:
  explicit Stager(tensor::Backend& backend) : backend_(backend) {}
  tensor::Backend& backend_;
  std::vector<std::unique_ptr<tensor::Buffer>> buffers_;
  std::mutex mutex_, copying_;
  std::condition_variable given_back_;
  std::vector<tensor::Buffer*> free_;  // under mutex_
};

}  // namespace fathom::weights
