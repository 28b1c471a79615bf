// Whatever a file, a flag or the machine may do to us: one clear sentence, exit code 2, never a crash.
#include <cstring>
#include <limits>

#include "base/json.h"
#include "process.h"
#include "support/paths.h"

namespace fathom::cli {
namespace {
using namespace test;  // NOLINT

const fs::path kGoldenFolder = fathom::test::fixtures() / "golden" / "llama-mha";

// A copy of the tiny llama, to be damaged.
class Damaged : public testing::Test {
 protected:
  void SetUp() override {
    for (const char* file : {"config.json", "model.safetensors", "reference.safetensors"})
      fs::copy_file(kGoldenFolder / file, folder_ / file);
    bytes_ = slurp(folder_ / "model.safetensors");
    std::memcpy(&header_bytes_, bytes_.data(), 8);
    header_ = *parse_json(std::string_view(bytes_).substr(8, header_bytes_), "header");
  }
  std::string folder() const { return folder_.path().string(); }
  // The model with another header text (and, when given, another length than it has).
  void put_header(std::string_view text, std::optional<std::uint64_t> length = {}) {
    const std::uint64_t n = length.value_or(text.size());
    std::string out(8, '\0');
    std::memcpy(out.data(), &n, 8);
    spit(folder_ / "model.safetensors", out + std::string(text) + bytes_.substr(8 + header_bytes_));
  }
  void refuse(const std::string& what, const std::vector<std::string>& mentions = {}) {
    expect_refused(run({"verify", folder(), "--threads", "1"}), what, mentions);
  }
  void put_config(const std::string& key, const Json& value) {
    Json config = *parse_json(slurp(kGoldenFolder / "config.json"), "config");
    config[key] = value;
    spit(folder_ / "config.json", dump_json(config));
  }

  Folder folder_;
  std::string bytes_;
  std::uint64_t header_bytes_ = 0;
  Json header_;
};

TEST_F(Damaged, NotDamagedIsAccepted) { EXPECT_EQ(run({"verify", folder(), "--threads", "1"}).code, 0); }

TEST_F(Damaged, WeightsThatAreCutShort) {
  for (const std::size_t n : {std::size_t{0}, std::size_t{1}, std::size_t{7}, std::size_t{8}, header_bytes_ / 2,
                              header_bytes_ + 8, bytes_.size() / 2, bytes_.size() - 1}) {
    spit(folder_ / "model.safetensors", std::string_view(bytes_).substr(0, n));
    refuse("cut after " + std::to_string(n), {"model.safetensors"});
  }
}

TEST_F(Damaged, HeadersThatLieAboutTheirLength) {
  for (const std::uint64_t n : {std::uint64_t{0}, std::uint64_t{1}, header_bytes_ - 1, header_bytes_ + 1,
                                std::uint64_t{1} << 40, std::uint64_t{1} << 63, ~std::uint64_t{0}}) {
    put_header(dump_json(header_), n);
    refuse("length " + std::to_string(n), {"model.safetensors"});
  }
}

TEST_F(Damaged, HeadersThatOverflowOrContradictThemselves) {
  constexpr const char* kName = "model.norm.weight";
  const auto damage = [&](const std::string& key, const std::string& value) {
    Json header = header_;
    header[kName][key] = *parse_json(value, "value");
    put_header(dump_json(header));
    refuse(key + " " + value, {"model.safetensors"});
  };
  for (const char* offsets : {"[9223372036854775807, 18446744073709551615]", "[-4, 252]", "[0, 256]", "[256, 0]",
                              "[1, 2, 3]", "[]", "\"0\"", "null", "[0.5, 256]", "[0, 999999999999]"})
    damage("data_offsets", offsets);
  for (const char* shape : {"[4611686018427387904, 4611686018427387904]", "[-64]", "[63]", "[2, 32]", "[1.5]", "\"64\"",
                            "[[64]]", "[1,1,1,1,1,1,1,1,1,1,1,64]"})
    damage("shape", shape);
  for (const char* dtype : {"\"F16\"", "\"I64\"", "\"XYZ\"", "7", "null"}) damage("dtype", dtype);
}

TEST_F(Damaged, HeadersThatAreNone) {
  for (const std::string& text :
       {std::string("hello"), std::string("[]"), std::string("{"), std::string(100'000, '['), std::string(64, '\0'),
        std::string("{\"\xff\xfe\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}")}) {
    put_header(text);
    refuse("header " + text.substr(0, 10), {"model.safetensors"});
  }
}

TEST_F(Damaged, TensorsThatAreMissingOrUnknown) {
  Json header = header_;
  header["model.unheard.of"] = header["model.norm.weight"];
  header.erase("model.norm.weight");
  put_header(dump_json(header));
  refuse("a tensor under another name", {"model.norm.weight"});
}

TEST_F(Damaged, WeightsThatAreNotNumbers) {
  const auto begin = header_["model.norm.weight"]["data_offsets"][0].get<std::size_t>();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::string bytes = bytes_;
  std::memcpy(bytes.data() + 8 + header_bytes_ + begin, &nan, sizeof nan);
  spit(folder_ / "model.safetensors", bytes);
  const Outcome o = run({"verify", folder(), "--threads", "1"});
  EXPECT_EQ(o.code, 1) << "the answer is no: " << o.err;
  EXPECT_NE(o.out.find("NaN"), std::string::npos) << o.out;
}

TEST_F(Damaged, ConfigsThatAreAbsurd) {
  const std::vector<std::pair<std::string, Json>> cases = {{"hidden_size", -1},
                                                           {"hidden_size", 0},
                                                           {"hidden_size", 1e300},
                                                           {"hidden_size", "64"},
                                                           {"num_hidden_layers", 0},
                                                           {"num_hidden_layers", std::int64_t{1} << 50},
                                                           {"vocab_size", std::int64_t{1} << 40},
                                                           {"num_attention_heads", 3},
                                                           {"num_key_value_heads", 3},
                                                           {"num_attention_heads", Json::array({4})},
                                                           {"rms_norm_eps", 1e308},
                                                           {"rms_norm_eps", -1},
                                                           {"hidden_act", "swish2"},
                                                           {"my_new_mathematics", 3},
                                                           {"max_position_embeddings", -7},
                                                           {"model_type", 3},
                                                           {"model_type", "llamma"},
                                                           {"quantization_config", Json{{"quant_method", "awq"}}}};
  for (const auto& [key, value] : cases) {
    put_config(key, value);
    refuse(key + " " + dump_json(value), {"config.json"});
  }
  put_config("model_type", "llamma");
  refuse("a near name", {"llama"});
}

TEST_F(Damaged, ConfigsThatAreNoJson) {
  const std::string sound = slurp(kGoldenFolder / "config.json");
  std::string not_a_number = sound, too_large = sound;
  not_a_number.replace(not_a_number.find("1e-06"), 5, "NaN");
  too_large.replace(too_large.find("1e-06"), 5, "1e999");
  for (const std::string& text :
       {std::string(), std::string("hello"), std::string("[]"), std::string("null"), sound.substr(0, sound.size() / 2),
        std::string(200'000, '['), std::string(5 << 20, ' ') + sound, std::string("{\"model_type\": \"\xff\"}"),
        std::string(100, '\0'), not_a_number, too_large}) {
    spit(folder_ / "config.json", text);
    refuse("config " + text.substr(0, 12), {"config.json"});
  }
  fs::remove(folder_ / "config.json");
  refuse("no config", {"config.json"});
}

TEST_F(Damaged, FilesThatAreFoldersOrMissing) {
  fs::remove(folder_ / "model.safetensors");
  refuse("no weights", {".safetensors"});
  fs::create_directory(folder_ / "model.safetensors");
  refuse("a folder in place of weights", {"model.safetensors"});
}

TEST(Flags, OutsideTheirRangesAreRefused) {
  const std::string golden = kGoldenFolder.string();
  for (const std::vector<std::string>& words :
       std::vector<std::vector<std::string>>{{"plan", "r1", "--on", "8xH200", "--context", "-1"},
                                             {"plan", "r1", "--on", "99999999999999xH200"},
                                             {"plan", "r1", "--on", "8xH200", "--tp", "3"},
                                             {"plan", "r1", "--on", "8xH200", "--batch-size", "0"},
                                             {"plan", "r1", "--on", "8xH200", "--input", "nan"},
                                             {"plan"},
                                             {"bench", golden, "--batch", "0"},
                                             {"bench", golden, "--prompt", "x"},
                                             {"bench", golden, "--prompt", "100000"},
                                             {"run", "default", "-p", "x", "--temperature", "-1"},
                                             {"run", "default", "-p", "x", "--top-p", "nan"},
                                             {"run", "default", "-p", ""},
                                             {"verify", golden, "--dtype", "int3"},
                                             {"models", "--max-params", "abc"},
                                             {"probe", "--quick", "--thorough"}})
    expect_refused(run(words), joined(words));
}

TEST(Output, ThatCannotBeWritten) {
  const Folder folder;
  const std::string golden = kGoldenFolder.string();
  expect_refused(run({"synth", golden, "-o", "/proc/nowhere"}), "a folder that cannot be made", {"/proc/nowhere"});
  spit(folder / "file", "x");
  expect_refused(run({"synth", golden, "-o", (folder / "file/below").string()}), "a folder below a file");
  const fs::path out = folder / "model";
  expect_refused(run({"synth", golden, "-o", out.string()}, {.file_bytes = 100'000}), "a full disk");
  EXPECT_FALSE(fs::exists(out)) << "nothing half-written stays";
  expect_refused(run({"plan", "r1", "--on", "8xH200", "--json"}, {.out_to = "/dev/full"}),
                 "standard output that is full");
}

TEST(Memory, ThatIsNotThere) {
  if (::getenv("FATHOM_NO_MEMORY_LIMITS") != nullptr) GTEST_SKIP() << "sanitizers need address space";
  expect_refused(
      run({"bench", "default", "--prompt", "16", "--generate", "2"}, {.memory_bytes = std::uint64_t{400} << 20}),
      "weights that do not fit", {"MiB"});
}

TEST(UserFiles, ThatAreBroken) {
  const Folder home;
  fs::create_directories(home / "models");
  fs::create_directories(home / "hardware");
  const auto refuse = [&](const std::string& kind, std::string_view text, const std::vector<std::string>& words) {
    spit(home / (kind + "/mine.json"), text);
    expect_refused(run(words, {.home = home.path().string()}), kind + " " + std::string(text.substr(0, 40)),
                   {"mine.json"});
    fs::remove(home / (kind + "/mine.json"));
  };
  refuse("models",
         R"({"family":"f","models":[{"id":"me/a","same_config_as":"me/b"},{"id":"me/b","same_config_as":"me/a"}]})",
         {"models"});
  refuse("models", "\xff{", {"models"});
  refuse("models", std::string(100'000, '['), {"models"});
  refuse("models", R"({"family":"f","models":[{"id":"me/a"}]})", {"models"});
  refuse("hardware", R"({"accelerators":[{"id":"x"}]})", {"hardware"});
  refuse("hardware", "nope", {"plan", "r1", "--on", "8xH200"});
}

TEST(Batch, GoesOnAfterABadLine) {
  const Outcome o =
      run({"plan", "--batch", "-"},
          {.input = "{\"id\":1}\n\xff\xfe\n" + std::string(100'000, '[') +
                    "\n{\"id\":\"z\",\"model\":\"r1\",\"hardware\":\"h200\",\"gpus\":8,\"task\":\"chat\"}\n"});
  EXPECT_EQ(o.signal, 0);
  EXPECT_EQ(o.code, 0) << o.err;
  EXPECT_EQ(std::count(o.out.begin(), o.out.end(), '\n'), 4) << o.out.substr(0, 500);
  EXPECT_NE(o.out.find("\"z\""), std::string::npos);
  expect_refused(run({"plan", "--batch", "/nonexistent"}), "requests that are not there", {"/nonexistent"});
}

}  // namespace
}  // namespace fathom::cli
