#include "weights/interrupt.h"

#include <signal.h>

#include <array>
#include <cstddef>

namespace fathom::weights {
namespace {

constexpr std::array<int, 3> kSignals = {SIGINT, SIGTERM, SIGHUP};
volatile sig_atomic_t requested_flag = 0;
std::array<struct sigaction, kSignals.size()> before;

void on_signal(int) { requested_flag = 1; }

}  // namespace

InterruptGuard::InterruptGuard() {
  requested_flag = 0;
  struct sigaction action = {};
  action.sa_handler = on_signal;
  action.sa_flags = static_cast<int>(SA_RESTART | SA_RESETHAND);
  for (std::size_t i = 0; i < kSignals.size(); ++i) {
    ::sigaction(kSignals[i], nullptr, &before[i]);
    if (before[i].sa_handler != SIG_IGN)
      ::sigaction(kSignals[i], &action, nullptr);  // what nohup ignores stays ignored
  }
}

InterruptGuard::~InterruptGuard() {
  for (std::size_t i = 0; i < kSignals.size(); ++i) ::sigaction(kSignals[i], &before[i], nullptr);
}

bool InterruptGuard::requested() { return requested_flag != 0; }

}  // namespace fathom::weights
