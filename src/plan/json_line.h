// A strict reader of one JSON object on one line, without a heap: keys and the stretches of text that their values are.
// Whole documents are read with base/json.h; this one is for streams of many small requests.
#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace fathom::plan {

/// A value as it stands in the text, checked to be JSON.
struct JsonPiece {
  enum class Kind : std::uint8_t { kNull, kBool, kNumber, kString, kArray, kObject };
  Kind kind = Kind::kNull;
  std::string_view text;  // with quotes and brackets

  std::optional<bool> boolean() const;
  std::optional<double> number() const;         // finite
  std::optional<std::int64_t> integer() const;  // a number without a fraction that fits; 4.0 is one
  std::optional<std::string> string() const;    // unescaped
};

struct JsonMember {
  std::string_view key;
  JsonPiece value;
};

/// The members of one object. Keys are compared as written, so that an escaped key is unknown.
class JsonObject {
 public:
  static constexpr std::size_t kMostMembers = 64;
  /// nullopt: `text` is not one JSON object in valid UTF-8 (nesting up to 32 levels, at most 64 members); `bad_byte`
  /// says where.
  static std::optional<JsonObject> parse(std::string_view text, std::size_t& bad_byte);
  const JsonPiece* find(std::string_view key) const;
  const JsonMember* begin() const { return members_.data(); }
  const JsonMember* end() const { return members_.data() + count_; }
  std::size_t size() const { return count_; }

 private:
  std::array<JsonMember, kMostMembers> members_;
  std::size_t count_ = 0;
};

/// The strings of an array of strings, at most `most`; nullopt when it is anything else.
std::optional<std::vector<std::string>> string_items(const JsonPiece& array, std::size_t most);

/// Appends `text` as a JSON string, with quotes.
void append_json_string(std::string& out, std::string_view text);
/// Appends a finite number in the shortest form that reads back the same; anything else as null.
void append_json_number(std::string& out, double value);
void append_json_number(std::string& out, std::uint64_t value);
void append_json_number(std::string& out, std::int64_t value);

}  // namespace fathom::plan
