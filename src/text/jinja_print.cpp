// Values as text: Python's str(), repr() and json.dumps().
#include <fmt/format.h>
#include <utf8proc.h>

#include <algorithm>
#include <cmath>

#include "text/jinja_value.h"
#include "text/unicode.h"

namespace fathom::text::jinja {
namespace {

bool is_printable(char32_t c) {
  if (c < 0x7f) return c >= 0x20;
  const auto kind = utf8proc_category(static_cast<utf8proc_int32_t>(c));
  return kind != UTF8PROC_CATEGORY_CN && kind < UTF8PROC_CATEGORY_ZS;
}

std::string string_repr(std::string_view text) {
  const bool single = text.find('\'') != std::string_view::npos && text.find('"') == std::string_view::npos;
  const char quote = single ? '"' : '\'';
  std::string out(1, quote);
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t start = i;
    const char32_t c = next_char(text, i);
    if (c == static_cast<char32_t>(quote) || c == '\\')
      out += {'\\', static_cast<char>(c)};
    else if (c == '\n')
      out += "\\n";
    else if (c == '\r')
      out += "\\r";
    else if (c == '\t')
      out += "\\t";
    else if (is_printable(c))
      out += text.substr(start, i - start);
    else if (c < 0x100)
      out += fmt::format("\\x{:02x}", static_cast<unsigned>(c));
    else if (c < 0x10000)
      out += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
    else
      out += fmt::format("\\U{:08x}", static_cast<unsigned>(c));
  }
  return out + quote;
}

void append_json_string(std::string& out, std::string_view text, bool ascii) {
  out += '"';
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t start = i;
    const char32_t c = next_char(text, i);
    switch (c) {
      case '"':
        out += "\\\"";
        continue;
      case '\\':
        out += "\\\\";
        continue;
      case '\n':
        out += "\\n";
        continue;
      case '\r':
        out += "\\r";
        continue;
      case '\t':
        out += "\\t";
        continue;
      case '\b':
        out += "\\b";
        continue;
      case '\f':
        out += "\\f";
        continue;
      default:
        break;
    }
    if (c < 0x20 || (ascii && c >= 0x7f && c < 0x10000 && c != 0x7f)) {
      out += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
    } else if (ascii && c >= 0x10000) {
      const unsigned v = static_cast<unsigned>(c) - 0x10000;
      out += fmt::format("\\u{:04x}\\u{:04x}", 0xd800 + (v >> 10), 0xdc00 + (v & 0x3ff));
    } else {
      out += text.substr(start, i - start);
    }
  }
  out += '"';
}

class JsonWriter {
 public:
  JsonWriter(const JsonStyle& style, Heap& heap) : style_(style), heap_(heap) {}

  void write(const Value& value, int depth) {
    check_value_depth(depth, heap_);
    heap_.step();
    switch (value.kind) {
      case Kind::kNone:
        out += "null";
        break;
      case Kind::kBool:
        out += value.boolean ? "true" : "false";
        break;
      case Kind::kInt:
        out += std::to_string(value.integer);
        break;
      case Kind::kFloat:
        out += json_float(value.number);
        break;
      case Kind::kString:
        heap_.charge(value.string->size());
        append_json_string(out, value.text(), style_.ascii);
        break;
      case Kind::kList:
      case Kind::kTuple:
        write_list(value, depth);
        break;
      case Kind::kDict:
        write_dict(value, depth);
        break;
      default:
        stop("text.template_not_json", heap_.line, {{"type", std::string(type_name(value))}});
    }
  }
  std::string out;

 private:
  static std::string json_float(double value) {
    if (std::isnan(value)) return "NaN";
    if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
    return float_text(value);
  }
  void separate(bool first, int depth) {
    if (!first) out += style_.item_separator;
    if (!style_.pretty) return;
    out += '\n';
    heap_.charge(style_.indent.size() * static_cast<std::size_t>(depth));
    for (int i = 0; i < depth; ++i) out += style_.indent;
  }
  void write_list(const Value& value, int depth) {
    out += '[';
    bool first = true;
    for (const Value& item : value.list->items) {
      separate(std::exchange(first, false), depth + 1);
      write(item, depth + 1);
    }
    if (!first && style_.pretty) separate(true, depth);
    out += ']';
  }
  std::string key_text(const Value& key) const {
    switch (key.kind) {
      case Kind::kString:
        return *key.string;
      case Kind::kNone:
        return "null";
      case Kind::kBool:
        return key.boolean ? "true" : "false";
      case Kind::kInt:
        return std::to_string(key.integer);
      case Kind::kFloat:
        return json_float(key.number);
      default:
        stop("text.template_not_json", heap_.line, {{"type", std::string(type_name(key))}});
    }
  }
  void write_dict(const Value& value, int depth) {
    auto items = value.dict->items;
    if (style_.sort_keys)
      std::stable_sort(items.begin(), items.end(),
                       [&](const auto& a, const auto& b) { return compare(a.first, b.first, heap_) < 0; });
    out += '{';
    bool first = true;
    for (const auto& [key, item] : items) {
      separate(std::exchange(first, false), depth + 1);
      append_json_string(out, key_text(key), style_.ascii);
      out += style_.key_separator;
      write(item, depth + 1);
    }
    if (!first && style_.pretty) separate(true, depth);
    out += '}';
  }

  const JsonStyle& style_;
  Heap& heap_;
};

}  // namespace

std::string float_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  std::string text = fmt::format("{}", value);
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

namespace {

// Appends the repr() of `value`. Each part counts, and so does what is written: a few lists that share their items can
// stand for a text without end.
void append_repr(std::string& out, const Value& value, Heap& heap, int depth) {
  check_value_depth(depth, heap);
  heap.step();
  switch (value.kind) {
    case Kind::kUndefined:
      out += "Undefined";
      break;
    case Kind::kNone:
      out += "None";
      break;
    case Kind::kBool:
      out += value.boolean ? "True" : "False";
      break;
    case Kind::kInt:
      out += std::to_string(value.integer);
      break;
    case Kind::kFloat:
      out += float_text(value.number);
      break;
    case Kind::kString:
      heap.charge(value.string->size());
      out += string_repr(value.text());
      break;
    case Kind::kList:
    case Kind::kTuple: {
      const bool list = value.is(Kind::kList);
      out += list ? '[' : '(';
      bool first = true;
      for (const Value& item : value.list->items) {
        if (!std::exchange(first, false)) out += ", ";
        append_repr(out, item, heap, depth + 1);
      }
      if (!list && value.list->items.size() == 1) out += ',';
      out += list ? ']' : ')';
      break;
    }
    case Kind::kDict:
    case Kind::kNamespace: {
      const bool plain = value.is(Kind::kDict);
      out += plain ? "{" : "<Namespace {";
      bool first = true;
      for (const auto& [key, item] : value.dict->items) {
        if (!std::exchange(first, false)) out += ", ";
        append_repr(out, key, heap, depth + 1);
        out += ": ";
        append_repr(out, item, heap, depth + 1);
      }
      out += plain ? "}" : "}>";
      break;
    }
    default:
      stop("text.template_types", heap.line, {{"operation", "{{ }}"}, {"types", std::string(type_name(value))}});
  }
}

}  // namespace

std::string to_text(const Value& value, Heap& heap) {
  if (value.is(Kind::kString)) return *value.string;
  if (value.is(Kind::kUndefined)) return "";
  return to_repr(value, heap);
}

std::string to_repr(const Value& value, Heap& heap) {
  std::string out;
  append_repr(out, value, heap, 0);
  return out;
}

std::string to_json(const Value& value, const JsonStyle& style, Heap& heap) {
  JsonWriter writer(style, heap);
  writer.write(value, 0);
  return std::move(writer.out);
}

}  // namespace fathom::text::jinja
