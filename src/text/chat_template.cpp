#include "text/chat_template.h"

#include <chrono>
#include <utility>

#include "base/json.h"
#include "base/strings.h"
#include "text/jinja_interpreter.h"

namespace fathom::text {
namespace {

constexpr std::size_t kMaxSourceBytes = std::size_t{1} << 20;

Result<jinja::Ast> parse_source(std::string_view source) {
  if (source.size() > kMaxSourceBytes)
    return fail("text.template_source_too_large",
                {{"size", std::to_string(source.size())}, {"limit", std::to_string(kMaxSourceBytes)}});
  if (!is_valid_utf8(source)) return fail("text.invalid_utf8", {{"what", printable(source, 40)}});
  try {
    return jinja::parse(source);
  } catch (const jinja::TemplateFailure& failure) {
    return tl::unexpected<Error>(failure.error);
  }
}

std::int64_t seconds_now() {
  return std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
}

}  // namespace

struct ChatTemplate::Impl {
  // Behind pointers: nodes point at each other, so an Ast stays where it was made.
  std::vector<std::pair<std::string, std::unique_ptr<const jinja::Ast>>> templates;
  std::vector<std::pair<std::string, std::string>> special_tokens;

  const jinja::Ast* find(std::string_view name) const {
    for (const auto& [known, ast] : templates)
      if (known == name) return ast.get();
    return nullptr;
  }
};

Result<ChatTemplate> ChatTemplate::load(const Path& path) {
  std::error_code ignored;
  const Path folder = std::filesystem::is_directory(path, ignored) ? path : path.parent_path();
  FATHOM_TRY(const TokenizerConfig config, TokenizerConfig::load(folder));
  if (config.templates.empty()) return fail("text.no_chat_template", {{"folder", folder.string()}});
  return from_config(config);
}

Result<ChatTemplate> ChatTemplate::from_config(const TokenizerConfig& config) {
  auto impl = std::make_shared<Impl>();
  for (const auto& [name, source] : config.templates) {
    FATHOM_TRY(jinja::Ast ast, parse_source(source));
    impl->templates.emplace_back(name, std::make_unique<const jinja::Ast>(std::move(ast)));
  }
  impl->special_tokens = config.special_tokens;
  ChatTemplate made;
  made.impl_ = std::move(impl);
  return made;
}

Result<ChatTemplate> ChatTemplate::parse(std::string_view source) {
  TokenizerConfig config;
  config.templates.emplace_back("default", source);
  return from_config(config);
}

Result<std::string> ChatTemplate::render(const std::vector<ChatMessage>& messages, bool add_generation_prompt,
                                         const RenderOptions& options) const {
  Json context = {{"messages", Json::array()}, {"add_generation_prompt", add_generation_prompt}};
  for (const ChatMessage& message : messages)
    context["messages"].push_back({{"role", message.role}, {"content", message.content}});
  return render(context, options);
}

Result<std::string> ChatTemplate::render(const Json& context, const RenderOptions& options) const {
  if (!context.is_object() || !context.contains("messages") || !context["messages"].is_array())
    return fail("text.bad_context");
  for (const Json& message : context["messages"])
    if (!message.is_object()) return fail("text.bad_context");
  const bool has_tools = context.contains("tools") && !context["tools"].is_null();
  const jinja::Ast* ast = has_tools ? impl_->find("tool_use") : nullptr;
  if (ast == nullptr) ast = impl_->find("default");
  if (ast == nullptr) {
    std::vector<std::string> names;
    for (const auto& [name, one] : impl_->templates) names.push_back(printable(name, 40));
    return fail("text.no_default_template", {{"names", join(names)}});
  }
  try {
    jinja::Heap heap({.bytes = options.max_bytes, .steps = options.max_steps});
    jinja::Interpreter interpreter(*ast, heap, options.now ? *options.now : seconds_now());
    for (const auto& [name, item] : context.items()) interpreter.define(heap.string(name).text(), heap.from_json(item));
    for (const std::string_view name : {"tools", "documents"})
      if (!context.contains(name)) interpreter.define(name, jinja::none());
    if (!context.contains("add_generation_prompt")) interpreter.define("add_generation_prompt", jinja::boolean(false));
    for (const auto& [name, token] : impl_->special_tokens)
      if (!context.contains(name)) interpreter.define(name, heap.string(token));
    return interpreter.run();
  } catch (const jinja::TemplateFailure& failure) {
    return tl::unexpected<Error>(failure.error);
  }
}

}  // namespace fathom::text
