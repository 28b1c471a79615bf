// The rules of the house that a compiler does not keep: who may include whom, where names of models and devices may
// decide, how long a file may be, and that every text that is asked for exists.
#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <thread>

#include "base/i18n.h"

namespace fathom {
namespace {
namespace fs = std::filesystem;

const fs::path kRoot = FATHOM_SOURCE_DIR;

std::string slurp(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

struct Source {
  std::string path, text;  // path relative to the root
};

std::vector<Source> sources(const std::vector<std::string>& folders, const std::set<std::string>& endings) {
  std::vector<Source> found;
  for (const std::string& folder : folders)
    for (const auto& entry : fs::recursive_directory_iterator(kRoot / folder))
      if (entry.is_regular_file() && endings.count(entry.path().extension().string()) > 0)
        found.push_back({fs::relative(entry.path(), kRoot).generic_string(), slurp(entry.path())});
  std::sort(found.begin(), found.end(), [](const Source& a, const Source& b) { return a.path < b.path; });
  return found;
}

std::string compiler() {
  const char* chosen = ::getenv("CXX");
  return chosen != nullptr && *chosen != '\0' ? chosen : "c++";
}

/// What compiles a header by itself; empty: nothing here does.
std::string command_for(const std::string& header) {
  const std::string rest = " -std=c++20 -I'" + (kRoot / "src").string() + "' '" + (kRoot / header).string() + "' 2>&1";
  const bool device = header.starts_with("src/backends/cuda/");  // kernels' headers are nvcc's
  if (!device) return compiler() + " -fsyntax-only -Wall -x c++" + rest;
#if defined(FATHOM_NVCC)
  return std::string(FATHOM_NVCC) + " --ptx -arch=sm_90a -o /dev/null -x cu" + rest;
#else
  return {};
#endif
}

const std::vector<Source>& code() {
  static const std::vector<Source> all = sources({"src"}, {".h", ".cpp"});
  return all;
}

std::string line_at(const std::string& text, std::size_t at) {
  return std::to_string(1 + std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(at), '\n'));
}

// Every match of `pattern` in files that `allowed` does not name.
void expect_nowhere(const std::vector<Source>& files, const std::regex& pattern,
                    const std::function<bool(const std::string&)>& allowed, const std::string& why) {
  for (const Source& file : files) {
    if (allowed(file.path)) continue;
    for (auto it = std::sregex_iterator(file.text.begin(), file.text.end(), pattern); it != std::sregex_iterator();
         ++it)
      ADD_FAILURE() << file.path << ":" << line_at(file.text, static_cast<std::size_t>(it->position())) << ": "
                    << it->str() << " (" << why << ")";
  }
}

// The rooms of CMakeLists.txt, in its order, each with all that it may include.
class Rooms {
 public:
  Rooms() {
    const std::string cmake = slurp(kRoot / "CMakeLists.txt");
    static const std::regex line(R"(\nfathom_room\(([a-z/]+)([^)]*)\))");
    for (auto it = std::sregex_iterator(cmake.begin(), cmake.end(), line); it != std::sregex_iterator(); ++it) {
      const std::string name = (*it)[1];
      std::istringstream words((*it)[2]);
      bool naming = false;
      std::set<std::string>& below = below_[name] = {"base"};
      for (std::string word; words >> word;) {
        if (word == "ROOMS" || word == "LIBS")
          naming = word == "ROOMS";
        else if (naming) {
          EXPECT_TRUE(below_.count(word) > 0) << name << " leans on " << word << ", which comes later";
          below.insert(word);
          below.insert(below_[word].begin(), below_[word].end());
        }
      }
    }
  }
  std::size_t size() const { return below_.size(); }
  // The innermost room that holds `path` (relative to src), or "".
  std::string of(const std::string& path) const {
    std::string best;
    for (const auto& [name, below] : below_)
      if (path.starts_with(name + "/") && name.size() > best.size()) best = name;
    return best;
  }
  bool may_include(const std::string& room, const std::string& other) const {
    return room == other || below_.at(room).count(other) > 0;
  }

 private:
  std::map<std::string, std::set<std::string>> below_;
};

TEST(House, RoomsIncludeOnlyRoomsAboveThem) {
  const Rooms rooms;
  ASSERT_GE(rooms.size(), 14u);
  static const std::regex include(R"(#include "([^"]+)\")");
  std::size_t seen = 0;
  for (const Source& file : code()) {
    const std::string room = rooms.of(file.path.substr(4));
    ASSERT_FALSE(room.empty()) << file.path << " is in no room";
    for (auto it = std::sregex_iterator(file.text.begin(), file.text.end(), include); it != std::sregex_iterator();
         ++it, ++seen) {
      const std::string target = (*it)[1], other = rooms.of(target);
      EXPECT_TRUE(fs::exists(kRoot / "src" / target)) << file.path << " includes " << target << "; name it from src/";
      if (!other.empty()) {
        EXPECT_TRUE(rooms.may_include(room, other))
            << file.path << " includes " << target << ", and " << room << " may not know " << other;
      }
    }
  }
  EXPECT_GT(seen, 300u);
}

TEST(House, HeavyHeadersStayInCppFiles) {
  static const std::regex heavy(R"(#include (<nlohmann/json\.hpp>|<CLI/))");
  for (const Source& file : code())
    if (file.path.ends_with(".h") && file.path != "src/base/json.h") {
      EXPECT_FALSE(std::regex_search(file.text, heavy)) << file.path;
    }
}

TEST(House, NoDecisionByTheNameOfAModel) {
  static const std::regex decides(
      R"((==|!=|(starts_with|ends_with|contains|find)\()\s*"(llama|qwen[23]|deepseek(_v[0-9a-z]+)?|gpt3)\")");
  expect_nowhere(
      code(), decides, [](const std::string& path) { return path.starts_with("src/model/architectures/"); },
      "only model/architectures may tell models apart");
}

TEST(House, NoDecisionByTheNameOfADevice) {
  static const std::regex decides(
      R"re(((==|!=|(starts_with|ends_with|contains|find)\()\s*"[^"\n]*([hab][12]00|rtx|l40|mi[23]\d\d|gaudi|ascend|epyc|xeon|hopper|blackwell)[^"\n]*")|(if \((gpu|accelerator|device)(\.name|\.id)? ==))re",
      std::regex::icase);
  expect_nowhere(
      code(), decides,
      [](const std::string& path) {
        return path.starts_with("src/backends/") || path.starts_with("src/hardware/catalog") ||
               path.starts_with("src/hardware/gpu_probe");
      },
      "only backends, the catalog and what reads the drivers may tell devices apart");
}

TEST(House, NothingIsLeftForLater) {
  // Split, so that this file does not match itself.
  static const std::regex later(std::string("TO") + "DO|FIX" + "ME|not yet implement" + "ed", std::regex::icase);
  expect_nowhere(
      sources({"src", "tests", "cmake", "data/lang"}, {".h", ".cpp", ".cmake", ".json"}), later,
      [](const std::string&) { return false; }, "finish it, or say in an error what cannot be done");
}

TEST(House, NoPathOfSomebodysMachine) {
  static const std::regex path(
      R"re("(/tmp|/root|/Users|/mnt|/work|/scratch)[/"]|[^\w](/work/|/root/|/Users/|/tmp/)\w)re");
  expect_nowhere(
      sources({"src", "cmake"}, {".h", ".cpp", ".cmake"}), path, [](const std::string&) { return false; },
      "no absolute paths");
}

TEST(House, FilesStayReadable) {
  std::size_t long_ones = 0, all = 0;
  for (const Source& file : sources({"src", "tests", "bench"}, {".h", ".cpp"})) {
    const auto lines = std::count(file.text.begin(), file.text.end(), '\n');
    EXPECT_LE(lines, 800) << file.path;
    if (lines > 500) std::printf("look again: %s has %ld lines\n", file.path.c_str(), static_cast<long>(lines));
    long_ones += lines > 400 ? 1 : 0;
    ++all;
  }
  EXPECT_LE(long_ones * 10, all) << "nine files in ten stay below 400 lines";
}

TEST(House, EveryTextThatIsAskedForExists) {
  std::set<std::string> keys;
  for (const auto& [key, text] : catalog(Language::kEnglish)) keys.insert(key);
  static const std::regex asks(
      R"re(\b(fail|fail_environment|fail_unsupported|tr)\(\s*"([a-z_0-9]+\.[a-z_0-9.]*[a-z_0-9])"\s*[,)])re");
  std::size_t seen = 0;
  for (const Source& file : code())
    for (auto it = std::sregex_iterator(file.text.begin(), file.text.end(), asks); it != std::sregex_iterator();
         ++it, ++seen)
      EXPECT_TRUE(keys.count((*it)[2]) > 0)
          << file.path << ":" << line_at(file.text, static_cast<std::size_t>(it->position())) << ": no text "
          << (*it)[2];
  EXPECT_GT(seen, 200u);
}

// Slow (a compiler run a header), so only when asked for: ./test --full does.
TEST(House, EveryHeaderCompilesAlone) {
  if (::getenv("FATHOM_HOUSE_HEADERS") == nullptr) GTEST_SKIP() << "set FATHOM_HOUSE_HEADERS=1";
  std::vector<std::string> headers;
  for (const Source& file : code())
    if (file.path.ends_with(".h") && !command_for(file.path).empty()) headers.push_back(file.path);
  std::vector<std::string> complaints(headers.size());
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    for (std::size_t i = next++; i < headers.size(); i = next++) {
      const std::string command = command_for(headers[i]);
      std::FILE* pipe = ::popen(command.c_str(), "r");
      char buffer[4096];
      for (std::size_t n; pipe != nullptr && (n = std::fread(buffer, 1, sizeof buffer, pipe)) > 0;)
        complaints[i].append(buffer, n);
      if (pipe == nullptr || ::pclose(pipe) != 0) complaints[i] += "\n(failed)";
    }
  };
  std::vector<std::thread> crew;
  for (unsigned i = 0; i < std::max(1u, std::thread::hardware_concurrency()); ++i) crew.emplace_back(work);
  for (std::thread& one : crew) one.join();
  for (std::size_t i = 0; i < headers.size(); ++i)
    EXPECT_EQ(complaints[i].find("(failed)"), std::string::npos) << headers[i] << "\n" << complaints[i].substr(0, 2000);
}

}  // namespace
}  // namespace fathom
