// What stands behind a bar.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>

#include "base/strings.h"
#include "text/jinja_interpreter.h"
#include "text/jinja_text.h"
#include "text/unicode.h"

namespace fathom::text::jinja {
namespace {

using Filter = Value (*)(Interpreter&, const Value&, Arguments&);

// --- text

Value trim(Interpreter& in, const Value& value, Arguments& arguments) {
  const std::string text = in.text_of(value);
  const Value* chars = arguments.take("chars");
  std::optional<std::string_view> view;
  if (chars != nullptr && !chars->is(Kind::kNone)) {
    if (!chars->is(Kind::kString)) arguments.fail();
    view = chars->text();
    in.heap().step(1 + text.size() * view->size() / 64);
  }
  return in.string(std::string(python_strip(text, view, true, true)));
}

Value replace(Interpreter& in, const Value& value, Arguments& arguments) {
  const std::string text = in.text_of(value), old = in.text_of(arguments.required("old")),
                    by = in.text_of(arguments.required("new"));
  const std::int64_t limit = arguments.integer("count", -1);
  const std::size_t places = old.empty() ? text.size() + 1 : text.size() / old.size();
  if (by.size() > old.size())
    in.heap().charge(std::min(places, limit < 0 ? places : static_cast<std::size_t>(limit)) * (by.size() - old.size()));
  return in.string(replaced(text, old, by, limit));
}

Value indent(Interpreter& in, const Value& value, Arguments& arguments) {
  const Value* width = arguments.take("width");
  std::string margin(4, ' ');
  if (width != nullptr && width->is(Kind::kString)) {
    margin = *width->string;
  } else if (width != nullptr) {
    if (!width->is(Kind::kInt) || width->integer > 10'000) arguments.fail();
    margin.assign(static_cast<std::size_t>(std::max<std::int64_t>(0, width->integer)), ' ');
  }
  const bool first = arguments.flag("first", false), blank = arguments.flag("blank", false);
  if (!value.is(Kind::kString)) in.wrong_type("indent", value);
  const std::string text = *value.string + "\n";
  std::string out;
  bool is_first = true;
  for (const std::string_view line : split_lines(text, false)) {
    if (!is_first) out += '\n';
    if (is_first ? first : blank || !line.empty()) {
      out += margin;
      in.heap().charge(margin.size());
    }
    is_first = false;
    out += line;
  }
  return in.string(std::move(out));
}

Value format(Interpreter& in, const Value& value, Arguments& arguments) {
  std::vector<Value> values;
  while (const Value* one = arguments.take("")) values.push_back(*one);
  return in.string(percent_format(in, in.text_of(value), values));
}

Value to_json_filter(Interpreter& in, const Value& value, Arguments& arguments) {
  JsonStyle style;
  style.ascii = arguments.flag("ensure_ascii", false);
  if (const Value* indent = arguments.take("indent"); indent != nullptr && !indent->is(Kind::kNone)) {
    style.pretty = true;
    style.item_separator.assign(1, ',');
    if (indent->is(Kind::kString))
      style.indent = *indent->string;
    else if (indent->is(Kind::kInt) && indent->integer <= 1000)
      style.indent.assign(static_cast<std::size_t>(std::max<std::int64_t>(0, indent->integer)), ' ');
    else
      arguments.fail();
  }
  if (const Value* separators = arguments.take("separators"); separators != nullptr && !separators->is(Kind::kNone)) {
    const std::vector<Value> two = items_of(*separators, in.heap());
    if (two.size() != 2 || !two[0].is(Kind::kString) || !two[1].is(Kind::kString)) arguments.fail();
    style.item_separator = *two[0].string;
    style.key_separator = *two[1].string;
  }
  style.sort_keys = arguments.flag("sort_keys", false);
  return in.string(to_json(value, style, in.heap()));
}

// --- numbers

bool parse_integer(std::string_view text, int base, std::int64_t& out) {
  text = python_strip(text, std::nullopt, true, true);
  const bool negative = text.starts_with('-');
  if (negative || text.starts_with('+')) text.remove_prefix(1);
  if (text.size() > 2 && text[0] == '0') {
    const char mark = static_cast<char>(text[1] | 32);
    if ((base == 16 && mark == 'x') || (base == 8 && mark == 'o') || (base == 2 && mark == 'b')) text.remove_prefix(2);
  }
  const auto result = std::from_chars(text.data(), text.data() + text.size(), out, base);
  if (text.empty() || result.ec != std::errc() || result.ptr != text.data() + text.size() || text[0] == '-')
    return false;
  if (negative) out = -out;
  return true;
}

bool parse_real(std::string_view text, double& out) {
  const std::string trimmed(python_strip(text, std::nullopt, true, true));
  if (trimmed.empty() || trimmed.find_first_of("xXpP(") != std::string::npos) return false;
  char* end = nullptr;
  out = std::strtod(trimmed.c_str(), &end);
  return end == trimmed.c_str() + trimmed.size();
}

Value int_filter(Interpreter& in, const Value& value, Arguments& arguments) {
  const Value* otherwise = arguments.take("default");
  const Value fallback = otherwise != nullptr ? *otherwise : integer(0);
  const std::int64_t base = arguments.integer("base", 10);
  if (base < 2 || base > 36) arguments.fail();
  double real = 0;
  if (value.is(Kind::kUndefined)) in.undefined(value);
  if (value.is(Kind::kInt)) return value;
  if (value.is(Kind::kBool)) return integer(value.boolean);
  if (value.is(Kind::kString)) {
    std::int64_t whole = 0;
    if (parse_integer(value.text(), static_cast<int>(base), whole)) return integer(whole);
    if (!parse_real(value.text(), real)) return fallback;
  } else if (value.is(Kind::kFloat)) {
    real = value.number;
  } else {
    return fallback;
  }
  return std::isfinite(real) && std::fabs(real) < 9e18 ? integer(static_cast<std::int64_t>(real)) : fallback;
}

Value float_filter(Interpreter& in, const Value& value, Arguments& arguments) {
  const Value* otherwise = arguments.take("default");
  double real = 0;
  if (value.is(Kind::kUndefined)) in.undefined(value);
  if (value.is(Kind::kFloat)) return value;
  if (value.is(Kind::kInt)) return number(static_cast<double>(value.integer));
  if (value.is(Kind::kBool)) return number(value.boolean);
  if (value.is(Kind::kString) && parse_real(value.text(), real)) return number(real);
  return otherwise != nullptr ? *otherwise : number(0);
}

Value round_filter(Interpreter& in, const Value& value, Arguments& arguments) {
  const std::int64_t precision = arguments.integer("precision", 0);
  const Value* how = arguments.take("method");
  const std::string method = how != nullptr ? in.text_of(*how) : "common";
  if (!value.is_number()) in.wrong_type("round", value);
  if (std::abs(precision) > 300 || (method != "common" && method != "ceil" && method != "floor")) arguments.fail();
  if (method == "common" && !value.is(Kind::kFloat) && precision >= 0) return in.binary(Op::kAdd, value, integer(0));
  const double scale = std::pow(10.0, static_cast<double>(precision)),
               scaled = in.binary(Op::kMultiply, value, number(scale)).number;
  const double rounded = method == "ceil"    ? std::ceil(scaled)
                         : method == "floor" ? std::floor(scaled)
                                             : std::nearbyint(scaled);
  return number(rounded / scale);
}

Value abs_filter(Interpreter& in, const Value& value, Arguments&) {
  if (!value.is_number()) in.wrong_type("abs", value);
  if (value.is(Kind::kFloat)) return number(std::fabs(value.number));
  return compare(value, integer(0), in.heap()) < 0 ? in.binary(Op::kSubtract, integer(0), value)
                                                   : in.binary(Op::kAdd, value, integer(0));
}

// --- sequences

// item.a.b.0 for the attribute "a.b.0"; an undefined part becomes `otherwise` when there is one.
Value path_of(Interpreter& in, Value item, const Value& path, const Value* otherwise) {
  if (path.is(Kind::kInt)) return in.subscript(item, path);
  for (const std::string_view part : split(path.text(), '.')) {
    std::int64_t index = 0;
    const bool digits =
        !part.empty() && std::all_of(part.begin(), part.end(), [](char c) { return c >= '0' && c <= '9'; });
    item = in.subscript(item, digits && parse_integer(part, 10, index) ? integer(index) : in.string(std::string(part)));
    if (item.is(Kind::kUndefined) && otherwise != nullptr) item = *otherwise;
  }
  return item;
}
Value attribute_argument(Arguments& arguments, const Value* path) {
  if (path == nullptr || !(path->is(Kind::kString) || path->is(Kind::kInt))) arguments.fail();
  return *path;
}

Arguments rest_of(std::string_view callee, Interpreter& in, Arguments& arguments) {
  Arguments rest(callee, in.heap());
  while (const Value* value = arguments.take("")) rest.positional.push_back(*value);
  rest.named = std::move(arguments.named);
  arguments.named.clear();
  return rest;
}

// map and select take anything false for an empty list.
std::vector<Value> items_if_any(Interpreter& in, const Value& value) {
  return truth(value) ? items_of(value, in.heap()) : std::vector<Value>();
}

Value map(Interpreter& in, const Value& value, Arguments& arguments) {
  std::vector<Value> out;
  const auto named = std::find_if(arguments.named.begin(), arguments.named.end(),
                                  [](const auto& one) { return one.first == "attribute"; });
  if (arguments.positional.empty() && named != arguments.named.end()) {
    const Value path = attribute_argument(arguments, &named->second);
    arguments.named.erase(named);
    const Value* otherwise = arguments.take("default");
    for (const Value& item : items_if_any(in, value)) out.push_back(path_of(in, item, path, otherwise));
  } else {
    const std::string name = arguments.text("filter");
    const Arguments rest = rest_of(name, in, arguments);
    for (const Value& item : items_if_any(in, value)) {
      Arguments copy = rest;
      out.push_back(in.apply_filter(name, item, copy));
    }
  }
  return in.heap().list(std::move(out), Kind::kGenerator);
}

template <bool Keep, bool Attribute>
Value select(Interpreter& in, const Value& value, Arguments& arguments) {
  Value path;
  if (Attribute) path = attribute_argument(arguments, arguments.take("attribute"));
  const Value* given = arguments.take("test");
  if (given != nullptr && !given->is(Kind::kString)) arguments.fail();
  const std::string name = given != nullptr ? *given->string : "";
  const Arguments rest = rest_of(name, in, arguments);
  std::vector<Value> out;
  for (const Value& item : items_if_any(in, value)) {
    const Value tested = Attribute ? path_of(in, item, path, nullptr) : item;
    Arguments copy = rest;
    const bool passes = given != nullptr ? in.apply_test(name, tested, copy) : truth(tested);
    if (passes == Keep) out.push_back(item);
  }
  return in.heap().list(std::move(out), Kind::kGenerator);
}

Value join(Interpreter& in, const Value& value, Arguments& arguments) {
  const Value* separator = arguments.take("d");
  const std::string between = separator != nullptr ? in.text_of(*separator) : "";
  const Value* path = arguments.take("attribute");
  std::string out;
  bool first = true;
  for (const Value& item : items_of(value, in.heap())) {
    if (!std::exchange(first, false)) out += between;
    const std::string text = in.text_of(path != nullptr && !path->is(Kind::kNone)
                                            ? path_of(in, item, attribute_argument(arguments, path), nullptr)
                                            : item);
    out += text;
    in.heap().charge(between.size() + text.size());
  }
  return in.string(std::move(out));
}

Value length(Interpreter& in, const Value& value, Arguments&) {
  switch (value.kind) {
    case Kind::kUndefined:
      return integer(0);
    case Kind::kString:
      return integer(static_cast<std::int64_t>(count_chars(value.text())));
    case Kind::kList:
    case Kind::kTuple:
      return integer(static_cast<std::int64_t>(value.list->items.size()));
    case Kind::kDict:
      return integer(static_cast<std::int64_t>(value.dict->items.size()));
    case Kind::kLoop:
      return integer(static_cast<std::int64_t>(value.loop->items.size()));
    default:
      in.wrong_type("length", value);
  }
}

Value items(Interpreter& in, const Value& value, Arguments&) {
  std::vector<Value> pairs;
  if (value.is(Kind::kDict)) {
    for (const auto& [key, item] : value.dict->items) pairs.push_back(in.heap().list({key, item}, Kind::kTuple));
  } else if (!value.is(Kind::kUndefined)) {
    in.wrong_type("items", value);
  }
  return in.heap().list(std::move(pairs), Kind::kGenerator);
}

Value first_or_last(Interpreter& in, const Value& value, bool first) {
  if (!first && value.is(Kind::kGenerator)) in.wrong_type("last", value);
  const std::vector<Value> all = items_of(value, in.heap());
  if (all.empty()) return in.heap().undefined(first ? "first" : "last");
  return first ? all.front() : all.back();
}

Value reverse(Interpreter& in, const Value& value, Arguments&) {
  if (value.is(Kind::kString)) {
    const auto offsets = char_offsets(value.text());
    std::string out;
    for (std::size_t i = offsets.size() - 1; i-- > 0;)
      out.append(*value.string, offsets[i], offsets[i + 1] - offsets[i]);
    return in.string(std::move(out));
  }
  std::vector<Value> all = items_of(value, in.heap());
  std::reverse(all.begin(), all.end());
  return in.heap().list(std::move(all), Kind::kGenerator);
}

// What sort, unique, min and max compare: the item or its attribute, text in lower case unless told otherwise.
struct SortKey {
  SortKey(Interpreter& in, bool case_sensitive, const Value* path) : in_(in), case_sensitive_(case_sensitive) {
    if (path != nullptr && !path->is(Kind::kNone)) path_ = *path;
  }
  Value operator()(const Value& item) const {
    const Value key = path_.is(Kind::kUndefined) ? item : path_of(in_, item, path_, nullptr);
    return key.is(Kind::kString) && !case_sensitive_ ? in_.string(lower(key.text())) : key;
  }

 private:
  Interpreter& in_;
  bool case_sensitive_;
  Value path_;
};

const Value* path_argument(Arguments& arguments) {
  const Value* path = arguments.take("attribute");
  if (path != nullptr && !path->is(Kind::kNone) && !path->is(Kind::kString) && !path->is(Kind::kInt)) arguments.fail();
  return path;
}

Value sort(Interpreter& in, const Value& value, Arguments& arguments) {
  const bool reversed = arguments.flag("reverse", false), sensitive = arguments.flag("case_sensitive", false);
  const SortKey key(in, sensitive, path_argument(arguments));
  std::vector<std::pair<Value, Value>> keyed;
  for (const Value& item : items_of(value, in.heap())) keyed.emplace_back(key(item), item);
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& a, const auto& b) {
    const int order = compare(a.first, b.first, in.heap());
    return reversed ? order > 0 : order < 0;
  });
  std::vector<Value> out;
  for (const auto& [k, item] : keyed) out.push_back(item);
  return in.heap().list(std::move(out));
}

Value dictsort(Interpreter& in, const Value& value, Arguments& arguments) {
  const bool sensitive = arguments.flag("case_sensitive", false);
  const Value* by = arguments.take("by");
  const std::string what = by != nullptr ? in.text_of(*by) : "key";
  const bool reversed = arguments.flag("reverse", false);
  if (!value.is(Kind::kDict)) in.wrong_type("dictsort", value);
  if (what != "key" && what != "value") arguments.fail();
  const SortKey key(in, sensitive, nullptr);
  std::vector<std::pair<Value, Value>> keyed;
  for (const auto& [k, v] : value.dict->items)
    keyed.emplace_back(key(what == "key" ? k : v), in.heap().list({k, v}, Kind::kTuple));
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& a, const auto& b) {
    const int order = compare(a.first, b.first, in.heap());
    return reversed ? order > 0 : order < 0;
  });
  std::vector<Value> out;
  for (const auto& [k, item] : keyed) out.push_back(item);
  return in.heap().list(std::move(out));
}

Value unique(Interpreter& in, const Value& value, Arguments& arguments) {
  const bool sensitive = arguments.flag("case_sensitive", false);
  const SortKey key(in, sensitive, path_argument(arguments));
  std::vector<Value> out;
  const Value seen = in.heap().dict();
  for (const Value& item : items_of(value, in.heap())) {
    const Value k = key(item);
    if (k.is(Kind::kList) || k.is(Kind::kDict)) in.wrong_type("unique", k);
    if (seen.dict->find(k, in.heap()) != nullptr) continue;
    seen.dict->set(k, none(), in.heap());
    out.push_back(item);
  }
  return in.heap().list(std::move(out), Kind::kGenerator);
}

template <bool Largest>
Value extreme(Interpreter& in, const Value& value, Arguments& arguments) {
  const bool sensitive = arguments.flag("case_sensitive", false);
  const SortKey key(in, sensitive, path_argument(arguments));
  const std::vector<Value> all = items_of(value, in.heap());
  if (all.empty()) return in.heap().undefined(Largest ? "max" : "min");
  std::size_t best = 0;
  for (std::size_t i = 1; i < all.size(); ++i) {
    const int order = compare(key(all[i]), key(all[best]), in.heap());
    if (Largest ? order > 0 : order < 0) best = i;
  }
  return all[best];
}

Value sum(Interpreter& in, const Value& value, Arguments& arguments) {
  const Value* path = path_argument(arguments);
  const Value* start = arguments.take("start");
  Value total = start != nullptr ? *start : integer(0);
  for (const Value& item : items_of(value, in.heap()))
    total = in.binary(Op::kAdd, total,
                      path != nullptr && !path->is(Kind::kNone) ? path_of(in, item, *path, nullptr) : item);
  return total;
}

Value default_filter(Interpreter& in, const Value& value, Arguments& arguments) {
  const Value* otherwise = arguments.take("default_value");
  const Value fallback = otherwise != nullptr ? *otherwise : in.string("");
  const bool by_truth = arguments.flag("boolean", false);
  return value.is(Kind::kUndefined) || (by_truth && !truth(value)) ? fallback : value;
}

constexpr std::pair<std::string_view, Filter> kFilters[] = {
    {"abs", abs_filter},
    {"count", length},
    {"d", default_filter},
    {"default", default_filter},
    {"dictsort", dictsort},
    {"float", float_filter},
    {"format", format},
    {"indent", indent},
    {"int", int_filter},
    {"items", items},
    {"join", join},
    {"length", length},
    {"map", map},
    {"max", extreme<true>},
    {"min", extreme<false>},
    {"reject", select<false, false>},
    {"rejectattr", select<false, true>},
    {"replace", replace},
    {"reverse", reverse},
    {"round", round_filter},
    {"select", select<true, false>},
    {"selectattr", select<true, true>},
    {"sort", sort},
    {"sum", sum},
    {"tojson", to_json_filter},
    {"trim", trim},
    {"unique", unique},
    {"capitalize", [](Interpreter& in, const Value& v, Arguments&) { return in.string(capitalized(in.text_of(v))); }},
    {"first", [](Interpreter& in, const Value& v, Arguments&) { return first_or_last(in, v, true); }},
    {"last", [](Interpreter& in, const Value& v, Arguments&) { return first_or_last(in, v, false); }},
    {"list", [](Interpreter& in, const Value& v, Arguments&) { return in.heap().list(items_of(v, in.heap())); }},
    {"lower", [](Interpreter& in, const Value& v, Arguments&) { return in.string(lower(in.text_of(v))); }},
    {"safe", [](Interpreter& in, const Value& v, Arguments&) { return in.string(in.text_of(v)); }},
    {"string", [](Interpreter& in, const Value& v, Arguments&) { return in.string(in.text_of(v)); }},
    {"title", [](Interpreter& in, const Value& v, Arguments&) { return in.string(titled(in.text_of(v), true)); }},
    {"upper", [](Interpreter& in, const Value& v, Arguments&) { return in.string(upper(in.text_of(v))); }}};

}  // namespace

Value filter(Interpreter& in, std::string_view name, const Value& input, Arguments& arguments) {
  if (input.is(Kind::kString)) in.heap().step(1 + input.string->size() / 64);
  for (const auto& [known, function] : kFilters) {
    if (known != name) continue;
    const Value answer = function(in, input, arguments);
    arguments.done();
    return answer;
  }
  in.fail("text.template_unknown_filter", {{"name", printable(name, 40)}}, ErrorKind::kUnsupported);
}

}  // namespace fathom::text::jinja
