// Backend: one implementation of Ops with the memory that goes with it. src/backends/backends.h hands them out by name.
#pragma once
#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/units.h"
#include "tensor/collectives.h"
#include "tensor/grad_ops.h"
#include "tensor/memory.h"
#include "tensor/ops.h"
#include "tensor/transport.h"

namespace fathom::tensor {

/// Memory that a backend can read and write: weights, caches, arenas. On hosts: anonymous pages, huge where the kernel gives
/// them (madvise), zeroed. Freed on destruction. `bytes` is exactly what was asked for.
class Buffer {
 public:
  virtual ~Buffer() = default;
  virtual std::byte* data() const = 0;
  virtual Bytes bytes() const = 0;
};

/// Where a buffer lies. kShared: host and device both read and write it through its address (small tables that every step fills in);
/// on hosts the two are the same.
enum class Placement : std::uint8_t { kDevice, kShared };

struct BackendOptions {
  int threads = 0;                        // 0: as many as this process may use
  DType activation_dtype = DType::f32;    // f64 on reference only
  int device = 0;                         // cuda: number of the GPU, among those that CUDA_VISIBLE_DEVICES leaves
  std::string isa;                        // cpu: "scalar", "avx2", "avx512", "avx512_bf16", "amx"; "": the best here, or FATHOM_ISA
};

/// Random numbers for a synthetic weight, as weights/random.h counts them: elements [first + r · pitch, … + cols) of a stream for each row r.
/// Numbers are mean + factor · (sum of four 16-bit draws - 131070), rounded to f32 after each step and then to `dtype`; with `codes`, a draw of
/// sixteen bits is an index of it, and what stands there is a byte (dtype u8: one a byte of the row).
struct RandomFill {
  std::byte* out = nullptr;              // [rows, cols] dense, of `dtype`
  DType dtype = DType::bf16;             // f32, f16, bf16; u8 with codes
  std::int64_t rows = 0, cols = 0;
  std::uint64_t key = 0, first = 0, pitch = 0;
  float mean = 0, factor = 1;
  std::span<const std::uint8_t> codes;   // 65536, the same memory each time; empty: numbers
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string_view name() const = 0;
  /// For people: "cpu: amx, 2 threads".
  virtual std::string description() const = 0;
  virtual Ops& ops() = 0;
  /// Null when this backend cannot differentiate.
  virtual GradOps* grad_ops() = 0;
  virtual ActivationMemory& activations() = 0;
  /// No memory, or more than the cgroup allows: kEnvironment, naming how much was asked for and how much there is.
  virtual Result<std::unique_ptr<Buffer>> allocate_buffer(Bytes bytes, Placement placement) = 0;
  Result<std::unique_ptr<Buffer>> allocate_buffer(Bytes bytes) { return allocate_buffer(bytes, Placement::kDevice); }
  /// Whether the host may touch kDevice memory. Where it may not, data goes through upload and download.
  virtual bool host_addressable() const { return true; }
  /// Copies, after everything that was launched; both return when the copy is done. A device that fails: kEnvironment.
  virtual Status upload(std::byte* to, std::span<const std::byte> from) {
    std::memcpy(to, from.data(), from.size());
    return {};
  }
  virtual Status download(std::span<std::byte> to, const std::byte* from) {
    std::memcpy(to.data(), from, to.size());
    return {};
  }
  /// Launches this, bit for bit what weights::RandomStream gives. False: not here; it is then made on the host.
  virtual bool fill_random(const RandomFill& fill) {
    static_cast<void>(fill);
    return false;
  }
  /// Bytes of workspace that the backend keeps for kernels, given the widest shapes it was told of; part of every plan.
  virtual Bytes workspace_bytes() const = 0;
  /// Launches a copy from kShared to kDevice memory, in order with ops. What is read is what lies there when the copy runs.
  virtual void copy_in(std::byte* to, const std::byte* from, Bytes bytes) { std::memcpy(to, from, bytes); }
  /// Calls `pass`, which launches ops. A backend that can may record what they launch under `key` (0: never) and, for the same key later,
  /// launch the record without calling `pass`: what the host knows of the pass must be the same then, and what changes lie in kShared
  /// memory. Answers whether `pass` was called.
  virtual Result<bool> run_pass(std::uint64_t key, const std::function<void()>& pass) {
    static_cast<void>(key);
    pass();
    return true;
  }
  /// What this backend's ranks say to each other on its memory; all ranks of the run make it together. `transport` is how their hosts talk.
  /// Collectives are launched in order with ops, and live no longer than the backend.
  virtual Result<std::unique_ptr<Collectives>> make_collectives(std::shared_ptr<Transport> transport, const GroupMembers& members);
  /// For tracing: launches what waits to be joined with others, and marks this moment among what was launched. `opens`: what begins here, for
  /// profilers that show ranges; null where the last one that is open ends.
  virtual void mark(const char* opens);
  /// Waits, and answers when each mark since the last call was reached, in seconds of the host's steady clock. A device that failed: kEnvironment.
  virtual Result<std::vector<double>> take_marks();
  /// Waits for everything that was launched. A device that failed: kEnvironment, what it says of it.
  virtual Status synchronize() = 0;

 private:
  std::vector<double> marks_;
};

}  // namespace fathom::tensor
