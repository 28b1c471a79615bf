#include "backends/reference/reference_backend.h"

#include <string>

#include "backends/reference/host_memory.h"
#include "backends/reference/reference_ops.h"

namespace fathom::reference {
namespace {

class ReferenceBackend final : public tensor::Backend {
 public:
  explicit ReferenceBackend(DType activation_dtype) : ops_(activation_dtype) {}
  std::string_view name() const override { return "reference"; }
  std::string description() const override {
    return "reference: plain C++, " + std::string(dtype_name(ops_.activation_dtype()));
  }
  tensor::Ops& ops() override { return ops_; }
  tensor::GradOps* grad_ops() override { return &grad_ops_; }
  tensor::ActivationMemory& activations() override { return ops_.memory(); }
  Result<std::unique_ptr<tensor::Buffer>> allocate_buffer(Bytes bytes, tensor::Placement) override {
    return allocate_pages(bytes);
  }
  Bytes workspace_bytes() const override { return 0; }
  Status synchronize() override { return {}; }

 private:
  ReferenceOps ops_;
  ReferenceGradOps grad_ops_;
};

}  // namespace

Result<std::unique_ptr<tensor::Backend>> make_reference_backend(tensor::BackendOptions options) {
  const DType dtype = options.activation_dtype;
  if (dtype != DType::f32 && dtype != DType::f64 && dtype != DType::f16 && dtype != DType::bf16)
    return fail_unsupported("reference.activation_dtype", {{"dtype", std::string(dtype_name(dtype))}});
  return std::make_unique<ReferenceBackend>(dtype);
}

}  // namespace fathom::reference
