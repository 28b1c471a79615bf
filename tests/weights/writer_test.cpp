#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <set>

#include "support.h"
#include "weights/checkpoint.h"
#include "weights/checkpoint_writer.h"

namespace fathom::weights {
namespace {
using namespace test;  // NOLINT

std::string payload(std::size_t bytes, unsigned seed) {
  std::string out(bytes, '\0');
  for (char& c : out) c = static_cast<char>((seed = seed * 1664525u + 1013904223u) >> 24);
  return out;
}

std::string read_range(const TensorPlace& place) {
  return slurp(place.file->path()).substr(place.tensor->begin, place.tensor->bytes());
}

RC_GTEST_PROP(Writer, WhatWasWrittenIsRead, (unsigned seed)) {
  static const std::vector<DType> kTypes = {DType::f64,  DType::f32, DType::f16, DType::bf16,   DType::f8e4m3,
                                            DType::e8m0, DType::i64, DType::i8,  DType::boolean};
  const auto count = *rc::gen::inRange<std::size_t>(0, 12);
  std::set<std::string> names;
  while (names.size() < count)
    names.insert("t" + std::to_string(names.size()) +
                 *rc::gen::element<std::string>("", ".weight", " \"quoted\"\\", "\u540d", "\n\t\x01"));
  std::vector<TensorSpec> tensors;
  std::vector<std::string> data;
  for (const std::string& name : names) {
    const auto shape = *rc::gen::container<std::vector<std::int64_t>>(*rc::gen::inRange<std::size_t>(0, 4),
                                                                      rc::gen::inRange<std::int64_t>(0, 9));
    tensors.push_back({name, *rc::gen::elementOf(kTypes), shape});
    data.push_back(payload(tensors.back().bytes(), seed++));
  }
  const Folder folder;
  const WriteOptions options{.shard_bytes = *rc::gen::inRange<Bytes>(1, 3000)};
  write_checkpoint(folder / "model", tensors, data, options);
  const auto checkpoint = Checkpoint::open(folder / "model");
  RC_ASSERT(outcome(checkpoint) == "ok");
  RC_ASSERT(checkpoint->tensors().size() == tensors.size());
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const TensorPlace place = checkpoint->find(tensors[i].name);
    RC_ASSERT(static_cast<bool>(place));
    RC_ASSERT(place.tensor->dtype == tensors[i].dtype);
    RC_ASSERT(std::ranges::equal(place.tensor->dims(), tensors[i].shape));
    RC_ASSERT(read_range(place) == data[i]);
  }
  RC_ASSERT(folder.entries() == 1u);  // nothing is left beside it
}

TEST(Writer, ShardsStayBelowTheLimitAndHaveAnIndex) {
  const Folder folder;
  const std::vector<TensorSpec> tensors = {
      {"a", DType::i8, {600}}, {"b", DType::i8, {600}}, {"c", DType::i8, {300}}, {"d", DType::i8, {5000}}};
  write_checkpoint(folder / "m", tensors, {payload(600, 1), payload(600, 2), payload(300, 3), payload(5000, 4)},
                   {.shard_bytes = 1000});
  for (const char* name :
       {"model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors"})
    EXPECT_TRUE(std::filesystem::exists(folder / "m" / name)) << name;
  const auto map = parse_index(slurp(folder / "m" / kIndexName), "index");
  ASSERT_TRUE(map);
  EXPECT_EQ((*map)[2].second, "model-00002-of-00003.safetensors");
  EXPECT_NE(slurp(folder / "m" / kIndexName).find("\"total_size\": 6500"), std::string::npos);
}

TEST(Writer, DataBeginsOnAPage) {
  const Folder folder;
  write_checkpoint(folder / "m", {{"a", DType::f32, {3}}}, {payload(12, 1)});
  const auto file = SafetensorsFile::open(folder / "m" / "model.safetensors");
  ASSERT_TRUE(file);
  EXPECT_EQ(file->tensors()[0].begin % 4096, 0u);
  ASSERT_EQ(file->metadata().size(), 1u);
  EXPECT_EQ(file->metadata()[0].second, "pt");
}

TEST(Writer, ReplacesOnlyCheckpointsAndOnlyWhenTold) {
  const Folder folder;
  const std::vector<TensorSpec> one = {{"a", DType::i8, {1}}};
  write_checkpoint(folder / "m", one, {"x"});
  EXPECT_EQ(outcome(CheckpointWriter::create(folder / "m", one)), "weights.folder_exists");
  EXPECT_EQ(outcome(CheckpointWriter::create((folder / "m").string() + "/", one)), "weights.folder_exists");
  write_checkpoint(folder / "m", one, {"y"}, {.overwrite = true});
  EXPECT_EQ(read_range(Checkpoint::open(folder / "m")->find("a")), "y");
  spit(folder / "m" / "thesis.odt", "years of work");
  EXPECT_EQ(outcome(CheckpointWriter::create(folder / "m", one, {.overwrite = true})), "weights.folder_not_checkpoint");
  EXPECT_EQ(outcome(CheckpointWriter::create(folder / "none" / "m", one)), "weights.no_parent");
  spit(folder / "file", "");
  EXPECT_EQ(outcome(CheckpointWriter::create(folder / "file", one, {.overwrite = true})), "weights.not_a_folder");
  EXPECT_EQ(folder.entries(), 2u);
}

TEST(Writer, NothingIsLeftWithoutCommit) {
  const Folder folder;
  {
    auto writer = CheckpointWriter::create(folder / "m", {{"a", DType::i8, {10}}});
    ASSERT_TRUE(writer);
    ASSERT_TRUE(writer->add_file("config.json", "{}"));
    EXPECT_EQ(folder.entries(), 1u);  // the hidden one
    EXPECT_FALSE(std::filesystem::exists(folder / "m"));
  }
  EXPECT_EQ(folder.entries(), 0u);
}

TEST(Writer, ATargetThatAppearsMeanwhileIsNotTouched) {
  const Folder folder;
  auto writer = CheckpointWriter::create(folder / "m", {{"a", DType::i8, {10}}});
  ASSERT_TRUE(writer);
  std::filesystem::create_directory(folder / "m");
  spit(folder / "m" / "mine", "x");
  EXPECT_EQ(outcome(writer->commit()), "base.cannot_write");
  EXPECT_EQ(slurp(folder / "m" / "mine"), "x");
}

TEST(Writer, CleansUpAfterTheKilledButNotAfterTheLiving) {
  const Folder folder;
  const std::vector<TensorSpec> one = {{"a", DType::i8, {10}}};
  auto living = CheckpointWriter::create(folder / "m", one);
  ASSERT_TRUE(living);
  const pid_t child = ::fork();
  if (child == 0) {
    auto killed = CheckpointWriter::create(folder / "m", one);
    ::kill(::getpid(), SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(folder.entries(), 2u);
  EXPECT_FALSE(std::filesystem::exists(folder / "m"));
  write_checkpoint(folder / "m", one, {"0123456789"});
  EXPECT_EQ(folder.entries(), 2u);  // m and the living one's
  living = CheckpointWriter::create(folder / "n", one);
}

TEST(Writer, TooLittleSpaceIsSaidBeforehand) {
  const Folder folder;
  const auto writer = CheckpointWriter::create(folder / "m", {{"a", DType::i8, {std::int64_t{1} << 60}}});
  ASSERT_EQ(outcome(writer), "weights.disk_full");
  EXPECT_EQ(writer.error().kind, ErrorKind::kEnvironment);
  EXPECT_EQ(folder.entries(), 0u);
}

TEST(Writer, AFileLimitIsAnErrorNotASignal) {
  const Folder folder;
  const pid_t child = ::fork();
  if (child == 0) {
    const struct rlimit limit = {100'000, 100'000};
    if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) ::_exit(3);
    const auto writer = CheckpointWriter::create(folder / "m", {{"a", DType::i8, {200'000}}});
    ::_exit(outcome(writer) == "weights.file_limit" ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(Writer, AFullDiskMidwayLeavesNothing) {
  const Folder folder;
  const Path disk = folder / "disk";
  std::filesystem::create_directory(disk);
  if (::mount("tmpfs", disk.c_str(), "tmpfs", 0, "size=4m") != 0) GTEST_SKIP() << "no right to mount a small disk here";
  {
    auto writer = CheckpointWriter::create(disk / "m", {{"a", DType::i8, {2'000'000}}});
    EXPECT_EQ(outcome(writer), "ok");
    spit(disk / "hog", std::string(3'000'000, 'x'));  // takes all that the reservation left
    const std::string data = payload(2'000'000, 1);
    EXPECT_EQ(outcome(writer->write(0, 0, std::as_bytes(std::span(data)))), "ok");  // its space is its own
    EXPECT_EQ(outcome(writer->add_file("config.json", std::string(1'000'000, ' '))), "base.cannot_write");
  }
  const auto second = CheckpointWriter::create(disk / "n", {{"a", DType::i8, {3'000'000}}});
  EXPECT_EQ(outcome(second), "weights.disk_full");
  std::size_t left = 0;
  for (const auto& entry : std::filesystem::directory_iterator(disk)) left += entry.path().filename() != "hog" ? 1 : 0;
  EXPECT_EQ(left, 0u);
  EXPECT_EQ(::umount(disk.c_str()), 0);
}

}  // namespace
}  // namespace fathom::weights
