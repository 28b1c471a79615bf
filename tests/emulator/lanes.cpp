// What lanes of a warp, and blocks of a cluster, tell each other at once: shfl, vote, redux, match, mapa.
#include "emulator/lanes.h"

#include <algorithm>

namespace fathom::emulator {
namespace {

enum class Way : std::uint8_t { idx, bfly, up, down };
/// d, p (width 0: not wanted), a, b, c, members.
template <Way W>
void shuffle(Warp& warp, const Instruction& in, Mask mask) {
  const bool tells = in.count == 2;
  const Operand* const from = in.operands + in.count;
  std::uint32_t out[kLanes];
  Mask there = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto b = static_cast<int>(warp.get(from[1], lane)), c = static_cast<int>(warp.get(from[2], lane));
    const int clamp = c & 31, segments = c >> 8 & 31, lane_b = b & 31;
    const int most = (lane & segments) | (clamp & ~segments), least = lane & segments;
    int source = lane;
    bool inside = true;
    if constexpr (W == Way::up)
      source = lane - lane_b, inside = source >= most;
    else if constexpr (W == Way::down)
      source = lane + lane_b, inside = source <= most;
    else if constexpr (W == Way::bfly)
      source = lane ^ lane_b, inside = source <= most;
    else
      source = least | (lane_b & ~segments), inside = source <= most;
    if (!inside) source = lane;
    there |= static_cast<Mask>(inside) << lane;
    out[lane] = static_cast<std::uint32_t>(warp.get(from[0], source));
    if ((mask >> lane & 1u) != 0 && (mask >> source & 1u) == 0)
      warp.fault(in, "lane " + std::to_string(lane) + " reads from lane " + std::to_string(source) +
                         ", which does not take part");
  }
  store(warp, in.operands[0], out, mask);
  if (!tells || in.operands[1].width == 0) return;
  Mask& p = warp.predicate(in.operands[1]);
  p = (p & ~mask) | (there & mask);
}

enum class Vote : std::uint8_t { ballot, any, all };
template <Vote V>
void vote(Warp& warp, const Instruction& in, Mask mask) {
  const Mask ayes = warp.value(in.operands[1]) & mask;
  if constexpr (V == Vote::ballot) {
    each_lane(mask, [&](int lane) { warp.set(in.operands[0], lane, ayes); });
  } else {
    Mask& p = warp.predicate(in.operands[0]);
    const bool result = V == Vote::any ? ayes != 0 : ayes == mask;
    p = (p & ~mask) | (result ? mask : 0);
  }
}

template <class T, auto F>
void reduce(Warp& warp, const Instruction& in, Mask mask) {
  const T* const a = warp.lanes<T>(in.operands[1]);
  bool first = true;
  T all{};
  each_lane(mask, [&](int lane) { all = first ? a[lane] : F(all, a[lane]), first = false; });
  each_lane(mask, [&](int lane) { warp.lanes<T>(in.operands[0])[lane] = all; });
}
template <class T>
Execute reduction(std::string_view what) {
  if (what == "add")
    return &reduce<T, [](T a, T b) {
      return static_cast<T>(static_cast<std::uint32_t>(a) + static_cast<std::uint32_t>(b));
    }>;
  if (what == "min") return &reduce<T, [](T a, T b) { return std::min(a, b); }>;
  if (what == "max") return &reduce<T, [](T a, T b) { return std::max(a, b); }>;
  if (what == "and") return &reduce<T, [](T a, T b) { return static_cast<T>(a & b); }>;
  if (what == "or") return &reduce<T, [](T a, T b) { return static_cast<T>(a | b); }>;
  if (what == "xor") return &reduce<T, [](T a, T b) { return static_cast<T>(a ^ b); }>;
  return nullptr;
}
void match_any(Warp& warp, const Instruction& in, Mask mask) {
  each_lane(mask, [&](int lane) {
    Mask same = 0;
    for (int other = 0; other < kLanes; ++other)
      if ((mask >> other & 1u) != 0 && warp.get(in.operands[1], other) == warp.get(in.operands[1], lane))
        same |= 1u << other;
    warp.set(in.operands[0], lane, same);
  });
}
void active_lanes(Warp& warp, const Instruction& in, Mask mask) {
  each_lane(mask, [&](int lane) { warp.set(in.operands[0], lane, mask); });
}
void sync_warp(Warp&, const Instruction&, Mask) {}
void map_address(Warp& warp, const Instruction& in, Mask mask) {
  each_lane(mask, [&](int lane) {
    const std::uint64_t address = warp.get(in.operands[1], lane), rank = warp.get(in.operands[2], lane);
    if (rank >= warp.block->cluster->blocks.size())
      warp.fault(in, "mapa: no block " + std::to_string(rank) + " in the cluster");
    warp.set(in.operands[0], lane, (address & ((1u << kRankShift) - 1)) | (rank + 1) << kRankShift);
  });
}

}  // namespace

bool decode_lanes(const Written& written, Instruction& out) {
  const Opcode& op = written.opcode;
  const std::string_view base = op.parts[0];
  const auto members = [&](std::size_t group) {
    std::size_t index = 0;
    for (std::size_t i = 0; i < group; ++i) index += written.operands[i].size();
    out.flow = Flow::together, out.members = static_cast<std::int8_t>(index);
  };
  if (base == "shfl") {
    if (!op.has("sync") || op.type() != "b32") return false;
    members(4);
    out.count = static_cast<std::uint8_t>(written.operands[0].size());
    out.execute = op.has("idx")    ? &shuffle<Way::idx>
                  : op.has("bfly") ? &shuffle<Way::bfly>
                  : op.has("up")   ? &shuffle<Way::up>
                                   : &shuffle<Way::down>;
    return true;
  }
  if (base == "vote") {
    if (!op.has("sync")) return false;
    members(2);
    out.execute = op.has("ballot") ? &vote<Vote::ballot>
                  : op.has("any")  ? &vote<Vote::any>
                  : op.has("all")  ? &vote<Vote::all>
                                   : nullptr;
    return out.execute != nullptr;
  }
  if (base == "redux") {
    members(2);
    out.execute = op.type() == "s32" ? reduction<std::int32_t>(op.type(1)) : reduction<std::uint32_t>(op.type(1));
    return out.execute != nullptr;
  }
  if (base == "match") {
    members(2);
    return out.execute = &match_any, op.has("any");
  }
  if (base == "bar" && op.parts.size() > 1 && op.parts[1] == "warp") {
    members(0);
    return out.execute = &sync_warp, true;
  }
  if (base == "activemask") return out.execute = &active_lanes, true;
  if (base == "mapa") return out.execute = &map_address, op.has("shared::cluster") && op.type() == "u32";
  return false;
}

}  // namespace fathom::emulator
