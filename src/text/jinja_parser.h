// The parser of templates: tokens and expressions here, statements in jinja_parser.cpp. Used by those two files only.
#pragma once
#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/jinja_ast.h"
#include "text/jinja_lexer.h"

namespace fathom::text::jinja {

/// Reads expressions from a list of tokens into an Ast. Throws TemplateFailure.
class ExpressionParser {
 protected:
  static constexpr int kMaxDepth = 300;  // of nested brackets, operators and blocks

  explicit ExpressionParser(std::string_view source) : tokens_(tokenize(source)) {}

  // One level deeper, as long as it lives.
  class Level {
   public:
    explicit Level(ExpressionParser& parser);
    ~Level() { --parser_.depth_; }
    Level(const Level&) = delete;
    Level& operator=(const Level&) = delete;

   private:
    ExpressionParser& parser_;
  };

  // Tokens.
  const Token& peek(std::size_t ahead = 0) const { return tokens_[std::min(at_ + ahead, tokens_.size() - 1)]; }
  const Token& take();
  bool is_op(std::string_view text, std::size_t ahead = 0) const {
    return peek(ahead).kind == TokenKind::kOperator && peek(ahead).text == text;
  }
  bool is_name(std::string_view text, std::size_t ahead = 0) const {
    return peek(ahead).kind == TokenKind::kName && peek(ahead).text == text;
  }
  bool skip_op(std::string_view text);
  bool skip_name(std::string_view text);
  [[noreturn]] void unexpected() const;
  void expect_op(std::string_view text);
  std::string expect_name();
  void expect(TokenKind kind);

  // Nodes. The line is that of the next token unless given.
  Expr& make(Op op, std::vector<const Expr*> parts = {}, int line = 0);
  void deepen(Expr& expr, const Expr* part);

  // Expressions, from loose to tight.
  const Expr* expression();
  const Expr* logical_or();
  /// a, b, c without brackets around: a tuple when there is a comma. `end` is a name that ends it.
  const Expr* tuple(bool may_be_empty, std::string_view end, bool with_condition = true);
  /// One filter behind its bar, or, at the beginning of {% filter %}, without one (`node` is nullptr then).
  const Expr* filter(const Expr* node, bool bar = true);

  std::vector<Token> tokens_;
  std::size_t at_ = 0;
  int depth_ = 0;
  bool saw_varargs_ = false, saw_kwargs_ = false;  // names that a macro's body may ask for
  Ast ast_;

 private:
  Expr& constant(Value value);
  const Expr* logical_and();
  const Expr* logical_not();
  const Expr* comparison();
  const Expr* sum();
  const Expr* concat();
  const Expr* product();
  const Expr* power();
  const Expr* unary(bool with_filter);
  const Expr* primary();
  const Expr* literal(const Token& token);
  std::vector<const Expr*> list_of(std::string_view close);
  const Expr* dict(int line);
  const Expr* postfix(const Expr* node);
  const Expr* filters_and_tests(const Expr* node);
  const Expr* subscript(const Expr* node);
  void arguments(Expr& expr);
  const Expr* call(const Expr* node);
  std::string dotted_name();
  const Expr* test(const Expr* node);
};

}  // namespace fathom::text::jinja
