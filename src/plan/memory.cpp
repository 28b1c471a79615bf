#include "plan/memory.h"

#include <algorithm>
#include <cmath>

#include "plan/engine_profile.h"
#include "plan/memory_parts.h"

namespace fathom::plan {

std::string_view category_name(MemoryCategory category) {
  static constexpr std::string_view names[] = {"weights",   "kv",        "activations", "gradients",
                                               "optimizer", "workspace", "overhead"};
  return names[static_cast<int>(category)];
}

Bytes to_bytes(double bytes) { return bytes > 0 ? static_cast<Bytes>(std::min(std::ceil(bytes), 9e18)) : 0; }

MemoryCategory first_over(const MemoryBreakdown& bytes) {
  const Bytes order[] = {bytes.weights,     bytes.gradients, bytes.optimizer, bytes.kv,
                         bytes.activations, bytes.workspace, bytes.overhead};
  static constexpr MemoryCategory names[] = {
      MemoryCategory::kWeights,     MemoryCategory::kGradients, MemoryCategory::kOptimizer, MemoryCategory::kKv,
      MemoryCategory::kActivations, MemoryCategory::kWorkspace, MemoryCategory::kOverhead};
  Bytes sum = 0;
  for (std::size_t i = 0; i < std::size(order); ++i) {
    sum += order[i];
    if (sum > bytes.capacity) return names[i];
  }
  return MemoryCategory::kKv;  // everything fits but what the engine leaves for caches
}

StageSums::StageSums(const MemoryInputs& inputs, int stage) {
  const Layout& layout = *inputs.layout;
  const ShareWeights& share = *inputs.weights;
  first = stage == 0;
  last = stage == layout.pp - 1;
  const auto all = static_cast<std::int64_t>(share.before.size()) - 1;
  const std::int64_t chunks = static_cast<std::int64_t>(layout.pp) * layout.vp;
  if (inputs.cache != nullptr) {
    growths = std::min(inputs.cache->growing.size(), kMostRatios);
    for (std::size_t g = 0; g < growths; ++g)
      growth_storage[g].ratio = static_cast<double>(inputs.cache->growing[g].ratio);
  }
  for (std::int64_t chunk = stage; chunk < chunks; chunk += layout.pp) {
    const LayerSpan span = chunk_layers(all, chunks, chunk);
    const auto from = static_cast<std::size_t>(span.first), to = static_cast<std::size_t>(span.last);
    layers += span.last - span.first;
    parts += share.before[to] - share.before[from];
    if (inputs.cache == nullptr) continue;
    cache_fixed += inputs.cache->fixed_before[to] - inputs.cache->fixed_before[from];
    for (std::size_t g = 0; g < growths; ++g)
      growth_storage[g].row_bytes +=
          inputs.cache->growing[g].row_bytes_before[to] - inputs.cache->growing[g].row_bytes_before[from];
  }
  if (first) parts += share.embedding;
  if (last) parts += share.head;
  // A tied head on a stage of its own keeps a copy of the table.
  if (last && !first && inputs.request->model->spec().tied_embeddings) parts += share.embedding;
  if (last && inputs.request->mtp_drafts > 0) parts += share.mtp;
  weights = parts.stored;
}

namespace {

double communicator_count(const Layout& layout) {
  double count = 0;
  for (const int size : {layout.tp, layout.pp, layout.cp, layout.dp * layout.dp_attention}) count += size > 1 ? 1 : 0;
  return count + (layout.ep > 1 ? 1 : 0);
}

/// Compute capability as a number: "9.0" is 90; 0 when it is none.
int compute_capability(const Device& device) {
  if (device.accelerator == nullptr) return 0;
  int value = 0;
  for (const char c : device.accelerator->compute_capability)
    if (c >= '0' && c <= '9') value = value * 10 + (c - '0');
  return value;
}

}  // namespace

Result<MemoryPlan> plan_memory(const PlanRequest& request, const Layout& layout) {
  const PlanModel& model = *request.model;
  const model::Sharding sharding = sharding_of(layout);
  MemoryInputs in{.request = &request, .layout = &layout};
  FATHOM_TRY(in.profile, memory_profile_of(request));
  FATHOM_TRY(in.weights, model.share_weights(sharding, *request.weights));
  const Device& device = request.cluster.device;
  const bool hopper = compute_capability(device) >= 90 && in.profile->workspace_bytes_hopper > 0;
  if (!device.is_cpu()) {
    in.context_bytes = static_cast<double>(in.profile->context_bytes);
    in.workspace_bytes = static_cast<double>(hopper ? in.profile->workspace_bytes_hopper : in.profile->workspace_bytes);
    in.communicators = communicator_count(layout);
  }
  if (is_training(request.task)) {
    const bool fp8 = request.compute == hardware::Precision::fp8;
    FATHOM_TRY(in.train, model.activations(sharding, Phase::kTrain, *in.profile, fp8));
    in.kinds = &in.train->kind_of_layer;
    return plan_training_memory(in);
  }
  FATHOM_TRY(const KvFormat* kv, kv_format_of(request));
  FATHOM_TRY(in.cache, model.share_cache(sharding, *kv));
  FATHOM_TRY(in.prefill, model.activations(sharding, Phase::kPrefill, *in.profile, false));
  FATHOM_TRY(in.decode, model.activations(sharding, Phase::kDecode, *in.profile, false));
  if (in.profile->continues_on_cache) {
    FATHOM_TRY(in.later, model.activations(sharding, Phase::kContinue, *in.profile, false));
  }
  const std::int64_t replicas = static_cast<std::int64_t>(layout.dp) * layout.dp_attention;
  in.batch_per_replica = std::max<std::int64_t>(1, (request.batch.value_or(1) + replicas - 1) / replicas);
  return plan_inference_memory(in);
}

Result<const MemoryProfile*> memory_profile_of(const PlanRequest& request) {
  return memory_profile(request.engine->name, request.cluster.device.is_cpu() ? "cpu" : task_name(request.task));
}

Result<const KvFormat*> kv_format_of(const PlanRequest& request) {
  if (request.kv != nullptr) return request.kv;
  FATHOM_TRY(const MemoryProfile* profile, memory_profile_of(request));
  return find_kv_format(profile->kv, request.engine->own_kernels);
}

}  // namespace fathom::plan
