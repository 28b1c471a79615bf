#include "emulator/fatbin.h"

#include <dlfcn.h>

#include <cstdint>
#include <cstring>
#include <span>

#include "emulator/gpu.h"

namespace fathom::emulator {
namespace {

constexpr std::uint32_t kWrapperMagic = 0x466243b1, kMagic = 0xba55ed50;
constexpr std::uint16_t kPtx = 1;
constexpr std::uint64_t kLz4 = 0x2000, kZstd = 0x8000;  // of an entry's flags
constexpr std::uint32_t kNewest = 90;

struct Wrapper {
  std::uint32_t magic, version;
  const std::byte* data;
};
struct Header {
  std::uint32_t magic;
  std::uint16_t version, header_bytes;
  std::uint64_t bytes;  // behind this header
};
struct Entry {
  std::uint16_t kind, version;
  std::uint32_t header_bytes;
  std::uint64_t payload_bytes;  // padded
  std::uint32_t compressed_bytes, options_at, versions, architecture, name_at, name_bytes;
  std::uint64_t flags, unused, whole_bytes;  // whole_bytes: of what was compressed
};
static_assert(sizeof(Header) == 16 && sizeof(Entry) == 64 && offsetof(Entry, compressed_bytes) == 16 &&
              offsetof(Entry, architecture) == 28);
static_assert(offsetof(Entry, flags) == 40 && offsetof(Entry, whole_bytes) == 56);

/// One block of LZ4's format: literals, then what was there before, in turns.
bool expand_lz4(std::span<const std::uint8_t> from, std::span<std::uint8_t> to) {
  std::size_t in = 0, out = 0;
  const auto length = [&](std::size_t first) {
    std::size_t count = first;
    for (std::uint8_t more = 255; first == 15 && more == 255 && in < from.size(); count += more) more = from[in++];
    return count;
  };
  while (in < from.size()) {
    const std::uint8_t token = from[in++];
    const std::size_t literals = length(token >> 4);
    if (literals > from.size() - in || literals > to.size() - out) return false;
    if (literals > 0) std::memcpy(to.data() + out, from.data() + in, literals);
    in += literals, out += literals;
    if (in == from.size()) break;  // the last turn has literals alone
    if (from.size() - in < 2) return false;
    const std::size_t back = from[in] | from[in + 1] << 8;
    in += 2;
    const std::size_t repeated = length(token & 15) + 4;
    if (back == 0 || back > out || repeated > to.size() - out) return false;
    for (std::size_t i = 0; i < repeated; ++i, ++out) to[out] = to[out - back];  // may overlap what it makes
  }
  return out == to.size();
}

bool expand_zstd(std::span<const std::uint8_t> from, std::span<std::uint8_t> to) {
  using Decompress = std::size_t (*)(void*, std::size_t, const void*, std::size_t);
  static const Decompress decompress = [] {
    void* library = ::dlopen("libzstd.so.1", RTLD_NOW | RTLD_LOCAL);
    return library != nullptr ? reinterpret_cast<Decompress>(::dlsym(library, "ZSTD_decompress")) : nullptr;
  }();
  if (decompress == nullptr)
    throw Fault("its PTX is compressed by Zstandard and libzstd.so.1 was not found: compile with --compress-mode=none");
  return decompress(to.data(), to.size(), from.data(), from.size()) == to.size();  // errors are other numbers
}

std::string text_of(const Entry& entry, const std::byte* payload) {
  const auto* data = reinterpret_cast<const std::uint8_t*>(payload);
  std::string text;
  if ((entry.flags & (kLz4 | kZstd)) == 0) {
    text.assign(reinterpret_cast<const char*>(payload), entry.payload_bytes);
  } else {
    if (entry.compressed_bytes > entry.payload_bytes) throw Fault("its fat binary has an entry longer than its place");
    text.resize(entry.whole_bytes);
    const std::span from(data, entry.compressed_bytes);
    const std::span to(reinterpret_cast<std::uint8_t*>(text.data()), text.size());
    if (!((entry.flags & kZstd) != 0 ? expand_zstd(from, to) : expand_lz4(from, to)))
      throw Fault("its compressed PTX cannot be read");
  }
  return text.substr(0, text.find('\0'));  // zeros pad it
}

}  // namespace

std::string ptx_of(const void* at) {
  Wrapper wrapper;
  std::memcpy(&wrapper, at, sizeof wrapper);
  Header header{};
  if (wrapper.magic == kWrapperMagic && wrapper.data != nullptr) std::memcpy(&header, wrapper.data, sizeof header);
  if (header.magic != kMagic) throw Fault("what was registered is not a fat binary");
  const std::byte *entries = wrapper.data + header.header_bytes, *end = entries + header.bytes, *found_at = nullptr;
  Entry found{};
  while (end - entries >= static_cast<std::ptrdiff_t>(sizeof(Entry))) {
    Entry entry;
    std::memcpy(&entry, entries, sizeof entry);
    const auto left = static_cast<std::uint64_t>(end - entries);
    if (entry.header_bytes < sizeof(Entry) || entry.header_bytes > left ||
        entry.payload_bytes > left - entry.header_bytes)
      throw Fault("its fat binary has an entry beyond its end");
    if (entry.kind == kPtx && entry.architecture <= kNewest &&
        (found_at == nullptr || entry.architecture > found.architecture)) {
      found = entry;
      found_at = entries + entry.header_bytes;
    }
    entries += entry.header_bytes + entry.payload_bytes;
  }
  if (found_at == nullptr)
    throw Fault("its translation unit has no PTX for 9.0 or older: compile for a virtual architecture");
  return text_of(found, found_at);
}

}  // namespace fathom::emulator
