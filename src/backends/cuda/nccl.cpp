#include "backends/cuda/nccl.h"

#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <mutex>

namespace fathom::cuda {

Result<const Nccl*> Nccl::load() {
  static std::mutex mutex;
  static Nccl nccl;
  static bool loaded = false;
  const std::lock_guard lock(mutex);
  if (loaded) return &nccl;
  ::setenv("NCCL_NVLS_ENABLE", "0", 1);
  void* library = ::dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
  bool whole = library != nullptr;
  const auto find = [&](auto& function, const char* name) {
    void* symbol = library == nullptr ? nullptr : ::dlsym(library, name);
    std::memcpy(&function, &symbol, sizeof symbol);
    whole = whole && symbol != nullptr;
  };
  find(nccl.get_unique_id, "ncclGetUniqueId");
  find(nccl.comm_init_rank, "ncclCommInitRank");
  find(nccl.comm_destroy, "ncclCommDestroy");
  find(nccl.comm_abort, "ncclCommAbort");
  find(nccl.comm_get_async_error, "ncclCommGetAsyncError");
  find(nccl.get_error_string, "ncclGetErrorString");
  find(nccl.all_reduce, "ncclAllReduce");
  find(nccl.all_gather, "ncclAllGather");
  find(nccl.reduce_scatter, "ncclReduceScatter");
  find(nccl.send, "ncclSend");
  find(nccl.receive, "ncclRecv");
  find(nccl.group_start, "ncclGroupStart");
  find(nccl.group_end, "ncclGroupEnd");
  if (!whole) return fail_environment("cuda.no_nccl");
  loaded = true;
  return &nccl;
}

}  // namespace fathom::cuda
