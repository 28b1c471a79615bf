// Runs the built binary as a person would, and keeps what it said and how it ended.
#pragma once
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

namespace fathom::cli::test {
namespace fs = std::filesystem;

/// A folder that goes away.
class Folder {
 public:
  Folder() {
    std::string name = (fs::temp_directory_path() / "fathom-cli-XXXXXX").string();
    path_ = ::mkdtemp(name.data());
  }
  ~Folder() {
    std::error_code ignored;
    fs::permissions(path_, fs::perms::owner_all, fs::perm_options::add, ignored);
    fs::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  const fs::path& path() const { return path_; }
  fs::path operator/(const std::string& name) const { return path_ / name; }

 private:
  fs::path path_;
};

inline std::string slurp(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}
inline void spit(const fs::path& path, std::string_view text) {
  std::ofstream(path, std::ios::binary).write(text.data(), static_cast<std::streamsize>(text.size()));
}

struct Outcome {
  int code = -1;  // exit code; -1 when a signal ended it
  int signal = 0;
  std::string out, err;
};

struct Conditions {
  std::string input;  // standard input
  std::optional<std::uint64_t>
      file_bytes;  // no file may grow beyond this: a disk that is full (writes fail, no signal)
  std::optional<std::uint64_t> memory_bytes;  // of address space
  std::string out_to;                         // standard output goes there instead
  std::string home;                           // the user's folder; empty: one of its own
  std::string language = "C";                 // LC_ALL
};

inline void set_limit(int what, std::uint64_t bytes) {
  const rlimit limit{bytes, bytes};
  ::setrlimit(static_cast<__rlimit_resource>(what), &limit);
}

/// Waits at most five minutes: what hangs is killed and shows as a signal.
inline Outcome run(const std::vector<std::string>& arguments, const Conditions& conditions = {}) {
  const char* binary = ::getenv("FATHOM_BINARY");
  EXPECT_NE(binary, nullptr) << "set FATHOM_BINARY to build/fathom (ctest does)";
  if (binary == nullptr) return {};
  const Folder scratch;
  spit(scratch / "in", conditions.input);
  const std::string out = conditions.out_to.empty() ? (scratch / "out").string() : conditions.out_to,
                    err = (scratch / "err").string(), in = (scratch / "in").string();
  const std::string home = conditions.home.empty() ? (scratch / "home").string() : conditions.home;
  std::vector<char*> argv = {const_cast<char*>(binary)};
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  const pid_t child = ::fork();
  if (child == 0) {
    ::dup2(::open(in.c_str(), O_RDONLY), 0);
    ::dup2(::open(out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), 1);
    ::dup2(::open(err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), 2);
    ::setenv("FATHOM_HOME", home.c_str(), 1);
    ::setenv("LC_ALL", conditions.language.c_str(), 1);
    ::setenv("NO_COLOR", "1", 1);
    ::signal(SIGXFSZ, SIG_IGN);
    if (conditions.file_bytes) set_limit(RLIMIT_FSIZE, *conditions.file_bytes);
    if (conditions.memory_bytes) set_limit(RLIMIT_AS, *conditions.memory_bytes);
    set_limit(RLIMIT_CORE, 0);
    ::alarm(300);
    ::execv(binary, argv.data());
    ::_exit(127);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  Outcome outcome;
  if (WIFEXITED(status)) outcome.code = WEXITSTATUS(status);
  if (WIFSIGNALED(status)) outcome.signal = WTERMSIG(status);
  if (conditions.out_to.empty()) outcome.out = slurp(out);
  outcome.err = slurp(err);
  return outcome;
}

inline std::string joined(const std::vector<std::string>& words) {
  std::string line = "fathom";
  for (const std::string& word : words) line += " " + word.substr(0, 60);
  return line;
}

/// One sentence on standard error, exit code 2, nothing on standard output, no signal.
inline void expect_refused(const Outcome& o, const std::string& what, const std::vector<std::string>& mentions = {}) {
  EXPECT_EQ(o.signal, 0) << what << " died: " << o.err;
  EXPECT_EQ(o.code, 2) << what << ": " << o.err << o.out.substr(0, 300);
  EXPECT_EQ(o.out, "") << what;
  EXPECT_TRUE(o.err.starts_with("fathom: ")) << what << ": " << o.err;
  EXPECT_EQ(std::count(o.err.begin(), o.err.end(), '\n'), 1) << what << ": " << o.err;
  EXPECT_LT(o.err.size(), 1500u) << what << ": " << o.err.substr(0, 300);
  for (const std::string& word : mentions)
    EXPECT_NE(o.err.find(word), std::string::npos) << what << " should name " << word << ": " << o.err;
}

}  // namespace fathom::cli::test
