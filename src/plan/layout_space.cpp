#include "plan/layout_space.h"

#include <algorithm>

#include "base/strings.h"
#include "plan/engine_profile.h"
#include "plan/memory.h"
#include "plan/memory_profile.h"

namespace fathom::plan {
namespace {

constexpr int kMostStagesUnasked = 16;        // pipelines longer than this are only built when asked for
constexpr std::int64_t kLongContext = 65536;  // from here on context parallelism is worth a look
constexpr std::size_t kMostLayouts = 20000;

std::vector<int> divisors(int n) {
  std::vector<int> out;
  for (int i = 1; static_cast<std::int64_t>(i) * i <= n; ++i) {
    if (n % i != 0) continue;
    out.push_back(i);
    if (i != n / i) out.push_back(n / i);
  }
  std::sort(out.begin(), out.end());
  return out;
}

class Space {
 public:
  Space(const PlanRequest& request, const MemoryProfile& profile, bool offload)
      : request_(request),
        wish_(request.layout),
        profile_(profile),
        spec_(request.model->spec()),
        training_(is_training(request.task)),
        offload_(offload) {}

  Result<std::vector<Layout>> build() {
    FATHOM_TRY_VOID(check_wishes());
    const int devices = request_.cluster.devices;
    for (const int tp : choices(wish_.tp, devices)) {
      if (!wish_.tp && (tp > std::max(request_.cluster.domain, 1) || tp > spec_.heads)) continue;
      const int after_tp = devices / tp;
      for (const int pp : choices(wish_.pp, after_tp)) {
        if (pp > spec_.layers || (!wish_.pp && pp > kMostStagesUnasked)) continue;
        for (const int cp : choices(wish_.cp, after_tp / pp)) {
          if (!wish_.cp && cp > 1 && (request_.context() < kLongContext || cp > 8)) continue;
          replicas(tp, pp, cp, after_tp / pp / cp);
        }
      }
    }
    if (!found_.empty()) return std::move(found_);
    if (refusal_) return tl::unexpected<Error>(*refusal_);
    return product_error();
  }

 private:
  /// A wish that divides, or all divisors.
  std::vector<int> choices(const std::optional<int>& wish, int of) const {
    if (!wish) return divisors(of);
    return of % *wish == 0 ? std::vector<int>{*wish} : std::vector<int>{};
  }

  tl::unexpected<Error> product_error() const {
    std::vector<std::string> parts;
    const std::pair<const char*, std::optional<int>> sizes[] = {
        {"tp", wish_.tp}, {"pp", wish_.pp}, {"cp", wish_.cp}, {"dp", wish_.dp}, {"dp_attention", wish_.dp_attention}};
    for (const auto& [name, size] : sizes)
      if (size) parts.push_back(std::string(name) + " " + std::to_string(*size));
    return fail("plan.product", {{"sizes", parts.empty() ? "-" : join(parts, " · ")},
                                 {"gpus", std::to_string(request_.cluster.devices)}});
  }

  Status check_wishes() const {
    const bool experts = spec_.routing.experts > 0;
    if (wish_.ep.value_or(1) > 1 && !experts) return fail("plan.ep_dense", {{"ep", std::to_string(*wish_.ep)}});
    if (experts && spec_.routing.experts % wish_.ep.value_or(1) != 0)
      return fail("plan.ep_experts",
                  {{"ep", std::to_string(*wish_.ep)}, {"experts", std::to_string(spec_.routing.experts)}});
    if (training_ && wish_.dp_attention.value_or(1) > 1) return fail("plan.dp_attention_training");
    if (wish_.pp.value_or(1) > spec_.layers)
      return fail("plan.pp_layers", {{"pp", std::to_string(*wish_.pp)}, {"layers", std::to_string(spec_.layers)}});
    if (wish_.vp.value_or(1) > 1 && wish_.pp && spec_.layers + 2 < static_cast<std::int64_t>(*wish_.pp) * *wish_.vp)
      return fail("plan.vp_layers", {{"vp", std::to_string(*wish_.vp)},
                                     {"pp", std::to_string(*wish_.pp)},
                                     {"layers", std::to_string(spec_.layers)}});
    if (!training_ && wish_.offload.value_or(Offload::kNone) != Offload::kNone) return fail("plan.offload_inference");
    return {};
  }

  void replicas(int tp, int pp, int cp, int rest) {
    for (const int dp : choices(wish_.dp, rest)) {
      const int attention = rest / dp;
      if (wish_.dp_attention ? attention != *wish_.dp_attention : !attention_replicas_make_sense(attention)) continue;
      Layout layout{.tp = tp, .pp = pp, .dp = dp, .dp_attention = attention, .cp = cp};
      experts(layout);
    }
  }

  /// Replicas of attention that share experts: for mixtures of experts in serving.
  bool attention_replicas_make_sense(int count) const {
    return count == 1 ||
           (!training_ && spec_.routing.experts > 0 && (request_.task == Task::kServe || wish_.ep.value_or(1) > 1));
  }

  void experts(Layout layout) {
    const int ranks = training_ ? layout.dp * layout.cp * layout.tp : layout.tp * layout.dp_attention;
    if (spec_.routing.experts == 0) {
      layout.expert_tp = layout.tp;
      add(layout);
      return;
    }
    if (wish_.ep && ranks % *wish_.ep != 0) {
      refuse(fail(training_ ? "plan.ep_training" : "plan.ep_product",
                  {{"ep", std::to_string(*wish_.ep)}, {"ranks", std::to_string(ranks)}})
                 .value());
      return;
    }
    for (const int ep : choices(wish_.ep, ranks)) {
      if (spec_.routing.experts % ep != 0) continue;
      layout.ep = ep;
      layout.expert_tp = !training_ ? ranks / ep : ep > 1 ? 1 : layout.tp;
      add(layout);
    }
  }

  void refuse(Error error) {
    if (!refusal_) refusal_ = std::move(error);
  }

  void add(const Layout& layout) {
    if (found_.size() >= kMostLayouts) return;
    if (const auto share = request_.model->share(sharding_of(layout)); !share) {
      refuse(share.error());
      return;
    }
    if (training_)
      training(layout);
    else
      found_.push_back(layout);
  }

  void training(Layout layout) {
    layout.sequence_parallel = layout.tp > 1 && request_.engine->training.sequence_parallel;
    // Left out, a stage of ZeRO is the engine's own: the first of its list; a search sees all of them.
    std::vector<int> stages = wish_.zero ? std::vector<int>{*wish_.zero} : profile_.zero_stages;
    std::vector<Offload> offloads{wish_.offload.value_or(Offload::kNone)};
    if (!wish_.offload && offload_) offloads = {Offload::kOptimizer, Offload::kWeights};
    std::vector<Recompute> recomputes{Recompute::kNone, Recompute::kSelective, Recompute::kFull};
    if (wish_.recompute) recomputes = {*wish_.recompute};
    std::vector<int> interleaves{wish_.vp.value_or(1)};
    if (!wish_.vp && layout.pp > 1 && spec_.layers % (2 * layout.pp) == 0) interleaves.push_back(2);
    for (const int vp : interleaves) {
      layout.vp = vp;
      for (const int zero : stages)
        for (const Offload offload : offloads)
          for (const Recompute recompute : recomputes) {
            layout.zero = zero;
            layout.offload = offload;
            layout.recompute = recompute;
            micro_batches(layout);
          }
    }
  }

  void micro_batches(Layout layout) {
    const std::int64_t dp = layout.dp;
    std::vector<std::int64_t> sizes{1, 2, 4, 8, 16};
    if (wish_.micro_batch) sizes = {*wish_.micro_batch};
    bool any = false;
    for (const std::int64_t size : sizes) {
      if (request_.global_batch && *request_.global_batch < size * dp && size > 1 && !wish_.micro_batch) continue;
      if (request_.global_batch && *request_.global_batch % (size * dp) != 0 && !wish_.micro_batch) continue;
      layout.micro_batch = size;
      layout.micro_batches = request_.global_batch
                                 ? std::max<std::int64_t>(1, (*request_.global_batch + size * dp - 1) / (size * dp))
                             : layout.pp > 1 ? 4 * layout.pp
                                             : 1;
      found_.push_back(layout);
      any = true;
    }
    if (!any)
      refuse(fail("plan.global_batch",
                  {{"global_batch", std::to_string(*request_.global_batch)}, {"dp", std::to_string(dp)}})
                 .value());
  }

  const PlanRequest& request_;
  const LayoutWish& wish_;
  const MemoryProfile& profile_;
  const model::ModelSpec& spec_;
  bool training_, offload_;
  std::vector<Layout> found_;
  std::optional<Error> refusal_;
};

}  // namespace

Result<std::vector<Layout>> layout_space(const PlanRequest& request, bool offload) {
  FATHOM_TRY(const MemoryProfile* profile, memory_profile_of(request));
  return Space(request, *profile, offload).build();
}

}  // namespace fathom::plan
