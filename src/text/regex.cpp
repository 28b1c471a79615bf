#include "text/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <string>
#include <utility>

#include "base/strings.h"
#include "text/regex_syntax.h"
#include "text/unicode.h"

namespace fathom::text {
namespace {

// Far above what any tokenizer's expression needs for one match, far below what would hang a program.
constexpr std::uint32_t kMatchLimit = 10'000'000, kHeapLimitKiB = 256 * 1024;
constexpr std::size_t kJitStackBytes = std::size_t{64} << 20;  // reserved, touched only as far as needed

template <auto Free>
struct Deleter {
  template <class T>
  void operator()(T* pointer) const {
    Free(pointer);
  }
};
using CodePtr = std::unique_ptr<pcre2_code, Deleter<pcre2_code_free>>;
using MatchDataPtr = std::unique_ptr<pcre2_match_data, Deleter<pcre2_match_data_free>>;
using MatchContextPtr = std::unique_ptr<pcre2_match_context, Deleter<pcre2_match_context_free>>;
using CompileContextPtr = std::unique_ptr<pcre2_compile_context, Deleter<pcre2_compile_context_free>>;
using JitStackPtr = std::unique_ptr<pcre2_jit_stack, Deleter<pcre2_jit_stack_free>>;

std::string message_of(int code) {
  PCRE2_UCHAR buffer[256] = {};
  pcre2_get_error_message(code, buffer, sizeof buffer);
  return reinterpret_cast<const char*>(buffer);
}

}  // namespace

struct Regex::Code {
  std::string source;  // as the file has it
  std::string plain;   // the text of a literal; then `code` is empty
  CodePtr code;
  bool jit = false;
};

struct RegexScratch::Parts {
  MatchDataPtr data{pcre2_match_data_create(1, nullptr)};
  MatchContextPtr context{pcre2_match_context_create(nullptr)};
  JitStackPtr stack;
};

RegexScratch::RegexScratch() : parts_(std::make_unique<Parts>()) {
  if (!parts_->data || !parts_->context) throw std::bad_alloc();
  pcre2_set_match_limit(parts_->context.get(), kMatchLimit);
  pcre2_set_heap_limit(parts_->context.get(), kHeapLimitKiB);
}
RegexScratch::~RegexScratch() = default;

Result<Regex> Regex::compile(std::string_view pattern) {
  FATHOM_TRY(const std::string translated, to_pcre_syntax(pattern));
  const CompileContextPtr context(pcre2_compile_context_create(nullptr));
  if (!context) throw std::bad_alloc();
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  pcre2_set_bsr(context.get(), PCRE2_BSR_UNICODE);
  int error = 0;
  std::size_t offset = 0;
  auto code = std::make_shared<Code>();
  code->source = pattern;
  code->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                                 PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error, &offset,
                                 context.get()));
  if (!code->code)
    return fail(
        "text.regex_invalid",
        {{"pattern", printable(pattern, 120)}, {"byte", std::to_string(offset)}, {"reason", message_of(error)}});
  code->jit =
      pcre2_jit_compile(code->code.get(), PCRE2_JIT_COMPLETE) == 0;  // where memory may not be executed: interpreted
  Regex regex;
  regex.code_ = std::move(code);
  return regex;
}

Result<Regex> Regex::literal(std::string_view text) {
  if (text.empty()) return compile("");
  auto code = std::make_shared<Code>();
  code->source = code->plain = text;
  Regex regex;
  regex.code_ = std::move(code);
  return regex;
}

Status Regex::find_all(std::string_view text, RegexScratch& scratch, std::vector<Span>& out) const {
  out.clear();
  const Code& code = *code_;
  if (!code.code) {
    for (std::size_t at = text.find(code.plain); at != std::string_view::npos;
         at = text.find(code.plain, at + code.plain.size()))
      out.push_back({at, at + code.plain.size()});
    return {};
  }
  RegexScratch::Parts& parts = *scratch.parts_;
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.empty() ? "" : text.data());
  const PCRE2_SIZE* ovector = pcre2_get_ovector_pointer(parts.data.get());
  const auto match = [&](std::size_t from) {
    return code.jit
               ? pcre2_jit_match(code.code.get(), subject, text.size(), from, 0, parts.data.get(), parts.context.get())
               : pcre2_match(code.code.get(), subject, text.size(), from, PCRE2_NO_UTF_CHECK, parts.data.get(),
                             parts.context.get());
  };
  bool any = false;
  std::size_t last_end = 0;
  for (std::size_t from = 0; from <= text.size();) {
    int found = match(from);
    if (found == PCRE2_ERROR_JIT_STACKLIMIT && !parts.stack) {
      parts.stack.reset(pcre2_jit_stack_create(32 * 1024, kJitStackBytes, nullptr));
      if (!parts.stack) throw std::bad_alloc();
      pcre2_jit_stack_assign(parts.context.get(), nullptr, parts.stack.get());
      found = match(from);
    }
    if (found == PCRE2_ERROR_NOMATCH) break;
    if (found < 0)
      return fail("text.regex_limit", {{"pattern", printable(code.source, 120)}, {"reason", message_of(found)}});
    const Span span{ovector[0], ovector[1]};
    if (span.end <= span.begin && any && span.end == last_end) {  // empty, right behind the last one: one character on
      if (from >= text.size()) break;
      static_cast<void>(next_char(text, from));
      continue;
    }
    if (span.end < span.begin) break;  // \K in a lookahead can do this
    out.push_back(span);
    any = true;
    last_end = from = span.end;
  }
  return {};
}

}  // namespace fathom::text
