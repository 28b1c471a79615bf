#include "tensor/host_collectives.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace fathom::tensor {
namespace {

constexpr std::uint64_t kSmallBytes = 16384;  // up to here everybody gets everything: one round instead of two

template <class T>
void add(std::byte* to, const std::byte* from, std::int64_t n) {
  T* out = reinterpret_cast<T*>(to);
  const T* x = reinterpret_cast<const T*>(from);
  for (std::int64_t i = 0; i < n; ++i) out[i] += x[i];
}

void add(DType type, std::byte* to, const std::byte* from, std::int64_t n) {
  if (type == DType::f64)
    add<double>(to, from, n);
  else
    add<float>(to, from, n);
}

class HostCollectives final : public Collectives {
 public:
  HostCollectives(std::shared_ptr<Transport> transport, GroupMembers members)
      : transport_(std::move(transport)), members_(std::move(members)) {
    for (int g = 0; g < kGroupCount; ++g) {
      const std::vector<int>& ranks = members_.ranks[static_cast<std::size_t>(g)];
      const auto me = std::find(ranks.begin(), ranks.end(), transport_->rank());
      FATHOM_CHECK(ranks.empty() || me != ranks.end(), "a rank outside its own group");
      place_[static_cast<std::size_t>(g)] = ranks.empty() ? 0 : static_cast<int>(me - ranks.begin());
    }
  }

  int size(Group group) const override { return std::max(1, static_cast<int>(members_.of(group).size())); }
  int rank(Group group) const override { return place_[static_cast<std::size_t>(group)]; }
  void beat() override { transport_->beat(); }
  Status status() override {
    if (const auto failure = transport_->failure()) return tl::unexpected<Error>(*failure);
    return {};
  }

  void all_reduce(Group group, const Tensor& x) override {
    FATHOM_CHECK(x.contiguous() && (x.dtype == DType::f32 || x.dtype == DType::f64), "sums are of dense f32 or f64");
    if (size(group) == 1 || x.elements() == 0) return;
    if (x.bytes() <= kSmallBytes)
      reduce_whole(group, x);
    else
      reduce_parts(group, x);
  }

  void all_gather(Group group, const Tensor& x, const Tensor& out) override {
    const auto n = static_cast<std::size_t>(size(group));
    FATHOM_CHECK(out.bytes() == x.bytes() * n, "all_gather: out has n times the rows of x");
    lengths_.assign(n, x.bytes());
    gather(group, x, out);
  }

  void all_gather_rows(Group group, const Tensor& x, std::span<const std::int64_t> rows, const Tensor& out) override {
    const std::int64_t all = std::accumulate(rows.begin(), rows.end(), std::int64_t{0});
    FATHOM_CHECK(static_cast<int>(rows.size()) == size(group) &&
                     x.dim(0) == rows[static_cast<std::size_t>(rank(group))] && out.dim(0) == all,
                 "all_gather_rows: rows of every rank");
    if (all == 0) return;
    lengths_.clear();
    for (const std::int64_t n : rows)
      lengths_.push_back(out.bytes() / static_cast<std::uint64_t>(all) * static_cast<std::uint64_t>(n));
    gather(group, x, out);
  }

  void reduce_scatter(Group group, const Tensor& x, const Tensor& out) override {
    const int n = size(group);
    FATHOM_CHECK(x.contiguous() && out.contiguous() && x.bytes() == out.bytes() * static_cast<std::uint64_t>(n) &&
                     (x.dtype == DType::f32 || x.dtype == DType::f64),
                 "reduce_scatter: x has n times the rows of out");
    if (out.bytes() == 0) return;
    parts_.clear();
    for (int i = 0; i < n; ++i) parts_.push_back({i * out.elements(), out.elements()});
    sum_parts(group, x, out.data);
  }

  void all_to_all(Group group, const Tensor& x, const Tensor& out) override {
    const int n = size(group), me = rank(group);
    FATHOM_CHECK(x.contiguous() && out.contiguous() && x.bytes() == out.bytes() &&
                     x.bytes() % static_cast<std::uint64_t>(n) == 0,
                 "all_to_all: n blocks each");
    const std::uint64_t block = x.bytes() / static_cast<std::uint64_t>(n);
    if (block == 0) return;
    outgoing_.clear();
    incoming_.clear();
    for (int i = 0; i < n; ++i) {
      const std::uint64_t at = static_cast<std::uint64_t>(i) * block;
      if (i == me) {
        std::memcpy(out.data + at, x.data + at, block);
        continue;
      }
      outgoing_.push_back({members_.of(group)[static_cast<std::size_t>(i)], {x.data + at, block}});
      incoming_.push_back({members_.of(group)[static_cast<std::size_t>(i)], {out.data + at, block}});
    }
    exchange();
  }

  void send(Group group, int to, const Tensor& x) override {
    FATHOM_CHECK(x.contiguous(), "send: dense tensors");
    if (x.bytes() == 0) return;
    outgoing_.assign(1, {members_.of(group)[static_cast<std::size_t>(to)], {x.data, x.bytes()}});
    incoming_.clear();
    exchange();
  }

  void receive(Group group, int from, const Tensor& out) override {
    FATHOM_CHECK(out.contiguous(), "receive: dense tensors");
    if (out.bytes() == 0) return;
    outgoing_.clear();
    incoming_.assign(1, {members_.of(group)[static_cast<std::size_t>(from)], {out.data, out.bytes()}});
    exchange();
  }

 private:
  struct Part {
    std::int64_t first = 0, count = 0;
  };

  // A failure is kept by the transport.
  bool exchange() { return transport_->exchange(outgoing_, incoming_).has_value(); }

  // Room for `blocks` blocks beside each other; block `me` stays unused.
  std::byte* room(int blocks, std::uint64_t bytes) {
    if (room_.size() < static_cast<std::uint64_t>(blocks) * bytes)
      room_.resize(static_cast<std::uint64_t>(blocks) * bytes);
    return room_.data();
  }

  // Everyone's x, of lengths_ bytes, one after the other.
  void gather(Group group, const Tensor& x, const Tensor& out) {
    FATHOM_CHECK(x.contiguous() && out.contiguous(), "all_gather: dense tensors");
    outgoing_.clear();
    incoming_.clear();
    std::byte* place = out.data;
    for (int i = 0; i < size(group); ++i) {
      const std::uint64_t bytes = lengths_[static_cast<std::size_t>(i)];
      if (i == rank(group)) {
        if (place != x.data && bytes > 0) std::memmove(place, x.data, bytes);
      } else {
        const int peer = members_.of(group)[static_cast<std::size_t>(i)];
        if (x.bytes() > 0) outgoing_.push_back({peer, {x.data, x.bytes()}});
        if (bytes > 0) incoming_.push_back({peer, {place, bytes}});
      }
      place += bytes;
    }
    exchange();
  }

  void reduce_whole(Group group, const Tensor& x) {
    const int n = size(group), me = rank(group);
    const std::uint64_t bytes = x.bytes();
    std::byte* others = room(n + 1, bytes);
    outgoing_.clear();
    incoming_.clear();
    for (int i = 0; i < n; ++i) {
      if (i == me) continue;
      outgoing_.push_back({members_.of(group)[static_cast<std::size_t>(i)], {x.data, bytes}});
      incoming_.push_back(
          {members_.of(group)[static_cast<std::size_t>(i)], {others + static_cast<std::uint64_t>(i) * bytes, bytes}});
    }
    if (!exchange()) return;
    std::byte* sum = others + static_cast<std::uint64_t>(n) * bytes;
    for (int i = 0; i < n; ++i) {
      const std::byte* part = i == me ? x.data : others + static_cast<std::uint64_t>(i) * bytes;
      if (i == 0)
        std::memcpy(sum, part, bytes);
      else
        add(x.dtype, sum, part, x.elements());
    }
    std::memcpy(x.data, sum, bytes);
  }

  void reduce_parts(Group group, const Tensor& x) {
    const int n = size(group), me = rank(group);
    const std::int64_t all = x.elements(), each = (all + n - 1) / n;
    parts_.clear();
    for (int i = 0; i < n; ++i)
      parts_.push_back({std::min(all, i * each), std::clamp<std::int64_t>(all - i * each, 0, each)});
    if (!sum_parts(group, x, place(x, me).data())) return;
    outgoing_.clear();
    incoming_.clear();
    for (int i = 0; i < n; ++i) {
      if (i == me) continue;
      const int peer = members_.of(group)[static_cast<std::size_t>(i)];
      if (!place(x, me).empty()) outgoing_.push_back({peer, place(x, me)});
      if (!place(x, i).empty()) incoming_.push_back({peer, place(x, i)});
    }
    exchange();
  }

  /// Part i of x.
  std::span<std::byte> place(const Tensor& x, int i) const {
    const Part& part = parts_[static_cast<std::size_t>(i)];
    const auto width = static_cast<std::int64_t>(dtype_bytes(x.dtype));
    return {x.data + part.first * width, static_cast<std::size_t>(part.count * width)};
  }

  // out = the sum over the ranks of this rank's part.
  bool sum_parts(Group group, const Tensor& x, std::byte* out) {
    const int n = size(group), me = rank(group);
    const std::span<std::byte> mine = place(x, me);
    std::byte* others = room(n + 1, mine.size());
    outgoing_.clear();
    incoming_.clear();
    for (int i = 0; i < n; ++i) {
      if (i == me) continue;
      const int peer = members_.of(group)[static_cast<std::size_t>(i)];
      if (!place(x, i).empty()) outgoing_.push_back({peer, place(x, i)});
      if (!mine.empty()) incoming_.push_back({peer, {others + static_cast<std::size_t>(i) * mine.size(), mine.size()}});
    }
    if (!exchange()) return false;
    if (mine.empty()) return true;
    std::byte* sum = others + static_cast<std::size_t>(n) * mine.size();
    for (int i = 0; i < n; ++i) {
      const std::byte* from = i == me ? mine.data() : others + static_cast<std::size_t>(i) * mine.size();
      if (i == 0)
        std::memcpy(sum, from, mine.size());
      else
        add(x.dtype, sum, from, parts_[static_cast<std::size_t>(me)].count);
    }
    std::memcpy(out, sum, mine.size());
    return true;
  }

  std::shared_ptr<Transport> transport_;
  GroupMembers members_;
  std::array<int, kGroupCount> place_{};
  std::vector<Outgoing> outgoing_;
  std::vector<Incoming> incoming_;
  std::vector<Part> parts_;
  std::vector<std::uint64_t> lengths_;
  std::vector<std::byte> room_;
};

}  // namespace

std::unique_ptr<Collectives> make_host_collectives(std::shared_ptr<Transport> transport, GroupMembers members) {
  return std::make_unique<HostCollectives>(std::move(transport), std::move(members));
}

}  // namespace fathom::tensor
