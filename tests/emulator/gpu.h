// A Hopper made of arithmetic: it runs the PTX of this program's kernels on the host, so that the cuda backend is
// tested where there is no GPU. runtime.cpp puts CUDA's runtime in front of it, blas.cpp cuBLASLt. It shows whether
// kernels compute what they should, whether they wait for what they need, and whether they stay within their memory:
// warps take turns in an order drawn from a seed, copies arrive at a random time or as late as they may. It says
// nothing of speed. One thread at a time uses it (lock()).
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace fathom::emulator {

/// What a device would have stopped for: an address that is nobody's, a wait that never ends, an instruction that is
/// not known here. what() names the kernel, the block, the warp and the instruction.
class Fault : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
  unsigned count() const { return x * y * z; }
};

struct Kernel;

/// What a kernel's text says of itself.
struct KernelTraits {
  std::vector<std::uint32_t> offsets, sizes;  // of its parameters, in bytes
  std::uint32_t parameter_bytes = 0;
  std::uint32_t shared_bytes = 0;  // static
  std::uint32_t most_threads = 0;  // of a block, by its launch bounds; 0: not said
};

/// The kernels of one translation unit.
class Module {
 public:
  /// `ptx` is copied. Kernels are read when they are first asked for.
  explicit Module(std::string ptx);
  ~Module();
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;
  /// Null where there is no such kernel. Throws Fault where the text cannot be read.
  const Kernel* kernel(const std::string& name);

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};
const KernelTraits& traits(const Kernel& kernel);

struct Launch {
  const Kernel* kernel = nullptr;
  Dim3 grid, block, cluster;
  std::uint32_t dynamic_shared = 0;
  std::vector<std::byte> parameters;  // parameter_bytes of the kernel's
};
/// Runs to its end. Throws Fault.
void run(const Launch& launch);
/// Whether a race in shared memory is a fault (races.h). At first: as FATHOM_EMULATED_RACES says (1).
void look_for_races(bool looks);

/// What the device says of itself.
struct Limits {
  int multiprocessors = 132;  // FATHOM_EMULATED_SMS; kernels choose by it
  int threads_of_multiprocessor = 2048, threads_of_block = 1024, blocks_of_multiprocessor = 32;
  std::uint32_t shared_of_multiprocessor = 228 * 1024, shared_of_block = 227 * 1024, shared_reserved = 1024;
  std::uint64_t memory = std::uint64_t{8} << 30;
};
const Limits& limits();
/// Blocks of a kernel that fit a multiprocessor. Registers are not counted.
int blocks_at_once(const Kernel& kernel, int threads, std::uint32_t dynamic_shared);

/// Memory that kernels may use: everything else is a fault.
enum class Place { device, host };
struct Allocation {
  std::byte* data = nullptr;
  std::uint64_t bytes = 0;
  Place place = Place::device;
};
/// Of whole pages; its first 16 MiB are filled with bytes that make large or undefined numbers, the rest is zero. Null
/// where `limits().memory` is spent.
std::byte* allocate(std::uint64_t bytes, Place place);
bool release(std::byte* data);  // false: it was not allocated
std::optional<Allocation> find(const void* address);
std::uint64_t allocated_on_device();

/// Held by whoever calls run(), allocate(), release() or find().
std::recursive_mutex& lock();

/// What cuTensorMapEncodeTiled writes, in the 128 bytes of a CUtensorMap.
struct TensorMap {
  static constexpr std::uint32_t kMagic = 0x70614d54;
  std::uint32_t magic = kMagic;
  std::uint8_t rank = 0, element_bytes = 0, swizzle = 0 /* bytes of its span: 0, 32, 64, 128 */;
  std::byte* data = nullptr;
  std::uint64_t dims[5]{};     // elements, the fastest first
  std::uint64_t strides[4]{};  // bytes, of dims 1 to 4
  std::uint16_t box[5]{};      // elements
};
static_assert(sizeof(TensorMap) <= 128);

}  // namespace fathom::emulator
