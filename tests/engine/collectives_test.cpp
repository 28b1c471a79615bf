// Collectives of ranks that are threads, against sums and copies made here, in the order of ranks: equal to the bit.
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <thread>

#include "backends/threads/threads_transport.h"
#include "tensor/host_collectives.h"

namespace fathom {
namespace {
using tensor::Group;
using tensor::make_tensor;

float value(int rank, std::int64_t i) {
  return static_cast<float>((i * 2654435761u + static_cast<unsigned>(rank) * 40503u) % 100003u) / 317.0f - 150.0f;
}
std::vector<float> values(int rank, std::int64_t n) {
  std::vector<float> x;
  for (std::int64_t i = 0; i < n; ++i) x.push_back(value(rank, i));
  return x;
}
tensor::Tensor view(std::vector<float>& x, std::int64_t rows) {
  return make_tensor(x.data(), DType::f32, {rows, rows == 0 ? 1 : static_cast<std::int64_t>(x.size()) / rows});
}

// body(rank, collectives) on a thread a rank; all of them one tensor group.
void on_ranks(int ranks, const std::function<void(int, tensor::Collectives&)>& body) {
  auto ends = threads::make_thread_transports(ranks);
  tensor::GroupMembers members;
  for (int r = 0; r < ranks; ++r) members.ranks[static_cast<std::size_t>(Group::kTensor)].push_back(r);
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r)
    threads.emplace_back([&, r] {
      const auto comm = tensor::make_host_collectives(ends[static_cast<std::size_t>(r)], members);
      body(r, *comm);
      const Status status = comm->status();
      EXPECT_TRUE(status) << error_text(status.error());
    });
  for (std::thread& thread : threads) thread.join();
}

class Collectives : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Ranks, Collectives, testing::Values(1, 2, 3, 4, 5));

TEST_P(Collectives, SumsAreInTheOrderOfRanks) {
  const int ranks = GetParam();
  for (const std::int64_t n : {0, 1, 3, 4095, 4096, 4097, 50000}) {  // 4096 floats are the largest that goes whole
    std::vector<float> want = values(0, n);
    for (int r = 1; r < ranks; ++r)
      for (std::int64_t i = 0; i < n; ++i) want[static_cast<std::size_t>(i)] += value(r, i);
    on_ranks(ranks, [&](int rank, tensor::Collectives& comm) {
      std::vector<float> x = values(rank, n);
      comm.all_reduce(Group::kTensor, make_tensor(x.data(), DType::f32, {n}));
      EXPECT_TRUE(n == 0 || std::memcmp(x.data(), want.data(), x.size() * sizeof(float)) == 0)
          << n << " numbers on rank " << rank;
    });
  }
}

TEST_P(Collectives, PartsAndGathers) {
  const int ranks = GetParam();
  const std::int64_t rows = 6, width = 5;
  on_ranks(ranks, [&](int rank, tensor::Collectives& comm) {
    std::vector<float> x = values(rank, ranks * rows * width), part(static_cast<std::size_t>(rows * width)),
                       all(x.size());
    comm.reduce_scatter(Group::kTensor, view(x, ranks * rows), view(part, rows));
    for (std::int64_t i = 0; i < rows * width; ++i) {
      const std::int64_t at = rank * rows * width + i;
      float sum = value(0, at);
      for (int r = 1; r < ranks; ++r) sum += value(r, at);
      ASSERT_EQ(part[static_cast<std::size_t>(i)], sum);
    }
    std::vector<float> mine = values(rank, rows * width);
    comm.all_gather(Group::kTensor, view(mine, rows), view(all, ranks * rows));
    for (int r = 0; r < ranks; ++r)
      for (std::int64_t i = 0; i < rows * width; ++i)
        ASSERT_EQ(all[static_cast<std::size_t>(r * rows * width + i)], value(r, i));
    comm.all_to_all(Group::kTensor, view(x, ranks * rows), view(all, ranks * rows));
    for (int r = 0; r < ranks; ++r)
      for (std::int64_t i = 0; i < rows * width; ++i)
        ASSERT_EQ(all[static_cast<std::size_t>(r * rows * width + i)], value(r, rank * rows * width + i));
  });
}

TEST_P(Collectives, RowsOfDifferentNumber) {
  const int ranks = GetParam();
  const std::int64_t width = 3;
  std::vector<std::int64_t> rows;
  for (int r = 0; r < ranks; ++r) rows.push_back(r == 1 ? 0 : 2 + r);  // rank 1 has nothing
  std::int64_t total = 0;
  for (const std::int64_t n : rows) total += n;
  on_ranks(ranks, [&](int rank, tensor::Collectives& comm) {
    const std::int64_t own = rows[static_cast<std::size_t>(rank)];
    std::vector<float> mine = values(rank, own * width), all(static_cast<std::size_t>(total * width));
    comm.all_gather_rows(Group::kTensor, make_tensor(mine.data(), DType::f32, {own, width}), rows,
                         make_tensor(all.data(), DType::f32, {total, width}));
    std::size_t at = 0;
    for (int r = 0; r < ranks; ++r)
      for (std::int64_t i = 0; i < rows[static_cast<std::size_t>(r)] * width; ++i) ASSERT_EQ(all[at++], value(r, i));
  });
}

TEST_P(Collectives, MessagesKeepTheirOrder) {
  const int ranks = GetParam();
  on_ranks(ranks, [&](int rank, tensor::Collectives& comm) {
    for (int round = 0; round < 50; ++round) {  // a token that goes round and grows
      float token = static_cast<float>(round);
      const tensor::Tensor x = make_tensor(&token, DType::f32, {1});
      if (ranks == 1) return;
      if (rank > 0) comm.receive(Group::kTensor, rank - 1, x);
      if (rank > 0) token += 1000;
      comm.send(Group::kTensor, (rank + 1) % ranks, x);
      if (rank == 0) comm.receive(Group::kTensor, ranks - 1, x);
      if (rank == 0) {
        ASSERT_EQ(token, static_cast<float>(round + 1000 * (ranks - 1)));
      }
    }
  });
}

TEST(Transport, ErrorsTravelWhole) {
  const Error error =
      fail_environment("engine.context_full", {{"context", "7"}, {"empty", ""}, {"text", std::string("a\0b", 3)}})
          .value();
  const Error back = tensor::unpack_error(tensor::pack_error(error));
  EXPECT_EQ(back.key, error.key);
  EXPECT_EQ(back.kind, error.kind);
  EXPECT_EQ(back.args, error.args);
}

TEST(Transport, WhoeverNamesTheRankIsNotWrapped) {
  const Error device = fail_environment("cuda.device_failed", {{"gpu", "1 (X)"}, {"error", "broken"}}).value();
  const Error own = tensor::rank_failed(1, 4, device);
  EXPECT_EQ(own.key, "ranks.failed");
  EXPECT_NE(error_text(own).find("rank 1 of 4"), std::string::npos) << error_text(own);
  EXPECT_NE(error_text(own).find("GPU 1 (X)"), std::string::npos) << error_text(own);
  const Error silent =
      fail_environment("ranks.gpu_silent", {{"rank", "2"}, {"ranks", "4"}, {"gpu", "2"}, {"seconds", "20"}}).value();
  for (const Error& said : {own, silent}) {
    const Error told = tensor::rank_failed(0, 4, said);
    EXPECT_EQ(told.key, said.key);
    EXPECT_EQ(told.args, said.args);
  }
  EXPECT_NE(error_text(silent).find("rank 2 of 4 (GPU 2)"), std::string::npos) << error_text(silent);
}

TEST(Transport, PostsWaitForTheirTaker) {
  auto ends = threads::make_thread_transports(2);
  for (int i = 0; i < 5; ++i)
    ASSERT_TRUE(ends[0]->post(1, std::vector<std::byte>(static_cast<std::size_t>(i), std::byte{7})));
  for (std::size_t i = 0; i < 5; ++i) {
    const auto taken = ends[1]->take(0, tensor::Patience::kIdle);
    ASSERT_TRUE(taken);
    EXPECT_EQ(taken->size(), i);
  }
  ends[0]->fail(fail("engine.empty_prompt").value());
  const auto none = ends[1]->take(0, tensor::Patience::kIdle);
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().key, "ranks.failed");
}

}  // namespace
}  // namespace fathom
