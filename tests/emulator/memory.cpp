// Loads, stores, atomics, and the memory that they may touch.
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <map>

#include "emulator/lanes.h"

namespace fathom::emulator {
namespace {

/// Never destroyed, like lock(): kernels are given back as the process ends.
std::map<std::uintptr_t, Allocation>& allocations() {
  static auto& all = *new std::map<std::uintptr_t, Allocation>;
  return all;
}
std::uint64_t on_device = 0;
Allocation last;  // found: most accesses are to it again

}  // namespace

std::recursive_mutex& lock() {
  static auto& one = *new std::recursive_mutex;
  return one;
}
const Limits& limits() {
  static const Limits all = [] {
    Limits out;
    if (const char* asked = std::getenv("FATHOM_EMULATED_SMS"); asked != nullptr)
      out.multiprocessors = std::clamp(std::atoi(asked), 1, 256);
    return out;
  }();
  return all;
}
std::byte* allocate(std::uint64_t bytes, Place place) {
  bytes = std::max<std::uint64_t>(bytes, 1);
  if (place == Place::device && on_device + bytes > limits().memory) return nullptr;
  // From one stretch of addresses, as a device's are: the heap lies far from what it maps.
  void* const mapped = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  auto* const data = static_cast<std::byte*>(mapped);
  // 3.4e38 as f32 and bf16, NaN as e4m3; of large ones only the beginning, for filling takes long.
  std::memset(data, 0x7f, std::min<std::uint64_t>(bytes, std::uint64_t{1} << 24));
  allocations()[reinterpret_cast<std::uintptr_t>(data)] = {data, bytes, place};
  if (place == Place::device) on_device += bytes;
  return data;
}
bool release(std::byte* data) {
  const auto found = allocations().find(reinterpret_cast<std::uintptr_t>(data));
  if (found == allocations().end()) return false;
  if (found->second.place == Place::device) on_device -= found->second.bytes;
  const std::uint64_t bytes = found->second.bytes;
  allocations().erase(found);
  last = {};
  ::munmap(data, bytes);
  return true;
}
std::optional<Allocation> find(const void* address) {
  const auto at = reinterpret_cast<std::uintptr_t>(address);
  auto found = allocations().upper_bound(at);
  if (found == allocations().begin()) return std::nullopt;
  --found;
  if (at - found->first >= found->second.bytes) return std::nullopt;
  return found->second;
}
std::uint64_t allocated_on_device() { return on_device; }

std::byte* shared_memory(Block& block, std::uint64_t address, std::uint32_t bytes) {
  if (address > 0xffffffffu) return nullptr;
  Block* owner = &block;
  if (const auto rank = static_cast<std::uint32_t>(address) >> kRankShift; rank != 0) {
    if (rank > block.cluster->blocks.size()) return nullptr;
    owner = block.cluster->blocks[rank - 1];
  }
  const std::uint32_t offset = static_cast<std::uint32_t>(address) & ((1u << kRankShift) - 1);
  if (offset < kSharedBase || offset - kSharedBase + bytes > owner->shared.size()) return nullptr;
  return owner->shared.data() + (offset - kSharedBase);
}

std::byte* Warp::reach(const Instruction& in, Space space, std::uint64_t address, std::uint32_t bytes, int lane) {
  if (space == Space::generic) {
    if ((address & kSharedWindow) != 0)
      space = Space::shared, address &= ~kSharedWindow;
    else if ((address & kLocalWindow) != 0)
      space = Space::local, address &= ~kLocalWindow;
    else
      space = Space::global;
  }
  if (address % std::min(bytes, 16u) != 0)
    fault(in,
          "lane " + std::to_string(lane) + ": an address that is not aligned to " + std::to_string(bytes) + " bytes");
  if (space == Space::shared || space == Space::cluster) {
    if (std::byte* const at = shared_memory(*block, address, bytes); at != nullptr) return at;
    fault(in, "lane " + std::to_string(lane) + ": shared memory at " + std::to_string(address) +
                  " is outside of what the block has");
  }
  if (space == Space::local) {
    if (address + bytes > kernel->local_bytes)
      fault(in, "lane " + std::to_string(lane) + ": local memory outside of what there is");
    return local + static_cast<std::uint64_t>(lane) * kernel->local_bytes + address;
  }
  const auto begin = reinterpret_cast<std::uintptr_t>(last.data);
  if (address < begin || address - begin + bytes > last.bytes) {
    const std::optional<Allocation> found = find(reinterpret_cast<const void*>(address));
    if (!found || address - reinterpret_cast<std::uintptr_t>(found->data) + bytes > found->bytes)
      fault(in, "lane " + std::to_string(lane) + ": global memory that is nobody's");
    last = *found;
  }
  return reinterpret_cast<std::byte*>(address);
}

void Warp::reach_all(const Instruction& in, const Operand& operand, std::uint32_t bytes, Mask mask,
                     std::byte* (&out)[kLanes]) {
  const auto offset = static_cast<std::uint64_t>(operand.offset);
  const auto begin = reinterpret_cast<std::uintptr_t>(last.data),
             ones = static_cast<std::uintptr_t>(std::min(bytes, 16u) - 1);
  const bool plain = in.space == Space::global && operand.width == 8;
  each_lane(mask, [&](int lane) {
    const std::uint64_t address =
        (operand.width == 8 ? lanes<std::uint64_t>(operand)[lane] : get(operand, lane)) + offset;
    // Most accesses are to the allocation of the one before.
    if (plain && address >= begin && address - begin + bytes <= last.bytes && (address & ones) == 0)
      out[lane] = reinterpret_cast<std::byte*>(address);
    else
      out[lane] = reach(in, in.space, address, bytes, lane);
  });
}

namespace {

/// Tells who looks for races of what a lane touches; tells: it writes.
void touch(Warp& warp, const Instruction& in, const std::byte* at, std::uint32_t bytes, Access access, bool tells) {
  if (warp.races() == nullptr || in.space == Space::parameter || in.space == Space::local) return;
  if (in.space != Space::global && warp.races()->touch(warp, in, at, bytes, access)) return;
  if (access == Access::atomic) warp.races()->tell_and_learn(warp, at, bytes, tells);
}
void touch(Warp& warp, const Instruction& in, std::byte* const (&at)[kLanes], std::uint32_t bytes, Mask mask,
           Access access, bool tells) {
  if (warp.races() != nullptr) each_lane(mask, [&](int lane) { touch(warp, in, at[lane], bytes, access, tells); });
}

/// An element of memory, `bytes` long, with its sign where it has one.
template <bool Signed>
std::uint64_t read_element(const std::byte* from, unsigned bytes) {
  std::uint64_t value = 0;
  std::memcpy(&value, from, bytes);
  if constexpr (Signed) {
    const unsigned shift = 64 - 8 * bytes;
    value = static_cast<std::uint64_t>(static_cast<std::int64_t>(value << shift) >> shift);
  }
  return value;
}

/// variant: bytes of an element.
template <bool Signed>
void load(Warp& warp, const Instruction& in, Mask mask) {
  const unsigned bytes = in.variant;
  const Operand& from = in.operands[in.count];
  std::byte* at[kLanes];
  warp.reach_all(in, from, bytes * in.count, mask, at);
  touch(warp, in, at, bytes * in.count, mask, in.polls ? Access::atomic : Access::read, false);
  for (int i = 0; i < in.count; ++i) {
    const Operand& to = in.operands[i];
    if (to.width == 4 && bytes == 4) {
      auto* const out = warp.lanes<std::uint32_t>(to);
      each_lane(mask, [&](int lane) { std::memcpy(out + lane, at[lane] + 4 * i, 4); });
      continue;
    }
    for (int lane = 0; lane < kLanes; ++lane)
      if ((mask >> lane & 1u) != 0)
        warp.set(to, lane, read_element<Signed>(at[lane] + bytes * static_cast<unsigned>(i), bytes));
  }
}
void keep(Warp& warp, const Instruction& in, Mask mask) {
  const unsigned bytes = in.variant;
  std::byte* at[kLanes];
  warp.reach_all(in, in.operands[0], bytes * in.count, mask, at);
  touch(warp, in, at, bytes * in.count, mask, in.polls ? Access::atomic : Access::write, true);
  for (int i = 0; i < in.count; ++i)
    each_lane(mask, [&](int lane) {
      const std::uint64_t value = warp.get(in.operands[1 + i], lane);
      std::memcpy(at[lane] + bytes * static_cast<unsigned>(i), &value, bytes);
    });
  ++warp.machine->progress;
}

enum class Atomic : std::uint8_t { add, exch, cas, min, max, inc, dec, conjunction, disjunction, difference };
constexpr std::string_view kAtomics[] = {"add", "exch", "cas", "min", "max", "inc", "dec", "and", "or", "xor"};

template <class T>
T changed(Atomic what, T old, T b, T c) {
  switch (what) {
    case Atomic::add:
      return static_cast<T>(old + b);
    case Atomic::exch:
      return b;
    case Atomic::cas:
      return old == b ? c : old;
    case Atomic::min:
      return std::min(old, b);
    case Atomic::max:
      return std::max(old, b);
    case Atomic::inc:
      return old >= b ? T{0} : static_cast<T>(old + 1);
    case Atomic::dec:
      return old == 0 || old > b ? b : static_cast<T>(old - 1);
    default:
      break;
  }
  if constexpr (std::is_integral_v<T>)
    return what == Atomic::conjunction ? old & b : what == Atomic::disjunction ? old | b : old ^ b;
  return old;
}
/// count: 1 where the old value is wanted (atom), 0 for red. variant: what.
template <class T>
void change(Warp& warp, const Instruction& in, Mask mask) {
  const Operand* const from = in.operands + in.count;
  each_lane(mask, [&](int lane) {
    std::byte* const at = warp.reach(in, in.space, warp.address(from[0], lane), sizeof(T), lane);
    touch(warp, in, at, sizeof(T), Access::atomic, true);
    const auto value = [&](const Operand& operand) {
      const std::uint64_t bits = warp.get(operand, lane);
      T out{};
      std::memcpy(&out, &bits, sizeof out);
      return out;
    };
    T old{};
    std::memcpy(&old, at, sizeof old);
    const auto what = static_cast<Atomic>(in.variant);
    const T now = changed(what, old, value(from[1]), what == Atomic::cas ? value(from[2]) : T{});
    std::memcpy(at, &now, sizeof now);
    if (in.count == 0) return;
    std::uint64_t bits = 0;
    std::memcpy(&bits, &old, sizeof old);
    warp.set(in.operands[0], lane, bits);
  });
  ++warp.machine->progress;
}
bool decode_atomic(const Written& written, Instruction& out) {
  const Opcode& op = written.opcode;
  bool known = false;
  for (std::size_t a = 0; a < std::size(kAtomics); ++a)
    for (std::size_t p = 1; p + 1 < op.parts.size(); ++p)
      if (op.parts[p] == kAtomics[a]) out.variant = static_cast<std::uint8_t>(a), known = true;
  out.count = op.parts[0] == "atom" ? 1 : 0;
  out.polls = true;
  const auto choose = [](auto t) { return Execute(&change<decltype(t)>); };
  out.execute = by_integer(op.type(), choose);
  if (out.execute == nullptr) out.execute = by_real(op.type(), choose);
  return known && out.execute != nullptr;
}
Space space_of(const Opcode& op) {
  for (const std::string_view part : op.parts) {
    if (part == "global" || part == "const") return Space::global;
    if (part == "shared" || part == "shared::cta") return Space::shared;
    if (part == "shared::cluster") return Space::cluster;
    if (part == "local") return Space::local;
    if (part == "param") return Space::parameter;
  }
  return Space::generic;
}

}  // namespace

bool decode_memory(const Written& written, Instruction& out) {
  const Opcode& op = written.opcode;
  const std::string_view base = op.parts[0];
  if (base == "prefetch" || base == "prefetchu" || base == "membar" || base == "fence" || base == "createpolicy")
    return out.execute = &nothing, true;
  if (base != "ld" && base != "st" && base != "atom" && base != "red") return false;
  if (base == "st" && op.has("async")) return false;
  if (base == "red" && op.has("async")) return false;
  out.space = space_of(op);
  if (base == "atom" || base == "red") return decode_atomic(written, out);
  const std::string_view type = op.type();
  const unsigned bytes = type.ends_with("64")   ? 8
                         : type.ends_with("32") ? 4
                         : type.ends_with("16") ? 2
                         : type.ends_with("8")  ? 1
                                                : 0;
  if (bytes == 0) return false;
  out.variant = static_cast<std::uint8_t>(bytes);
  out.count = op.has("v4") ? 4 : op.has("v2") ? 2 : op.has("v8") ? 8 : 1;
  if (written.operands[base == "ld" ? 0 : 1].size() != out.count) return false;
  out.polls = op.has("volatile") || op.has("relaxed") || op.has("acquire");
  out.execute = base == "st" ? &keep : type.starts_with("s") ? &load<true> : &load<false>;
  return true;
}

}  // namespace fathom::emulator
