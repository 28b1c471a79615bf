// Nccl: NVIDIA's collectives, found when the program runs. Its header is not needed: what is used of it is declared
// here (NCCL 2, whose numbers are part of its interface).
#pragma once
#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <memory>
#include <string>

#include "base/result.h"

namespace fathom::cuda {

using NcclComm = struct ncclComm*;
struct NcclId {
  std::array<char, 128> bytes;
};
enum class NcclType : int { kU8 = 1, kI32 = 2, kF32 = 7 };

/// The library's entry points; every one answers 0 when it is well.
struct Nccl {
  static constexpr int kSum = 0, kInProgress = 7;
  int (*get_unique_id)(NcclId*) = nullptr;
  int (*comm_init_rank)(NcclComm*, int ranks, NcclId, int rank) = nullptr;
  int (*comm_destroy)(NcclComm) = nullptr;
  int (*comm_abort)(NcclComm) = nullptr;
  int (*comm_get_async_error)(NcclComm, int*) = nullptr;
  const char* (*get_error_string)(int) = nullptr;
  int (*all_reduce)(const void*, void*, std::size_t, NcclType, int, NcclComm, cudaStream_t) = nullptr;
  int (*all_gather)(const void*, void*, std::size_t, NcclType, NcclComm, cudaStream_t) = nullptr;
  int (*reduce_scatter)(const void*, void*, std::size_t, NcclType, int, NcclComm, cudaStream_t) = nullptr;
  int (*send)(const void*, std::size_t, NcclType, int, NcclComm, cudaStream_t) = nullptr;
  int (*receive)(void*, std::size_t, NcclType, int, NcclComm, cudaStream_t) = nullptr;
  int (*group_start)() = nullptr;
  int (*group_end)() = nullptr;

  /// Loaded once a process. NVLink multicast is kept off (NCCL_NVLS_ENABLE=0): sums then have one order. Errors:
  /// "cuda.no_nccl".
  static Result<const Nccl*> load();
  tl::unexpected<Error> failed(int code, int gpu) const {
    return fail_environment("cuda.nccl_failed", {{"error", get_error_string(code)}, {"gpu", std::to_string(gpu)}});
  }
};

}  // namespace fathom::cuda
