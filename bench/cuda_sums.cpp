// What a sum over several GPUs costs, by size: by the kernels of peer access where they take it, and by NCCL. Sums are
// recorded twenty at a time, as a step of decoding has them. usage: bench_cuda_sums GPUS
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "backends/cuda/cuda_backend.h"
#include "backends/threads/threads_transport.h"
#include "base/clock.h"

namespace {

using namespace fathom;
using namespace fathom::tensor;

constexpr int kSums = 20, kRuns = 10;

template <class T>
T need(Result<T> result) {
  if (result) return std::move(*result);
  std::fprintf(stderr, "%s\n", error_text(result.error()).c_str());
  std::_Exit(2);
}
void need(const Status& status) {
  if (status) return;
  std::fprintf(stderr, "%s\n", error_text(status.error()).c_str());
  std::_Exit(2);
}

/// Microseconds a sum of n numbers.
double time_sums(Backend& backend, Collectives& comm, Transport& transport, std::int64_t n) {
  const auto buffer = need(backend.allocate_buffer(static_cast<Bytes>(n) * 4));
  const Tensor x = make_tensor(buffer->data(), DType::f32, {n});
  double begun = 0;
  for (int run = 0; run < kRuns + 3; ++run) {
    if (run == 3) {  // played from now on
      need(agree(transport, {}));
      begun = now_seconds();
    }
    need(backend.run_pass(static_cast<std::uint64_t>(n), [&] {
      for (int i = 0; i < kSums; ++i) comm.all_reduce(Group::kTensor, x);
    }));
    need(backend.synchronize());
  }
  return (now_seconds() - begun) * 1e6 / (kSums * kRuns);
}

void run_rank(int rank, int ranks, std::shared_ptr<Transport> transport) {
  const auto backend = need(cuda::make_cuda_backend({.device = rank}));
  GroupMembers members;
  for (int r = 0; r < ranks; ++r) members.ranks[static_cast<std::size_t>(Group::kTensor)].push_back(r);
  auto comm = need(backend->make_collectives(transport, members));
  if (rank == 0) std::printf("%d GPUs: bytes, microseconds a sum, by NCCL\n", ranks);
  for (const std::int64_t bytes : {8 << 10, 32 << 10, 64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20, 2 << 20,
                                   128 * 7168 * 4, 4 << 20, 8 << 20}) {
    const double own = time_sums(*backend, *comm, *transport, bytes / 4);
    // A number that is no multiple of four goes to NCCL whatever its size.
    const double nccl = time_sums(*backend, *comm, *transport, bytes / 4 + 1);
    if (rank == 0) std::printf("%9lld %8.2f %8.2f\n", static_cast<long long>(bytes), own, nccl);
    if (rank == 0) std::fflush(stdout);
  }
  need(agree(*transport, {}));
  comm.reset();
}

}  // namespace

int main(int argc, char** argv) {
  const int ranks = argc > 1 ? std::atoi(argv[1]) : 2;
  if (ranks < 2 || ranks > 64) return std::fprintf(stderr, "usage: bench_cuda_sums GPUS\n"), 1;
  const auto ends = threads::make_thread_transports(ranks);
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r)
    threads.emplace_back([&, r] { run_rank(r, ranks, ends[static_cast<std::size_t>(r)]); });
  for (std::thread& thread : threads) thread.join();
  return 0;
}
