// What the emulated device says of itself, and the driver's function that describes tensors to the copy engine.
#include <cuda.h>

#include <cstring>
#include <new>

#include "emulator/runtime.h"

namespace fathom::emulator {
namespace {

constexpr int kVersion = 13000, kMajor = 9, kMinor = 0;
constexpr int kL2Bytes = 50 << 20, kRegisters = 65536, kWarp = 32, kMostBlocks = 0x7fffffff, kMostLines = 65535;
constexpr char kBus[] = "0000:00:00.0";  // a host's own bridge: no other GPU is there

cudaDeviceProp properties() {
  const Limits& own = limits();
  cudaDeviceProp p{};
  std::strncpy(p.name, "Fathom's emulated GPU", sizeof p.name - 1);
  p.totalGlobalMem = own.memory;
  p.sharedMemPerBlock = kPlainShared;
  p.sharedMemPerBlockOptin = own.shared_of_block;
  p.sharedMemPerMultiprocessor = own.shared_of_multiprocessor;
  p.reservedSharedMemPerBlock = own.shared_reserved;
  p.regsPerBlock = p.regsPerMultiprocessor = kRegisters;
  p.warpSize = kWarp;
  p.maxThreadsPerBlock = own.threads_of_block;
  p.maxThreadsPerMultiProcessor = own.threads_of_multiprocessor;
  p.maxBlocksPerMultiProcessor = own.blocks_of_multiprocessor;
  p.maxThreadsDim[0] = p.maxThreadsDim[1] = own.threads_of_block;
  p.maxThreadsDim[2] = 64;
  p.maxGridSize[0] = kMostBlocks;
  p.maxGridSize[1] = p.maxGridSize[2] = kMostLines;
  p.totalConstMem = 65536;
  p.memPitch = 0x7fffffff;
  p.major = kMajor;
  p.minor = kMinor;
  p.multiProcessorCount = own.multiprocessors;
  p.l2CacheSize = kL2Bytes;
  p.canMapHostMemory = p.unifiedAddressing = p.canUseHostPointerForRegisteredMem = 1;
  p.cooperativeLaunch = p.clusterLaunch = 1;
  p.globalL1CacheSupported = p.localL1CacheSupported = 1;
  p.hostNumaId = -1;
  return p;
}

/// Those that somebody here has a use for.
cudaError_t attribute_of(int& value, cudaDeviceAttr attribute) {
  const cudaDeviceProp p = properties();
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      value = p.multiProcessorCount;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      value = p.major;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      value = p.minor;
      break;
    case cudaDevAttrMaxThreadsPerBlock:
      value = p.maxThreadsPerBlock;
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      value = p.maxThreadsPerMultiProcessor;
      break;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
      value = p.maxBlocksPerMultiProcessor;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      value = static_cast<int>(p.sharedMemPerBlock);
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      value = static_cast<int>(p.sharedMemPerBlockOptin);
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      value = static_cast<int>(p.sharedMemPerMultiprocessor);
      break;
    case cudaDevAttrReservedSharedMemoryPerBlock:
      value = static_cast<int>(p.reservedSharedMemPerBlock);
      break;
    case cudaDevAttrMaxRegistersPerBlock:
      value = p.regsPerBlock;
      break;
    case cudaDevAttrWarpSize:
      value = p.warpSize;
      break;
    case cudaDevAttrL2CacheSize:
      value = p.l2CacheSize;
      break;
    case cudaDevAttrCooperativeLaunch:
      value = p.cooperativeLaunch;
      break;
    case cudaDevAttrClusterLaunch:
      value = p.clusterLaunch;
      break;
    case cudaDevAttrUnifiedAddressing:
      value = p.unifiedAddressing;
      break;
    case cudaDevAttrCanMapHostMemory:
      value = p.canMapHostMemory;
      break;
    case cudaDevAttrPageableMemoryAccess:
      value = p.pageableMemoryAccess;
      break;
    default:
      return cudaErrorInvalidValue;
  }
  return cudaSuccess;
}

/// Bytes of an element; 0: of the packed types, which the emulator has not.
unsigned element_bytes(CUtensorMapDataType type) {
  switch (type) {
    case CU_TENSOR_MAP_DATA_TYPE_UINT8:
      return 1;
    case CU_TENSOR_MAP_DATA_TYPE_UINT16:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
    case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16:
      return 2;
    case CU_TENSOR_MAP_DATA_TYPE_UINT32:
    case CU_TENSOR_MAP_DATA_TYPE_INT32:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT32:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT32_FTZ:
    case CU_TENSOR_MAP_DATA_TYPE_TFLOAT32:
    case CU_TENSOR_MAP_DATA_TYPE_TFLOAT32_FTZ:
      return 4;
    case CU_TENSOR_MAP_DATA_TYPE_UINT64:
    case CU_TENSOR_MAP_DATA_TYPE_INT64:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT64:
      return 8;
    default:
      return 0;
  }
}
/// Of boxes' swizzles; -1: those that the emulator has not.
int swizzle_bytes(CUtensorMapSwizzle swizzle) {
  switch (swizzle) {
    case CU_TENSOR_MAP_SWIZZLE_NONE:
      return 0;
    case CU_TENSOR_MAP_SWIZZLE_32B:
      return 32;
    case CU_TENSOR_MAP_SWIZZLE_64B:
      return 64;
    case CU_TENSOR_MAP_SWIZZLE_128B:
      return 128;
    default:
      return -1;
  }
}

CUresult encode_tiled(CUtensorMap* to, CUtensorMapDataType type, cuuint32_t rank, void* data, const cuuint64_t* dims,
                      const cuuint64_t* strides, const cuuint32_t* box, const cuuint32_t* element_strides,
                      CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,
                      CUtensorMapFloatOOBfill fill) {
  constexpr std::uintptr_t kMapAlignment = 64;
  constexpr cuuint64_t kAlignment = 16, kMostStride = cuuint64_t{1} << 40, kMostSize = cuuint64_t{1} << 32;
  constexpr cuuint32_t kMostBox = 256, kMostRank = 5;
  const unsigned bytes = element_bytes(type);
  const int span = swizzle_bytes(swizzle);
  const auto aligned = [](const void* at, std::uintptr_t to_what) {
    return at != nullptr && reinterpret_cast<std::uintptr_t>(at) % to_what == 0;
  };
  if (!aligned(to, kMapAlignment) || !aligned(data, kAlignment)) return CUDA_ERROR_INVALID_VALUE;
  if (bytes == 0 || span < 0 || rank < 1 || rank > kMostRank) return CUDA_ERROR_INVALID_VALUE;
  if (dims == nullptr || (strides == nullptr && rank > 1) || box == nullptr || element_strides == nullptr)
    return CUDA_ERROR_INVALID_VALUE;
  if (interleave != CU_TENSOR_MAP_INTERLEAVE_NONE || promotion > CU_TENSOR_MAP_L2_PROMOTION_L2_256B)
    return CUDA_ERROR_INVALID_VALUE;
  // What a box has outside of its tensor is zero here.
  if (fill != CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) return CUDA_ERROR_NOT_SUPPORTED;
  TensorMap map;
  map.rank = static_cast<std::uint8_t>(rank);
  map.element_bytes = static_cast<std::uint8_t>(bytes);
  map.swizzle = static_cast<std::uint8_t>(span);
  map.data = static_cast<std::byte*>(data);
  for (cuuint32_t i = 0; i < rank; ++i) {
    if (dims[i] == 0 || dims[i] > kMostSize || box[i] == 0 || box[i] > kMostBox || element_strides[i] != 1)
      return CUDA_ERROR_INVALID_VALUE;
    map.dims[i] = dims[i];
    map.box[i] = static_cast<std::uint16_t>(box[i]);
    if (i + 1 == rank) break;
    if (strides[i] % kAlignment != 0 || strides[i] >= kMostStride) return CUDA_ERROR_INVALID_VALUE;
    map.strides[i] = strides[i];
  }
  const cuuint32_t inner = box[0] * bytes;
  if (inner % kAlignment != 0 || (span > 0 && inner > static_cast<cuuint32_t>(span))) return CUDA_ERROR_INVALID_VALUE;
  *to = {};
  ::new (static_cast<void*>(to)) TensorMap(map);
  return CUDA_SUCCESS;
}

cudaError_t check_device(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }

}  // namespace
}  // namespace fathom::emulator

using namespace fathom::emulator;  // NOLINT: what follows is theirs, under CUDA's names

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
  if (count == nullptr) return note(cudaErrorInvalidValue);
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  if (device == nullptr) return note(cudaErrorInvalidValue);
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  return call([&] { return check_device(device); });
}
cudaError_t cudaDeviceSynchronize() {
  return call([] { return anything_captures() ? cudaErrorStreamCaptureUnsupported : cudaSuccess; });
}
cudaError_t cudaDriverGetVersion(int* version) {
  if (version == nullptr) return note(cudaErrorInvalidValue);
  *version = kVersion;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* to, int device) {
  return call([&] {
    if (to == nullptr) return cudaErrorInvalidValue;
    if (const cudaError_t error = check_device(device); error != cudaSuccess) return error;
    *to = properties();
    return cudaSuccess;
  });
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  return call([&] {
    if (value == nullptr) return cudaErrorInvalidValue;
    const cudaError_t error = check_device(device);
    return error != cudaSuccess ? error : attribute_of(*value, attribute);
  });
}
cudaError_t cudaDeviceGetPCIBusId(char* bus, int bytes, int device) {
  return call([&] {
    if (bus == nullptr || bytes < static_cast<int>(sizeof kBus)) return cudaErrorInvalidValue;
    if (const cudaError_t error = check_device(device); error != cudaSuccess) return error;
    std::memcpy(bus, kBus, sizeof kBus);
    return cudaSuccess;
  });
}

// ---------------------------------------------------------------- other devices and processes: there are none

cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer) {
  return call([&] {
    if (can == nullptr) return cudaErrorInvalidValue;
    if (check_device(device) != cudaSuccess || check_device(peer) != cudaSuccess) return cudaErrorInvalidDevice;
    *can = 0;
    return cudaSuccess;
  });
}
cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) {
  return call([] { return cudaErrorNotSupported; });
}
cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t*, void*) {
  return call([] { return cudaErrorNotSupported; });
}
cudaError_t cudaIpcOpenMemHandle(void**, cudaIpcMemHandle_t, unsigned) {
  return call([] { return cudaErrorNotSupported; });
}
cudaError_t cudaIpcCloseMemHandle(void*) {
  return call([] { return cudaErrorNotSupported; });
}

// ---------------------------------------------------------------- the driver

cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** to, unsigned version, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  return call([&] {
    if (symbol == nullptr || to == nullptr) return cudaErrorInvalidValue;
    constexpr unsigned kSince = 12000;
    const bool known = std::strcmp(symbol, "cuTensorMapEncodeTiled") == 0;
    *to = known && version >= kSince ? reinterpret_cast<void*>(&encode_tiled) : nullptr;
    const cudaDriverEntryPointQueryResult answer = *to != nullptr ? cudaDriverEntryPointSuccess
                                                   : known        ? cudaDriverEntryPointVersionNotSufficent
                                                                  : cudaDriverEntryPointSymbolNotFound;
    if (result != nullptr) *result = answer;
    return cudaSuccess;
  });
}

}  // extern "C"
