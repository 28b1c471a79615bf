// Merges the embedded hardware facts with the user's files into a Catalog.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "base/json.h"
#include "hardware/catalog.h"

namespace fathom::hardware {

/// Add files in order, later ones over earlier ones, then build once.
class CatalogLoader {
 public:
  /// `what` names the file in errors. `user`: marks what it sets as overridden by it.
  Status add(std::string_view text, const std::string& what, bool user);
  Result<Catalog> build();

 private:
  struct Entry {
    Json record;
    std::string what;                               // the file that touched it last
    std::map<std::string, std::string> overridden;  // path -> file
  };
  struct Section {
    std::vector<Entry> entries;  // in order of appearance
    std::map<std::string, std::size_t, std::less<>> by_id;
  };

  Status add_record(const std::string& section, const Json& given, const std::string& what, const std::string& as_of,
                    bool user);
  template <class Record>
  Result<std::vector<Record>> read(const std::string& section);
  Status check_accelerators(Catalog& catalog);
  Status check_offers(const Catalog& catalog);

  std::map<std::string, Section> sections_;
};

}  // namespace fathom::hardware
