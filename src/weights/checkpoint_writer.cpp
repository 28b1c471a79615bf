#include "weights/checkpoint_writer.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <set>

#include "base/json.h"
#include "base/strings.h"
#include "weights/checkpoint.h"
#include "weights/staging_folder.h"

namespace fathom::weights {
namespace {

constexpr Bytes kDataAlignment = 4096;  // of the data behind the header: what mapping and direct reads like best
constexpr Bytes kFolderReserve = kMiB;  // for the index, config.json and the file system itself

struct Shard {
  std::string name, header;
  std::size_t first = 0, last = 0;  // tensors [first, last)
  Bytes bytes = 0;                  // of the file
  Descriptor fd;
};

struct Place {
  std::size_t shard = 0;
  Bytes offset = 0;
};

// Files that a checkpoint folder may hold; only such a folder is ever replaced.
bool belongs_to_checkpoint(const std::string& name) {
  return name.ends_with(".safetensors") || name.ends_with(".json") || name.ends_with(".jinja") ||
         name.ends_with(".md") || name.ends_with(".txt") || name.ends_with(".model") || name == "LICENSE";
}

Status check_target(const Path& folder, bool overwrite) {
  std::error_code error;
  const auto status = std::filesystem::status(folder, error);
  if (!std::filesystem::exists(status)) {
    if (std::filesystem::is_directory(folder.parent_path(), error)) return {};
    return fail("weights.no_parent", {{"folder", folder.string()}, {"parent", folder.parent_path().string()}});
  }
  if (!std::filesystem::is_directory(status)) return fail("weights.not_a_folder", {{"folder", folder.string()}});
  if (!overwrite) return fail("weights.folder_exists", {{"folder", folder.string()}});
  for (std::filesystem::directory_iterator it(folder, error), end; !error && it != end; it.increment(error))
    if (!it->is_regular_file(error) || !belongs_to_checkpoint(it->path().filename().string()))
      return fail("weights.folder_not_checkpoint",
                  {{"folder", folder.string()}, {"name", printable(it->path().filename().string())}});
  if (error) return fail_environment("base.cannot_read", {{"path", folder.string()}, {"reason", error.message()}});
  return {};
}

std::string header_of(std::span<const TensorSpec> tensors, const std::map<std::string, std::string>& metadata) {
  const auto quoted = [](const std::string& text) { return dump_json(Json(text)); };
  std::string json = "{\"__metadata__\":{";
  for (const auto& [key, value] : metadata)
    json += fmt::format("{}{}:{}", json.back() == '{' ? "" : ",", quoted(key), quoted(value));
  json += "}";
  Bytes offset = 0;
  for (const TensorSpec& tensor : tensors) {
    json += fmt::format(",{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}", quoted(tensor.name),
                        dtype_safetensors_name(tensor.dtype), fmt::join(tensor.shape, ","), offset,
                        offset + tensor.bytes());
    offset += tensor.bytes();
  }
  json += "}";
  json.append((kDataAlignment - (json.size() + 8) % kDataAlignment) % kDataAlignment, ' ');
  return json;
}

std::vector<Shard> split_into_shards(std::span<const TensorSpec> tensors, Bytes limit) {
  std::vector<Shard> shards(1);
  Bytes data = 0;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const Bytes bytes = tensors[i].bytes();
    if (data > 0 && data + bytes > limit) {
      shards.push_back({.first = i});
      data = 0;
    }
    shards.back().last = i + 1;
    data += bytes;
  }
  for (std::size_t i = 0; i < shards.size(); ++i)
    shards[i].name = shards.size() == 1 ? "model.safetensors"
                                        : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
  return shards;
}

tl::unexpected<Error> disk_full(const Path& folder, Bytes needed, Bytes free) {
  return fail_environment("weights.disk_full", {{"folder", folder.string()},
                                                {"needed", format_bytes(needed)},
                                                {"free", format_bytes(free)},
                                                {"missing", format_bytes(needed > free ? needed - free : 0)}});
}

// A process may not write files of any size: going past the limit would be a signal, not an error.
Status check_file_limit(const Path& folder, Bytes largest) {
  struct rlimit limit = {};
  if (::getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY || largest <= limit.rlim_cur) return {};
  return fail_environment(
      "weights.file_limit",
      {{"folder", folder.string()}, {"needed", format_bytes(largest)}, {"limit", format_bytes(limit.rlim_cur)}});
}

Status write_at(int fd, const std::string& what, std::span<const std::byte> bytes, Bytes offset) {
  for (std::size_t done = 0; done < bytes.size();) {
    const ssize_t n = ::pwrite(fd, bytes.data() + done, bytes.size() - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_environment("base.cannot_write", {{"path", what}, {"reason", errno_text(errno)}});
    done += static_cast<std::size_t>(n);
  }
  return {};
}

}  // namespace

struct CheckpointWriter::State {
  State(Path folder, StagingFolder staging) : target(std::move(folder)), staging(std::move(staging)) {}

  Status open_shard(Shard& shard) {
    const Path path = staging.path() / shard.name;
    shard.fd = Descriptor(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
    if (!shard.fd)
      return fail_environment("base.cannot_write", {{"path", path.string()}, {"reason", errno_text(errno)}});
    const auto size = static_cast<off_t>(shard.bytes);
    if (::fallocate(shard.fd.get(), 0, 0, size) != 0 &&
        (errno != EOPNOTSUPP || ::ftruncate(shard.fd.get(), size) != 0)) {
      const int reason = errno;
      if (reason == ENOSPC || reason == EDQUOT)
        return disk_full(target, shard.bytes, free_bytes(staging.path()).value_or(0));
      return fail_environment("base.cannot_write", {{"path", path.string()}, {"reason", errno_text(reason)}});
    }
    const std::uint64_t length = shard.header.size();
    FATHOM_TRY_VOID(write_at(shard.fd.get(), path.string(), std::as_bytes(std::span(&length, 1)), 0));
    return write_at(shard.fd.get(), path.string(), std::as_bytes(std::span(shard.header)), 8);
  }

  std::string index_json() const {
    Bytes total = 0;
    for (const TensorSpec& tensor : tensors) total += tensor.bytes();
    std::string json = fmt::format("{{\n  \"metadata\": {{\"total_size\": {}}},\n  \"weight_map\": {{", total);
    const char* separator = "\n";
    for (std::size_t i = 0; i < tensors.size(); ++i, separator = ",\n")
      json +=
          fmt::format("{}    {}: \"{}\"", separator, dump_json(Json(tensors[i].name)), shards[places[i].shard].name);
    return json + "\n  }\n}\n";
  }

  Path target;
  StagingFolder staging;
  std::vector<TensorSpec> tensors;
  std::vector<Place> places;
  std::vector<Shard> shards;
  bool overwrite = false;
};

Bytes TensorSpec::bytes() const {
  Bytes n = static_cast<Bytes>(dtype_bytes(dtype));
  for (const std::int64_t dim : shape) FATHOM_CHECK(dim >= 0 && checked_mul(n, static_cast<Bytes>(dim), n), name);
  return n;
}

CheckpointWriter::CheckpointWriter(std::unique_ptr<State> state) : state_(std::move(state)) {}
CheckpointWriter::CheckpointWriter(CheckpointWriter&&) noexcept = default;
CheckpointWriter& CheckpointWriter::operator=(CheckpointWriter&&) noexcept = default;
CheckpointWriter::~CheckpointWriter() = default;

Result<CheckpointWriter> CheckpointWriter::create(const Path& folder, std::vector<TensorSpec> tensors,
                                                  const WriteOptions& options) {
  std::error_code ignored;
  Path target = std::filesystem::absolute(folder, ignored).lexically_normal();
  if (target.filename().empty()) target = target.parent_path();  // "dir/"
  if (std::filesystem::is_symlink(target, ignored)) target = std::filesystem::weakly_canonical(target, ignored);
  FATHOM_TRY_VOID(check_target(target, options.overwrite));
  std::vector<Shard> shards = split_into_shards(tensors, options.shard_bytes);
  Bytes total = kFolderReserve, largest = 0;
  for (Shard& shard : shards) {
    const std::span part = std::span(tensors).subspan(shard.first, shard.last - shard.first);
    shard.header = header_of(part, options.metadata);
    shard.bytes = 8 + shard.header.size();
    for (const TensorSpec& tensor : part) shard.bytes += tensor.bytes();
    total += shard.bytes;
    largest = std::max(largest, shard.bytes);
  }
  FATHOM_TRY(const Bytes free, free_bytes(target.parent_path()));
  if (total > free) return disk_full(target, total, free);
  FATHOM_TRY_VOID(check_file_limit(target, largest));
  FATHOM_TRY(StagingFolder staging, StagingFolder::create(target));
  auto state = std::make_unique<State>(std::move(target), std::move(staging));
  state->overwrite = options.overwrite;
  for (std::size_t s = 0; s < shards.size(); ++s) {
    FATHOM_TRY_VOID(state->open_shard(shards[s]));
    Bytes offset = 8 + shards[s].header.size();
    for (std::size_t i = shards[s].first; i < shards[s].last; ++i) {
      state->places.push_back({s, offset});
      offset += tensors[i].bytes();
    }
  }
  state->tensors = std::move(tensors);
  state->shards = std::move(shards);
  return CheckpointWriter(std::move(state));
}

Status CheckpointWriter::write(std::size_t tensor, Bytes offset, std::span<const std::byte> bytes) {
  const Place& place = state_->places[tensor];
  const Shard& shard = state_->shards[place.shard];
  FATHOM_CHECK(offset + bytes.size() <= state_->tensors[tensor].bytes(), state_->tensors[tensor].name);
  FATHOM_TRY_VOID(write_at(shard.fd.get(), (state_->target / shard.name).string(), bytes, place.offset + offset));
  // Starts on its way to the disk while the next part is made.
  (void)::sync_file_range(shard.fd.get(), static_cast<off64_t>(place.offset + offset),
                          static_cast<off64_t>(bytes.size()), SYNC_FILE_RANGE_WRITE);
  return {};
}

Status CheckpointWriter::add_file(std::string_view name, std::string_view contents) {
  return write_file_atomic(state_->staging.path() / name, contents);
}

Status CheckpointWriter::commit() {
  if (state_->shards.size() > 1) FATHOM_TRY_VOID(add_file(kIndexName, state_->index_json()));
  for (Shard& shard : state_->shards) {
    if (::fsync(shard.fd.get()) != 0)
      return fail_environment("base.cannot_write",
                              {{"path", (state_->target / shard.name).string()}, {"reason", errno_text(errno)}});
    shard.fd = Descriptor();
  }
  return state_->staging.publish(state_->overwrite);
}

std::size_t CheckpointWriter::files() const { return state_->shards.size(); }
Bytes CheckpointWriter::file_bytes() const {
  Bytes sum = 0;
  for (const Shard& shard : state_->shards) sum += shard.bytes;
  return sum;
}

}  // namespace fathom::weights
