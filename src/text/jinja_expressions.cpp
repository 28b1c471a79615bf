// Expressions: names, collections, subscripts, calls.
#include <algorithm>

#include "base/strings.h"
#include "text/jinja_interpreter.h"
#include "text/jinja_text.h"

namespace fathom::text::jinja {

Value Interpreter::eval(const Expr& expr) {
  struct Depth {
    int& depth;
    ~Depth() { --depth; }
  } nested{++depth_};
  if (depth_ > heap_.limits().depth) fail("text.template_deep", {{"limit", std::to_string(heap_.limits().depth)}});
  heap_.line = expr.line;
  heap_.step();
  switch (expr.op) {
    case Op::kConst:
      return expr.value;
    case Op::kName:
      return eval_name(expr);
    case Op::kList:
    case Op::kTuple:
    case Op::kDict:
    case Op::kConcat:
      return eval_collection(expr);
    case Op::kAttribute:
      return attribute(eval(*expr.parts[0]), expr.text);
    case Op::kSubscript: {
      const Value value = eval(*expr.parts[0]);
      return subscript(value, eval(*expr.parts[1]));
    }
    case Op::kSlice:
      return eval_slice(expr);
    case Op::kCall: {
      const Value callee = eval(*expr.parts[0]);
      Arguments arguments(expr.parts[0]->text, heap_);
      eval_arguments(expr, arguments);
      heap_.line = expr.line;
      return call(callee, arguments);
    }
    case Op::kFilter:
      return eval_filter(expr, eval(*expr.parts[0]));
    case Op::kTest: {
      const Value value = eval(*expr.parts[0]);
      Arguments arguments(expr.text, heap_);
      eval_arguments(expr, arguments);
      heap_.line = expr.line;
      return boolean(apply_test(expr.text, value, arguments));
    }
    case Op::kNot:
      return boolean(!truth(eval(*expr.parts[0])));
    case Op::kNegative: {
      const Value value = eval(*expr.parts[0]);
      return value.is(Kind::kFloat) ? number(-value.number) : binary(Op::kSubtract, integer(0), value);
    }
    case Op::kPositive:
      return binary(Op::kAdd, integer(0), eval(*expr.parts[0]));
    case Op::kAnd:
    case Op::kOr: {
      const Value left = eval(*expr.parts[0]);
      return truth(left) == (expr.op == Op::kOr) ? left : eval(*expr.parts[1]);
    }
    case Op::kCompare:
      return eval_compare(expr);
    case Op::kCondition: {
      if (truth(eval(*expr.parts[0]))) return eval(*expr.parts[1]);
      return expr.parts[2] != nullptr ? eval(*expr.parts[2]) : Value();
    }
    case Op::kNamespaceAttribute:
      return Value();
    default:
      break;
  }
  const Value left = eval(*expr.parts[0]), right = eval(*expr.parts[1]);
  heap_.line = expr.line;
  return binary(expr.op, left, right);
}

Value Interpreter::eval_name(const Expr& expr) {
  for (const Scope* scope = scope_; scope != nullptr; scope = scope->parent)
    for (const auto& [name, value] : scope->names)
      if (name == expr.text) return value;
  static constexpr std::string_view builtins[] = {"range", "dict", "namespace", "raise_exception", "strftime_now"};
  for (const std::string_view name : builtins)
    if (expr.text == name) return function(name, Value(), false);
  static constexpr std::string_view unsupported[] = {"lipsum", "cycler", "joiner"};
  for (const std::string_view name : unsupported)
    if (expr.text == name) fail("text.template_unsupported", {{"what", expr.text}}, ErrorKind::kUnsupported);
  return heap_.undefined(expr.text);
}

Value Interpreter::function(std::string_view name, const Value& self, bool is_method) {
  heap_.charge(sizeof(Function));
  Function& made = functions_.emplace_back();
  made.name = name;
  made.self = self;
  made.is_method = is_method;
  Value value;
  value.kind = Kind::kFunction;
  value.function = &made;
  return value;
}

Value Interpreter::eval_collection(const Expr& expr) {
  if (expr.op == Op::kConcat) {
    std::string text;
    for (const Expr* part : expr.parts) {
      text += text_of(eval(*part));
      heap_.charge(text.size() / 4);
    }
    return string(std::move(text));
  }
  if (expr.op == Op::kDict) {
    const Value made = heap_.dict();
    for (std::size_t i = 0; i < expr.parts.size(); i += 2) {
      const Value key = eval(*expr.parts[i]);
      const Value value = eval(*expr.parts[i + 1]);
      if (key.is(Kind::kList) || key.is(Kind::kDict)) wrong_type("{key: }", key);
      made.dict->set(key, value, heap_);
    }
    return made;
  }
  std::vector<Value> items;
  for (const Expr* part : expr.parts) items.push_back(eval(*part));
  return heap_.list(std::move(items), expr.op == Op::kTuple ? Kind::kTuple : Kind::kList);
}

Value Interpreter::eval_filter(const Expr& expr, const Value& input) {
  // In {% filter a | b %} the innermost filter has no expression: `input` is what it works on.
  Value value = input;
  if (expr.parts[0] != nullptr && expr.parts[0]->op == Op::kFilter) {
    const Expr* innermost = expr.parts[0];
    while (innermost->op == Op::kFilter && innermost->parts[0] != nullptr) innermost = innermost->parts[0];
    if (innermost->op == Op::kFilter) value = eval_filter(*expr.parts[0], input);
  }
  Arguments arguments(expr.text, heap_);
  eval_arguments(expr, arguments);
  heap_.line = expr.line;
  return apply_filter(expr.text, value, arguments);
}

void Interpreter::eval_arguments(const Expr& expr, Arguments& out) {
  for (const Expr* argument : expr.arguments) out.positional.push_back(eval(*argument));
  if (expr.star != nullptr)
    for (const Value& item : items_of(eval(*expr.star), heap_)) out.positional.push_back(item);
  for (const auto& [name, argument] : expr.named) out.named.emplace_back(name, eval(*argument));
  if (expr.star_star == nullptr) return;
  const Value more = eval(*expr.star_star);
  if (!more.is(Kind::kDict)) wrong_type("**", more);
  for (const auto& [key, value] : more.dict->items) {
    if (!key.is(Kind::kString)) wrong_type("**", key);
    heap_.step();
    out.named.emplace_back(*key.string, value);
  }
}

Value Interpreter::attribute(const Value& value, std::string_view name) {
  switch (value.kind) {
    case Kind::kUndefined:
      undefined(value);
    case Kind::kLoop:
      return loop_attribute(*value.loop, name);
    case Kind::kNamespace: {
      const Value* found = value.dict->find(name);
      return found != nullptr ? *found : heap_.undefined(name);
    }
    default:
      break;
  }
  const MethodStatus status = method_status(value, name);
  if (status == MethodStatus::kUnsupported)
    fail("text.template_unknown_method", {{"name", std::string(name)}, {"type", std::string(type_name(value))}},
         ErrorKind::kUnsupported);
  if (status == MethodStatus::kKnown) return function(name, value, true);
  if (value.is(Kind::kDict))
    if (const Value* found = value.dict->find(name)) return *found;
  return heap_.undefined(name);
}

Value Interpreter::subscript(const Value& value, const Value& key) {
  if (value.is(Kind::kUndefined)) undefined(value);
  if (value.is(Kind::kDict)) {
    if (const Value* found = value.dict->find(key, heap_)) return *found;
  } else if (key.is(Kind::kInt) || key.is(Kind::kBool)) {
    std::int64_t index = key.is(Kind::kBool) ? key.boolean : key.integer;
    if (value.is(Kind::kList) || value.is(Kind::kTuple)) {
      const auto size = static_cast<std::int64_t>(value.list->items.size());
      if (index < 0) index += size;
      if (index >= 0 && index < size) return value.list->items[static_cast<std::size_t>(index)];
    } else if (value.is(Kind::kString)) {
      heap_.step(1 + value.string->size() / 16);
      const auto offsets = char_offsets(*value.string);
      const auto size = static_cast<std::int64_t>(offsets.size()) - 1;
      if (index < 0) index += size;
      const auto at = static_cast<std::size_t>(index);
      if (index >= 0 && index < size) return string(value.string->substr(offsets[at], offsets[at + 1] - offsets[at]));
    }
  }
  if (key.is(Kind::kString)) return attribute(value, key.text());
  return heap_.undefined(to_text(key, heap_));
}

Value Interpreter::eval_slice(const Expr& expr) {
  const Value value = eval(*expr.parts[0]);
  std::int64_t bounds[3] = {};
  bool given[3] = {};
  for (std::size_t i = 0; i < 3; ++i) {
    if (expr.parts[i + 1] == nullptr) continue;
    const Value bound = eval(*expr.parts[i + 1]);
    if (bound.is(Kind::kNone)) continue;
    if (!bound.is(Kind::kInt) && !bound.is(Kind::kBool)) wrong_type("[:]", bound);
    bounds[i] = bound.is(Kind::kInt) ? bound.integer : bound.boolean;
    given[i] = true;
  }
  heap_.line = expr.line;
  if (value.is(Kind::kUndefined)) undefined(value);
  const bool text = value.is(Kind::kString);
  if (!text && !value.is(Kind::kList) && !value.is(Kind::kTuple)) wrong_type("[:]", value);
  std::vector<std::size_t> offsets;
  if (text) offsets = char_offsets(*value.string);
  const auto size = static_cast<std::int64_t>(text ? offsets.size() - 1 : value.list->items.size());
  heap_.step(1 + static_cast<std::size_t>(size) / 16);
  const std::int64_t step = given[2] ? bounds[2] : 1;
  if (step == 0) fail("text.template_types", {{"operation", "[::0]"}, {"types", std::string(type_name(value))}});
  const std::int64_t low = step > 0 ? 0 : -1, high = step > 0 ? size : size - 1;
  const auto bound = [&](std::size_t i, std::int64_t otherwise) {
    if (!given[i]) return otherwise;
    const std::int64_t at = bounds[i] < 0 ? (bounds[i] < -size ? low : bounds[i] + size) : bounds[i];
    return std::clamp(at, low, high);
  };
  const std::int64_t start = bound(0, step > 0 ? 0 : size - 1), end = bound(1, step > 0 ? size : -1);
  std::vector<Value> items;
  std::string out;
  for (std::int64_t i = start; step > 0 ? i < end : i > end;) {
    const auto at = static_cast<std::size_t>(i);
    if (text)
      out.append(*value.string, offsets[at], offsets[at + 1] - offsets[at]);
    else
      items.push_back(value.list->items[at]);
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  if (text) return string(std::move(out));
  return heap_.list(std::move(items), value.kind);
}

Value Interpreter::apply_filter(std::string_view name, const Value& input, Arguments& arguments) {
  return filter(*this, name, input, arguments);
}
bool Interpreter::apply_test(std::string_view name, const Value& input, Arguments& arguments) {
  return test(*this, name, input, arguments);
}

Value Interpreter::call(const Value& callee, Arguments& arguments) {
  if (callee.is(Kind::kUndefined)) undefined(callee);
  if (!callee.is(Kind::kFunction)) wrong_type("()", callee);
  const Function& function = *callee.function;
  if (function.macro != nullptr) return call_macro(function, arguments);
  if (function.is_method && !function.self.is(Kind::kLoop))
    return method(*this, function.self, function.name, arguments);
  if (!function.is_method) return call_builtin(function.name, arguments);
  Loop& loop = *function.self.loop;
  if (function.name == "cycle") {
    if (arguments.positional.empty()) arguments.fail();
    return arguments.positional[loop.index % arguments.positional.size()];
  }
  const Value now = heap_.list(arguments.positional), before = heap_.list(loop.last);  // loop.changed(…)
  const bool changed = !loop.has_last || !equal(now, before, heap_);
  loop.has_last = true;
  loop.last = arguments.positional;
  return boolean(changed);
}

Value Interpreter::loop_attribute(Loop& loop, std::string_view name) {
  const auto index = static_cast<std::int64_t>(loop.index), size = static_cast<std::int64_t>(loop.items.size());
  if (name == "index") return integer(index + 1);
  if (name == "index0") return integer(index);
  if (name == "revindex") return integer(size - index);
  if (name == "revindex0") return integer(size - index - 1);
  if (name == "first") return boolean(index == 0);
  if (name == "last") return boolean(index + 1 == size);
  if (name == "length") return integer(size);
  if (name == "depth") return integer(loop.depth);
  if (name == "depth0") return integer(loop.depth - 1);
  if (name == "previtem") return index > 0 ? loop.items[loop.index - 1] : heap_.undefined(name);
  if (name == "nextitem") return index + 1 < size ? loop.items[loop.index + 1] : heap_.undefined(name);
  if (name != "cycle" && name != "changed") return heap_.undefined(name);
  Value self;
  self.kind = Kind::kLoop;
  self.loop = &loop;
  return function(name, self, true);
}

Value Interpreter::call_macro(const Function& function, Arguments& arguments) {
  const Stmt& macro = *function.macro;
  Scope* const scope = new_scope(function.scope);
  Scope* const caller_scope = std::exchange(scope_, scope);
  struct Restore {
    Interpreter& in;
    Scope* scope;
    ~Restore() { in.scope_ = scope; }
  } restore{*this, caller_scope};
  for (const auto& [name, fallback] : macro.parameters) {
    const Value* given = arguments.take(name);
    scope->names.emplace_back(name, given != nullptr      ? *given
                                    : fallback != nullptr ? eval(*fallback)
                                                          : heap_.undefined(name));
  }
  if (const Value* caller = arguments.take_named("caller")) scope->names.emplace_back("caller", *caller);
  if (macro.takes_kwargs) {
    const Value rest = heap_.dict();
    for (const auto& [name, value] : arguments.named) rest.dict->set(string(name), value, heap_);
    arguments.named.clear();
    scope->names.emplace_back("kwargs", rest);
  }
  if (macro.takes_varargs) {
    std::vector<Value> rest;
    while (const Value* value = arguments.take("")) rest.push_back(*value);
    scope->names.emplace_back("varargs", heap_.list(std::move(rest), Kind::kTuple));
  }
  arguments.done();
  return string(captured(macro.body, scope));
}

}  // namespace fathom::text::jinja
