// What verbs can be told. Only flags.cpp knows CLI11: its templates cost a file that includes it about three seconds of
// compiling.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/files.h"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace fathom::cli {

/// A flag that was added, to say more about it; a reference into its CommandLine, as a FlagSet is.
class Flag {
 public:
  Flag within(int low, int high) const;  // each value, both ends included
  Flag not_negative() const;
  Flag positive() const;
  Flag list() const;  // one word may hold several values, with commas between
  Flag required() const;
  Flag excludes(Flag other) const;  // and the other this one
  Flag needs(Flag other) const;

 private:
  friend class FlagSet;
  explicit Flag(CLI::Option* option) : option_(option) {}
  CLI::Option* option_;
};

/// What one verb can be told. `name` is "--long", "-s,--long", or without dashes a place ("MODEL"); --help shows flags
/// in the order in which they were added. `value` outlives the parse; where nothing is said it stays as it is.
class FlagSet {
 public:
  FlagSet() = default;  // nobody's: given to nothing but an assignment

  Flag option(const std::string& name, std::string& value, const std::string& help) const;
  Flag option(const std::string& name, Path& value, const std::string& help) const;
  Flag option(const std::string& name, int& value, const std::string& help) const;
  Flag option(const std::string& name, std::int64_t& value, const std::string& help) const;
  Flag option(const std::string& name, std::uint64_t& value, const std::string& help) const;
  Flag option(const std::string& name, double& value, const std::string& help) const;
  Flag option(const std::string& name, std::optional<int>& value, const std::string& help) const;
  Flag option(const std::string& name, std::optional<std::int64_t>& value, const std::string& help) const;
  Flag option(const std::string& name, std::optional<double>& value, const std::string& help) const;
  Flag option(const std::string& name, std::optional<std::string>& value, const std::string& help) const;
  Flag option(const std::string& name, std::vector<std::int64_t>& value, const std::string& help) const;
  Flag option(const std::string& name, std::vector<std::string>& value, const std::string& help) const;
  Flag flag(const std::string& name, bool& value, const std::string& help) const;

  /// A verb of this verb, which takes this one's flags too.
  FlagSet sub_verb(const std::string& name, const std::string& help) const;
  /// After the parse: this verb was called.
  bool given() const;

 private:
  friend class CommandLine;
  explicit FlagSet(CLI::App* app) : app_(app) {}
  CLI::App* app_ = nullptr;
};

/// The program's verbs, with --help and --version, in the language in use.
class CommandLine {
 public:
  CommandLine();
  ~CommandLine();

  FlagSet verb(const std::string& name, const std::string& about, const std::string& examples) const;

  /// kAnswered: --help or --version, printed. kWrong: `problem` says what is, in English.
  enum class Outcome { kParsed, kAnswered, kWrong };
  Outcome parse(int argc, char** argv, std::string& problem) const;

 private:
  std::unique_ptr<CLI::App> app_;
};

}  // namespace fathom::cli
