// CopyStream: weights that come from host memory while ops run.
#pragma once
#include <cuda_runtime_api.h>

#include <array>

#include "backends/cuda/context.h"
#include "backends/cuda/lost.h"
#include "tensor/backend.h"

namespace fathom::cuda {

/// Copies from pinned memory on a stream of their own, in turns with the ops that read what they brought.
class CopyStream {
 public:
  CopyStream() = default;
  CopyStream(const CopyStream&) = delete;
  CopyStream& operator=(const CopyStream&) = delete;
  ~CopyStream() {
    int device = 0;
    if (stream_ == nullptr || (cudaGetDevice(&device) == cudaSuccess && is_lost(device))) return;
    cudaStreamSynchronize(stream_);
    for (const Place& place : places_)
      for (const cudaEvent_t event : {place.here, place.left})
        if (event != nullptr) cudaEventDestroy(event);
    cudaStreamDestroy(stream_);
  }

  void fetch(Context& context, int place, std::byte* to, const std::byte* from, Bytes bytes) {
    if (stream_ == nullptr) context.note(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    Place& at = of(context, place);
    if (at.was_left) context.note(cudaStreamWaitEvent(stream_, at.left, 0));
    context.note(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_));
    context.note(cudaEventRecord(at.here, stream_));
  }
  void await(Context& context, int place) {
    context.note(cudaStreamWaitEvent(context.stream, of(context, place).here, 0));
  }
  void leave(Context& context, int place) {
    Place& at = of(context, place);
    context.note(cudaEventRecord(at.left, context.stream));
    at.was_left = true;
  }

 private:
  struct Place {
    cudaEvent_t here = nullptr, left = nullptr;
    bool was_left = false;
  };
  Place& of(Context& context, int place) {
    Place& at = places_[static_cast<std::size_t>(place)];
    for (cudaEvent_t* event : {&at.here, &at.left})
      if (*event == nullptr) context.note(cudaEventCreateWithFlags(event, cudaEventDisableTiming));
    return at;
  }
  cudaStream_t stream_ = nullptr;
  std::array<Place, tensor::kMostPlaces> places_{};
};

}  // namespace fathom::cuda
