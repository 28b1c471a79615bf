// Models with random weights: a checkpoint of the real shapes on disk, or weights straight in memory. Openly synthetic.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "model/architecture.h"
#include "tensor/backend.h"
#include "weights/loader.h"

namespace fathom::weights {

/// The name of the model that Fathom carries in itself: DeepSeek-V3's shape at about 210 million parameters.
inline constexpr std::string_view kDefaultModel = "default";
Result<model::ModelSpec> default_model();

/// What `model` names: "default", a folder with a config.json, a config.json, or an id or short name of the catalog.
Result<model::ModelSpec> find_model_spec(std::string_view model);

/// The spec as a synthetic checkpoint states it: with `layers` layers when given; all plain weights in `dtype` when
/// given, else the published formats; without MTP, DSpark and vision parts, which the main model does not run.
Result<model::ModelSpec> synthetic_spec(const model::ModelSpec& spec, std::optional<std::int64_t> layers,
                                        std::optional<DType> dtype);
/// The same with linears as `fathom quantize --to` would store them, of a spec whose plain weights are bf16 or f16.
Result<model::ModelSpec> quantized_spec(const model::ModelSpec& spec, std::optional<std::int64_t> layers,
                                        tensor::WeightCode to);

struct SynthOptions {
  std::uint64_t seed = 0;
  int threads = 0;  // 0: as many as this process may use
  Bytes shard_bytes = 5'000'000'000;
  bool overwrite = false;
  ProgressFn progress;
};

struct SynthReport {
  Path folder;
  std::uint64_t parameters = 0, tensors = 0;  // tensors with scales
  std::size_t files = 0;                      // .safetensors
  Bytes bytes = 0;                            // of those files
  double seconds = 0;

  Bytes bytes_per_second() const { return seconds > 0 ? static_cast<Bytes>(static_cast<double>(bytes) / seconds) : 0; }
};

/// Writes config.json, generation_config.json and every tensor of `spec`'s table in its native format under its
/// published name. The same seed gives the same bytes on any number of threads. All or nothing, as CheckpointWriter;
/// errors are its and make_architecture's.
Result<SynthReport> synthesize_checkpoint(const model::ModelSpec& spec, const Path& folder,
                                          const SynthOptions& options = {});

struct MemorySynthOptions {
  StoragePolicy storage;
  HostUnits host{};
  std::uint64_t seed = 0;
  int threads = 0;
  ProgressFn progress;
};

/// The same weights without a file, for one rank's table: equal to synthesize_checkpoint and load_weights where the
/// stored format is plain; quantized weights that `storage` widens are drawn in the wide format instead.
Result<LoadedWeights> synthesize_in_memory(const model::WeightTable& table, tensor::Backend& backend,
                                           const MemorySynthOptions& options = {});

}  // namespace fathom::weights
