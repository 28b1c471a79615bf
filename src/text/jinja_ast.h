// A parsed template. Nodes are owned by the Ast in flat lists; pointers between them are plain.
#pragma once
#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/jinja_value.h"

namespace fathom::text::jinja {

enum class Op : std::uint8_t {
  kConst,      // value
  kName,       // text
  kList,       // parts
  kTuple,      // parts
  kDict,       // parts: key, value, key, value, …
  kAttribute,  // parts[0].text
  kSubscript,  // parts[0][parts[1]]
  kSlice,      // parts[0][parts[1]:parts[2]:parts[3]], any but the first nullptr
  kCall,       // parts[0](arguments)
  kFilter,     // parts[0] | text(arguments); parts[0] is nullptr in {% filter %} and {% set x | … %}
  kTest,       // parts[0] is text(arguments)
  kNot,
  kNegative,
  kPositive,  // parts[0]
  kAnd,
  kOr,  // parts[0], parts[1]
  kAdd,
  kSubtract,
  kMultiply,
  kDivide,
  kFloorDivide,
  kModulo,
  kPower,              // parts[0], parts[1]
  kConcat,             // parts
  kCompare,            // parts[0] text… parts[1] …: `words` has the operators between them
  kCondition,          // parts[1] if parts[0] else parts[2] (nullptr: undefined)
  kNamespaceAttribute  // text.words[0] as the target of an assignment
};

struct Expr {
  Op op;
  int line = 0;
  std::string text;
  std::vector<std::string> words;
  std::vector<const Expr*> parts;
  // Calls, filters and tests: arguments by place, by name, and what *list and **dict give.
  std::vector<const Expr*> arguments;
  std::vector<std::pair<std::string, const Expr*>> named;
  const Expr* star = nullptr;
  const Expr* star_star = nullptr;
  Value value;
  int depth = 1;  // of the tree below, itself included
};

enum class Do : std::uint8_t {
  kText,         // text
  kPrint,        // expr
  kIf,           // branches: condition (nullptr: else) and body
  kFor,          // target, expr, test (or nullptr), body, otherwise
  kSet,          // target, expr
  kSetBlock,     // target, expr (filter chain or nullptr), body
  kMacro,        // text, parameters, body
  kCallBlock,    // expr (a call), parameters, body
  kFilterBlock,  // expr, body
  kWith,         // assignments, body
  kScope,        // body
  kBreak,
  kContinue
};

struct Stmt;
using Body = std::vector<const Stmt*>;

struct Stmt {
  Do what;
  int line = 0;
  std::string text;
  const Expr* target = nullptr;
  const Expr* expr = nullptr;
  const Expr* test = nullptr;
  Body body, otherwise;
  std::vector<std::pair<const Expr*, Body>> branches;
  std::vector<std::pair<const Expr*, const Expr*>> assignments;
  std::vector<std::pair<std::string, const Expr*>> parameters;  // name and default, or nullptr
  bool takes_varargs = false, takes_kwargs = false;
};

struct Ast {
  std::deque<Expr> exprs;
  std::deque<Stmt> stmts;
  std::deque<std::string> strings;  // of constants
  Body body;
};

/// Parses a template. Throws TemplateFailure.
Ast parse(std::string_view source);

}  // namespace fathom::text::jinja
