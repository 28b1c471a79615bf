#include "cli/flags.h"

#include <CLI/CLI.hpp>

#include "base/i18n.h"

namespace fathom::cli {

Flag Flag::within(int low, int high) const { return Flag(option_->check(CLI::Range(low, high))); }
Flag Flag::not_negative() const { return Flag(option_->check(CLI::NonNegativeNumber)); }
Flag Flag::positive() const { return Flag(option_->check(CLI::PositiveNumber)); }
Flag Flag::list() const { return Flag(option_->delimiter(',')); }
Flag Flag::required() const { return Flag(option_->required()); }
Flag Flag::excludes(Flag other) const { return Flag(option_->excludes(other.option_)); }
Flag Flag::needs(Flag other) const { return Flag(option_->needs(other.option_)); }

#define FATHOM_OPTION(type)                                                                   \
  Flag FlagSet::option(const std::string& name, type& value, const std::string& help) const { \
    return Flag(app_->add_option(name, value, help));                                         \
  }
FATHOM_OPTION(std::string)
FATHOM_OPTION(Path)
FATHOM_OPTION(int)
FATHOM_OPTION(std::int64_t)
FATHOM_OPTION(std::uint64_t)
FATHOM_OPTION(double)
FATHOM_OPTION(std::optional<int>)
FATHOM_OPTION(std::optional<std::int64_t>)
FATHOM_OPTION(std::optional<double>)
FATHOM_OPTION(std::optional<std::string>)
FATHOM_OPTION(std::vector<std::int64_t>)
FATHOM_OPTION(std::vector<std::string>)
#undef FATHOM_OPTION

Flag FlagSet::flag(const std::string& name, bool& value, const std::string& help) const {
  return Flag(app_->add_flag(name, value, help));
}

FlagSet FlagSet::sub_verb(const std::string& name, const std::string& help) const {
  CLI::App* sub = app_->add_subcommand(name, help);
  sub->set_help_flag("-h,--help", tr("cli.help"));
  sub->fallthrough();
  return FlagSet(sub);
}

bool FlagSet::given() const { return app_->parsed(); }

CommandLine::CommandLine() : app_(std::make_unique<CLI::App>(tr("cli.about"))) {
  app_->name("fathom");
  app_->set_version_flag("--version", "fathom 0.1.0", tr("cli.version"));
  app_->require_subcommand(1);
  app_->set_help_flag("-h,--help", tr("cli.help"));
  app_->footer(tr("cli.footer"));
}

CommandLine::~CommandLine() = default;

FlagSet CommandLine::verb(const std::string& name, const std::string& about, const std::string& examples) const {
  CLI::App* sub = app_->add_subcommand(name, about);
  sub->footer(examples);
  sub->set_help_flag("-h,--help", tr("cli.help"));
  return FlagSet(sub);
}

CommandLine::Outcome CommandLine::parse(int argc, char** argv, std::string& problem) const {
  try {
    app_->parse(argc, argv);
  } catch (const CLI::Success& e) {  // --help and --version end a parse so
    app_->exit(e);
    return Outcome::kAnswered;
  } catch (const CLI::ParseError& e) {
    problem = e.what();
    return Outcome::kWrong;
  }
  return Outcome::kParsed;
}

}  // namespace fathom::cli
