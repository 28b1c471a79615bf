// Reads PTX: a kernel's parameters, variables and instructions. https://docs.nvidia.com/cuda/parallel-thread-execution
#include <algorithm>
#include <unordered_map>
#include <utility>

#include "emulator/kernel.h"
#include "emulator/ptx_text.h"

namespace fathom::emulator {
namespace {

bool is_name(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == '$' || c == '%' || c == '.';
}
std::uint8_t width_of(std::string_view type) {
  if (type == "pred") return 1;
  if (type.ends_with("64")) return 8;
  if (type.ends_with("32") || type.ends_with("x2") || type.ends_with("x4")) return 4;
  if (type.ends_with("16")) return 2;
  return 0;
}
std::uint32_t round_up(std::uint32_t value, std::uint32_t to) { return (value + to - 1) / to * to; }

struct Range {
  std::string prefix;
  std::uint8_t width = 0;
};
/// Names that a pair of braces declares.
struct Scope {
  int parent = -1;
  std::vector<Range> ranges;
  std::unordered_map<std::string, Operand> registers;  // those used, and single ones
  std::unordered_map<std::string, std::uint32_t> labels;
};
struct Variable {
  Filled::What what = Filled::What::shared;
  std::uint64_t value = 0;
};

class Decoder {
 public:
  Decoder(const std::string& text, std::size_t at, const Globals& globals)
      : text_(text), at_(at), globals_(globals), kernel_(std::make_unique<Kernel>()) {
    kernel_->text = &text;
    line_ =
        static_cast<std::uint32_t>(1 + std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(at), '\n'));
  }
  std::unique_ptr<Kernel> decode();

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw Fault("PTX line " + std::to_string(line_) + " (" + kernel_->name.substr(0, 120) + "): " + what);
  }
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  void skip() {
    while (at_ < text_.size()) {
      if (text_[at_] == '\n') ++line_;
      if (is_space(text_[at_]))
        ++at_;
      else if (text_.compare(at_, 2, "//") == 0)
        at_ = std::min(text_.find('\n', at_), text_.size());
      else
        break;
    }
  }
  std::string_view until(char end) {
    const std::size_t found = text_.find(end, at_);
    if (found == std::string::npos) fail(std::string("no '") + end + "'");
    const std::string_view out(text_.data() + at_, found - at_);
    line_ += static_cast<std::uint32_t>(std::count(out.begin(), out.end(), '\n'));
    at_ = found + 1;
    return trimmed(out);
  }
  std::string_view word() {
    skip();
    const std::size_t begin = at_;
    while (at_ < text_.size() && is_name(text_[at_])) ++at_;
    return {text_.data() + begin, at_ - begin};
  }

  void header();
  void parameter(std::string_view declared);
  void body();
  void directive();
  void variable(std::string_view declared, Filled::What what);
  bool shared_of_module(const std::string& name);
  void instruction(std::string_view statement);
  Operand slot(std::uint8_t width);
  Operand filled(Filled::What what, std::uint8_t width, std::uint64_t value, std::uint8_t axis = 0);
  Operand name(std::string_view text, std::uint8_t width);
  bool special(std::string_view text, std::uint8_t width, Operand& out);
  Operands operand(std::string_view text, std::uint8_t width, std::int64_t& immediate);
  Operands address(std::string_view inside);
  void link();

  const std::string& text_;
  std::size_t at_;
  const Globals& globals_;
  std::uint32_t line_ = 1;
  std::unique_ptr<Kernel> kernel_;
  std::vector<Scope> scopes_;
  int scope_ = -1;
  std::unordered_map<std::string, Variable> variables_;
  std::map<std::array<std::uint64_t, 4>, Operand> filled_;
  std::vector<std::size_t> first_operand_;
  struct Jump {
    std::size_t from;
    int scope;
    std::string label;
  };
  std::vector<Jump> jumps_;
};

Operand Decoder::slot(std::uint8_t width) {
  Operand out{.at = kernel_->register_bytes, .width = width};
  kernel_->register_bytes += round_up(width == 1 ? sizeof(Mask) : width * kLanes, 64);
  return out;
}
Operand Decoder::filled(Filled::What what, std::uint8_t width, std::uint64_t value, std::uint8_t axis) {
  const auto [found, is_new] = filled_.try_emplace({static_cast<std::uint64_t>(what), width, value, axis});
  if (is_new) {
    found->second = slot(width);
    kernel_->filled.push_back({.what = what, .at = found->second.at, .width = width, .axis = axis, .value = value});
  }
  return found->second;
}

bool Decoder::special(std::string_view text, std::uint8_t width, Operand& out) {
  static constexpr std::pair<std::string_view, Filled::What> triples[] = {{"%tid.", Filled::What::tid},
                                                                          {"%ntid.", Filled::What::ntid},
                                                                          {"%ctaid.", Filled::What::ctaid},
                                                                          {"%nctaid.", Filled::What::nctaid}};
  for (const auto& [prefix, what] : triples)
    if (text.starts_with(prefix) && text.size() == prefix.size() + 1) {
      out = filled(what, width, 0, static_cast<std::uint8_t>(text.back() - 'x'));
      return true;
    }
  static constexpr std::pair<std::string_view, Filled::What> singles[] = {
      {"%laneid", Filled::What::lane},
      {"%warpid", Filled::What::warp},
      {"%cluster_ctarank", Filled::What::cluster_rank},
      {"%cluster_nctarank", Filled::What::cluster_size},
      {"%clusterid.x", Filled::What::cluster_id}};
  for (const auto& [name, what] : singles)
    if (text == name) {
      out = filled(what, width, 0);
      return true;
    }
  return false;
}

Operand Decoder::name(std::string_view text, std::uint8_t width) {
  const std::string key(text);
  for (int s = scope_; s >= 0; s = scopes_[static_cast<std::size_t>(s)].parent) {
    Scope& scope = scopes_[static_cast<std::size_t>(s)];
    if (const auto found = scope.registers.find(key); found != scope.registers.end()) return found->second;
    std::size_t digits = text.size();
    while (digits > 0 && std::isdigit(static_cast<unsigned char>(text[digits - 1])) != 0) --digits;
    for (const Range& range : scope.ranges)
      if (digits < text.size() && range.prefix == text.substr(0, digits))
        return scope.registers.emplace(key, slot(range.width)).first->second;
  }
  Operand out;
  if (special(text, width, out)) return out;
  if (const auto found = variables_.find(key); found != variables_.end())
    return filled(found->second.what, width, found->second.value);
  if (shared_of_module(key)) return name(text, width);
  if (const auto found = globals_.find(text); found != globals_.end())
    return filled(Filled::What::constant, 8, reinterpret_cast<std::uint64_t>(found->second));
  fail("'" + key + "' is not declared");
}

Operands Decoder::address(std::string_view inside) {
  const std::vector<std::string_view> parts = split(inside);
  std::string_view base = parts[0];
  std::int64_t offset = 0;
  if (const std::size_t plus = base.find('+'); plus != std::string_view::npos) {
    std::uint64_t bits = 0;
    if (!number(base.substr(plus + 1), bits)) fail("an address that is not understood: " + std::string(inside));
    offset = static_cast<std::int64_t>(bits), base = base.substr(0, plus);
  }
  Operands out;
  std::uint64_t bits = 0;
  out.push_back(number(base, bits) ? filled(Filled::What::constant, 8, bits) : name(base, 8));
  out.back().offset = offset;
  std::int64_t ignored = 0;
  for (std::size_t i = 1; i < parts.size(); ++i)
    for (const Operand& one : operand(parts[i], 4, ignored)) out.push_back(one);
  return out;
}

Operands Decoder::operand(std::string_view text, std::uint8_t width, std::int64_t& immediate) {
  immediate = 0;
  if (text.starts_with("[")) return address(trimmed(text.substr(1, text.size() - 2)));
  Operands out;
  if (text.starts_with("{")) {
    std::int64_t ignored = 0;
    for (const std::string_view one : split(text.substr(1, text.size() - 2)))
      for (const Operand& element : operand(one, width, ignored)) out.push_back(element);
    return out;
  }
  if (const std::size_t bar = text.find('|'); bar != std::string_view::npos) {
    std::int64_t ignored = 0;
    for (const std::string_view one : {trimmed(text.substr(0, bar)), trimmed(text.substr(bar + 1))})
      for (const Operand& element : operand(one, width, ignored)) out.push_back(element);
    return out;
  }
  if (text == "_") return {Operand{}};
  std::uint64_t bits = 0;
  if (number(text, bits)) {
    immediate = static_cast<std::int64_t>(bits);
    if (width == 1) return {filled(Filled::What::constant, 1, bits != 0 ? kAll : 0)};
    return {filled(Filled::What::constant, width, width == 8 ? bits : bits & ((std::uint64_t{1} << (8 * width)) - 1))};
  }
  if (text.starts_with("!")) {
    out = operand(trimmed(text.substr(1)), 1, immediate);
    out[0].negated = !out[0].negated;
    return out;
  }
  return {name(text, width)};
}

/// Bytes of a number that stands as operand `index`.
std::uint8_t width_of_constant(const Opcode& opcode, std::size_t index) {
  const std::string_view base = opcode.parts[0], type = opcode.type();
  const std::uint8_t width = width_of(type);
  if ((base == "shl" || base == "shr") && index == 2) return 4;
  if (base == "mul" && opcode.has("wide")) return width;
  if (base == "mad" && opcode.has("wide")) return index == 3 ? static_cast<std::uint8_t>(2 * width) : width;
  if ((base == "bfi" && index >= 3) || (base == "bfe" && index >= 2)) return 4;
  if (base == "selp" && index == 3) return 1;
  if (base == "shf" && index == 3) return 4;
  static constexpr std::string_view typed[] = {"add",  "sub",   "mul", "mad", "fma", "neg",  "abs",      "min",  "max",
                                               "div",  "rem",   "and", "or",  "xor", "not",  "shl",      "shr",  "setp",
                                               "selp", "mov",   "cvt", "st",  "bfi", "bfe",  "copysign", "brev", "popc",
                                               "clz",  "bfind", "ex2", "lg2", "rcp", "sqrt", "rsqrt",    "lop3", "prmt",
                                               "shf",  "atom",  "red", "sin", "cos", "tanh"};
  if (std::ranges::find(typed, base) == std::end(typed) || width == 0) return 4;
  return width;
}

void Decoder::instruction(std::string_view statement) {
  Written written;
  Operand guard;
  bool guarded = false;
  if (statement.starts_with("@")) {
    const std::size_t end = statement.find_first_of(" \t");
    std::int64_t ignored = 0;
    guard = operand(statement.substr(1, end - 1), 1, ignored)[0], guarded = true;
    statement = trimmed(statement.substr(end));
  }
  const std::size_t end = std::min(statement.find_first_of(" \t\n{["), statement.size());
  const std::string_view opcode = statement.substr(0, end);
  for (std::size_t begin = 0; begin <= opcode.size();) {
    std::size_t dot = opcode.find('.', begin);
    if (dot == std::string_view::npos) dot = opcode.size();
    if (dot > begin) written.opcode.parts.push_back(opcode.substr(begin, dot - begin));
    begin = dot + 1;
  }
  Instruction out;
  out.line = line_;
  const std::string_view rest = statement.substr(end), base = written.opcode.parts[0];
  const std::size_t number_of = kernel_->code.size();
  if (base == "bra") {
    jumps_.push_back({number_of, scope_, std::string(trimmed(rest))});
    out.flow = Flow::branch;
  } else if (base == "ret" || base == "exit") {
    out.flow = Flow::leave;
  } else {
    const std::vector<std::string_view> texts = split(rest);
    for (std::size_t i = 0; i < texts.size(); ++i) {
      std::int64_t immediate = 0;
      // The timer is an operand whose value changes: read when the instruction runs.
      const bool timer = texts[i].find("%globaltimer") == 0 || texts[i].find("%clock") == 0;
      written.operands.push_back(timer ? Operands{Operand{}}
                                       : operand(texts[i], width_of_constant(written.opcode, i), immediate));
      written.immediates.push_back(immediate);
    }
    if (!decode_predicates(written, out) && !decode_arithmetic(written, out) && !decode_conversion(written, out) &&
        !decode_memory(written, out) && !decode_matrix(written, out) && !decode_lanes(written, out) &&
        !decode_waiting(written, out))
      fail("an instruction that the emulator does not know: " + std::string(statement.substr(0, 160)));
  }
  // Products of four warps add to what they write.
  static constexpr std::string_view no_result[] = {
      "st",     "red",        "wgmma",          "bar",       "barrier", "cp",  "prefetch", "prefetchu", "fence",
      "membar", "setmaxnreg", "griddepcontrol", "nanosleep", "trap",    "bra", "ret",      "exit"};
  const bool result =
      std::ranges::find(no_result, base) == std::end(no_result) &&
      !(base == "mbarrier" && written.opcode.parts[1] != "arrive" && !written.opcode.parts[1].ends_with("_wait"));
  if (result && !written.operands.empty()) out.writes = static_cast<std::uint8_t>(written.operands[0].size());
  first_operand_.push_back(kernel_->operands.size());
  std::size_t count = 0;
  for (const Operands& group : written.operands)
    for (const Operand& one : group) kernel_->operands.push_back(one), ++count;
  if (guarded) {
    kernel_->operands.push_back(guard);
    out.guard = static_cast<std::int16_t>(count), out.unguarded = false;
  }
  out.operand_count = static_cast<std::uint16_t>(count);
  kernel_->code.push_back(out);
}

void Decoder::parameter(std::string_view declared) {  // .param .align 8 .b8 name[88] or .param .u64 name
  const Declared one = read_declared(declared.substr(declared.find(".param") + 6));
  KernelTraits& traits = kernel_->traits;
  traits.parameter_bytes = round_up(traits.parameter_bytes, one.alignment);
  traits.offsets.push_back(traits.parameter_bytes), traits.sizes.push_back(one.bytes);
  variables_[one.name] = {Filled::What::parameter, traits.parameter_bytes};
  traits.parameter_bytes += one.bytes;
}

void Decoder::header() {
  if (word() != ".entry") fail("no entry");
  kernel_->name = word();
  skip();
  if (peek() == '(') {
    ++at_;
    for (const std::string_view one : split(until(')'))) parameter(one);
  }
  for (skip(); peek() != '{'; skip()) {
    const std::string_view directive = word();
    skip();
    if (directive == ".maxntid" || directive == ".reqntid") {
      std::uint32_t product = 1;
      for (;;) {
        product *= static_cast<std::uint32_t>(std::stoul(std::string(word())));
        skip();
        if (peek() != ',') break;
        ++at_;
      }
      kernel_->traits.most_threads = product;
    } else if (directive == ".minnctapersm" || directive == ".maxnreg") {
      word();  // of registers, which are not counted
    } else {
      fail("a kernel's head that is not understood: " + std::string(directive));
    }
  }
}

void Decoder::variable(std::string_view declared, Filled::What what) {  // ".align 16 .b8 name[32]" or ".u32 name"
  const Declared one = read_declared(declared);
  std::uint32_t& used = what == Filled::What::local ? kernel_->local_bytes : kernel_->traits.shared_bytes;
  used = round_up(used, one.alignment);
  variables_[one.name] = {what, used};
  used += one.bytes;
}

/// Shared variables of functions that were inlined stand before all kernels: those that are used are the kernel's.
bool Decoder::shared_of_module(const std::string& name) {
  static constexpr std::string_view kShared = "\n.shared ";
  for (std::size_t at = text_.find(kShared); at != std::string::npos; at = text_.find(kShared, at + 1)) {
    const std::string_view declared(text_.data() + at + kShared.size(), text_.find(';', at) - at - kShared.size());
    const std::size_t found = declared.find(name);
    if (found == std::string_view::npos ||
        (found + name.size() < declared.size() && declared[found + name.size()] != '['))
      continue;
    variable(declared, Filled::What::shared);
    return true;
  }
  return false;
}

void Decoder::directive() {
  const std::string_view what = word();
  if (what == ".loc" || what == ".file") {
    at_ = std::min(text_.find('\n', at_), text_.size());
    return;
  }
  const std::string_view rest = until(';');
  if (what == ".pragma") return;
  if (what == ".shared") return variable(rest, Filled::What::shared);
  if (what == ".local") return variable(rest, Filled::What::local);
  if (what != ".reg") fail("a directive that the emulator does not know: " + std::string(what));
  const std::size_t space = rest.find_first_of(" \t");
  const std::uint8_t width = width_of(rest.substr(1, space - 1));
  if (width == 0) fail("a register of unknown type: " + std::string(rest));
  Scope& scope = scopes_[static_cast<std::size_t>(scope_)];
  for (const std::string_view name : split(rest.substr(space))) {
    if (const std::size_t count = name.find('<'); count != std::string_view::npos)
      scope.ranges.push_back({std::string(name.substr(0, count)), width});
    else
      scope.registers.emplace(std::string(name), slot(width));
  }
}

void Decoder::body() {
  for (skip(); at_ < text_.size(); skip()) {
    if (peek() == '{') {
      ++at_;
      scopes_.emplace_back().parent = scope_;
      scope_ = static_cast<int>(scopes_.size()) - 1;
    } else if (peek() == '}') {
      ++at_;
      scope_ = scopes_[static_cast<std::size_t>(scope_)].parent;
      if (scope_ < 0) return;
    } else if (peek() == '.') {
      directive();
    } else if (peek() == ';') {
      ++at_;
    } else {
      const std::size_t begin = at_;
      const std::string_view label = word();
      if (!label.empty() && peek() == ':' && text_.compare(at_, 2, "::") != 0) {
        ++at_;
        scopes_[static_cast<std::size_t>(scope_)].labels[std::string(label)] =
            static_cast<std::uint32_t>(kernel_->code.size());
        continue;
      }
      at_ = begin;
      instruction(until(';'));
    }
  }
  fail("a kernel without an end");
}

void Decoder::link() {
  for (const Jump& jump : jumps_) {
    bool found = false;
    for (int s = jump.scope; s >= 0 && !found; s = scopes_[static_cast<std::size_t>(s)].parent) {
      const auto& labels = scopes_[static_cast<std::size_t>(s)].labels;
      if (const auto at = labels.find(jump.label); at != labels.end())
        kernel_->code[jump.from].target = at->second, found = true;
    }
    if (!found) fail("no label " + jump.label);
  }
  Instruction end;
  end.flow = Flow::leave, end.line = line_;
  kernel_->code.push_back(end);
  first_operand_.push_back(kernel_->operands.size());
  for (std::size_t i = 0; i < kernel_->code.size(); ++i)
    kernel_->code[i].operands = kernel_->operands.data() + first_operand_[i];
}

std::unique_ptr<Kernel> Decoder::decode() {
  // Rooms of dynamic shared memory are declared before all kernels.
  for (std::size_t at = text_.find(".extern .shared"); at != std::string::npos;
       at = text_.find(".extern .shared", at + 1)) {
    const std::string_view declared(text_.data() + at, text_.find(';', at) - at);
    const std::size_t bracket = declared.find('['), space = declared.rfind(' ', bracket),
                      align = declared.find(".align");
    variables_[std::string(declared.substr(space + 1, bracket - space - 1))] = {Filled::What::dynamic_shared, 0};
    if (align != std::string_view::npos)
      kernel_->dynamic_alignment = std::max(
          kernel_->dynamic_alignment, static_cast<std::uint32_t>(std::stoul(std::string(declared.substr(align + 6)))));
  }
  header();
  body();
  link();
  share_registers(*kernel_);
  return std::move(kernel_);
}

}  // namespace

std::unique_ptr<Kernel> decode(const std::string& text, std::size_t at, const Globals& globals) {
  return Decoder(text, at, globals).decode();
}

}  // namespace fathom::emulator
