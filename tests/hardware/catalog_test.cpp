#include "hardware/catalog.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <unistd.h>

#include <cmath>
#include <fstream>
#include <set>

#include "base/json.h"
#include "base/strings.h"
#include "hardware/catalog_describe.h"
#include "hardware/catalog_load.h"
#include "hardware/catalog_match.h"

namespace fathom::hardware {
namespace {

using ::testing::HasSubstr;

const Catalog& facts() {
  static const Result<Catalog> catalog = Catalog::load("/nonexistent");
  EXPECT_TRUE(catalog) << error_text(catalog.error());
  return *catalog;
}

std::string id_of(std::string_view name, Bytes memory = 0) {
  const auto choice = facts().find(name, memory);
  return choice ? choice->accelerator->id : "error: " + choice.error().key.substr(choice.error().key.find('.') + 1);
}

const Accelerator& card(std::string_view name) { return *facts().find(name).value().accelerator; }

// A user's folder that is gone when the test is.
class UserFolder {
 public:
  UserFolder() : path_(std::filesystem::temp_directory_path() / ("fathom_catalog_" + std::to_string(::getpid()))) {
    std::filesystem::create_directories(path_ / "hardware");
  }
  ~UserFolder() { std::filesystem::remove_all(path_); }
  const Path& path() const { return path_; }
  void write(const std::string& name, std::string_view text) const { std::ofstream(path_ / "hardware" / name) << text; }

 private:
  Path path_;
};

Result<Catalog> with_user_file(std::string_view text) {
  UserFolder folder;
  folder.write("mine.json", text);
  return Catalog::load(folder.path());
}

std::string error_of(std::string_view user_file) {
  const auto catalog = with_user_file(user_file);
  return catalog ? "no error" : catalog.error().key.substr(catalog.error().key.find('.') + 1);
}

// The paths of all fields of a record.
class PathCollector final : public FieldVisitor {
 public:
  void text(std::string_view path, std::string&) override { paths_.emplace(path); }
  void texts(std::string_view path, std::vector<std::string>&) override { paths_.emplace(path); }
  void number(std::string_view path, Unit, std::optional<double>&) override { paths_.emplace(path); }
  void bytes(std::string_view path, Unit, std::optional<Bytes>&) override { paths_.emplace(path); }
  void integer(std::string_view path, std::optional<int>&) override { paths_.emplace(path); }
  void count(std::string_view path, int&, int) override { paths_.emplace(path); }
  void flag(std::string_view path, bool&) override { paths_.emplace(path); }
  void range(std::string_view path, Unit, std::optional<double>&, std::optional<double>&) override {
    paths_.emplace(path);
  }
  void numbers(std::string_view path, Unit, std::map<std::string, double>&) override { paths_.emplace(path); }
  void street(std::string_view path, std::vector<StreetPrice>&) override { paths_.emplace(path); }
  void cloud(std::string_view path, std::vector<CloudPrice>&) override { paths_.emplace(path); }
  bool has(const std::string& path) const {
    const auto at = paths_.lower_bound(path);
    return at != paths_.end() && (*at == path || at->starts_with(path + "."));
  }

 private:
  std::set<std::string> paths_;
};

TEST(HardwareCatalog, HoldsAllTheFacts) {
  EXPECT_EQ(facts().accelerators().size(), 85u);
  EXPECT_EQ(facts().cpus().size(), 15u);
  EXPECT_EQ(facts().links().size(), 31u);
  EXPECT_EQ(facts().storage().size(), 11u);
  EXPECT_EQ(facts().offers().size(), 47u);
  EXPECT_EQ(facts().sources().size(), 152u);
}

TEST(HardwareCatalog, FiguresAreInBaseUnitsAndDense) {
  const Accelerator& h100 = card("h100-sxm5-80gb");
  EXPECT_EQ(h100.usable_memory_bytes(), 81559 * kMiB);
  EXPECT_EQ(*h100.memory.marketed_bytes, 80'000'000'000u);
  EXPECT_DOUBLE_EQ(*h100.memory.bandwidth_bytes_per_second, 3350e9);
  EXPECT_DOUBLE_EQ(*h100.peak(Precision::bf16), 989.4e12);
  EXPECT_DOUBLE_EQ(*h100.peak(Precision::fp8), 1978.9e12);
  EXPECT_FALSE(h100.peak(Precision::fp4));
  EXPECT_EQ(*h100.l2_bytes, 50 * kMiB);
  EXPECT_DOUBLE_EQ(*h100.node.intra_bytes_per_second, 450e9);
  EXPECT_DOUBLE_EQ(*h100.node.inter_bytes_per_second, 8 * 50e9);
  EXPECT_EQ(h100.node.devices, 8);
}

struct Peak {
  const char* id;
  Precision precision;
  double tflops, gb_s;
};
TEST(HardwareCatalog, PeaksOfTheMainCards) {
  const Peak expected[] = {
      {"rtx-4090", Precision::bf16, 165.2, 1008},       {"rtx-5090", Precision::fp8, 838, 1792},
      {"a100-sxm4-80gb", Precision::bf16, 312, 2039},   {"a100-sxm4-40gb", Precision::int8, 624, 1555},
      {"h100-pcie-80gb", Precision::bf16, 756.5, 2039}, {"h200-sxm-141gb", Precision::fp8, 1978.9, 4800},
      {"b200-sxm-180gb", Precision::bf16, 2250, 7672},  {"b300-sxm-288gb", Precision::int8, 153.5, 7750},
      {"gb200-186gb", Precision::fp4, 10000, 8000},     {"mi300x", Precision::bf16, 1307.4, 5300},
      {"h20-96gb", Precision::fp16, 148, 4000},         {"l40s", Precision::fp8, 733, 864},
      {"ascend-910b2", Precision::fp16, 353.9, 1600},   {"apple-m3-ultra", Precision::fp16, 28.4, 819},
  };
  for (const Peak& peak : expected) {
    const auto choice = facts().find(peak.id);
    ASSERT_TRUE(choice) << peak.id;
    ASSERT_TRUE(choice->accelerator->peak(peak.precision)) << peak.id;
    EXPECT_DOUBLE_EQ(*choice->accelerator->peak(peak.precision), peak.tflops * 1e12) << peak.id;
    EXPECT_DOUBLE_EQ(*choice->accelerator->memory.bandwidth_bytes_per_second, peak.gb_s * 1e9) << peak.id;
  }
  // Every card that can be advised has what a plan needs.
  for (const Accelerator& a : facts().accelerators()) {
    EXPECT_GT(a.usable_memory_bytes(), 0u) << a.id;
    if (!a.advise) continue;
    EXPECT_TRUE(a.memory.bandwidth_bytes_per_second) << a.id;
    EXPECT_FALSE(a.node.intra_kind.empty()) << a.id;
  }
}

TEST(HardwareCatalog, EveryFigureHasASourceOrIsListedAsUnverified) {
  const auto check = [](const auto& record) {
    const Provenance& p = record.provenance;
    EXPECT_FALSE(p.as_of.empty()) << record.id;
    EXPECT_TRUE(p.confidence == "high" || p.confidence == "medium" || p.confidence == "low")
        << record.id << ' ' << p.confidence;
    for (const std::string& id : p.sources) {
      const Source* source = facts().source(id);
      ASSERT_NE(source, nullptr) << record.id << ' ' << id;
      EXPECT_FALSE(source->date.empty() || source->url.empty()) << id;
    }
    const std::vector<Figure> all = figures(record);
    EXPECT_FALSE(all.empty()) << record.id;
    for (const Figure& figure : all)
      EXPECT_TRUE(!p.sources.empty() || figure.trust == Trust::kUnverified) << record.id << ' ' << figure.path;
    // A path that names nothing would hide a spelling mistake.
    PathCollector known;
    auto copy = record;
    visit(copy, known);
    for (const auto* list : {&p.unverified, &p.link_lost})
      for (const std::string& path : *list)
        EXPECT_TRUE(path == "*" || known.has(path)) << record.id << ": " << path << " names no field";
  };
  for (const Accelerator& record : facts().accelerators()) check(record);
  for (const Cpu& record : facts().cpus()) check(record);
  for (const Link& record : facts().links()) check(record);
  for (const Storage& record : facts().storage()) check(record);
  for (const CloudOffer& record : facts().offers()) check(record);
  for (const Accelerator& a : facts().accelerators()) {
    EXPECT_TRUE(!a.msrp_usd || !a.msrp_source.empty() || a.provenance.is_unverified("price.msrp_usd")) << a.id;
    for (const StreetPrice& price : a.street)
      EXPECT_TRUE(facts().source(price.source) || a.provenance.is_unverified("price.street") ||
                  a.provenance.is_link_lost("price.street"))
          << a.id;
    for (const CloudPrice& price : a.cloud) EXPECT_TRUE(facts().source(price.source) && !price.date.empty()) << a.id;
  }
}

TEST(HardwareCatalog, EveryIdDriverNameAndShortNameResolves) {
  std::set<std::string> ids;
  for (const Accelerator& a : facts().accelerators()) {
    EXPECT_TRUE(ids.insert(a.id).second) << a.id;
    EXPECT_EQ(id_of(a.id), a.id);
    EXPECT_EQ(id_of(to_lower(a.name)), a.id) << a.name;
    for (const std::string& name : a.driver_names) EXPECT_EQ(id_of(name), a.id) << name;
    for (const std::string& name : a.short_names) EXPECT_EQ(id_of(name), a.id) << name;
    for (const std::string& name : a.shared_names) {
      EXPECT_EQ(id_of(name), "error: shared_name") << name;
      EXPECT_EQ(id_of(name, a.usable_memory_bytes()), a.id) << name;
    }
    for (const std::string& name : a.driver_names)
      EXPECT_EQ(id_of(name, a.memory.reported_bytes.value_or(0)), a.id) << name;
  }
  for (const Cpu& cpu : facts().cpus()) {
    EXPECT_EQ(facts().find_cpu(cpu.id).value()->id, cpu.id);
    for (const std::string& name : cpu.driver_names) EXPECT_EQ(facts().find_cpu(name).value()->id, cpu.id) << name;
  }
  for (const Link& link : facts().links()) EXPECT_EQ(facts().find_link(link.id).value()->id, link.id);
  for (const Storage& storage : facts().storage()) EXPECT_EQ(facts().find_storage(storage.id).value()->id, storage.id);
  for (const CloudOffer& offer : facts().offers()) EXPECT_EQ(facts().find_offer(offer.id).value()->id, offer.id);
}

TEST(HardwareNames, ShortNamesPeopleUse) {
  EXPECT_EQ(id_of("H100"), "h100-sxm5-80gb");
  EXPECT_EQ(id_of("h100 sxm"), "h100-sxm5-80gb");
  EXPECT_EQ(id_of("H100-80GB"), "h100-sxm5-80gb");
  EXPECT_EQ(id_of("H100 PCIe"), "h100-pcie-80gb");
  EXPECT_EQ(id_of("h100 94gb"), "h100-nvl-94gb");
  EXPECT_EQ(id_of("4090"), "rtx-4090");
  EXPECT_EQ(id_of("rtx 4090"), "rtx-4090");
  EXPECT_EQ(id_of("RTX4090"), "rtx-4090");
  EXPECT_EQ(id_of("a100-80g"), "a100-sxm4-80gb");
  EXPECT_EQ(id_of("A100 40 GB"), "a100-sxm4-40gb");
  EXPECT_EQ(id_of("a100 pcie 40gb"), "a100-pcie-40gb");
  EXPECT_EQ(id_of("H200"), "h200-sxm-141gb");
  EXPECT_EQ(id_of("B200"), "b200-sxm-180gb");
  EXPECT_EQ(id_of("B200 192GB"), "b200-sxm-180gb");
  EXPECT_EQ(id_of("gb200 nvl72"), "gb200-186gb");
  EXPECT_EQ(id_of("mi300x"), "mi300x");
  EXPECT_EQ(id_of("m3 ultra"), "apple-m3-ultra");
  EXPECT_EQ(id_of("dgx spark"), "gb10-dgx-spark");
  EXPECT_EQ(id_of("Ascend 910B2"), "ascend-910b2");
}

TEST(HardwareNames, TrapsOfDriverStrings) {
  EXPECT_EQ(id_of("NVIDIA A10"), "a10");
  EXPECT_EQ(id_of("NVIDIA A10G"), "a10g");
  EXPECT_EQ(id_of("NVIDIA A100-SXM4-80GB"), "a100-sxm4-80gb");
  EXPECT_EQ(id_of("NVIDIA L4"), "l4");
  EXPECT_EQ(id_of("NVIDIA L40"), "l40");
  EXPECT_EQ(id_of("nvidia l40s"), "l40s");
  EXPECT_EQ(id_of("NVIDIA H20"), "h20-96gb");
  EXPECT_EQ(id_of("NVIDIA H20-3e"), "h20-3e-141gb");
  EXPECT_EQ(id_of("NVIDIA H200"), "h200-sxm-141gb");
  EXPECT_EQ(id_of("NVIDIA H200 NVL"), "h200-nvl-141gb");
  EXPECT_EQ(id_of("NVIDIA GB200"), "gb200-186gb");
  EXPECT_EQ(id_of("NVIDIA B200"), "b200-sxm-180gb");
  EXPECT_EQ(id_of("NVIDIA GeForce RTX 4090 D"), "rtx-4090-d");
  EXPECT_EQ(id_of("NVIDIA H800"), "h800-sxm5-80gb");
  EXPECT_EQ(id_of("NVIDIA H100 80GB HBM3"), "h100-sxm5-80gb");
  EXPECT_EQ(id_of("NVIDIA GH200 480GB"), "gh200-96gb");
  // One string, two memories.
  EXPECT_EQ(id_of("NVIDIA GeForce RTX 3060", 12288 * kMiB), "rtx-3060-12gb");
  EXPECT_EQ(id_of("NVIDIA GeForce RTX 3060", 8192 * kMiB), "error: wrong_memory");
  EXPECT_EQ(id_of("NVIDIA GeForce RTX 4060 Ti", 8188 * kMiB), "error: wrong_memory");
  EXPECT_EQ(id_of("Orin (nvgpu)", 7620 * kMiB), "jetson-orin-nano-8gb-super");
  EXPECT_EQ(id_of("Orin (nvgpu)", 62800 * kMiB), "jetson-agx-orin-64gb");
  EXPECT_EQ(id_of("Tesla V100-PCIE-16GB", 16160 * kMiB), "v100-pcie-32gb");
  EXPECT_EQ(id_of("AMD Instinct MI250X", 65520 * kMiB), "mi250x");  // shows as two devices
  EXPECT_EQ(id_of("Ascend910_9392", 64 * kGiB), "ascend-910c");
  EXPECT_EQ(id_of("AMD Radeon Graphics", 8 * kGiB), "error: wrong_memory");
  EXPECT_EQ(id_of("AMD Radeon Graphics", 96 * kGiB), "strix-halo-395");
  // Not the card: a part of one, and a namesake.
  EXPECT_EQ(id_of("NVIDIA H100 80GB HBM3 MIG 1g.10gb"), "error: unknown_near");
  EXPECT_EQ(id_of("NVIDIA GeForce RTX 4090 Laptop GPU"), "error: unknown_near");
  EXPECT_EQ(id_of("RTX 4090 48GB"), "error: wrong_memory");
}

TEST(HardwareNames, AmbiguousAndUnknownNamesListCandidates) {
  for (const char* name : {"a100", "A100 SXM", "v100", "rtx pro 6000", "gh200", "m3", "ascend", "mi3"})
    EXPECT_EQ(id_of(name), "error: ambiguous") << name;
  const auto a100 = facts().find("a100");
  EXPECT_THAT(error_text(a100.error()), HasSubstr("a100-pcie-40gb (40 GB)"));
  const auto near = facts().find("h100-sx5");
  ASSERT_FALSE(near);
  EXPECT_THAT(error_text(near.error()), HasSubstr("h100-sxm5-80gb"));
  EXPECT_THAT(error_text(facts().find("RTX 4090 Laptop").error()), HasSubstr("rtx-4090"));
  for (const char* name : {"", " ", "-", "x", "zzzzzzzzzzzz", "\xff\xfe", "8", "gb", "80gb", "nvidia"})
    EXPECT_FALSE(facts().find(name)) << name;
}

TEST(HardwareNames, Counts) {
  const auto is = [](std::string_view text, std::string_view id, int count) {
    const auto choice = facts().parse(text);
    ASSERT_TRUE(choice) << text << ": " << error_text(choice.error());
    EXPECT_EQ(choice->accelerator->id, id) << text;
    EXPECT_EQ(choice->count, count) << text;
  };
  is("8xH100-SXM", "h100-sxm5-80gb", 8);
  is("8 x H200", "h200-sxm-141gb", 8);
  is("2×4090", "rtx-4090", 2);
  is("16*b200", "b200-sxm-180gb", 16);
  is("H100 x8", "h100-sxm5-80gb", 8);
  is("4090", "rtx-4090", 1);
  is("7900 xtx", "rx-7900-xtx", 1);
  is("7900xtx", "rx-7900-xtx", 1);
  is("2x7900xtx", "rx-7900-xtx", 2);
  is("mi300x", "mi300x", 1);
  is("72xGB200", "gb200-186gb", 72);
  is("p5.48xlarge", "h100-sxm5-80gb", 8);
  EXPECT_STREQ(facts().parse("p5.48xlarge").value().offer->provider.c_str(), "AWS");
  for (const char* bad :
       {"0xH100", "100001xH100", "99999999999999999999xH100", "-1xH100", "8x", "x8", "8xnothing", "1.5xH100"})
    EXPECT_FALSE(facts().parse(bad)) << bad;
  EXPECT_EQ(facts().parse("0xH100").error().key, "hardware_catalog.bad_count");
}

TEST(HardwareNames, MemoryFollowsANamedSizeWhereItIsConfigurable) {
  EXPECT_EQ(facts().parse("m3 ultra").value().usable_bytes, 384 * kGiB);
  EXPECT_EQ(facts().parse("m3 ultra 96gb").value().usable_bytes, 72 * kGiB);
  EXPECT_EQ(facts().parse("h100").value().usable_bytes, 81559 * kMiB);
}

TEST(HardwareNames, NodesAsSold) {
  EXPECT_EQ(card("h100").devices_per_node(4), 8);
  EXPECT_EQ(card("gb200").devices_per_node(72), 4);
  EXPECT_EQ(card("gb200").node.domain, 72);
  EXPECT_EQ(card("4090").node.devices, 1);
  EXPECT_EQ(card("4090").devices_per_node(1), 1);
  EXPECT_EQ(card("4090").devices_per_node(4), 4);
  EXPECT_EQ(card("4090").devices_per_node(64), 8);
  EXPECT_EQ(card("m3 ultra").devices_per_node(2), 1);
}

TEST(HardwareNames, AnyTextIsAnsweredWithoutHarm) {
  rc::check("parse never crashes and found names resolve to themselves", [](const std::string& text) {
    const auto choice = facts().parse(text);
    if (choice)
      RC_ASSERT(choice->accelerator != nullptr && choice->count >= 1);
    else
      RC_ASSERT(is_valid_utf8(error_text(choice.error())));
  });
}

TEST(HardwareUser, ChangesAFieldAndAddsARecord) {
  const auto catalog = with_user_file(R"({"as_of": "2027-01-02", "accelerators": [
    {"id": "h100-sxm5-80gb", "memory": {"bandwidth_gb_s": 3300}, "tdp_w": 650},
    {"id": "my-card", "vendor": "Me", "name": "My Card", "short_names": ["mine"],
     "memory": {"marketed_gb": 64, "bandwidth_gb_s": 1000}, "peak_dense_tflops": {"bf16": 100}}]})");
  ASSERT_TRUE(catalog) << error_text(catalog.error());
  EXPECT_EQ(catalog->accelerators().size(), 86u);
  const Accelerator& h100 = *catalog->find("h100").value().accelerator;
  EXPECT_DOUBLE_EQ(*h100.memory.bandwidth_bytes_per_second, 3300e9);
  EXPECT_DOUBLE_EQ(*h100.tdp_watts, 650);
  EXPECT_EQ(h100.usable_memory_bytes(), 81559 * kMiB);
  EXPECT_THAT(h100.provenance.overridden.at("memory.bandwidth_gb_s"), HasSubstr("mine.json"));
  EXPECT_EQ(h100.provenance.overridden.count("memory.marketed_gb"), 0u);
  const Accelerator& mine = *catalog->parse("2xmine").value().accelerator;
  EXPECT_EQ(mine.provenance.confidence, "user");
  EXPECT_EQ(mine.provenance.as_of, "2027-01-02");
  EXPECT_EQ(mine.usable_memory_bytes(), 64 * kGiB);
  for (const Figure& figure : figures(mine)) {
    const bool from_user = figure.trust == Trust::kUser;
    EXPECT_TRUE(from_user || figure.path.starts_with("node.")) << figure.path;
  }
}

TEST(HardwareUser, LaterFilesWinAndBlobsAreIgnored) {
  UserFolder folder;
  folder.write("a.json", R"({"links": [{"id": "ib-ndr", "gb_s": 40}]})");
  folder.write("b.json", R"({"links": [{"id": "ib-ndr", "gb_s": 45}]})");
  folder.write("notes.txt", "not json");
  const auto catalog = Catalog::load(folder.path());
  ASSERT_TRUE(catalog) << error_text(catalog.error());
  EXPECT_DOUBLE_EQ(*(*catalog->find_link("ib-ndr"))->bytes_per_second, 45e9);
  EXPECT_DOUBLE_EQ(*catalog->find("h100").value().accelerator->node.inter_bytes_per_second, 8 * 45e9);
}

TEST(HardwareUser, HostileFilesGiveOneClearError) {
  const auto text = [](const std::string& more) {
    return R"({"accelerators": [{"id": "a", "vendor": "v", "name": "n", )" + more + "}]}";
  };
  EXPECT_EQ(error_of(text(R"("memory": {"marketed_gb": 8})")), "no error");
  EXPECT_EQ(error_of("{"), "json_invalid");
  EXPECT_EQ(error_of(""), "json_invalid");
  EXPECT_EQ(error_of("\xff\xfe{}"), "json_invalid");
  EXPECT_EQ(error_of(std::string(100, '[') + std::string(100, ']')), "json_too_deep");
  EXPECT_EQ(error_of("[]"), "not_an_object");
  EXPECT_EQ(error_of("null"), "not_an_object");
  EXPECT_EQ(error_of(R"({"gpus": []})"), "unknown_section");
  EXPECT_EQ(error_of(R"({"accelerators": {}})"), "section_not_list");
  EXPECT_EQ(error_of(R"({"accelerators": [5]})"), "record_not_object");
  EXPECT_EQ(error_of(R"({"accelerators": [{}]})"), "bad_id");
  EXPECT_EQ(error_of(R"({"accelerators": [{"id": "a b"}]})"), "bad_id");
  EXPECT_EQ(error_of(R"({"accelerators": [{"id": "a"}]})"), "missing_field");
  EXPECT_EQ(error_of(text(R"("arch": "x")")), "missing_field");
  EXPECT_EQ(error_of(text(R"("memory": {"marketed_gb": "80"})")), "wrong_type");
  EXPECT_EQ(error_of(text(R"("memory": 80)")), "wrong_type");
  EXPECT_EQ(error_of(text(R"("memory": {"marketed_gb": -1})")), "out_of_range");
  EXPECT_EQ(error_of(text(R"("memory": {"marketed_gb": 1e300})")), "out_of_range");
  EXPECT_EQ(error_of(text(R"("memory": {"marketed_gb": 1e999})")), "json_invalid");
  EXPECT_EQ(error_of(text(R"("memory": {"marketed_gb": NaN})")), "json_invalid");
  EXPECT_EQ(error_of(text(R"("memory": {"marketed_gb": 0})")), "missing_field");
  EXPECT_EQ(error_of(text(R"("memory": {"size": 1})")), "unknown_field");
  EXPECT_EQ(error_of(text(R"("arch": "\u001b[2J", "memory": {"marketed_gb": 8})")), "wrong_type");
  EXPECT_EQ(error_of(text(R"("provenance": 1, "memory": {"marketed_gb": 8})")), "wrong_type");
  EXPECT_EQ(error_of(text(R"("sm_count": 1.5, "memory": {"marketed_gb": 8})")), "wrong_type");
  EXPECT_EQ(error_of(text(R"("sm_count": 1e18, "memory": {"marketed_gb": 8})")), "wrong_type");
  EXPECT_EQ(error_of(text(R"("node": {"devices": 0}, "memory": {"marketed_gb": 8})")), "wrong_type");
  EXPECT_EQ(error_of(text(R"("node": {"intra_link": "nvlink99"}, "memory": {"marketed_gb": 8})")), "unknown_link");
  EXPECT_EQ(error_of(text(R"("price": {"street": [{"low": 1}]}, "memory": {"marketed_gb": 8})")), "unknown_field");
  EXPECT_EQ(error_of(text(R"("driver_names": ["a", 1], "memory": {"marketed_gb": 8})")), "wrong_type");
  EXPECT_EQ(error_of(R"({"links": [{"id": "x", "latency_us": [3, 1]}]})"), "wrong_type");
  EXPECT_EQ(error_of(R"({"offers": [{"id": "x", "accelerator": "nothing"}]})"), "unknown_offer_accelerator");
  EXPECT_EQ(error_of(R"({"accelerators": [{"id": "h100-sxm5-80gb", "memory": null}]})"), "missing_field");
  const auto named = with_user_file(text(R"("memory": {"marketed_gb": "80"})"));
  EXPECT_THAT(error_text(named.error()), HasSubstr("mine.json"));
  EXPECT_THAT(error_text(named.error()), HasSubstr("memory.marketed_gb"));
}

TEST(HardwareUser, TooLargeAFileIsRefused) {
  EXPECT_EQ(error_of(std::string(5 * kMiB, ' ')), "file_too_large");
  std::string many = R"({"sources": [)";
  for (int i = 0; i < 10'000; ++i) many += (i ? ",{\"id\":\"s" : "{\"id\":\"s") + std::to_string(i) + "\"}";
  EXPECT_EQ(error_of(many + "]}"), "too_many");
}

// What the fuzzer keeps: files (first byte 0) and names (first byte 2), each answered or refused in one sentence.
TEST(HardwareUser, FuzzCorpusReplays) {
  int replayed = 0;
  for (const auto& file :
       std::filesystem::directory_iterator(std::filesystem::path(FATHOM_SOURCE_DIR) / "tests/fuzz/corpus/catalog")) {
    const std::string text = read_file(file.path(), 1 << 20).value();
    if (text.empty()) continue;
    const std::string_view rest = std::string_view(text).substr(1);
    if (text[0] % 4 == 0) {
      const auto catalog = with_user_file(rest);
      EXPECT_TRUE(catalog || is_valid_utf8(error_text(catalog.error()))) << file.path();
      ++replayed;
    } else if (text[0] % 4 == 2) {
      const auto choice = facts().parse(rest);
      EXPECT_TRUE(choice || is_valid_utf8(error_text(choice.error()))) << file.path();
      ++replayed;
    }
  }
  EXPECT_GE(replayed, 10);
}

TEST(HardwareLists, FilterByVendorArchitectureMemoryAndWords) {
  EXPECT_EQ(facts().list({}).size(), 85u);
  for (const Accelerator* a : facts().list({.vendor = "amd"})) EXPECT_EQ(a->vendor, "AMD");
  EXPECT_EQ(facts().list({.vendor = "amd"}).size(), 8u);
  EXPECT_EQ(facts().list({.arch = "hopper", .min_memory_bytes = 141'000'000'000}).size(), 4u);
  EXPECT_EQ(facts().list({.search = "apple ULTRA"}).size(), 4u);
  EXPECT_TRUE(facts().list({.search = "no such card"}).empty());
}

TEST(HardwareJson, ListsAndRecordsParse) {
  const auto all = facts().list({});
  const Json list = *parse_json(list_json(all), "list");
  ASSERT_EQ(list["accelerators"].size(), 85u);
  for (const Json& record : list["accelerators"]) EXPECT_GT(record["usable_memory_bytes"].get<std::uint64_t>(), 0u);
  EXPECT_EQ((*parse_json(list_json(facts().cpus()), "list"))["cpus"].size(), 15u);
  EXPECT_EQ((*parse_json(list_json(facts().links()), "list"))["links"].size(), 31u);
  EXPECT_EQ((*parse_json(list_json(facts().storage()), "list"))["storage"].size(), 11u);
  EXPECT_EQ((*parse_json(list_json(facts().offers()), "list"))["offers"].size(), 47u);
  const Json h100 = *parse_json(record_json(facts(), card("h100")), "record");
  EXPECT_EQ(h100["id"], "h100-sxm5-80gb");
  EXPECT_EQ(h100["peak_dense_flops"]["bf16"], 989.4e12);
  EXPECT_GE(h100["source_details"].size(), 5u);
  // What --json shows of a record can be pasted into a user's file.
  const auto pasted = with_user_file(R"({"accelerators": [)" + record_json(facts(), card("h100")) + "]}");
  ASSERT_TRUE(pasted) << error_text(pasted.error());
  EXPECT_EQ(pasted->find("h100").value().usable_bytes, 81559 * kMiB);
}

}  // namespace
}  // namespace fathom::hardware
