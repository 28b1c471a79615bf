// Backend: one implementation of Ops with the memory that goes with it. src/backends/backends.h hands them out by name.
#pragma once
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/units.h"
#include "tensor/batch.h"
#include "tensor/collectives.h"
#include "tensor/grad_ops.h"
#include "tensor/memory.h"
#include "tensor/ops.h"
#include "tensor/sampling.h"
#include "tensor/transport.h"

namespace fathom::tensor {

/// Memory that a backend can read and write: weights, caches, arenas. On hosts: anonymous pages, huge where the kernel
/// gives them (madvise), zeroed. Freed on destruction. `bytes` is exactly what was asked for.
class Buffer {
 public:
  virtual ~Buffer() = default;
  virtual std::byte* data() const = 0;
  virtual Bytes bytes() const = 0;
};

inline constexpr Bytes kBufferAlignment = 256;
inline constexpr int kMostPlaces = 8;  // for streaming

/// Where a buffer lies. kShared: host and device both read and write it through its address (small tables that every
/// step fills in); on hosts the two are the same.
enum class Placement : std::uint8_t { kDevice, kShared };

/// Of the device's own memory, as its driver tells: free for everybody, and all of it.
struct DeviceMemory {
  Bytes free = 0, total = 0;
};

struct BackendOptions {
  int threads = 0;                      // 0: as many as this process may use
  DType activation_dtype = DType::f32;  // f64 on reference only
  int device = 0;                       // cuda: number of the GPU, among those that CUDA_VISIBLE_DEVICES leaves
  std::string isa;  // cpu: "scalar", "avx2", "avx512", "avx512_bf16", "amx"; "": the best here, or FATHOM_ISA
};

/// Random numbers for a synthetic weight, as weights/random.h counts them: elements [first + r · pitch, … + cols) of a
/// stream for each row r. Numbers are mean + factor · (sum of four 16-bit draws - 131070), rounded to f32 after each
/// step and then to `dtype`; with `codes`, a draw of sixteen bits is an index of it, and what stands there is a byte
/// (dtype u8: one a byte of the row).
struct RandomFill {
  std::byte* out = nullptr;   // [rows, cols] dense, of `dtype`
  DType dtype = DType::bf16;  // f32, f16, bf16; u8 with codes
  std::int64_t rows = 0, cols = 0;
  std::uint64_t key = 0, first = 0, pitch = 0;
  float mean = 0, factor = 1;
  std::span<const std::uint8_t> codes;  // 65536, the same memory each time; empty: numbers
};

/// The tables that a pass reads its tokens from, on the device. Choosing tokens leaves them as the next pass needs them
/// when it goes on with the same sequences: of sequence r one token, the chosen one (0 where there is none), after all
/// that it has, whose logits are wanted.
struct NextPass {
  Sequence* sequences = nullptr;  // [rows]; null: nothing is left
  std::int32_t* ids = nullptr;
  std::int32_t* positions = nullptr;
  std::int32_t* wanted = nullptr;  // rows of logits
};

/// Choosing a token a row of logits (tensor/sampling.h). `asked` is the host's and read at once, `ids` lie in kShared
/// memory, the rest on the device.
struct SampleArgs {
  const float* logits = nullptr;  // [rows, vocabulary]
  std::int64_t rows = 0, vocabulary = 0;
  const SamplingRow* asked = nullptr;  // [rows], on the host
  std::uint32_t* seen = nullptr;  // [.., (vocabulary + 31) / 32] bits, of which rows with a penalty read theirs and add
                                  // what they choose; null: no penalties
  std::int32_t* ids = nullptr;    // [rows]; -1: nothing finite
  NextPass next;
};

inline constexpr int kMoments = 2;  // that a backend remembers

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
  /// Takes one block, of which kDevice buffers are parts from now on, in the order in which they are asked for, while
  /// it lasts. Those end before this backend does, or before the next call. Hosts need none. Errors: those of
  /// allocate_buffer.
  virtual Status reserve(Bytes bytes) {
    static_cast<void>(bytes);
    return {};
  }
  /// What a buffer takes of it.
  static constexpr Bytes reserved_bytes(Bytes bytes) {
    return (bytes + kBufferAlignment - 1) / kBufferAlignment * kBufferAlignment;
  }
  /// Nothing where the device's memory is the host's.
  virtual std::optional<DeviceMemory> device_memory() const { return std::nullopt; }
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
  /// Launches a copy from kShared to kDevice memory, in order with ops. What is read is what lies there when the copy
  /// runs.
  virtual void copy_in(std::byte* to, const std::byte* from, Bytes bytes) { std::memcpy(to, from, bytes); }
  /// The way back. Host memory holds it once synchronize() has returned, or when work of call_host() that was launched
  /// later begins.
  virtual void copy_out(std::byte* to, const std::byte* from, Bytes bytes) { std::memcpy(to, from, bytes); }
  /// Launches a call on a thread of the host, in order with ops. `work` may touch kShared memory alone and may not use
  /// this backend; `data` lives as long as the backend or its last pass that was recorded with it.
  virtual void call_host(void (*work)(void* data), void* data) { work(data); }

  // Streaming: weights come from kShared memory into places of kDevice memory while ops run. A place is a number from 0
  // on, below kMostPlaces.
  /// Launches a copy into a place, which runs beside ops but after those that were called before the last leave(place).
  /// Copies come one after the other.
  virtual void fetch(int place, std::byte* to, const std::byte* from, Bytes bytes) {
    static_cast<void>(place);
    std::memcpy(to, from, bytes);
  }
  /// Ops that are called from now on begin when the last fetch into `place` has ended.
  virtual void await(int place) { static_cast<void>(place); }
  /// All ops that read the place have been called.
  virtual void leave(int place) { static_cast<void>(place); }

  /// Calls `pass`, which launches ops. A backend that can may record what they launch under `key` (0: never) and, for
  /// the same key later, launch the record without calling `pass`: what the host knows of the pass must be the same
  /// then, and what changes lie in kShared memory. Answers whether `pass` was called.
  virtual Result<bool> run_pass(std::uint64_t key, const std::function<void()>& pass) {
    static_cast<void>(key);
    pass();
    return true;
  }
  /// What this backend's ranks say to each other on its memory; all ranks of the run make it together. `transport` is
  /// how their hosts talk. Collectives are launched in order with ops, and live no longer than the backend.
  virtual Result<std::unique_ptr<Collectives>> make_collectives(std::shared_ptr<Transport> transport,
                                                                const GroupMembers& members);
  /// Launches the choice of tokens; without rows it only answers. False: not here; the host then reads the logits and
  /// chooses.
  virtual bool sample(const SampleArgs& args) {
    static_cast<void>(args);
    return false;
  }
  /// Whether a pass may be launched while an earlier one runs, since launching does not wait for the work.
  virtual bool runs_ahead() const { return false; }
  /// Remembers how far what was launched goes, as moment 0 … kMoments - 1; await_moment() returns when the device is
  /// there. A device that failed: kEnvironment.
  virtual void remember(int moment) { static_cast<void>(moment); }
  virtual Status await_moment(int moment) {
    static_cast<void>(moment);
    return synchronize();
  }
  /// Launches what makes the device fail, for tests of what happens then. False: this backend has no device that could.
  virtual bool break_device() { return false; }
  /// For tracing: launches what waits to be joined with others, and marks this moment among what was launched. `opens`:
  /// what begins here, for profilers that show ranges; null where the last one that is open ends.
  virtual void mark(const char* opens);
  /// Waits, and answers when each mark since the last call was reached, in seconds of the host's steady clock. A device
  /// that failed: kEnvironment.
  virtual Result<std::vector<double>> take_marks();
  /// Waits for everything that was launched. A device that failed: kEnvironment, what it says of it.
  virtual Status synchronize() = 0;

 private:
  std::vector<double> marks_;
};

}  // namespace fathom::tensor
