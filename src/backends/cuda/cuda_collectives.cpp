#include "backends/cuda/cuda_collectives.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <numeric>
#include <thread>

#include "backends/cuda/fault_watch.h"
#include "backends/cuda/lost.h"
#include "backends/cuda/nccl.h"
#include "backends/cuda/peer_reduce.h"
#include "base/leaving.h"

namespace fathom::cuda {
namespace {
using tensor::Group;
using tensor::Tensor;
using Clock = std::chrono::steady_clock;

constexpr double kLeisure = 1.5;  // seconds that the host waits longer than the kernels, which know whom they wait for
constexpr auto kOwnFault = std::chrono::milliseconds(500);  // in which the driver reports a fault of this GPU
constexpr auto kHearsay =
    std::chrono::seconds(2);  // that NCCL's word waits for a rank's own, which knows what happened

template <class T>
std::vector<std::byte> bytes_of(const T& value) {
  const auto bytes = std::as_bytes(std::span(&value, 1));
  return {bytes.begin(), bytes.end()};
}

template <class T>
T value_of(std::span<const std::byte> bytes) {
  T value{};
  FATHOM_CHECK(bytes.size() == sizeof value);
  std::memcpy(&value, bytes.data(), sizeof value);
  return value;
}

/// Everyone of a group tells everyone.
template <class T>
Result<std::vector<T>> tell_all(tensor::Transport& transport, const std::vector<int>& ranks, const T& mine) {
  std::vector<T> all;
  for (const int r : ranks)
    if (r != transport.rank()) FATHOM_TRY_VOID(transport.post(r, bytes_of(mine)));
  for (const int r : ranks) {
    if (r == transport.rank()) {
      all.push_back(mine);
      continue;
    }
    FATHOM_TRY(const auto bytes, transport.take(r, tensor::Patience::kIdle));
    all.push_back(value_of<T>(bytes));
  }
  return all;
}

/// The inbox of one rank, as the others may reach it.
struct Card {
  std::array<char, 64> host{};
  pid_t process = 0;
  int device = 0;
  std::byte* inbox = nullptr;
  cudaIpcMemHandle_t handle{};
  bool ready = false;
};

/// Small sums of one group by peer access; nothing when its GPUs cannot reach each other.
class Peers {
 public:
  Peers() = default;
  Peers(const Peers&) = delete;
  Peers& operator=(const Peers&) = delete;
  ~Peers() {
    if (is_lost(device_)) return;  // nothing of it comes back
    for (void* opened : opened_) cudaIpcCloseMemHandle(opened);
    cudaFree(inbox_);
    cudaFree(table_.state);
    cudaFreeHost(fault_);
    cudaGetLastError();
  }

  /// True when it can be used; the ranks decide alike.
  Result<bool> join(Context& context, tensor::Transport& transport, const std::vector<int>& ranks) {
    const auto n = static_cast<int>(ranks.size());
    if (n > kMostPeers) return false;
    const auto me = static_cast<std::size_t>(std::find(ranks.begin(), ranks.end(), transport.rank()) - ranks.begin());
    Card card;
    ::gethostname(card.host.data(), card.host.size() - 1);
    card.process = ::getpid();
    card.device = device_ = context.device;
    card.ready = allocate(n, card);
    FATHOM_TRY(const std::vector<Card> cards, tell_all(transport, ranks, card));
    bool reach = true;
    for (const Card& theirs : cards) gpus_.push_back(theirs.device);
    for (std::size_t r = 0; r < cards.size(); ++r)
      reach = reach && cards[r].ready && cards[r].host == card.host && (r == me || open(cards[r], card, r));
    table_.inbox[me] = static_cast<std::byte*>(inbox_);
    FATHOM_TRY(const std::vector<bool_byte> all, tell_all(transport, ranks, bool_byte{reach}));
    cudaGetLastError();
    table_.ranks = n;
    table_.rank = static_cast<int>(me);
    table_.patience_ns = static_cast<std::uint64_t>(tensor::rank_patience_seconds() * 1e9);
    return std::all_of(all.begin(), all.end(), [](const bool_byte& b) { return b.value; });
  }

  Bytes bytes() const { return bytes_; }
  bool takes(const Tensor& x) const {
    return x.bytes() <= peer_reduce_most(table_.ranks) && x.elements() % 4 == 0 &&
           reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0;
  }
  void reduce(Context& context, const Tensor& x) { launch_peer_reduce(context, table_, x.as<float>(), x.elements()); }
  /// Whom a kernel of this GPU waited for in vain, numbered within the group.
  std::optional<int> missed() const {
    const std::uint32_t word = *static_cast<volatile std::uint32_t*>(fault_);
    return word == 0 || word == kCutOff ? std::nullopt : std::optional(static_cast<int>(word) - 1);
  }
  void cut() const { *static_cast<volatile std::uint32_t*>(fault_) = kCutOff; }
  /// The number of a member's GPU, on its machine.
  int gpu_of(int member) const { return gpus_[static_cast<std::size_t>(member)]; }

 private:
  struct bool_byte {
    bool value = false;
  };

  bool allocate(int n, Card& card) {
    const Bytes bytes = peer_inbox_bytes(n);
    void* fault = nullptr;
    if (cudaMalloc(&inbox_, bytes) != cudaSuccess || cudaMemset(inbox_, 0, bytes) != cudaSuccess) return false;
    if (cudaMalloc(reinterpret_cast<void**>(&table_.state), 256) != cudaSuccess ||
        cudaMemset(table_.state, 0, 256) != cudaSuccess)
      return false;
    if (cudaHostAlloc(&fault, 64, cudaHostAllocMapped | cudaHostAllocPortable) != cudaSuccess) return false;
    std::memset(fault, 0, 64);
    fault_ = table_.fault = static_cast<std::uint32_t*>(fault);
    card.inbox = static_cast<std::byte*>(inbox_);
    bytes_ = bytes + 256;
    return cudaIpcGetMemHandle(&card.handle, inbox_) == cudaSuccess && cudaDeviceSynchronize() == cudaSuccess;
  }

  bool open(const Card& theirs, const Card& mine, std::size_t r) {
    if (theirs.process == mine.process) {
      int can = 0;
      if (theirs.device == mine.device || cudaDeviceCanAccessPeer(&can, mine.device, theirs.device) != cudaSuccess ||
          can == 0)
        return false;
      const cudaError_t enabled = cudaDeviceEnablePeerAccess(theirs.device, 0);
      if (enabled != cudaSuccess && enabled != cudaErrorPeerAccessAlreadyEnabled) return false;
      table_.inbox[r] = theirs.inbox;
      return true;
    }
    void* opened = nullptr;
    if (cudaIpcOpenMemHandle(&opened, theirs.handle, cudaIpcMemLazyEnablePeerAccess) != cudaSuccess) return false;
    opened_.push_back(opened);
    table_.inbox[r] = static_cast<std::byte*>(opened);
    return true;
  }

  PeerTable table_;
  void* inbox_ = nullptr;
  std::uint32_t* fault_ = nullptr;
  std::vector<void*> opened_;
  std::vector<int> gpus_;
  int device_ = 0;
  Bytes bytes_ = 0;
};

/// What a group of several ranks has.
struct Circle {
  std::vector<int> ranks;
  NcclComm comm = nullptr;
  std::unique_ptr<Peers> peers;
};

class Both final : public CudaCollectives {
 public:
  Both(Context& context, CudaOps& ops, std::shared_ptr<tensor::Transport> transport, const Nccl& nccl)
      : context_(context), ops_(ops), transport_(std::move(transport)), nccl_(nccl) {}
  Both(const Both&) = delete;
  Both& operator=(const Both&) = delete;
  ~Both() override {
    cudaSetDevice(context_.device);
    // What failed is not ended in order: that would wait for a device that failed, or for others that are gone. A rank
    // whose host failed may have passes under way that the others will not finish.
    if (!cut_ && (context_.error != cudaSuccess || failure_ || hearsay_ || transport_->failure())) {
      cut_off();
      find_lost(context_.device, context_.stream);
    }
    if (!cut_) cudaStreamSynchronize(context_.stream);
    if (before_end) before_end();
    for (const auto& circle : circles_)
      if (circle->comm != nullptr) nccl_.comm_destroy(circle->comm);
  }

  Status join(const tensor::GroupMembers& members) {
    watch_ = FaultWatch::start(context_.device);
    for (std::size_t g = 0; g < tensor::kGroupCount; ++g) {
      const std::vector<int>& ranks = members.ranks[g];
      const auto me = std::find(ranks.begin(), ranks.end(), transport_->rank());
      rank_[g] = ranks.empty() ? 0 : static_cast<int>(me - ranks.begin());
      if (ranks.size() < 2) continue;
      for (const auto& known : circles_)
        if (known->ranks == ranks) of_[g] = known.get();
      if (of_[g] != nullptr) continue;
      circles_.push_back(std::make_unique<Circle>());
      Circle& circle = *circles_.back();
      circle.ranks = ranks;
      of_[g] = &circle;
      FATHOM_TRY_VOID(connect(circle));
      const auto group = static_cast<Group>(g);
      if (group != Group::kTensor && group != Group::kExpert) continue;  // the others do not sum
      auto peers = std::make_unique<Peers>();
      FATHOM_TRY(const bool reach, peers->join(context_, *transport_, ranks));
      if (reach) circle.peers = std::move(peers);
    }
    return {};
  }

  Bytes bytes() const override {
    Bytes all = 0;
    for (const auto& circle : circles_)
      if (circle->peers != nullptr) all += circle->peers->bytes();
    return all;
  }

  bool troubled() override {
    look();
    return failure_ || hearsay_;
  }
  bool hopeful(double waited) override {
    if (cut_) return false;
    look();
    if (!failure_ && hearsay_ && Clock::now() - heard_ > kHearsay) failure_ = *hearsay_;
    if (!failure_ && waited > tensor::rank_patience_seconds() + kLeisure)
      failure_ = fail_environment("ranks.gpus_stuck", {{"seconds", std::to_string(static_cast<int>(waited))}}).value();
    if (!failure_) return true;
    cut_off();
    return false;
  }

  std::optional<Error> first_to_fail() override {
    const auto until = Clock::now() + kHearsay;
    if (watch_ == nullptr || watch_->saw_fault(kOwnFault)) return std::nullopt;
    do {
      if (auto told = transport_->failure()) return told;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    } while (Clock::now() < until);
    return std::nullopt;
  }

  int size(Group group) const override {
    const Circle* circle = of_[static_cast<std::size_t>(group)];
    return circle == nullptr ? 1 : static_cast<int>(circle->ranks.size());
  }
  int rank(Group group) const override { return rank_[static_cast<std::size_t>(group)]; }
  void beat() override { transport_->beat(); }
  Status status() override {
    look();
    if (failure_) return tl::unexpected<Error>(*failure_);
    if (hearsay_) return tl::unexpected<Error>(*hearsay_);
    return {};
  }

  void all_reduce(Group group, const Tensor& x) override {
    Circle* circle = begin(group);
    if (circle == nullptr || x.elements() == 0) return;
    FATHOM_CHECK(x.contiguous() && x.dtype == DType::f32, "sums are of dense f32");
    if (circle->peers != nullptr && circle->peers->takes(x))
      circle->peers->reduce(context_, x);
    else
      note(nccl_.all_reduce(x.data, x.data, static_cast<std::size_t>(x.elements()), NcclType::kF32, Nccl::kSum,
                            circle->comm, context_.stream));
  }
  void all_gather(Group group, const Tensor& x, const Tensor& out) override {
    Circle* circle = begin(group);
    FATHOM_CHECK(x.contiguous() && out.contiguous(), "all_gather: dense tensors");
    if (circle == nullptr) return copy(x, out);
    if (x.bytes() > 0)
      note(nccl_.all_gather(x.data, out.data, x.bytes(), NcclType::kU8, circle->comm, context_.stream));
  }
  void all_gather_rows(Group group, const Tensor& x, std::span<const std::int64_t> rows, const Tensor& out) override {
    Circle* circle = begin(group);
    FATHOM_CHECK(x.contiguous() && out.contiguous(), "all_gather_rows: dense tensors");
    if (circle == nullptr) return copy(x, out);
    if (out.dim(0) == 0) return;
    const Bytes row = out.bytes() / static_cast<Bytes>(out.dim(0));
    if (std::all_of(rows.begin(), rows.end(), [&](std::int64_t n) { return n == rows[0]; }))
      return note(nccl_.all_gather(x.data, out.data, x.bytes(), NcclType::kU8, circle->comm, context_.stream));
    note(nccl_.group_start());
    std::byte* place = out.data;
    for (std::size_t r = 0; r < rows.size(); ++r) {
      const Bytes bytes = row * static_cast<Bytes>(rows[r]);
      if (static_cast<int>(r) == rank(group)) {
        if (bytes > 0) context_.note(cudaMemcpyAsync(place, x.data, bytes, cudaMemcpyDeviceToDevice, context_.stream));
      } else {
        if (x.bytes() > 0)
          note(nccl_.send(x.data, x.bytes(), NcclType::kU8, static_cast<int>(r), circle->comm, context_.stream));
        if (bytes > 0)
          note(nccl_.receive(place, bytes, NcclType::kU8, static_cast<int>(r), circle->comm, context_.stream));
      }
      place += bytes;
    }
    note(nccl_.group_end());
  }
  void reduce_scatter(Group group, const Tensor& x, const Tensor& out) override {
    Circle* circle = begin(group);
    FATHOM_CHECK(x.contiguous() && out.contiguous() && x.dtype == DType::f32, "sums are of dense f32");
    if (circle == nullptr) return copy(x, out);
    if (out.elements() > 0)
      note(nccl_.reduce_scatter(x.data, out.data, static_cast<std::size_t>(out.elements()), NcclType::kF32, Nccl::kSum,
                                circle->comm, context_.stream));
  }
  void all_to_all(Group group, const Tensor& x, const Tensor& out) override {
    Circle* circle = begin(group);
    FATHOM_CHECK(x.contiguous() && out.contiguous(), "all_to_all: dense tensors");
    if (circle == nullptr) return copy(x, out);
    const Bytes block = x.bytes() / circle->ranks.size();
    if (block == 0) return;
    note(nccl_.group_start());
    for (std::size_t r = 0; r < circle->ranks.size(); ++r) {
      note(nccl_.send(x.data + r * block, block, NcclType::kU8, static_cast<int>(r), circle->comm, context_.stream));
      note(nccl_.receive(out.data + r * block, block, NcclType::kU8, static_cast<int>(r), circle->comm,
                         context_.stream));
    }
    note(nccl_.group_end());
  }
  void send(Group group, int to, const Tensor& x) override {
    Circle* circle = begin(group);
    FATHOM_CHECK(circle != nullptr && x.contiguous());
    if (x.bytes() > 0) note(nccl_.send(x.data, x.bytes(), NcclType::kU8, to, circle->comm, context_.stream));
  }
  void receive(Group group, int from, const Tensor& out) override {
    Circle* circle = begin(group);
    FATHOM_CHECK(circle != nullptr && out.contiguous());
    if (out.bytes() > 0) note(nccl_.receive(out.data, out.bytes(), NcclType::kU8, from, circle->comm, context_.stream));
  }

 private:
  Circle* begin(Group group) {
    ops_.flush();
    return of_[static_cast<std::size_t>(group)];
  }
  void copy(const Tensor& x, const Tensor& out) {
    if (x.data != out.data && x.bytes() > 0)
      context_.note(cudaMemcpyAsync(out.data, x.data, x.bytes(), cudaMemcpyDeviceToDevice, context_.stream));
  }
  /// NCCL's word is hearsay: a call fails because something else did, here or on another GPU.
  void note(int code) {
    if (code == 0 || code == Nccl::kInProgress || hearsay_) return;
    hearsay_ = nccl_.failed(code, context_.device).value();
    heard_ = Clock::now();
  }
  /// What is known by now. A rank that failed has told why, or will.
  void look() {
    if (failure_) return;
    if (const auto told = transport_->failure()) {
      failure_ = *told;
      return;
    }
    for (const auto& circle : circles_) {
      int state = 0;
      if (circle->comm != nullptr && nccl_.comm_get_async_error(circle->comm, &state) == 0) note(state);
      if (circle->peers == nullptr) continue;
      if (const auto member = circle->peers->missed()) failure_ = silent(*circle, *member);
    }
  }
  Error silent(const Circle& circle, int member) const {
    return fail_environment("ranks.gpu_silent",
                            {{"rank", std::to_string(circle.ranks[static_cast<std::size_t>(member)])},
                             {"ranks", std::to_string(transport_->size())},
                             {"gpu", std::to_string(circle.peers->gpu_of(member))},
                             {"seconds", std::to_string(static_cast<int>(tensor::rank_patience_seconds()))}})
        .value();
  }
  /// Ends what waits for others. NCCL's end may itself wait for a device that does not come back: nobody waits for
  /// that.
  void cut_off() {
    cut_ = true;
    leave_at_once();
    for (const auto& circle : circles_) {
      if (circle->peers != nullptr) circle->peers->cut();
      if (circle->comm == nullptr) continue;
      std::thread([abort = nccl_.comm_abort, comm = circle->comm, device = context_.device] {
        cudaSetDevice(device);
        abort(comm);
      }).detach();
      circle->comm = nullptr;
    }
  }

  // The first of the ranks makes the name by which they find each other.
  Status connect(Circle& circle) {
    NcclId id{};
    const int me = static_cast<int>(std::find(circle.ranks.begin(), circle.ranks.end(), transport_->rank()) -
                                    circle.ranks.begin());
    if (me == 0) {
      if (const int code = nccl_.get_unique_id(&id); code != 0) return nccl_.failed(code, context_.device);
      for (std::size_t r = 1; r < circle.ranks.size(); ++r)
        FATHOM_TRY_VOID(transport_->post(circle.ranks[r], bytes_of(id)));
    } else {
      FATHOM_TRY(const auto bytes, transport_->take(circle.ranks[0], tensor::Patience::kIdle));
      id = value_of<NcclId>(bytes);
    }
    if (const int code = nccl_.comm_init_rank(&circle.comm, static_cast<int>(circle.ranks.size()), id, me); code != 0)
      return nccl_.failed(code, context_.device);
    return {};
  }

  Context& context_;
  CudaOps& ops_;
  std::shared_ptr<tensor::Transport> transport_;
  const Nccl& nccl_;
  std::vector<std::unique_ptr<Circle>> circles_;
  std::array<Circle*, tensor::kGroupCount> of_{};
  std::array<int, tensor::kGroupCount> rank_{};
  std::unique_ptr<FaultWatch> watch_;  // null: nothing tells which GPU it was
  std::optional<Error> failure_, hearsay_;
  Clock::time_point heard_;  // when hearsay_ was
  bool cut_ = false;
};

}  // namespace

Result<std::unique_ptr<CudaCollectives>> CudaCollectives::make(Context& context, CudaOps& ops,
                                                               std::shared_ptr<tensor::Transport> transport,
                                                               const tensor::GroupMembers& members) {
  FATHOM_TRY(const Nccl* nccl, Nccl::load());
  auto made = std::make_unique<Both>(context, ops, std::move(transport), *nccl);
  FATHOM_TRY_VOID(made->join(members));
  return std::unique_ptr<CudaCollectives>(std::move(made));
}

}  // namespace fathom::cuda
