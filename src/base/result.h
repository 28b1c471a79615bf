// Errors as values. A user's mistake, what the world may do (a full disk), and our own bug are three different things:
// the first two travel as Error inside Result; the third stops the program through FATHOM_CHECK.
#pragma once
#include <initializer_list>
#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <utility>
#include <vector>

namespace fathom {

enum class ErrorKind {
  kInput,        // what the user gave is wrong: a file, a flag, a name, a request
  kEnvironment,  // the machine cannot do it now: no memory, full disk, no permission, no such device
  kUnsupported,  // well-formed, but outside what Fathom can do; the message says what can
};

/// A failure that a person can act on. `key` names a sentence in the text catalog (data/lang/*/…json) and `args` fills
/// its {named} places; the sentence names the cause and the way out. Rendered by error_text() in the language in use.
struct Error {
  ErrorKind kind = ErrorKind::kInput;
  std::string key;
  std::vector<std::pair<std::string, std::string>> args;
};

template <class T>
using Result = tl::expected<T, Error>;
using Status = tl::expected<void, Error>;

using ErrorArgs = std::initializer_list<std::pair<std::string, std::string>>;
inline tl::unexpected<Error> fail(std::string_view key, ErrorArgs args = {}, ErrorKind kind = ErrorKind::kInput) {
  return tl::unexpected<Error>(Error{kind, std::string(key), std::vector<std::pair<std::string, std::string>>(args)});
}
inline tl::unexpected<Error> fail_environment(std::string_view key, ErrorArgs args = {}) {
  return fail(key, args, ErrorKind::kEnvironment);
}
inline tl::unexpected<Error> fail_unsupported(std::string_view key, ErrorArgs args = {}) {
  return fail(key, args, ErrorKind::kUnsupported);
}

/// The whole sentence, in the language in use.
std::string error_text(const Error& error);

[[noreturn]] void check_failed(const char* condition, const char* file, int line, std::string_view note);

}  // namespace fathom

/// Stops with file and line: for our own bugs only, never for what a user or a file can cause.
#define FATHOM_CHECK(condition, ...)                                                           \
  do {                                                                                         \
    if (!(condition)) [[unlikely]]                                                             \
      ::fathom::check_failed(#condition, __FILE__, __LINE__, ::std::string_view{__VA_ARGS__}); \
  } while (0)

#define FATHOM_CONCAT_INNER(a, b) a##b
#define FATHOM_CONCAT(a, b) FATHOM_CONCAT_INNER(a, b)
/// FATHOM_TRY(auto value, call()): unwraps a Result or returns its error from the enclosing function.
#define FATHOM_TRY(declaration, ...)                                                                 \
  auto FATHOM_CONCAT(result_, __LINE__) = (__VA_ARGS__);                                             \
  if (!FATHOM_CONCAT(result_, __LINE__))                                                             \
    return ::tl::unexpected<::fathom::Error>(::std::move(FATHOM_CONCAT(result_, __LINE__)).error()); \
  declaration = ::std::move(*FATHOM_CONCAT(result_, __LINE__))
/// FATHOM_TRY_VOID(call()): the same for a Status.
#define FATHOM_TRY_VOID(...)                                                  \
  do {                                                                        \
    if (auto status_ = (__VA_ARGS__); !status_)                               \
      return ::tl::unexpected<::fathom::Error>(::std::move(status_).error()); \
  } while (0)
