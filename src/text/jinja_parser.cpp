#include "text/jinja_parser.h"

#include "base/strings.h"

namespace fathom::text::jinja {
namespace {

class Parser : ExpressionParser {
 public:
  explicit Parser(std::string_view source) : ExpressionParser(source) {}

  Ast run() {
    ast_.body = statements({});
    return std::move(ast_);
  }

 private:
  using ExpressionParser::make;
  Stmt& make(Do what, int line) {
    Stmt& stmt = ast_.stmts.emplace_back();
    stmt.what = what;
    stmt.line = line;
    return stmt;
  }

  // Targets of assignments.
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

  // Up to a tag whose name is in `ends` (that tag's name is next then); to the end of the template when `ends` is
  // empty.
  Body statements(std::vector<std::string_view> ends) {
    const Level level(*this);
    Body body;
    while (true) {
      const Token& token = peek();
      switch (token.kind) {
        case TokenKind::kEnd:
          if (!ends.empty())
            stop("text.template_unclosed", opened_.back().second, {{"what", "{% " + opened_.back().first + " %}"}});
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
        default:
          unexpected();
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
    static constexpr std::string_view known[] = {"block", "extends",    "include", "import",
                                                 "from",  "autoescape", "print"};
    for (const std::string_view word : known)
      if (tag == word)
        stop("text.template_unsupported", line, {{"what", "{% " + tag + " %}"}}, ErrorKind::kUnsupported);
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

  int loops_ = 0;                                    // for loops around, within the same macro
  std::vector<std::pair<std::string, int>> opened_;  // tags not yet closed, with their lines
};

}  // namespace

Ast parse(std::string_view source) { return Parser(source).run(); }

}  // namespace fathom::text::jinja
