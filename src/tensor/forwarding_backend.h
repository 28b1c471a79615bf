// ForwardingBackend: another backend, every call passed on; whoever watches or changes some of them derives from it.
#pragma once
#include <utility>

#include "tensor/backend.h"

namespace fathom::tensor {

class ForwardingBackend : public Backend {
 public:
  explicit ForwardingBackend(std::unique_ptr<Backend> inner) : inner_(std::move(inner)) {}
  Backend& inner() const { return *inner_; }

  std::string_view name() const override { return inner_->name(); }
  std::string description() const override { return inner_->description(); }
  Ops& ops() override { return inner_->ops(); }
  GradOps* grad_ops() override { return inner_->grad_ops(); }
  ActivationMemory& activations() override { return inner_->activations(); }
  Result<std::unique_ptr<Buffer>> allocate_buffer(Bytes bytes, Placement placement) override {
    return inner_->allocate_buffer(bytes, placement);
  }
  Status reserve(Bytes bytes) override { return inner_->reserve(bytes); }
  std::optional<DeviceMemory> device_memory() const override { return inner_->device_memory(); }
  bool host_addressable() const override { return inner_->host_addressable(); }
  Status upload(std::byte* to, std::span<const std::byte> from) override { return inner_->upload(to, from); }
  Status download(std::span<std::byte> to, const std::byte* from) override { return inner_->download(to, from); }
  bool fill_random(const RandomFill& fill) override { return inner_->fill_random(fill); }
  Bytes workspace_bytes() const override { return inner_->workspace_bytes(); }
  void copy_in(std::byte* to, const std::byte* from, Bytes bytes) override { inner_->copy_in(to, from, bytes); }
  void copy_out(std::byte* to, const std::byte* from, Bytes bytes) override { inner_->copy_out(to, from, bytes); }
  void call_host(void (*work)(void* data), void* data) override { inner_->call_host(work, data); }
  void fetch(int place, std::byte* to, const std::byte* from, Bytes bytes) override {
    inner_->fetch(place, to, from, bytes);
  }
  void await(int place) override { inner_->await(place); }
  void leave(int place) override { inner_->leave(place); }
  Result<bool> run_pass(std::uint64_t key, const std::function<void()>& pass) override {
    return inner_->run_pass(key, pass);
  }
  Result<std::unique_ptr<Collectives>> make_collectives(std::shared_ptr<Transport> transport,
                                                        const GroupMembers& members) override {
    return inner_->make_collectives(std::move(transport), members);
  }
  void mark(const char* opens) override { inner_->mark(opens); }
  Result<std::vector<double>> take_marks() override { return inner_->take_marks(); }
  bool sample(const SampleArgs& args) override { return inner_->sample(args); }
  bool runs_ahead() const override { return inner_->runs_ahead(); }
  void remember(int moment) override { inner_->remember(moment); }
  Status await_moment(int moment) override { return inner_->await_moment(moment); }
  bool break_device() override { return inner_->break_device(); }
  Status synchronize() override { return inner_->synchronize(); }

 private:
  std::unique_ptr<Backend> inner_;
};

}  // namespace fathom::tensor
