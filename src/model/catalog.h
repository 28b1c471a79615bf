// The model catalog: which models there are, with their published configuration and where that was read.
// Facts live in data/models/*.json, embedded in the binary, overlaid by the user's models/*.json: an entry with a known
// id changes the fields it names, one with a new id is added. Loaded once; immutable afterwards. Sizes are not here:
// they follow from the configuration (model/spec.h). What is "published" is what its maker says, rounded.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/files.h"
#include "base/result.h"
#include "base/units.h"

namespace fathom::model {

struct TokenizerFacts {
  std::string id, tokenizer_class, kind, note;
  std::int64_t vocab_size = 0, base_vocab = 0;  // vocab_size: rows of the embedding
  std::optional<std::int64_t> model_max_length;
};

struct ModelEntry {
  std::string id;      // "deepseek-ai/DeepSeek-R1": the repository, or "generic/dense-7b"
  std::string family;  // "DeepSeek-R1"
  std::string released, license, architecture, model_type;
  std::int64_t context_length = 0;  // as advertised
  std::string config;               // the configuration as published: JSON in Hugging Face form
  std::string config_of;            // id of the entry that the configuration is taken from; empty when it has its own
  std::vector<std::string> short_names;
  std::optional<double> published_total, published_active;  // parameters, rounded as published
  std::string hub_size;                                     // what the Hub's page shows: "685B"
  std::optional<std::int64_t> hub_params;                   // the Hub's exact count, where seen
  std::optional<Bytes> published_checkpoint_bytes;
  std::string published_checkpoint_precision;  // "exact (…)", "rounded (…)", "assumed …"
  std::string native_dtype;
  TokenizerFacts tokenizer;
  std::vector<std::string> sources;
  std::string as_of;       // when the entry was last checked
  std::string confidence;  // "config seen", "secondary", "unverified"; "user" for an entry that the user wrote
  std::string notes;
  std::map<std::string, std::string> overridden;  // field -> the user's file that set it
};

struct ModelFilter {
  std::string family;                // part of the family's name, any case; empty: all
  std::string search;                // every word must occur in id, family, type, licence, dtype or notes
  std::optional<double> max_params;  // published, or computed where nothing is published
};

class ModelNames;

class ModelCatalog {
 public:
  /// Embedded facts overlaid by `user_folder`/models/*.json in name order. Errors name the file and the field.
  static Result<ModelCatalog> load(const Path& user_folder);

  ModelCatalog() = default;
  ModelCatalog(ModelCatalog&&) = default;  // what find and list answered stays valid
  ModelCatalog& operator=(ModelCatalog&&) = default;

  std::span<const ModelEntry> models() const { return models_; }
  std::vector<const ModelEntry*> list(const ModelFilter& filter) const;

  /// By id, id without its owner, or short name ("r1", "v3", "coder-33b", "v4-flash"); case, blanks, '_' and '-' do not
  /// matter. The start of several names ("r1-distill") is an error that lists them; so is an unknown name, with the
  /// nearest ones.
  Result<const ModelEntry*> find(std::string_view name) const;

 private:
  friend class ModelCatalogLoader;
  std::vector<ModelEntry> models_;
  std::shared_ptr<const ModelNames> names_;
};

/// The catalog of this process, with user_folder() overlaid; loaded at the first call. Thread-safe.
Result<const ModelCatalog*> model_catalog();

/// model_catalog()->find(name).
Result<const ModelEntry*> find_model(std::string_view name);

/// "70B", "1.6T", "350M", "7e9" -> a count of parameters.
Result<double> parse_parameter_count(std::string_view text);

}  // namespace fathom::model
