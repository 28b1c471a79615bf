// Several GPUs against the host's collectives, and weights that a GPU draws against those that the host draws. Skipped
// without them.
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <thread>

#include "backends/backends.h"
#include "backends/threads/threads_transport.h"

namespace fathom {
namespace {
using tensor::Group;
using tensor::make_tensor;

float value(int rank, std::int64_t i) {
  return static_cast<float>((i * 2654435761u + static_cast<unsigned>(rank) * 40503u) % 100003u) / 317.0f - 150.0f;
}

struct Gpu {
  std::unique_ptr<tensor::Backend> backend;
  std::unique_ptr<tensor::Collectives> comm;
};

// body on a thread a GPU, all of one tensor group; false when there are not so many.
bool on_gpus(int ranks, const std::function<void(int, Gpu&)>& body) {
  if (!backends::make_backend("cuda", {.device = ranks - 1})) return false;
  auto ends = threads::make_thread_transports(ranks);
  tensor::GroupMembers members;
  for (int r = 0; r < ranks; ++r) members.ranks[static_cast<std::size_t>(Group::kTensor)].push_back(r);
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r)
    threads.emplace_back([&, r] {
      Gpu gpu;
      auto backend = backends::make_backend("cuda", {.device = r});
      ASSERT_TRUE(backend) << error_text(backend.error());
      gpu.backend = std::move(*backend);
      auto comm = gpu.backend->make_collectives(ends[static_cast<std::size_t>(r)], members);
      ASSERT_TRUE(comm) << error_text(comm.error());
      gpu.comm = std::move(*comm);
      body(r, gpu);
      // Nobody leaves before all are done.
      EXPECT_TRUE(tensor::agree(*ends[static_cast<std::size_t>(r)], {}));
      gpu.comm.reset();
    });
  for (std::thread& thread : threads) thread.join();
  return true;
}

class CudaRanks : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Gpus, CudaRanks, testing::Values(2, 4, 8));

TEST_P(CudaRanks, SumsAreTheHosts) {
  const int ranks = GetParam();
  const bool there = on_gpus(ranks, [&](int rank, Gpu& gpu) {
    for (const std::int64_t n : {4, 1024, 8192, 65536, 262144, 524288, 1 << 20, 3 << 20, 10007}) {
      std::vector<float> x(static_cast<std::size_t>(n)), want(x.size());
      for (std::int64_t i = 0; i < n; ++i) x[static_cast<std::size_t>(i)] = value(rank, i);
      for (std::int64_t i = 0; i < n; ++i)
        for (int r = 0; r < ranks; ++r)
          want[static_cast<std::size_t>(i)] = r == 0 ? value(0, i) : want[static_cast<std::size_t>(i)] + value(r, i);
      auto buffer = gpu.backend->allocate_buffer(x.size() * sizeof(float));
      ASSERT_TRUE(buffer);
      const auto tensor = make_tensor((*buffer)->data(), DType::f32, {n});
      std::vector<float> first;
      for (int repeat = 0; repeat < 5; ++repeat) {
        ASSERT_TRUE(gpu.backend->upload((*buffer)->data(), std::as_bytes(std::span(x))));
        // As an engine would: the pass is recorded the second time and played from the third on.
        const auto ran = gpu.backend->run_pass(static_cast<std::uint64_t>(n) + 1,
                                               [&] { gpu.comm->all_reduce(Group::kTensor, tensor); });
        ASSERT_TRUE(ran) << error_text(ran.error());
        std::vector<float> got(x.size());
        ASSERT_TRUE(gpu.backend->download(std::as_writable_bytes(std::span(got)), (*buffer)->data()));
        for (std::size_t i = 0; i < got.size(); ++i)
          ASSERT_TRUE(std::abs(got[i] - want[i]) <= 1e-3f)
              << n << " numbers, rank " << rank << ", at " << i << ": " << got[i] << " and " << want[i];
        if (first.empty()) first = got;
        EXPECT_EQ(std::memcmp(first.data(), got.data(), got.size() * sizeof(float)), 0) << n << ": other bits";
        if (n * 4 <= (2 << 20) && n % 4 == 0) {
          EXPECT_EQ(std::memcmp(want.data(), got.data(), got.size() * sizeof(float)), 0)
              << n << ": not in the order of ranks";
        }
      }
      ASSERT_TRUE(gpu.comm->status());
    }
  });
  if (!there) GTEST_SKIP() << "not " << ranks << " GPUs here";
}

TEST_P(CudaRanks, GathersAndMessages) {
  const int ranks = GetParam();
  const bool there = on_gpus(ranks, [&](int rank, Gpu& gpu) {
    std::vector<std::int64_t> rows;
    std::int64_t total = 0;
    for (int r = 0; r < ranks; ++r) total += rows.emplace_back(r == 1 ? 0 : 3 + r);
    const std::int64_t own = rows[static_cast<std::size_t>(rank)], width = 8;
    std::vector<float> x(static_cast<std::size_t>(own * width)), got(static_cast<std::size_t>(total * width));
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = value(rank, static_cast<std::int64_t>(i));
    auto in = gpu.backend->allocate_buffer(std::max<Bytes>(x.size() * 4, 4)),
         out = gpu.backend->allocate_buffer(got.size() * 4);
    ASSERT_TRUE(in && out);
    ASSERT_TRUE(gpu.backend->upload((*in)->data(), std::as_bytes(std::span(x))));
    gpu.comm->all_gather_rows(Group::kTensor, make_tensor((*in)->data(), DType::f32, {own, width}), rows,
                              make_tensor((*out)->data(), DType::f32, {total, width}));
    ASSERT_TRUE(gpu.backend->download(std::as_writable_bytes(std::span(got)), (*out)->data()));
    std::size_t at = 0;
    for (int r = 0; r < ranks; ++r)
      for (std::int64_t i = 0; i < rows[static_cast<std::size_t>(r)] * width; ++i) ASSERT_EQ(got[at++], value(r, i));
    const auto token = make_tensor((*out)->data(), DType::f32, {8});
    if (rank > 0) gpu.comm->receive(Group::kTensor, rank - 1, token);
    gpu.comm->send(Group::kTensor, (rank + 1) % ranks, token);
    if (rank == 0) gpu.comm->receive(Group::kTensor, ranks - 1, token);
    ASSERT_TRUE(gpu.backend->download(std::as_writable_bytes(std::span(got).first(8)), (*out)->data()));
    for (std::int64_t i = 0; i < 8; ++i) ASSERT_EQ(got[static_cast<std::size_t>(i)], value(0, i));
  });
  if (!there) GTEST_SKIP() << "not " << ranks << " GPUs here";
}

}  // namespace
}  // namespace fathom
