#include "text/tokenizer_config.h"

#include <algorithm>

#include "base/json.h"
#include "base/strings.h"
#include "base/units.h"
#include "text/fields.h"

namespace fathom::text {
namespace {

constexpr Bytes kMaxConfigBytes = 16 * kMiB;
constexpr std::string_view kRoles[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                       "pad_token", "cls_token", "mask_token"};

// A token is written as a string or as {"content": …}; null means none.
Status read_special_tokens(const Json& json, std::string_view what, TokenizerConfig& out) {
  for (const std::string_view role : kRoles) {
    const auto found = json.find(std::string(role));
    if (found == json.end() || found->is_null() || out.special_token(role) != nullptr) continue;
    const Json* value = &*found;
    if (value->is_object()) {
      const auto content = value->find("content");
      value = content == value->end() ? nullptr : &*content;
    }
    if (value == nullptr || !value->is_string()) return bad_field(what, role);
    out.special_tokens.emplace_back(role, value->get<std::string>());
  }
  return {};
}

void set_template(TokenizerConfig& config, const std::string& name, std::string source) {
  for (auto& [known, text] : config.templates) {
    if (known != name) continue;
    text = std::move(source);
    return;
  }
  config.templates.emplace_back(name, std::move(source));
}

Status read_templates(const Json& json, std::string_view what, TokenizerConfig& out) {
  const auto found = json.find("chat_template");
  if (found == json.end() || found->is_null()) return {};
  if (found->is_string()) {
    set_template(out, "default", found->get<std::string>());
    return {};
  }
  if (!found->is_array()) return bad_field(what, "chat_template");
  for (const Json& entry : *found) {
    FATHOM_TRY(const std::string name, string_field(entry, what, "name"));
    FATHOM_TRY(std::string source, string_field(entry, what, "template"));
    set_template(out, name, std::move(source));
  }
  return {};
}

Result<Json> read_object(const Path& path) {
  FATHOM_TRY(const std::string text, read_file(path, kMaxConfigBytes));
  FATHOM_TRY(Json json, parse_json(text, path.string()));
  if (!json.is_object()) return fail("text.not_an_object", {{"what", path.string()}});
  return json;
}

Status read_template_files(const Path& folder, TokenizerConfig& out) {
  std::error_code ignored;
  const auto read = [&](const Path& path, const std::string& name) -> Status {
    FATHOM_TRY(std::string source, read_file(path, kMaxConfigBytes));
    set_template(out, name, std::move(source));
    return {};
  };
  const Path single = folder / "chat_template.jinja";
  if (std::filesystem::exists(single, ignored)) FATHOM_TRY_VOID(read(single, "default"));
  std::vector<Path> more;
  for (const auto& entry : std::filesystem::directory_iterator(folder / "additional_chat_templates", ignored))
    if (entry.path().extension() == ".jinja") more.push_back(entry.path());
  std::sort(more.begin(), more.end());
  for (const Path& path : more) FATHOM_TRY_VOID(read(path, path.stem().string()));
  return {};
}

Status read_config(const Json& json, std::string_view what, TokenizerConfig& out) {
  FATHOM_TRY_VOID(read_special_tokens(json, what, out));
  FATHOM_TRY_VOID(read_templates(json, what, out));
  FATHOM_TRY(const auto name, json_string(json, "tokenizer_class", what));
  out.tokenizer_class = name.value_or("");
  FATHOM_TRY(out.add_bos_token, json_bool(json, "add_bos_token", what));
  FATHOM_TRY(out.add_eos_token, json_bool(json, "add_eos_token", what));
  return {};
}

}  // namespace

const std::string* TokenizerConfig::special_token(std::string_view role) const {
  for (const auto& [known, token] : special_tokens)
    if (known == role) return &token;
  return nullptr;
}

Result<TokenizerConfig> TokenizerConfig::parse(std::string_view text, std::string_view what) {
  FATHOM_TRY(const Json json, parse_json(text, what));
  if (!json.is_object()) return fail("text.not_an_object", {{"what", std::string(what)}});
  TokenizerConfig config;
  FATHOM_TRY_VOID(read_config(json, what, config));
  return config;
}

Result<TokenizerConfig> TokenizerConfig::load(const Path& folder) {
  TokenizerConfig config;
  std::error_code ignored;
  if (const Path path = folder / "tokenizer_config.json"; std::filesystem::exists(path, ignored)) {
    FATHOM_TRY(const Json json, read_object(path));
    FATHOM_TRY_VOID(read_config(json, path.string(), config));
  }
  if (const Path path = folder / "special_tokens_map.json"; std::filesystem::exists(path, ignored)) {
    FATHOM_TRY(const Json json, read_object(path));
    FATHOM_TRY_VOID(read_special_tokens(json, path.string(), config));
  }
  FATHOM_TRY_VOID(read_template_files(folder, config));
  return config;
}

}  // namespace fathom::text
