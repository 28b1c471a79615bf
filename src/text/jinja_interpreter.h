// Runs a parsed template. Single use: one Interpreter a rendering. Failures are thrown (jinja_value.h).
#pragma once
#include <cstdint>
#include <deque>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/jinja_ast.h"
#include "text/jinja_value.h"

namespace fathom::text::jinja {

/// Names and their values; what a name means is looked up from the inside out.
struct Scope {
  Scope* parent = nullptr;
  std::vector<std::pair<std::string_view, Value>> names;
};

/// A macro with the scope that it was defined in, a built-in function, or a method of `self`.
struct Function {
  const Stmt* macro = nullptr;
  Scope* scope = nullptr;
  std::string_view name;
  Value self;
  bool is_method = false;
};

/// The variable `loop`.
struct Loop {
  std::vector<Value> items;
  std::size_t index = 0;
  int depth = 1;
  bool has_last = false;
  std::vector<Value> last;  // what changed() was given before
};

/// The arguments of a call, taken one by one under the names that the callee gives them.
class Arguments {
 public:
  Arguments(std::string_view callee, Heap& heap) : callee_(callee), heap_(&heap) {}
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;

  /// The next positional argument or the one named so; nullptr when not given.
  const Value* take(std::string_view name);
  const Value* take_named(std::string_view name);
  Value required(std::string_view name);
  std::string text(std::string_view name);  // required, of type str
  std::int64_t integer(std::string_view name, std::int64_t if_absent);
  bool flag(std::string_view name, bool if_absent);
  /// Fails when an argument was not taken: text.template_arguments.
  void done() const;
  [[noreturn]] void fail() const;

 private:
  std::string_view callee_;
  Heap* heap_;
  std::size_t next_ = 0;
  std::deque<Value> taken_;  // by name; answers of take() stay good
};

class Interpreter {
 public:
  /// `now` is what strftime_now() tells, in seconds since 1970.
  Interpreter(const Ast& ast, Heap& heap, std::int64_t now) : ast_(ast), heap_(heap), now_(now) {}
  void define(std::string_view name, Value value) { root_.names.emplace_back(name, value); }
  std::string run();

  // For filters, tests and methods.
  Heap& heap() { return heap_; }
  Value string(std::string text) { return heap_.string(std::move(text)); }
  std::string text_of(const Value& value) { return to_text(value, heap_); }
  [[noreturn]] void fail(std::string_view key, ErrorArgs args = {}, ErrorKind kind = ErrorKind::kInput) const {
    stop(key, heap_.line, args, kind);
  }
  [[noreturn]] void wrong_type(std::string_view operation, const Value& value) const;
  [[noreturn]] void undefined(const Value& value) const;
  /// value[key], or an undefined value.
  Value subscript(const Value& value, const Value& key);
  Value attribute(const Value& value, std::string_view name);
  Value apply_filter(std::string_view name, const Value& input, Arguments& arguments);
  bool apply_test(std::string_view name, const Value& input, Arguments& arguments);
  Value call(const Value& callee, Arguments& arguments);
  Value binary(Op op, const Value& left, const Value& right);
  bool contains(const Value& container, const Value& item);
  std::int64_t now() const { return now_; }

 private:
  enum class Flow : std::uint8_t { kOn, kBreak, kContinue };
  class Nested;  // one level deeper while it lives
  class Inside;  // another scope, another output while it lives

  Flow run(const Body& body);
  Flow run(const Stmt& stmt);
  Flow run_if(const Stmt& stmt);
  Flow run_for(const Stmt& stmt);
  void run_set_block(const Stmt& stmt);
  void run_call_block(const Stmt& stmt);
  void run_with(const Stmt& stmt);
  std::string captured(const Body& body, Scope* scope);
  void emit(std::string_view text);
  Scope* new_scope(Scope* parent);
  void assign(const Expr& target, const Value& value);
  void bind(std::string_view name, const Value& value);  // in the innermost scope

  Value eval(const Expr& expr);
  Value eval_name(const Expr& expr);
  Value eval_collection(const Expr& expr);
  Value eval_slice(const Expr& expr);
  Value eval_compare(const Expr& expr);
  Value eval_filter(const Expr& expr, const Value& input);
  bool compares(std::string_view op, const Value& left, const Value& right);
  void eval_arguments(const Expr& expr, Arguments& out);
  Value call_macro(const Function& function, Arguments& arguments);
  Value call_builtin(std::string_view name, Arguments& arguments);
  Value loop_attribute(Loop& loop, std::string_view name);
  Value function(std::string_view name, const Value& self, bool is_method);
  Value arithmetic(Op op, std::string_view sign, const Value& left, const Value& right);
  Value repeated(const Value& value, std::int64_t times);

  const Ast& ast_;
  Heap& heap_;
  std::int64_t now_;
  Scope root_;
  Scope* scope_ = &root_;
  std::string output_;
  std::string* out_ = &output_;
  int depth_ = 0, loop_depth_ = 0;
  std::deque<Scope> scopes_;
  std::deque<Function> functions_;
  std::deque<Loop> loops_;
};

// The tables, each in a file of its own. An unknown name fails: text.template_unknown_filter and so on.
Value filter(Interpreter& in, std::string_view name, const Value& input, Arguments& arguments);
bool test(Interpreter& in, std::string_view name, const Value& input, Arguments& arguments);
/// Whether values of this kind have the method; kUnsupported is Python's, but not ours.
enum class MethodStatus : std::uint8_t { kNone, kKnown, kUnsupported };
MethodStatus method_status(const Value& self, std::string_view name);
Value method(Interpreter& in, const Value& self, std::string_view name, Arguments& arguments);
/// Python's `template % values`: %s, %d, %i, %r, %f with a precision, %%.
std::string percent_format(Interpreter& in, std::string_view format, const std::vector<Value>& values);

}  // namespace fathom::text::jinja
