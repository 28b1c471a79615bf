// fathom models: what the model catalog knows.
#include <cstdio>
#include <string>

#include "base/i18n.h"
#include "base/strings.h"
#include "base/terminal.h"
#include "base/units.h"
#include "cli/flags.h"
#include "cli/verbs.h"
#include "model/catalog.h"
#include "model/catalog_describe.h"

namespace fathom::cli {
namespace {

using namespace fathom::model;  // NOLINT: this file is a view of that room

constexpr int kWidestValue = 64;

struct ModelsFlags {
  std::string family, max_params, search;
  std::vector<std::string> words;  // of the name: "r1 distill qwen 7b" needs no quotes
  FlagSet show;
} models_flags;

std::string text(const char* key) { return tr(std::string("cli.models.") + key); }
Column left(const char* key) { return {text(key), Align::kLeft}; }
Column right(const char* key) { return {text(key), Align::kRight}; }

std::string origin(const EntryFigure& figure) {
  switch (figure.from) {
    case EntryFigure::From::kPublished:
      return text("from.published");
    case EntryFigure::From::kComputed:
      return text("from.computed");
    case EntryFigure::From::kUser:
      return tr("cli.models.from.user", {{"file", figure.file}});
    case EntryFigure::From::kCatalog:
      break;
  }
  return text("from.catalog");
}

// "MIT (base Qwen2.5-14B: Apache-2.0)" -> "MIT": show tells the rest.
std::string short_license(const std::string& license) { return license.substr(0, license.find(" (")); }

void print_list(const std::vector<const ModelEntry*>& list) {
  Table table({left("id"), left("released"), left("type"), right("params"), right("active"), right("size"),
               right("context"), left("license")});
  for (const ModelEntry* model : list) {
    const auto sized = size_entry(*model);
    const auto count = [&](std::uint64_t value) { return sized ? format_count(static_cast<double>(value)) : "-"; };
    const ModelSizes sizes = sized ? sized->sizes : ModelSizes{};
    table.add_row({model->id, model->released, model->model_type, count(sizes.parameters_total),
                   count(sizes.parameters_active), sized ? format_bytes(sizes.checkpoint_bytes) : "-",
                   std::to_string(model->context_length), short_license(model->license)});
  }
  std::fputs(table.render().c_str(), stdout);
  std::printf("%s\n", tr("cli.models.footer", {{"count", std::to_string(list.size())}}).c_str());
}

void print_entry(const ModelEntry& model) {
  std::printf("%s\n\n", styled(Style::kBold, model.id).c_str());
  Table table({left("figure"), left("value"), left("origin")});
  std::string remarks;  // what is too long for a table
  for (const EntryFigure& figure : entry_figures(model)) {
    const std::string label = tr("cli.models." + figure.key, {{"precision", figure.precision}});
    if (display_width(figure.value) <= kWidestValue)
      table.add_row({label, figure.value, origin(figure)});
    else
      remarks += "\n" + label + ": " + figure.value + "\n";
  }
  std::fputs((table.render() + remarks).c_str(), stdout);
  const std::string key = "cli.models.confidence." + model.confidence;
  const std::string confidence = tr(key) == key ? model.confidence : tr(key);
  std::printf("\n%s\n", tr("cli.models.as_of", {{"date", model.as_of}, {"confidence", confidence}}).c_str());
  if (!model.sources.empty()) std::printf("%s\n", text("sources").c_str());
  for (const std::string& source : model.sources) std::printf("  %s\n", source.c_str());
}

}  // namespace

void setup_models(FlagSet& verb) {
  verb.option("--family", models_flags.family, text("family_flag"));
  verb.option("--max-params", models_flags.max_params, text("max_params"));
  verb.option("--search", models_flags.search, text("search"));
  models_flags.show = verb.sub_verb("show", text("show"));
  models_flags.show.option("ID", models_flags.words, text("name_flag")).required();
}

Result<int> run_models(const Common& common) {
  FATHOM_TRY(const ModelCatalog* catalog, model_catalog());
  if (models_flags.show.given()) {
    FATHOM_TRY(const ModelEntry* model, catalog->find(join(models_flags.words, " ")));
    if (common.json)
      std::printf("%s\n", entry_json(*model).c_str());
    else
      print_entry(*model);
    return kExitOk;
  }
  ModelFilter filter{.family = models_flags.family, .search = models_flags.search};
  if (!models_flags.max_params.empty()) {
    FATHOM_TRY(const double limit, parse_parameter_count(models_flags.max_params));
    filter.max_params = limit;
  }
  const auto list = catalog->list(filter);
  if (common.json)
    std::printf("%s\n", model::list_json(list).c_str());
  else
    print_list(list);
  return kExitOk;
}

}  // namespace fathom::cli
