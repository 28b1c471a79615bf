// The kernels of a translation unit: where they begin in its text, and what its variables begin with.
#include <algorithm>
#include <cstring>
#include <unordered_map>
#include <utility>

#include "emulator/kernel.h"
#include "emulator/ptx_text.h"

namespace fathom::emulator {
namespace {

/// Variables in global memory, with what they begin with.
void read_globals(const std::string& text, Globals& globals) {
  for (std::size_t line = 0; line < text.size();
       line = text.find('\n', line) == std::string::npos ? text.size() : text.find('\n', line) + 1) {
    std::string_view rest = std::string_view(text).substr(line, text.find('\n', line) - line);
    for (const std::string_view prefix : {".visible ", ".weak "})
      if (rest.starts_with(prefix)) rest.remove_prefix(prefix.size());
    if (!rest.starts_with(".global") && !rest.starts_with(".const")) continue;
    rest = std::string_view(text).substr(line, text.find(';', line) - line);
    const std::size_t equals = rest.find('=');
    rest.remove_prefix(rest.find_first_of(" \t"));
    const Declared one = read_declared(rest.substr(0, equals == std::string_view::npos ? rest.size() : rest.find('=')));
    std::byte* const data = allocate(one.bytes, Place::device);
    if (data == nullptr) throw Fault("no memory for the variable " + one.name);
    std::memset(data, 0, one.bytes);
    if (equals != std::string_view::npos) {
      std::string_view values = trimmed(rest.substr(rest.find('=') + 1));
      if (values.starts_with("{")) values = values.substr(1, values.size() - 2);
      std::uint64_t at = 0, bits = 0;
      for (const std::string_view value : split(values)) {
        if (!number(value, bits) || at + one.element > one.bytes)
          throw Fault("a variable's values are not understood: " + one.name);
        std::memcpy(data + at, &bits, one.element);
        at += one.element;
      }
    }
    globals.emplace(one.name, data);
  }
}

}  // namespace

std::string line_of(const Kernel& kernel, const Instruction& instruction) {
  std::size_t at = 0;
  for (std::uint32_t line = 1; line < instruction.line && at != std::string::npos; ++line)
    at = kernel.text->find('\n', at + (line > 1 ? 1 : 0));
  if (at == std::string::npos) return "?";
  std::string out(trimmed(std::string_view(*kernel.text).substr(at, 400)));
  return out.substr(0, std::min(out.find('\n'), std::size_t{120}));
}

struct Module::Parts {
  std::string text;
  Globals globals;
  bool has_globals = false;
  std::unordered_map<std::string, std::size_t> entries;
  std::unordered_map<std::string, std::unique_ptr<Kernel>> kernels;
};
Module::Module(std::string ptx) : parts_(std::make_unique<Parts>()) {
  parts_->text = std::move(ptx);
  const std::string& text = parts_->text;
  for (std::size_t at = text.find(".entry "); at != std::string::npos; at = text.find(".entry ", at + 1)) {
    const std::size_t begin = at + 7, end = text.find_first_of("( \t\n", begin);
    parts_->entries.emplace(text.substr(begin, end - begin), at);
  }
}
Module::~Module() {
  const std::lock_guard held(lock());
  for (const auto& [name, data] : parts_->globals) release(data);
}
const Kernel* Module::kernel(const std::string& name) {
  if (const auto found = parts_->kernels.find(name); found != parts_->kernels.end()) return found->second.get();
  const auto entry = parts_->entries.find(name);
  if (entry == parts_->entries.end()) return nullptr;
  if (!std::exchange(parts_->has_globals, true)) read_globals(parts_->text, parts_->globals);
  return parts_->kernels.emplace(name, decode(parts_->text, entry->second, parts_->globals)).first->second.get();
}
const KernelTraits& traits(const Kernel& kernel) { return kernel.traits; }

}  // namespace fathom::emulator
