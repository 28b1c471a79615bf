// Errors and memory of the emulated CUDA runtime.
#include "emulator/runtime.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

namespace fathom::emulator {
namespace {

thread_local cudaError_t last = cudaSuccess;
cudaError_t reason = cudaSuccess;

struct ErrorText {
  cudaError_t error;
  const char *name, *text;
};
constexpr ErrorText kErrors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorInvalidMemcpyDirection, "cudaErrorInvalidMemcpyDirection", "invalid copy direction for memcpy"},
    {cudaErrorMissingConfiguration, "cudaErrorMissingConfiguration", "__global__ function call is not configured"},
    {cudaErrorInvalidDeviceFunction, "cudaErrorInvalidDeviceFunction", "invalid device function"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidKernelImage, "cudaErrorInvalidKernelImage", "device kernel image is invalid"},
    {cudaErrorNoKernelImageForDevice, "cudaErrorNoKernelImageForDevice",
     "no kernel image is available for execution on the device"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress", "an illegal memory access was encountered"},
    {cudaErrorLaunchOutOfResources, "cudaErrorLaunchOutOfResources", "too many resources requested for launch"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorCooperativeLaunchTooLarge, "cudaErrorCooperativeLaunchTooLarge", "too many blocks in cooperative launch"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {cudaErrorStreamCaptureMerge, "cudaErrorStreamCaptureMerge",
     "operation would result in a merge of separate capture sequences"},
    {cudaErrorStreamCaptureUnmatched, "cudaErrorStreamCaptureUnmatched",
     "capture was not ended in the same stream as it began"},
    {cudaErrorStreamCaptureUnjoined, "cudaErrorStreamCaptureUnjoined", "capturing stream has unjoined work"},
    {cudaErrorStreamCaptureIsolation, "cudaErrorStreamCaptureIsolation",
     "dependency created on uncaptured work in another stream"},
    {cudaErrorStreamCaptureImplicit, "cudaErrorStreamCaptureImplicit",
     "operation would make the legacy stream depend on a capturing blocking stream"},
    {cudaErrorCapturedEvent, "cudaErrorCapturedEvent",
     "operation not permitted on an event last recorded in a capturing stream"},
    {cudaErrorInvalidClusterSize, "cudaErrorInvalidClusterSize", "cluster misconfiguration"},
    {cudaErrorUnknown, "cudaErrorUnknown", "unknown error"},
};
const ErrorText& text_of(cudaError_t error) {
  for (const ErrorText& known : kErrors)
    if (known.error == error) return known;
  return text_of(cudaErrorUnknown);
}

cudaError_t take(void** to, std::size_t bytes, Place place) {
  if (to == nullptr) return cudaErrorInvalidValue;
  *to = nullptr;
  if (bytes == 0) return cudaSuccess;
  *to = allocate(bytes, place);
  return *to != nullptr ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t give_back(void* data, Place place) {
  if (data == nullptr) return cudaSuccess;
  const auto found = find(data);
  const bool own = found && found->data == data && found->place == place;
  return own && release(found->data) ? cudaSuccess : cudaErrorInvalidValue;
}

/// Whether a copy is one that unified addressing allows. The caller holds lock().
cudaError_t check_copy(const void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  if (bytes == 0) return cudaSuccess;
  if (to == nullptr || from == nullptr) return cudaErrorInvalidValue;
  const Whereabouts there = whereabouts(to, bytes), here = whereabouts(from, bytes);
  if ((there.registered && !there.inside) || (here.registered && !here.inside)) return cudaErrorInvalidValue;
  bool fits = false;
  switch (kind) {
    case cudaMemcpyHostToHost:
      fits = !there.on_device() && !here.on_device();
      break;
    case cudaMemcpyHostToDevice:
      fits = there.registered && !here.on_device();
      break;
    case cudaMemcpyDeviceToHost:
      fits = !there.on_device() && here.registered;
      break;
    case cudaMemcpyDeviceToDevice:
      fits = there.registered && here.registered;
      break;
    case cudaMemcpyDefault:
      fits = true;
      break;
    default:
      return cudaErrorInvalidMemcpyDirection;
  }
  return fits ? cudaSuccess : cudaErrorInvalidValue;
}
cudaError_t check_fill(const void* data, std::size_t bytes) {
  return bytes == 0 || whereabouts(data, bytes).inside ? cudaSuccess : cudaErrorInvalidValue;
}

/// Asked for now and done now or later: memory may have gone by then, so it is checked both times.
template <class Check, class Move>
cudaError_t submit_checked(cudaStream_t stream, Check check, Move move) {
  if (const cudaError_t error = call(check); error != cudaSuccess) return error;
  return submit(stream, [check, move] {
    const std::lock_guard held(lock());
    if (const cudaError_t error = check(); error != cudaSuccess) return error;
    move();
    return cudaSuccess;
  });
}

}  // namespace

cudaError_t note(cudaError_t error) {
  if (error != cudaSuccess && error != cudaErrorNotReady) last = error;
  return error;
}
cudaError_t stopped() { return reason; }
cudaError_t stop(const Fault& fault) {
  std::fprintf(stderr, "Fathom's emulated GPU stopped: %s\n", fault.what());
  if (reason == cudaSuccess)
    reason = std::strstr(fault.what(), "address") != nullptr ? cudaErrorIllegalAddress : cudaErrorLaunchFailure;
  return reason;
}

Whereabouts whereabouts(const void* data, std::uint64_t bytes) {
  const auto found = find(data);
  if (!found) return {};
  const auto offset = static_cast<std::uint64_t>(static_cast<const std::byte*>(data) - found->data);
  return {
      .registered = true, .inside = offset <= found->bytes && bytes <= found->bytes - offset, .place = found->place};
}

}  // namespace fathom::emulator

using namespace fathom::emulator;  // NOLINT: what follows is theirs, under CUDA's names

extern "C" {

cudaError_t cudaGetLastError() {
  const std::lock_guard held(lock());
  const cudaError_t error = stopped() != cudaSuccess ? stopped() : last;
  last = cudaSuccess;
  return error;
}
cudaError_t cudaPeekAtLastError() {
  const std::lock_guard held(lock());
  return stopped() != cudaSuccess ? stopped() : last;
}
const char* cudaGetErrorName(cudaError_t error) { return text_of(error).name; }
const char* cudaGetErrorString(cudaError_t error) { return text_of(error).text; }

// ---------------------------------------------------------------- memory

cudaError_t cudaMalloc(void** data, std::size_t bytes) {
  return call([&] { return take(data, bytes, Place::device); });
}
cudaError_t cudaHostAlloc(void** data, std::size_t bytes, unsigned flags) {
  constexpr unsigned kFlags = cudaHostAllocPortable | cudaHostAllocMapped | cudaHostAllocWriteCombined;
  return call([&] { return (flags & ~kFlags) != 0 ? cudaErrorInvalidValue : take(data, bytes, Place::host); });
}
cudaError_t cudaMallocHost(void** data, std::size_t bytes) { return cudaHostAlloc(data, bytes, cudaHostAllocDefault); }
cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned flags) {
  return call([&] {
    if (device == nullptr || flags != 0 || !whereabouts(host, 1).registered || whereabouts(host, 1).on_device())
      return cudaErrorInvalidValue;
    *device = host;
    return cudaSuccess;
  });
}
cudaError_t cudaFree(void* data) {
  return call([&] { return give_back(data, Place::device); });
}
cudaError_t cudaFreeHost(void* data) {
  return call([&] { return give_back(data, Place::host); });
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  return submit_checked(
      stream, [=] { return check_copy(to, from, bytes, kind); },
      [=] {
        if (bytes > 0) std::memmove(to, from, bytes);
      });
}
cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}

cudaError_t cudaMemsetAsync(void* data, int value, std::size_t bytes, cudaStream_t stream) {
  return submit_checked(
      stream, [=] { return check_fill(data, bytes); },
      [=] {
        if (bytes > 0) std::memset(data, value, bytes);
      });
}
cudaError_t cudaMemset(void* data, int value, std::size_t bytes) {
  return cudaMemsetAsync(data, value, bytes, nullptr);
}

cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  return call([&] {
    if (free == nullptr || total == nullptr) return cudaErrorInvalidValue;
    *total = limits().memory;
    *free = limits().memory - std::min(limits().memory, allocated_on_device());
    return cudaSuccess;
  });
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* to, const void* data) {
  return call([&] {
    if (to == nullptr) return cudaErrorInvalidValue;
    *to = {};
    const Whereabouts where = whereabouts(data, 1);
    to->type = where.on_device()  ? cudaMemoryTypeDevice
               : where.registered ? cudaMemoryTypeHost
                                  : cudaMemoryTypeUnregistered;
    to->device = where.registered ? 0 : cudaInvalidDeviceId;
    to->devicePointer = where.registered ? const_cast<void*>(data) : nullptr;
    to->hostPointer = where.on_device() ? nullptr : const_cast<void*>(data);
    return cudaSuccess;
  });
}

}  // extern "C"
