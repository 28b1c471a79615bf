#include "engine/fault.h"

#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <string>
#include <thread>

#include "base/strings.h"

namespace fathom::engine {
namespace {

constexpr auto kStall = std::chrono::minutes(2);

struct Fault {
  std::string kind;
  int rank = -1;
  std::int64_t pass = 0;
};

int number(std::string_view text, int otherwise) {
  int value = otherwise;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

// Read each time: tests set it between engines.
Fault asked() {
  const char* text = std::getenv("FATHOM_FAULT");
  if (text == nullptr || *text == '\0') return {};
  const std::string_view all = text;
  const std::size_t first = all.find(':'), second = first == std::string_view::npos ? first : all.find(':', first + 1);
  Fault fault{.kind = std::string(all.substr(0, first))};
  if (first != std::string_view::npos) fault.rank = number(all.substr(first + 1), -1);
  if (second != std::string_view::npos) fault.pass = number(all.substr(second + 1), 0);
  return fault;
}

}  // namespace

Status inject_fault_at_start(int rank) {
  const Fault fault = asked();
  if (fault.rank == rank && fault.kind == "memory") return fail_environment("ranks.injected", {{"kind", fault.kind}});
  return {};
}

Status inject_fault(const Seat& seat, std::int64_t pass, tensor::Backend& backend) {
  const Fault fault = asked();
  if (fault.rank != seat.rank || fault.pass != pass) return {};
  if (fault.kind == "kill") std::raise(SIGKILL);
  if (fault.kind == "hang")
    while (seat.transport == nullptr || !seat.transport->failure())
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
  if (fault.kind == "device" && backend.break_device()) return {};  // the pass will find out
  if (fault.kind == "stall") {
    backend.call_host([](void*) { std::this_thread::sleep_for(kStall); }, nullptr);
    return {};
  }
  if (fault.kind == "hang" || fault.kind == "error" || fault.kind == "device")
    return fail_environment("ranks.injected", {{"kind", fault.kind}});
  return {};
}

}  // namespace fathom::engine
