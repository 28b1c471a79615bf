#include "model/quantization.h"

#include <initializer_list>
#include <regex>

#include "base/strings.h"

namespace fathom::model {
using tensor::Activations;
using tensor::WeightFormat;

namespace {

// Takes fields out of an object; what nobody took is an error. The first problem is kept.
class Fields {
 public:
  Fields(const Json& object, std::string path) : object_(object), path_(std::move(path)) {}

  const Json* get(const char* key) {
    taken_.emplace_back(key);
    const auto at = object_.find(key);
    return at == object_.end() || at->is_null() ? nullptr : &*at;
  }
  /// Absent, null, or one of these.
  void expect(const char* key, std::initializer_list<Json> allowed) {
    const Json* value = get(key);
    if (value == nullptr) return;
    std::string names;
    for (const Json& one : allowed) {
      if (*value == one) return;
      names += (names.empty() ? "" : ", ") + dump_json(one);
    }
    refuse(key, *value, names.empty() ? "null" : names);
  }
  std::string text(const char* key, std::initializer_list<std::string_view> allowed, std::string_view otherwise = "") {
    const Json* value = get(key);
    if (value == nullptr && !otherwise.empty()) return std::string(otherwise);
    if (value != nullptr && value->is_string())
      for (const std::string_view one : allowed)
        if (*value == Json(one)) return std::string(one);
    std::vector<std::string> names(allowed.begin(), allowed.end());
    refuse(key, value == nullptr ? Json() : *value, join(names));
    return {};
  }
  std::int64_t integer(const char* key, std::int64_t otherwise) {
    const Json* value = get(key);
    if (value == nullptr) return otherwise;
    if (value->is_number_integer()) return value->get<std::int64_t>();
    refuse(key, *value, "-1 … 8192");
    return otherwise;
  }
  bool boolean(const char* key, bool otherwise) {
    const Json* value = get(key);
    if (value == nullptr) return otherwise;
    if (value->is_boolean()) return value->get<bool>();
    refuse(key, *value, "true, false");
    return otherwise;
  }
  void ignore(std::initializer_list<const char*> keys) { taken_.insert(taken_.end(), keys.begin(), keys.end()); }
  void refuse(std::string_view key, const Json& value, std::string_view allowed) {
    if (!status_) return;
    status_ = fail_unsupported("model.quantization_field", {{"path", path_ + "." + std::string(key)},
                                                            {"value", printable(dump_json(value), 60)},
                                                            {"allowed", std::string(allowed)}});
  }
  Status finish() {
    for (const auto& [key, value] : object_.items())
      if (std::find(taken_.begin(), taken_.end(), key) == taken_.end()) refuse(printable(key), value, "null");
    return status_;
  }

 private:
  const Json& object_;
  std::string path_;
  std::vector<std::string> taken_;
  Status status_;
};

struct Numbers {
  std::string type, strategy;
  std::int64_t bits = 0, group = 0;
  bool symmetric = true, dynamic = false, block128 = false;
};

Result<Numbers> read_numbers(const Json& object, const std::string& path) {
  if (!object.is_object())
    return fail("model.quantization_field",
                {{"path", path}, {"value", printable(dump_json(object), 60)}, {"allowed", "{…}"}});
  Fields fields(object, path);
  Numbers numbers;
  numbers.type = fields.text("type", {"float", "int"}, "int");
  numbers.bits = fields.integer("num_bits", 8);
  numbers.group = fields.integer("group_size", 0);
  numbers.symmetric = fields.boolean("symmetric", true);
  numbers.dynamic = fields.boolean("dynamic", false);
  // Newer files leave the strategy out where the group size says it.
  numbers.strategy = fields.text("strategy", {"tensor", "channel", "group", "block", "token"},
                                 numbers.group > 0     ? "group"
                                 : numbers.group == -1 ? "channel"
                                                       : "tensor");
  fields.expect("actorder", {"static", "weight",
                             false});  // columns that lie in another order ("group") need an index that is not read
  fields.expect("block_structure", {Json::array({128, 128}), "128x128"});
  numbers.block128 = fields.get("block_structure") != nullptr;
  fields.ignore({"observer", "observer_kwargs", "scale_dtype", "zp_dtype"});
  FATHOM_TRY_VOID(fields.finish());
  return numbers;
}

tl::unexpected<Error> refused(const std::string& path, const Json& object) {
  return fail_unsupported("model.quantization_scheme", {{"path", path}, {"value", printable(dump_json(object), 160)}});
}

Result<WeightFormat> weight_format(const Json& object, const std::string& path, const std::string& file_format,
                                   WeightFormat plain) {
  FATHOM_TRY(const Numbers n, read_numbers(object, path));
  const bool whole = n.strategy == "channel" || n.strategy == "tensor";
  const bool floats = file_format == "float-quantized" || file_format == "naive-quantized";
  if (n.dynamic) return refused(path, object);
  if (floats && n.type == "float" && n.bits == 8 && n.symmetric) {
    if (whole) return WeightFormat::fp8_row;
    if (n.strategy == "block" && n.block128) return WeightFormat::fp8_block128;
  }
  if (file_format == "int-quantized" && n.type == "int" && n.bits == 8 && n.symmetric && whole)
    return WeightFormat::int8_row;
  if (file_format == "pack-quantized" && n.type == "int" && n.bits == 4 && n.strategy == "group" && n.group == 128) {
    const bool half = plain == WeightFormat::f16;
    if (n.symmetric) return half ? WeightFormat::int4_group128_f16 : WeightFormat::int4_group128;
    return half ? WeightFormat::int4_group128_zero_f16 : WeightFormat::int4_group128_zero;
  }
  return refused(path, object);
}

Result<Activations> activations(const Json* object, const std::string& path, WeightFormat format) {
  if (object == nullptr) return Activations::kAsTheyAre;
  FATHOM_TRY(const Numbers n, read_numbers(*object, path));
  const bool eight = n.bits == 8 && n.symmetric && n.dynamic;
  if (format == WeightFormat::fp8_block128 && eight && n.type == "float") {
    if (n.strategy == "group" && n.group == 128) return Activations::kPerGroup;
    if (n.strategy == "token") return Activations::kAsTheyAre;  // closer than what is asked for
  }
  const bool same =
      (format == WeightFormat::fp8_row && n.type == "float") || (format == WeightFormat::int8_row && n.type == "int");
  if (same && eight && n.strategy == "token") return Activations::kPerToken;
  return refused(path, *object);
}

Result<std::vector<ModulePattern>> patterns(const Json* list, const std::string& path) {
  std::vector<ModulePattern> out;
  if (list == nullptr) return out;
  if (!list->is_array())
    return fail("model.quantization_field",
                {{"path", path}, {"value", printable(dump_json(*list), 60)}, {"allowed", "[…]"}});
  for (const Json& item : *list) {
    if (!item.is_string())
      return fail("model.quantization_field",
                  {{"path", path}, {"value", printable(dump_json(item), 60)}, {"allowed", "\"…\""}});
    FATHOM_TRY(ModulePattern pattern, ModulePattern::parse(item.get<std::string>()));
    out.push_back(std::move(pattern));
  }
  return out;
}

Result<QuantizationGroup> read_group(const Json& object, const std::string& path, const std::string& whole_format,
                                     WeightFormat plain) {
  if (!object.is_object())
    return fail("model.quantization_field",
                {{"path", path}, {"value", printable(dump_json(object), 60)}, {"allowed", "{…}"}});
  Fields fields(object, path);
  QuantizationGroup group;
  const std::string format =
      fields.text("format", {"float-quantized", "naive-quantized", "int-quantized", "pack-quantized"}, whole_format);
  FATHOM_TRY(auto targets, patterns(fields.get("targets"), path + ".targets"));
  for (ModulePattern& target : targets) {
    if (target.text() == "Linear")
      group.all_linear = true;
    else
      group.targets.push_back(std::move(target));
  }
  fields.expect("output_activations", {});
  const Json* weights = fields.get("weights");
  const Json* input = fields.get("input_activations");
  FATHOM_TRY_VOID(fields.finish());
  FATHOM_TRY(group.format,
             weight_format(weights == nullptr ? Json::object() : *weights, path + ".weights", format, plain));
  FATHOM_TRY(group.activations, activations(input, path + ".input_activations", group.format));
  return group;
}

bool is_empty(const Json* value) {
  return value == nullptr || (value->is_object() && (value->empty() || value->value("format", "") == "dense"));
}

}  // namespace

Result<ModulePattern> ModulePattern::parse(std::string_view text) {
  ModulePattern pattern;
  pattern.text_ = text;
  if (!text.starts_with("re:")) return pattern;
  try {
    pattern.expression_ =
        std::make_shared<const std::regex>(std::string(text.substr(3)), std::regex::ECMAScript | std::regex::optimize);
  } catch (const std::regex_error&) {
    return fail("model.quantization_pattern", {{"pattern", printable(text)}});
  }
  return pattern;
}

bool ModulePattern::matches(std::string_view module) const {
  if (expression_ == nullptr) return module == text_;
  const auto& expression = *static_cast<const std::regex*>(expression_.get());
  return std::regex_search(module.begin(), module.end(), expression, std::regex_constants::match_continuous);
}

const QuantizationGroup* Quantization::group_of(std::string_view module) const {
  const auto any = [&](const std::vector<ModulePattern>& list) {
    return std::any_of(list.begin(), list.end(), [&](const ModulePattern& p) { return p.matches(module); });
  };
  if (any(ignore)) return nullptr;
  for (const QuantizationGroup& group : groups)
    if (any(group.targets)) return &group;
  for (const QuantizationGroup& group : groups)
    if (group.all_linear) return &group;
  return nullptr;
}

Result<Quantization> read_compressed_tensors(const Json& object, WeightFormat plain, std::string_view what) {
  const std::string path(what);
  Fields fields(object, path);
  Quantization quantization;
  const std::string format = fields.text(
      "format", {"float-quantized", "naive-quantized", "int-quantized", "pack-quantized", "mixed-precision"},
      "mixed-precision");
  fields.expect("quantization_status", {"compressed"});
  fields.expect("kv_cache_scheme", {});
  for (const char* key : {"sparsity_config", "transform_config"})
    if (const Json* value = fields.get(key); !is_empty(value)) fields.refuse(key, *value, "null");
  fields.ignore({"quant_method", "global_compression_ratio", "version"});
  const Json* groups = fields.get("config_groups");
  const Json* ignore = fields.get("ignore");
  if (groups == nullptr || !groups->is_object() || groups->empty())
    fields.refuse("config_groups", groups == nullptr ? Json() : *groups, "{group_0: {…}}");
  FATHOM_TRY_VOID(fields.finish());
  FATHOM_TRY(quantization.ignore, patterns(ignore, path + ".ignore"));
  for (const auto& [name, group] : groups->items()) {
    FATHOM_TRY(QuantizationGroup read,
               read_group(group, path + "." + printable(name), format == "mixed-precision" ? "" : format, plain));
    quantization.groups.push_back(std::move(read));
  }
  return quantization;
}

Json compressed_tensors_json(WeightFormat format, Activations activations, const std::vector<std::string>& ignore) {
  const tensor::WeightLayout layout = tensor::weight_layout(format);
  const bool four = layout.code == tensor::WeightCode::kUint4, floats = layout.code == tensor::WeightCode::kE4m3;
  const Json none;
  Json weights = {{"actorder", none},
                  {"block_structure", none},
                  {"dynamic", false},
                  {"group_size", four ? Json(layout.cols) : none},
                  {"num_bits", four ? 4 : 8},
                  {"observer", "minmax"},
                  {"observer_kwargs", Json::object()},
                  {"strategy", four ? "group" : "channel"},
                  {"symmetric", !layout.zeros},
                  {"type", floats ? "float" : "int"}};
  Json input;
  if (activations == Activations::kPerToken)
    input = {{"actorder", none},
             {"block_structure", none},
             {"dynamic", true},
             {"group_size", none},
             {"num_bits", 8},
             {"observer", none},
             {"observer_kwargs", Json::object()},
             {"strategy", "token"},
             {"symmetric", true},
             {"type", floats ? "float" : "int"}};
  const std::string name = four ? "pack-quantized" : floats ? "float-quantized" : "int-quantized";
  Json group = {{"input_activations", input},
                {"output_activations", none},
                {"targets", Json::array({"Linear"})},
                {"weights", std::move(weights)}};
  return {{"config_groups", {{"group_0", std::move(group)}}},
          {"format", name},
          {"global_compression_ratio", none},
          {"ignore", ignore},
          {"kv_cache_scheme", none},
          {"quant_method", "compressed-tensors"},
          {"quantization_status", "compressed"}};
}

}  // namespace fathom::model
