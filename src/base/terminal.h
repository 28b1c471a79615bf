// What a person sees: tables that align (Chinese is double-width), colour on a terminal only, a progress bar.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace fathom {

/// Columns that `text` takes on a terminal: East Asian wide characters count 2, combining marks 0.
int display_width(std::string_view text);
/// `text` cut to at most `width` columns, never inside a character.
std::string truncate_to_width(std::string_view text, int width);

enum class Align { kLeft, kRight };
struct Column {
  std::string title;
  Align align = Align::kLeft;
};

/// A plain table: two spaces between columns, one line a row, no trailing blanks.
class Table {
 public:
  explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}
  void add_row(std::vector<std::string> cells);  // as many cells as columns
  std::string render() const;

 private:
  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

enum class Style { kBold, kDim, kRed, kGreen, kYellow, kCyan };
/// `text` in a style when standard output is a terminal and NO_COLOR is unset, else `text` itself.
std::string styled(Style style, std::string_view text);
bool stdout_is_terminal();
bool stderr_is_terminal();

/// A progress bar on standard error; silent when that is not a terminal. Thread-safe update.
class Progress {
 public:
  Progress(std::string label, std::uint64_t total);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  void update(std::uint64_t done);

 private:
  std::string label_;
  std::uint64_t total_;
  std::uint64_t shown_permille_ = ~std::uint64_t{0};
  double started_;
};

}  // namespace fathom
