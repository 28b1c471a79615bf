// Operators and built-in functions.
#include <cmath>
#include <ctime>
#include <limits>

#include "base/strings.h"
#include "text/jinja_interpreter.h"
#include "text/jinja_text.h"

namespace fathom::text::jinja {
namespace {

std::string_view sign_of(Op op) {
  switch (op) {
    case Op::kAdd:
      return "+";
    case Op::kSubtract:
      return "-";
    case Op::kMultiply:
      return "*";
    case Op::kDivide:
      return "/";
    case Op::kFloorDivide:
      return "//";
    case Op::kModulo:
      return "%";
    default:
      return "**";
  }
}
double real(const Value& value) {
  if (value.is(Kind::kFloat)) return value.number;
  return value.is(Kind::kBool) ? value.boolean : static_cast<double>(value.integer);
}
std::int64_t whole(const Value& value) { return value.is(Kind::kBool) ? value.boolean : value.integer; }

// a // b and a % b round towards minus infinity, as Python's do. b is neither 0 nor -1.
std::int64_t floor_divide(std::int64_t a, std::int64_t b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }

bool power(std::int64_t base, std::int64_t exponent, std::int64_t& out) {
  out = 1;
  for (; exponent > 0; exponent >>= 1) {
    if ((exponent & 1) != 0 && __builtin_mul_overflow(out, base, &out)) return false;
    if (exponent > 1 && __builtin_mul_overflow(base, base, &base)) return false;
  }
  return true;
}

}  // namespace

Value Interpreter::binary(Op op, const Value& left, const Value& right) {
  const std::string_view sign = sign_of(op);
  for (const Value* side : {&left, &right})
    if (side->is(Kind::kUndefined)) undefined(*side);
  if (left.is_number() && right.is_number()) return arithmetic(op, sign, left, right);
  if (op == Op::kAdd && left.is(Kind::kString) && right.is(Kind::kString)) {
    heap_.charge(left.string->size() + right.string->size());
    return string(*left.string + *right.string);
  }
  if (op == Op::kAdd && left.kind == right.kind && (left.is(Kind::kList) || left.is(Kind::kTuple))) {
    heap_.charge((left.list->items.size() + right.list->items.size()) * sizeof(Value));
    std::vector<Value> items = left.list->items;
    items.insert(items.end(), right.list->items.begin(), right.list->items.end());
    return heap_.list(std::move(items), left.kind);
  }
  if (op == Op::kMultiply && (right.is(Kind::kInt) || right.is(Kind::kBool))) {
    if (left.is(Kind::kString) || left.is(Kind::kList) || left.is(Kind::kTuple)) return repeated(left, whole(right));
  }
  if (op == Op::kMultiply && (left.is(Kind::kInt) || left.is(Kind::kBool))) {
    if (right.is(Kind::kString) || right.is(Kind::kList) || right.is(Kind::kTuple)) return repeated(right, whole(left));
  }
  if (op == Op::kModulo && left.is(Kind::kString)) {
    const std::vector<Value> values = right.is(Kind::kTuple) ? right.list->items : std::vector<Value>{right};
    return string(percent_format(*this, left.text(), values));
  }
  fail("text.template_types", {{"operation", std::string(sign)},
                               {"types", std::string(type_name(left)) + ", " + std::string(type_name(right))}});
}

Value Interpreter::repeated(const Value& value, std::int64_t times) {
  if (times <= 0) return value.is(Kind::kString) ? string("") : heap_.list({}, value.kind);
  const std::size_t size = value.is(Kind::kString) ? value.string->size() : value.list->items.size() * sizeof(Value);
  std::size_t total = 0;
  if (__builtin_mul_overflow(size, static_cast<std::size_t>(times), &total))
    total = std::numeric_limits<std::size_t>::max() / 2;
  heap_.charge(total);
  if (size == 0) return value;
  if (value.is(Kind::kString)) {
    std::string out;
    out.reserve(total);
    for (; times > 0; --times) out += *value.string;
    return string(std::move(out));
  }
  std::vector<Value> items;
  for (; times > 0; --times) items.insert(items.end(), value.list->items.begin(), value.list->items.end());
  return heap_.list(std::move(items), value.kind);
}

Value Interpreter::arithmetic(Op op, std::string_view sign, const Value& left, const Value& right) {
  const bool reals = left.is(Kind::kFloat) || right.is(Kind::kFloat);
  if ((op == Op::kDivide || op == Op::kFloorDivide || op == Op::kModulo) && real(right) == 0)
    fail("text.template_zero", {{"operation", std::string(sign)}});
  if (reals || op == Op::kDivide || (op == Op::kPower && whole(right) < 0)) {
    const double a = real(left), b = real(right);
    switch (op) {
      case Op::kAdd:
        return number(a + b);
      case Op::kSubtract:
        return number(a - b);
      case Op::kMultiply:
        return number(a * b);
      case Op::kDivide:
        return number(a / b);
      case Op::kFloorDivide:
        return number(std::floor(a / b));
      case Op::kModulo:
        return number(a - b * std::floor(a / b));
      default:
        if (a == 0 && b < 0) fail("text.template_zero", {{"operation", "**"}});
        return number(std::pow(a, b));
    }
  }
  const std::int64_t a = whole(left), b = whole(right);
  std::int64_t out = 0;
  bool overflow = false;
  switch (op) {
    case Op::kAdd:
      overflow = __builtin_add_overflow(a, b, &out);
      break;
    case Op::kSubtract:
      overflow = __builtin_sub_overflow(a, b, &out);
      break;
    case Op::kMultiply:
      overflow = __builtin_mul_overflow(a, b, &out);
      break;
    case Op::kFloorDivide:
      if (b == -1)
        overflow = __builtin_sub_overflow(std::int64_t{0}, a, &out);
      else
        out = floor_divide(a, b);
      break;
    case Op::kModulo:
      out = b == -1 ? 0 : a - floor_divide(a, b) * b;
      break;
    default:
      overflow = !power(a, b, out);
      break;
  }
  if (overflow)
    fail("text.template_number", {{"number", std::to_string(a) + " " + std::string(sign) + " " + std::to_string(b)}});
  return integer(out);
}

bool Interpreter::contains(const Value& container, const Value& item) {
  switch (container.kind) {
    case Kind::kString:
      if (!item.is(Kind::kString)) wrong_type("in", item);
      heap_.step(1 + container.string->size() / 64);
      return container.string->find(*item.string) != std::string::npos;
    case Kind::kDict:
      if (item.is(Kind::kList) || item.is(Kind::kDict)) wrong_type("in", item);
      return container.dict->find(item, heap_) != nullptr;
    default:
      for (const Value& one : items_of(container, heap_))
        if (equal(one, item, heap_)) return true;
      return false;
  }
}

bool Interpreter::compares(std::string_view op, const Value& left, const Value& right) {
  if (op == "==") return equal(left, right, heap_);
  if (op == "!=") return !equal(left, right, heap_);
  if (op == "in") return contains(right, left);
  if (op == "not in") return !contains(right, left);
  for (const Value* side : {&left, &right})
    if (side->is(Kind::kUndefined)) undefined(*side);
  if ((left.is(Kind::kFloat) && std::isnan(left.number)) || (right.is(Kind::kFloat) && std::isnan(right.number)))
    return false;
  const int order = compare(left, right, heap_);
  if (op == "<") return order < 0;
  if (op == "<=") return order <= 0;
  return op == ">" ? order > 0 : order >= 0;
}

Value Interpreter::eval_compare(const Expr& expr) {
  Value left = eval(*expr.parts[0]);
  for (std::size_t i = 0; i < expr.words.size(); ++i) {
    const Value right = eval(*expr.parts[i + 1]);
    heap_.line = expr.line;
    if (!compares(expr.words[i], left, right)) return boolean(false);
    left = right;
  }
  return boolean(true);
}

namespace {

Value range(Interpreter& in, Arguments& arguments) {
  std::vector<std::int64_t> bounds;
  while (const Value* value = arguments.take("")) {
    if (!value->is(Kind::kInt) && !value->is(Kind::kBool)) in.wrong_type("range()", *value);
    bounds.push_back(whole(*value));
  }
  if (bounds.empty() || bounds.size() > 3 || (bounds.size() == 3 && bounds[2] == 0)) arguments.fail();
  arguments.done();
  const std::int64_t start = bounds.size() > 1 ? bounds[0] : 0, end = bounds[bounds.size() > 1],
                     step = bounds.size() > 2 ? bounds[2] : 1;
  constexpr std::size_t kMaxRange = 100'000;  // as Jinja's sandbox
  std::vector<Value> items;
  for (std::int64_t i = start; step > 0 ? i < end : i > end;) {
    items.push_back(integer(i));
    if (items.size() > kMaxRange) in.fail("text.template_range", {{"limit", std::to_string(kMaxRange)}});
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  return in.heap().list(std::move(items));
}

// dict(…) and namespace(…): pairs or another dict, then names.
Value dictionary(Interpreter& in, Arguments& arguments, Kind kind) {
  Value made = in.heap().dict();
  if (const Value* from = arguments.take("")) {
    if (from->is(Kind::kDict)) {
      for (const auto& [key, value] : from->dict->items) made.dict->set(key, value, in.heap());
    } else {
      for (const Value& pair : items_of(*from, in.heap())) {
        const std::vector<Value> two = items_of(pair, in.heap());
        if (two.size() != 2) arguments.fail();
        made.dict->set(two[0], two[1], in.heap());
      }
    }
  }
  for (const auto& [name, value] : arguments.named) made.dict->set(in.string(name), value, in.heap());
  arguments.named.clear();
  arguments.done();
  made.kind = kind;
  return made;
}

std::string formatted_time(Interpreter& in, const std::string& format) {
  const std::time_t now = static_cast<std::time_t>(in.now());
  std::tm parts = {};
  if (format.empty() || localtime_r(&now, &parts) == nullptr) return {};
  if (format.size() > 256) in.fail("text.template_arguments", {{"name", "strftime_now"}});
  char buffer[16 * 1024];
  return {buffer, std::strftime(buffer, sizeof buffer, format.c_str(), &parts)};
}

}  // namespace

Value Interpreter::call_builtin(std::string_view name, Arguments& arguments) {
  if (name == "range") return range(*this, arguments);
  if (name == "dict") return dictionary(*this, arguments, Kind::kDict);
  if (name == "namespace") return dictionary(*this, arguments, Kind::kNamespace);
  if (name == "strftime_now") {
    const std::string format = arguments.text("format");
    arguments.done();
    return string(formatted_time(*this, format));
  }
  const Value message = arguments.required("message");  // raise_exception
  arguments.done();
  fail("text.template_raised", {{"message", printable(text_of(message), 400)}});
}

}  // namespace fathom::text::jinja
