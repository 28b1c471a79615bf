// Comparisons, and what becomes of predicates.
#include "emulator/lanes.h"

namespace fathom::emulator {
namespace {

enum class Relation : std::uint8_t { eq, ne, lt, le, gt, ge, equ, neu, ltu, leu, gtu, geu, num, nan };
constexpr std::string_view kRelations[] = {"eq",  "ne",  "lt",  "le",  "gt",  "ge",  "equ",
                                           "neu", "ltu", "leu", "gtu", "geu", "num", "nan"};
enum Combine : std::uint8_t { kAlone, kAnd, kOr, kXor };

template <class T, Relation R>
void compare(Warp& warp, const Instruction& in, Mask mask) {
  const bool two = in.count == 2;  // p|q: also the opposite
  const Operand* const from = in.operands + in.count;
  const T *const a = warp.lanes<T>(from[0]), *const b = warp.lanes<T>(from[1]);
  Mask result = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    const T x = a[lane], y = b[lane];
    bool holds = false;
    if constexpr (R == Relation::eq)
      holds = x == y;
    else if constexpr (R == Relation::ne)
      holds = x < y || x > y;
    else if constexpr (R == Relation::lt)
      holds = x < y;
    else if constexpr (R == Relation::le)
      holds = x <= y;
    else if constexpr (R == Relation::gt)
      holds = x > y;
    else if constexpr (R == Relation::ge)
      holds = x >= y;
    else if constexpr (R == Relation::equ)
      holds = !(x < y || x > y);
    else if constexpr (R == Relation::neu)
      holds = x != y;
    else if constexpr (R == Relation::ltu)
      holds = !(x >= y);
    else if constexpr (R == Relation::leu)
      holds = !(x > y);
    else if constexpr (R == Relation::gtu)
      holds = !(x <= y);
    else if constexpr (R == Relation::geu)
      holds = !(x < y);
    else if constexpr (R == Relation::num)
      holds = x == x && y == y;
    else
      holds = x != x || y != y;
    result |= static_cast<Mask>(holds) << lane;
  }
  Mask opposite = ~result;
  if (in.variant != kAlone) {
    const Mask c = warp.value(from[2]);
    result = in.variant == kAnd ? result & c : in.variant == kOr ? result | c : result ^ c;
    opposite = in.variant == kAnd ? opposite & c : in.variant == kOr ? opposite | c : opposite ^ c;
  }
  Mask& p = warp.predicate(in.operands[0]);
  p = (p & ~mask) | (result & mask);
  if (!two || in.operands[1].width == 0) return;
  Mask& q = warp.predicate(in.operands[1]);
  q = (q & ~mask) | (opposite & mask);
}
template <class T>
Execute comparison(Relation relation) {
  switch (relation) {
    case Relation::eq:
      return compare<T, Relation::eq>;
    case Relation::ne:
      return compare<T, Relation::ne>;
    case Relation::lt:
      return compare<T, Relation::lt>;
    case Relation::le:
      return compare<T, Relation::le>;
    case Relation::gt:
      return compare<T, Relation::gt>;
    case Relation::ge:
      return compare<T, Relation::ge>;
    case Relation::equ:
      return compare<T, Relation::equ>;
    case Relation::neu:
      return compare<T, Relation::neu>;
    case Relation::ltu:
      return compare<T, Relation::ltu>;
    case Relation::leu:
      return compare<T, Relation::leu>;
    case Relation::gtu:
      return compare<T, Relation::gtu>;
    case Relation::geu:
      return compare<T, Relation::geu>;
    case Relation::num:
      return compare<T, Relation::num>;
    case Relation::nan:
      return compare<T, Relation::nan>;
  }
  return nullptr;
}
bool decode_comparison(const Written& written, Instruction& out) {
  const Opcode& op = written.opcode;
  for (std::size_t r = 0; r < std::size(kRelations); ++r) {
    if (op.parts[1] != kRelations[r]) continue;
    const auto relation = static_cast<Relation>(r);
    out.count = static_cast<std::uint8_t>(written.operands[0].size());
    out.variant = op.has("and") ? kAnd : op.has("or") ? kOr : op.has("xor") ? kXor : kAlone;
    const auto choose = [&](auto t) { return comparison<decltype(t)>(relation); };
    out.execute = by_integer(op.type(), choose);
    if (out.execute == nullptr) out.execute = by_real(op.type(), choose);
    return out.execute != nullptr;
  }
  return false;
}

template <Combine C>
void combine_predicates(Warp& warp, const Instruction& in, Mask mask) {
  const Mask a = warp.value(in.operands[1]), b = warp.value(in.operands[2]);
  const Mask result = C == kAnd ? a & b : C == kOr ? a | b : a ^ b;
  Mask& d = warp.predicate(in.operands[0]);
  d = (d & ~mask) | (result & mask);
}
template <bool Negates>
void move_predicate(Warp& warp, const Instruction& in, Mask mask) {
  const Mask a = warp.value(in.operands[1]) ^ (Negates ? kAll : 0);
  Mask& d = warp.predicate(in.operands[0]);
  d = (d & ~mask) | (a & mask);
}

}  // namespace

bool decode_predicates(const Written& written, Instruction& out) {
  const Opcode& op = written.opcode;
  const std::string_view base = op.parts[0];
  if (base == "setp") return decode_comparison(written, out);
  if (op.type() != "pred") return false;
  if (base == "mov") return out.execute = &move_predicate<false>, true;
  if (base == "not") return out.execute = &move_predicate<true>, true;
  if (base == "and") return out.execute = &combine_predicates<kAnd>, true;
  if (base == "or") return out.execute = &combine_predicates<kOr>, true;
  if (base == "xor") return out.execute = &combine_predicates<kXor>, true;
  return false;
}

}  // namespace fathom::emulator
