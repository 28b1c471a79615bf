// Recordings: passes of one shape as CUDA graphs.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <map>

#include "backends/cuda/context.h"
#include "backends/cuda/stages.h"

namespace fathom::cuda {

/// What passes launched, by key, to be launched again at the price of one call. A key's first pass runs as it is
/// (libraries prepare themselves then), the second is recorded, and later ones are that record.
class Recordings {
 public:
  Recordings() = default;
  Recordings(const Recordings&) = delete;
  Recordings& operator=(const Recordings&) = delete;
  ~Recordings() { clear(); }
  void clear() {
    for (auto& [key, graph] : graphs_)
      if (graph != nullptr) cudaGraphExecDestroy(graph);
    graphs_.clear();
  }

  /// Whether this pass was launched from its record.
  bool replay(Context& context, std::uint64_t key) {
    const auto found = graphs_.find(key);
    if (found == graphs_.end() || found->second == nullptr) return false;
    context.note(cudaGraphLaunch(found->second, context.stream));
    return true;
  }
  /// Whether the next pass of this key is to be recorded; the first is not.
  bool seen(Context& context, std::uint64_t key) {
    if (graphs_.size() >= kMost || context.stages->full()) {
      clear();
      context.stages->forget();
    }
    return !graphs_.emplace(key, nullptr).second;
  }
  /// Records what `pass` launches, and launches it. False: the device failed; half of it is done.
  bool record(Context& context, std::uint64_t key, const std::function<void()>& pass) {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t ready = nullptr;
    context.note(cudaStreamBeginCapture(context.stream, cudaStreamCaptureModeRelaxed));
    pass();
    context.note(cudaStreamEndCapture(context.stream, &graph));
    context.stages->upload(context);
    if (graph != nullptr) context.note(cudaGraphInstantiate(&ready, graph, 0));
    if (graph != nullptr) cudaGraphDestroy(graph);
    graphs_[key] = ready;
    return replay(context, key) && context.error == cudaSuccess;
  }

 private:
  static constexpr std::size_t kMost = 256;
  std::map<std::uint64_t, cudaGraphExec_t> graphs_;
};

}  // namespace fathom::cuda
