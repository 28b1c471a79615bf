// From one line of JSON to a PlanRequest. Names are looked up once and kept by their text.
#include <algorithm>
#include <mutex>
#include <shared_mutex>
#include <unordered_map>

#include "base/i18n.h"
#include "base/strings.h"
#include "plan/engine_profile.h"
#include "plan/json_line.h"
#include "plan/request.h"

namespace fathom::plan {
namespace {

constexpr std::int64_t kMostDevices = 1 << 20, kMostTokens = std::int64_t{1} << 31, kMostBatch = std::int64_t{1} << 30;

/// What was found for a text, kept. Bounded: a stream may hold any number of different texts.
template <class Value>
class TextTable {
 public:
  template <class Make>
  Result<Value> get(std::string_view text, Make&& make) {
    {
      const std::shared_lock lock(mutex_);
      if (const auto at = found_.find(text); at != found_.end()) return at->second;
    }
    FATHOM_TRY(Value value, make());
    const std::unique_lock lock(mutex_);
    if (found_.size() >= 4096) found_.clear();
    found_.try_emplace(std::string(text), value);
    return value;
  }

 private:
  struct Hash {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
  };
  std::shared_mutex mutex_;
  std::unordered_map<std::string, Value, Hash, std::equal_to<>> found_;
};

std::string shown(const JsonPiece& piece) { return printable(piece.text, 40); }

tl::unexpected<Error> wrong_type(std::string_view key, const char* expected, const JsonPiece& piece) {
  return fail("plan.wrong_type", {{"key", std::string(key)}, {"expected", tr(expected)}, {"value", shown(piece)}});
}

class RequestReader {
 public:
  RequestReader(const JsonObject& object, const Cluster* cluster) : object_(object), cluster_(cluster) {}

  Result<PlanRequest> read() {
    FATHOM_TRY_VOID(check_keys());
    PlanRequest request;
    FATHOM_TRY_VOID(read_model(request));
    FATHOM_TRY_VOID(read_hardware(request));
    FATHOM_TRY_VOID(read_precision(request));
    FATHOM_TRY_VOID(read_layout(request));
    FATHOM_TRY_VOID(read_load(request));
    FATHOM_TRY_VOID(check_request(request));
    return request;
  }

 private:
  static constexpr std::string_view kKeys[] = {"id",        "model",     "hardware",  "gpus",        "gpus_per_node",
                                               "network",   "task",      "engine",    "weights",     "compute",
                                               "kv",        "tp",        "pp",        "dp",          "dp_attention",
                                               "ep",        "cp",        "vp",        "zero",        "offload",
                                               "recompute", "optimizer", "lora_rank", "micro_batch", "global_batch",
                                               "seq",       "batch",     "input",     "output",      "speculative",
                                               "measured"};

  Status check_keys() const {
    for (const JsonMember* member = object_.begin(); member != object_.end(); ++member) {
      if (std::find(std::begin(kKeys), std::end(kKeys), member->key) == std::end(kKeys)) {
        std::vector<std::string> known(std::begin(kKeys), std::end(kKeys));
        const auto near = nearest_names(member->key, known);
        return near.empty() ? fail("plan.unknown_key", {{"key", printable(member->key)}})
                            : fail("plan.unknown_key_near", {{"key", printable(member->key)}, {"near", join(near)}});
      }
      for (const JsonMember* other = object_.begin(); other != member; ++other)
        if (other->key == member->key) return fail("plan.key_twice", {{"key", printable(member->key)}});
    }
    return {};
  }

  /// The piece of a key that is there and not null.
  const JsonPiece* given(std::string_view key) const {
    const JsonPiece* piece = object_.find(key);
    return piece != nullptr && piece->kind != JsonPiece::Kind::kNull ? piece : nullptr;
  }

  Result<std::optional<std::string>> text(std::string_view key) const {
    const JsonPiece* piece = given(key);
    if (piece == nullptr) return std::optional<std::string>();
    auto value = piece->string();
    if (!value) return wrong_type(key, "plan.type.text", *piece);
    return value;
  }

  Result<std::optional<std::int64_t>> count(std::string_view key, std::int64_t low, std::int64_t high) const {
    const JsonPiece* piece = given(key);
    if (piece == nullptr) return std::optional<std::int64_t>();
    const auto value = piece->integer();
    if (!value && piece->kind != JsonPiece::Kind::kNumber) return wrong_type(key, "plan.type.count", *piece);
    if (!value || *value < low || *value > high)
      return fail("plan.out_of_range", {{"key", std::string(key)},
                                        {"value", shown(*piece)},
                                        {"low", std::to_string(low)},
                                        {"high", std::to_string(high)}});
    return value;
  }

  Status set_int(std::string_view key, std::int64_t low, std::int64_t high, std::optional<int>& to) const {
    FATHOM_TRY(const auto value, count(key, low, high));
    if (value) to = static_cast<int>(*value);
    return {};
  }

  Status read_model(PlanRequest& request) const {
    const JsonPiece* piece = given("model");
    if (piece == nullptr) return fail("plan.missing", {{"key", "model"}});
    if (const auto name = piece->string()) {
      FATHOM_TRY(request.model, find_plan_model(*name));
      return {};
    }
    if (piece->kind != JsonPiece::Kind::kObject) return wrong_type("model", "plan.type.model", *piece);
    std::size_t ignored = 0;
    const auto inner = JsonObject::parse(piece->text, ignored);
    const JsonPiece* config = inner ? inner->find("config") : nullptr;
    if (config == nullptr || config->kind != JsonPiece::Kind::kObject || inner->size() != 1)
      return wrong_type("model", "plan.type.model", *piece);
    FATHOM_TRY(request.model, plan_model_from_config(config->text));
    return {};
  }

  Status read_hardware(PlanRequest& request) const {
    if (cluster_ != nullptr) return read_count_of_given(request);
    FATHOM_TRY(const auto name, text("hardware"));
    if (!name) return fail("plan.missing", {{"key", "hardware"}});
    static TextTable<hardware::HardwareChoice> choices;
    FATHOM_TRY(const hardware::HardwareChoice choice,
               choices.get(*name, [&] { return hardware::parse_hardware(*name); }));
    FATHOM_TRY(const auto gpus, count("gpus", 1, kMostDevices));
    FATHOM_TRY(const auto per_node, count("gpus_per_node", 1, kMostDevices));
    std::vector<std::string> network;
    if (const JsonPiece* piece = given("network")) {
      if (const auto one = piece->string()) {
        network.push_back(*one);
      } else {
        auto items = string_items(*piece, 4);
        if (!items) return wrong_type("network", "plan.type.network", *piece);
        network = std::move(*items);
      }
    }
    const int devices = gpus ? static_cast<int>(*gpus) : choice.count;
    const std::optional<int> node = per_node ? std::optional<int>(static_cast<int>(*per_node)) : std::nullopt;
    if (!network.empty() || node) {
      FATHOM_TRY(request.cluster, make_cluster(choice, devices, node, network));
      return {};
    }
    static TextTable<Cluster> clusters;
    FATHOM_TRY(request.cluster,
               clusters.get(*name + "\n" + std::to_string(devices), [&] { return make_cluster(choice, devices); }));
    return {};
  }

  /// A machine's devices: all, or as many as asked for.
  Status read_count_of_given(PlanRequest& request) const {
    request.cluster = *cluster_;
    FATHOM_TRY(const auto gpus, count("gpus", 1, std::max(cluster_->devices, 1)));
    if (gpus) request.cluster.devices = static_cast<int>(*gpus);
    return {};
  }

  Status read_precision(PlanRequest& request) const {
    FATHOM_TRY(const auto task, text("task"));
    if (!task) return fail("plan.missing", {{"key", "task"}});
    FATHOM_TRY(request.task, parse_task(*task));
    FATHOM_TRY(const auto engine, text("engine"));
    FATHOM_TRY(request.engine, engine ? find_engine(*engine)
                                      : default_engine(task_name(request.task), request.cluster.device.is_cpu()));
    FATHOM_TRY(const auto weights, text("weights"));
    FATHOM_TRY(request.weights, weights ? find_weight_format(*weights) : default_weights(request.task));
    FATHOM_TRY(const auto kv, text("kv"));
    if (kv) {
      FATHOM_TRY(request.kv, find_kv_format(*kv, request.engine->own_kernels));
    }
    FATHOM_TRY(const auto compute, text("compute"));
    if (!compute) return {};
    request.compute = hardware::parse_precision(to_lower(trim(*compute)));
    if (!request.compute)
      return fail("plan.unknown_value", {{"key", "compute"},
                                         {"value", printable(*compute)},
                                         {"known", "fp32, tf32, fp16, bf16, fp8, int8, fp4, int4"}});
    return {};
  }

  Status read_layout(PlanRequest& request) const {
    LayoutWish& wish = request.layout;
    const std::pair<std::string_view, std::optional<int>*> sizes[] = {
        {"tp", &wish.tp}, {"pp", &wish.pp}, {"dp", &wish.dp}, {"dp_attention", &wish.dp_attention},
        {"ep", &wish.ep}, {"cp", &wish.cp}, {"vp", &wish.vp}};
    for (const auto& [key, to] : sizes) FATHOM_TRY_VOID(set_int(key, 1, kMostDevices, *to));
    FATHOM_TRY_VOID(set_int("zero", 0, 3, wish.zero));
    FATHOM_TRY(const auto offload, text("offload"));
    if (offload) {
      FATHOM_TRY(wish.offload, parse_offload(*offload));
    }
    FATHOM_TRY(const auto recompute, text("recompute"));
    if (recompute) {
      FATHOM_TRY(wish.recompute, parse_recompute(*recompute));
    }
    FATHOM_TRY(wish.micro_batch, count("micro_batch", 1, kMostBatch));
    FATHOM_TRY(const auto optimizer, text("optimizer"));
    if (optimizer) {
      FATHOM_TRY(request.optimizer, parse_optimizer(*optimizer));
    }
    FATHOM_TRY(const auto rank, count("lora_rank", 1, 1 << 16));
    request.lora_rank = rank.value_or(request.lora_rank);
    return {};
  }

  Status read_load(PlanRequest& request) const {
    FATHOM_TRY(request.global_batch, count("global_batch", 1, kMostBatch));
    FATHOM_TRY(const auto seq, count("seq", 1, kMostTokens));
    request.seq = seq.value_or(request.seq);
    FATHOM_TRY(request.batch, count("batch", 1, kMostBatch));
    FATHOM_TRY(const auto input, count("input", 0, kMostTokens));
    FATHOM_TRY(const auto output, count("output", 0, kMostTokens));
    request.input = input.value_or(request.input);
    request.output = output.value_or(request.output);
    if (request.task == Task::kChat && !request.batch) request.batch = 1;
    FATHOM_TRY(const auto speculative, text("speculative"));
    if (!speculative || *speculative == "none") return {};
    if (speculative->starts_with("mtp:") && speculative->size() == 5 && (*speculative)[4] >= '1' &&
        (*speculative)[4] <= '9') {
      request.mtp_drafts = (*speculative)[4] - '0';
      return {};
    }
    return fail("plan.unknown_value",
                {{"key", "speculative"}, {"value", printable(*speculative)}, {"known", "none, mtp:1 … mtp:9"}});
  }

  const JsonObject& object_;
  const Cluster* cluster_;
};

}  // namespace

Status check_request(const PlanRequest& request) {
  if (!is_training(request.task) && request.input + request.output < 1) return fail("plan.no_tokens");
  if (request.mtp_drafts > 0 && request.model->spec().mtp_layers == 0 && request.model->spec().dspark.blocks == 0)
    return fail("plan.no_mtp", {{"model", printable(request.model->name())}});
  if (request.cluster.device.capacity_bytes == 0)
    return fail("plan.no_capacity", {{"device", request.cluster.device.id}});
  return {};
}

Result<PlanRequest> parse_request(std::string_view line, std::string& id_json, const Cluster* cluster) {
  id_json = "null";
  std::size_t bad_byte = 0;
  const auto object = JsonObject::parse(line, bad_byte);
  if (!object) return fail("plan.bad_json", {{"byte", std::to_string(bad_byte + 1)}});
  if (const JsonPiece* id = object->find("id")) id_json = std::string(id->text);
  FATHOM_TRY(PlanRequest request, RequestReader(*object, cluster).read());
  request.id_json = id_json;
  return request;
}

}  // namespace fathom::plan
