#include "backends/mpi/mpi_library.h"

#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <vector>

#include "base/strings.h"

namespace fathom::mpi {
namespace {

// MPI 3.1, annex A: the functions' shapes; what a handle is, is the library's own. Constants of Open MPI are addresses
// of its objects, those of the MPICH ABI (mpich.org/abi) are numbers.
constexpr int kFunneled = 1;  // MPI_THREAD_FUNNELED in both

template <class Handle>
struct Constants {
  Handle world{}, byte{}, errors_return{};
  void* status_ignore = nullptr;
};

template <class Handle>
struct Calls {
  int (*init_thread)(int*, char***, int, int*) = nullptr;
  int (*initialized)(int*) = nullptr;
  int (*finalize)() = nullptr;
  int (*abort)(Handle, int) = nullptr;
  int (*rank)(Handle, int*) = nullptr;
  int (*size)(Handle, int*) = nullptr;
  int (*set_errhandler)(Handle, Handle) = nullptr;
  int (*isend)(const void*, int, Handle, int, int, Handle, Handle*) = nullptr;
  int (*irecv)(void*, int, Handle, int, int, Handle, Handle*) = nullptr;
  int (*test)(Handle*, int*, void*) = nullptr;
  int (*cancel)(Handle*) = nullptr;
  int (*request_free)(Handle*) = nullptr;
  int (*error_string)(int, char*, int*) = nullptr;
};

template <class Handle>
class LibraryOf final : public Library {
 public:
  LibraryOf(Calls<Handle> calls, Constants<Handle> constants) : calls_(calls), constants_(constants) {}

  Status init() {
    int provided = 0;
    if (!well(calls_.init_thread(nullptr, nullptr, kFunneled, &provided)) ||
        !well(calls_.set_errhandler(constants_.world, constants_.errors_return)) ||
        !well(calls_.rank(constants_.world, &rank_)) || !well(calls_.size(constants_.world, &size_)))
      return fail_environment("mpi.failed", {{"error", error_}});
    return {};
  }
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  bool send(const void* data, int bytes, int to, int tag, Request& request) override {
    Handle handle{};
    const bool sent = well(calls_.isend(data, bytes, constants_.byte, to, tag, constants_.world, &handle));
    request = sent ? pack(handle) : 0;
    return sent;
  }
  bool receive(void* data, int bytes, int from, int tag, Request& request) override {
    Handle handle{};
    const bool posted = well(calls_.irecv(data, bytes, constants_.byte, from, tag, constants_.world, &handle));
    request = posted ? pack(handle) : 0;
    return posted;
  }
  bool test(Request& request, bool& done) override {
    int flag = 0;
    Handle handle = unpack(request);
    if (!well(calls_.test(&handle, &flag, constants_.status_ignore))) return false;
    done = flag != 0;
    if (done) request = 0;
    return true;
  }
  void cancel(Request& request) override {
    if (request == 0) return;
    Handle handle = unpack(request);
    calls_.cancel(&handle);
    calls_.request_free(&handle);
    request = 0;
  }
  const std::string& error() const override { return error_; }
  void abort(int code) override {
    calls_.abort(constants_.world, code);
    std::_Exit(code);
  }
  void finalize() override { calls_.finalize(); }

 private:
  // A request that is done at once may be a handle of value 0: one more than the value is kept.
  static Request pack(Handle handle) {
    Request request = 0;
    std::memcpy(&request, &handle, sizeof handle);
    return request + 1;
  }
  static Handle unpack(Request request) {
    --request;
    Handle handle{};
    std::memcpy(&handle, &request, sizeof handle);
    return handle;
  }
  bool well(int code) {
    if (code == 0) return true;
    char text[1024] = {};
    int length = 0;
    calls_.error_string(code, text, &length);
    error_ = printable(text);
    return false;
  }

  Calls<Handle> calls_;
  Constants<Handle> constants_;
  int rank_ = 0, size_ = 1;
  std::string error_;
};

template <class Handle>
const char* bind(void* library, Calls<Handle>& calls) {
  const char* missing = nullptr;
  const auto find = [&](auto& function, const char* name) {
    void* symbol = ::dlsym(library, name);
    if (symbol == nullptr) missing = name;
    std::memcpy(&function, &symbol, sizeof symbol);
  };
  find(calls.init_thread, "MPI_Init_thread");
  find(calls.finalize, "MPI_Finalize");
  find(calls.abort, "MPI_Abort");
  find(calls.rank, "MPI_Comm_rank");
  find(calls.size, "MPI_Comm_size");
  find(calls.set_errhandler, "MPI_Comm_set_errhandler");
  find(calls.isend, "MPI_Isend");
  find(calls.irecv, "MPI_Irecv");
  find(calls.test, "MPI_Test");
  find(calls.cancel, "MPI_Cancel");
  find(calls.request_free, "MPI_Request_free");
  find(calls.error_string, "MPI_Error_string");
  return missing;
}

template <class Handle>
Result<std::unique_ptr<Library>> start_of(void* library, const Constants<Handle>& constants) {
  Calls<Handle> calls;
  if (const char* missing = bind(library, calls)) return fail_environment("mpi.no_symbol", {{"symbol", missing}});
  auto made = std::make_unique<LibraryOf<Handle>>(calls, constants);
  FATHOM_TRY_VOID(made->init());
  return std::unique_ptr<Library>(std::move(made));
}

// Who started us says which family it is; its library comes first.
std::vector<std::string> candidates() {
  if (const char* named = std::getenv("FATHOM_MPI_LIBRARY"); named != nullptr && *named != '\0') return {named};
  const std::vector<std::string> open = {"libmpi.so.40", "libmpi.so.80"},
                                 mpich = {"libmpi.so.12", "libmpich.so.12", "libmpich.so.0"};
  std::vector<std::string> all =
      std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr || std::getenv("PMIX_RANK") != nullptr ? open : mpich;
  const std::vector<std::string>& rest = all == open ? mpich : open;
  all.insert(all.end(), rest.begin(), rest.end());
  all.emplace_back("libmpi.so");
  return all;
}

}  // namespace

Result<std::unique_ptr<Library>> Library::start() {
  void* library = nullptr;
  for (const std::string& name : candidates())
    if ((library = ::dlopen(name.c_str(), RTLD_NOW | RTLD_GLOBAL)) != nullptr)
      break;  // global: Open MPI's parts look for it there
  if (library == nullptr) return fail_environment("mpi.not_found", {{"names", join(candidates())}});
  void* world = ::dlsym(library, "ompi_mpi_comm_world");
  if (world == nullptr)
    return start_of<int>(library, {.world = 0x44000000,
                                   .byte = 0x4c00010d,
                                   .errors_return = 0x54000001,
                                   .status_ignore = reinterpret_cast<void*>(1)});
  void* byte = ::dlsym(library, "ompi_mpi_byte");
  void* errors_return = ::dlsym(library, "ompi_mpi_errors_return");
  if (byte == nullptr || errors_return == nullptr)
    return fail_environment("mpi.no_symbol",
                            {{"symbol", byte == nullptr ? "ompi_mpi_byte" : "ompi_mpi_errors_return"}});
  return start_of<void*>(library,
                         {.world = world, .byte = byte, .errors_return = errors_return, .status_ignore = nullptr});
}

}  // namespace fathom::mpi
