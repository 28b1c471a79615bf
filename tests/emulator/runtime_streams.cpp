// Streams, events and graphs of the emulated CUDA runtime. A stream's work is done when it is asked for; while the
// stream captures it is kept instead, with what it comes after, and a graph does it in the order in which it was asked
// for.
#include <algorithm>
#include <chrono>
#include <map>
#include <set>

#include "emulator/runtime.h"

namespace fathom::emulator {
namespace {

struct Node {
  Work work;
  std::vector<std::size_t> after;  // nodes before it
};
using Nodes = std::vector<Node>;
using Ends = std::set<std::size_t>;  // the nodes that come last in a stream, or came last when an event was recorded

/// Streams that capture together: the one that began, and those that wait for its events.
struct Capture {
  cudaStream_t origin = nullptr;
  bool broken = false, ended = false;
  Nodes nodes;
  std::map<cudaStream_t, Ends> ends;
};

}  // namespace
}  // namespace fathom::emulator

// CUDA declares these and leaves them to whoever implements it.
struct CUstream_st {
  bool waits_for_legacy = true;
  std::shared_ptr<fathom::emulator::Capture> capture;  // while it lasts
};
struct CUevent_st {
  bool times = true, recorded = false;
  std::chrono::steady_clock::time_point at{};
  std::shared_ptr<fathom::emulator::Capture> capture;  // that it was last recorded in
  fathom::emulator::Ends ends;
};
struct CUgraph_st {
  std::shared_ptr<const fathom::emulator::Nodes> nodes;
};
struct CUgraphExec_st {
  std::shared_ptr<const fathom::emulator::Nodes> nodes;
};

namespace fathom::emulator {
namespace {

/// What handles stand for, so that one that was destroyed is known.
template <class Object>
class Alive {
 public:
  Object* add(Object object) {
    auto made = std::make_unique<Object>(std::move(object));
    Object* handle = made.get();
    objects_.emplace(handle, std::move(made));
    return handle;
  }
  bool has(Object* handle) const { return objects_.contains(handle); }
  bool remove(Object* handle) { return objects_.erase(handle) > 0; }
  auto begin() const { return objects_.begin(); }
  auto end() const { return objects_.end(); }

 private:
  std::map<Object*, std::unique_ptr<Object>> objects_;
};

/// Never destroyed: other objects may use CUDA as the process ends.
struct State {
  Alive<CUstream_st> streams;
  Alive<CUevent_st> events;
  Alive<CUgraph_st> graphs;
  Alive<CUgraphExec_st> ready_graphs;
  CUstream_st legacy;
};
State& state() {
  static State& all = *new State;
  return all;
}

bool is_legacy(cudaStream_t stream) {
  return stream == nullptr || stream == cudaStreamLegacy || stream == cudaStreamPerThread;
}
/// Null: there is no such stream.
CUstream_st* find_stream(cudaStream_t stream) {
  if (is_legacy(stream)) return &state().legacy;
  return state().streams.has(stream) ? stream : nullptr;
}
/// What the default stream does waits for all streams that are not cudaStreamNonBlocking; none of those may capture
/// meanwhile.
bool waits_for_capture(const CUstream_st* stream) {
  if (stream != &state().legacy) return false;
  return std::any_of(state().streams.begin(), state().streams.end(),
                     [](const auto& one) { return one.second->waits_for_legacy && one.second->capture != nullptr; });
}
/// Of calls that a capturing stream does not bear: they break what it captures.
cudaError_t refuse_in_capture(CUstream_st& stream) {
  stream.capture->broken = true;
  return cudaErrorStreamCaptureUnsupported;
}

cudaError_t keep(CUstream_st& stream, Work work) {
  Capture& capture = *stream.capture;
  if (capture.broken) return cudaErrorStreamCaptureInvalidated;
  Ends& ends = capture.ends[&stream];
  capture.nodes.push_back({std::move(work), {ends.begin(), ends.end()}});
  ends = {capture.nodes.size() - 1};
  return cudaSuccess;
}

/// Whether all nodes come before what the stream did last.
bool joined(const Capture& capture) {
  std::vector<bool> seen(capture.nodes.size());
  if (const auto ends = capture.ends.find(capture.origin); ends != capture.ends.end())
    for (const std::size_t node : ends->second) seen[node] = true;
  for (std::size_t i = capture.nodes.size(); i-- > 0;) {
    if (!seen[i]) return false;  // those that come after it would have said so
    for (const std::size_t before : capture.nodes[i].after) seen[before] = true;
  }
  return true;
}

void end(Capture& capture) {
  capture.ended = true;
  for (const auto& [handle, stream] : state().streams)
    if (stream->capture.get() == &capture) stream->capture.reset();
}

cudaError_t wait_in_stream(CUstream_st& stream, const CUevent_st& event) {
  if (event.capture == nullptr) {
    if (stream.capture == nullptr || !event.recorded) return cudaSuccess;
    stream.capture->broken = true;
    return cudaErrorStreamCaptureIsolation;
  }
  if (event.capture->ended) return cudaErrorCapturedEvent;
  if (&stream == &state().legacy) return cudaErrorStreamCaptureImplicit;
  if (event.capture->broken) return cudaErrorStreamCaptureInvalidated;
  if (stream.capture != nullptr && stream.capture != event.capture) {
    stream.capture->broken = event.capture->broken = true;
    return cudaErrorStreamCaptureMerge;
  }
  stream.capture = event.capture;
  stream.capture->ends[&stream].insert(event.ends.begin(), event.ends.end());
  return cudaSuccess;
}

/// The answer of a call that asks how far an event is: work is done at once.
cudaError_t progress(cudaEvent_t event) {
  return call([&] {
    if (!state().events.has(event)) return cudaErrorInvalidResourceHandle;
    return event->capture != nullptr ? cudaErrorCapturedEvent : cudaSuccess;
  });
}
cudaError_t progress(cudaStream_t handle) {
  return call([&] {
    CUstream_st* stream = find_stream(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    if (stream->capture != nullptr) return refuse_in_capture(*stream);
    return waits_for_capture(stream) ? cudaErrorStreamCaptureImplicit : cudaSuccess;
  });
}

cudaError_t create(cudaEvent_t* event, unsigned flags) {
  return call([&] {
    if (event == nullptr || (flags & ~(cudaEventBlockingSync | cudaEventDisableTiming)) != 0)
      return cudaErrorInvalidValue;
    *event = state().events.add({.times = (flags & cudaEventDisableTiming) == 0, .capture = {}, .ends = {}});
    return cudaSuccess;
  });
}
cudaError_t create(cudaStream_t* stream, unsigned flags) {
  return call([&] {
    if (stream == nullptr || flags > cudaStreamNonBlocking) return cudaErrorInvalidValue;
    *stream = state().streams.add({.waits_for_legacy = flags != cudaStreamNonBlocking, .capture = {}});
    return cudaSuccess;
  });
}

cudaError_t run_all(const Nodes& nodes) {
  for (const Node& node : nodes)
    if (const cudaError_t error = node.work(); error != cudaSuccess) return error;
  return cudaSuccess;
}

}  // namespace

bool anything_captures() {
  return std::any_of(state().streams.begin(), state().streams.end(),
                     [](const auto& one) { return one.second->capture != nullptr; });
}

cudaError_t submit(cudaStream_t handle, Work work) {
  bool kept = false;
  const cudaError_t error = call([&] {
    CUstream_st* stream = find_stream(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    if (waits_for_capture(stream)) return cudaErrorStreamCaptureImplicit;
    kept = stream->capture != nullptr;
    return kept ? keep(*stream, std::move(work)) : cudaSuccess;
  });
  return kept || error != cudaSuccess ? error : note(work());
}

}  // namespace fathom::emulator

using namespace fathom::emulator;  // NOLINT: what follows is theirs, under CUDA's names

extern "C" {

// ---------------------------------------------------------------- streams

cudaError_t cudaStreamCreate(cudaStream_t* stream) { return create(stream, cudaStreamDefault); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) { return create(stream, flags); }
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  return call([&] {
    if (!state().streams.has(stream)) return cudaErrorInvalidResourceHandle;
    if (const std::shared_ptr<Capture> capture = stream->capture; capture != nullptr) {
      capture->broken = true;
      if (capture->origin == stream) end(*capture);
    }
    state().streams.remove(stream);
    return cudaSuccess;
  });
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return progress(stream); }
cudaError_t cudaStreamQuery(cudaStream_t stream) { return progress(stream); }
cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned flags) {
  return call([&] {
    CUstream_st* stream = find_stream(handle);
    if (stream == nullptr || !state().events.has(event)) return cudaErrorInvalidResourceHandle;
    return flags != cudaEventWaitDefault ? cudaErrorNotSupported : wait_in_stream(*stream, *event);
  });
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  if (function == nullptr) return note(cudaErrorInvalidValue);
  return submit(stream, [function, data] {
    {
      const std::lock_guard held(lock());
      if (stopped() != cudaSuccess) return stopped();
    }
    function(data);
    return cudaSuccess;
  });
}

// ---------------------------------------------------------------- events

cudaError_t cudaEventCreate(cudaEvent_t* event) { return create(event, cudaEventDefault); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) { return create(event, flags); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  return call([&] { return state().events.remove(event) ? cudaSuccess : cudaErrorInvalidResourceHandle; });
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle) {
  return call([&] {
    CUstream_st* stream = find_stream(handle);
    if (stream == nullptr || !state().events.has(event)) return cudaErrorInvalidResourceHandle;
    if (waits_for_capture(stream)) return cudaErrorStreamCaptureImplicit;
    if (stream->capture != nullptr && stream->capture->broken) return cudaErrorStreamCaptureInvalidated;
    event->recorded = true;
    event->at = std::chrono::steady_clock::now();
    event->capture = stream->capture;
    event->ends = stream->capture != nullptr ? stream->capture->ends[stream] : Ends{};
    return cudaSuccess;
  });
}
cudaError_t cudaEventQuery(cudaEvent_t event) { return progress(event); }
cudaError_t cudaEventSynchronize(cudaEvent_t event) { return progress(event); }
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  return call([&] {
    if (milliseconds == nullptr) return cudaErrorInvalidValue;
    for (const cudaEvent_t event : {begin, end}) {
      if (!state().events.has(event) || !event->recorded || !event->times) return cudaErrorInvalidResourceHandle;
      if (event->capture != nullptr) return cudaErrorCapturedEvent;
    }
    *milliseconds = std::chrono::duration<float, std::milli>(end->at - begin->at).count();
    return cudaSuccess;
  });
}

// ---------------------------------------------------------------- graphs

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  return call([&] {
    if (is_legacy(stream)) return cudaErrorStreamCaptureUnsupported;
    if (!state().streams.has(stream)) return cudaErrorInvalidResourceHandle;
    if (mode != cudaStreamCaptureModeRelaxed) return cudaErrorNotSupported;  // the others forbid calls of other threads
    if (stream->capture != nullptr) return cudaErrorStreamCaptureUnsupported;
    stream->capture = std::make_shared<Capture>();
    stream->capture->origin = stream;
    return cudaSuccess;
  });
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  return call([&] {
    if (graph == nullptr) return cudaErrorInvalidValue;
    *graph = nullptr;
    if (is_legacy(stream) || !state().streams.has(stream)) return cudaErrorInvalidResourceHandle;
    const std::shared_ptr<Capture> capture = stream->capture;
    if (capture == nullptr) return cudaErrorStreamCaptureUnmatched;
    if (capture->origin != stream) {
      capture->broken = true;
      return cudaErrorStreamCaptureUnmatched;
    }
    end(*capture);
    if (capture->broken) return cudaErrorStreamCaptureInvalidated;
    if (!joined(*capture)) return cudaErrorStreamCaptureUnjoined;
    *graph = state().graphs.add({std::make_shared<const Nodes>(std::move(capture->nodes))});
    return cudaSuccess;
  });
}
cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
  return call([&] {
    const CUstream_st* stream = find_stream(handle);
    if (status == nullptr) return cudaErrorInvalidValue;
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    if (waits_for_capture(stream)) return cudaErrorStreamCaptureImplicit;
    const bool captures = stream->capture != nullptr;
    *status = !captures                 ? cudaStreamCaptureStatusNone
              : stream->capture->broken ? cudaStreamCaptureStatusInvalidated
                                        : cudaStreamCaptureStatusActive;
    return cudaSuccess;
  });
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* ready, cudaGraph_t graph, unsigned long long flags) {
  return call([&] {
    if (ready == nullptr || !state().graphs.has(graph)) return cudaErrorInvalidValue;
    if ((flags & ~static_cast<unsigned long long>(cudaGraphInstantiateFlagUseNodePriority)) != 0)
      return cudaErrorNotSupported;
    *ready = state().ready_graphs.add({graph->nodes});
    return cudaSuccess;
  });
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t ready, cudaStream_t stream) {
  std::shared_ptr<const Nodes> nodes;
  const cudaError_t error = call([&] {
    if (!state().ready_graphs.has(ready)) return cudaErrorInvalidValue;
    nodes = ready->nodes;
    return cudaSuccess;
  });
  return error != cudaSuccess ? error : submit(stream, [nodes] { return run_all(*nodes); });
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  return call([&] { return state().graphs.remove(graph) ? cudaSuccess : cudaErrorInvalidValue; });
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t ready) {
  return call([&] { return state().ready_graphs.remove(ready) ? cudaSuccess : cudaErrorInvalidValue; });
}

}  // extern "C"
