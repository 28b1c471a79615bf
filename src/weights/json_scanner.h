// A strict, bounded scanner of JSON: what safetensors headers and shard indexes need, in one pass without a tree, so
// that a hundred thousand tensors open at once and a hostile file costs no more than its own length.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace fathom::weights {

/// Reads `text` from front to back. Every call answers false at the first thing that is not what was asked for and
/// stays there; position() is then the byte where reading stopped. `text` must be valid UTF-8 and outlive the scanner.
class JsonScanner {
 public:
  explicit JsonScanner(std::string_view text) : text_(text) {}
  std::size_t position() const { return at_; }

  /// Skips blanks, then takes `c`.
  bool take(char c);
  /// Skips blanks; whether `c` comes next.
  bool next_is(char c);
  /// A string with its escapes resolved. Lone surrogates and control characters are refused.
  bool string(std::string& out);
  /// A whole number from 0 to 2^63 - 1, without sign, fraction or exponent.
  bool integer(std::uint64_t& out);
  /// Any value, passed over; false also below `depth` levels.
  bool skip(int depth);
  /// Only blanks are left.
  bool at_end();

 private:
  void blanks();
  bool escape(std::string* out);
  bool hex4(std::uint32_t& out);
  bool scan_string(std::string* out);
  bool skip_word(std::string_view word);
  bool skip_number();
  bool skip_items(int depth, char close, bool keyed);

  std::string_view text_;
  std::size_t at_ = 0;
};

/// Walks the members of the object that comes next: `body(key)` must read the value and answer whether it could.
template <class Body>
bool scan_object(JsonScanner& json, std::string& key, Body&& body) {
  if (!json.take('{')) return false;
  if (json.next_is('}')) return json.take('}');
  do {
    if (!json.string(key) || !json.take(':') || !body(key)) return false;
  } while (json.take(','));
  return json.take('}');
}

}  // namespace fathom::weights
