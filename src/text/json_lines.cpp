#include "text/json_lines.h"

#include "base/i18n.h"
#include "base/json.h"
#include "base/strings.h"

namespace fathom::text {
namespace {

Result<Json> answer_to(std::string_view line, const Tokenizer& tokenizer, const Result<ChatTemplate>& chat) {
  if (!is_valid_utf8(line)) return fail("text.invalid_utf8", {{"what", printable(line, 40)}});
  FATHOM_TRY(const Json request, parse_json(line, tr("text.this_line")));
  const bool text = request.is_object() && request.contains("text");
  const bool messages = request.is_object() && request.contains("messages");
  if (text == messages) return fail("text.bad_line");
  if (messages) {
    if (!chat) return tl::unexpected<Error>(chat.error());
    FATHOM_TRY(std::string rendered, chat->render(request));
    return Json{{"rendered", std::move(rendered)}};
  }
  if (!request["text"].is_string()) return fail("text.bad_line");
  FATHOM_TRY(const std::vector<std::int32_t> ids, tokenizer.encode(request["text"].get_ref<const std::string&>()));
  return Json{{"ids", ids}, {"decoded", tokenizer.decode(ids)}};
}

}  // namespace

Result<JsonLines> JsonLines::open(const Path& path) {
  FATHOM_TRY(Tokenizer tokenizer, Tokenizer::load(path));
  return JsonLines(std::move(tokenizer), ChatTemplate::load(path));
}

std::string JsonLines::answer(std::string_view line) const {
  const Result<Json> answer = answer_to(line, tokenizer_, chat_);
  return dump_json(answer ? *answer : Json{{"error", error_text(answer.error())}});
}

}  // namespace fathom::text
