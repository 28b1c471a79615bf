// What stands behind `is`.
#include <algorithm>

#include "base/strings.h"
#include "text/jinja_interpreter.h"
#include "text/jinja_text.h"

namespace fathom::text::jinja {
namespace {

using TestFunction = bool (*)(Interpreter&, const Value&, Arguments&);

bool remainder_is(Interpreter& in, const Value& value, std::int64_t divisor, std::int64_t wanted) {
  const Value rest = in.binary(Op::kModulo, value, integer(divisor));
  return equal(rest, integer(wanted), in.heap());
}
int order(Interpreter& in, const Value& value, Arguments& arguments) {
  return compare(value, arguments.required("other"), in.heap());
}

constexpr std::pair<std::string_view, TestFunction> kTests[] = {
    {"defined", [](Interpreter&, const Value& v, Arguments&) { return !v.is(Kind::kUndefined); }},
    {"undefined", [](Interpreter&, const Value& v, Arguments&) { return v.is(Kind::kUndefined); }},
    {"none", [](Interpreter&, const Value& v, Arguments&) { return v.is(Kind::kNone); }},
    {"boolean", [](Interpreter&, const Value& v, Arguments&) { return v.is(Kind::kBool); }},
    {"true", [](Interpreter&, const Value& v, Arguments&) { return v.is(Kind::kBool) && v.boolean; }},
    {"false", [](Interpreter&, const Value& v, Arguments&) { return v.is(Kind::kBool) && !v.boolean; }},
    {"integer", [](Interpreter&, const Value& v, Arguments&) { return v.is(Kind::kInt); }},
    {"float", [](Interpreter&, const Value& v, Arguments&) { return v.is(Kind::kFloat); }},
    {"number", [](Interpreter&, const Value& v, Arguments&) { return v.is_number(); }},
    {"string", [](Interpreter&, const Value& v, Arguments&) { return v.is(Kind::kString); }},
    {"mapping", [](Interpreter&, const Value& v, Arguments&) { return v.is(Kind::kDict); }},
    {"iterable",
     [](Interpreter&, const Value& v, Arguments&) {
       return v.is_sequence() || v.is(Kind::kString) || v.is(Kind::kDict) || v.is(Kind::kUndefined) ||
              v.is(Kind::kLoop);
     }},
    {"sequence",
     [](Interpreter&, const Value& v, Arguments&) {
       return v.is(Kind::kList) || v.is(Kind::kTuple) || v.is(Kind::kString) || v.is(Kind::kDict) ||
              v.is(Kind::kUndefined);
     }},
    {"callable", [](Interpreter&, const Value& v,
                    Arguments&) { return v.is(Kind::kFunction) || v.is(Kind::kLoop) || v.is(Kind::kUndefined); }},
    {"odd", [](Interpreter& in, const Value& v, Arguments&) { return remainder_is(in, v, 2, 1); }},
    {"even", [](Interpreter& in, const Value& v, Arguments&) { return remainder_is(in, v, 2, 0); }},
    {"divisibleby",
     [](Interpreter& in, const Value& v, Arguments& a) { return remainder_is(in, v, a.integer("num", 0), 0); }},
    {"lower", [](Interpreter& in, const Value& v, Arguments&) { return is_all(in.text_of(v), Class::kLower); }},
    {"upper", [](Interpreter& in, const Value& v, Arguments&) { return is_all(in.text_of(v), Class::kUpper); }},
    {"in", [](Interpreter& in, const Value& v, Arguments& a) { return in.contains(a.required("seq"), v); }},
    {"eq", [](Interpreter& in, const Value& v, Arguments& a) { return equal(v, a.required("other"), in.heap()); }},
    {"ne", [](Interpreter& in, const Value& v, Arguments& a) { return !equal(v, a.required("other"), in.heap()); }},
    {"lt", [](Interpreter& in, const Value& v, Arguments& a) { return order(in, v, a) < 0; }},
    {"le", [](Interpreter& in, const Value& v, Arguments& a) { return order(in, v, a) <= 0; }},
    {"gt", [](Interpreter& in, const Value& v, Arguments& a) { return order(in, v, a) > 0; }},
    {"ge", [](Interpreter& in, const Value& v, Arguments& a) { return order(in, v, a) >= 0; }},
    {"sameas", [](Interpreter& in, const Value& v, Arguments& a) {
       const Value other = a.required("other");
       return v.kind == other.kind &&
              (v.is_sequence() || v.is(Kind::kDict) || v.is(Kind::kNamespace) ? v.list == other.list
                                                                              : equal(v, other, in.heap()));
     }}};

constexpr std::pair<std::string_view, std::string_view> kAliases[] = {
    {"==", "eq"}, {"equalto", "eq"}, {"!=", "ne"},          {"<", "lt"}, {"lessthan", "lt"},
    {"<=", "le"}, {">", "gt"},       {"greaterthan", "gt"}, {">=", "ge"}};

}  // namespace

bool test(Interpreter& in, std::string_view name, const Value& input, Arguments& arguments) {
  for (const auto& [alias, real] : kAliases)
    if (name == alias) name = real;
  for (const auto& [known, function] : kTests) {
    if (known != name) continue;
    const bool answer = function(in, input, arguments);
    arguments.done();
    return answer;
  }
  in.fail("text.template_unknown_test", {{"name", printable(name, 40)}}, ErrorKind::kUnsupported);
}

}  // namespace fathom::text::jinja
