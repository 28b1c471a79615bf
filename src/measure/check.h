// Check: what this machine can do with every DeepSeek model, and one of them really run beside its prediction.
#pragma once
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "measure/bench.h"
#include "plan/cheapest.h"
#include "plan/request.h"

namespace fathom::measure {

struct TaskVerdict {
  plan::Task task = plan::Task::kChat;
  bool fits = false;
  std::string weights, engine;  // that it fits with; when it does not: the smallest that was tried
  std::int64_t context = 0;     // input + output, or the training sequence
  plan::Range speed;            // tokens a second of all devices: decode (chat), output (serve), training; 0: not known
  plan::ProvenanceTier provenance = plan::ProvenanceTier::kDefault;
  std::string calibrated;          // the day of the calibration that the speed rests on, "" none
  Bytes needed = 0, capacity = 0;  // of the fullest device, when it does not fit
  std::string why;                 // a sentence, when it does not fit
  std::string rented;              // cloud machine that would do, "" none
  double rented_usd_per_hour = 0;
};

struct ModelVerdict {
  std::string id;
  std::vector<std::string> same;  // ids with the same configuration
  double parameters = 0, active = 0;
  std::vector<TaskVerdict> tasks;  // chat, serve, lora, qlora, full
};

/// Every distinct configuration of the catalog's DeepSeek models on this machine's devices. `kernels`: timed on its
/// CPU, for when that is the device. `progress(done, total)` is optional.
Result<std::vector<ModelVerdict>> survey(const hardware::Machine& machine,
                                         const std::optional<plan::KernelRates>& kernels,
                                         const std::function<void(std::size_t, std::size_t)>& progress = {});

}  // namespace fathom::measure
