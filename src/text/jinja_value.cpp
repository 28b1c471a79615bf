#include "text/jinja_value.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "base/json.h"
#include "base/units.h"
#include "text/unicode.h"

namespace fathom::text::jinja {
void stop(std::string_view key, int line, ErrorArgs args, ErrorKind kind) {
  Error error{kind, std::string(key), {{"line", std::to_string(line)}}};
  error.args.insert(error.args.end(), args.begin(), args.end());
  throw TemplateFailure{std::move(error)};
}

Value none() {
  Value value;
  value.kind = Kind::kNone;
  return value;
}
Value boolean(bool b) {
  Value value;
  value.kind = Kind::kBool;
  value.boolean = b;
  return value;
}
Value integer(std::int64_t i) {
  Value value;
  value.kind = Kind::kInt;
  value.integer = i;
  return value;
}
Value number(double d) {
  Value value;
  value.kind = Kind::kFloat;
  value.number = d;
  return value;
}

const Value* Dict::find(std::string_view key) const {
  constexpr std::size_t kFew = 16;
  if (items.size() <= kFew) {
    for (const auto& [k, v] : items)
      if (k.is(Kind::kString) && k.text() == key) return &v;
    return nullptr;
  }
  const std::size_t hash = std::hash<std::string_view>{}(key);
  const auto sorted_end = index_.begin() + static_cast<std::ptrdiff_t>(sorted_);
  for (auto it = std::lower_bound(index_.begin(), sorted_end, std::pair<std::size_t, std::size_t>{hash, 0});
       it != sorted_end && it->first == hash; ++it)
    if (items[it->second].first.text() == key) return &items[it->second].second;
  for (auto it = sorted_end; it != index_.end(); ++it)
    if (it->first == hash && items[it->second].first.text() == key) return &items[it->second].second;
  return nullptr;
}

const Value* Dict::find(const Value& key, Heap& heap) const {
  if (key.is(Kind::kString)) return find(key.text());
  for (const auto& [k, v] : items)
    if (!k.is(Kind::kString) && equal(k, key, heap)) return &v;
  return nullptr;
}

void Dict::set(const Value& key, const Value& value, Heap& heap) {
  if (const Value* old = find(key, heap)) {
    *const_cast<Value*>(old) = value;
    return;
  }
  if (key.is(Kind::kString)) {
    index_.emplace_back(std::hash<std::string_view>{}(key.text()), items.size());
    if (index_.size() - sorted_ > 64 && index_.size() - sorted_ > sorted_ / 8) {
      std::sort(index_.begin(), index_.end());
      sorted_ = index_.size();
    }
  }
  heap.charge(2 * sizeof(Value));
  items.emplace_back(key, value);
}

void Heap::charge(std::size_t bytes) {
  bytes_ += bytes;
  if (bytes_ > limits_.bytes) stop("text.template_too_large", line, {{"limit", format_bytes(limits_.bytes)}});
}

void Heap::step(std::size_t count) {
  steps_ += count;
  if (steps_ > limits_.steps) stop("text.template_too_long", line, {{"limit", std::to_string(limits_.steps)}});
}

Value Heap::string(std::string text) {
  charge(text.size() + sizeof(std::string));
  Value value;
  value.kind = Kind::kString;
  value.string = &strings_.emplace_back(std::move(text));
  return value;
}

Value Heap::list(std::vector<Value> items, Kind kind) {
  charge(items.size() * sizeof(Value) + sizeof(List));
  Value value;
  value.kind = kind;
  value.list = &lists_.emplace_back();
  value.list->items = std::move(items);
  return value;
}

Value Heap::dict() {
  charge(sizeof(Dict));
  Value value;
  value.kind = Kind::kDict;
  value.dict = &dicts_.emplace_back();
  return value;
}

Value Heap::undefined(std::string_view name) {
  Value value = string(std::string(name));
  value.kind = Kind::kUndefined;
  return value;
}

Value Heap::from_json(const Json& json) {
  switch (json.type()) {
    case Json::value_t::boolean:
      return boolean(json.get<bool>());
    case Json::value_t::number_integer:
      return integer(json.get<std::int64_t>());
    case Json::value_t::number_unsigned: {
      const auto u = json.get<std::uint64_t>();
      if (u > static_cast<std::uint64_t>(INT64_MAX))
        stop("text.template_number", line, {{"number", std::to_string(u)}});
      return integer(static_cast<std::int64_t>(u));
    }
    case Json::value_t::number_float:
      return number(json.get<double>());
    case Json::value_t::string:
      return string(json.get<std::string>());
    case Json::value_t::array: {
      std::vector<Value> items;
      for (const Json& item : json) items.push_back(from_json(item));
      return list(std::move(items));
    }
    case Json::value_t::object: {
      Value value = dict();
      for (const auto& [key, item] : json.items()) {
        value.dict->set(string(key), from_json(item), *this);
      }
      return value;
    }
    default:
      return none();
  }
}

std::string_view type_name(const Value& value) {
  switch (value.kind) {
    case Kind::kUndefined:
      return "undefined";
    case Kind::kNone:
      return "none";
    case Kind::kBool:
      return "bool";
    case Kind::kInt:
      return "int";
    case Kind::kFloat:
      return "float";
    case Kind::kString:
      return "str";
    case Kind::kList:
      return "list";
    case Kind::kTuple:
      return "tuple";
    case Kind::kGenerator:
      return "generator";
    case Kind::kDict:
      return "dict";
    case Kind::kNamespace:
      return "namespace";
    case Kind::kLoop:
      return "loop";
    case Kind::kFunction:
      return "function";
  }
  return "";
}

bool truth(const Value& value) {
  switch (value.kind) {
    case Kind::kUndefined:
    case Kind::kNone:
      return false;
    case Kind::kBool:
      return value.boolean;
    case Kind::kInt:
      return value.integer != 0;
    case Kind::kFloat:
      return value.number != 0;
    case Kind::kString:
      return !value.string->empty();
    case Kind::kList:
    case Kind::kTuple:
      return !value.list->items.empty();
    case Kind::kDict:
      return !value.dict->items.empty();
    default:
      return true;
  }
}

namespace {

double as_double(const Value& value) {
  if (value.is(Kind::kFloat)) return value.number;
  return value.is(Kind::kBool) ? value.boolean : static_cast<double>(value.integer);
}
std::int64_t as_integer(const Value& value) { return value.is(Kind::kBool) ? value.boolean : value.integer; }

}  // namespace

void check_value_depth(int depth, const Heap& heap) {
  constexpr int kMaxValueDepth = 100;
  if (depth > kMaxValueDepth) stop("text.template_deep_value", heap.line, {{"limit", std::to_string(kMaxValueDepth)}});
}

bool equal(const Value& a, const Value& b, Heap& heap, int depth) {
  check_value_depth(depth, heap);
  heap.step();
  if (a.is_number() && b.is_number())
    return a.is(Kind::kFloat) || b.is(Kind::kFloat) ? as_double(a) == as_double(b) : as_integer(a) == as_integer(b);
  if (a.kind != b.kind) return false;
  switch (a.kind) {
    case Kind::kUndefined:
    case Kind::kNone:
      return true;
    case Kind::kString:
      return *a.string == *b.string;
    case Kind::kList:
    case Kind::kTuple: {
      if (a.list == b.list) return true;
      if (a.list->items.size() != b.list->items.size()) return false;
      for (std::size_t i = 0; i < a.list->items.size(); ++i)
        if (!equal(a.list->items[i], b.list->items[i], heap, depth + 1)) return false;
      return true;
    }
    case Kind::kDict: {
      if (a.dict == b.dict) return true;
      if (a.dict->items.size() != b.dict->items.size()) return false;
      for (const auto& [key, value] : a.dict->items) {
        const Value* other = b.dict->find(key, heap);
        if (other == nullptr || !equal(value, *other, heap, depth + 1)) return false;
      }
      return true;
    }
    default:
      return a.string == b.string;  // the same object
  }
}

int compare(const Value& a, const Value& b, Heap& heap, int depth) {
  check_value_depth(depth, heap);
  heap.step();
  if (a.is_number() && b.is_number()) {
    if (a.is(Kind::kFloat) || b.is(Kind::kFloat)) return as_double(a) < as_double(b) ? -1 : as_double(a) > as_double(b);
    return as_integer(a) < as_integer(b) ? -1 : as_integer(a) > as_integer(b);
  }
  if (a.is(Kind::kString) && b.is(Kind::kString)) return a.string->compare(*b.string);
  if (a.kind == b.kind && (a.is(Kind::kList) || a.is(Kind::kTuple))) {
    const auto &x = a.list->items, &y = b.list->items;
    for (std::size_t i = 0; i < std::min(x.size(), y.size()); ++i)
      if (!equal(x[i], y[i], heap, depth + 1)) return compare(x[i], y[i], heap, depth + 1);
    return x.size() < y.size() ? -1 : x.size() > y.size();
  }
  stop("text.template_types", heap.line,
       {{"operation", "<"}, {"types", std::string(type_name(a)) + ", " + std::string(type_name(b))}});
}

std::vector<Value> items_of(const Value& value, Heap& heap) {
  std::vector<Value> out;
  switch (value.kind) {
    case Kind::kUndefined:
      break;
    case Kind::kList:
    case Kind::kTuple:
      out = value.list->items;
      break;
    case Kind::kGenerator:
      if (!std::exchange(value.list->consumed, true)) out = value.list->items;
      break;
    case Kind::kDict:
      for (const auto& [key, item] : value.dict->items) out.push_back(key);
      break;
    case Kind::kString:
      for (std::size_t i = 0; i < value.string->size();) {
        const std::size_t start = i;
        static_cast<void>(next_char(*value.string, i));
        out.push_back(heap.string(value.string->substr(start, i - start)));
      }
      break;
    default:
      stop("text.template_not_iterable", heap.line, {{"type", std::string(type_name(value))}});
  }
  heap.charge(out.size() * sizeof(Value));
  heap.step(out.size());
  return out;
}

}  // namespace fathom::text::jinja
