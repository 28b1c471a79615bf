// Reads one catalog record from JSON: types, ranges and unknown keys are errors that name the file, the record and the
// field.
#pragma once
#include <optional>
#include <set>
#include <string>

#include "base/json.h"
#include "hardware/catalog_fields.h"

namespace fathom::hardware {

class RecordReader final : public FieldVisitor {
 public:
  /// `what` names the record in errors: "accelerators 'h100-sxm5-80gb' in FILE". `record` must outlive the reader.
  RecordReader(const Json& record, std::string what) : record_(record), what_(std::move(what)) {}

  void text(std::string_view path, std::string& value) override;
  void texts(std::string_view path, std::vector<std::string>& value) override;
  void number(std::string_view path, Unit unit, std::optional<double>& value) override;
  void bytes(std::string_view path, Unit unit, std::optional<Bytes>& value) override;
  void integer(std::string_view path, std::optional<int>& value) override;
  void count(std::string_view path, int& value, int smallest) override;
  void flag(std::string_view path, bool& value) override;
  void range(std::string_view path, Unit unit, std::optional<double>& low, std::optional<double>& high) override;
  void numbers(std::string_view path, Unit unit, std::map<std::string, double>& value) override;
  void street(std::string_view path, std::vector<StreetPrice>& value) override;
  void cloud(std::string_view path, std::vector<CloudPrice>& value) override;

  /// The first error met, or a key of the record that no field has.
  Status finish();

 private:
  const Json* find(std::string_view path);  // nullptr when absent, null, or not reachable; marks the path as known
  /// `expected` ends a text key: hardware_catalog.expected.<expected>.
  void fail_type(std::string_view path, std::string_view expected, const Json& value);
  std::optional<double> figure(std::string_view path, Unit unit, const Json& value);
  std::string string_in(const Json& object, const char* key, std::string_view path);
  std::optional<double> figure_in(const Json& object, const char* key, std::string_view path);
  bool check_list(std::string_view path, const Json& value);
  void check_keys(std::string_view path, const Json& object, std::initializer_list<std::string_view> known);
  void look_for_unknown(const Json& object, const std::string& prefix);

  const Json& record_;
  std::string what_;
  std::optional<Error> error_;
  std::set<std::string, std::less<>> known_;
};

}  // namespace fathom::hardware
