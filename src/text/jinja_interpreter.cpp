// Statements.
#include "text/jinja_interpreter.h"

#include <algorithm>

#include "base/strings.h"

namespace fathom::text::jinja {

class Interpreter::Nested {
 public:
  explicit Nested(Interpreter& in) : in_(in) {
    const int limit = in_.heap_.limits().depth;
    if (++in_.depth_ > limit) in_.fail("text.template_deep", {{"limit", std::to_string(limit)}});
  }
  ~Nested() { --in_.depth_; }

 private:
  Interpreter& in_;
};

class Interpreter::Inside {
 public:
  Inside(Interpreter& in, Scope* scope, std::string* out) : in_(in), scope_(in.scope_), out_(in.out_) {
    in_.scope_ = scope;
    in_.out_ = out;
  }
  ~Inside() {
    in_.scope_ = scope_;
    in_.out_ = out_;
  }

 private:
  Interpreter& in_;
  Scope* scope_;
  std::string* out_;
};

void Interpreter::wrong_type(std::string_view operation, const Value& value) const {
  fail("text.template_types", {{"operation", std::string(operation)}, {"types", std::string(type_name(value))}});
}

void Interpreter::undefined(const Value& value) const {
  fail("text.template_undefined", {{"name", value.string != nullptr ? printable(*value.string) : ""}});
}

std::string Interpreter::run() {
  static_cast<void>(run(ast_.body));
  return std::move(output_);
}

void Interpreter::emit(std::string_view text) {
  heap_.charge(text.size());
  *out_ += text;
}

Scope* Interpreter::new_scope(Scope* parent) {
  heap_.charge(sizeof(Scope));
  Scope& scope = scopes_.emplace_back();
  scope.parent = parent;
  return &scope;
}

std::string Interpreter::captured(const Body& body, Scope* scope) {
  std::string out;
  const Inside inside(*this, scope, &out);
  static_cast<void>(run(body));
  return out;
}

Interpreter::Flow Interpreter::run(const Body& body) {
  const Nested nested(*this);
  for (const Stmt* stmt : body) {
    heap_.line = stmt->line;
    heap_.step();
    if (const Flow flow = run(*stmt); flow != Flow::kOn) return flow;
  }
  return Flow::kOn;
}

Interpreter::Flow Interpreter::run(const Stmt& stmt) {
  switch (stmt.what) {
    case Do::kText:
      emit(stmt.text);
      break;
    case Do::kPrint:
      emit(text_of(eval(*stmt.expr)));
      break;
    case Do::kIf:
      return run_if(stmt);
    case Do::kFor:
      return run_for(stmt);
    case Do::kSet:
      assign(*stmt.target, eval(*stmt.expr));
      break;
    case Do::kSetBlock:
      run_set_block(stmt);
      break;
    case Do::kCallBlock:
      run_call_block(stmt);
      break;
    case Do::kWith:
      run_with(stmt);
      break;
    case Do::kBreak:
      return Flow::kBreak;
    case Do::kContinue:
      return Flow::kContinue;
    case Do::kMacro: {
      Function& macro = functions_.emplace_back();
      macro.macro = &stmt;
      macro.scope = scope_;
      macro.name = stmt.text;
      Value value;
      value.kind = Kind::kFunction;
      value.function = &macro;
      heap_.charge(sizeof(Function));
      bind(stmt.text, value);
      break;
    }
    case Do::kFilterBlock:
      emit(text_of(eval_filter(*stmt.expr, string(captured(stmt.body, new_scope(scope_))))));
      break;
    case Do::kScope: {
      const Inside inside(*this, new_scope(scope_), out_);
      return run(stmt.body);
    }
  }
  return Flow::kOn;
}

Interpreter::Flow Interpreter::run_if(const Stmt& stmt) {
  for (const auto& [condition, body] : stmt.branches)
    if (condition == nullptr || truth(eval(*condition))) return run(body);
  return Flow::kOn;
}

Interpreter::Flow Interpreter::run_for(const Stmt& stmt) {
  std::vector<Value> items = items_of(eval(*stmt.expr), heap_);
  if (stmt.test != nullptr) {
    std::vector<Value> kept;
    for (const Value& item : items) {
      const Inside inside(*this, new_scope(scope_), out_);
      assign(*stmt.target, item);
      if (truth(eval(*stmt.test))) kept.push_back(item);
    }
    items = std::move(kept);
  }
  if (items.empty()) {
    const Inside inside(*this, new_scope(scope_), out_);
    return run(stmt.otherwise);
  }
  heap_.charge(sizeof(Loop));
  Loop& loop = loops_.emplace_back();
  loop.items = std::move(items);
  loop.depth = ++loop_depth_;
  Value handle;
  handle.kind = Kind::kLoop;
  handle.loop = &loop;
  for (; loop.index < loop.items.size(); ++loop.index) {
    heap_.line = stmt.line;
    heap_.step();
    const Inside inside(*this, new_scope(scope_), out_);
    scope_->names.emplace_back("loop", handle);
    assign(*stmt.target, loop.items[loop.index]);
    if (run(stmt.body) == Flow::kBreak) break;
  }
  --loop_depth_;
  return Flow::kOn;
}

void Interpreter::run_set_block(const Stmt& stmt) {
  Value value = string(captured(stmt.body, new_scope(scope_)));
  if (stmt.expr != nullptr) value = eval_filter(*stmt.expr, value);
  assign(*stmt.target, value);
}

void Interpreter::run_call_block(const Stmt& stmt) {
  Function& caller = functions_.emplace_back();
  caller.macro = &stmt;
  caller.scope = scope_;
  caller.name = stmt.text;
  Value handle;
  handle.kind = Kind::kFunction;
  handle.function = &caller;
  heap_.charge(sizeof(Function));
  const Value callee = eval(*stmt.expr->parts[0]);
  Arguments arguments(stmt.text, heap_);
  eval_arguments(*stmt.expr, arguments);
  arguments.named.emplace_back("caller", handle);
  emit(text_of(call(callee, arguments)));
}

void Interpreter::run_with(const Stmt& stmt) {
  std::vector<Value> values;
  for (const auto& [target, expr] : stmt.assignments) values.push_back(eval(*expr));
  const Inside inside(*this, new_scope(scope_), out_);
  for (std::size_t i = 0; i < values.size(); ++i) assign(*stmt.assignments[i].first, values[i]);
  static_cast<void>(run(stmt.body));
}

void Interpreter::assign(const Expr& target, const Value& value) {
  heap_.line = target.line;
  if (target.op == Op::kTuple) {
    const std::vector<Value> items = items_of(value, heap_);
    if (items.size() != target.parts.size())
      fail("text.template_unpack",
           {{"wanted", std::to_string(target.parts.size())}, {"got", std::to_string(items.size())}});
    for (std::size_t i = 0; i < items.size(); ++i) assign(*target.parts[i], items[i]);
    return;
  }
  if (target.op == Op::kNamespaceAttribute) {
    Expr name{.op = Op::kName, .line = target.line, .text = target.text};
    const Value space = eval_name(name);
    if (!space.is(Kind::kNamespace)) fail("text.template_not_namespace", {{"name", printable(target.text)}});
    space.dict->set(string(target.words[0]), value, heap_);
    return;
  }
  bind(target.text, value);
}

void Interpreter::bind(std::string_view name, const Value& value) {
  for (auto& [known, old] : scope_->names) {
    if (known != name) continue;
    old = value;
    return;
  }
  heap_.charge(sizeof(scope_->names[0]));
  scope_->names.emplace_back(name, value);
}

}  // namespace fathom::text::jinja
