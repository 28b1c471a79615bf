#include "hardware/probe_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

#include "base/clock.h"

extern char** environ;

namespace fathom::hardware {
namespace {

constexpr std::size_t kMaxOutput = std::size_t{1} << 20;

// Reads until the other end closes, the deadline passes or too much came. True when it closed.
bool drain(int fd, double deadline, std::string& output) {
  char buffer[8192];
  for (;;) {
    const double left = deadline - now_seconds();
    if (left <= 0 || output.size() >= kMaxOutput) return false;
    pollfd wait = {fd, POLLIN, 0};
    const int ready = ::poll(&wait, 1, static_cast<int>(left * 1000) + 1);
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) return false;
    const ssize_t n = ::read(fd, buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return n == 0;
    output.append(buffer, static_cast<std::size_t>(n));
  }
}

// Waits for the child until the deadline; nullopt when it is still there.
std::optional<int> reap(pid_t child, double deadline) {
  for (;;) {
    int status = 0;
    const pid_t done = ::waitpid(child, &status, WNOHANG);
    if (done == child) return status;
    if (done < 0 && errno != EINTR) return std::nullopt;
    if (now_seconds() > deadline) return std::nullopt;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

// Its own process group, so that what it started dies with it; default signals; input and complaints to nowhere.
bool start(const std::vector<std::string>& arguments, int output, pid_t& child) {
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  if (::posix_spawn_file_actions_init(&actions) != 0) return false;
  if (::posix_spawnattr_init(&attributes) != 0) {
    ::posix_spawn_file_actions_destroy(&actions);
    return false;
  }
  sigset_t all;
  ::sigfillset(&all);
  const bool ready = ::posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0) == 0 &&
                     ::posix_spawn_file_actions_adddup2(&actions, output, 1) == 0 &&
                     ::posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0) == 0 &&
                     ::posix_spawnattr_setsigdefault(&attributes, &all) == 0 &&
                     ::posix_spawnattr_setpgroup(&attributes, 0) == 0 &&
                     ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGDEF) == 0;
  const bool started = ready && ::posix_spawnp(&child, argv[0], &actions, &attributes, argv.data(), environ) == 0;
  ::posix_spawnattr_destroy(&attributes);
  ::posix_spawn_file_actions_destroy(&actions);
  return started;
}

}  // namespace

std::optional<std::string> run_program(const std::vector<std::string>& arguments, double seconds) {
  if (arguments.empty()) return std::nullopt;
  int ends[2] = {-1, -1};
  if (::pipe2(ends, O_CLOEXEC) != 0) return std::nullopt;
  pid_t child = -1;
  const bool started = start(arguments, ends[1], child);
  ::close(ends[1]);
  if (!started) {
    ::close(ends[0]);
    return std::nullopt;
  }
  const double deadline = now_seconds() + seconds;
  std::string output;
  const bool closed = drain(ends[0], deadline, output);
  ::close(ends[0]);
  std::optional<int> status = closed ? reap(child, deadline) : std::nullopt;
  if (!status) {
    ::kill(-child, SIGKILL);
    reap(child, now_seconds() + 1.0);  // a process stuck in a driver cannot be reaped; it is left to init
    return std::nullopt;
  }
  if (!WIFEXITED(*status) || WEXITSTATUS(*status) != 0) return std::nullopt;
  return output;
}

}  // namespace fathom::hardware
