// The MPI that is installed, found when the program runs: bytes from rank to rank is all that is asked of it, so a
// build needs none, and one binary serves Open MPI and the MPICH family (MPICH, Intel MPI, MVAPICH), whose handles are
// pointers and integers.
#pragma once
#include <cstdint>
#include <memory>
#include <string>

#include "base/result.h"

namespace fathom::mpi {

/// One message under way; 0: none.
using Request = std::uint64_t;

/// Calls of one thread. A call that MPI refuses answers false and leaves its sentence in error().
class Library {
 public:
  virtual ~Library() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual bool send(const void* data, int bytes, int to, int tag, Request& request) = 0;
  virtual bool receive(void* data, int bytes, int from, int tag, Request& request) = 0;
  /// Whether the message is there (or gone); then the request is 0.
  virtual bool test(Request& request, bool& done) = 0;
  virtual void cancel(Request& request) = 0;
  virtual const std::string& error() const = 0;
  /// Ends all ranks of the run with this exit code.
  [[noreturn]] virtual void abort(int code) = 0;
  virtual void finalize() = 0;

  /// Loads and initializes it. FATHOM_MPI_LIBRARY names a library to be taken instead of the usual ones. Errors:
  /// "mpi.not_found", "mpi.no_symbol", "mpi.failed".
  static Result<std::unique_ptr<Library>> start();
};

}  // namespace fathom::mpi
