#include <algorithm>

#include "text/jinja_interpreter.h"

namespace fathom::text::jinja {

void Arguments::fail() const { stop("text.template_arguments", heap_->line, {{"name", std::string(callee_)}}); }

const Value* Arguments::take(std::string_view name) {
  return next_ < positional.size() ? &positional[next_++] : take_named(name);
}

const Value* Arguments::take_named(std::string_view name) {
  const auto found =
      std::find_if(named.begin(), named.end(), [&](const auto& one) { return !name.empty() && one.first == name; });
  if (found == named.end()) return nullptr;
  taken_.push_back(found->second);
  named.erase(found);
  return &taken_.back();
}

Value Arguments::required(std::string_view name) {
  const Value* value = take(name);
  if (value == nullptr) fail();
  return *value;
}

std::string Arguments::text(std::string_view name) {
  const Value value = required(name);
  if (!value.is(Kind::kString)) fail();
  return *value.string;
}

std::int64_t Arguments::integer(std::string_view name, std::int64_t if_absent) {
  const Value* value = take(name);
  if (value == nullptr || value->is(Kind::kNone)) return if_absent;
  if (value->is(Kind::kBool)) return value->boolean;
  if (!value->is(Kind::kInt)) fail();
  return value->integer;
}

bool Arguments::flag(std::string_view name, bool if_absent) {
  const Value* value = take(name);
  return value == nullptr ? if_absent : truth(*value);
}

void Arguments::done() const {
  if (next_ != positional.size() || !named.empty()) fail();
}

}  // namespace fathom::text::jinja
