// Reads a config key by key, remembering which were read, so that whatever is left over can be named.
#pragma once
#include <initializer_list>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "model/spec.h"

namespace fathom::model {

inline constexpr std::int64_t kMaxDimension = std::int64_t{1} << 40;

/// The first problem met is kept and everything after it answers harmless values; finish() reports it. This keeps the
/// parsing of an architecture a plain list of fields.
class ConfigReader {
 public:
  ConfigReader(const Json& object, std::string what) : object_(object), what_(std::move(what)) {}

  bool has(std::string_view key) const;  // present and not null
  std::int64_t integer(std::string_view key, std::int64_t min = 1, std::int64_t max = kMaxDimension);  // required
  std::int64_t integer_or(std::string_view key, std::int64_t otherwise, std::int64_t min = 1,
                          std::int64_t max = kMaxDimension);
  double number_or(std::string_view key, double otherwise, double min, double max);
  bool boolean_or(std::string_view key, bool otherwise);
  std::string string_or(std::string_view key, std::string_view otherwise);
  std::vector<std::int64_t> integers_or_empty(std::string_view key, std::int64_t min,
                                              std::int64_t max);  // an array, or one integer
  std::vector<std::string> strings_or_empty(std::string_view key);
  const Json* object_or_null(std::string_view key);
  /// The key must be absent, null or one of these; anything else would change the mathematics.
  void expect(std::string_view key, std::initializer_list<Json> allowed);
  /// Known to change nothing here.
  void ignore(std::initializer_list<std::string_view> keys);

  void problem(Error error);
  void require(bool condition, std::string_view error_key, ErrorArgs args = {});
  const std::string& what() const { return what_; }
  /// The first problem, or an error naming a key that nobody read and that is not on the list of harmless ones.
  Status finish();

 private:
  const Json* find(std::string_view key);
  const Json& object_;
  std::string what_;
  std::set<std::string, std::less<>> read_;
  bool failed_ = false;
  Error error_;
};

/// rope_theta with rope_scaling, or rope_parameters: the same thing as two generations of transformers write it.
RopeSpec read_rope(ConfigReader& reader, std::int64_t dims, double default_theta);
/// The inside of rope_scaling / rope_parameters.
RopeSpec read_rope_object(ConfigReader& reader, const Json& object, std::int64_t dims, double theta);
/// quantization_config -> formats of linears: DeepSeek's FP8 releases, or compressed-tensors (spec.quantization then
/// says which modules); anything else is an error naming the method. After read_common. True: DeepSeek's own FP8.
bool read_quantization(ConfigReader& reader, ModelSpec& spec);
/// Keys every architecture has: sizes, eps, ids; the harmless ones are ignored.
void read_common(ConfigReader& reader, ModelSpec& spec);
/// The routed experts' keys shared by DeepSeek's generations.
void read_experts(ConfigReader& reader, ModelSpec& spec);

}  // namespace fathom::model
