#include "tensor/transport.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace fathom::tensor {
namespace {

void put(std::vector<std::byte>& out, std::string_view text) {
  const std::uint64_t size = text.size();
  const std::size_t at = out.size();
  out.resize(at + sizeof size + text.size());
  std::memcpy(out.data() + at, &size, sizeof size);
  std::memcpy(out.data() + at + sizeof size, text.data(), text.size());
}

std::string take(std::span<const std::byte>& in) {
  std::uint64_t size = 0;
  FATHOM_CHECK(in.size() >= sizeof size);
  std::memcpy(&size, in.data(), sizeof size);
  in = in.subspan(sizeof size);
  FATHOM_CHECK(in.size() >= size);
  std::string text(reinterpret_cast<const char*>(in.data()), size);
  in = in.subspan(size);
  return text;
}

}  // namespace

double rank_patience_seconds() {
  const char* text = std::getenv("FATHOM_RANK_TIMEOUT");
  const double wanted = text == nullptr ? 0 : std::atof(text);
  return wanted >= 1 && wanted <= 3600 ? wanted : 15.0;
}

std::vector<std::byte> pack_error(const Error& error) {
  std::vector<std::byte> out;
  put(out, std::to_string(static_cast<int>(error.kind)));
  put(out, error.key);
  for (const auto& [name, value] : error.args) {
    put(out, name);
    put(out, value);
  }
  return out;
}

Error unpack_error(std::span<const std::byte> bytes) {
  Error error;
  error.kind = static_cast<ErrorKind>(std::atoi(take(bytes).c_str()));
  error.key = take(bytes);
  while (!bytes.empty()) {
    std::string name = take(bytes), value = take(bytes);
    error.args.emplace_back(std::move(name), std::move(value));
  }
  return error;
}

Error rank_failed(int rank, int ranks, const Error& cause) {
  for (const std::string_view key : {"ranks.failed", "ranks.silent", "ranks.gpu_silent", "ranks.gpus_stuck"})
    if (cause.key == key) return cause;  // says already which rank it was
  return fail("ranks.failed",
              {{"rank", std::to_string(rank)}, {"ranks", std::to_string(ranks)}, {"cause", error_text(cause)}},
              cause.kind)
      .value();
}

Status broadcast(Transport& transport, std::vector<std::byte>& bytes) {
  if (transport.rank() == 0) {
    for (int r = 1; r < transport.size(); ++r) FATHOM_TRY_VOID(transport.post(r, bytes));
    return {};
  }
  FATHOM_TRY(bytes, transport.take(0, Patience::kIdle));
  return {};
}

Result<std::vector<std::vector<std::byte>>> gather(Transport& transport, std::vector<std::byte> bytes) {
  std::vector<std::vector<std::byte>> all;
  if (transport.rank() != 0) {
    FATHOM_TRY_VOID(transport.post(0, std::move(bytes)));
    return all;
  }
  all.push_back(std::move(bytes));
  for (int r = 1; r < transport.size(); ++r) {
    FATHOM_TRY(auto part, transport.take(r, Patience::kIdle));
    all.push_back(std::move(part));
  }
  return all;
}

Status agree(Transport& transport, const Status& mine) {
  std::vector<std::byte> verdict;
  if (!mine) verdict = pack_error(mine.error());
  FATHOM_TRY(const auto all, gather(transport, verdict));
  for (const std::vector<std::byte>& one : all) {
    if (one.empty()) continue;
    verdict = one;
    break;
  }
  // Who hears of an error leaves at once, perhaps before all others were told: the error that was agreed on stands.
  const Status told = broadcast(transport, verdict);
  if (verdict.empty()) return told;
  Error error = unpack_error(verdict);
  if (transport.rank() == 0) return tl::unexpected<Error>(std::move(error));
  return fail("ranks.told", {{"cause", error_text(error)}}, error.kind);
}

}  // namespace fathom::tensor
