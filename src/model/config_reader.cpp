#include "model/config_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "base/strings.h"

namespace fathom::model {
namespace {

// Keys that say nothing about the mathematics of a forward pass. One explicit list, for every architecture.
constexpr std::string_view kHarmless[] = {
    "architectures",
    "auto_map",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "use_cache",
    "initializer_range",
    "_name_or_path",
    "_attn_implementation",
    "_attn_implementation_autoset",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "unk_token_id",
    "sep_token_id",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "return_dict",
    "torchscript",
    "pruned_heads",
    "chunk_size_feed_forward",
    "is_encoder_decoder",
    "is_decoder",
    "add_cross_attention",
    "tie_encoder_decoder",
    "cross_attention_hidden_size",
    "id2label",
    "label2id",
    "problem_type",
    "finetuning_task",
    "tokenizer_class",
    "prefix",
    "task_specific_params",
    "model_max_length",
    "use_bfloat16",
    "tf_legacy_loss",
    // training only
    "attention_dropout",
    "hidden_dropout",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "aux_loss_alpha",
    "seq_aux",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "pretraining_tp",
    "gradient_checkpointing",
    "ep_size",
    // decoding defaults, read elsewhere or not at all
    "max_length",
    "min_length",
    "temperature",
    "top_k",
    "top_p",
    "do_sample",
    "num_beams",
    "repetition_penalty",
    "length_penalty",
    "no_repeat_ngram_size",
    "keys_to_ignore_at_inference",
    "num_experts",
    "num_local_experts",
    "source_note",
};

bool equal_json(const Json& a, const Json& b) {
  if (a.is_number() && b.is_number()) return a.get<double>() == b.get<double>();
  return a == b;
}

}  // namespace

bool ConfigReader::has(std::string_view key) const {
  const auto found = object_.find(std::string(key));
  return found != object_.end() && !found->is_null();
}

const Json* ConfigReader::find(std::string_view key) {
  read_.emplace(key);
  const auto found = object_.find(std::string(key));
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

void ConfigReader::problem(Error error) {
  if (!failed_) error_ = std::move(error);
  failed_ = true;
}

void ConfigReader::require(bool condition, std::string_view error_key, ErrorArgs args) {
  if (!condition) problem(fail(error_key, args).value());
}

std::int64_t ConfigReader::integer(std::string_view key, std::int64_t min, std::int64_t max) {
  if (find(key) == nullptr) {
    problem(fail("model.config_missing", {{"key", std::string(key)}, {"what", what_}}).value());
    return std::max<std::int64_t>(min, 1);
  }
  return integer_or(key, min, min, max);
}

std::int64_t ConfigReader::integer_or(std::string_view key, std::int64_t otherwise, std::int64_t min,
                                      std::int64_t max) {
  if (find(key) == nullptr) return otherwise;
  auto value = json_integer(object_, key, what_);
  if (!value) {
    problem(std::move(value.error()));
    return otherwise;
  }
  if (**value < min || **value > max) {
    problem(fail("model.config_range", {{"key", std::string(key)},
                                        {"what", what_},
                                        {"value", std::to_string(**value)},
                                        {"min", std::to_string(min)},
                                        {"max", std::to_string(max)}})
                .value());
    return otherwise;
  }
  return **value;
}

double ConfigReader::number_or(std::string_view key, double otherwise, double min, double max) {
  if (find(key) == nullptr) return otherwise;
  auto value = json_number(object_, key, what_);
  if (!value) {
    problem(std::move(value.error()));
    return otherwise;
  }
  if (!(**value >= min && **value <= max)) {
    problem(fail("model.config_range", {{"key", std::string(key)},
                                        {"what", what_},
                                        {"value", fmt::format("{}", **value)},
                                        {"min", fmt::format("{}", min)},
                                        {"max", fmt::format("{}", max)}})
                .value());
    return otherwise;
  }
  return **value;
}

bool ConfigReader::boolean_or(std::string_view key, bool otherwise) {
  if (find(key) == nullptr) return otherwise;
  auto value = json_bool(object_, key, what_);
  if (value) return **value;
  problem(std::move(value.error()));
  return otherwise;
}

std::string ConfigReader::string_or(std::string_view key, std::string_view otherwise) {
  if (find(key) == nullptr) return std::string(otherwise);
  auto value = json_string(object_, key, what_);
  if (value) return **value;
  problem(std::move(value.error()));
  return std::string(otherwise);
}

std::vector<std::int64_t> ConfigReader::integers_or_empty(std::string_view key, std::int64_t min, std::int64_t max) {
  const Json* value = find(key);
  if (value == nullptr) return {};
  const auto bad = [&] {
    problem(fail("base.json_wrong_type", {{"key", std::string(key)},
                                          {"what", what_},
                                          {"expected", "[integer]"},
                                          {"value", printable(dump_json(*value), 40)}})
                .value());
  };
  std::vector<std::int64_t> out;
  if (value->is_number()) return {integer_or(key, min, min, max)};
  if (!value->is_array() || value->size() > 100000) return bad(), out;
  for (const Json& item : *value) {
    if (!item.is_number_integer()) return bad(), out;
    const double wide = item.get<double>();
    if (!(wide >= static_cast<double>(min) && wide <= static_cast<double>(max))) return bad(), out;
    out.push_back(item.get<std::int64_t>());
  }
  return out;
}

std::vector<std::string> ConfigReader::strings_or_empty(std::string_view key) {
  const Json* value = find(key);
  std::vector<std::string> out;
  if (value == nullptr) return out;
  bool good = value->is_array() && value->size() <= 100000;
  if (good)
    for (const Json& item : *value) {
      good = good && item.is_string();
      if (good) out.push_back(item.get<std::string>());
    }
  if (!good)
    problem(fail("base.json_wrong_type", {{"key", std::string(key)},
                                          {"what", what_},
                                          {"expected", "[string]"},
                                          {"value", printable(dump_json(*value), 40)}})
                .value());
  return out;
}

const Json* ConfigReader::object_or_null(std::string_view key) {
  const Json* value = find(key);
  if (value != nullptr && !value->is_object()) {
    problem(fail("base.json_wrong_type", {{"key", std::string(key)},
                                          {"what", what_},
                                          {"expected", "object"},
                                          {"value", printable(dump_json(*value), 40)}})
                .value());
    return nullptr;
  }
  return value;
}

void ConfigReader::expect(std::string_view key, std::initializer_list<Json> allowed) {
  const Json* value = find(key);
  if (value == nullptr) return;
  std::string names;
  for (const Json& one : allowed) {
    if (equal_json(*value, one)) return;
    names += (names.empty() ? "" : ", ") + dump_json(one);
  }
  problem(
      fail_unsupported(
          "model.config_unsupported",
          {{"key", std::string(key)}, {"what", what_}, {"value", printable(dump_json(*value), 60)}, {"allowed", names}})
          .value());
}

void ConfigReader::ignore(std::initializer_list<std::string_view> keys) {
  for (const std::string_view key : keys) read_.emplace(key);
}

Status ConfigReader::finish() {
  if (failed_) return tl::unexpected<Error>(error_);
  for (const auto& [key, value] : object_.items()) {
    if (read_.contains(key) || std::find(std::begin(kHarmless), std::end(kHarmless), key) != std::end(kHarmless))
      continue;
    return fail_unsupported("model.config_unknown_key",
                            {{"key", printable(key)}, {"what", what_}, {"value", printable(dump_json(value), 60)}});
  }
  return {};
}

// ---------------------------------------------------------------- shared groups of keys

RopeSpec read_rope_object(ConfigReader& reader, const Json& object, std::int64_t dims, double theta) {
  ConfigReader rope(object, reader.what() + ": rope");
  RopeSpec spec;
  spec.dims = dims;
  spec.theta = rope.number_or("rope_theta", theta, 1.0, 1e12);
  const std::string type = rope.string_or("rope_type", rope.string_or("type", "default"));
  rope.number_or("partial_rotary_factor", 1, 0, 1);  // the caller knows `dims`
  if (type == "default") {
    spec.type = RopeSpec::Type::kDefault;
    // A converted config may keep the numbers of a scaling that is switched off.
    rope.ignore({"factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
                 "low_freq_factor", "high_freq_factor"});
  } else if (type == "linear") {
    spec.type = RopeSpec::Type::kLinear;
    spec.factor = rope.number_or("factor", 0, 1e-6, 1e6);
    rope.require(spec.factor > 0, "model.rope_missing", {{"key", "factor"}, {"what", reader.what()}});
  } else if (type == "llama3") {
    spec.type = RopeSpec::Type::kLlama3;
    spec.factor = rope.number_or("factor", 0, 1e-6, 1e6);
    spec.low_frequency_factor = rope.number_or("low_freq_factor", 1, 1e-6, 1e6);
    spec.high_frequency_factor = rope.number_or("high_freq_factor", 4, 1e-6, 1e6);
    spec.original_context = rope.integer("original_max_position_embeddings");
    rope.require(spec.factor > 0, "model.rope_missing", {{"key", "factor"}, {"what", reader.what()}});
    rope.require(spec.high_frequency_factor > spec.low_frequency_factor, "model.rope_factors",
                 {{"what", reader.what()}});
  } else if (type == "yarn") {
    spec.type = RopeSpec::Type::kYarn;
    spec.factor = rope.number_or("factor", 0, 1e-6, 1e6);
    spec.original_context = rope.integer("original_max_position_embeddings");
    spec.beta_fast = rope.number_or("beta_fast", 32, 1e-6, 1e6);
    spec.beta_slow = rope.number_or("beta_slow", 1, 1e-6, 1e6);
    spec.mscale = rope.number_or("mscale", 0, 0, 1e3);
    spec.mscale_all_dim = rope.number_or("mscale_all_dim", 0, 0, 1e3);
    if (rope.has("attention_factor")) spec.attention_factor = rope.number_or("attention_factor", 1, 1e-6, 1e6);
    spec.attention_multiplier = rope.number_or("attn_factor", 1, 1e-6, 1e6);
    spec.truncate = rope.boolean_or("truncate", true);
    rope.require(spec.factor > 0, "model.rope_missing", {{"key", "factor"}, {"what", reader.what()}});
    rope.require(spec.theta > 1.0, "model.rope_theta", {{"what", reader.what()}});
  } else {
    rope.problem(fail_unsupported("model.rope_type", {{"type", printable(type)}, {"what", reader.what()}}).value());
  }
  if (auto status = rope.finish(); !status) reader.problem(status.error());
  return spec;
}

RopeSpec read_rope(ConfigReader& reader, std::int64_t dims, double default_theta) {
  const double theta = reader.number_or("rope_theta", default_theta, 1.0, 1e12);
  const Json* parameters = reader.object_or_null("rope_parameters");
  const Json* scaling = reader.object_or_null("rope_scaling");
  reader.require(dims > 0 && dims % 2 == 0, "model.rope_dims",
                 {{"dims", std::to_string(dims)}, {"what", reader.what()}});
  static const Json kEmpty = Json::object();
  return read_rope_object(reader,
                          parameters != nullptr ? *parameters
                          : scaling != nullptr  ? *scaling
                                                : kEmpty,
                          dims, theta);
}

bool read_quantization(ConfigReader& reader, ModelSpec& spec) {
  const Json* object = reader.object_or_null("quantization_config");
  if (object == nullptr) return false;
  if (object->value("quant_method", Json()) == "compressed-tensors") {
    auto quantization = read_compressed_tensors(*object, spec.plain_format, reader.what() + ": quantization_config");
    if (!quantization) {
      reader.problem(quantization.error());
      return false;
    }
    spec.quantization = std::move(*quantization);
    spec.linear_format = spec.expert_format = spec.quantization.groups[0].format;
    return false;
  }
  ConfigReader quantization(*object, reader.what() + ": quantization_config");
  const std::string method = quantization.string_or("quant_method", "");
  const std::vector<std::int64_t> block = quantization.integers_or_empty("weight_block_size", 1, 1 << 20);
  quantization.expect("fmt", {"e4m3"});
  quantization.expect("activation_scheme", {"dynamic"});
  const std::string scales = quantization.string_or("scale_fmt", "");
  quantization.ignore({"modules_to_not_convert", "expert_dtype"});
  if (method != "fp8" || block.size() != 2 || block[0] != block[1] || (block[0] != 128 && block[0] != 32))
    quantization.problem(
        fail_unsupported("model.quantization", {{"method", printable(method.empty() ? dump_json(*object) : method, 40)},
                                                {"what", reader.what()}})
            .value());
  if (auto status = quantization.finish(); !status) reader.problem(status.error());
  spec.linear_format =
      block.size() == 2 && block[0] == 32 ? tensor::WeightFormat::fp8_block32_e8m0 : tensor::WeightFormat::fp8_block128;
  spec.expert_format = spec.linear_format;
  spec.block_activations = scales == "ue8m0" ? tensor::Activations::kPerGroupOfPowers : tensor::Activations::kPerGroup;
  return true;
}

void read_common(ConfigReader& reader, ModelSpec& spec) {
  spec.hidden = reader.integer("hidden_size", 1, 1 << 20);
  spec.layers = reader.integer("num_hidden_layers", 1, 4096);
  spec.vocabulary = reader.integer("vocab_size", 1, 1 << 26);
  spec.heads = reader.integer("num_attention_heads", 1, 1 << 16);
  spec.kv_heads = reader.integer_or("num_key_value_heads", spec.heads, 1, 1 << 16);
  spec.max_context = reader.integer_or("max_position_embeddings", 2048, 1, std::int64_t{1} << 31);
  spec.norm_eps = reader.number_or("rms_norm_eps", reader.number_or("layer_norm_eps", 1e-6, 0, 1), 0, 1);
  spec.tied_embeddings = reader.boolean_or("tie_word_embeddings", false);
  spec.bos_ids = reader.integers_or_empty("bos_token_id", -1, 1 << 26);
  spec.eos_ids = reader.integers_or_empty("eos_token_id", -1, 1 << 26);
  const std::string dtype = reader.string_or("dtype", reader.string_or("torch_dtype", "bfloat16"));
  const auto parsed = parse_dtype(dtype);
  if (parsed && (*parsed == DType::f32 || *parsed == DType::f16 || *parsed == DType::bf16 || *parsed == DType::f64)) {
    spec.plain_format = tensor::plain_weight_format(*parsed);
  } else {
    reader.problem(
        fail_unsupported("model.config_dtype", {{"dtype", printable(dtype)}, {"what", reader.what()}}).value());
  }
  spec.linear_format = spec.expert_format = spec.plain_format;
  spec.layer.assign(static_cast<std::size_t>(spec.layers), LayerSpec{});
}

void read_experts(ConfigReader& reader, ModelSpec& spec) {
  spec.routing.experts = reader.integer("n_routed_experts", 1, 1 << 16);
  spec.routing.top_k = reader.integer("num_experts_per_tok", 1, 1 << 16);
  spec.shared_experts = reader.integer_or("n_shared_experts", 0, 0, 1 << 10);
  spec.expert_intermediate = reader.integer("moe_intermediate_size", 1, 1 << 20);
  spec.routing.groups = reader.integer_or("n_group", 1, 1, 1 << 16);
  spec.routing.top_groups = reader.integer_or("topk_group", 1, 1, 1 << 16);
  spec.routing.normalize = reader.boolean_or("norm_topk_prob", false);
  spec.routing.scaling = reader.number_or("routed_scaling_factor", 1, 0, 1e6);
  const std::int64_t frequency = reader.integer_or("moe_layer_freq", 1, 1, 4096);
  const std::int64_t dense = reader.integer_or("first_k_dense_replace", 0, 0, 4096);
  const std::vector<std::string> kinds = reader.strings_or_empty("mlp_layer_types");
  for (std::int64_t i = 0; i < spec.layers; ++i)
    spec.layer[static_cast<std::size_t>(i)].experts = i >= dense && i % frequency == 0;
  if (!kinds.empty() && static_cast<std::int64_t>(kinds.size()) != spec.layers)
    reader.problem(fail("model.config_list_length", {{"key", "mlp_layer_types"},
                                                     {"what", reader.what()},
                                                     {"found", std::to_string(kinds.size())},
                                                     {"expected", std::to_string(spec.layers)}})
                       .value());
  for (std::size_t i = 0; i < kinds.size() && i < spec.layer.size(); ++i) {
    LayerSpec& layer = spec.layer[i];
    layer.experts = kinds[i] == "sparse" || kinds[i] == "moe" || kinds[i] == "hash_moe";
    layer.hash_routed = kinds[i] == "hash_moe";
    if (!layer.experts && kinds[i] != "dense")
      reader.problem(fail_unsupported("model.config_unsupported", {{"key", "mlp_layer_types"},
                                                                   {"what", reader.what()},
                                                                   {"value", printable(kinds[i])},
                                                                   {"allowed", "dense, sparse, moe, hash_moe"}})
                         .value());
  }
  const tensor::Routing& r = spec.routing;
  const std::string what = reader.what();
  reader.require(r.top_k <= r.experts, "model.config_conflict",
                 {{"what", what}, {"a", "num_experts_per_tok"}, {"b", "n_routed_experts"}});
  reader.require(r.experts % r.groups == 0, "model.config_conflict",
                 {{"what", what}, {"a", "n_group"}, {"b", "n_routed_experts"}});
  reader.require(r.top_groups <= r.groups, "model.config_conflict",
                 {{"what", what}, {"a", "topk_group"}, {"b", "n_group"}});
  reader.require(r.experts / r.groups * r.top_groups >= r.top_k, "model.config_conflict",
                 {{"what", what}, {"a", "num_experts_per_tok"}, {"b", "topk_group"}});
}

}  // namespace fathom::model
