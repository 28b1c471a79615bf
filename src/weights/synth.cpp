#include "weights/synth.h"

#include <array>
#include <chrono>

#include "base/embedded.h"
#include "base/json.h"
#include "model/catalog.h"
#include "weights/checkpoint_writer.h"
#include "weights/generate.h"
#include "weights/quantize.h"

namespace fathom::weights {
using model::ModelSpec;
using model::WeightEntry;
using tensor::WeightFormat;

namespace {

constexpr std::string_view kDefaultConfig = "synthetic/embedded-default.json";
constexpr std::size_t kWrittenBytes = std::size_t{1} << 20;  // stays in the cache on its way to the kernel

// ---------------------------------------------------------------- configs

// The members of the main text model: nested in text_config where a vision model wraps it.
Json& text_part(Json& config) {
  return config.contains("text_config") && config["text_config"].is_object() ? config["text_config"] : config;
}

void drop_extra_parts(Json& part) {
  if (part.contains("num_nextn_predict_layers")) part["num_nextn_predict_layers"] = 0;
  std::vector<std::string> gone;
  for (const auto& [key, value] : part.items())
    if (key.starts_with("dspark_") || key.starts_with("vision_")) gone.push_back(key);
  if (!gone.empty()) gone.emplace_back("image_token_id");
  for (const std::string& key : gone) part.erase(key);
  const auto layers = part.find("num_hidden_layers");
  const auto ratios = part.find("compress_ratios");  // one a layer; the tail belonged to the draft
  if (ratios != part.end() && ratios->is_array() && layers != part.end() && layers->is_number_unsigned() &&
      ratios->size() > layers->get<std::size_t>())
    ratios->erase(ratios->begin() + layers->get<std::ptrdiff_t>(), ratios->end());
}

void set_dtype(Json& part, DType dtype, bool outermost) {
  static constexpr std::array<std::string_view, kDTypeCount> torch_names = {"float64", "float32", "float16",
                                                                            "bfloat16"};
  part.erase("quantization_config");
  part.erase("expert_dtype");
  bool named = false;
  for (const char* key : {"dtype", "torch_dtype"}) {
    if (!part.contains(key)) continue;
    part[key] = torch_names[static_cast<std::size_t>(dtype)];
    named = true;
  }
  if (outermost && !named) part["torch_dtype"] = torch_names[static_cast<std::size_t>(dtype)];
}

std::string generation_config(const ModelSpec& spec) {
  Json json = {{"_from_model_config", true}};
  const auto put = [&](const char* key, const std::vector<std::int64_t>& ids) {
    if (ids.size() == 1)
      json[key] = ids[0];
    else if (!ids.empty())
      json[key] = ids;
  };
  put("bos_token_id", spec.bos_ids);
  put("eos_token_id", spec.eos_ids);
  return dump_json(json, 2) + "\n";
}

// ---------------------------------------------------------------- tensors

DType file_dtype(WeightFormat format) {
  if (format == WeightFormat::mxfp4) return DType::i8;
  return scale_block(format).rows > 0 ? DType::f8e4m3 : tensor::weight_dtype(format);
}

// The name that the release gives to the scales of `name`: V3's, or that of V4, whose tensors have no "model." in
// front.
std::string scale_name(const std::string& name) {
  if (name.starts_with("model.")) return name + "_scale_inv";
  return (name.ends_with(".weight") ? name.substr(0, name.size() - 7) : name) + ".scale";
}

// One tensor of the file and where its numbers come from.
struct Made {
  const WeightEntry* entry = nullptr;
  std::int64_t expert = 0;
  bool scales = false;
};

struct MadeInventory {
  std::vector<TensorSpec> tensors;
  std::vector<Made> made;  // beside tensors
  std::uint64_t parameters = 0;
};

void take_stock(const WeightEntry& entry, MadeInventory& stock) {
  const WeightFormat format = entry.native;
  const ScaleBlock block = scale_block(format);
  std::vector<std::int64_t> shape = !entry.file_shape.empty() ? entry.file_shape
                                    : entry.vector            ? std::vector{entry.full_cols}
                                                              : std::vector{entry.full_rows, entry.full_cols};
  if (format == WeightFormat::mxfp4) shape.back() /= 2;
  stock.parameters += entry.elements();
  for (std::int64_t e = 0; e < entry.experts; ++e) {
    const std::string name = entry.name(e);
    stock.tensors.push_back({name, file_dtype(format), shape});
    stock.made.push_back({&entry, e, false});
    if (block.rows == 0) continue;
    const WeightGenerator generator(entry, e, format, 0, 0);
    stock.tensors.push_back({scale_name(name),
                             format == WeightFormat::fp8_block128 ? DType::f32 : DType::e8m0,
                             {generator.scale_rows(), generator.scale_cols()}});
    stock.made.push_back({&entry, e, true});
  }
}

struct Piece {
  std::size_t tensor = 0;
  Bytes offset = 0, bytes = 0;
};

std::vector<Piece> cut(std::span<const TensorSpec> tensors) {
  std::vector<Piece> pieces;
  for (std::size_t t = 0; t < tensors.size(); ++t)
    for (Bytes at = 0, bytes = tensors[t].bytes(); at < bytes; at += kWrittenBytes)
      pieces.push_back({t, at, std::min<Bytes>(kWrittenBytes, bytes - at)});
  return pieces;
}

Status write_tensors(const model::WeightTable& table, const MadeInventory& stock, CheckpointWriter& writer,
                     const SynthOptions& options) {
  const std::vector<Piece> pieces = cut(stock.tensors);
  Bytes total = 0;
  for (const Piece& piece : pieces) total += piece.bytes;
  return run_workers(pieces.size(), total, usable_threads(options.threads, pieces.size()), options.progress,
                     [&](WorkQueue& queue) -> Status {
                       std::vector<std::byte> buffer(kWrittenBytes);
                       while (const auto number = queue.next()) {
                         const Piece& piece = pieces[*number];
                         const Made& made = stock.made[piece.tensor];
                         const WeightGenerator generator(*made.entry, made.expert, made.entry->native, options.seed,
                                                         experts_beside(table, *made.entry));
                         const std::span out(buffer.data(), piece.bytes);
                         const Bytes element = static_cast<Bytes>(dtype_bytes(stock.tensors[piece.tensor].dtype));
                         const std::uint64_t first =
                             piece.offset / element *
                             (made.entry->native == WeightFormat::mxfp4 && !made.scales ? 2 : 1);
                         if (made.scales)
                           generator.scales(first, out);
                         else
                           generator.data(first, out);
                         FATHOM_TRY_VOID(writer.write(piece.tensor, piece.offset, out));
                         queue.add_done(piece.bytes);
                       }
                       return {};
                     });
}

}  // namespace

Result<ModelSpec> default_model() {
  const auto text = embedded_file(kDefaultConfig);
  FATHOM_CHECK(text.has_value(), kDefaultConfig);
  return model::parse_config(*text, kDefaultConfig);
}

Result<ModelSpec> find_model_spec(std::string_view name) {
  std::error_code ignored;
  const Path path(name);
  if (std::filesystem::exists(path, ignored) &&
      (name != kDefaultModel || !std::filesystem::is_directory(path, ignored)))
    return model::load_config(path);
  if (name == kDefaultModel) return default_model();
  if (name.ends_with(".json")) return model::load_config(path);  // which says what is wrong with it
  FATHOM_TRY(const model::ModelEntry* entry, model::find_model(name));
  return model::parse_config(entry->config, entry->id);
}

Result<ModelSpec> synthetic_spec(const ModelSpec& spec, std::optional<std::int64_t> layers,
                                 std::optional<DType> dtype) {
  FATHOM_TRY(const ModelSpec sized, model::with_layers(spec, layers.value_or(spec.layers)));
  FATHOM_TRY(Json config, parse_json(sized.config_json, sized.model_type));
  drop_extra_parts(text_part(config));
  drop_extra_parts(config);
  config.erase("vision_config");
  if (dtype) {
    set_dtype(text_part(config), *dtype, false);
    set_dtype(config, *dtype, true);
  }
  return model::parse_config(dump_json(config), sized.model_type);
}

Result<ModelSpec> quantized_spec(const ModelSpec& spec, std::optional<std::int64_t> layers, tensor::WeightCode to) {
  if (to == tensor::WeightCode::kE4m3 && tensor::weight_layout(spec.linear_format).code == to)
    return synthetic_spec(spec, layers, {});  // the release is FP8 already
  FATHOM_TRY(const ModelSpec plain, synthetic_spec(spec, layers, tensor::weight_dtype(spec.plain_format)));
  return quantization_target(plain, {.to = to});
}

Result<SynthReport> synthesize_checkpoint(const ModelSpec& spec, const Path& folder, const SynthOptions& options) {
  const auto started = std::chrono::steady_clock::now();
  if (!spec.quantization.empty())
    return fail_unsupported("weights.synth_quantized",
                            {{"format", std::string(tensor::weight_format_name(spec.linear_format))}});
  FATHOM_TRY(const auto architecture, model::make_architecture(spec));
  const model::WeightTable& table = architecture->weights();
  MadeInventory stock;
  for (const WeightEntry& entry : table.entries())
    if (entry.tied_to < 0) take_stock(entry, stock);
  WriteOptions write{.shard_bytes = options.shard_bytes, .overwrite = options.overwrite};
  write.metadata["synthetic"] = "random weights, seed " + std::to_string(options.seed);
  FATHOM_TRY(CheckpointWriter writer, CheckpointWriter::create(folder, stock.tensors, write));
  FATHOM_TRY_VOID(write_tensors(table, stock, writer, options));
  FATHOM_TRY_VOID(writer.add_file("config.json", spec.config_json + "\n"));
  FATHOM_TRY_VOID(writer.add_file("generation_config.json", generation_config(spec)));
  FATHOM_TRY_VOID(writer.commit());
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - started;
  return SynthReport{folder,         stock.parameters,    stock.tensors.size(),
                     writer.files(), writer.file_bytes(), seconds.count()};
}

}  // namespace fathom::weights
