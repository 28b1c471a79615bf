// Whether accesses to shared memory that touch the same bytes are ordered: by barriers of the block and of the cluster,
// by mbarriers, by waiting for copies, and by words of global memory that are written and read atomically (or
// volatile), however weakly. Warps are taken as one (lanes of a warp are not told apart); so are the copies that a warp
// has asked for, which are somebody else than the warp until it waits for them. Every warp knows of each other how far
// that one had come when it last told (vector clocks: Flanagan and Freund, FastTrack, 2009). On with
// FATHOM_EMULATED_RACES=1: a race is a fault.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "emulator/kernel.h"

namespace fathom::emulator {

struct Block;
class Warp;

using Clock = std::vector<std::uint32_t>;  // by actor of a cluster
/// How far the actors of clusters had come when somebody last heard of them.
using Knowledge = std::map<std::uint32_t, Clock>;  // by the cluster's number
/// What somebody knew at a time.
using Known = std::shared_ptr<const Knowledge>;
/// What was told through words of global memory, by their address.
using GlobalWords = std::unordered_map<std::uint64_t, Knowledge>;

enum class Access : std::uint8_t { read, write, atomic };  // atomic: volatile too

class Races {
 public:
  /// For the cluster `number`, of `blocks` blocks of `warps` warps.
  Races(std::uint32_t number, std::size_t blocks, std::size_t warps, std::size_t shared_bytes, GlobalWords& global);

  /// A warp touches shared memory of a block of its cluster. False: it is none.
  bool touch(Warp& warp, const Instruction& in, const std::byte* at, std::uint32_t bytes, Access access);
  /// A copy that a warp asked for when it knew `known` writes.
  void copied(Warp& warp, const Instruction& in, const Known& known, const std::byte* at, std::uint32_t bytes);

  /// What the warp knows now, for a copy that it asks for.
  Known known(const Warp& warp);
  /// The warp tells `clock` what it knows, and goes on.
  void tell(const Warp& warp, Knowledge& to);
  /// The warp learns what somebody knows.
  void learn(const Warp& warp, const Knowledge& from);
  /// Both, by atomic accesses to global memory.
  void tell_and_learn(const Warp& warp, const void* at, std::uint32_t bytes, bool tells);

  /// The same with an mbarrier: what was told before its phase ended is learnt by who sees the end.
  void tell_barrier(const Warp& warp, const void* barrier);
  /// The warp has waited for its copies (cp.async) that have written.
  void learn_of_copies(const Warp& warp);
  void tell_barrier_of_copy(const Warp& warp, const Known& known, const void* barrier);
  void phase_ended(const void* barrier);
  void learn_from_barrier(const Warp& warp, const void* barrier);

  Knowledge cluster_told, cluster_ended;  // of the cluster's barrier: this phase's, and those that have ended

 private:
  /// Four bytes, which of them are meant, and who touched them last.
  struct Word {
    std::uint32_t write_time = 0, read_time = 0, write_line = 0, read_line = 0;
    std::uint16_t writer = 0, reader = 0;
    std::uint8_t write_mask = 0, read_mask = 0;
    bool atomic = false;
    std::int32_t readers = -1;  // of more than one: in many_
  };
  struct Told {
    Knowledge now, ended;
  };
  Clock& clock_of(const Warp& warp) { return knows_[actor(warp)][number_]; }
  std::size_t actor(const Warp& warp) const;
  void check(Warp& warp, const Instruction& in, const Clock& clock, std::size_t self, Word& word, std::uint8_t mask,
             std::size_t offset, Access access);
  [[noreturn]] void report(const Warp& warp, const Instruction& in, std::size_t other, const char* did,
                           std::uint32_t line, std::size_t offset, Access access) const;

  std::uint32_t number_;
  std::size_t warps_, actors_;
  GlobalWords& global_;
  std::vector<Knowledge> knows_;          // by warp
  std::vector<std::uint32_t> copies_;     // by warp: how many have written
  std::vector<std::vector<Word>> words_;  // by block
  std::vector<Clock> many_;
  std::unordered_map<const void*, Told> barriers_;
};

}  // namespace fathom::emulator
