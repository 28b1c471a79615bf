#include "weights/safetensors.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <map>

#include "support.h"
#include "weights/checkpoint.h"
#include "weights/json_scanner.h"

namespace fathom::weights {
namespace {
using namespace test;  // NOLINT

std::string key_of(std::string_view header, std::size_t data_bytes) {
  return outcome(parse_safetensors_header(header, 0, data_bytes, "x"));
}

TEST(SafetensorsHeader, ReadsWhatTheFormatSays) {
  const auto header = parse_safetensors_header(R"( {"b":{"dtype":"F32","shape":[2,3],"data_offsets":[4,28]},
    "__metadata__":{"format":"pt","k\u00e9":"\ud83d\ude00"}, "a":{"shape":[],"data_offsets":[0,4],"dtype":"I32","new":{"x":[1,-2.5e3,null,true]}}}  )",
                                               100, 28, "x");
  ASSERT_TRUE(header) << error_text(header.error());
  ASSERT_EQ(header->tensors.size(), 2u);
  EXPECT_EQ(header->tensors[0].name, "a");
  EXPECT_EQ(header->tensors[0].rank, 0);
  EXPECT_EQ(header->tensors[1].begin, 104u);
  EXPECT_EQ(header->tensors[1].end, 128u);
  EXPECT_EQ(header->tensors[1].dtype, DType::f32);
  EXPECT_EQ(shape_text(header->tensors[1].dims()), "[2, 3]");
  ASSERT_EQ(header->metadata.size(), 2u);
  EXPECT_EQ(header->metadata[1].first, "k\u00e9");
  EXPECT_EQ(header->metadata[1].second, "\U0001f600");
}

TEST(SafetensorsHeader, EmptyTensorsAndUnknownTypes) {
  EXPECT_EQ(key_of(R"({})", 0), "ok");
  EXPECT_EQ(key_of(R"({"a":{"dtype":"F32","shape":[0,9223372036854775807],"data_offsets":[0,0]}})", 0), "ok");
  EXPECT_EQ(key_of(R"({"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}})", 2),
            "ok");  // sizes of unknown types are not known
  const auto header =
      parse_safetensors_header(R"({"a":{"dtype":"bfloat16","shape":[1],"data_offsets":[0,2]}})", 0, 2, "x");
  ASSERT_TRUE(header);
  EXPECT_FALSE(header->tensors[0].dtype);  // torch's name, not the format's
}

TEST(SafetensorsHeader, RefusesWhatIsNotAHeader) {
  const std::map<std::string, std::string> cases = {
      {"", "weights.header_json"},
      {"[]", "weights.header_json"},
      {"null", "weights.header_json"},
      {"{", "weights.header_json"},
      {R"({"a":1})", "weights.header_json"},
      {R"({} x)", "weights.header_json"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},})", "weights.header_json"},
      {R"({"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}})", "weights.header_json"},
      {R"({"a":{"dtype":"U8","shape":[01],"data_offsets":[0,1]}})", "weights.header_json"},
      {R"({"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}})", "weights.header_json"},
      {R"({"a":{"dtype":"U8","shape":[99999999999999999999],"data_offsets":[0,1]}})", "weights.header_json"},
      {R"({"a":{"dtype":"U8","shape":[1],"shape":[1],"data_offsets":[0,1]}})", "weights.header_json"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,1]}})", "weights.header_json"},
      {R"({"a":{"dtype":"U8","shape":[1]}})", "weights.header_incomplete"},
      {R"({"a":{}})", "weights.header_incomplete"},
      {R"({"\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "weights.header_json"},
      {R"({"\udc00\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "weights.header_json"},
      {R"({"__metadata__":{"a":1}})", "weights.header_json"},
      {R"({"__metadata__":{},"__metadata__":{}})", "weights.duplicate_name"},
      {R"({"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}})", "weights.rank"},
      {std::string("{\"a\n\":{}}"), "weights.header_json"},
      {std::string("{\"\xff\":{}}"), "weights.header_utf8"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":)" + std::string(100'000, '['),
       "weights.header_json"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", "weights.outside"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}})", "weights.outside"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,9223372036854775807]}})", "weights.outside"},
      {R"({"a":{"dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,1]}})", "weights.shape_overflow"},
      {R"({"a":{"dtype":"U8","shape":[4294967296,4294967296,2],"data_offsets":[0,1]}})", "weights.shape_overflow"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,1]}})", "weights.size_mismatch"},
      {R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,1]}})", "weights.size_mismatch"},
  };
  for (const auto& [header, key] : cases) EXPECT_EQ(key_of(header, 1), key) << header.substr(0, 200);
}

TEST(SafetensorsHeader, RefusesOverlapsHolesAndTwins) {
  const auto two = [](const char* a, int a0, int a1, const char* b, int b0, int b1) {
    const auto one = [](const char* name, int from, int to) {
      return "\"" + std::string(name) + "\":{\"dtype\":\"U8\",\"shape\":[" + std::to_string(to - from) +
             "],\"data_offsets\":[" + std::to_string(from) + "," + std::to_string(to) + "]}";
    };
    return "{" + one(a, a0, a1) + "," + one(b, b0, b1) + "}";
  };
  EXPECT_EQ(key_of(two("a", 0, 4, "b", 4, 8), 8), "ok");
  EXPECT_EQ(key_of(two("a", 4, 8, "b", 0, 4), 8), "ok");
  EXPECT_EQ(key_of(two("a", 0, 5, "b", 4, 8), 8), "weights.overlap");
  EXPECT_EQ(key_of(two("a", 0, 8, "b", 0, 8), 8), "weights.overlap");
  EXPECT_EQ(key_of(two("a", 0, 3, "b", 4, 8), 8), "weights.hole");
  EXPECT_EQ(key_of(two("a", 1, 4, "b", 4, 8), 8), "weights.hole");
  EXPECT_EQ(key_of(two("a", 0, 4, "b", 4, 8), 9), "weights.trailing");
  EXPECT_EQ(key_of(two("a", 0, 4, "\\u0061", 4, 8), 8), "weights.duplicate_name");
}

TEST(SafetensorsFile, HostileLengths) {
  Folder folder;
  const Path path = folder / "x.safetensors";
  const auto key = [&](const std::string& bytes) {
    spit(path, bytes);
    return outcome(SafetensorsFile::open(path));
  };
  const auto lying = [](std::uint64_t length, std::string rest) {
    return std::string(reinterpret_cast<const char*>(&length), 8) + rest;
  };
  EXPECT_EQ(key(""), "weights.truncated");
  EXPECT_EQ(key("1234567"), "weights.truncated");
  EXPECT_EQ(key(lying(0, "")), "weights.header_json");
  EXPECT_EQ(key(lying(3, "{}")), "weights.header_beyond_file");
  EXPECT_EQ(key(lying(~0ull, "{}")), "weights.header_beyond_file");
  EXPECT_EQ(key(lying(1ull << 63, "{}")), "weights.header_beyond_file");
  EXPECT_EQ(key(lying(2, "{}")), "ok");
  EXPECT_EQ(key(lying(2, "{}x")), "weights.trailing");
  EXPECT_EQ(outcome(SafetensorsFile::open(folder / "none")), "base.cannot_open");
  EXPECT_EQ(outcome(SafetensorsFile::open(folder.path())), "base.not_a_file");
  EXPECT_EQ(outcome(SafetensorsFile::open("/dev/null")), "base.not_a_file");
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  EXPECT_EQ(outcome(SafetensorsFile::open(folder / "pipe")), "base.not_a_file");  // and does not hang
}

TEST(SafetensorsFile, HugeSparseHeaderIsRefusedBySize) {
  Folder folder;
  const Path path = folder / "x.safetensors";
  const std::uint64_t length = 600 * kMiB;
  spit(path, std::string(reinterpret_cast<const char*>(&length), 8));
  std::filesystem::resize_file(path, 700 * kMiB);
  EXPECT_EQ(outcome(SafetensorsFile::open(path)), "weights.header_too_long");
}

TEST(SafetensorsFile, HundredThousandTensorsOpenAtOnce) {
  std::string header = "{";
  for (int i = 0; i < 100'000; ++i)
    header += (i > 0 ? ",\"" : "\"") + std::string("model.layers.") + std::to_string(i) +
              ".weight\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[" + std::to_string(i) + "," +
              std::to_string(i + 1) + "]}";
  const auto parsed = parse_safetensors_header(header + "}", 0, 100'000, "x");  // n log n: minutes if it were quadratic
  ASSERT_TRUE(parsed);
  EXPECT_EQ(parsed->tensors.size(), 100'000u);
}

TEST(JsonScanner, StaysWhereItFailed) {
  JsonScanner json("  [1, 2");
  std::uint64_t n = 0;
  EXPECT_TRUE(json.take('['));
  EXPECT_TRUE(json.integer(n));
  EXPECT_FALSE(json.take(']'));
  EXPECT_EQ(json.position(), 4u);
}

RC_GTEST_PROP(JsonScanner, StringsComeBackThroughEscapes, (const std::string& text)) {
  std::string json = "\"";
  for (const char c : text) {
    char escape[8];
    std::snprintf(escape, sizeof escape, "\\u%04x", static_cast<unsigned>(static_cast<unsigned char>(c) & 0x7f));
    json += escape;
  }
  JsonScanner scanner(json += "\"");
  std::string out, expected;
  for (const char c : text) expected.push_back(static_cast<char>(c & 0x7f));
  RC_ASSERT(scanner.string(out) && scanner.at_end());
  RC_ASSERT(out == expected);
}

// ---------------------------------------------------------------- folders

std::string tiny(const std::string& name) {
  return file_bytes("{\"" + name + "\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", "x");
}

TEST(Checkpoint, SingleFileWinsOverOthers) {
  Folder folder;
  spit(folder / "model.safetensors", tiny("a"));
  spit(folder / "reference.safetensors", tiny("logits.0"));
  const auto checkpoint = Checkpoint::open(folder.path());
  ASSERT_TRUE(checkpoint);
  EXPECT_TRUE(checkpoint->find("a"));
  EXPECT_FALSE(checkpoint->find("logits.0"));
  EXPECT_FALSE(checkpoint->find("b"));
  EXPECT_TRUE(Checkpoint::open(folder / "model.safetensors"));
}

TEST(Checkpoint, LooseFilesAndMissingShards) {
  Folder folder;
  EXPECT_EQ(outcome(Checkpoint::open(folder.path())), "weights.no_files");
  spit(folder / "model-00001-of-00003.safetensors", tiny("a"));
  spit(folder / "model-00003-of-00003.safetensors", tiny("c"));
  const auto missing = Checkpoint::open(folder.path());
  ASSERT_EQ(outcome(missing), "weights.missing_shard");
  EXPECT_EQ(missing.error().args[0].second, "model-00002-of-00003.safetensors");
  spit(folder / "model-00002-of-00003.safetensors", tiny("b"));
  const auto whole = Checkpoint::open(folder.path());
  ASSERT_TRUE(whole);
  EXPECT_EQ(whole->tensors().size(), 3u);
  spit(folder / "extra.safetensors", tiny("b"));
  EXPECT_EQ(outcome(Checkpoint::open(folder.path())), "weights.in_two_files");
}

TEST(Checkpoint, AbsurdShardCountsAreNotCountedOut) {
  Folder folder;
  spit(folder / "model-1-of-999999999.safetensors", tiny("a"));
  EXPECT_EQ(outcome(Checkpoint::open(folder.path())), "weights.missing_shard");
}

TEST(Checkpoint, IndexDecidesAndMustNotLie) {
  Folder folder;
  const Path index = folder / kIndexName;
  const auto with = [&](const std::string& map) {
    spit(index, "{\"metadata\":{\"total_size\":2},\"weight_map\":{" + map + "}}");
    return Checkpoint::open(folder.path());
  };
  spit(folder / "p.safetensors", tiny("a"));
  spit(folder / "q.safetensors", tiny("a"));
  const auto chosen = with(R"("a":"q.safetensors")");
  ASSERT_TRUE(chosen) << error_text(chosen.error());
  EXPECT_EQ(chosen->find("a").file->path().filename(), "q.safetensors");
  spit(folder / "r2.safetensors", tiny("b"));
  EXPECT_EQ(outcome(with(R"("b":"r2.safetensors")")), "ok");  // only the shards that it names are opened
  EXPECT_EQ(outcome(with(R"("a":"r.safetensors")")), "weights.missing_shard");
  EXPECT_EQ(outcome(with(R"("a":"p.safetensors","b":"p.safetensors")")), "weights.index_lies");
  EXPECT_EQ(outcome(with(R"("a":"p.safetensors","a":"q.safetensors")")), "weights.duplicate_name");
  EXPECT_EQ(outcome(with(R"("a":"../q.safetensors")")), "weights.index_path");
  EXPECT_EQ(outcome(with(R"("a":"")")), "weights.index_path");
  EXPECT_EQ(outcome(with(R"("a":1)")), "weights.index_json");
  spit(index, "{}");
  EXPECT_EQ(outcome(Checkpoint::open(folder.path())), "weights.index_json");
  spit(index, std::string(1'000'000, '['));
  EXPECT_EQ(outcome(Checkpoint::open(folder.path())), "weights.index_json");
  spit(index, R"({"x":)" + std::string(1'000'000, '['));
  EXPECT_EQ(outcome(Checkpoint::open(folder.path())), "weights.index_json");
}

TEST(Checkpoint, IndexMayLeaveOutWhatAShardHolds) {
  Folder folder;
  spit(
      folder / "p.safetensors",
      file_bytes(
          R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"z":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})",
          "xyz"));
  spit(folder / kIndexName, R"({"weight_map":{"b":"p.safetensors"}})");
  const auto checkpoint = Checkpoint::open(folder.path());
  ASSERT_TRUE(checkpoint);
  for (const char* name : {"a", "b", "z"}) EXPECT_TRUE(checkpoint->find(name)) << name;
  spit(
      folder / "q.safetensors",
      file_bytes(
          R"({"c":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"z":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
          "xy"));
  spit(folder / kIndexName, R"({"weight_map":{"b":"p.safetensors","c":"q.safetensors"}})");
  EXPECT_EQ(outcome(Checkpoint::open(folder.path())), "weights.in_two_files");  // z, of which the index says nothing
}

}  // namespace
}  // namespace fathom::weights
