// Values of the template language: Python's, as far as chat templates see them. Inside this room only: a failure is
// thrown as TemplateFailure and caught where the template is parsed or rendered (chat_template.cpp).
#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"

namespace fathom::text::jinja {

struct TemplateFailure {
  Error error;
};
/// Throws the failure `key`, which has a place {line} for `line`.
[[noreturn]] void stop(std::string_view key, int line, ErrorArgs args = {}, ErrorKind kind = ErrorKind::kInput);

enum class Kind : std::uint8_t {
  kUndefined,
  kNone,
  kBool,
  kInt,
  kFloat,
  kString,
  kList,
  kTuple,
  kGenerator,
  kDict,
  kNamespace,
  kLoop,
  kFunction
};

class Heap;
struct List;
struct Dict;
struct Function;
struct Loop;

/// A small handle; what it points to belongs to a Heap (or to the template, for literals) and does not change, except
/// namespaces and loops.
struct Value {
  Kind kind = Kind::kUndefined;
  union {
    bool boolean;
    std::int64_t integer;
    double number;
    const std::string* string;  // valid UTF-8; for kUndefined the name that was looked for, or nullptr
    List* list;                 // kList, kTuple, kGenerator
    Dict* dict;                 // kDict, kNamespace
    Loop* loop;
    const Function* function;
  };
  Value() : string(nullptr) {}

  bool is(Kind k) const { return kind == k; }
  bool is_number() const { return kind == Kind::kInt || kind == Kind::kFloat || kind == Kind::kBool; }
  bool is_sequence() const { return kind == Kind::kList || kind == Kind::kTuple || kind == Kind::kGenerator; }
  std::string_view text() const { return *string; }
};

Value none();
Value boolean(bool value);
Value integer(std::int64_t value);
Value number(double value);

struct List {
  std::vector<Value> items;
  bool consumed = false;  // a generator gives its items once
};

/// Insertion-ordered. Lookups by text are hashed once there are many.
struct Dict {
  std::vector<std::pair<Value, Value>> items;
  const Value* find(std::string_view key) const;
  const Value* find(const Value& key, Heap& heap) const;
  void set(const Value& key, const Value& value, Heap& heap);

 private:
  std::vector<std::pair<std::size_t, std::size_t>> index_;  // hash of a text key and its place, sorted up to sorted_
  std::size_t sorted_ = 0;
};

/// Owns what a rendering makes, and counts it: a hostile template runs into a limit, not into the machine.
class Heap {
 public:
  struct Limits {
    std::size_t bytes = std::size_t{256} << 20;  // made in all, whether still in use or not
    std::size_t steps = 20'000'000;              // expressions and statements evaluated, items looped over
    int depth = 1000;                            // nesting of evaluation, macros included
  };
  Heap() = default;
  explicit Heap(const Limits& limits) : limits_(limits) {}
  Heap(const Heap&) = delete;
  Heap& operator=(const Heap&) = delete;

  Value string(std::string text);
  Value list(std::vector<Value> items, Kind kind = Kind::kList);
  Value dict();
  Value undefined(std::string_view name);
  /// A copy of `json`. Errors: text.template_number for an integer beyond 64 bits.
  Value from_json(const nlohmann::ordered_json& json);

  void charge(std::size_t bytes);
  void step(std::size_t count = 1);
  /// The line that failures of charge() and step() name.
  int line = 0;
  const Limits& limits() const { return limits_; }

 private:
  Limits limits_;
  std::size_t bytes_ = 0, steps_ = 0;
  std::deque<std::string> strings_;
  std::deque<List> lists_;
  std::deque<Dict> dicts_;
};

// What follows walks values of any shape, so each part visited is a step on the heap; failures name heap.line.

/// Python's name of the type, for messages.
std::string_view type_name(const Value& value);
bool truth(const Value& value);
/// Python's ==.
bool equal(const Value& a, const Value& b, Heap& heap, int depth = 0);
/// Below 0, 0 or above: numbers with numbers, text with text, sequences with sequences. Fails: text.template_types.
int compare(const Value& a, const Value& b, Heap& heap, int depth = 0);
/// Python's str() and repr(). Fail: text.template_types for what has no text (functions).
std::string to_text(const Value& value, Heap& heap);
std::string to_repr(const Value& value, Heap& heap);
/// Python's repr() of a float.
std::string float_text(double value);

struct JsonStyle {
  bool ascii = false, sort_keys = false, pretty = false;
  std::string indent, item_separator = ", ", key_separator = ": ";
};
/// Python's json.dumps(). Fails: text.template_not_json.
std::string to_json(const Value& value, const JsonStyle& style, Heap& heap);

/// What a for loop goes over: items, keys, characters; nothing for undefined. Fails: text.template_not_iterable.
std::vector<Value> items_of(const Value& value, Heap& heap);
/// Fails where values nest deeper than any conversation does: text.template_deep_value.
void check_value_depth(int depth, const Heap& heap);

}  // namespace fathom::text::jinja
