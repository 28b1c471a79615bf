#include "plan/batch.h"

#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#include "base/i18n.h"
#include "base/units.h"
#include "plan/answer.h"
#include "plan/json_line.h"

namespace fathom::plan {
namespace {

constexpr std::size_t kReadBytes = std::size_t{1} << 20, kLongestLine = std::size_t{4} << 20, kBlock = 16;

void append_error(std::string_view id_json, const Error& error, std::string& out) {
  out += "{\"id\":";
  out += id_json;
  out += ",\"error\":";
  append_json_string(out, error_text(error));
  out += '}';
}

int usable_threads() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof set, &set) == 0 ? std::max(1, CPU_COUNT(&set)) : 1;
}

/// Answers lines on threads that stay, since what they have worked out stays with them. A block of lines at a time.
class Crew {
 public:
  explicit Crew(int threads) {
    const int count = threads > 0 ? threads : usable_threads();
    for (int i = 1; i < count; ++i) helpers_.emplace_back([this] { help(); });
  }
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;
  ~Crew() {
    {
      const std::lock_guard lock(mutex_);
      closing_ = true;
    }
    wake_.notify_all();
    for (std::thread& helper : helpers_) helper.join();
  }

  void answer(const std::vector<std::string_view>& lines, std::string& out, BatchCount& result) {
    answers_.resize(std::max(answers_.size(), lines.size()));
    const bool shared = lines.size() > kBlock;
    {
      const std::lock_guard lock(mutex_);
      lines_ = &lines;
      next_ = 0;
      if (shared) working_ = static_cast<int>(helpers_.size()), ++round_;
    }
    if (shared) wake_.notify_all();
    work();
    if (shared) {
      std::unique_lock lock(mutex_);
      done_.wait(lock, [&] { return working_ == 0; });
    }
    for (std::size_t i = 0; i < lines.size(); ++i) {
      out += answers_[i];
      out += '\n';
    }
    result.answered += lines.size();
  }

 private:
  void work() {
    const std::vector<std::string_view>& lines = *lines_;
    for (std::size_t from = next_.fetch_add(kBlock); from < lines.size(); from = next_.fetch_add(kBlock))
      for (std::size_t i = from; i < std::min(from + kBlock, lines.size()); ++i) {
        answers_[i].clear();
        answer_line(lines[i], answers_[i]);
      }
  }

  void help() {
    for (std::uint64_t seen = 0;;) {
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return closing_ || round_ != seen; });
        if (closing_) return;
        seen = round_;
      }
      work();
      const std::lock_guard lock(mutex_);
      if (--working_ == 0) done_.notify_one();
    }
  }

  std::vector<std::thread> helpers_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::uint64_t round_ = 0;
  int working_ = 0;
  bool closing_ = false;
  const std::vector<std::string_view>* lines_ = nullptr;
  std::atomic<std::size_t> next_{0};
  std::vector<std::string> answers_;
};

class File {
 public:
  explicit File(int fd, bool owned) : fd_(fd), owned_(owned) {}
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File() {
    if (owned_) ::close(fd_);
  }
  int fd() const { return fd_; }

 private:
  int fd_;
  bool owned_;
};

std::string_view trimmed(std::string_view line) {
  while (!line.empty() && (line.back() == '\r' || line.back() == ' ' || line.back() == '\t')) line.remove_suffix(1);
  while (!line.empty() && (line.front() == ' ' || line.front() == '\t')) line.remove_prefix(1);
  return line;
}

}  // namespace

void answer_line(std::string_view line, std::string& out) {
  std::string id_json = "null";
  if (line.size() > kLongestLine)
    return append_error(id_json, fail("plan.line_too_long", {{"limit", format_bytes(kLongestLine)}}).value(), out);
  const auto request = parse_request(line, id_json);
  if (!request) return append_error(id_json, request.error(), out);
  const auto answer = make_plan(*request);
  if (!answer) return append_error(id_json, answer.error(), out);
  append_answer_json(*request, *answer, out);
}

Result<BatchCount> run_batch(const Path& path, int threads, const std::function<Status(std::string_view)>& write) {
  const bool standard = path == "-";
  const int fd = standard ? 0 : ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return fail("base.cannot_open", {{"path", path.string()}, {"reason", errno_text(errno)}});
  const File file(fd, !standard);
  BatchCount result;
  Crew crew(threads);
  std::string pending, out;
  std::vector<std::string_view> lines;
  bool ended = false, cutting = false;  // cutting: the rest of a line that was too long is thrown away
  while (!ended) {
    const std::size_t before = pending.size();
    pending.resize(before + kReadBytes);
    const ssize_t got = ::read(file.fd(), pending.data() + before, kReadBytes);
    if (got < 0 && errno == EINTR) {
      pending.resize(before);
      continue;
    }
    if (got < 0) return fail("base.cannot_read", {{"path", path.string()}, {"reason", errno_text(errno)}});
    pending.resize(before + static_cast<std::size_t>(got));
    ended = got == 0;
    lines.clear();
    std::size_t from = 0;
    for (std::size_t end = pending.find('\n', 0); end != std::string::npos;
         from = end + 1, end = pending.find('\n', from)) {
      const std::string_view line = trimmed(std::string_view(pending).substr(from, end - from));
      if (!cutting && !line.empty()) lines.push_back(line);
      cutting = false;
    }
    if (const std::string_view rest = std::string_view(pending).substr(from);
        (ended || rest.size() > kLongestLine) && !trimmed(rest).empty()) {
      if (!cutting) lines.push_back(trimmed(rest));
      cutting = !ended;
      from = pending.size();
    }
    if (!lines.empty()) {
      out.clear();
      crew.answer(lines, out, result);
      FATHOM_TRY_VOID(write(out));
    }
    pending.erase(0, from);
  }
  return result;
}

}  // namespace fathom::plan
