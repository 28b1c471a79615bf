// Names of a request's choices, in both directions.
#include <array>

#include "base/strings.h"
#include "plan/request.h"

namespace fathom::plan {
namespace {

constexpr std::string_view kTasks[] = {"chat", "serve", "lora", "qlora", "full", "pretrain"};
constexpr std::string_view kOptimizers[] = {"adamw", "adamw8bit", "sgd", "muon", "adafactor"};
constexpr std::string_view kOffloads[] = {"none", "optimizer", "weights"};
constexpr std::string_view kRecomputes[] = {"none", "selective", "full"};

template <class Value, std::size_t N>
Result<Value> parse_one(const std::string_view (&names)[N], std::string_view key, std::string_view text) {
  const std::string wanted = to_lower(trim(text));
  std::vector<std::string> known;
  for (std::size_t i = 0; i < N; ++i) {
    if (names[i] == wanted) return static_cast<Value>(i);
    known.emplace_back(names[i]);
  }
  return fail("plan.unknown_value", {{"key", std::string(key)}, {"value", printable(text)}, {"known", join(known)}});
}

}  // namespace

std::string_view task_name(Task task) { return kTasks[static_cast<int>(task)]; }
std::string_view optimizer_name(Optimizer optimizer) { return kOptimizers[static_cast<int>(optimizer)]; }
std::string_view offload_name(Offload offload) { return kOffloads[static_cast<int>(offload)]; }
std::string_view recompute_name(Recompute recompute) { return kRecomputes[static_cast<int>(recompute)]; }

Result<Task> parse_task(std::string_view name) { return parse_one<Task>(kTasks, "task", name); }
Result<Offload> parse_offload(std::string_view name) { return parse_one<Offload>(kOffloads, "offload", name); }
Result<Recompute> parse_recompute(std::string_view name) {
  return parse_one<Recompute>(kRecomputes, "recompute", name);
}
Result<Optimizer> parse_optimizer(std::string_view name) {
  const std::string wanted = to_lower(trim(name));
  if (wanted == "adam" || wanted == "adamw_mixed") return Optimizer::kAdamW;
  if (wanted == "adamw_8bit" || wanted == "adam8bit" || wanted == "paged_adamw_8bit") return Optimizer::kAdamW8bit;
  return parse_one<Optimizer>(kOptimizers, "optimizer", name);
}

Result<const WeightFormatRule*> default_weights(Task task) {
  return find_weight_format(task == Task::kQlora ? "nf4" : is_training(task) ? "bf16" : "native");
}

}  // namespace fathom::plan
