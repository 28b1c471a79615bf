#include "model/architecture.h"

#include <algorithm>
#include <array>

#include "base/json.h"
#include "base/strings.h"
#include "base/units.h"
#include "model/architectures/registry.h"
#include "model/blocks.h"

namespace fathom::model {

std::span<const ArchitectureEntry> architectures() {
  static constexpr ArchitectureEntry list[] = {
      {"llama", parse_llama, make_dense},
      {"qwen2", parse_qwen2, make_dense},
      {"qwen3", parse_qwen3, make_dense},
      {"deepseek", parse_deepseek_moe, make_deepseek_moe},
      {"deepseek_v2", parse_deepseek_v2, make_deepseek_mla},
      {"deepseek_v3", parse_deepseek_v3, make_deepseek_mla},
      {"deepseek_v32", parse_deepseek_v32, make_deepseek_mla},
      {"deepseek_v4", parse_deepseek_v4, make_deepseek_v4},
      {"deepseek_v41", parse_deepseek_v41, make_deepseek_v41},
      {"gpt3", parse_gpt3, make_gpt3},
  };
  return list;
}

std::vector<std::string> known_model_types() {
  std::vector<std::string> names;
  for (const ArchitectureEntry& entry : architectures()) names.emplace_back(entry.model_type);
  return names;
}

Result<ModelSpec> parse_config(std::string_view text, std::string_view what) {
  FATHOM_TRY(const Json json, parse_json(text, what));
  if (!json.is_object()) return fail("model.config_not_object", {{"what", std::string(what)}});
  FATHOM_TRY(const auto type, json_string(json, "model_type", what));
  if (!type) return fail("model.config_missing", {{"key", "model_type"}, {"what", std::string(what)}});
  for (const ArchitectureEntry& entry : architectures()) {
    if (entry.model_type != *type) continue;
    ModelSpec spec;
    ConfigReader reader(json, std::string(what));
    reader.ignore({"model_type"});
    entry.parse(reader, spec);
    FATHOM_TRY_VOID(reader.finish());
    spec.model_type = *type;
    spec.config_json = dump_json(json, 2);
    return spec;
  }
  const auto known = known_model_types();
  const auto near = nearest_names(*type, known);
  return fail_unsupported(
      "model.unknown_model_type",
      {{"type", printable(*type)}, {"what", std::string(what)}, {"known", join(near.empty() ? known : near)}});
}

Result<ModelSpec> load_config(const Path& path) {
  std::error_code ignored;
  const Path file = std::filesystem::is_directory(path, ignored) ? path / "config.json" : path;
  FATHOM_TRY(const std::string text, read_file(file, 4 * kMiB));
  return parse_config(text, file.string());
}

Result<std::unique_ptr<Architecture>> make_architecture(const ModelSpec& spec, const Sharding& sharding) {
  FATHOM_TRY_VOID(check_divides("num_attention_heads", spec.heads, sharding.tp));
  if (spec.kv_heads >= sharding.tp)
    FATHOM_TRY_VOID(check_divides("num_key_value_heads", spec.kv_heads, sharding.tp));
  else
    FATHOM_TRY_VOID(check_divides("tp", sharding.tp, spec.kv_heads));
  if (spec.intermediate > 0) FATHOM_TRY_VOID(check_divides("intermediate_size", spec.intermediate, sharding.tp));
  if (spec.routing.experts > 0) {
    FATHOM_TRY_VOID(check_divides("n_routed_experts", spec.routing.experts, sharding.ep));
    FATHOM_TRY_VOID(check_divides("moe_intermediate_size", spec.expert_intermediate, sharding.expert_tp));
    FATHOM_TRY_VOID(check_divides("moe_intermediate_size",
                                  spec.expert_intermediate * std::max<std::int64_t>(spec.shared_experts, 1),
                                  sharding.tp));
  }
  for (const ArchitectureEntry& entry : architectures())
    if (entry.model_type == spec.model_type) return entry.make(spec, sharding);
  FATHOM_CHECK(false, "a spec without an architecture");
}

void Architecture::begin(Pass& pass) const {
  FATHOM_CHECK(constant_tensors_.size() == constants_.size(), "bind_constants first");
  pass.rotary.clear();
  pass.shared.clear();
  const std::array ropes = {&spec_.rope, &spec_.compress_rope};
  const std::size_t count = std::min(constant_tensors_.size(), ropes.size());
  FATHOM_CHECK(count == constant_tensors_.size(), "a rotation that no spec describes");
  for (std::size_t i = 0; i < count; ++i)
    pass.rotary.push_back(rotary(pass.ops, pass.batch.positions, constant_tensors_[i], rotary_scale(*ropes[i])));
}

tensor::Value Architecture::forward(Pass& pass) const {
  const std::int64_t last = sharding_.last_layer < 0 ? spec_.layers : sharding_.last_layer;
  const int stage = pass.comm.rank(tensor::Group::kPipeline);
  begin(pass);
  tensor::Value hidden;
  if (sharding_.first_layer == 0) {
    hidden = embed(pass);
  } else {
    hidden = spec_.hyper_streams > 0 ? allocate(pass.ops, {pass.batch.tokens, spec_.hyper_streams, spec_.hidden})
                                     : allocate(pass.ops, {pass.batch.tokens, spec_.hidden});
    pass.comm.receive(tensor::Group::kPipeline, stage - 1, hidden);
  }
  for (std::int64_t i = sharding_.first_layer; i < last; ++i) {
    hidden = pass.ops.block(hidden, [this, &pass, i](const tensor::Tensor& input) {
      return layer(pass, i, input);
    });  // a tape may run it again later
    pass.comm.beat();
  }
  if (last == spec_.layers) return head(pass, hidden);
  pass.comm.send(tensor::Group::kPipeline, stage + 1, hidden);
  return {};
}

}  // namespace fathom::model
