#include "hardware/probe_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <system_error>

#include "base/strings.h"

namespace fathom::hardware {
namespace {

constexpr std::size_t kMaxListed = 65536;

// Digits compare as numbers, all else as bytes.
bool natural_less(const std::string& a, const std::string& b) {
  const auto digit = [](char c) { return c >= '0' && c <= '9'; };
  std::size_t i = 0, j = 0;
  while (i < a.size() && j < b.size()) {
    if (digit(a[i]) && digit(b[j])) {
      std::size_t i_end = i, j_end = j;
      while (i_end < a.size() && digit(a[i_end])) ++i_end;
      while (j_end < b.size() && digit(b[j_end])) ++j_end;
      if (i_end - i != j_end - j) return i_end - i < j_end - j;
      if (const int order = a.compare(i, i_end - i, b, j, j_end - j); order != 0) return order < 0;
      i = i_end, j = j_end;
    } else {
      if (a[i] != b[j]) return a[i] < b[j];
      ++i, ++j;
    }
  }
  return a.size() - i < b.size() - j;
}

}  // namespace

bool SystemFiles::exists(std::string_view relative) const {
  std::error_code error;
  return std::filesystem::exists(path(relative), error);
}

std::optional<std::string> SystemFiles::text(std::string_view relative, std::size_t max_bytes) const {
  const int fd = ::open(path(relative).c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return std::nullopt;
  std::optional<std::string> contents;
  struct stat info = {};
  if (::fstat(fd, &info) == 0 && S_ISREG(info.st_mode)) {
    contents.emplace();
    char buffer[16384];
    while (contents->size() < max_bytes) {
      const ssize_t n = ::read(fd, buffer, std::min(sizeof buffer, max_bytes - contents->size()));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0 && contents->empty()) contents.reset();
      if (n <= 0) break;
      contents->append(buffer, static_cast<std::size_t>(n));
    }
  }
  ::close(fd);
  return contents;
}

std::optional<std::string> SystemFiles::line(std::string_view relative) const {
  const auto contents = text(relative);
  if (!contents) return std::nullopt;
  const std::string_view first = trim(std::string_view(*contents).substr(0, contents->find('\n')));
  if (first.empty()) return std::nullopt;
  return std::string(first);
}

std::optional<std::int64_t> SystemFiles::integer(std::string_view relative) const {
  const auto first = line(relative);
  return first ? parse_integer(*first) : std::nullopt;
}

std::vector<std::string> SystemFiles::names(std::string_view relative) const {
  std::vector<std::string> found;
  std::error_code error;
  std::filesystem::directory_iterator entry(path(relative), error);
  for (; !error && entry != std::filesystem::directory_iterator() && found.size() < kMaxListed; entry.increment(error))
    found.push_back(entry->path().filename().string());
  std::sort(found.begin(), found.end(), natural_less);
  return found;
}

std::string SystemFiles::link_name(std::string_view relative) const {
  std::error_code error;
  const Path target = std::filesystem::read_symlink(path(relative), error);
  return error ? std::string() : target.filename().string();
}

std::optional<std::int64_t> parse_integer(std::string_view text) {
  text = trim(text);
  int base = 10;
  if (text.starts_with("0x") || text.starts_with("0X")) {
    base = 16;
    text.remove_prefix(2);
  }
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::optional<double> parse_leading_number(std::string_view text) {
  text = trim(text);
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || !std::isfinite(value)) return std::nullopt;
  return value;
}

std::vector<int> parse_cpu_list(std::string_view text) {
  std::vector<int> cpus;
  for (std::string_view part : split(trim(text), ',')) {
    part = trim(part);
    const std::size_t dash = part.find('-');
    const auto first = parse_integer(part.substr(0, dash));
    const auto last = dash == std::string_view::npos ? first : parse_integer(part.substr(dash + 1));
    if (!first || !last || *first < 0 || *last < *first || *last >= std::int64_t{kMaxListed}) continue;
    for (std::int64_t cpu = *first; cpu <= *last && cpus.size() < kMaxListed; ++cpu)
      cpus.push_back(static_cast<int>(cpu));
  }
  std::sort(cpus.begin(), cpus.end());
  cpus.erase(std::unique(cpus.begin(), cpus.end()), cpus.end());
  return cpus;
}

std::optional<std::string_view> value_of(std::string_view text, std::string_view key) {
  for (const std::string_view line : lines_of(text)) {
    if (!line.starts_with(key)) continue;
    const std::string_view rest = trim(line.substr(key.size()));
    if (rest.starts_with(':')) return trim(rest.substr(1));
  }
  return std::nullopt;
}

std::vector<std::string_view> lines_of(std::string_view text) { return split(text, '\n'); }

}  // namespace fathom::hardware
