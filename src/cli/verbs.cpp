#include "cli/verbs.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>

#include "base/i18n.h"
#include "base/strings.h"

namespace fathom::cli {

// One line a verb, here and in the list below.
#define FATHOM_VERB(name)           \
  void setup_##name(CLI::App& app); \
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

// What CLI11 found wrong, as one sentence that names a near flag or verb and what to type.
std::string usage_sentence(const CLI::ParseError& error, int argc, char** argv) {
  std::vector<std::string> names;
  for (const Verb& verb : verbs()) names.emplace_back(verb.name);
  if (argc > 1 && argv[1][0] != '-' && std::find(names.begin(), names.end(), argv[1]) == names.end()) {
    const auto near = nearest_names(argv[1], names);
    return near.empty() ? tr("cli.unknown_verb", {{"name", printable(argv[1])}, {"verbs", join(names)}})
                        : tr("cli.unknown_verb_near", {{"name", printable(argv[1])}, {"near", join(near)}});
  }
  return tr("cli.usage", {{"problem", error.what()}, {"verb", argc > 1 && argv[1][0] != '-' ? argv[1] : ""}});
}

}  // namespace

int run(int argc, char** argv) {
  if (auto chosen = choose_language(argc, argv); !chosen) {
    say_error(error_text(chosen.error()));
    return kExitError;
  }
  CLI::App app{tr("cli.about")};
  app.name("fathom");
  app.set_version_flag("--version", "fathom 0.1.0", tr("cli.version"));
  app.require_subcommand(1);
  app.set_help_flag("-h,--help", tr("cli.help"));
  app.footer(tr("cli.footer"));
  Common common;
  std::string language_name;
  for (const Verb& verb : verbs()) {
    const std::string prefix = "cli." + std::string(verb.name);
    CLI::App* sub = app.add_subcommand(std::string(verb.name), tr(prefix + ".about"));
    sub->footer(tr(prefix + ".examples"));
    sub->set_help_flag("-h,--help", tr("cli.help"));
    sub->add_flag("--json", common.json, tr("cli.json"));
    sub->add_option("--lang", language_name, tr("cli.lang"));
    verb.setup(*sub);
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp& e) {
    app.exit(e);
    return kExitOk;
  } catch (const CLI::CallForAllHelp& e) {
    app.exit(e);
    return kExitOk;
  } catch (const CLI::CallForVersion& e) {
    app.exit(e);
    return kExitOk;
  } catch (const CLI::ParseError& e) {
    say_error(usage_sentence(e, argc, argv));
    return kExitError;
  }
  for (const Verb& verb : verbs()) {
    if (!app.got_subcommand(std::string(verb.name))) continue;
    try {
      Result<int> code = verb.run(common);
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
