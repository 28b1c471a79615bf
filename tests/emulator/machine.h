// The machine while a kernel runs: warps, blocks, clusters, and what is under way.
#pragma once
#include <array>
#include <functional>
#include <unordered_map>

#include "emulator/kernel.h"
#include "emulator/races.h"

namespace fathom::emulator {

class Machine;
struct Block;

/// Addresses of shared memory: below 2^24 one's own block's, otherwise (rank + 1) << 24 | offset. As generic addresses
/// they carry kSharedWindow.
inline constexpr std::uint32_t kRankShift = 24, kSharedBase = 1024;
inline constexpr std::uint64_t kSharedWindow = std::uint64_t{1} << 62, kLocalWindow = std::uint64_t{1} << 61;

/// Lanes of a warp that are at the same instruction.
struct Fragment {
  std::uint32_t pc = 0;
  Mask mask = 0;
  bool stuck = false;        // at an instruction for which others have to come first
  std::int8_t barrier = -1;  // that it waits for; kClusterBarrier: the cluster's
};
inline constexpr int kBarriers = 16, kClusterBarrier = kBarriers;

/// Copies of cp.async that a lane has asked for, in its order.
struct LaneCopy {
  std::byte* to = nullptr;
  const std::byte* from = nullptr;
  std::uint8_t bytes = 0, valid = 0;
  Known known;  // when it was asked for
};
struct LaneCopies {
  std::vector<LaneCopy> all;
  std::vector<std::uint32_t> groups;  // how many of them each committed group has
  std::uint32_t open = 0;             // of no group yet
  void clear() { all.clear(), groups.clear(), open = 0; }
};

class Warp {
 public:
  template <class T>
  T* lanes(const Operand& operand) {
    return reinterpret_cast<T*>(registers + operand.at);
  }
  Mask& predicate(const Operand& operand) { return *reinterpret_cast<Mask*>(registers + operand.at); }
  Mask value(const Operand& predicate) { return this->predicate(predicate) ^ (predicate.negated ? kAll : 0); }
  /// An operand's value in a lane, zero-extended.
  std::uint64_t get(const Operand& operand, int lane) const {
    switch (operand.width) {
      case 2:
        return reinterpret_cast<const std::uint16_t*>(registers + operand.at)[lane];
      case 4:
        return reinterpret_cast<const std::uint32_t*>(registers + operand.at)[lane];
      default:
        return reinterpret_cast<const std::uint64_t*>(registers + operand.at)[lane];
    }
  }
  void set(const Operand& operand, int lane, std::uint64_t value) {
    switch (operand.width) {
      case 0:
        return;
      case 2:
        reinterpret_cast<std::uint16_t*>(registers + operand.at)[lane] = static_cast<std::uint16_t>(value);
        return;
      case 4:
        reinterpret_cast<std::uint32_t*>(registers + operand.at)[lane] = static_cast<std::uint32_t>(value);
        return;
      default:
        reinterpret_cast<std::uint64_t*>(registers + operand.at)[lane] = value;
    }
  }
  std::uint64_t address(const Operand& operand, int lane) const {
    return get(operand, lane) + static_cast<std::uint64_t>(operand.offset);
  }
  /// Host memory behind an address of a lane. Throws Fault where it is nobody's, or not aligned to `bytes`.
  std::byte* reach(const Instruction& instruction, Space space, std::uint64_t address, std::uint32_t bytes, int lane);
  /// The same for all lanes of a mask.
  void reach_all(const Instruction& instruction, const Operand& address, std::uint32_t bytes, Mask mask,
                 std::byte* (&out)[kLanes]);

  /// Runs up to `steps` instructions. False: it waits or has ended.
  bool run(int steps);
  void release(int barrier, std::uint32_t result);  // the barrier's lanes may go on
  [[noreturn]] void fault(const Instruction& instruction, const std::string& what) const;

  Machine* machine = nullptr;
  Block* block = nullptr;
  const Kernel* kernel = nullptr;
  std::byte* registers = nullptr;
  std::byte* local = nullptr;  // [lanes, local_bytes]
  int index = 0;               // in its block
  Mask live = 0;
  bool parked = false;              // until an mbarrier's phase ends
  bool yields = false;              // set by an instruction after which others should have their turn
  bool is_ready = false;            // in the machine's list
  std::uint32_t cluster_phase = 0;  // of the cluster's barrier, when it last arrived
  std::vector<Fragment> fragments;
  std::array<LaneCopies, kLanes> copies;
  /// What products of four warps that it has not waited for read: those of no group yet last.
  std::vector<std::vector<const std::byte*>> products{1};
  Races* races() const;  // null: not looked for

 private:
  int choose();
  void settle();
  bool step(Fragment& fragment);
  bool arrive(Fragment& fragment, const Instruction& instruction, Mask mask);
};

struct Barrier {
  std::uint32_t arrived = 0, result = 0;
  Knowledge told;
};
struct Cluster {
  std::vector<Block*> blocks;  // by rank
  std::uint32_t arrived = 0, phase = 0, live = 0;
  std::unique_ptr<Races> races;
};
struct Block {
  Dim3 index;
  Cluster* cluster = nullptr;
  std::uint32_t rank = 0, live = 0;  // threads
  std::vector<std::byte> shared;     // from kSharedBase on
  std::vector<std::byte> registers;  // of all warps
  std::vector<std::byte> local;
  std::vector<Warp> warps;
  std::array<Barrier, kBarriers> barriers;
};

class Machine {
 public:
  explicit Machine(const Launch& launch);
  ~Machine();
  void run();
  void ready(Warp& warp);
  void exited(Warp& warp, Mask lanes);
  /// The barrier has all its lanes: those that wait go on.
  void complete(Block& block, int barrier);
  /// The warp has nothing to do before the phase of an mbarrier ends.
  void park(Warp& warp, const void* barrier);
  void phase_ended(const void* barrier);
  void cluster_arrived(Cluster& cluster, std::uint32_t lanes);
  /// To be done at some time before anybody can need it.
  void later(std::function<void()> work) { under_way_.push_back(std::move(work)); }
  /// xorshift: that orders differ matters, not how random they are.
  std::uint32_t random() {
    random_ ^= random_ << 13, random_ ^= random_ >> 7, random_ ^= random_ << 17;
    return static_cast<std::uint32_t>(random_ >> 16);
  }
  GlobalWords global_words;    // for who looks for races
  std::uint64_t time = 0;      // instructions
  std::uint64_t progress = 0;  // of what others can see

 private:
  void begin_clusters();
  void begin(Block& block);
  void end(Cluster& cluster);
  void fill(Warp& warp);
  void finish_one();

  const Launch& launch_;
  std::byte* parameters_ = nullptr;
  std::uint32_t shared_bytes_ = 0, dynamic_at_ = 0;
  std::vector<std::byte> constants_;  // the beginning of every warp's registers
  std::size_t most_blocks_ = 0, next_cluster_ = 0, running_blocks_ = 0;
  std::vector<std::unique_ptr<Cluster>> clusters_;
  std::vector<std::unique_ptr<Block>> blocks_, spare_;
  std::vector<Warp*> ready_;
  std::vector<std::function<void()>> under_way_;
  std::unordered_map<const void*, std::vector<Warp*>> parked_;
  std::uint64_t random_;
};

inline Races* Warp::races() const { return block->cluster->races.get(); }

/// Host memory behind a shared address that `block` uses; null where it is nobody's.
std::byte* shared_memory(Block& block, std::uint64_t address, std::uint32_t bytes);

/// An mbarrier, in its eight bytes.
struct PhaseBarrier {
  std::uint64_t phase : 1, expected : 20, pending : 20;
  std::int64_t bytes : 23;
  /// Ends the phase if nothing is awaited: true.
  bool settle() {
    if (pending != 0 || bytes != 0) return false;
    phase = phase ^ 1u, pending = expected;
    return true;
  }
};
static_assert(sizeof(PhaseBarrier) == 8);

}  // namespace fathom::emulator
