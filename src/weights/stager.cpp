#include "weights/stager.h"

namespace fathom::weights {

Result<std::unique_ptr<Stager>> Stager::make(tensor::Backend& backend, int pieces, Bytes piece_bytes) {
  std::unique_ptr<Stager> stager(new Stager(backend));
  for (int i = 0; i < pieces; ++i) {
    FATHOM_TRY(auto buffer, backend.allocate_buffer(piece_bytes, tensor::Placement::kShared));
    stager->free_.push_back(buffer.get());
    stager->buffers_.push_back(std::move(buffer));
  }
  return stager;
}

Status Stager::put(std::byte* to, Bytes bytes, const std::function<Status(std::span<std::byte> piece)>& fill) {
  tensor::Buffer* buffer = nullptr;
  {
    std::unique_lock lock(mutex_);
    given_back_.wait(lock, [&] { return !free_.empty(); });
    buffer = free_.back();
    free_.pop_back();
  }
  FATHOM_CHECK(bytes <= buffer->bytes(), "a piece larger than was said");
  const std::span<std::byte> piece(buffer->data(), bytes);
  Status status = fill(piece);
  if (status) {
    const std::lock_guard lock(copying_);
    status = backend_.upload(to, piece);
  }
  {
    const std::lock_guard lock(mutex_);
    free_.push_back(buffer);
  }
  given_back_.notify_one();
  return status;
}

}  // namespace fathom::weights
