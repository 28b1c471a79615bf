// PlanRequest: one question, parsed and resolved. What a person left out and the planner searches is an empty optional;
// what has a default holds it.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"
#include "plan/cluster.h"
#include "plan/formats.h"
#include "plan/layout.h"
#include "plan/model_trace.h"

namespace fathom::plan {

struct EngineProfile;  // engine_profile.h

enum class Task : std::uint8_t { kChat, kServe, kLora, kQlora, kFull, kPretrain };
constexpr bool is_training(Task task) { return task >= Task::kLora; }
constexpr bool has_adapters(Task task) { return task == Task::kLora || task == Task::kQlora; }
std::string_view task_name(Task task);

enum class Optimizer : std::uint8_t { kAdamW, kAdamW8bit, kSgd, kMuon, kAdafactor };
std::string_view optimizer_name(Optimizer optimizer);

/// Empty: searched.
struct LayoutWish {
  std::optional<int> tp, pp, dp, dp_attention, ep, cp, vp, zero;
  std::optional<Offload> offload;
  std::optional<Recompute> recompute;
  std::optional<std::int64_t> micro_batch;
};

/// What a person wants to keep (CLI); 0: no wish.
struct Slo {
  double ttft_seconds = 0, tpot_seconds = 0;
};

struct PlanRequest {
  std::string id_json = "null";  // returned as it is
  std::shared_ptr<const PlanModel> model;
  Cluster cluster;
  Task task = Task::kChat;
  const EngineProfile* engine = nullptr;       // never null once parsed
  const WeightFormatRule* weights = nullptr;   // never null once parsed; default "native" (training: bf16; qlora: nf4)
  std::optional<hardware::Precision> compute;  // precision of the products; empty: what weights and device give
  const KvFormat* kv = nullptr;                // null: the engine's default
  LayoutWish layout;
  Optimizer optimizer = Optimizer::kAdamW;
  std::int64_t lora_rank = 16;
  std::optional<std::int64_t>
      global_batch;         // sequences a step; empty: micro_batch · dp · micro-batches that fill the pipeline
  std::int64_t seq = 4096;  // training
  std::optional<std::int64_t> batch;  // chat: default 1; serve, empty: the largest that fits
  std::int64_t input = 1024, output = 256;
  std::int64_t prefill_chunk = 0;  // tokens of a prompt that a pass takes (calibrated devices); 0: the engine's
  int mtp_drafts = 0;              // speculative "mtp:N"
  Slo slo;
  std::int64_t context() const { return is_training(task) ? seq : input + output; }
};

/// One line of a batch. Errors name the key. `id_json` receives the line's id as it stands there, "null" when it has
/// none or cannot be read. `cluster`: instead of the keys about hardware.
Result<PlanRequest> parse_request(std::string_view line, std::string& id_json, const Cluster* cluster = nullptr);
/// What a request of its own (not a line) must still hold: ranges and keys that contradict each other.
Status check_request(const PlanRequest& request);

Result<Task> parse_task(std::string_view name);
Result<Optimizer> parse_optimizer(std::string_view name);
Result<Offload> parse_offload(std::string_view name);
Result<Recompute> parse_recompute(std::string_view name);
std::string_view offload_name(Offload offload);
std::string_view recompute_name(Recompute recompute);
/// What a request stores weights as when it says nothing: as released for inference, nf4 for qlora, bf16 for other
/// training.
Result<const WeightFormatRule*> default_weights(Task task);

}  // namespace fathom::plan
