#include "backends/cpu/cpu_backend.h"

#include <string>

#include "backends/cpu/cpu_grad_ops.h"
#include "backends/cpu/cpu_ops.h"
#include "backends/cpu/isa.h"

namespace fathom::cpu {
namespace {

constexpr int kMostThreads = 1024;

class CpuBackend final : public tensor::Backend {
 public:
  CpuBackend(const Implementation& implementation, int threads, bool spin, std::unique_ptr<tensor::Backend> plain)
      : implementation_(implementation), pool_(threads, spin), plain_(std::move(plain)) {}

  Status start() {
    FATHOM_TRY(workspace_, Workspace::make(pool_.size()));
    ops_ = std::make_unique<CpuOps>(*implementation_.kernels(), pool_, workspace_, memory_);
    if (plain_ != nullptr && plain_->grad_ops() != nullptr)
      grad_ops_ =
          std::make_unique<CpuGradOps>(Context{*implementation_.kernels(), pool_, workspace_}, *plain_->grad_ops());
    return {};
  }
  std::string_view name() const override { return "cpu"; }
  std::string description() const override {
    return "cpu: " + std::string(implementation_.name) + ", " + std::to_string(pool_.size()) +
           (pool_.size() == 1 ? " thread" : " threads");
  }
  tensor::Ops& ops() override { return *ops_; }
  tensor::GradOps* grad_ops() override { return grad_ops_.get(); }
  tensor::ActivationMemory& activations() override { return memory_; }
  Result<std::unique_ptr<tensor::Buffer>> allocate_buffer(Bytes bytes, tensor::Placement) override {
    return allocate_pages(bytes, &pool_);
  }
  Bytes workspace_bytes() const override { return workspace_.bytes(); }
  Status synchronize() override { return {}; }

 private:
  const Implementation& implementation_;
  ThreadPool pool_;
  Workspace workspace_;
  tensor::ActivationMemory memory_;
  std::unique_ptr<tensor::Backend> plain_;
  std::unique_ptr<CpuOps> ops_;
  std::unique_ptr<CpuGradOps> grad_ops_;
};

}  // namespace

Result<std::unique_ptr<tensor::Backend>> make_cpu_backend(const tensor::BackendOptions& options,
                                                          std::unique_ptr<tensor::Backend> plain) {
  if (options.activation_dtype != DType::f32)
    return fail_unsupported("cpu.activation_dtype", {{"dtype", std::string(dtype_name(options.activation_dtype))}});
  if (options.threads < 0 || options.threads > kMostThreads)
    return fail("cpu.threads", {{"threads", std::to_string(options.threads)}, {"most", std::to_string(kMostThreads)}});
  FATHOM_TRY(const Implementation* implementation, choose_implementation(options.isa));
  const int usable = usable_cpus(), threads = options.threads > 0 ? options.threads : usable;
  auto backend = std::make_unique<CpuBackend>(*implementation, threads, threads <= usable, std::move(plain));
  FATHOM_TRY_VOID(backend->start());
  return backend;
}

Bytes workspace_bytes(int threads) { return Workspace::bytes_for(threads); }
int default_threads() { return usable_cpus(); }
bool supports(tensor::WeightFormat format) { return can_multiply(format); }

}  // namespace fathom::cpu
