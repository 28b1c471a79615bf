#include "backends/cuda/cuda_backend.h"

#include <array>
#include <chrono>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <vector>

#include "backends/cuda/blas.h"
#include "backends/cuda/context.h"
#include "backends/cuda/copy_stream.h"
#include "backends/cuda/cuda_collectives.h"
#include "backends/cuda/cuda_ops.h"
#include "backends/cuda/fault.h"
#include "backends/cuda/fill.h"
#include "backends/cuda/grad_ops.h"
#include "backends/cuda/lost.h"
#include "backends/cuda/marks.h"
#include "backends/cuda/recordings.h"
#include "backends/cuda/sample.h"
#include "backends/cuda/stages.h"

namespace fathom::cuda {
namespace {

constexpr Bytes kMostKept = kGiB;  // of shared blocks that were released
constexpr int kOldestCapability = 80;

std::string text_of(cudaError_t error) {
  return std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error);
}

/// Names of the GPUs that were started, by number: a device that failed may not tell its own any more.
class GpuNames {
 public:
  void set(int device, std::string name) {
    const std::lock_guard lock(mutex_);
    names_[device] = std::move(name);
  }
  /// "0 (NVIDIA H200)", of this thread's.
  std::string current() {
    int device = 0;
    cudaGetDevice(&device);
    const std::lock_guard lock(mutex_);
    const auto found = names_.find(device);
    return std::to_string(device) + (found != names_.end() ? " (" + found->second + ")" : "");
  }

 private:
  std::mutex mutex_;
  std::map<int, std::string> names_;
};
GpuNames& gpu_names() {
  static GpuNames names;
  return names;
}

tl::unexpected<Error> device_failed(cudaError_t error) {
  return fail_environment("cuda.device_failed", {{"gpu", gpu_names().current()}, {"error", text_of(error)}});
}

enum class Memory { kDevice, kShared, kPart };  // kPart: of a device block that another buffer owns

tl::unexpected<Error> no_memory(Bytes asked, Memory memory, cudaError_t error) {
  std::size_t free = 0, total = 0;
  cudaGetLastError();  // running out of memory is not a failure of the device
  if (error != cudaErrorMemoryAllocation) return device_failed(error);
  if (memory == Memory::kShared) return fail_environment("cuda.no_shared_memory", {{"asked", format_bytes(asked)}});
  if (const cudaError_t asked_device = cudaMemGetInfo(&free, &total); asked_device != cudaSuccess)
    return device_failed(asked_device);
  return fail_environment("cuda.no_memory", {{"gpu", gpu_names().current()},
                                             {"asked", format_bytes(asked)},
                                             {"free", format_bytes(free)},
                                             {"total", format_bytes(total)}});
}

class CudaBuffer final : public tensor::Buffer {
 public:
  CudaBuffer(std::byte* data, Bytes bytes, Memory memory) : data_(data), bytes_(bytes), memory_(memory) {
    cudaGetDevice(&device_);
  }
  CudaBuffer(const CudaBuffer&) = delete;
  CudaBuffer& operator=(const CudaBuffer&) = delete;
  ~CudaBuffer() override {  // both wait for the kernels that may still use it
    if (data_ == nullptr || is_lost(device_)) return;
    if (memory_ == Memory::kDevice)
      cudaFree(data_);
    else if (memory_ == Memory::kShared)
      cudaFreeHost(data_);
  }
  std::byte* data() const override { return data_; }
  Bytes bytes() const override { return bytes_; }

  static Result<std::unique_ptr<CudaBuffer>> make(Bytes bytes, Memory memory) {
    void* data = nullptr;
    if (bytes > 0) {
      const cudaError_t error = memory == Memory::kDevice
                                    ? cudaMalloc(&data, bytes)
                                    : cudaHostAlloc(&data, bytes, cudaHostAllocMapped | cudaHostAllocPortable);
      if (error != cudaSuccess) return no_memory(bytes, memory, error);
    }
    auto buffer = std::make_unique<CudaBuffer>(static_cast<std::byte*>(data), bytes, memory);
    if (bytes == 0) return buffer;
    if (memory == Memory::kShared) {
      std::memset(data, 0, bytes);
      return buffer;
    }
    if (const cudaError_t error = cudaMemset(data, 0, bytes); error != cudaSuccess) return device_failed(error);
    if (const cudaError_t error = cudaDeviceSynchronize(); error != cudaSuccess) return device_failed(error);
    return buffer;
  }

 private:
  std::byte* data_;
  Bytes bytes_;
  Memory memory_;
  int device_ = 0;
};

/// Blocks for activations outside a plan: shared memory, kept when released, since taking it is slow. A block that is
/// given out again is used later on the same stream, so nothing has to wait.
class SharedBlocks {
 public:
  void* take(std::uint64_t bytes) {
    if (const auto found = free_.find(bytes); found != free_.end() && !found->second.empty()) {
      std::unique_ptr<CudaBuffer> block = std::move(found->second.back());
      found->second.pop_back();
      kept_ -= bytes;
      return use(std::move(block));
    }
    auto block = CudaBuffer::make(bytes, Memory::kShared);
    return block ? use(std::move(*block)) : nullptr;
  }
  void give_back(void* memory) {
    const auto found = used_.find(memory);
    if (found == used_.end()) return;
    const Bytes bytes = found->second->bytes();
    if (kept_ + bytes <= kMostKept) {
      kept_ += bytes;
      free_[bytes].push_back(std::move(found->second));
    }
    used_.erase(found);
  }

 private:
  void* use(std::unique_ptr<CudaBuffer> block) {
    void* memory = block->data();
    used_.emplace(memory, std::move(block));
    return memory;
  }
  std::map<Bytes, std::vector<std::unique_ptr<CudaBuffer>>> free_;
  std::map<void*, std::unique_ptr<CudaBuffer>> used_;
  Bytes kept_ = 0;
};

class CudaBackend final : public tensor::Backend {
 public:
  explicit CudaBackend(int device) { context_.device = device; }
  CudaBackend(const CudaBackend&) = delete;
  CudaBackend& operator=(const CudaBackend&) = delete;
  ~CudaBackend() override {
    if (is_lost(context_.device)) {
      static_cast<void>(blas_.release());  // to the end of the process
    } else if (context_.stream != nullptr) {
      cudaSetDevice(context_.device);
      cudaStreamSynchronize(context_.stream);
      recordings_.clear();
      marks_.clear();
      for (const cudaEvent_t moment : moments_)
        if (moment != nullptr) cudaEventDestroy(moment);
      cudaStreamDestroy(context_.stream);
    }
  }

  Status start() {
    int devices = 0;
    if (const cudaError_t error = cudaGetDeviceCount(&devices); error != cudaSuccess) return device_failed(error);
    if (context_.device >= devices)
      return fail_environment("cuda.no_such_device",
                              {{"device", std::to_string(context_.device)}, {"count", std::to_string(devices)}});
    if (const cudaError_t error = cudaSetDevice(context_.device); error != cudaSuccess) return device_failed(error);
    cudaDeviceProp properties{};
    if (const cudaError_t error = cudaGetDeviceProperties(&properties, context_.device); error != cudaSuccess)
      return device_failed(error);
    name_ = properties.name;
    gpu_names().set(context_.device, name_);
    context_.multiprocessors = properties.multiProcessorCount;
    context_.compute_capability = properties.major * 10 + properties.minor;
    context_.shared_bytes = properties.sharedMemPerBlockOptin;
    if (context_.compute_capability < kOldestCapability)
      return fail_environment(
          "cuda.too_old", {{"device", name_},
                           {"capability", std::to_string(properties.major) + "." + std::to_string(properties.minor)}});
    if (const cudaError_t error = cudaStreamCreateWithFlags(&context_.stream, cudaStreamNonBlocking);
        error != cudaSuccess)
      return device_failed(error);
    FATHOM_TRY(blas_, Blas::load());
    FATHOM_TRY(workspace_, CudaBuffer::make(kWorkspaceBytes, Memory::kDevice));
    context_.blas = blas_.get();
    context_.rounded_data = workspace_->data();
    constexpr Bytes kArrivals = 256;  // zero, as the whole buffer is
    context_.workspace = Workspace(workspace_->data() + kRoundedBytes, kOpBytes - kArrivals);
    context_.arrivals = reinterpret_cast<unsigned*>(workspace_->data() + kRoundedBytes + kOpBytes - kArrivals);
    context_.meetings =
        reinterpret_cast<unsigned long long*>(workspace_->data() + kRoundedBytes + kOpBytes - kArrivals / 2);
    stages_.use(workspace_->data() + kRoundedBytes + kOpBytes);
    context_.stages = &stages_;
    activations_.use_heap(
        {.take = [](void* blocks, std::uint64_t bytes) { return static_cast<SharedBlocks*>(blocks)->take(bytes); },
         .give_back = [](void* blocks, void* memory) { static_cast<SharedBlocks*>(blocks)->give_back(memory); },
         .self = &blocks_});
    return {};
  }

  std::string_view name() const override { return "cuda"; }
  std::string description() const override { return "cuda: " + name_; }
  tensor::Ops& ops() override { return ops_; }
  tensor::GradOps* grad_ops() override { return &grad_ops_; }
  tensor::ActivationMemory& activations() override { return activations_; }
  Result<std::unique_ptr<tensor::Buffer>> allocate_buffer(Bytes bytes, tensor::Placement placement) override {
    if (placement == tensor::Placement::kDevice && block_ != nullptr &&
        reserved_bytes(bytes) <= block_->bytes() - block_used_) {
      std::byte* const data = block_->data() + block_used_;
      block_used_ += reserved_bytes(bytes);
      return std::make_unique<CudaBuffer>(data, bytes, Memory::kPart);
    }
    FATHOM_TRY(auto buffer,
               CudaBuffer::make(bytes, placement == tensor::Placement::kDevice ? Memory::kDevice : Memory::kShared));
    return std::unique_ptr<tensor::Buffer>(std::move(buffer));
  }
  Status reserve(Bytes bytes) override {
    block_.reset();
    block_used_ = 0;
    FATHOM_TRY(block_, CudaBuffer::make(bytes, Memory::kDevice));
    return {};
  }
  std::optional<tensor::DeviceMemory> device_memory() const override {
    std::size_t free = 0, total = 0;
    cudaSetDevice(context_.device);
    if (cudaMemGetInfo(&free, &total) != cudaSuccess) return std::nullopt;
    return tensor::DeviceMemory{free, total};
  }
  bool host_addressable() const override { return false; }
  Status upload(std::byte* to, std::span<const std::byte> from) override {
    return transfer(to, from.data(), from.size());
  }
  Status download(std::span<std::byte> to, const std::byte* from) override {
    return transfer(to.data(), from, to.size());
  }
  void copy_in(std::byte* to, const std::byte* from, Bytes bytes) override {
    ops_.flush();
    context_.note(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, context_.stream));
  }
  bool sample(const tensor::SampleArgs& args) override {
    if (args.rows == 0) return true;
    ops_.flush();
    launch_sample(context_, args);
    return true;
  }
  bool break_device() override {
    ops_.flush();
    launch_fault(context_);
    return true;
  }
  void copy_out(std::byte* to, const std::byte* from, Bytes bytes) override {
    ops_.flush();
    context_.note(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, context_.stream));
  }
  void call_host(void (*work)(void*), void* data) override {
    ops_.flush();
    context_.note(cudaLaunchHostFunc(context_.stream, work, data));
  }
  void fetch(int place, std::byte* to, const std::byte* from, Bytes bytes) override {
    copies_.fetch(context_, place, to, from, bytes);
  }
  void await(int place) override { copies_.await(context_, place); }
  void leave(int place) override {
    ops_.flush();
    copies_.leave(context_, place);
  }
  bool fill_random(const tensor::RandomFill& fill) override {
    std::byte* codes = nullptr;
    if (!fill.codes.empty()) {
      std::unique_ptr<CudaBuffer>& table = tables_[fill.codes.data()];
      if (table == nullptr) {
        auto made = CudaBuffer::make(fill.codes.size(), Memory::kDevice);
        if (!made || !upload((*made)->data(), std::as_bytes(fill.codes))) return false;
        table = std::move(*made);
      }
      codes = table->data();
    }
    return launch_fill(context_, fill, reinterpret_cast<const std::uint8_t*>(codes));
  }
  Bytes workspace_bytes() const override { return kWorkspaceBytes + collectives_bytes_; }
  Result<std::unique_ptr<tensor::Collectives>> make_collectives(std::shared_ptr<tensor::Transport> transport,
                                                                const tensor::GroupMembers& members) override {
    FATHOM_TRY(auto made, CudaCollectives::make(context_, ops_, std::move(transport), members));
    collectives_ = made.get();
    made->before_end = [this] {
      if (!is_lost(context_.device)) recordings_.clear();
      collectives_ = nullptr;
    };
    collectives_bytes_ = made->bytes();
    return std::unique_ptr<tensor::Collectives>(std::move(made));
  }
  Result<bool> run_pass(std::uint64_t key, const std::function<void()>& pass) override {
    const Range range(key != 0 ? "step" : "pass");
    const auto whole = [&] {
      pass();
      ops_.flush();
    };
    if (key != 0 && context_.error == cudaSuccess) {
      if (recordings_.replay(context_, key)) return false;
      if (recordings_.seen(context_, key)) {
        if (!recordings_.record(context_, key, whole)) return failed();
        return true;
      }
    }
    whole();
    return true;
  }
  void mark(const char* opens) override {
    ops_.flush();
    marks_.mark(context_, opens);
  }
  Result<std::vector<double>> take_marks() override {
    FATHOM_TRY_VOID(synchronize());
    std::vector<double> seconds = marks_.take(context_);
    if (context_.error != cudaSuccess) return device_failed(context_.error);
    return seconds;
  }
  Status synchronize() override {
    ops_.flush();
    if (collectives_ != nullptr) FATHOM_TRY_VOID(await_ranks([&] { return cudaStreamQuery(context_.stream); }));
    context_.note(cudaStreamSynchronize(context_.stream));
    return health();
  }
  bool runs_ahead() const override { return true; }
  void remember(int moment) override {
    ops_.flush();
    cudaEvent_t& event = moments_[static_cast<std::size_t>(moment)];
    if (event == nullptr) context_.note(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    context_.note(cudaEventRecord(event, context_.stream));
  }
  Status await_moment(int moment) override {
    const cudaEvent_t event = moments_[static_cast<std::size_t>(moment)];
    if (collectives_ != nullptr) FATHOM_TRY_VOID(await_ranks([&] { return cudaEventQuery(event); }));
    context_.note(cudaEventSynchronize(event));
    return health();
  }

  std::optional<std::int64_t> stages_launched() const {
    return Stages::possible(context_) ? std::optional(stages_.launched()) : std::nullopt;
  }

 private:
  Status health() {
    context_.note(cudaGetLastError());
    if (context_.error != cudaSuccess) return device_failed(context_.error);
    return {};
  }
  /// Until what `query` asks for is done, or will never be: other ranks may be gone. What failed first is said: this
  /// device before what NCCL made of it.
  Status await_ranks(const std::function<cudaError_t()>& query) {
    using Clock = std::chrono::steady_clock;
    const auto begun = Clock::now();
    auto looked = begun;
    for (;;) {
      const cudaError_t state = query();
      if (state != cudaSuccess && state != cudaErrorNotReady) context_.note(state);
      if (context_.error != cudaSuccess) return failed();
      const auto now = Clock::now();
      if (state == cudaSuccess) {
        if (!collectives_->troubled()) return {};
      } else if (now - looked < std::chrono::milliseconds(2)) {
        continue;
      }
      looked = now;
      if (collectives_->hopeful(std::chrono::duration<double>(now - begun).count())) continue;
      find_lost(context_.device, context_.stream);
      return collectives_->status();
    }
  }
  /// This device failed, unless another one took it along.
  tl::unexpected<Error> failed() {
    if (collectives_ != nullptr)
      if (auto told = collectives_->first_to_fail()) return tl::unexpected<Error>(std::move(*told));
    return device_failed(context_.error);
  }
  /// Which way is told by the addresses: unified addressing knows where each lies.
  Status transfer(void* to, const void* from, std::size_t bytes) {
    cudaSetDevice(context_.device);  // the caller may be any thread
    ops_.flush();
    if (bytes > 0) context_.note(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, context_.stream));
    return synchronize();
  }

  Context context_;
  std::string name_;
  SharedBlocks blocks_;  // outlives the activations that lie in it
  tensor::ActivationMemory activations_;
  std::unique_ptr<CudaBuffer> workspace_;
  std::unique_ptr<CudaBuffer> block_;  // that other buffers are parts of
  Bytes block_used_ = 0;
  CopyStream copies_;
  std::unique_ptr<Blas> blas_;
  std::map<const std::uint8_t*, std::unique_ptr<CudaBuffer>> tables_;  // of codes to draw from
  Stages stages_;
  Recordings recordings_;
  Marks marks_;
  std::array<cudaEvent_t, tensor::kMoments> moments_{};
  CudaCollectives* collectives_ = nullptr;  // the engine's, gone before this backend
  Bytes collectives_bytes_ = 0;
  CudaOps ops_{context_, activations_};
  CudaGradOps grad_ops_{context_, ops_};
};

/// What keeps every device from being used; nothing when one can be.
std::optional<Error> find_fault() {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  cudaGetLastError();
  if (error == cudaErrorInsufficientDriver || error == cudaErrorCompatNotSupportedOnDevice ||
      error == cudaErrorSystemDriverMismatch) {
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (driver == 0) return fail_environment("cuda.no_driver").value();
    const auto version = [](int number) {
      return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
    };
    return fail_environment("cuda.old_driver", {{"driver", version(driver)}, {"wanted", version(runtime)}}).value();
  }
  if (error == cudaErrorNoDevice || (error == cudaSuccess && devices == 0))
    return fail_environment("cuda.no_device").value();
  if (error != cudaSuccess) return device_failed(error).value();
  return std::nullopt;
}

}  // namespace

std::string why_unavailable() {
  const std::optional<Error> fault = find_fault();
  return fault ? error_text(*fault) : "";
}

Result<std::unique_ptr<tensor::Backend>> make_cuda_backend(const tensor::BackendOptions& options) {
  if (options.activation_dtype != DType::f32)
    return fail_unsupported("cuda.activation_dtype", {{"dtype", std::string(dtype_name(options.activation_dtype))}});
  if (std::optional<Error> fault = find_fault()) return tl::unexpected<Error>(std::move(*fault));
  auto backend = std::make_unique<CudaBackend>(options.device);
  FATHOM_TRY_VOID(backend->start());
  return backend;
}

std::optional<std::int64_t> stages_launched(const tensor::Backend& backend) {
  const auto* own = dynamic_cast<const CudaBackend*>(&backend);
  return own != nullptr ? own->stages_launched() : std::nullopt;
}

}  // namespace fathom::cuda
