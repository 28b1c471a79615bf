#include <charconv>
#include <cstdlib>

#include "base/strings.h"
#include "text/jinja_ast.h"
#include "text/jinja_lexer.h"

namespace fathom::text::jinja {
namespace {

constexpr int kMaxDepth = 150;  // of nested brackets, operators and blocks

class Parser {
 public:
  explicit Parser(std::string_view source) : tokens_(tokenize(source)) {}

  Ast run() {
    ast_.body = statements({});
    return std::move(ast_);
  }

 private:
  // One level deeper, as long as it lives.
  class Level {
   public:
    explicit Level(Parser& parser) : parser_(parser) {
      if (++parser_.depth_ > kMaxDepth) stop("text.template_deep", parser_.peek().line, {{"limit", std::to_string(kMaxDepth)}});
    }
    ~Level() { --parser_.depth_; }

   private:
    Parser& parser_;
  };

  // --- tokens
  const Token& peek(std::size_t ahead = 0) const { return tokens_[std::min(at_ + ahead, tokens_.size() - 1)]; }
  const Token& take() {
    const Token& token = peek();
    if (at_ + 1 < tokens_.size()) ++at_;
    return token;
  }
  bool is_op(std::string_view text, std::size_t ahead = 0) const { return peek(ahead).kind == TokenKind::kOperator && peek(ahead).text == text; }
  bool is_name(std::string_view text, std::size_t ahead = 0) const { return peek(ahead).kind == TokenKind::kName && peek(ahead).text == text; }
  bool skip_op(std::string_view text) {
    if (!is_op(text)) return false;
    take();
    return true;
  }
  bool skip_name(std::string_view text) {
    if (!is_name(text)) return false;
    take();
    return true;
  }
  [[noreturn]] void unexpected() const {
    const Token& token = peek();
    static constexpr std::string_view names[] = {"", "{{", "}}", "{%", "%}"};
    std::string found = token.text;
    if (token.kind >= TokenKind::kVariableBegin && token.kind <= TokenKind::kBlockEnd) found = names[static_cast<int>(token.kind)];
    if (token.kind == TokenKind::kEnd) stop("text.template_unfinished", token.line);
    stop("text.template_unexpected", token.line, {{"found", printable(found, 40)}});
  }
  void expect_op(std::string_view text) {
    if (!skip_op(text)) unexpected();
  }
  std::string expect_name() {
    if (peek().kind != TokenKind::kName) unexpected();
    return take().text;
  }
  void expect(TokenKind kind) {
    if (peek().kind != kind) unexpected();
    take();
  }

  // --- nodes
  Expr& make(Op op, std::vector<const Expr*> parts = {}, int line = 0) {
    Expr& expr = ast_.exprs.emplace_back();
    expr.op = op;
    expr.line = line > 0 ? line : peek().line;
    expr.parts = std::move(parts);
    for (const Expr* part : expr.parts) deepen(expr, part);
    return expr;
  }
  void deepen(Expr& expr, const Expr* part) {
    if (part == nullptr) return;
    expr.depth = std::max(expr.depth, part->depth + 1);
    if (expr.depth > kMaxDepth) stop("text.template_deep", expr.line, {{"limit", std::to_string(kMaxDepth)}});
  }
  Expr& constant(Value value) {
    Expr& expr = make(Op::kConst);
    expr.value = value;
    return expr;
  }
  Stmt& make(Do what, int line) {
    Stmt& stmt = ast_.stmts.emplace_back();
    stmt.what = what;
    stmt.line = line;
    return stmt;
  }

  // --- expressions, from loose to tight
  const Expr* expression() {
    const Level level(*this);
    const int line = peek().line;
    const Expr* left = logical_or();
    while (skip_name("if")) {
      const Expr* condition = logical_or();
      const Expr* otherwise = skip_name("else") ? expression() : nullptr;
      left = &make(Op::kCondition, {condition, left, otherwise}, line);
    }
    return left;
  }
  const Expr* logical_or() {
    const Expr* left = logical_and();
    while (is_name("or")) {
      const int line = take().line;
      const Expr* right = logical_and();
      left = &make(Op::kOr, {left, right}, line);
    }
    return left;
  }
  const Expr* logical_and() {
    const Expr* left = logical_not();
    while (is_name("and")) {
      const int line = take().line;
      const Expr* right = logical_not();
      left = &make(Op::kAnd, {left, right}, line);
    }
    return left;
  }
  const Expr* logical_not() {
    if (!is_name("not")) return comparison();
    const Level level(*this);
    const int line = take().line;
    const Expr* operand = logical_not();
    return &make(Op::kNot, {operand}, line);
  }
  const Expr* comparison() {
    const int line = peek().line;
    std::vector<const Expr*> parts{sum()};
    std::vector<std::string> words;
    while (true) {
      static constexpr std::string_view known[] = {"==", "!=", "<", "<=", ">", ">="};
      std::string word;
      for (const std::string_view op : known)
        if (is_op(op)) word = op;
      if (!word.empty()) {
        take();
      } else if (skip_name("in")) {
        word = "in";
      } else if (is_name("not") && is_name("in", 1)) {
        take();
        take();
        word = "not in";
      } else {
        break;
      }
      words.push_back(std::move(word));
      parts.push_back(sum());
    }
    if (words.empty()) return parts[0];
    Expr& expr = make(Op::kCompare, std::move(parts), line);
    expr.words = std::move(words);
    return &expr;
  }
  const Expr* sum() {
    const Expr* left = concat();
    while (is_op("+") || is_op("-")) {
      const Token& token = take();
      const Op op = token.text == "+" ? Op::kAdd : Op::kSubtract;
      const int line = token.line;
      const Expr* right = concat();
      left = &make(op, {left, right}, line);
    }
    return left;
  }
  const Expr* concat() {
    const int line = peek().line;
    std::vector<const Expr*> parts{product()};
    while (skip_op("~")) parts.push_back(product());
    return parts.size() == 1 ? parts[0] : &make(Op::kConcat, std::move(parts), line);
  }
  const Expr* product() {
    const Expr* left = power();
    while (is_op("*") || is_op("/") || is_op("//") || is_op("%")) {
      const Token& token = take();
      const Op op = token.text == "*" ? Op::kMultiply : token.text == "/" ? Op::kDivide : token.text == "//" ? Op::kFloorDivide : Op::kModulo;
      const int line = token.line;
      const Expr* right = power();
      left = &make(op, {left, right}, line);
    }
    return left;
  }
  const Expr* power() {
    const Expr* left = unary(true);
    while (is_op("**")) {
      const int line = take().line;
      const Expr* right = unary(true);
      left = &make(Op::kPower, {left, right}, line);
    }
    return left;
  }
  const Expr* unary(bool with_filter) {
    const Level level(*this);
    const Expr* node;
    if (is_op("-") || is_op("+")) {
      const Op op = is_op("-") ? Op::kNegative : Op::kPositive;
      const int line = take().line;
      const Expr* operand = unary(false);
      node = &make(op, {operand}, line);
    } else {
      node = primary();
    }
    node = postfix(node);
    return with_filter ? filters_and_tests(node) : node;
  }

  const Expr* primary() {
    const Level level(*this);
    const Token& token = peek();
    switch (token.kind) {
      case TokenKind::kName: {
        take();
        const std::string& name = token.text;
        if (name == "true" || name == "True") return &constant(boolean(true));
        if (name == "false" || name == "False") return &constant(boolean(false));
        if (name == "none" || name == "None") return &constant(none());
        saw_varargs_ |= name == "varargs";
        saw_kwargs_ |= name == "kwargs";
        Expr& expr = make(Op::kName, {}, token.line);
        expr.text = name;
        return &expr;
      }
      case TokenKind::kString: {
        std::string text;
        while (peek().kind == TokenKind::kString) text += take().text;
        Value value;
        value.kind = Kind::kString;
        value.string = &ast_.strings.emplace_back(std::move(text));
        return &constant(value);
      }
      case TokenKind::kInteger: {
        std::int64_t value = 0;
        const auto end = token.text.data() + token.text.size();
        if (std::from_chars(token.text.data(), end, value).ec != std::errc())
          stop("text.template_number", token.line, {{"number", printable(token.text, 40)}});
        take();
        return &constant(integer(value));
      }
      case TokenKind::kFloat: return &constant(number(std::strtod(take().text.c_str(), nullptr)));
      default: break;
    }
    const int line = token.line;
    if (skip_op("(")) {
      const Expr* inner = tuple(true, {});
      expect_op(")");
      return inner;
    }
    if (skip_op("[")) {
      std::vector<const Expr*> parts = list_of("]");
      return &make(Op::kList, std::move(parts), line);
    }
    if (skip_op("{")) return dict(line);
    unexpected();
  }
  // Expressions up to `close`, which is taken; a comma may trail.
  std::vector<const Expr*> list_of(std::string_view close) {
    std::vector<const Expr*> parts;
    while (!skip_op(close)) {
      if (!parts.empty()) {
        expect_op(",");
        if (skip_op(close)) break;
      }
      parts.push_back(expression());
    }
    return parts;
  }
  const Expr* dict(int line) {
    std::vector<const Expr*> parts;
    while (!skip_op("}")) {
      if (!parts.empty()) {
        expect_op(",");
        if (skip_op("}")) break;
      }
      parts.push_back(expression());
      expect_op(":");
      parts.push_back(expression());
    }
    return &make(Op::kDict, std::move(parts), line);
  }
  // a, b, c without brackets around: a tuple when there is a comma. `end` is a name that ends it.
  const Expr* tuple(bool may_be_empty, std::string_view end, bool with_condition = true) {
    const int line = peek().line;
    std::vector<const Expr*> parts;
    bool comma = false;
    const auto at_end = [&] {
      return peek().kind == TokenKind::kVariableEnd || peek().kind == TokenKind::kBlockEnd || is_op(")") || (!end.empty() && is_name(end));
    };
    while (true) {
      if (!parts.empty()) expect_op(",");
      if (at_end()) break;
      parts.push_back(with_condition ? expression() : logical_or());
      if (!is_op(",")) break;
      comma = true;
    }
    if (!comma && !parts.empty()) return parts[0];
    if (!comma && !may_be_empty) unexpected();
    return &make(Op::kTuple, std::move(parts), line);
  }

  const Expr* postfix(const Expr* node) {
    while (true) {
      if (is_op(".") || is_op("[")) node = subscript(node);
      else if (is_op("(")) node = call(node);
      else return node;
    }
  }
  const Expr* filters_and_tests(const Expr* node) {
    while (true) {
      if (is_op("|")) node = filter(node);
      else if (is_name("is")) node = test(node);
      else if (is_op("(")) node = call(node);
      else return node;
    }
  }
  const Expr* subscript(const Expr* node) {
    const Token& token = take();
    const int line = token.line;
    if (token.text == ".") {
      if (peek().kind == TokenKind::kInteger) {
        const Expr* index = primary();
        return &make(Op::kSubscript, {node, index}, line);
      }
      std::string name = expect_name();
      Expr& expr = make(Op::kAttribute, {node}, line);
      expr.text = std::move(name);
      return &expr;
    }
    const Expr* parts[3] = {};
    int n = 0;
    bool slice = false;
    for (; n < 3; ++n) {
      if (!is_op(":") && !is_op("]")) parts[n] = expression();
      if (!skip_op(":")) break;
      slice = true;
    }
    if (is_op(",")) stop("text.template_unsupported", line, {{"what", "[a, b]"}}, ErrorKind::kUnsupported);
    expect_op("]");
    if (slice) return &make(Op::kSlice, {node, parts[0], parts[1], parts[2]}, line);
    if (parts[0] == nullptr) unexpected();
    return &make(Op::kSubscript, {node, parts[0]}, line);
  }

  void arguments(Expr& expr) {
    expect_op("(");
    bool first = true;
    while (!skip_op(")")) {
      if (!first) {
        expect_op(",");
        if (skip_op(")")) break;
      }
      first = false;
      if (is_op("*") && expr.star == nullptr && expr.star_star == nullptr) {
        take();
        expr.star = expression();
        deepen(expr, expr.star);
      } else if (is_op("**") && expr.star_star == nullptr) {
        take();
        expr.star_star = expression();
        deepen(expr, expr.star_star);
      } else if (peek().kind == TokenKind::kName && is_op("=", 1) && expr.star_star == nullptr) {
        std::string name = take().text;
        take();
        expr.named.emplace_back(std::move(name), expression());
        deepen(expr, expr.named.back().second);
      } else {
        if (expr.star != nullptr || expr.star_star != nullptr || !expr.named.empty()) unexpected();
        expr.arguments.push_back(expression());
        deepen(expr, expr.arguments.back());
      }
    }
  }
  const Expr* call(const Expr* node) {
    Expr& expr = make(Op::kCall, {node}, peek().line);
    arguments(expr);
    return &expr;
  }
  std::string dotted_name() {
    std::string name = expect_name();
    while (skip_op(".")) name += "." + expect_name();
    return name;
  }
  // One filter behind its bar, or, at the beginning of {% filter %}, without one (`node` is nullptr then).
  const Expr* filter(const Expr* node, bool bar = true) {
    if (bar) expect_op("|");
    const int line = peek().line;
    std::string name = dotted_name();
    Expr& expr = make(Op::kFilter, {node}, line);
    expr.text = std::move(name);
    if (is_op("(")) arguments(expr);
    return &expr;
  }
  const Expr* test(const Expr* node) {
    const int line = take().line;
    const bool negated = skip_name("not");
    std::string name = dotted_name();
    Expr& expr = make(Op::kTest, {node}, line);
    expr.text = std::move(name);
    const TokenKind kind = peek().kind;
    const bool literal = kind == TokenKind::kName || kind == TokenKind::kString || kind == TokenKind::kInteger || kind == TokenKind::kFloat;
    if (is_op("(")) {
      arguments(expr);
    } else if ((literal || is_op("[") || is_op("{")) && !is_name("else") && !is_name("or") && !is_name("and")) {
      if (is_name("is")) unexpected();
      const Expr* argument = postfix(primary());
      expr.arguments.push_back(argument);
      deepen(expr, argument);
    }
    return negated ? &make(Op::kNot, {&expr}, line) : &expr;
  }

  // --- targets of assignments
  const Expr* target_item() {
    const Level level(*this);
    if (skip_op("(")) {
      const Expr* inner = target(")");
      expect_op(")");
      return inner;
    }
    const int line = peek().line;
    static constexpr std::string_view reserved[] = {"true", "True", "false", "False", "none", "None"};
    for (const std::string_view word : reserved)
      if (is_name(word)) unexpected();
    std::string name = expect_name();
    if (is_op(".")) {
      take();
      Expr& expr = make(Op::kNamespaceAttribute, {}, line);
      expr.text = std::move(name);
      expr.words.push_back(expect_name());
      return &expr;
    }
    Expr& expr = make(Op::kName, {}, line);
    expr.text = std::move(name);
    return &expr;
  }
  // A name, a namespace's attribute, or several of them with commas between, up to `end`.
  const Expr* target(std::string_view end) {
    const int line = peek().line;
    std::vector<const Expr*> parts{target_item()};
    bool comma = false;
    while (skip_op(",")) {
      comma = true;
      if (is_name(end) || is_op(end)) break;
      parts.push_back(target_item());
    }
    return comma ? &make(Op::kTuple, std::move(parts), line) : parts[0];
  }

  // --- statements
  // Up to a tag whose name is in `ends` (that tag's name is next then); to the end of the template when `ends` is empty.
  Body statements(std::vector<std::string_view> ends) {
    const Level level(*this);
    Body body;
    while (true) {
      const Token& token = peek();
      switch (token.kind) {
        case TokenKind::kEnd:
          if (!ends.empty()) stop("text.template_unclosed", opened_.back().second, {{"what", "{% " + opened_.back().first + " %}"}});
          return body;
        case TokenKind::kData: {
          Stmt& stmt = make(Do::kText, token.line);
          stmt.text = token.text;
          body.push_back(&stmt);
          take();
          break;
        }
        case TokenKind::kVariableBegin: {
          take();
          Stmt& stmt = make(Do::kPrint, token.line);
          stmt.expr = tuple(false, {});
          expect(TokenKind::kVariableEnd);
          body.push_back(&stmt);
          break;
        }
        case TokenKind::kBlockBegin: {
          take();
          for (const std::string_view end : ends)
            if (is_name(end)) return body;
          const Stmt* stmt = statement();
          expect(TokenKind::kBlockEnd);
          body.push_back(stmt);
          break;
        }
        default: unexpected();
      }
    }
  }
  // The body of a tag, from the end of the tag to one named in `ends`, whose name is taken and answered.
  std::string block(Body& body, std::vector<std::string_view> ends) {
    skip_op(":");
    expect(TokenKind::kBlockEnd);
    body = statements(std::move(ends));
    return take().text;
  }

  const Stmt* statement() {
    if (peek().kind != TokenKind::kName) unexpected();
    const Token& token = take();
    const std::string& tag = token.text;
    opened_.emplace_back(tag, token.line);
    const Stmt* stmt = tagged(tag, token.line);
    opened_.pop_back();
    return stmt;
  }
  const Stmt* tagged(const std::string& tag, int line) {
    if (tag == "if") return if_statement(line);
    if (tag == "for") return for_statement(line);
    if (tag == "set") return set_statement(line);
    if (tag == "macro") return macro(line);
    if (tag == "call") return call_block(line);
    if (tag == "with") return with(line);
    if (tag == "break" || tag == "continue") {
      if (loops_ == 0) stop("text.template_outside_loop", line, {{"tag", tag}});
      return &make(tag == "break" ? Do::kBreak : Do::kContinue, line);
    }
    if (tag == "generation") {
      Stmt& stmt = make(Do::kScope, line);
      const int loops = std::exchange(loops_, 0);
      block(stmt.body, {"endgeneration"});
      loops_ = loops;
      return &stmt;
    }
    if (tag == "filter") {
      Stmt& stmt = make(Do::kFilterBlock, line);
      stmt.expr = filter(nullptr, false);
      while (is_op("|")) stmt.expr = filter(stmt.expr);
      block(stmt.body, {"endfilter"});
      return &stmt;
    }
    static constexpr std::string_view known[] = {"block", "extends", "include", "import", "from", "autoescape", "print"};
    for (const std::string_view word : known)
      if (tag == word) stop("text.template_unsupported", line, {{"what", "{% " + tag + " %}"}}, ErrorKind::kUnsupported);
    stop("text.template_unknown_tag", line, {{"tag", printable(tag, 40)}});
  }
  const Stmt* if_statement(int line) {
    Stmt& stmt = make(Do::kIf, line);
    std::string end = "elif";
    while (end == "elif") {
      const Expr* condition = tuple(false, {}, false);
      Body body;
      end = block(body, {"elif", "else", "endif"});
      stmt.branches.emplace_back(condition, std::move(body));
    }
    if (end == "else") {
      Body body;
      block(body, {"endif"});
      stmt.branches.emplace_back(nullptr, std::move(body));
    }
    return &stmt;
  }
  const Stmt* for_statement(int line) {
    Stmt& stmt = make(Do::kFor, line);
    stmt.target = target("in");
    if (!skip_name("in")) unexpected();
    stmt.expr = tuple(false, "recursive", false);
    if (skip_name("if")) stmt.test = expression();
    if (is_name("recursive")) stop("text.template_unsupported", line, {{"what", "recursive"}}, ErrorKind::kUnsupported);
    ++loops_;
    const std::string end = block(stmt.body, {"endfor", "else"});
    --loops_;
    if (end == "else") block(stmt.otherwise, {"endfor"});
    return &stmt;
  }
  const Stmt* set_statement(int line) {
    const Expr* name = target("=");
    if (skip_op("=")) {
      Stmt& stmt = make(Do::kSet, line);
      stmt.target = name;
      stmt.expr = tuple(false, {});
      return &stmt;
    }
    Stmt& stmt = make(Do::kSetBlock, line);
    stmt.target = name;
    while (is_op("|")) stmt.expr = filter(stmt.expr);
    block(stmt.body, {"endset"});
    return &stmt;
  }
  void parameters(Stmt& stmt) {
    expect_op("(");
    while (!skip_op(")")) {
      if (!stmt.parameters.empty()) expect_op(",");
      std::string name = expect_name();
      const Expr* fallback = skip_op("=") ? expression() : nullptr;
      if (fallback == nullptr && !stmt.parameters.empty() && stmt.parameters.back().second != nullptr) unexpected();
      stmt.parameters.emplace_back(std::move(name), fallback);
    }
  }
  void macro_body(Stmt& stmt, std::string_view end) {
    const bool varargs = std::exchange(saw_varargs_, false), kwargs = std::exchange(saw_kwargs_, false);
    const int loops = std::exchange(loops_, 0);
    block(stmt.body, {end});
    stmt.takes_varargs = std::exchange(saw_varargs_, varargs);
    stmt.takes_kwargs = std::exchange(saw_kwargs_, kwargs);
    loops_ = loops;
  }
  const Stmt* macro(int line) {
    Stmt& stmt = make(Do::kMacro, line);
    stmt.text = expect_name();
    parameters(stmt);
    macro_body(stmt, "endmacro");
    return &stmt;
  }
  const Stmt* call_block(int line) {
    Stmt& stmt = make(Do::kCallBlock, line);
    stmt.text = "caller";
    if (is_op("(")) parameters(stmt);
    stmt.expr = expression();
    if (stmt.expr->op != Op::kCall) unexpected();
    macro_body(stmt, "endcall");
    return &stmt;
  }
  const Stmt* with(int line) {
    Stmt& stmt = make(Do::kWith, line);
    while (peek().kind != TokenKind::kBlockEnd) {
      if (!stmt.assignments.empty()) expect_op(",");
      const Expr* name = target("=");
      expect_op("=");
      stmt.assignments.emplace_back(name, expression());
    }
    block(stmt.body, {"endwith"});
    return &stmt;
  }

  std::vector<Token> tokens_;
  std::size_t at_ = 0;
  int depth_ = 0, loops_ = 0;
  bool saw_varargs_ = false, saw_kwargs_ = false;
  std::vector<std::pair<std::string, int>> opened_;  // tags not yet closed, with their lines
  Ast ast_;
};

}  // namespace

Ast parse(std::string_view source) { return Parser(source).run(); }

}  // namespace fathom::text::jinja
