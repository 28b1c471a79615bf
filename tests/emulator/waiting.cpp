// What is waited for: barriers of blocks and clusters, mbarriers, and copies that are under way. A copy reads and
// writes at some time drawn from the seed, those of cp.async not before they are waited for.
#include <algorithm>

#include "emulator/lanes.h"

namespace fathom::emulator {
namespace {

void yield(Warp& warp, const Instruction&, Mask) { warp.yields = true; }
void trap(Warp& warp, const Instruction& in, Mask) { warp.fault(in, "the kernel stopped itself (trap)"); }

// ---------------------------------------------------------------- mbarriers

PhaseBarrier& barrier_at(Warp& warp, const Instruction& in, std::uint64_t address, int lane) {
  return *reinterpret_cast<PhaseBarrier*>(warp.reach(in, Space::cluster, address & ~kSharedWindow, 8, lane));
}
void initialize(Warp& warp, const Instruction& in, Mask mask) {
  each_lane(mask, [&](int lane) {
    const std::uint64_t count = warp.get(in.operands[1], lane);
    if (count == 0 || count >= 1u << 20) warp.fault(in, "mbarrier.init: a count of " + std::to_string(count));
    PhaseBarrier& barrier = barrier_at(warp, in, warp.address(in.operands[0], lane), lane);
    barrier.phase = 0, barrier.expected = count & 0xfffffu, barrier.pending = count & 0xfffffu, barrier.bytes = 0;
  });
  ++warp.machine->progress;
}
void settle(Warp& warp, PhaseBarrier& barrier) {
  if (!barrier.settle()) return;
  warp.machine->phase_ended(&barrier);
  if (warp.races() != nullptr) warp.races()->phase_ended(&barrier);
}
void arrive_at(Warp& warp, const Instruction& in, PhaseBarrier& barrier, std::uint64_t count) {
  if (barrier.pending < count) warp.fault(in, "more arrive at an mbarrier than it was made for");
  barrier.pending = (barrier.pending - count) & 0xfffffu;
  settle(warp, barrier);
  ++warp.machine->progress;
}
/// state, [address] (, count); variant 1: bytes to expect are the third.
void arrive(Warp& warp, const Instruction& in, Mask mask) {
  each_lane(mask, [&](int lane) {
    PhaseBarrier& barrier = barrier_at(warp, in, warp.address(in.operands[1], lane), lane);
    std::uint64_t before = 0;
    std::memcpy(&before, &barrier, sizeof before);
    std::uint64_t count = 1;
    if (in.variant == 1)
      barrier.bytes = barrier.bytes + static_cast<std::int64_t>(warp.get(in.operands[2], lane));
    else if (in.operand_count > 2)
      count = warp.get(in.operands[2], lane);
    if (warp.races() != nullptr) warp.races()->tell_barrier(warp, &barrier);
    arrive_at(warp, in, barrier, count);
    warp.set(in.operands[0], lane, before);
  });
}
/// [address], bytes; variant 1: they have come.
void change_expected(Warp& warp, const Instruction& in, Mask mask) {
  each_lane(mask, [&](int lane) {
    PhaseBarrier& barrier = barrier_at(warp, in, warp.address(in.operands[0], lane), lane);
    const auto bytes = static_cast<std::int64_t>(warp.get(in.operands[1], lane));
    barrier.bytes = barrier.bytes + (in.variant == 1 ? -bytes : bytes);
    settle(warp, barrier);
  });
  ++warp.machine->progress;
}
void try_wait(Warp& warp, const Instruction& in, Mask mask) {
  Mask done = 0;
  std::uint64_t address = 0;  // of the lane before
  const PhaseBarrier* barrier = nullptr;
  bool one = true;
  each_lane(mask, [&](int lane) {
    if (const std::uint64_t own = warp.address(in.operands[1], lane); barrier == nullptr || own != address) {
      one = barrier == nullptr, address = own;
      barrier = &barrier_at(warp, in, own, lane);
    }
    const bool ended = barrier->phase != (warp.get(in.operands[2], lane) & 1u);
    if (ended && warp.races() != nullptr) warp.races()->learn_from_barrier(warp, barrier);
    done |= static_cast<Mask>(ended) << lane;
  });
  Mask& p = warp.predicate(in.operands[0]);
  p = (p & ~mask) | done;
  if (done != mask) warp.yields = true;
  if (done == 0 && one) warp.machine->park(warp, barrier);
}
bool decode_phases(const Opcode& op, Instruction& out) {
  const std::string_view what = op.parts[1];
  if (what == "init") return out.execute = &initialize, true;
  if (what == "inval") return out.execute = &nothing, true;
  if (what == "arrive") return out.variant = op.has("expect_tx") ? 1 : 0, out.execute = &arrive, !op.has("noComplete");
  if (what == "expect_tx" || what == "complete_tx")
    return out.variant = what == "complete_tx" ? 1 : 0, out.execute = &change_expected, true;
  if (what == "try_wait" || what == "test_wait") return out.execute = &try_wait, op.has("parity");
  return false;
}

// ---------------------------------------------------------------- cp.async

/// The first `count` of a lane's copies; the warp has waited for them, or (told) a barrier will be told.
void perform(Warp& warp, const Instruction& in, std::vector<LaneCopy>& copies, std::uint32_t count,
             PhaseBarrier* told = nullptr) {
  for (std::uint32_t i = 0; i < count; ++i) {
    const LaneCopy& copy = copies[i];
    if (copy.known != nullptr) {
      warp.races()->copied(warp, in, copy.known, copy.to, copy.bytes);
      if (told != nullptr)
        warp.races()->tell_barrier_of_copy(warp, copy.known, told);
      else
        warp.races()->learn_of_copies(warp);
    }
    if (copy.valid > 0) std::memcpy(copy.to, copy.from, copy.valid);
    std::memset(copy.to + copy.valid, 0, static_cast<std::size_t>(copy.bytes - copy.valid));
  }
  copies.erase(copies.begin(), copies.begin() + count);
}
/// [to], [from], bytes (, bytes that are there); variant: bytes; count 1: the fourth is there.
void copy_later(Warp& warp, const Instruction& in, Mask mask) {
  const Known known = warp.races() != nullptr ? warp.races()->known(warp) : nullptr;
  each_lane(mask, [&](int lane) {
    LaneCopy copy{.bytes = in.variant, .valid = in.variant, .known = known};
    if (in.count == 1)
      copy.valid = static_cast<std::uint8_t>(std::min<std::uint64_t>(warp.get(in.operands[3], lane), in.variant));
    copy.to = warp.reach(in, Space::shared, warp.address(in.operands[0], lane) & ~kSharedWindow, in.variant, lane);
    if (copy.valid > 0) copy.from = warp.reach(in, Space::global, warp.address(in.operands[1], lane), in.variant, lane);
    LaneCopies& copies = warp.copies[static_cast<std::size_t>(lane)];
    copies.all.push_back(copy), ++copies.open;
  });
}
void commit(Warp& warp, const Instruction&, Mask mask) {
  each_lane(mask, [&](int lane) {
    LaneCopies& copies = warp.copies[static_cast<std::size_t>(lane)];
    copies.groups.push_back(copies.open);
    copies.open = 0;
  });
}
/// extra: groups that may be left; ~0: wait_all.
void wait_for_copies(Warp& warp, const Instruction& in, Mask mask) {
  each_lane(mask, [&](int lane) {
    LaneCopies& copies = warp.copies[static_cast<std::size_t>(lane)];
    const bool all = in.extra == ~0u;
    const std::size_t left = all ? 0 : in.extra;
    std::uint32_t count = 0;
    while (copies.groups.size() > left) count += copies.groups.front(), copies.groups.erase(copies.groups.begin());
    if (all) count += copies.open, copies.open = 0;
    perform(warp, in, copies.all, count);
  });
  ++warp.machine->progress;
}
/// The lane's copies arrive at a barrier when they are there, counted among those that it was made for.
void arrive_with_copies(Warp& warp, const Instruction& in, Mask mask) {
  each_lane(mask, [&](int lane) {
    LaneCopies& copies = warp.copies[static_cast<std::size_t>(lane)];
    PhaseBarrier* const barrier = &barrier_at(warp, in, warp.address(in.operands[0], lane), lane);
    warp.machine->later([&warp, &in, barrier, all = std::move(copies.all)]() mutable {
      perform(warp, in, all, static_cast<std::uint32_t>(all.size()), barrier);
      arrive_at(warp, in, *barrier, 1);
    });
    copies.clear();
  });
}

// ---------------------------------------------------------------- bulk copies

/// Where `address` (a block's own, or one of the cluster's) lies in block `rank`.
std::uint64_t in_block(const Warp& warp, std::uint64_t address, std::uint32_t rank) {
  if (rank >= warp.block->cluster->blocks.size()) return ~std::uint64_t{0};
  return (address & ((1u << kRankShift) - 1)) | static_cast<std::uint64_t>(rank + 1) << kRankShift;
}
/// `bytes` of a copy have come to `at`, and its barrier is told.
void complete(Warp& warp, const Instruction& in, const Known& known, const std::byte* at, std::uint32_t bytes,
              PhaseBarrier& barrier, std::uint32_t counted) {
  if (known != nullptr && bytes > 0) warp.races()->copied(warp, in, known, at, bytes);
  if (counted == 0) return;
  if (known != nullptr) warp.races()->tell_barrier_of_copy(warp, known, &barrier);
  barrier.bytes = barrier.bytes - counted;
  settle(warp, barrier);
}
Known known_of(Warp& warp) { return warp.races() != nullptr ? warp.races()->known(warp) : nullptr; }
/// Blocks that a copy goes to: the bits of `mask`, or (0) the one that the address names.
template <class Use>
void each_target(Warp& warp, std::uint64_t to, std::uint64_t barrier, std::uint64_t mask, Use use) {
  if (mask == 0) return use(to, barrier);
  for (std::uint32_t rank = 0; rank < 16; ++rank)
    if ((mask >> rank & 1u) != 0) use(in_block(warp, to, rank), in_block(warp, barrier, rank));
}

/// [to], [from], bytes, [barrier] (, mask); count 1: the mask is there.
void copy_bulk(Warp& warp, const Instruction& in, Mask lanes) {
  const Known known = known_of(warp);
  each_lane(lanes, [&](int lane) {
    const auto bytes = static_cast<std::uint32_t>(warp.get(in.operands[2], lane));
    const std::uint64_t source = warp.address(in.operands[1], lane),
                        mask = in.count == 1 ? warp.get(in.operands[4], lane) : 0;
    if (bytes % 16 != 0 || source % 16 != 0) warp.fault(in, "a bulk copy of what is no multiple of 16 bytes");
    if (bytes == 0) return;
    warp.reach(in, Space::global, source, 16, lane);
    warp.reach(in, Space::global, source + bytes - 16, 16, lane);
    const auto* const from = reinterpret_cast<const std::byte*>(source);
    each_target(warp, warp.address(in.operands[0], lane), warp.address(in.operands[3], lane), mask,
                [&](std::uint64_t to, std::uint64_t barrier) {
                  warp.reach(in, Space::cluster, to, 16, lane);
                  std::byte* const at = shared_memory(*warp.block, to, bytes);
                  if (at == nullptr) warp.fault(in, "a bulk copy beyond the block's shared memory");
                  PhaseBarrier* const told = &barrier_at(warp, in, barrier, lane);
                  warp.machine->later([&warp, &in, known, at, from, bytes, told] {
                    std::memcpy(at, from, bytes);
                    complete(warp, in, known, at, bytes, *told, bytes);
                  });
                });
  });
}

/// A box of a tensor, as it lies in shared memory before chunks are swizzled; zeros where the tensor is not.
std::vector<std::byte> read_box(Warp& warp, const Instruction& in, const TensorMap& map, const std::int64_t (&at)[5]) {
  std::size_t bytes = map.element_bytes;
  for (int d = 0; d < map.rank; ++d) bytes *= map.box[d];
  std::vector<std::byte> out(bytes);
  const std::size_t run = static_cast<std::size_t>(map.box[0]) * map.element_bytes;
  std::int64_t index[5]{};
  for (std::size_t offset = 0; offset < bytes; offset += run) {
    bool inside = true;
    std::int64_t source = 0;
    for (int d = 1; d < map.rank; ++d) {
      const std::int64_t coordinate = at[d] + index[d];
      inside = inside && coordinate >= 0 && coordinate < static_cast<std::int64_t>(map.dims[d]);
      source += coordinate * static_cast<std::int64_t>(map.strides[d - 1]);
    }
    const std::int64_t first = std::max<std::int64_t>(at[0], 0),
                       end = std::min<std::int64_t>(at[0] + map.box[0], static_cast<std::int64_t>(map.dims[0]));
    if (inside && first < end) {
      std::byte* const from = map.data + source + first * map.element_bytes;
      const auto length = static_cast<std::size_t>(end - first) * map.element_bytes;
      warp.reach(in, Space::global, reinterpret_cast<std::uint64_t>(from), 1, 0);
      warp.reach(in, Space::global, reinterpret_cast<std::uint64_t>(from) + length - 1, 1, 0);
      std::memcpy(out.data() + offset + static_cast<std::size_t>(first - at[0]) * map.element_bytes, from, length);
    }
    for (int d = 1; d < map.rank; ++d) {
      if (++index[d] < map.box[d]) break;
      index[d] = 0;
    }
  }
  return out;
}
/// [to], [map, {coordinates}], [barrier] (, mask); variant: coordinates; count 1: the mask is there.
void copy_box(Warp& warp, const Instruction& in, Mask lanes) {
  const Known known = known_of(warp);
  each_lane(lanes, [&](int lane) {
    const std::uint64_t map_at = warp.address(in.operands[1], lane);
    auto* const map = reinterpret_cast<const TensorMap*>(warp.reach(in, Space::generic, map_at, 16, lane));
    if (map_at % 64 != 0) warp.fault(in, "a tensor map that is not aligned to 64 bytes");
    if (map->magic != TensorMap::kMagic || map->rank != in.variant)
      warp.fault(in, "what is no tensor map of as many dimensions");
    const Operand* const rest = in.operands + 2 + in.variant;
    std::array<std::int64_t, 5> at{};
    for (int d = 0; d < in.variant; ++d)
      at[static_cast<std::size_t>(d)] = static_cast<std::int32_t>(warp.get(in.operands[2 + d], lane));
    const std::uint64_t mask = in.count == 1 ? warp.get(rest[1], lane) : 0;
    each_target(warp, warp.address(in.operands[0], lane), warp.address(rest[0], lane), mask,
                [&](std::uint64_t to, std::uint64_t barrier) {
                  if (to % 128 != 0) warp.fault(in, "a box goes to what is not aligned to 128 bytes");
                  PhaseBarrier* const told = &barrier_at(warp, in, barrier, lane);
                  Block* const block = warp.block;
                  warp.machine->later([&warp, &in, known, block, map, at, to, told] {
                    std::int64_t coordinates[5];
                    std::copy(at.begin(), at.end(), coordinates);
                    const std::vector<std::byte> box = read_box(warp, in, *map, coordinates);
                    const std::uint32_t rows = map->swizzle / 16;  // chunks of 16 bytes whose place is exchanged
                    for (std::size_t offset = 0; offset < box.size(); offset += 16) {
                      std::uint64_t place = to + offset;
                      if (rows > 0) place ^= (place >> 7 & (rows - 1)) << 4;
                      const std::size_t length = std::min<std::size_t>(16, box.size() - offset);
                      std::byte* const there = shared_memory(*block, place, static_cast<std::uint32_t>(length));
                      if (there == nullptr) warp.fault(in, "a box goes beyond the block's shared memory");
                      std::memcpy(there, box.data() + offset, length);
                      complete(warp, in, known, there, static_cast<std::uint32_t>(length), *told, 0);
                    }
                    complete(warp, in, known, nullptr, 0, *told, static_cast<std::uint32_t>(box.size()));
                  });
                });
  });
}
/// [to], values, [barrier]: to another block of the cluster. count: values; variant: bytes of one.
void store_later(Warp& warp, const Instruction& in, Mask lanes) {
  const Known known = known_of(warp);
  each_lane(lanes, [&](int lane) {
    const std::uint32_t bytes = static_cast<std::uint32_t>(in.variant) * in.count;
    std::byte* const to = warp.reach(in, Space::cluster, warp.address(in.operands[0], lane), bytes, lane);
    std::array<std::byte, 32> values{};
    for (int i = 0; i < in.count; ++i) {
      const std::uint64_t value = warp.get(in.operands[1 + i], lane);
      std::memcpy(values.data() + in.variant * i, &value, in.variant);
    }
    PhaseBarrier* const told = &barrier_at(warp, in, warp.address(in.operands[1 + in.count], lane), lane);
    warp.machine->later([&warp, &in, known, to, values, bytes, told] {
      std::memcpy(to, values.data(), bytes);
      complete(warp, in, known, to, bytes, *told, bytes);
    });
  });
}

bool decode_copies(const Written& written, Instruction& out) {
  const Opcode& op = written.opcode;
  const std::string_view what = op.parts[2];
  if (what == "commit_group") return out.execute = &commit, true;
  if (what == "wait_group")
    return out.extra = static_cast<std::uint32_t>(written.immediates[0]), out.execute = &wait_for_copies, true;
  if (what == "wait_all") return out.extra = ~0u, out.execute = &wait_for_copies, true;
  if (what == "mbarrier") return out.execute = &arrive_with_copies, op.has("noinc");
  const bool masked = op.has("multicast::cluster");
  if (what == "bulk") {
    if (!op.has("shared::cluster") || !op.has("global") || !op.has("mbarrier::complete_tx::bytes")) return false;
    out.count = masked ? 1 : 0;
    if (op.parts[3] != "tensor") return out.execute = &copy_bulk, true;
    out.variant = static_cast<std::uint8_t>(op.parts[4][0] - '0');
    return out.execute = &copy_box, op.has("tile") && written.operands[1].size() == out.variant + 1u;
  }
  if (what != "ca" && what != "cg") return false;
  out.variant = static_cast<std::uint8_t>(written.immediates[2]), out.count = written.operands.size() > 3 ? 1 : 0,
  out.execute = &copy_later;
  return written.operands.size() <= 4 && (out.variant == 4 || out.variant == 8 || out.variant == 16);
}

// ---------------------------------------------------------------- clusters

void arrive_at_cluster(Warp& warp, const Instruction&, Mask mask) {
  warp.cluster_phase = warp.block->cluster->phase;
  if (warp.races() != nullptr) warp.races()->tell(warp, warp.races()->cluster_told);
  warp.machine->cluster_arrived(*warp.block->cluster, static_cast<std::uint32_t>(__builtin_popcount(mask)));
}

}  // namespace

bool decode_waiting(const Written& written, Instruction& out) {
  const Opcode& op = written.opcode;
  const std::string_view base = op.parts[0];
  if (base == "mbarrier") return decode_phases(op, out);
  if (base == "cp") return op.parts[1] == "async" && decode_copies(written, out);
  if (base == "st" && op.has("async")) {
    out.count = op.has("v4")   ? 4
                : op.has("v2") ? 2
                               : 1,
    out.variant = op.type().ends_with("64") ? 8 : 4, out.execute = &store_later;
    return true;
  }
  if (base == "barrier" && op.has("cluster")) {
    if (op.has("aligned")) out.flow = Flow::together;
    out.execute = &arrive_at_cluster;
    if (op.has("wait")) out.flow = Flow::cluster_wait;
    return true;
  }
  if (base == "bar" || base == "barrier") {
    out.flow = Flow::barrier;
    out.variant = op.has("arrive") ? 1 : op.has("red") ? 2 : 0;
    out.extra = op.has("popc") ? 0 : op.has("or") ? 1 : 2;
    out.aligned = base == "bar" || op.has("aligned");
    return true;
  }
  if (base == "setmaxnreg") return out.flow = Flow::together, out.execute = &nothing, true;
  if (base == "griddepcontrol") return out.execute = &nothing, true;  // launches run one after the other
  if (base == "nanosleep") return out.execute = &yield, true;
  if (base == "trap") return out.execute = &trap, true;
  return false;
}

}  // namespace fathom::emulator
