// Methods of strings, lists and dictionaries. What would change a list or dictionary is not there, as in the sandbox
// that transformers renders templates in.
#include <fmt/format.h>

#include <algorithm>

#include "base/strings.h"
#include "text/jinja_interpreter.h"
#include "text/jinja_text.h"
#include "text/unicode.h"

namespace fathom::text::jinja {
namespace {

using Method = Value (*)(Interpreter&, const Value&, Arguments&);

std::optional<std::string> optional_text(Arguments& arguments, std::string_view name) {
  const Value* value = arguments.take(name);
  if (value == nullptr || value->is(Kind::kNone)) return std::nullopt;
  if (!value->is(Kind::kString)) arguments.fail();
  return *value->string;
}

template <bool Left, bool Right>
Value strip(Interpreter& in, const Value& self, Arguments& arguments) {
  const auto chars = optional_text(arguments, "chars");
  std::optional<std::string_view> view;
  if (chars) view = *chars;
  in.heap().step(1 + self.string->size() * (chars ? 1 + chars->size() : 0) / 64);
  return in.string(std::string(python_strip(self.text(), view, Left, Right)));
}

template <bool FromRight>
Value split(Interpreter& in, const Value& self, Arguments& arguments) {
  const auto separator = optional_text(arguments, "sep");
  const std::int64_t limit = arguments.integer("maxsplit", -1);
  if (separator && separator->empty()) arguments.fail();
  std::optional<std::string_view> view;
  if (separator) view = *separator;
  std::vector<Value> parts;
  for (const std::string_view part : python_split(self.text(), view, limit, FromRight)) {
    in.heap().step();
    parts.push_back(in.string(std::string(part)));
  }
  return in.heap().list(std::move(parts));
}

// startswith and endswith: one text, or any of a tuple.
template <bool Start>
Value begins_or_ends(Interpreter&, const Value& self, Arguments& arguments) {
  const Value wanted = arguments.required("prefix");
  const auto matches = [&](const Value& one) {
    if (!one.is(Kind::kString)) arguments.fail();
    return Start ? self.text().starts_with(one.text()) : self.text().ends_with(one.text());
  };
  if (!wanted.is(Kind::kTuple)) return boolean(matches(wanted));
  return boolean(std::any_of(wanted.list->items.begin(), wanted.list->items.end(), matches));
}

// The character number of `needle`, or -1.
template <bool FromRight>
std::int64_t find(const Value& self, Arguments& arguments) {
  const std::string needle = arguments.text("sub");
  const std::size_t at = FromRight ? self.text().rfind(needle) : self.text().find(needle);
  return at == std::string_view::npos ? -1 : static_cast<std::int64_t>(count_chars(self.text().substr(0, at)));
}
template <bool FromRight>
Value find_or_minus(Interpreter&, const Value& self, Arguments& arguments) {
  return integer(find<FromRight>(self, arguments));
}

template <Class Wanted>
Value all_are(Interpreter&, const Value& self, Arguments&) {
  return boolean(is_all(self.text(), Wanted));
}

template <bool FromRight>
Value partition(Interpreter& in, const Value& self, Arguments& arguments) {
  const std::string separator = arguments.text("sep");
  if (separator.empty()) arguments.fail();
  const std::string& text = *self.string;
  const std::size_t at = FromRight ? text.rfind(separator) : text.find(separator);
  std::vector<Value> parts;
  if (at == std::string::npos) {
    parts = {in.string(FromRight ? "" : text), in.string(""), in.string(FromRight ? text : "")};
  } else {
    parts = {in.string(text.substr(0, at)), in.string(separator), in.string(text.substr(at + separator.size()))};
  }
  return in.heap().list(std::move(parts), Kind::kTuple);
}

Value replace_in(Interpreter& in, const Value& self, Arguments& arguments) {
  const std::string old = arguments.text("old"), by = arguments.text("new");
  const std::int64_t limit = arguments.integer("count", -1);
  const std::size_t places = old.empty() ? self.string->size() + 1 : self.string->size() / old.size();
  in.heap().charge(self.string->size());
  if (by.size() > old.size())
    in.heap().charge(std::min(places, limit < 0 ? places : static_cast<std::size_t>(limit)) * (by.size() - old.size()));
  return in.string(replaced(self.text(), old, by, limit));
}

Value join_by(Interpreter& in, const Value& self, Arguments& arguments) {
  std::string out;
  bool first = true;
  for (const Value& item : items_of(arguments.required("iterable"), in.heap())) {
    if (!item.is(Kind::kString)) arguments.fail();
    if (!std::exchange(first, false)) out += *self.string;
    out += *item.string;
    in.heap().charge(self.string->size() + item.string->size());
  }
  return in.string(std::move(out));
}

constexpr std::pair<std::string_view, Method> kTextMethods[] = {
    {"strip", strip<true, true>},
    {"lstrip", strip<true, false>},
    {"rstrip", strip<false, true>},
    {"split", split<false>},
    {"rsplit", split<true>},
    {"startswith", begins_or_ends<true>},
    {"endswith", begins_or_ends<false>},
    {"find", find_or_minus<false>},
    {"rfind", find_or_minus<true>},
    {"isdigit", all_are<Class::kDigit>},
    {"isalpha", all_are<Class::kAlpha>},
    {"isalnum", all_are<Class::kAlnum>},
    {"isspace", all_are<Class::kSpace>},
    {"isupper", all_are<Class::kUpper>},
    {"islower", all_are<Class::kLower>},
    {"partition", partition<false>},
    {"rpartition", partition<true>},
    {"replace", replace_in},
    {"join", join_by},
    {"upper", [](Interpreter& in, const Value& s, Arguments&) { return in.string(upper(s.text())); }},
    {"lower", [](Interpreter& in, const Value& s, Arguments&) { return in.string(lower(s.text())); }},
    {"capitalize", [](Interpreter& in, const Value& s, Arguments&) { return in.string(capitalized(s.text())); }},
    {"title", [](Interpreter& in, const Value& s, Arguments&) { return in.string(titled(s.text(), false)); }},
    {"index",
     [](Interpreter& in, const Value& s, Arguments& a) {
       const std::int64_t at = find<false>(s, a);
       if (at < 0) in.fail("text.template_not_found", {{"name", "index"}});
       return integer(at);
     }},
    {"count",
     [](Interpreter&, const Value& s, Arguments& a) {
       const std::string needle = a.text("sub");
       if (needle.empty()) return integer(static_cast<std::int64_t>(count_chars(s.text())) + 1);
       std::int64_t n = 0;
       for (std::size_t at = s.string->find(needle); at != std::string::npos;
            at = s.string->find(needle, at + needle.size()))
         ++n;
       return integer(n);
     }},
    {"splitlines",
     [](Interpreter& in, const Value& s, Arguments& a) {
       std::vector<Value> lines;
       for (const std::string_view line : split_lines(s.text(), a.flag("keepends", false)))
         lines.push_back(in.string(std::string(line)));
       return in.heap().list(std::move(lines));
     }},
    {"removeprefix",
     [](Interpreter& in, const Value& s, Arguments& a) {
       const std::string prefix = a.text("prefix");
       return s.text().starts_with(prefix) ? in.string(s.string->substr(prefix.size())) : s;
     }},
    {"removesuffix", [](Interpreter& in, const Value& s, Arguments& a) {
       const std::string suffix = a.text("suffix");
       return s.text().ends_with(suffix) ? in.string(s.string->substr(0, s.string->size() - suffix.size())) : s;
     }}};
constexpr std::string_view kOtherTextMethods[] = {"casefold",    "center",   "encode",    "expandtabs",   "format",
                                                  "format_map",  "isascii",  "isdecimal", "isidentifier", "isnumeric",
                                                  "isprintable", "istitle",  "ljust",     "maketrans",    "rindex",
                                                  "rjust",       "swapcase", "translate", "zfill"};

constexpr std::pair<std::string_view, Method> kDictMethods[] = {
    {"items",
     [](Interpreter& in, const Value& s, Arguments&) {
       std::vector<Value> pairs;
       for (const auto& [key, value] : s.dict->items) pairs.push_back(in.heap().list({key, value}, Kind::kTuple));
       return in.heap().list(std::move(pairs));
     }},
    {"keys", [](Interpreter& in, const Value& s, Arguments&) { return in.heap().list(items_of(s, in.heap())); }},
    {"values",
     [](Interpreter& in, const Value& s, Arguments&) {
       std::vector<Value> values;
       for (const auto& [key, value] : s.dict->items) values.push_back(value);
       return in.heap().list(std::move(values));
     }},
    {"get",
     [](Interpreter& in, const Value& s, Arguments& a) {
       const Value key = a.required("key");
       const Value* otherwise = a.take("default");
       const Value* found = s.dict->find(key, in.heap());
       return found != nullptr ? *found : otherwise != nullptr ? *otherwise : none();
     }},
    {"copy", [](Interpreter& in, const Value& s, Arguments&) {
       const Value made = in.heap().dict();
       for (const auto& [key, value] : s.dict->items) made.dict->set(key, value, in.heap());
       return made;
     }}};
constexpr std::string_view kOtherDictMethods[] = {"clear", "fromkeys", "pop", "popitem", "setdefault", "update"};

constexpr std::pair<std::string_view, Method> kListMethods[] = {
    {"index",
     [](Interpreter& in, const Value& s, Arguments& a) {
       const Value wanted = a.required("value");
       for (std::size_t i = 0; i < s.list->items.size(); ++i)
         if (equal(s.list->items[i], wanted, in.heap())) return integer(static_cast<std::int64_t>(i));
       in.fail("text.template_not_found", {{"name", "index"}});
     }},
    {"count",
     [](Interpreter& in, const Value& s, Arguments& a) {
       const Value wanted = a.required("value");
       std::int64_t n = 0;
       for (const Value& item : s.list->items) n += equal(item, wanted, in.heap());
       return integer(n);
     }},
    {"copy", [](Interpreter& in, const Value& s, Arguments&) { return in.heap().list(s.list->items); }}};
constexpr std::string_view kOtherListMethods[] = {"append", "clear",  "extend",  "insert",
                                                  "pop",    "remove", "reverse", "sort"};

struct MethodTable {
  std::span<const std::pair<std::string_view, Method>> known;
  std::span<const std::string_view> unsupported;
};
MethodTable table_of(const Value& self) {
  switch (self.kind) {
    case Kind::kString:
      return {kTextMethods, kOtherTextMethods};
    case Kind::kDict:
      return {kDictMethods, kOtherDictMethods};
    case Kind::kList:
      return {kListMethods, kOtherListMethods};
    case Kind::kTuple:
      return {std::span(kListMethods).first(2), {}};
    default:
      return {};
  }
}

}  // namespace

MethodStatus method_status(const Value& self, std::string_view name) {
  const MethodTable table = table_of(self);
  for (const auto& [known, method] : table.known)
    if (known == name) return MethodStatus::kKnown;
  for (const std::string_view known : table.unsupported)
    if (known == name) return MethodStatus::kUnsupported;
  return MethodStatus::kNone;
}

Value method(Interpreter& in, const Value& self, std::string_view name, Arguments& arguments) {
  if (self.is(Kind::kString)) in.heap().step(1 + self.string->size() / 64);
  if (self.is(Kind::kDict)) in.heap().step(1 + self.dict->items.size() / 8);
  for (const auto& [known, function] : table_of(self).known) {
    if (known != name) continue;
    const Value answer = function(in, self, arguments);
    arguments.done();
    return answer;
  }
  FATHOM_CHECK(false, name);
}

std::string percent_format(Interpreter& in, std::string_view format, const std::vector<Value>& values) {
  std::string out;
  std::size_t used = 0;
  const auto unsupported = [&](std::string_view what) {
    in.fail("text.template_unsupported", {{"what", printable(what, 20)}}, ErrorKind::kUnsupported);
  };
  for (std::size_t i = 0; i < format.size(); ++i) {
    if (format[i] != '%') {
      out += format[i];
      continue;
    }
    std::size_t end = i + 1;
    int precision = 6;
    if (end < format.size() && format[end] == '.') {
      precision = 0;
      for (++end; end < format.size() && format[end] >= '0' && format[end] <= '9' && precision < 100; ++end)
        precision = precision * 10 + (format[end] - '0');
    }
    const char kind = end < format.size() ? format[end] : '\0';
    const bool has_precision = end != i + 1;
    if (kind == '%' && !has_precision) {
      out += '%';
    } else if (kind != 's' && kind != 'd' && kind != 'i' && kind != 'r' && kind != 'f') {
      unsupported(format.substr(i));
    } else {
      if (has_precision && kind != 'f') unsupported(format.substr(i));
      if (used >= values.size()) in.fail("text.template_arguments", {{"name", "%"}});
      const Value& value = values[used++];
      if (kind == 's')
        out += in.text_of(value);
      else if (kind == 'r')
        out += to_repr(value, in.heap());
      else if (!value.is_number())
        in.wrong_type("%", value);
      else if (kind == 'f')
        out += fmt::format("{:.{}f}", in.binary(Op::kMultiply, value, number(1)).number, precision);
      else
        out += in.text_of(value.is(Kind::kFloat)
                              ? integer(static_cast<std::int64_t>(std::clamp(value.number, -9e18, 9e18)))
                              : in.binary(Op::kAdd, value, integer(0)));
      in.heap().charge(out.size() / 4);
    }
    i = end;
  }
  if (used != values.size()) in.fail("text.template_arguments", {{"name", "%"}});
  return out;
}

}  // namespace fathom::text::jinja
