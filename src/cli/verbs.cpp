#include "cli/verbs.h"

#include <algorithm>
#include <cstdio>
#include <new>
#include <string>
#include <vector>

#include "base/i18n.h"
#include "base/strings.h"
#include "cli/flags.h"

namespace fathom::cli {

// One line a verb, here and in the list below.
#define FATHOM_VERB(name)           \
  void setup_##name(FlagSet& verb); \
  Result<int> run_##name(const Common& common);
#include "cli/verb_list.inc"
#undef FATHOM_VERB

std::span<const Verb> verbs() {
  static constexpr Verb list[] = {
#define FATHOM_VERB(name) {#name, setup_##name, run_##name},
#include "cli/verb_list.inc"
#undef FATHOM_VERB
  };
  return list;
}

namespace {

void say_error(const std::string& text) { std::fprintf(stderr, "fathom: %s\n", text.c_str()); }

// The language must be known before any text is made, so --lang is looked for ahead of the real parse.
Status choose_language(int argc, char** argv) {
  set_language(language_from_environment());
  for (int i = 1; i < argc; ++i) {
    const std::string_view arg = argv[i];
    std::string_view value;
    if (arg.starts_with("--lang="))
      value = arg.substr(7);
    else if (arg == "--lang" && i + 1 < argc)
      value = argv[i + 1];
    else
      continue;
    FATHOM_TRY(const Language language, parse_language(value));
    set_language(language);
  }
  return {};
}

// What the parse found wrong, as one sentence that names a near flag or verb and what to type.
std::string usage_sentence(const std::string& problem, int argc, char** argv) {
  std::vector<std::string> names;
  for (const Verb& verb : verbs()) names.emplace_back(verb.name);
  if (argc > 1 && argv[1][0] != '-' && std::find(names.begin(), names.end(), argv[1]) == names.end()) {
    const auto near = nearest_names(argv[1], names);
    return near.empty() ? tr("cli.unknown_verb", {{"name", printable(argv[1])}, {"verbs", join(names)}})
                        : tr("cli.unknown_verb_near", {{"name", printable(argv[1])}, {"near", join(near)}});
  }
  return tr("cli.usage", {{"problem", problem}, {"verb", argc > 1 && argv[1][0] != '-' ? argv[1] : ""}});
}

}  // namespace

std::string read_standard_input() {
  std::string text;
  char buffer[65536];
  for (std::size_t n; (n = std::fread(buffer, 1, sizeof buffer, stdin)) > 0;) text.append(buffer, n);
  return text;
}

int run(int argc, char** argv) {
  if (auto chosen = choose_language(argc, argv); !chosen) {
    say_error(error_text(chosen.error()));
    return kExitError;
  }
  const CommandLine line;
  Common common;
  std::string language_name, problem;
  std::vector<FlagSet> flags;
  for (const Verb& verb : verbs()) {
    const std::string name(verb.name);
    FlagSet& told = flags.emplace_back(line.verb(name, tr("cli." + name + ".about"), tr("cli." + name + ".examples")));
    told.flag("--json", common.json, tr("cli.json"));
    told.option("--lang", language_name, tr("cli.lang"));
    verb.setup(told);
  }
  switch (line.parse(argc, argv, problem)) {
    case CommandLine::Outcome::kAnswered:
      return kExitOk;
    case CommandLine::Outcome::kWrong:
      say_error(usage_sentence(problem, argc, argv));
      return kExitError;
    case CommandLine::Outcome::kParsed:
      break;
  }
  for (std::size_t i = 0; i < flags.size(); ++i) {
    if (!flags[i].given()) continue;
    try {
      Result<int> code = verbs()[i].run(common);
      if (code) return *code;
      std::fflush(stdout);
      if (code.error().key != "ranks.told") say_error(error_text(code.error()));
    } catch (const std::bad_alloc&) {
      say_error(tr("cli.no_memory"));
    }
    return kExitError;
  }
  return kExitError;
}

}  // namespace fathom::cli
