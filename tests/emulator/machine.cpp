// Warps take turns: which and how long is drawn from a seed (FATHOM_EMULATED_SEED), so that other seeds show other
// orders of what is not ordered.
#include "emulator/machine.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace fathom::emulator {
namespace {

constexpr std::uint64_t kPatience = 3'000'000;  // turns without anything that others could see
constexpr int kLongTurn = 256, kPollingTurn = 4;

std::uint32_t count(Mask mask) { return static_cast<std::uint32_t>(std::popcount(mask)); }
std::uint32_t seed() {
  const char* const asked = std::getenv("FATHOM_EMULATED_SEED");
  static std::uint32_t launches = 0;  // each in an order of its own
  return (asked != nullptr ? static_cast<std::uint32_t>(std::strtoul(asked, nullptr, 10)) : 1) + 1000 * launches++;
}

bool is_set(const char* name) {
  const char* const value = std::getenv(name);
  return value != nullptr && std::strcmp(value, "0") != 0;
}
bool& looks_for_races() {
  static bool looks = is_set("FATHOM_EMULATED_RACES");
  return looks;
}

}  // namespace

// ---------------------------------------------------------------- warps

void Warp::fault(const Instruction& in, const std::string& what) const {
  std::string name = kernel->name;
  throw Fault(what + " (" + name.substr(0, 200) + ", block " + std::to_string(block->index.x) + "," +
              std::to_string(block->index.y) + "," + std::to_string(block->index.z) + ", warp " +
              std::to_string(index) + ": " + line_of(*kernel, in) + ")");
}

/// The fragment that goes on: the one that is furthest behind, so that lanes meet again where paths join; -1: none can.
int Warp::choose() {
  int best = -1;
  const bool any =
      fragments.size() > 1 && machine->random() % 8 == 0;  // lanes may wait for lanes that are ahead of them
  for (int i = 0; i < static_cast<int>(fragments.size()); ++i) {
    const Fragment& one = fragments[static_cast<std::size_t>(i)];
    if (one.stuck || one.barrier >= 0) continue;
    if (best < 0 || (any ? machine->random() % 2 == 0 : one.pc < fragments[static_cast<std::size_t>(best)].pc))
      best = i;
  }
  return best;
}
/// Lanes that are at the same instruction become one fragment.
void Warp::settle() {
  for (std::size_t i = 0; i < fragments.size(); ++i) {
    if (fragments[i].mask == 0) {
      fragments.erase(fragments.begin() + static_cast<std::ptrdiff_t>(i--));
      continue;
    }
    for (std::size_t j = i + 1; j < fragments.size();) {
      if (fragments[j].pc != fragments[i].pc || fragments[j].barrier >= 0 || fragments[i].barrier >= 0) {
        ++j;
        continue;
      }
      fragments[i].mask |= fragments[j].mask, fragments[i].stuck = false;
      fragments.erase(fragments.begin() + static_cast<std::ptrdiff_t>(j));
    }
  }
}

bool Warp::run(int steps) {
  yields = parked = false;
  int now = choose();
  while (steps > 0 && !yields) {
    if (now < 0) {
      for (const Fragment& one : fragments)
        if (one.barrier >= 0) return false;
      if (fragments.empty()) return false;
      fault(kernel->code[fragments[0].pc], "lanes of a warp wait for lanes that never come");
    }
    const bool alone = fragments.size() == 1;
    Fragment& fragment = fragments[static_cast<std::size_t>(now)];
    const std::uint32_t before = fragment.pc;
    const bool polls = kernel->code[before].polls;
    const bool goes_on = step(fragment);
    --steps, ++machine->time;
    if (polls) steps = std::min(steps, kPollingTurn);
    if (fragments.empty()) return false;
    if (alone && fragments.size() == 1 && goes_on) continue;
    settle();
    now = choose();
  }
  return !fragments.empty() && !parked;
}

/// False: the fragment cannot go on by itself, or has come apart.
bool Warp::step(Fragment& fragment) {
  const Instruction& in = kernel->code[fragment.pc];
  Mask mask = fragment.mask;
  if (!in.unguarded) mask &= value(in.operands[in.guard]);
  switch (in.flow) {
    case Flow::plain:
      if (mask != 0) in.execute(*this, in, mask);
      ++fragment.pc;
      return true;
    case Flow::branch: {
      const Mask stays = fragment.mask & ~mask;
      if (mask == 0) {
        ++fragment.pc;
      } else if (stays == 0) {
        fragment.pc = in.target;
      } else {
        const Fragment gone{.pc = in.target, .mask = mask};
        ++fragment.pc, fragment.mask = stays;
        fragments.push_back(gone);
        return false;
      }
      return fragments.size() == 1;
    }
    case Flow::leave: {
      live &= ~mask;
      fragment.mask &= ~mask;
      ++fragment.pc;
      for (Fragment& other : fragments) other.stuck = false;
      if (mask != 0) machine->exited(*this, mask);
      std::erase_if(fragments, [](const Fragment& one) { return one.mask == 0; });
      return false;
    }
    case Flow::together: {
      Mask needed = live;
      if (in.members >= 0) needed = static_cast<Mask>(get(in.operands[in.members], std::countr_zero(fragment.mask)));
      // A guard that is off for some lanes takes them out.
      if ((needed & live & ~fragment.mask) != 0 && mask != 0) {
        fragment.stuck = true;
        return false;
      }
      if (mask != 0) in.execute(*this, in, mask);
      ++fragment.pc;
      return true;
    }
    case Flow::barrier:
      if (mask == 0) {
        ++fragment.pc;
        return true;
      }
      if (in.aligned && (live & ~fragment.mask) != 0) {
        fragment.stuck = true;
        return false;
      }
      return arrive(fragment, in, mask);
    case Flow::cluster_wait:
      if (block->cluster->phase == cluster_phase) {
        fragment.barrier = kClusterBarrier;
        return false;
      }
      if (races() != nullptr) races()->learn(*this, races()->cluster_ended);
      ++fragment.pc;
      return true;
  }
  return false;
}

bool Warp::arrive(Fragment& fragment, const Instruction& in, Mask mask) {
  if (mask != fragment.mask) fault(in, "a barrier for some lanes of those that are at it");
  const int first = std::countr_zero(mask);
  const bool reduces = in.variant == 2;
  const Operand* const operands = in.operands + (reduces ? 1 : 0);
  const int given = in.operand_count - (reduces ? 2 : 0);  // the barrier's number, and how many threads
  const std::uint64_t id = get(operands[0], first), asked = given > 1 ? get(operands[1], first) : 0;
  if (id >= kBarriers) fault(in, "a barrier's number is " + std::to_string(id));
  Barrier& barrier = block->barriers[id];
  const std::uint64_t all = asked != 0 ? asked : block->live;
  if (asked % kLanes != 0) fault(in, "a barrier for " + std::to_string(asked) + " threads");
  barrier.arrived += count(mask);
  if (races() != nullptr) races()->tell(*this, barrier.told);
  if (barrier.arrived > all) fault(in, "more arrive at a barrier than it is for");
  if (reduces) {
    const Mask ayes = value(in.operands[in.operand_count - 1]) & mask;
    if (in.extra == 2) fault(in, "bar.red.and is not known here");
    barrier.result += count(ayes);
  }
  if (in.variant == 1) {
    ++fragment.pc;
    if (barrier.arrived == all) machine->complete(*block, static_cast<int>(id));
    return true;
  }
  fragment.barrier = static_cast<std::int8_t>(id);
  if (barrier.arrived == all) {
    machine->complete(*block, static_cast<int>(id));
    return true;
  }
  return false;
}
void Warp::release(int barrier, std::uint32_t result) {
  for (Fragment& one : fragments) {
    if (one.barrier != barrier) continue;
    one.barrier = -1;
    if (barrier == kClusterBarrier && races() != nullptr) races()->learn(*this, races()->cluster_ended);
    const Instruction& in = kernel->code[one.pc++];
    if (barrier != kClusterBarrier && in.variant == 2) {
      const Operand& to = in.operands[0];
      if (in.extra == 1) {
        Mask& p = predicate(to);
        p = (p & ~one.mask) | (result != 0 ? one.mask : 0);
      } else {
        for (int lane = 0; lane < kLanes; ++lane)
          if ((one.mask >> lane & 1u) != 0) set(to, lane, result);
      }
    }
    machine->ready(*this);
  }
}

// ---------------------------------------------------------------- the machine

Machine::Machine(const Launch& launch) : launch_(launch), random_(seed() * 0x9e3779b97f4a7c15ull | 1) {
  const Kernel& kernel = *launch.kernel;
  parameters_ = allocate(std::max<std::size_t>(launch.parameters.size(), 16), Place::host);
  if (parameters_ == nullptr) throw Fault("no memory for a launch's parameters");
  if (!launch.parameters.empty()) std::memcpy(parameters_, launch.parameters.data(), launch.parameters.size());
  dynamic_at_ = (kSharedBase + kernel.traits.shared_bytes + kernel.dynamic_alignment - 1) / kernel.dynamic_alignment *
                kernel.dynamic_alignment;
  shared_bytes_ = dynamic_at_ - kSharedBase + launch.dynamic_shared;
  const std::size_t of_cluster = launch.cluster.count();
  // As many as fit at once, in whole clusters; one cluster at the least.
  const auto fit =
      static_cast<std::size_t>(blocks_at_once(kernel, static_cast<int>(launch.block.count()), launch.dynamic_shared)) *
      static_cast<std::size_t>(limits().multiprocessors);
  most_blocks_ = std::max(of_cluster, fit / of_cluster * of_cluster);
}
Machine::~Machine() { release(parameters_); }

void Machine::ready(Warp& warp) {
  if (warp.is_ready) return;
  warp.is_ready = true;
  ready_.push_back(&warp);
}
void Machine::park(Warp& warp, const void* barrier) {
  if (warp.fragments.size() > 1) return;  // other lanes may have to do what it waits for
  warp.parked = true;
  parked_[barrier].push_back(&warp);
}
void Machine::phase_ended(const void* barrier) {
  const auto found = parked_.find(barrier);
  if (found == parked_.end()) return;
  for (Warp* const warp : found->second) ready(*warp);
  parked_.erase(found);
}
void Machine::complete(Block& block, int barrier) {
  Barrier& one = block.barriers[static_cast<std::size_t>(barrier)];
  const Barrier done = std::exchange(one, {});
  for (Warp& warp : block.warps) {
    if (warp.races() != nullptr &&
        std::ranges::find(warp.fragments, barrier, &Fragment::barrier) != warp.fragments.end())
      warp.races()->learn(warp, done.told);
    warp.release(barrier, done.result);
  }
  ++progress;
}
void Machine::cluster_arrived(Cluster& cluster, std::uint32_t lanes) {
  cluster.arrived += lanes;
  if (cluster.arrived < cluster.live || cluster.live == 0) return;
  cluster.arrived = 0, ++cluster.phase, ++progress;
  if (cluster.races != nullptr) cluster.races->cluster_ended = cluster.races->cluster_told;
  for (Block* const block : cluster.blocks)
    for (Warp& warp : block->warps) warp.release(kClusterBarrier, 0);
}
void Machine::exited(Warp& warp, Mask lanes) {
  Block& block = *warp.block;
  block.live -= count(lanes), block.cluster->live -= count(lanes);
  ++progress;
  // Barriers of all threads no longer wait for these.
  for (int b = 0; b < kBarriers; ++b) {
    const Barrier& barrier = block.barriers[static_cast<std::size_t>(b)];
    if (barrier.arrived == 0 || barrier.arrived != block.live) continue;
    for (const Warp& other : block.warps)
      for (const Fragment& one : other.fragments)
        if (one.barrier == b) {
          const Instruction& in = other.kernel->code[one.pc];
          if (in.operand_count - (in.variant == 2 ? 2 : 0) == 1) return complete(block, b);
        }
  }
  cluster_arrived(*block.cluster, 0);
}

namespace {

Dim3 index_of(std::size_t number, Dim3 grid) {
  return {static_cast<unsigned>(number % grid.x), static_cast<unsigned>(number / grid.x % grid.y),
          static_cast<unsigned>(number / grid.x / grid.y)};
}

std::uint64_t value_of(const Filled& one, const Warp& warp, int lane, const Launch& launch, const std::byte* parameters,
                       std::uint32_t dynamic_at) {
  const auto axis = [&](Dim3 of) { return one.axis == 0 ? of.x : one.axis == 1 ? of.y : of.z; };
  const unsigned thread = static_cast<unsigned>(warp.index * kLanes + lane);
  const Dim3 block = launch.block;
  switch (one.what) {
    case Filled::What::constant:
      return one.value;
    case Filled::What::tid:
      return axis({thread % block.x, thread / block.x % block.y, thread / block.x / block.y});
    case Filled::What::ntid:
      return axis(block);
    case Filled::What::ctaid:
      return axis(warp.block->index);
    case Filled::What::nctaid:
      return axis(launch.grid);
    case Filled::What::lane:
      return static_cast<std::uint64_t>(lane);
    case Filled::What::warp:
      return static_cast<std::uint64_t>(warp.index);
    case Filled::What::cluster_rank:
      return warp.block->rank;
    case Filled::What::cluster_size:
      return warp.block->cluster->blocks.size();
    case Filled::What::cluster_id:
      return warp.block->index.x / launch.cluster.x;
    case Filled::What::parameter:
      return reinterpret_cast<std::uint64_t>(parameters) + one.value;
    case Filled::What::shared:
      return kSharedBase + one.value;
    case Filled::What::dynamic_shared:
      return dynamic_at;
    case Filled::What::local:
      return one.value;
  }
  return 0;
}

}  // namespace

/// Registers as they are when a kernel begins: constants are copied, the rest is the warp's own.
void Machine::fill(Warp& warp) {
  const Kernel& kernel = *launch_.kernel;
  if (constants_.empty() && kernel.filled_bytes > 0) {
    constants_.resize(kernel.filled_bytes);
    for (const Filled& one : kernel.filled) {
      if (one.what != Filled::What::constant) continue;
      for (int lane = 0; lane < kLanes && one.width > 1; ++lane)
        std::memcpy(constants_.data() + one.at + lane * one.width, &one.value, one.width);
      if (one.width == 1) std::memcpy(constants_.data() + one.at, &one.value, sizeof(Mask));
    }
  }
  if (kernel.filled_bytes > 0) std::memcpy(warp.registers, constants_.data(), constants_.size());
  for (const Filled& one : kernel.filled) {
    if (one.what == Filled::What::constant) continue;
    for (int lane = 0; lane < kLanes; ++lane)
      warp.set({.at = one.at, .width = one.width}, lane, value_of(one, warp, lane, launch_, parameters_, dynamic_at_));
  }
}
/// Its warps. What nobody wrote in shared and local memory is large.
void Machine::begin(Block& block) {
  const Kernel& kernel = *launch_.kernel;
  const std::uint32_t threads = launch_.block.count(), warps = (threads + kLanes - 1) / kLanes;
  block.live = threads;
  block.shared.assign(shared_bytes_, std::byte{0x7f});
  block.registers.resize(static_cast<std::size_t>(warps) * kernel.register_bytes + 64);
  block.local.assign(static_cast<std::size_t>(threads + kLanes) * kernel.local_bytes, std::byte{0x7f});
  block.barriers = {};
  block.warps.resize(warps);
  auto* const aligned =
      reinterpret_cast<std::byte*>((reinterpret_cast<std::uintptr_t>(block.registers.data()) + 63) / 64 * 64);
  for (std::uint32_t w = 0; w < warps; ++w) {
    Warp& warp = block.warps[w];
    warp.machine = this, warp.block = &block, warp.kernel = &kernel, warp.index = static_cast<int>(w);
    warp.registers = aligned + static_cast<std::size_t>(w) * kernel.register_bytes;
    warp.local = block.local.data() + static_cast<std::size_t>(w) * kLanes * kernel.local_bytes;
    const std::uint32_t lanes = std::min<std::uint32_t>(kLanes, threads - w * kLanes);
    warp.live = lanes == kLanes ? kAll : (1u << lanes) - 1;
    warp.fragments.assign(1, {.pc = 0, .mask = warp.live});
    for (LaneCopies& copies : warp.copies) copies.clear();
    warp.products.assign(1, {});
    fill(warp);
    ready(warp);
  }
}

void Machine::begin_clusters() {
  const Dim3 grid = launch_.grid, of = launch_.cluster;
  const Dim3 clusters{grid.x / of.x, grid.y / of.y, grid.z / of.z};
  while (next_cluster_ < clusters.count() && running_blocks_ + of.count() <= most_blocks_) {
    const Dim3 first = index_of(next_cluster_++, clusters);
    auto cluster = std::make_unique<Cluster>();
    for (unsigned rank = 0; rank < of.count(); ++rank) {
      const Dim3 inside = index_of(rank, of);
      std::unique_ptr<Block> block;
      if (spare_.empty())
        block = std::make_unique<Block>();
      else
        block = std::move(spare_.back()), spare_.pop_back();
      block->index = {first.x * of.x + inside.x, first.y * of.y + inside.y, first.z * of.z + inside.z};
      block->cluster = cluster.get(), block->rank = rank;
      cluster->blocks.push_back(block.get());
      blocks_.push_back(std::move(block));
      ++running_blocks_;
    }
    if (looks_for_races())
      cluster->races =
          std::make_unique<Races>(static_cast<std::uint32_t>(next_cluster_), cluster->blocks.size(),
                                  (launch_.block.count() + kLanes - 1) / kLanes, shared_bytes_, global_words);
    for (Block* const block : cluster->blocks) begin(*block), cluster->live += block->live;
    clusters_.push_back(std::move(cluster));
  }
}
/// All its warps have ended: copies that are under way are done before its blocks are others'.
void Machine::end(Cluster& cluster) {
  while (!under_way_.empty()) finish_one();
  for (Block* const block : cluster.blocks) {
    const auto found = std::ranges::find_if(blocks_, [&](const auto& one) { return one.get() == block; });
    spare_.push_back(std::move(*found));
    blocks_.erase(found);
    --running_blocks_;
  }
  std::erase_if(clusters_, [&](const auto& one) { return one.get() == &cluster; });
}
void Machine::finish_one() {
  const std::size_t which = random() % under_way_.size();
  const std::function<void()> work = std::move(under_way_[which]);
  under_way_[which] = std::move(under_way_.back());
  under_way_.pop_back();
  work();
  ++progress;
}

void Machine::run() {
  begin_clusters();
  std::uint64_t turns = 0, seen = 0;
  while (running_blocks_ > 0) {
    if (!under_way_.empty() && (ready_.empty() || random() % 8 == 0)) finish_one();
    if (ready_.empty()) {
      if (!under_way_.empty()) continue;
      const Warp* waits = nullptr;
      for (const auto& block : blocks_)
        for (const Warp& warp : block->warps)
          if (!warp.fragments.empty() && waits == nullptr) waits = &warp;
      if (waits == nullptr) break;
      waits->fault(waits->kernel->code[waits->fragments[0].pc], "all that is left waits at barriers");
    }
    const std::size_t which = random() % ready_.size();
    Warp& warp = *ready_[which];
    const bool goes_on = warp.run(1 + static_cast<int>(random() % kLongTurn));
    if (!goes_on) {
      // Releasing others may have moved the list's entries, never this one's.
      warp.is_ready = false;
      ready_[which] = ready_.back();
      ready_.pop_back();
      if (warp.fragments.empty() && warp.block->cluster->live == 0) {
        end(*warp.block->cluster);
        begin_clusters();
      }
    }
    if (progress != seen)
      seen = progress, turns = 0;
    else if (++turns > kPatience)
      warp.fault(warp.kernel->code[warp.fragments.empty() ? 0 : warp.fragments[0].pc],
                 "nothing has happened for " + std::to_string(kPatience) + " turns: a wait that never ends");
  }
}

void look_for_races(bool looks) { looks_for_races() = looks; }

void run(const Launch& launch) {
  if (launch.grid.count() == 0) return;
  Machine machine(launch);
  machine.run();
  static const bool traces = is_set("FATHOM_EMULATED_TRACE");
  if (traces)
    std::fprintf(stderr, "%s: %u blocks of %u threads, %llu instructions\n", launch.kernel->name.c_str(),
                 launch.grid.count(), launch.block.count(), static_cast<unsigned long long>(machine.time));
}

int blocks_at_once(const Kernel& kernel, int threads, std::uint32_t dynamic_shared) {
  const Limits& all = limits();
  const std::uint32_t shared = kernel.traits.shared_bytes + dynamic_shared + all.shared_reserved;
  const int by_threads = all.threads_of_multiprocessor / std::max((threads + kLanes - 1) / kLanes * kLanes, 1);
  return std::max(
      0, std::min({by_threads, all.blocks_of_multiprocessor, static_cast<int>(all.shared_of_multiprocessor / shared)}));
}

}  // namespace fathom::emulator
