#include "emulator/races.h"

#include <algorithm>

#include "emulator/machine.h"

namespace fathom::emulator {
namespace {

void join(Clock& to, const Clock& from) {
  if (to.size() < from.size()) to.resize(from.size());
  for (std::size_t i = 0; i < from.size(); ++i) to[i] = std::max(to[i], from[i]);
}
void join(Knowledge& to, const Knowledge& from) {
  for (const auto& [cluster, clock] : from) join(to[cluster], clock);
}
constexpr std::uint64_t kGranule = 16;  // bytes of global memory that are taken as one word

}  // namespace

// Actors: warps of the first block, of the second …, then their copies in the same order.
Races::Races(std::uint32_t number, std::size_t blocks, std::size_t warps, std::size_t shared_bytes, GlobalWords& global)
    : number_(number),
      warps_(warps),
      actors_(2 * blocks * warps),
      global_(global),
      knows_(blocks * warps),
      copies_(blocks * warps),
      words_(blocks, std::vector<Word>((shared_bytes + 3) / 4 + 1)) {
  for (std::size_t i = 0; i < knows_.size(); ++i) knows_[i][number_] = Clock(actors_), knows_[i][number_][i] = 1;
}
std::size_t Races::actor(const Warp& warp) const {
  return warp.block->rank * warps_ + static_cast<std::size_t>(warp.index);
}

void Races::report(const Warp& warp, const Instruction& in, std::size_t other, const char* did, std::uint32_t line,
                   std::size_t offset, Access access) const {
  const bool copy = other >= actors_ / 2;
  if (copy) other -= actors_ / 2;
  Instruction before;
  before.line = line;
  warp.fault(in, std::string("a race in shared memory, at ") + std::to_string(offset) + ": this " +
                     (access == Access::read ? "reads" : "writes") + " what " + (copy ? "a copy of " : "") + "warp " +
                     std::to_string(other % warps_) + " of block " + std::to_string(other / warps_) +
                     " of the cluster " + did + ", and nothing orders them [" + line_of(*warp.kernel, before) + "]");
}

void Races::check(Warp& warp, const Instruction& in, const Clock& clock, std::size_t self, Word& word,
                  std::uint8_t mask, std::size_t offset, Access access) {
  const bool both_atomic = access == Access::atomic && word.atomic;
  if ((word.write_mask & mask) != 0 && word.writer != self && clock[word.writer] < word.write_time && !both_atomic)
    report(warp, in, word.writer, "wrote", word.write_line, offset, access);
  if (access == Access::read) {
    const std::uint32_t now = self < knows_.size() ? clock[self] : copies_[self - knows_.size()];
    if (word.readers >= 0) {
      many_[static_cast<std::size_t>(word.readers)][self] = now;
    } else if (word.read_mask == 0 || word.reader == self || clock[word.reader] >= word.read_time) {
      word.reader = static_cast<std::uint16_t>(self), word.read_time = now, word.read_mask = 0;
    } else {
      word.readers = static_cast<std::int32_t>(many_.size());
      Clock& all = many_.emplace_back(actors_);
      all[word.reader] = word.read_time, all[self] = now;
    }
    word.read_mask |= mask, word.read_line = in.line;
    return;
  }
  if ((word.read_mask & mask) != 0) {
    if (word.readers >= 0) {
      Clock& all = many_[static_cast<std::size_t>(word.readers)];
      for (std::size_t other = 0; other < actors_; ++other)
        if (other != self && clock[other] < all[other]) report(warp, in, other, "read", word.read_line, offset, access);
    } else if (word.reader != self && clock[word.reader] < word.read_time) {
      report(warp, in, word.reader, "read", word.read_line, offset, access);
    }
  }
  if (word.readers >= 0 && mask == 0xf) std::ranges::fill(many_[static_cast<std::size_t>(word.readers)], 0);
  if (mask == 0xf) word.read_mask = 0;
  word.writer = static_cast<std::uint16_t>(self), word.write_mask = mask, word.write_line = in.line,
  word.atomic = access == Access::atomic;
  word.write_time = self < knows_.size() ? clock[self] : copies_[self - knows_.size()];
}

bool Races::touch(Warp& warp, const Instruction& in, const std::byte* at, std::uint32_t bytes, Access access) {
  const std::size_t self = actor(warp);
  const Clock& clock = clock_of(warp);
  for (std::size_t rank = 0; rank < words_.size(); ++rank) {
    const std::vector<std::byte>& shared = warp.block->cluster->blocks[rank]->shared;
    if (at < shared.data() || at >= shared.data() + shared.size()) continue;
    auto offset = static_cast<std::size_t>(at - shared.data());
    for (const std::size_t end = offset + bytes; offset < end;) {
      const std::size_t word = offset / 4, first = offset % 4, last = std::min(end - 4 * word, std::size_t{4});
      const auto mask = static_cast<std::uint8_t>(((1u << last) - 1) & ~((1u << first) - 1));
      check(warp, in, clock, self, words_[rank][word], mask, kSharedBase + offset, access);
      offset = 4 * (word + 1);
    }
    return true;
  }
  return false;
}
void Races::copied(Warp& warp, const Instruction& in, const Known& known, const std::byte* at, std::uint32_t bytes) {
  const std::size_t self = knows_.size() + actor(warp);
  const Clock& clock = known->at(number_);
  ++copies_[actor(warp)];
  for (std::size_t rank = 0; rank < words_.size(); ++rank) {
    const std::vector<std::byte>& shared = warp.block->cluster->blocks[rank]->shared;
    if (at < shared.data() || at >= shared.data() + shared.size()) continue;
    const auto offset = static_cast<std::size_t>(at - shared.data());
    for (std::size_t i = 0; i < bytes; i += 4) {
      Word& word = words_[rank][(offset + i) / 4];
      // A copy before it of the same warp is as strange to it as another's.
      if (word.writer == self && word.write_mask != 0 && clock[self] < word.write_time)
        report(warp, in, self, "wrote", word.write_line, kSharedBase + offset + i, Access::write);
      check(warp, in, clock, self, word, 0xf, kSharedBase + offset + i, Access::write);
    }
    return;
  }
}

Known Races::known(const Warp& warp) {
  auto out = std::make_shared<const Knowledge>(knows_[actor(warp)]);
  ++clock_of(warp)[actor(warp)];
  return out;
}
void Races::tell(const Warp& warp, Knowledge& to) {
  join(to, knows_[actor(warp)]);
  ++clock_of(warp)[actor(warp)];
}
void Races::learn(const Warp& warp, const Knowledge& from) { join(knows_[actor(warp)], from); }
void Races::tell_and_learn(const Warp& warp, const void* at, std::uint32_t bytes, bool tells) {
  const auto begin = reinterpret_cast<std::uint64_t>(at);
  for (std::uint64_t word = begin / kGranule; word <= (begin + bytes - 1) / kGranule; ++word) {
    if (const auto found = global_.find(word); found != global_.end()) learn(warp, found->second);
    if (tells) tell(warp, global_[word]);
  }
}
void Races::tell_barrier(const Warp& warp, const void* barrier) { tell(warp, barriers_[barrier].now); }
void Races::tell_barrier_of_copy(const Warp& warp, const Known& known, const void* barrier) {
  Knowledge& now = barriers_[barrier].now;
  join(now, *known);
  std::uint32_t& copies = now[number_][knows_.size() + actor(warp)];
  copies = std::max(copies, copies_[actor(warp)]);
}
void Races::learn_of_copies(const Warp& warp) { clock_of(warp)[knows_.size() + actor(warp)] = copies_[actor(warp)]; }
void Races::phase_ended(const void* barrier) {
  Told& told = barriers_[barrier];
  join(told.ended, told.now);
}
void Races::learn_from_barrier(const Warp& warp, const void* barrier) { learn(warp, barriers_[barrier].ended); }

}  // namespace fathom::emulator
