// A checkpoint in fewer bits, by rounding to nearest, in the layout of compressed-tensors that other engines read
// (docs/formats.md).
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/files.h"
#include "base/units.h"
#include "model/spec.h"
#include "tensor/weight.h"
#include "weights/workers.h"

namespace fathom::weights {

struct QuantizeOptions {
  tensor::WeightCode to =
      tensor::WeightCode::kE4m3;  // kE4m3: FP8 a row; kInt8: INT8 a row; kUint4: INT4 in groups of 128
  bool asymmetric = false;        // kUint4: with zero points
  bool weight_only =
      false;  // kE4m3: activations stay as they are; without it FP8 and INT8 ask for 8-bit activations a token
  std::vector<std::string> ignore;  // modules that stay as they are: full names, or re: and a regular expression
  bool overwrite = false;
  int threads = 0;  // 0: as many as this process may use
  Bytes shard_bytes = 5'000'000'000;
  ProgressFn progress;
};
/// "fp8", "int8", "int4".
Result<tensor::WeightCode> parse_quantize_target(std::string_view name);

/// The spec of what quantize_checkpoint makes of a model.
Result<model::ModelSpec> quantization_target(const model::ModelSpec& spec, const QuantizeOptions& options);

struct QuantizeReport {
  Path folder;
  tensor::WeightFormat format = tensor::WeightFormat::bf16;
  std::uint64_t quantized = 0, kept = 0;  // tensors of the source
  std::uint64_t elements = 0;             // quantized ones
  std::vector<std::string> indivisible;   // modules left as they are because their columns do not divide into groups
  double relative_error = 0;              // sqrt(sum (w' - w)² / sum w²) over all that was quantized
  std::size_t files = 0;                  // .safetensors
  Bytes bytes_before = 0, bytes = 0;      // of all tensors; of those files
  double seconds = 0;
};

/// Quantizes the linears of attention, feed-forward and experts of the checkpoint in `model` (plain, or DeepSeek's FP8
/// and FP4, which are widened first); embeddings, heads, norms, routers, indexers and what the main model does not run
/// stay as they are. Read once, as a stream, some megabytes a thread in memory. Tokenizer files and the like are
/// copied, config.json gets its quantization_config. All or nothing, as CheckpointWriter. Errors: its own, those of
/// reading the model, weights.not_finite (naming the tensor), weights.quantize_…; weights.interrupted when progress
/// says so.
Result<QuantizeReport> quantize_checkpoint(const Path& model, const Path& folder, const QuantizeOptions& options);

}  // namespace fathom::weights
