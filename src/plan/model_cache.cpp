// Models of plans, and what is kept beside them: shares, traces, weights by format, caches, activations. Each is made
// once.
#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <shared_mutex>
#include <tuple>
#include <unordered_map>

#include "base/strings.h"
#include "model/catalog.h"
#include "model/sizes.h"
#include "plan/activations.h"
#include "plan/cost_model.h"
#include "plan/model_trace.h"
#include "plan/model_tracing.h"

namespace fathom::plan {
namespace {

using model::WeightClass;

constexpr std::int64_t kMostLayers = 4096, kMostExpertTensors = std::int64_t{1} << 20;

struct Key {
  int tp, ep, expert_tp, a;
  const void* b;
  auto operator<=>(const Key&) const = default;
};
Key key_of(const model::Sharding& s, int a = 0, const void* b = nullptr) { return {s.tp, s.ep, s.expert_tp, a, b}; }

/// Results by key, made once; values never move.
template <class Value>
class Memo {
 public:
  template <class Make>
  Result<const Value*> get(const Key& key, Make&& make) {
    {
      const std::shared_lock lock(mutex_);
      if (const auto at = made_.find(key); at != made_.end()) return view(at->second);
    }
    Result<Value> value = make();
    const std::unique_lock lock(mutex_);
    return view(made_.try_emplace(key, std::move(value)).first->second);
  }

 private:
  static Result<const Value*> view(const Result<Value>& value) {
    if (!value) return tl::unexpected<Error>(value.error());
    return &*value;
  }
  std::shared_mutex mutex_;
  std::map<Key, Result<Value>> made_;
};

bool carries_adapter(const model::WeightEntry& entry) {
  return !entry.vector && (entry.cls == WeightClass::kAttention || entry.cls == WeightClass::kDenseFfn ||
                           entry.cls == WeightClass::kSharedExpert);
}

void add_entry(PartWeights& part, const model::WeightEntry& entry, Bytes stored) {
  part.stored += stored;
  if (entry.tied_to >= 0 || entry.native == tensor::WeightFormat::i64) return;
  const std::uint64_t elements = entry.elements();
  (entry.cls == WeightClass::kRoutedExpert ? part.expert_elements : part.elements) += elements;
  if (entry.split == model::Split::kNone && entry.cls != WeightClass::kRoutedExpert)
    part.replicated_elements += elements;
  if (carries_adapter(entry)) part.adapter_units += static_cast<std::uint64_t>(entry.rows + entry.cols);
}

Result<ShareWeights> sum_weights(const model::Architecture& share, const WeightFormatRule& rule) {
  FATHOM_TRY(const Formats* all, formats());
  const model::ModelSpec& spec = share.spec();
  ShareWeights sums;
  std::vector<PartWeights> layers(static_cast<std::size_t>(spec.layers));
  for (const model::WeightEntry& entry : share.weights().entries()) {
    const Bytes stored = entry_bytes(*all, rule, entry, spec.layers, spec.tied_embeddings);
    if (entry.cls == WeightClass::kEngramTable)
      sums.host_bytes += stored;
    else if (entry.part == model::WeightPart::kMtp)
      add_entry(sums.mtp, entry, stored);
    else if (entry.part == model::WeightPart::kVision)
      continue;  // text alone is planned
    else if (entry.layer >= 0 && entry.layer < spec.layers)
      add_entry(layers[static_cast<std::size_t>(entry.layer)], entry, stored);
    else if (entry.cls == WeightClass::kEmbedding)
      add_entry(sums.embedding, entry, stored);
    else
      add_entry(sums.head, entry, stored);
  }
  PartWeights sum;
  sums.before.push_back(sum);
  for (const PartWeights& layer : layers) {
    sums.before.push_back(sum += layer);
    if (layer.elements + layer.expert_elements > sums.largest.elements + sums.largest.expert_elements)
      sums.largest = layer;
  }
  sums.bytes = std::make_shared<const WeightBytes>(weight_bytes(share.weights(), rule));
  return sums;
}

ShareCache sum_cache(const model::Architecture& share, const KvFormat& kv) {
  const auto layers = static_cast<std::size_t>(share.spec().layers);
  ShareCache sums;
  sums.fixed_before.assign(layers + 1, 0);
  for (const model::CacheTensor& tensor : share.cache().tensors) {
    const double row = cache_row_bytes(kv, share.spec(), tensor);
    const auto after = static_cast<std::size_t>(tensor.layer) + 1;
    if (tensor.rows == tensor::RowsOf::kRing) {
      sums.fixed_before[after] += row * static_cast<double>(tensor.ring_rows);
      continue;
    }
    auto at = std::find_if(sums.growing.begin(), sums.growing.end(),
                           [&](const ShareCache::Growth& growth) { return growth.ratio == tensor.ratio; });
    if (at == sums.growing.end()) at = sums.growing.insert(at, {tensor.ratio, std::vector<double>(layers + 1, 0)});
    at->row_bytes_before[after] += row;
  }
  const auto accumulate = [](std::vector<double>& values) {
    for (std::size_t i = 1; i < values.size(); ++i) values[i] += values[i - 1];
  };
  accumulate(sums.fixed_before);
  for (ShareCache::Growth& growth : sums.growing) accumulate(growth.row_bytes_before);
  return sums;
}

std::uint64_t next_share() {
  static std::atomic<std::uint64_t> last{0};
  return ++last;
}

class CachedModel final : public PlanModel {
 public:
  static Result<std::shared_ptr<const PlanModel>> make(model::ModelSpec spec, std::string name) {
    // Tables are made of every tensor: a configuration far beyond any model is refused before they are.
    const std::int64_t tensors = spec.layers * std::max<std::int64_t>(spec.routing.experts, 1);
    if (spec.layers > kMostLayers || tensors > kMostExpertTensors)
      return fail("plan.model_too_large", {{"layers", std::to_string(spec.layers)},
                                           {"experts", std::to_string(spec.routing.experts)},
                                           {"most", std::to_string(kMostLayers)}});
    auto made = std::make_shared<CachedModel>();
    FATHOM_TRY(made->whole_, model::make_architecture(spec));
    made->sizes_ = model::model_sizes(made->whole_->weights(), spec.routing.top_k);
    made->spec_ = std::move(spec);
    made->name_ = std::move(name);
    return std::shared_ptr<const PlanModel>(std::move(made));
  }

  Result<const model::Architecture*> share(const model::Sharding& sharding) const override {
    FATHOM_TRY(const auto* made, shares_.get(key_of(sharding), [&]() -> Result<std::unique_ptr<model::Architecture>> {
      FATHOM_TRY(auto share, model::make_architecture(spec_, sharding));
      bind_fake_constants(*share);
      return share;
    }));
    return made->get();
  }

  Result<const ModelTrace*> trace(const model::Sharding& sharding, Phase phase, DType activations) const override {
    return traces_.get(key_of(sharding, static_cast<int>(phase) * 256 + static_cast<int>(activations)),
                       [&]() -> Result<ModelTrace> {
                         FATHOM_TRY(const model::Architecture* part, share(sharding));
                         ModelTrace made = trace_model(*part, phase, activations);
                         made.serial = next_share();
                         return made;
                       });
  }

  Result<const ShareWeights*> share_weights(const model::Sharding& sharding,
                                            const WeightFormatRule& rule) const override {
    return weights_.get(key_of(sharding, 0, &rule), [&]() -> Result<ShareWeights> {
      FATHOM_TRY(const model::Architecture* part, share(sharding));
      FATHOM_TRY(ShareWeights sums, sum_weights(*part, rule));
      sums.serial = next_share();
      return sums;
    });
  }

  Result<const ShareCache*> share_cache(const model::Sharding& sharding, const KvFormat& kv) const override {
    return kv_.get(key_of(sharding, 0, &kv), [&]() -> Result<ShareCache> {
      FATHOM_TRY(const model::Architecture* part, share(sharding));
      return sum_cache(*part, kv);
    });
  }

  Result<const ActivationModel*> activations(const model::Sharding& sharding, Phase phase, const MemoryProfile& profile,
                                             bool fp8_products) const override {
    return activations_.get(key_of(sharding, static_cast<int>(phase) * 2 + (fp8_products ? 1 : 0), &profile),
                            [&]() -> Result<ActivationModel> {
                              FATHOM_TRY(
                                  const ModelTrace* made,
                                  trace(sharding, phase, profile.activation_bytes > 2 ? DType::f32 : DType::bf16));
                              return make_activations(*made, spec_, profile, fp8_products);
                            });
  }

 private:
  mutable Memo<std::unique_ptr<model::Architecture>> shares_;
  mutable Memo<ModelTrace> traces_;
  mutable Memo<ShareWeights> weights_;
  mutable Memo<ShareCache> kv_;
  mutable Memo<ActivationModel> activations_;
};

/// Models by the text that named them. Bounded, since a stream of requests may name any number: the oldest half goes
/// when full.
class ModelTable {
 public:
  template <class Make>
  Result<std::shared_ptr<const PlanModel>> get(std::string_view text, Make&& make) {
    {
      const std::shared_lock lock(mutex_);
      if (const auto at = by_text_.find(text); at != by_text_.end()) return at->second.model;
    }
    FATHOM_TRY(std::shared_ptr<const PlanModel> made, make());
    const std::unique_lock lock(mutex_);
    if (by_text_.size() >= kMost) forget_half();
    return by_text_.try_emplace(std::string(text), Entry{made, ++clock_}).first->second.model;
  }

 private:
  static constexpr std::size_t kMost = 512;
  struct Entry {
    std::shared_ptr<const PlanModel> model;
    std::uint64_t made = 0;
  };
  struct Hash {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
  };
  void forget_half() {
    std::erase_if(by_text_, [&](const auto& item) { return item.second.made + kMost / 2 <= clock_; });
  }
  std::shared_mutex mutex_;
  std::unordered_map<std::string, Entry, Hash, std::equal_to<>> by_text_;
  std::uint64_t clock_ = 0;
};

ModelTable& table() {
  static ModelTable models;
  return models;
}

bool looks_like_path(std::string_view name) {
  std::error_code ignored;
  return name.size() < 4096 && name.find('\0') == std::string_view::npos &&
         std::filesystem::exists(Path(name), ignored);
}

Result<std::shared_ptr<const PlanModel>> make_named(std::string_view name) {
  const auto entry = model::find_model(name);
  if (entry) {
    FATHOM_TRY(model::ModelSpec spec, model::parse_config((*entry)->config, (*entry)->id));
    return CachedModel::make(std::move(spec), (*entry)->id);
  }
  if (!looks_like_path(name)) return tl::unexpected<Error>(entry.error());
  FATHOM_TRY(model::ModelSpec spec, model::load_config(Path(name)));
  return CachedModel::make(std::move(spec), std::string(name));
}

}  // namespace

PartWeights& PartWeights::operator+=(const PartWeights& other) {
  stored += other.stored;
  elements += other.elements;
  expert_elements += other.expert_elements;
  replicated_elements += other.replicated_elements;
  adapter_units += other.adapter_units;
  return *this;
}

PartWeights operator-(const PartWeights& a, const PartWeights& b) {
  return {a.stored - b.stored, a.elements - b.elements, a.expert_elements - b.expert_elements,
          a.replicated_elements - b.replicated_elements, a.adapter_units - b.adapter_units};
}

Result<std::shared_ptr<const PlanModel>> find_plan_model(std::string_view name) {
  return table().get(name, [&] { return make_named(name); });
}

Result<std::shared_ptr<const PlanModel>> plan_model_from_config(std::string_view config_json) {
  return table().get(config_json, [&]() -> Result<std::shared_ptr<const PlanModel>> {
    FATHOM_TRY(model::ModelSpec spec, model::parse_config(config_json, "model.config"));
    return CachedModel::make(std::move(spec), "config");
  });
}

}  // namespace fathom::plan
