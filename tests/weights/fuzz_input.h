// What the fuzzer and the replay of its corpus do with one input: read it as a header, as an index and as a file, and
// load what opens.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <string>

#include "support.h"
#include "weights/checkpoint.h"
#include "weights/loader.h"

namespace fathom::weights::test {

// A table that asks for every small tensor of the checkpoint as what it seems to be.
inline model::WeightTable table_of(const Checkpoint& checkpoint) {
  model::WeightTable table;
  for (const TensorPlace& place : checkpoint.tensors()) {
    const FileTensor& tensor = *place.tensor;
    std::int64_t elements = 1;
    for (const std::int64_t dim : tensor.dims())
      elements = dim > 0 && dim < 4096 && elements < 65536 ? elements * dim : 0;
    if (elements == 0 || tensor.rank == 0 || tensor.name.find("scale") != std::string::npos ||
        table.entries().size() >= 16)
      continue;
    const std::int64_t cols =
        tensor.shape[static_cast<std::size_t>(tensor.rank - 1)] * (tensor.dtype == DType::i8 ? 2 : 1);
    const auto native = tensor.dtype == DType::i64 ? tensor::WeightFormat::i64 : tensor::WeightFormat::bf16;
    model::WeightEntry entry =
        tensor.rank == 1
            ? vector(tensor.name, cols, native)
            : matrix(tensor.name, elements / tensor.shape[static_cast<std::size_t>(tensor.rank - 1)], cols, native);
    if (tensor.rank > 2) entry.file_shape.assign(tensor.dims().begin(), tensor.dims().end());
    table.add(entry);
  }
  return table;
}

inline void load_file(const std::string& bytes) {
  const Descriptor fd(::memfd_create("fuzz", MFD_CLOEXEC));
  if (!fd || ::write(fd.get(), bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size())) return;
  const auto checkpoint = Checkpoint::open("/proc/self/fd/" + std::to_string(fd.get()));
  if (!checkpoint) return;
  const model::WeightTable table = table_of(*checkpoint);
  for (const bool mapped : {false, true}) {
    for (const auto dtype : {std::optional<DType>(), std::optional(DType::f32)}) {
      MemoryBackend backend;
      LoadOptions options{.storage = {.dtype = dtype}, .mmap = mapped, .check_finite = true, .allow_extra = true};
      options.read.threads = 1;
      (void)load_weights(table, table, *checkpoint, backend, options);
    }
  }
}

inline void fuzz_one(const std::string& input) {
  for (const Bytes data : {Bytes{0}, static_cast<Bytes>(input.size()), Bytes{64}}) {
    const auto header = parse_safetensors_header(input, 8 + input.size(), data, "fuzz");
    if (!header) (void)error_text(header.error());
    if (header && data <= 4096) load_file(file_bytes(input, std::string(data, '\x3c')));
  }
  if (const auto index = parse_index(input, "fuzz"); !index) (void)error_text(index.error());
  load_file(input);
}

}  // namespace fathom::weights::test
