#include "base/terminal.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <mutex>

#include "base/clock.h"
#include "base/units.h"

namespace fathom {
namespace {

// Decodes one code point at `i` (advances it); an invalid byte counts as one column.
std::uint32_t next_code_point(std::string_view text, std::size_t& i) {
  const auto byte = [&](std::size_t k) { return static_cast<unsigned char>(text[k]); };
  const unsigned char first = byte(i);
  const int extra = first >= 0xf0 ? 3 : first >= 0xe0 ? 2 : first >= 0xc0 ? 1 : 0;
  std::uint32_t point = extra == 3 ? first & 7u : extra == 2 ? first & 15u : extra == 1 ? first & 31u : first;
  ++i;
  for (int k = 0; k < extra && i < text.size() && (byte(i) & 0xc0) == 0x80; ++k)
    point = point << 6 | (byte(i++) & 0x3fu);
  return point;
}

int width_of(std::uint32_t c) {
  if (c < 0x20 || (c >= 0x7f && c < 0xa0)) return 0;
  if ((c >= 0x300 && c <= 0x36f) || c == 0x200b || c == 0x200d || (c >= 0xfe00 && c <= 0xfe0f)) return 0;
  const bool wide = (c >= 0x1100 && c <= 0x115f) || (c >= 0x2e80 && c <= 0x303e) || (c >= 0x3041 && c <= 0x33ff) ||
                    (c >= 0x3400 && c <= 0x4dbf) || (c >= 0x4e00 && c <= 0x9fff) || (c >= 0xa000 && c <= 0xa4cf) ||
                    (c >= 0xac00 && c <= 0xd7a3) || (c >= 0xf900 && c <= 0xfaff) || (c >= 0xfe30 && c <= 0xfe6f) ||
                    (c >= 0xff00 && c <= 0xff60) || (c >= 0xffe0 && c <= 0xffe6) || (c >= 0x1f300 && c <= 0x1faff) ||
                    (c >= 0x20000 && c <= 0x3fffd);
  return wide ? 2 : 1;
}

}  // namespace

int display_width(std::string_view text) {
  int width = 0;
  for (std::size_t i = 0; i < text.size();) {
    if (text[i] == '\x1b') {  // a colour sequence takes no columns
      while (i < text.size() && text[i] != 'm') ++i;
      if (i < text.size()) ++i;
      continue;
    }
    width += width_of(next_code_point(text, i));
  }
  return width;
}

std::string truncate_to_width(std::string_view text, int width) {
  int used = 0;
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t start = i;
    const int w = width_of(next_code_point(text, i));
    if (used + w > width) return std::string(text.substr(0, start));
    used += w;
  }
  return std::string(text);
}

void Table::add_row(std::vector<std::string> cells) {
  cells.resize(columns_.size());
  rows_.push_back(std::move(cells));
}

std::string Table::render() const {
  std::vector<int> widths;
  for (std::size_t c = 0; c < columns_.size(); ++c) {
    int width = display_width(columns_[c].title);
    for (const auto& row : rows_) width = std::max(width, display_width(row[c]));
    widths.push_back(width);
  }
  std::string out;
  const auto line = [&](const auto& cell) {
    std::string text;
    for (std::size_t c = 0; c < columns_.size(); ++c) {
      const std::string value = cell(c);
      const std::string pad(static_cast<std::size_t>(widths[c] - display_width(value)), ' ');
      if (c > 0) text += "  ";
      text += columns_[c].align == Align::kRight ? pad + value : value + pad;
    }
    text.erase(text.find_last_not_of(' ') + 1);
    out += text + "\n";
  };
  line([&](std::size_t c) { return columns_[c].title; });
  for (const auto& row : rows_) line([&](std::size_t c) { return row[c]; });
  return out;
}

bool stdout_is_terminal() { return ::isatty(STDOUT_FILENO) == 1; }
bool stderr_is_terminal() { return ::isatty(STDERR_FILENO) == 1; }

std::string styled(Style style, std::string_view text) {
  static const bool colour = stdout_is_terminal() && std::getenv("NO_COLOR") == nullptr;
  if (!colour) return std::string(text);
  static constexpr int codes[] = {1, 2, 31, 32, 33, 36};
  return fmt::format("\x1b[{}m{}\x1b[0m", codes[static_cast<int>(style)], text);
}

Progress::Progress(std::string label, std::uint64_t total)
    : label_(std::move(label)), total_(total), started_(now_seconds()) {}

Progress::~Progress() {
  if (stderr_is_terminal() && shown_permille_ != ~std::uint64_t{0}) std::fputs("\r\x1b[K", stderr);
}

void Progress::update(std::uint64_t done) {
  static std::mutex mutex;
  const std::scoped_lock lock(mutex);
  if (!stderr_is_terminal() || total_ == 0) return;
  const std::uint64_t permille = std::min<std::uint64_t>(
      1000, static_cast<std::uint64_t>(1000.0 * static_cast<double>(done) / static_cast<double>(total_)));
  if (permille == shown_permille_) return;
  shown_permille_ = permille;
  const double elapsed = now_seconds() - started_;
  const double left = done > 0 ? elapsed * (static_cast<double>(total_) / static_cast<double>(done) - 1) : 0;
  const auto filled = static_cast<std::size_t>(permille * 30 / 1000);
  std::string bar;
  for (std::size_t i = 0; i < 30; ++i) bar += i < filled ? "█" : "░";
  std::fputs(
      fmt::format("\r\x1b[K{} {} {:5.1f} %  {}", label_, bar, static_cast<double>(permille) / 10, format_seconds(left))
          .c_str(),
      stderr);
  std::fflush(stderr);
}

}  // namespace fathom
