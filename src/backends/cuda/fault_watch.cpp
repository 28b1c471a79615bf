#include "backends/cuda/fault_watch.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <array>
#include <cstring>
#include <mutex>

namespace fathom::cuda {
namespace {

// What is used of NVML; its numbers are part of its interface.
using Device = struct NvmlDevice*;
using EventSet = struct NvmlEventSet*;
struct Event {
  Device device;
  unsigned long long type, data;
  unsigned gpu_instance, compute_instance;
};
constexpr unsigned long long kCriticalError = 8;

struct Nvml {
  int (*init)() = nullptr;
  int (*by_bus)(const char*, Device*) = nullptr;
  int (*create)(EventSet*) = nullptr;
  int (*watch)(Device, unsigned long long, EventSet) = nullptr;
  int (*wait)(EventSet, Event*, unsigned milliseconds) = nullptr;
  int (*free)(EventSet) = nullptr;
  bool ready = false;

  static const Nvml& load() {
    static Nvml nvml;
    static std::once_flag once;
    std::call_once(once, [] {
      void* library = ::dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
      if (library == nullptr) return;
      bool whole = true;
      const auto find = [&](auto& function, const char* name) {
        void* symbol = ::dlsym(library, name);
        std::memcpy(&function, &symbol, sizeof symbol);
        whole = whole && symbol != nullptr;
      };
      find(nvml.init, "nvmlInit_v2");
      find(nvml.by_bus, "nvmlDeviceGetHandleByPciBusId_v2");
      find(nvml.create, "nvmlEventSetCreate");
      find(nvml.watch, "nvmlDeviceRegisterEvents");
      find(nvml.wait, "nvmlEventSetWait_v2");
      find(nvml.free, "nvmlEventSetFree");
      nvml.ready = whole && nvml.init() == 0;
    });
    return nvml;
  }
};

class NvmlWatch final : public FaultWatch {
 public:
  NvmlWatch(const Nvml& nvml, EventSet events) : nvml_(nvml), events_(events) {}
  NvmlWatch(const NvmlWatch&) = delete;
  NvmlWatch& operator=(const NvmlWatch&) = delete;
  ~NvmlWatch() override { nvml_.free(events_); }
  bool saw_fault(std::chrono::milliseconds patience) override {
    Event event{};
    seen_ = seen_ || nvml_.wait(events_, &event, static_cast<unsigned>(patience.count())) == 0;
    return seen_;
  }

 private:
  const Nvml& nvml_;
  EventSet events_;
  bool seen_ = false;
};

}  // namespace

std::unique_ptr<FaultWatch> FaultWatch::start(int device) {
  const Nvml& nvml = Nvml::load();
  std::array<char, 32> bus{};
  Device gpu = nullptr;
  EventSet events = nullptr;
  if (!nvml.ready || cudaDeviceGetPCIBusId(bus.data(), static_cast<int>(bus.size()), device) != cudaSuccess ||
      nvml.by_bus(bus.data(), &gpu) != 0 || nvml.create(&events) != 0)
    return nullptr;
  if (nvml.watch(gpu, kCriticalError, events) != 0) {
    nvml.free(events);
    return nullptr;
  }
  return std::make_unique<NvmlWatch>(nvml, events);
}

}  // namespace fathom::cuda
