// PTX names a register for every value. Those that are never needed at the same time get one place, so that a warp's
// registers stay in the caches.
#include <algorithm>
#include <queue>
#include <unordered_map>

#include "emulator/kernel.h"

namespace fathom::emulator {
namespace {

/// Where a register is needed: from its first instruction to its last, in the order of the text.
struct Range {
  std::uint32_t at = 0, width = 0, first = ~0u, last = 0;
  void reach(std::uint32_t instruction) { first = std::min(first, instruction), last = std::max(last, instruction); }
};
std::uint32_t bytes_of(std::uint32_t width) { return width == 1 ? 64 : std::max(64u, width * kLanes); }
using Bits = std::vector<bool>;  // a bit a register
/// Instructions that are run one after the other.
struct Stretch {
  std::uint32_t first = 0, end = 0;
  std::vector<std::size_t> next;
  Bits needs, gives, in,
      out;  // registers: read before they are written here; written here; needed when it begins, and when it ends
};

/// use(range's index, whether it is read) for an instruction's registers, those read first.
template <class Use>
void each_register(const Instruction& in, const std::unordered_map<std::uint32_t, std::size_t>& index, Use use) {
  const int count = in.operand_count + (in.unguarded ? 0 : 1);
  const int written = in.unguarded ? in.writes : 0;  // what is written for some lanes only keeps what others have
  for (int k = written; k < count; ++k)
    if (const auto found = index.find(in.operands[k].at); in.operands[k].width != 0 && found != index.end())
      use(found->second, true);
  for (int k = 0; k < written; ++k)
    if (const auto found = index.find(in.operands[k].at); in.operands[k].width != 0 && found != index.end())
      use(found->second, false);
}

std::vector<Stretch> stretches_of(const Kernel& kernel) {
  const std::vector<Instruction>& code = kernel.code;
  std::vector<bool> begins(code.size() + 1);
  begins[0] = begins[code.size()] = true;
  for (std::size_t i = 0; i < code.size(); ++i)
    if (code[i].flow == Flow::branch || code[i].flow == Flow::leave) {
      begins[i + 1] = true;
      if (code[i].flow == Flow::branch) begins[code[i].target] = true;
    }
  std::vector<Stretch> out;
  std::vector<std::size_t> stretch_at(code.size() + 1, 0);
  for (std::uint32_t i = 0; i < code.size(); ++i) {
    if (begins[i]) out.emplace_back().first = i;
    out.back().end = i + 1, stretch_at[i] = out.size() - 1;
  }
  for (std::size_t s = 0; s < out.size(); ++s) {
    const Instruction& last = code[out[s].end - 1];
    const bool always =
        last.unguarded && last.flow != Flow::plain && (last.flow == Flow::branch || last.flow == Flow::leave);
    if (!always && out[s].end < code.size()) out[s].next.push_back(s + 1);
    if (last.flow == Flow::branch) out[s].next.push_back(stretch_at[last.target]);
  }
  return out;
}

/// What is needed at the beginning of a stretch: what it needs itself, and what those after it need and it does not
/// give.
void find_needed(std::vector<Stretch>& stretches, std::size_t registers) {
  for (bool changed = true; changed;) {
    changed = false;
    for (std::size_t s = stretches.size(); s-- > 0;) {
      Stretch& one = stretches[s];
      for (const std::size_t next : one.next)
        for (std::size_t r = 0; r < registers; ++r)
          if (stretches[next].in[r] && !one.out[r]) {
            one.out[r] = true;
            if (!one.gives[r] && !one.in[r]) one.in[r] = changed = true;
          }
    }
  }
}

std::vector<Range> ranges_of(const Kernel& kernel) {
  std::unordered_map<std::uint32_t, std::size_t> index;
  std::vector<Range> out;
  for (const Operand& operand : kernel.operands)
    if (operand.width != 0 && std::ranges::find(kernel.filled, operand.at, &Filled::at) == kernel.filled.end() &&
        index.try_emplace(operand.at, out.size()).second)
      out.push_back({.at = operand.at, .width = operand.width});
  std::vector<Stretch> stretches = stretches_of(kernel);
  for (Stretch& one : stretches) {
    one.needs.resize(out.size()), one.gives.resize(out.size()), one.out.resize(out.size());
    for (std::uint32_t i = one.first; i < one.end; ++i)
      each_register(kernel.code[i], index, [&](std::size_t r, bool read) {
        out[r].reach(i);
        if (!read)
          one.gives[r] = true;
        else if (!one.gives[r])
          one.needs[r] = true;
      });
    one.in = one.needs;
  }
  find_needed(stretches, out.size());
  for (const Stretch& one : stretches)
    for (std::size_t r = 0; r < out.size(); ++r) {
      if (one.in[r]) out[r].reach(one.first);
      if (one.out[r]) out[r].reach(one.end - 1);
    }
  return out;
}

}  // namespace

void share_registers(Kernel& kernel) {
  std::vector<Range> ranges = ranges_of(kernel);
  std::ranges::sort(ranges, {}, &Range::first);
  std::unordered_map<std::uint32_t, std::uint32_t> place;
  std::uint32_t bytes = 0;
  for (Filled& one : kernel.filled) {
    place[one.at] = bytes;
    one.at = bytes;
    bytes += bytes_of(one.width);
  }
  kernel.filled_bytes = bytes;
  using Ending = std::pair<std::uint32_t, std::uint32_t>;  // where it is needed last; its place
  std::unordered_map<std::uint32_t, std::priority_queue<Ending, std::vector<Ending>, std::greater<>>>
      taken;  // by width: lanes that are apart may have registers in one place if they lie there alike
  for (const Range& range : ranges) {
    auto& endings = taken[range.width];
    std::uint32_t at = bytes;
    if (!endings.empty() && endings.top().first < range.first)
      at = endings.top().second, endings.pop();
    else
      bytes += bytes_of(range.width);
    endings.emplace(range.last, at);
    place[range.at] = at;
  }
  for (Operand& operand : kernel.operands)
    if (operand.width != 0) operand.at = place.at(operand.at);
  kernel.register_bytes = bytes;
}

}  // namespace fathom::emulator
