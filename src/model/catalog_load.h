// Merges the embedded model facts with the user's files into a ModelCatalog.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "base/json.h"
#include "model/catalog.h"

namespace fathom::model {

/// Add files in order, later ones over earlier ones, then build once.
class ModelCatalogLoader {
 public:
  /// `what` names the file in errors. `user`: marks what it sets as overridden by it.
  Status add(std::string_view text, const std::string& what, bool user);
  Result<ModelCatalog> build();

 private:
  struct Entry {
    Json record;
    std::string what;                               // the file that touched it last, and the id
    std::map<std::string, std::string> overridden;  // field -> file
  };

  Status add_model(const Json& given, const std::string& what, bool user);
  Status add_tokenizer(const Json& record, const std::string& what);
  Result<ModelEntry> read(const Entry& entry) const;
  Status read_published(const Json& record, const std::string& what, ModelEntry& model) const;
  /// The configuration that an entry has or takes from another, however far.
  Result<const Json*> config_of(const Entry& entry) const;

  std::vector<Entry> entries_;
  std::map<std::string, std::size_t, std::less<>> by_id_;
  std::map<std::string, TokenizerFacts, std::less<>> tokenizers_;
  std::string family_, as_of_;  // of the file that is being added
};

}  // namespace fathom::model
