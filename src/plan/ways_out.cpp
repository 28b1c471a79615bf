#include "plan/ways_out.h"

#include <algorithm>
#include <array>

#include "model/catalog.h"
#include "plan/engine_profile.h"

namespace fathom::plan {
namespace {

// From what loses least. The first that fits and is smaller than what was asked for is offered.
constexpr std::string_view kSmallerWeights[] = {"fp8", "q8_0", "q6_k", "q4_k_m", "int4", "q3_k_m", "q2_k"};
constexpr std::string_view kSmallerKv[] = {"fp8", "fp8_ds_mla", "q8_0", "int4"};
constexpr std::string_view kBiggerHardware[] = {"h100-sxm5-80gb", "h200-sxm-141gb", "b200-sxm-180gb", "b300-sxm-288gb"};

class WaysOut {
 public:
  WaysOut(const PlanRequest& request, const Candidate& best) : request_(request), best_(best) {}

  std::vector<WayOut> find() {
    smaller_weights();
    smaller_kv();
    less_load();
    recompute();
    offload();
    more_devices();
    other_model();
    other_hardware();
    return std::move(found_);
  }

 private:
  /// The plan of a changed request when it fits.
  std::optional<Candidate> fits(const PlanRequest& changed) const {
    const auto answer = make_plan(changed, PlanScope::kBest);
    if (!answer || !answer->best.memory.fits) return std::nullopt;
    return answer->best;
  }

  void offer(WayOut::Kind kind, std::string what, const Candidate& then) {
    found_.push_back({kind, std::move(what), then.memory.bytes.total});
  }

  void smaller_weights() {
    const bool full = request_.task == Task::kFull || request_.task == Task::kPretrain;
    if (full || request_.task == Task::kQlora) return;
    PlanRequest changed = request_;
    for (const std::string_view name : kSmallerWeights) {
      const auto rule = find_weight_format(name);
      const bool gguf = name.starts_with("q");
      if (!rule || *rule == request_.weights || (gguf && !runs_gguf())) continue;
      changed.weights = *rule;
      const auto then = fits(changed);
      if (!then || then->memory.bytes.weights >= best_.memory.bytes.weights) continue;
      offer(WayOut::Kind::kSmallerWeights, std::string(name), *then);
      return;
    }
  }

  bool runs_gguf() const { return request_.engine->name == "llama.cpp" || request_.engine->name == "ik_llama.cpp"; }

  void smaller_kv() {
    if (is_training(request_.task) || best_.memory.bytes.kv == 0) return;
    PlanRequest changed = request_;
    for (const std::string_view name : kSmallerKv) {
      const auto format = find_kv_format(name, request_.engine->own_kernels);
      if (!format || *format == best_.kv) continue;
      changed.kv = *format;
      const auto then = fits(changed);
      if (!then || then->memory.kv_bytes_per_token >= best_.memory.kv_bytes_per_token) continue;
      offer(WayOut::Kind::kSmallerKv, std::string(name), *then);
      return;
    }
  }

  void less_load() {
    PlanRequest changed = request_;
    if (!is_training(request_.task) && request_.batch.value_or(1) > 1) {
      std::int64_t low = 0, high = *request_.batch;
      while (low + 1 < high) {
        const std::int64_t middle = low + (high - low) / 2;
        changed.batch = middle;
        (fits(changed) ? low : high) = middle;
      }
      changed.batch = low;
      if (const auto then = low > 0 ? fits(changed) : std::nullopt)
        offer(WayOut::Kind::kSmallerBatch, std::to_string(low), *then);
      changed.batch = request_.batch;
    }
    const std::int64_t context = best_.memory.max_context;
    if (context < 1 || context >= request_.context()) return;
    if (is_training(request_.task))
      changed.seq = context;
    else
      changed.output = std::min(changed.output, context), changed.input = context - changed.output;
    if (const auto then = fits(changed)) offer(WayOut::Kind::kLessContext, std::to_string(context), *then);
  }

  void recompute() {
    if (!is_training(request_.task) || !request_.layout.recompute || *request_.layout.recompute == Recompute::kFull)
      return;
    PlanRequest changed = request_;
    changed.layout.recompute = Recompute::kFull;
    if (const auto then = fits(changed)) offer(WayOut::Kind::kRecompute, "full", *then);
  }

  void offload() {
    if (!is_training(request_.task) || !request_.layout.offload) return;
    PlanRequest changed = request_;
    for (const Offload way : {Offload::kOptimizer, Offload::kWeights}) {
      changed.layout.offload = way;
      const auto then = fits(changed);
      if (!then) continue;
      offer(WayOut::Kind::kOffload, std::string(offload_name(way)), *then);
      return;
    }
  }

  void more_devices() {
    PlanRequest changed = request_;
    changed.layout.tp = changed.layout.pp = changed.layout.dp = changed.layout.dp_attention = changed.layout.ep =
        changed.layout.cp = std::nullopt;
    if (request_.cluster.device.is_cpu()) return;
    const int now = request_.cluster.devices;
    if (now == 1 || request_.layout.tp || request_.layout.pp || request_.layout.dp) {
      if (const auto then = now > 1 ? fits(changed) : std::nullopt) {
        offer(WayOut::Kind::kOtherLayout,
              "tp " + std::to_string(then->layout.tp) + ", pp " + std::to_string(then->layout.pp) + ", dp " +
                  std::to_string(then->layout.dp) + ", dp_attention " + std::to_string(then->layout.dp_attention) +
                  ", ep " + std::to_string(then->layout.ep),
              *then);
        return;
      }
    }
    // One more, two more, four more; then whole nodes.
    const int node = std::max(request_.cluster.devices_per_node, 1);
    std::vector<int> counts{now + 1, now + 2, now + 4};
    for (int nodes = 1; nodes <= 64; nodes *= 2) counts.push_back((now + node - 1) / node * node + nodes * node);
    for (int power = 2; power <= 1024; power *= 2) counts.push_back(power);
    std::sort(counts.begin(), counts.end());
    counts.erase(std::unique(counts.begin(), counts.end()), counts.end());
    for (const int count : counts) {
      if (count <= now) continue;
      changed.cluster.devices = count;
      const auto then = fits(changed);
      if (!then) continue;
      offer(WayOut::Kind::kMoreDevices, std::to_string(count), *then);
      return;
    }
  }

  void other_model() {
    const auto catalog = model::model_catalog();
    if (!catalog) return;
    // The largest of the catalog that is smaller and fits as asked.
    struct Known {
      std::shared_ptr<const PlanModel> model;
    };
    std::vector<std::shared_ptr<const PlanModel>> models;
    for (const model::ModelEntry& entry : (*catalog)->models()) {
      auto model = find_plan_model(entry.id);
      if (model && (*model)->sizes().parameters_total < request_.model->sizes().parameters_total)
        models.push_back(*std::move(model));
    }
    std::stable_sort(models.begin(), models.end(), [](const auto& a, const auto& b) {
      return a->sizes().parameters_total > b->sizes().parameters_total;
    });
    PlanRequest changed = request_;
    for (auto& model : models) {
      changed.model = model;
      const auto then = fits(changed);
      if (!then) continue;
      offer(WayOut::Kind::kOtherModel, model->name(), *then);
      return;
    }
  }

  void other_hardware() {
    if (request_.cluster.device.is_cpu()) return;
    PlanRequest changed = request_;
    for (const std::string_view name : kBiggerHardware) {
      const auto choice = hardware::parse_hardware(name);
      if (!choice || choice->usable_bytes <= request_.cluster.device.capacity_bytes) continue;
      auto cluster = make_cluster(*choice, request_.cluster.devices);
      if (!cluster) continue;
      changed.cluster = *std::move(cluster);
      const auto then = fits(changed);
      if (!then) continue;
      offer(WayOut::Kind::kOtherHardware, changed.cluster.device.name, *then);
      return;
    }
  }

  const PlanRequest& request_;
  const Candidate& best_;
  std::vector<WayOut> found_;
};

}  // namespace

std::vector<WayOut> find_ways_out(const PlanRequest& request, const Candidate& best) {
  return WaysOut(request, best).find();
}

}  // namespace fathom::plan
