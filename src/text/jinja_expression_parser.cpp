#include <charconv>
#include <cstdlib>

#include "base/strings.h"
#include "text/jinja_parser.h"

namespace fathom::text::jinja {

ExpressionParser::Level::Level(ExpressionParser& parser) : parser_(parser) {
  if (++parser_.depth_ > kMaxDepth)
    stop("text.template_deep", parser_.peek().line, {{"limit", std::to_string(kMaxDepth)}});
}

const Token& ExpressionParser::take() {
  const Token& token = peek();
  if (at_ + 1 < tokens_.size()) ++at_;
  return token;
}

bool ExpressionParser::skip_op(std::string_view text) {
  if (!is_op(text)) return false;
  take();
  return true;
}

bool ExpressionParser::skip_name(std::string_view text) {
  if (!is_name(text)) return false;
  take();
  return true;
}

void ExpressionParser::unexpected() const {
  const Token& token = peek();
  static constexpr std::string_view names[] = {"", "{{", "}}", "{%", "%}"};
  std::string found = token.text;
  if (token.kind >= TokenKind::kVariableBegin && token.kind <= TokenKind::kBlockEnd)
    found = names[static_cast<int>(token.kind)];
  if (token.kind == TokenKind::kEnd) stop("text.template_unfinished", token.line);
  stop("text.template_unexpected", token.line, {{"found", printable(found, 40)}});
}

void ExpressionParser::expect_op(std::string_view text) {
  if (!skip_op(text)) unexpected();
}

std::string ExpressionParser::expect_name() {
  if (peek().kind != TokenKind::kName) unexpected();
  return take().text;
}

void ExpressionParser::expect(TokenKind kind) {
  if (peek().kind != kind) unexpected();
  take();
}

Expr& ExpressionParser::make(Op op, std::vector<const Expr*> parts, int line) {
  Expr& expr = ast_.exprs.emplace_back();
  expr.op = op;
  expr.line = line > 0 ? line : peek().line;
  expr.parts = std::move(parts);
  for (const Expr* part : expr.parts) deepen(expr, part);
  return expr;
}

void ExpressionParser::deepen(Expr& expr, const Expr* part) {
  if (part == nullptr) return;
  expr.depth = std::max(expr.depth, part->depth + 1);
  if (expr.depth > kMaxDepth) stop("text.template_deep", expr.line, {{"limit", std::to_string(kMaxDepth)}});
}

Expr& ExpressionParser::constant(Value value) {
  Expr& expr = make(Op::kConst);
  expr.value = value;
  return expr;
}

const Expr* ExpressionParser::expression() {
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

const Expr* ExpressionParser::logical_or() {
  const Expr* left = logical_and();
  while (is_name("or")) {
    const int line = take().line;
    const Expr* right = logical_and();
    left = &make(Op::kOr, {left, right}, line);
  }
  return left;
}

const Expr* ExpressionParser::logical_and() {
  const Expr* left = logical_not();
  while (is_name("and")) {
    const int line = take().line;
    const Expr* right = logical_not();
    left = &make(Op::kAnd, {left, right}, line);
  }
  return left;
}

const Expr* ExpressionParser::logical_not() {
  if (!is_name("not")) return comparison();
  const Level level(*this);
  const int line = take().line;
  const Expr* operand = logical_not();
  return &make(Op::kNot, {operand}, line);
}

const Expr* ExpressionParser::comparison() {
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

const Expr* ExpressionParser::sum() {
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

const Expr* ExpressionParser::concat() {
  const int line = peek().line;
  std::vector<const Expr*> parts{product()};
  while (skip_op("~")) parts.push_back(product());
  return parts.size() == 1 ? parts[0] : &make(Op::kConcat, std::move(parts), line);
}

const Expr* ExpressionParser::product() {
  const Expr* left = power();
  while (is_op("*") || is_op("/") || is_op("//") || is_op("%")) {
    const Token& token = take();
    const Op op = token.text == "*"    ? Op::kMultiply
                  : token.text == "/"  ? Op::kDivide
                  : token.text == "//" ? Op::kFloorDivide
                                       : Op::kModulo;
    const int line = token.line;
    const Expr* right = power();
    left = &make(op, {left, right}, line);
  }
  return left;
}

const Expr* ExpressionParser::power() {
  const Expr* left = unary(true);
  while (is_op("**")) {
    const int line = take().line;
    const Expr* right = unary(true);
    left = &make(Op::kPower, {left, right}, line);
  }
  return left;
}

const Expr* ExpressionParser::unary(bool with_filter) {
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

const Expr* ExpressionParser::primary() {
  const Level level(*this);
  const Token& token = peek();
  if (token.kind != TokenKind::kOperator) return literal(token);
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

const Expr* ExpressionParser::literal(const Token& token) {
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
    case TokenKind::kFloat:
      return &constant(number(std::strtod(take().text.c_str(), nullptr)));
    default:
      unexpected();
  }
}

// Expressions up to `close`, which is taken; a comma may trail.
std::vector<const Expr*> ExpressionParser::list_of(std::string_view close) {
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

const Expr* ExpressionParser::dict(int line) {
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
const Expr* ExpressionParser::tuple(bool may_be_empty, std::string_view end, bool with_condition) {
  const int line = peek().line;
  std::vector<const Expr*> parts;
  bool comma = false;
  const auto at_end = [&] {
    return peek().kind == TokenKind::kVariableEnd || peek().kind == TokenKind::kBlockEnd || is_op(")") ||
           (!end.empty() && is_name(end));
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

const Expr* ExpressionParser::postfix(const Expr* node) {
  while (true) {
    if (is_op(".") || is_op("["))
      node = subscript(node);
    else if (is_op("("))
      node = call(node);
    else
      return node;
  }
}

const Expr* ExpressionParser::filters_and_tests(const Expr* node) {
  while (true) {
    if (is_op("|"))
      node = filter(node);
    else if (is_name("is"))
      node = test(node);
    else if (is_op("("))
      node = call(node);
    else
      return node;
  }
}

const Expr* ExpressionParser::subscript(const Expr* node) {
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

void ExpressionParser::arguments(Expr& expr) {
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

const Expr* ExpressionParser::call(const Expr* node) {
  Expr& expr = make(Op::kCall, {node}, peek().line);
  arguments(expr);
  return &expr;
}

std::string ExpressionParser::dotted_name() {
  std::string name = expect_name();
  while (skip_op(".")) name.append(1, '.').append(expect_name());
  return name;
}

// One filter behind its bar, or, at the beginning of {% filter %}, without one (`node` is nullptr then).
const Expr* ExpressionParser::filter(const Expr* node, bool bar) {
  if (bar) expect_op("|");
  const int line = peek().line;
  std::string name = dotted_name();
  Expr& expr = make(Op::kFilter, {node}, line);
  expr.text = std::move(name);
  if (is_op("(")) arguments(expr);
  return &expr;
}

const Expr* ExpressionParser::test(const Expr* node) {
  const int line = take().line;
  const bool negated = skip_name("not");
  std::string name = dotted_name();
  Expr& expr = make(Op::kTest, {node}, line);
  expr.text = std::move(name);
  const TokenKind kind = peek().kind;
  const bool literal = kind == TokenKind::kName || kind == TokenKind::kString || kind == TokenKind::kInteger ||
                       kind == TokenKind::kFloat;
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

}  // namespace fathom::text::jinja
