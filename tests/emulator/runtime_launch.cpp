// Kernels of the emulated CUDA runtime: those that the program's objects register, and their launches.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <optional>
#include <set>
#include <string>

#include "emulator/fatbin.h"
#include "emulator/runtime.h"

namespace fathom::emulator {
namespace {

/// A translation unit with kernels. Its PTX is read when the first of them is wanted.
struct Unit {
  const void* fat_binary = nullptr;
  std::unique_ptr<Module> module;
};

}  // namespace
}  // namespace fathom::emulator

// CUDA declares it and leaves it to whoever implements it: a kernel that was registered.
struct CUkern_st {
  fathom::emulator::Unit* unit = nullptr;
  std::string name;
  const fathom::emulator::Kernel* kernel = nullptr;  // once it was wanted
  std::optional<std::uint32_t> most_dynamic;         // bytes of shared memory that it was allowed
  bool large_clusters = false;
};

namespace fathom::emulator {
namespace {

struct Configuration {
  dim3 grid, block;
  std::size_t shared = 0;
  cudaStream_t stream = nullptr;
};
thread_local std::vector<Configuration> configurations;  // of launches by <<<>>> that this thread has begun

/// Never destroyed: other objects may launch as the process ends.
struct Registry {
  std::map<const Unit*, std::unique_ptr<Unit>> units;
  std::map<const void*, CUkern_st> kernels;  // by the host's function
  std::set<const void*> handles;             // to those
};
Registry& registry() {
  static Registry& all = *new Registry;
  return all;
}

/// The kernel that a host function or a handle stands for. The caller holds lock().
CUkern_st* find_kernel(const void* function) {
  auto& kernels = registry().kernels;
  if (const auto found = kernels.find(function); found != kernels.end()) return &found->second;
  return registry().handles.contains(function) ? static_cast<CUkern_st*>(const_cast<void*>(function)) : nullptr;
}

/// Reads it where that has not happened. The caller holds lock().
cudaError_t read(CUkern_st& kernel) {
  if (kernel.kernel != nullptr) return cudaSuccess;
  try {
    Unit& unit = *kernel.unit;
    if (unit.module == nullptr) unit.module = std::make_unique<Module>(ptx_of(unit.fat_binary));
    kernel.kernel = unit.module->kernel(kernel.name);
    if (kernel.kernel != nullptr) return cudaSuccess;
    std::fprintf(stderr, "Fathom's emulated GPU: no kernel %s in the PTX of its unit\n", kernel.name.c_str());
    return cudaErrorInvalidDeviceFunction;
  } catch (const Fault& fault) {
    std::fprintf(stderr, "Fathom's emulated GPU cannot read kernel %s: %s\n", kernel.name.c_str(), fault.what());
    return kernel.unit->module == nullptr ? cudaErrorNoKernelImageForDevice : cudaErrorInvalidKernelImage;
  }
}

/// `body` with the kernel, read.
template <class Body>
cudaError_t with_kernel(const void* function, Body&& body) {
  return call([&] {
    CUkern_st* kernel = find_kernel(function);
    if (kernel == nullptr) return cudaErrorInvalidDeviceFunction;
    if (const cudaError_t error = read(*kernel); error != cudaSuccess) return error;
    return body(*kernel);
  });
}

std::uint32_t most_dynamic(const CUkern_st& kernel) {
  return kernel.most_dynamic.value_or(kPlainShared - std::min(kPlainShared, traits(*kernel.kernel).shared_bytes));
}
cudaError_t check_cluster(const CUkern_st& kernel, const Dim3& grid, const Dim3& cluster) {
  if (cluster.x == 0 || cluster.y == 0 || cluster.z == 0 || cluster.x > kLargestCluster ||
      cluster.y > kLargestCluster || cluster.z > kLargestCluster)
    return cudaErrorInvalidClusterSize;
  const bool divides = grid.x % cluster.x == 0 && grid.y % cluster.y == 0 && grid.z % cluster.z == 0;
  return divides && cluster.count() <= (kernel.large_clusters ? kLargestCluster : kPortableCluster)
             ? cudaSuccess
             : cudaErrorInvalidClusterSize;
}
/// What a device refuses before it starts.
cudaError_t check(const CUkern_st& kernel, const Launch& launch, std::size_t shared, bool cooperative) {
  constexpr unsigned kMostLines = 65535;
  const Dim3 &grid = launch.grid, &block = launch.block;
  const auto most_threads = static_cast<unsigned>(limits().threads_of_block);
  for (const unsigned size : {grid.x, grid.y, grid.z, block.x, block.y, block.z})
    if (size == 0) return cudaErrorInvalidConfiguration;
  if (grid.x > 0x7fffffffu || grid.y > kMostLines || grid.z > kMostLines) return cudaErrorInvalidConfiguration;
  if (block.x > most_threads || block.y > most_threads || block.z > 64 || block.count() > most_threads)
    return cudaErrorInvalidConfiguration;
  const std::uint32_t bound = traits(*kernel.kernel).most_threads;
  if ((bound > 0 && block.count() > bound) || shared > most_dynamic(kernel)) return cudaErrorInvalidValue;
  if (const cudaError_t error = check_cluster(kernel, grid, launch.cluster); error != cudaSuccess) return error;
  if (!cooperative) return cudaSuccess;
  const auto places = static_cast<std::uint64_t>(
                          blocks_at_once(*kernel.kernel, static_cast<int>(block.count()), launch.dynamic_shared)) *
                      static_cast<std::uint64_t>(limits().multiprocessors);
  return std::uint64_t{grid.x} * grid.y * grid.z <= places ? cudaSuccess : cudaErrorCooperativeLaunchTooLarge;
}

std::vector<std::byte> copy_parameters(const KernelTraits& of, void** arguments) {
  std::vector<std::byte> parameters(of.parameter_bytes);
  for (std::size_t i = 0; i < of.offsets.size(); ++i)
    std::memcpy(parameters.data() + of.offsets[i], arguments[i], of.sizes[i]);
  return parameters;
}

Dim3 size_of(const dim3& size) { return {size.x, size.y, size.z}; }

struct Wanted {
  Configuration at;
  Dim3 cluster;
  bool cooperative = false;
};
/// Arguments are copied now, and what a device refuses is refused now; the launch may come later.
cudaError_t launch_kernel(const void* function, const Wanted& wanted, void** arguments) {
  auto launch = std::make_shared<Launch>();
  const cudaError_t error = with_kernel(function, [&](CUkern_st& kernel) {
    const KernelTraits& of = traits(*kernel.kernel);
    *launch = {.kernel = kernel.kernel,
               .grid = size_of(wanted.at.grid),
               .block = size_of(wanted.at.block),
               .cluster = wanted.cluster,
               .dynamic_shared = static_cast<std::uint32_t>(wanted.at.shared),
               .parameters = {}};
    if (const cudaError_t refused = check(kernel, *launch, wanted.at.shared, wanted.cooperative);
        refused != cudaSuccess)
      return refused;
    if (arguments == nullptr && !of.offsets.empty()) return cudaErrorInvalidValue;
    launch->parameters = copy_parameters(of, arguments);
    return cudaSuccess;
  });
  if (error != cudaSuccess) return error;
  return submit(wanted.at.stream, [launch] {
    const std::lock_guard held(lock());
    if (stopped() != cudaSuccess) return stopped();
    try {
      run(*launch);
    } catch (const Fault& fault) {
      return stop(fault);
    }
    return cudaSuccess;
  });
}

/// What a launch is asked for with attributes. Those that only tell a device how to be faster have no effect.
cudaError_t read_configuration(const cudaLaunchConfig_t& config, Wanted& wanted) {
  wanted.at = {config.gridDim, config.blockDim, config.dynamicSmemBytes, config.stream};
  if (config.numAttrs > 0 && config.attrs == nullptr) return cudaErrorInvalidValue;
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config.attrs[i];
    switch (attribute.id) {
      case cudaLaunchAttributeClusterDimension:
        wanted.cluster = {attribute.val.clusterDim.x, attribute.val.clusterDim.y, attribute.val.clusterDim.z};
        break;
      case cudaLaunchAttributeCooperative:
        wanted.cooperative = attribute.val.cooperative != 0;
        break;
      case cudaLaunchAttributeIgnore:
      case cudaLaunchAttributeProgrammaticStreamSerialization:
      case cudaLaunchAttributeClusterSchedulingPolicyPreference:
      case cudaLaunchAttributePriority:
      case cudaLaunchAttributePreferredSharedMemoryCarveout:
        break;
      default:
        return cudaErrorNotSupported;
    }
  }
  return cudaSuccess;
}

cudaError_t set_attribute(CUkern_st& kernel, cudaFuncAttribute attribute, int value) {
  switch (attribute) {
    case cudaFuncAttributeMaxDynamicSharedMemorySize:
      if (value < 0 || std::uint64_t{traits(*kernel.kernel).shared_bytes} + static_cast<std::uint64_t>(value) >
                           limits().shared_of_block)
        return cudaErrorInvalidValue;
      kernel.most_dynamic = static_cast<std::uint32_t>(value);
      return cudaSuccess;
    case cudaFuncAttributePreferredSharedMemoryCarveout:
      return value < -1 || value > 100 ? cudaErrorInvalidValue : cudaSuccess;
    case cudaFuncAttributeNonPortableClusterSizeAllowed:
      if (value != 0 && value != 1) return cudaErrorInvalidValue;
      kernel.large_clusters = value == 1;
      return cudaSuccess;
    default:
      return cudaErrorNotSupported;
  }
}

/// Clusters of eight blocks or fewer have a place on every device of this kind; of larger ones, what the
/// multiprocessors hold.
cudaError_t count_clusters(int& clusters, const CUkern_st& kernel, const Wanted& wanted) {
  if (wanted.at.block.x == 0 || wanted.at.block.y == 0 || wanted.at.block.z == 0) return cudaErrorInvalidConfiguration;
  if (const cudaError_t error = check_cluster(kernel, wanted.cluster, wanted.cluster); error != cudaSuccess)
    return error;
  const auto size = static_cast<int>(wanted.cluster.count());
  const int blocks = blocks_at_once(*kernel.kernel, static_cast<int>(size_of(wanted.at.block).count()),
                                    static_cast<std::uint32_t>(wanted.at.shared));
  clusters = blocks * limits().multiprocessors / size;
  if (blocks > 0 && clusters == 0 && size <= static_cast<int>(kPortableCluster)) clusters = 1;
  return cudaSuccess;
}

}  // namespace
}  // namespace fathom::emulator

using namespace fathom::emulator;  // NOLINT: what follows is theirs, under CUDA's names

extern "C" {

// ---------------------------------------------------------------- what nvcc's host code calls

void** __cudaRegisterFatBinary(void* fat_binary) {
  const std::lock_guard held(lock());
  auto unit = std::make_unique<Unit>();
  unit->fat_binary = fat_binary;
  Unit* const handle = unit.get();
  registry().units.emplace(handle, std::move(unit));
  return reinterpret_cast<void**>(handle);
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void** handle) {
  const std::lock_guard held(lock());
  const auto* const unit = reinterpret_cast<const Unit*>(handle);
  std::erase_if(registry().kernels,
                [&](const auto& one) { return one.second.unit == unit && registry().handles.erase(&one.second) > 0; });
  registry().units.erase(unit);
}
void __cudaRegisterFunction(void** handle, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
  const std::lock_guard held(lock());
  CUkern_st& kernel = registry().kernels[host];
  kernel.unit = reinterpret_cast<Unit*>(handle);
  kernel.name = name;
  registry().handles.insert(&kernel);
}
// Variables of a device are made by its unit's text; nothing here reads or writes them from the host.
void __cudaRegisterVar(void**, char*, char*, const char*, int, std::size_t, int, int) {}
char __cudaInitModule(void**) { return 1; }

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, std::size_t shared, cudaStream_t stream) {
  configurations.push_back({grid, block, shared, stream});
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, std::size_t* shared, void* stream) {
  if (configurations.empty()) return note(cudaErrorMissingConfiguration);
  const Configuration at = configurations.back();
  configurations.pop_back();
  *grid = at.grid, *block = at.block, *shared = at.shared;
  *static_cast<cudaStream_t*>(stream) = at.stream;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* to, const void* host) {
  const std::lock_guard held(lock());
  *to = find_kernel(host);
  return *to != nullptr ? cudaSuccess : note(cudaErrorInvalidDeviceFunction);
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, std::size_t shared,
                               cudaStream_t stream) {
  return launch_kernel(kernel, {{grid, block, shared, stream}, {}}, arguments);
}

// ---------------------------------------------------------------- launches

cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments, std::size_t shared,
                             cudaStream_t stream) {
  return launch_kernel(function, {{grid, block, shared, stream}, {}}, arguments);
}
cudaError_t cudaLaunchCooperativeKernel(const void* function, dim3 grid, dim3 block, void** arguments,
                                        std::size_t shared, cudaStream_t stream) {
  return launch_kernel(function, {.at = {grid, block, shared, stream}, .cluster = {}, .cooperative = true}, arguments);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function, void** arguments) {
  Wanted wanted;
  if (config == nullptr) return note(cudaErrorInvalidValue);
  if (const cudaError_t error = read_configuration(*config, wanted); error != cudaSuccess) return note(error);
  return launch_kernel(function, wanted, arguments);
}
cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  return with_kernel(function, [&](CUkern_st& kernel) { return set_attribute(kernel, attribute, value); });
}

// ---------------------------------------------------------------- occupancy

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* function, int threads,
                                                                   std::size_t shared, unsigned flags) {
  return with_kernel(function, [&](CUkern_st& kernel) {
    if (blocks == nullptr || threads <= 0 || shared > ~std::uint32_t{0} || flags > cudaOccupancyDisableCachingOverride)
      return cudaErrorInvalidValue;
    *blocks = blocks_at_once(*kernel.kernel, threads, static_cast<std::uint32_t>(shared));
    return cudaSuccess;
  });
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* function, int threads,
                                                          std::size_t shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, threads, shared,
                                                                cudaOccupancyDefault);
}
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void* function, const cudaLaunchConfig_t* config) {
  return with_kernel(function, [&](CUkern_st& kernel) {
    Wanted wanted;
    if (clusters == nullptr || config == nullptr || config->dynamicSmemBytes > ~std::uint32_t{0})
      return cudaErrorInvalidValue;
    const cudaError_t error = read_configuration(*config, wanted);
    return error != cudaSuccess ? error : count_clusters(*clusters, kernel, wanted);
  });
}

}  // extern "C"
