#include "weights/quantize.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <mutex>

#include "base/json.h"
#include "base/math.h"
#include "base/strings.h"
#include "model/architecture.h"
#include "weights/checkpoint_writer.h"
#include "weights/conversion.h"
#include "weights/quantize_rows.h"
#include "weights/resolve.h"
#include "weights/transfer.h"

namespace fathom::weights {
using model::WeightClass;
using model::WeightEntry;
using tensor::WeightCode;
using tensor::WeightFormat;

namespace {

constexpr Bytes kPieceBytes = 4 * kMiB;     // of a source tensor at a time
constexpr Bytes kMostOfAFile = 256 * kMiB;  // of tokenizers and the like

WeightFormat format_for(const QuantizeOptions& options, WeightFormat plain) {
  if (options.to == WeightCode::kE4m3) return WeightFormat::fp8_row;
  if (options.to == WeightCode::kInt8) return WeightFormat::int8_row;
  const bool half = plain == WeightFormat::f16;
  if (options.asymmetric) return half ? WeightFormat::int4_group128_zero_f16 : WeightFormat::int4_group128_zero;
  return half ? WeightFormat::int4_group128_f16 : WeightFormat::int4_group128;
}

// "model.layers.0.mlp.down_proj"; of experts a pattern for all of them.
std::string module_of(const WeightEntry& entry) {
  std::string name = entry.pattern.substr(0, entry.pattern.size() - std::string_view(".weight").size());
  const std::size_t at = name.find("{e}");
  if (at == std::string::npos) return name;
  std::string pattern = "re:";
  for (std::size_t i = 0; i < name.size(); ++i) {
    if (i == at)
      pattern += "\\d+", i += 2;
    else
      pattern += name[i] == '.' ? std::string("\\.") : std::string(1, name[i]);
  }
  return pattern + "$";
}

bool is_linear(const WeightEntry& entry) {
  return entry.tied_to < 0 && entry.part == model::WeightPart::kMain && !entry.vector && entry.file_shape.empty() &&
         entry.pattern.ends_with(".weight") && entry.cls != WeightClass::kEmbedding;
}
bool is_quantizable(const WeightEntry& entry) {
  return entry.cls == WeightClass::kAttention || entry.cls == WeightClass::kDenseFfn ||
         entry.cls == WeightClass::kSharedExpert || entry.cls == WeightClass::kRoutedExpert;
}

// The configuration of what is written: everything linear is quantized but the modules that `ignore` lists.
struct Target {
  model::ModelSpec spec;
  std::string config;
  std::vector<std::string> indivisible;
};

Result<Target> make_target(const model::ModelSpec& source, const model::WeightTable& table,
                           const QuantizeOptions& options) {
  Target target;
  const WeightFormat format = format_for(options, source.plain_format);
  const std::int64_t group = tensor::weight_layout(format).cols;
  std::vector<std::string> ignore = options.ignore;
  const auto add = [&](const std::string& module) {
    if (std::ranges::find(ignore, module) == ignore.end()) ignore.push_back(module);
  };
  add("lm_head");
  for (const WeightEntry& entry : table.entries()) {
    if (!is_linear(entry)) continue;
    const bool divides =
        group == tensor::kWholeRow || entry.cols % group == 0 || (entry.cols < group && entry.cols % 8 == 0);
    if (is_quantizable(entry) && divides) continue;
    if (is_quantizable(entry)) target.indivisible.push_back(module_of(entry));
    add(module_of(entry));
  }
  FATHOM_TRY(Json config, parse_json(source.config_json, "config.json"));
  config.erase("expert_dtype");
  const bool rounds = options.to != WeightCode::kUint4 && !options.weight_only;
  config["quantization_config"] = model::compressed_tensors_json(
      format, rounds ? tensor::Activations::kPerToken : tensor::Activations::kAsTheyAre, ignore);
  target.config = dump_json(config, 2) + "\n";
  FATHOM_TRY(target.spec, model::parse_config(target.config, "config.json"));
  return target;
}

// ---------------------------------------------------------------- what is written

enum class Kind : std::uint8_t { kCopy, kWiden, kQuantize };

// A tensor of the source and what becomes of it. `first`: number of its first tensor in the new checkpoint.
struct Item {
  Kind kind = Kind::kCopy;
  TensorSource source;
  const WeightEntry* entry = nullptr;  // of the new table; null: copied as it is
  std::size_t first = 0;
};

struct Inventory {
  std::vector<Item> items;  // in the order of the source's files
  std::vector<TensorSpec> tensors;
};

void add_tensors(const Item& item, std::vector<TensorSpec>& out) {
  const FileTensor& tensor = *item.source.data.tensor;
  const std::vector<std::int64_t> shape(tensor.dims().begin(), tensor.dims().end());
  if (item.kind == Kind::kCopy) {
    out.push_back({tensor.name, *tensor.dtype, shape});
    return;
  }
  const WeightEntry& entry = *item.entry;
  const std::string stem = stem_of(tensor.name);
  if (item.kind == Kind::kWiden) {
    out.push_back({stem + ".weight", tensor::weight_dtype(entry.native), {entry.rows, entry.cols}});
    return;
  }
  const tensor::WeightLayout layout = tensor::weight_layout(entry.native);
  if (layout.code != WeightCode::kUint4) {
    out.push_back(
        {stem + ".weight", layout.code == WeightCode::kE4m3 ? DType::f8e4m3 : DType::i8, {entry.rows, entry.cols}});
    out.push_back({stem + ".weight_scale", layout.scale, {entry.rows, 1}});
    return;
  }
  const std::int64_t groups = ceil_div(entry.cols, layout.cols);
  out.push_back({stem + ".weight_packed", DType::i32, {entry.rows, ceil_div(entry.cols, 8)}});
  out.push_back({stem + ".weight_scale", layout.scale, {entry.rows, groups}});
  out.push_back({stem + ".weight_shape", DType::i64, {2}});
  if (layout.zeros) out.push_back({stem + ".weight_zero_point", DType::i32, {ceil_div(entry.rows, 8), groups}});
}

Result<Inventory> take_stock(const model::WeightTable& table, const model::WeightTable& wanted,
                             const Checkpoint& checkpoint) {
  const StoragePolicy policy{.dtype = DType::f32};
  FATHOM_TRY(const WeightPlan plan, plan_weights(table, policy));
  FATHOM_TRY(const std::vector<TensorSource> sources, resolve_tensors(table, policy, plan, checkpoint));
  FATHOM_TRY_VOID(check_extra_tensors(table, checkpoint));
  FATHOM_CHECK(table.entries().size() == wanted.entries().size());
  std::map<const FileTensor*, Item> known;
  std::vector<const FileTensor*> parts;  // scales and zero points of what is widened
  for (std::size_t i = 0; i < table.entries().size(); ++i) {
    const WeightEntry& entry = wanted.entries()[i];
    if (entry.tied_to >= 0 || !policy.wants(entry)) continue;
    for (std::int64_t e = 0; e < entry.experts; ++e) {
      const TensorSource& source = sources[static_cast<std::size_t>(table.entries()[i].first_parameter + e)];
      const bool quantized = tensor::weight_layout(entry.native).code != WeightCode::kPlain;
      const Kind kind = quantized ? Kind::kQuantize : source.encoding != Encoding::kPlain ? Kind::kWiden : Kind::kCopy;
      known[source.data.tensor] = {.kind = kind, .source = source, .entry = &entry};
      for (const TensorPlace& part : {source.scales, source.zeros})
        if (part) parts.push_back(part.tensor);
    }
  }
  std::ranges::sort(parts);
  Inventory stock;
  for (const TensorPlace& place : checkpoint.tensors()) {
    if (std::ranges::binary_search(parts, place.tensor) || place.tensor->name.ends_with(".weight_shape")) continue;
    const auto at = known.find(place.tensor);
    stock.items.push_back(at == known.end() ? Item{.source = {.data = place}} : at->second);
    if (!place.tensor->dtype)
      return fail_unsupported("weights.quantize_type", {{"name", printable(place.tensor->name)},
                                                        {"file", place.file->path().string()},
                                                        {"found", printable(place.tensor->type)}});
  }
  std::ranges::sort(stock.items, {},
                    [](const Item& item) { return std::pair(item.source.data.file, item.source.data.tensor->begin); });
  for (Item& item : stock.items) {
    item.first = stock.tensors.size();
    add_tensors(item, stock.tensors);
  }
  return stock;
}

// ---------------------------------------------------------------- writing

// Rows [first, first + count) of an item's matrix; of a copy, bytes.
struct RowPiece {
  std::size_t item = 0;
  std::int64_t first = 0, count = 0;
};

std::int64_t source_row_bytes(const Item& item) {
  const FileTensor& tensor = *item.source.data.tensor;
  return std::max<std::int64_t>(1, static_cast<std::int64_t>(tensor.bytes()) / item.entry->rows);
}

std::vector<RowPiece> cut(std::span<const Item> items) {
  std::vector<RowPiece> pieces;
  for (std::size_t i = 0; i < items.size(); ++i) {
    const bool copies = items[i].kind == Kind::kCopy;
    const std::int64_t total =
        copies ? static_cast<std::int64_t>(items[i].source.data.tensor->bytes()) : items[i].entry->rows;
    // Zero points are packed eight rows a word, and scales lie a block of 128 rows together.
    const std::int64_t step =
        copies
            ? static_cast<std::int64_t>(kPieceBytes)
            : ceil_div(std::max<std::int64_t>(1, static_cast<std::int64_t>(kPieceBytes) / source_row_bytes(items[i])),
                       128) *
                  128;
    for (std::int64_t at = 0; at < total; at += step) pieces.push_back({i, at, std::min(step, total - at)});
  }
  return pieces;
}

struct Errors {
  double squares = 0, difference = 0;
};

// One thread's work on pieces.
class PieceWorker {
 public:
  PieceWorker(const std::map<const SafetensorsFile*, MappedFile>& files, const Inventory& stock,
              CheckpointWriter& writer)
      : files_(files), stock_(stock), writer_(writer) {}

  Status run(const RowPiece& piece) {
    const Item& item = stock_.items[piece.item];
    if (item.kind == Kind::kCopy)
      return writer_.write(
          item.first, static_cast<Bytes>(piece.first),
          bytes_of(item.source.data, static_cast<Bytes>(piece.first), static_cast<Bytes>(piece.count)));
    FATHOM_TRY_VOID(widen(item, piece));
    return item.kind == Kind::kWiden ? write_widened(item, piece) : write_quantized(item, piece);
  }
  const Errors& errors() const { return errors_; }

 private:
  std::span<const std::byte> bytes_of(const TensorPlace& place, Bytes offset, Bytes count) const {
    return files_.at(place.file).bytes().subspan(place.tensor->begin + offset, count);
  }

  // values_ = the piece's rows in f32; all of them finite.
  Status widen(const Item& item, const RowPiece& piece) {
    const TensorSource& source = item.source;
    const std::int64_t cols = item.entry->cols, blocks = source.encoding == Encoding::kPlain ? 0
                                                         : source.one_scale                  ? 1
                                                                            : ceil_div(cols, source.block.cols);
    values_.resize(static_cast<std::size_t>(piece.count * cols));
    TransferJob job{.data = source.data,
                    .scales = source.scales,
                    .zeros = source.zeros,
                    .encoding = source.encoding,
                    .block = source.block,
                    .to = DType::f32,
                    .full_cols = cols,
                    .first_row = piece.first,
                    .rows = piece.count,
                    .cols = cols,
                    .out = reinterpret_cast<std::byte*>(values_.data())};
    if (source.one_scale) job.block = {tensor::kWholeRow, tensor::kWholeRow};
    job.from = source.encoding == Encoding::kPlain ? *source.data.tensor->dtype : DType::u8;
    const auto row_bytes = job.row_bytes();
    const auto data =
        bytes_of(source.data, static_cast<Bytes>(piece.first) * row_bytes, static_cast<Bytes>(piece.count) * row_bytes);
    std::span<const std::byte> scales;
    if (blocks > 0) {
      const auto scale_row = static_cast<Bytes>(blocks * dtype_bytes(*source.scales.tensor->dtype));
      const std::int64_t first = piece.first / job.block.rows, last = (piece.first + piece.count - 1) / job.block.rows;
      scales = bytes_of(source.scales, static_cast<Bytes>(first) * scale_row,
                        static_cast<Bytes>(last - first + 1) * scale_row);
    }
    const TransferPiece whole{.first = 0, .count = blocks > 0 ? piece.count : piece.count * cols};
    FATHOM_TRY_VOID(finish_piece(job, whole, data, scales, false));
    const auto bad = first_not_finite(DType::f32, std::as_bytes(std::span(values_)));
    if (!bad) return {};
    return fail("weights.not_finite",
                {{"name", printable(source.data.tensor->name)},
                 {"file", source.data.file->path().string()},
                 {"element", std::to_string(static_cast<std::size_t>(piece.first * cols) + *bad)}});
  }

  Status write_widened(const Item& item, const RowPiece& piece) {
    const DType type = tensor::weight_dtype(item.entry->native);
    const Bytes size = static_cast<Bytes>(dtype_bytes(type));
    codes_.resize(values_.size() * size);
    if (type == DType::f32)
      return writer_.write(item.first, static_cast<Bytes>(piece.first * item.entry->cols) * size,
                           std::as_bytes(std::span(values_)));
    convert(DType::f32, std::as_bytes(std::span(values_)), type, codes_);
    return writer_.write(item.first, static_cast<Bytes>(piece.first * item.entry->cols) * size, codes_);
  }

  Status write_quantized(const Item& item, const RowPiece& piece) {
    const WeightEntry& entry = *item.entry;
    const tensor::WeightLayout layout = tensor::weight_layout(entry.native);
    const auto cols = static_cast<std::size_t>(entry.cols), rows = static_cast<std::size_t>(piece.count);
    const auto row_bytes = static_cast<std::size_t>(tensor::weight_row_bytes(entry.native, entry.cols));
    const auto groups = static_cast<std::size_t>(ceil_div(entry.cols, layout.cols)),
               scale_row = groups * static_cast<std::size_t>(dtype_bytes(layout.scale));
    codes_.resize(rows * row_bytes);
    scales_.resize(rows * scale_row);
    zeros_.assign((rows + 7) / 8 * groups, 0);
    std::vector<std::uint8_t> row_zeros(groups, 8);
    for (std::size_t r = 0; r < rows; ++r) {
      const std::span<const float> row(values_.data() + r * cols, cols);
      const QuantizedRow out{std::span(codes_).subspan(r * row_bytes, row_bytes),
                             std::span(scales_).subspan(r * scale_row, scale_row), row_zeros};
      quantize_row(entry.native, row, out);
      if (layout.zeros)
        for (std::size_t g = 0; g < groups; ++g)
          zeros_[r / 8 * groups + g] |= static_cast<std::uint32_t>(row_zeros[g]) << (r % 8 * 4);
      measure(layout, row, out);
    }
    const auto first = static_cast<Bytes>(piece.first);
    FATHOM_TRY_VOID(writer_.write(item.first, first * row_bytes, codes_));
    FATHOM_TRY_VOID(writer_.write(item.first + 1, first * scale_row, scales_));
    if (layout.code != WeightCode::kUint4) return {};
    if (piece.first == 0) {
      const std::array<std::int64_t, 2> shape = {entry.rows, entry.cols};
      FATHOM_TRY_VOID(writer_.write(item.first + 2, 0, std::as_bytes(std::span(shape))));
    }
    return layout.zeros ? writer_.write(item.first + 3, first / 8 * groups * 4, std::as_bytes(std::span(zeros_)))
                        : Status{};
  }

  // What the codes mean, against what was meant.
  void measure(const tensor::WeightLayout& layout, std::span<const float> row, const QuantizedRow& out) {
    float squares = 0, difference = 0;
    const auto* codes = reinterpret_cast<const std::uint8_t*>(out.codes.data());
    const auto size = static_cast<std::size_t>(layout.cols);
    for (std::size_t first = 0, group = 0; first < row.size(); first += size, ++group) {
      std::array<float, 1> scale{};
      convert(layout.scale,
              out.scales.subspan(group * static_cast<std::size_t>(dtype_bytes(layout.scale)),
                                 static_cast<std::size_t>(dtype_bytes(layout.scale))),
              DType::f32, std::as_writable_bytes(std::span(scale)));
      const std::size_t last = std::min(first + size, row.size());
      const float zero = layout.zeros ? out.zeros[group] : 8.0f;
      for (std::size_t i = first; i < last; ++i) {
        const float code = layout.code == WeightCode::kE4m3 ? table()[codes[i]]
                           : layout.code == WeightCode::kInt8
                               ? static_cast<float>(static_cast<std::int8_t>(codes[i]))
                               : static_cast<float>(codes[i / 2] >> (i % 2 * 4) & 15) - zero;
        const float d = code * scale[0] - row[i];
        squares += row[i] * row[i];
        difference += d * d;
      }
    }
    errors_.squares += static_cast<double>(squares);
    errors_.difference += static_cast<double>(difference);
  }
  static const std::array<float, 256>& table() {
    static const std::array<float, 256> values = [] {
      std::array<float, 256> t{};
      for (std::size_t i = 0; i < t.size(); ++i) t[i] = f8e4m3_to_f32(static_cast<std::uint8_t>(i));
      return t;
    }();
    return values;
  }

  const std::map<const SafetensorsFile*, MappedFile>& files_;
  const Inventory& stock_;
  CheckpointWriter& writer_;
  std::vector<float> values_;
  std::vector<std::byte> codes_, scales_;
  std::vector<std::uint32_t> zeros_;
  Errors errors_;
};

// ---------------------------------------------------------------- beside the tensors

// Tokenizers, templates, licences: what a model's folder holds beside weights, their index and the configuration.
bool is_companion(const std::string& name) {
  if (name == "config.json" || name.ends_with(".index.json") || name.starts_with(".")) return false;
  for (const std::string_view ending : {".json", ".jinja", ".txt", ".model", ".tiktoken"})
    if (name.ends_with(ending)) return true;
  return name.starts_with("LICENSE");
}

Status copy_companions(const Path& from, CheckpointWriter& writer) {
  std::error_code error;
  std::vector<Path> files;
  for (std::filesystem::directory_iterator it(from, error), end; !error && it != end; it.increment(error))
    if (it->is_regular_file(error) && is_companion(it->path().filename().string())) files.push_back(it->path());
  if (error) return fail_environment("base.cannot_read", {{"path", from.string()}, {"reason", error.message()}});
  for (const Path& file : files) {
    FATHOM_TRY(const std::string text, read_file(file, kMostOfAFile));
    FATHOM_TRY_VOID(writer.add_file(file.filename().string(), text));
  }
  return {};
}

Result<Errors> write_items(const Checkpoint& checkpoint, const Inventory& stock, CheckpointWriter& writer,
                           const QuantizeOptions& options) {
  std::map<const SafetensorsFile*, MappedFile> files;
  for (const SafetensorsFile& file : checkpoint.files()) {
    FATHOM_TRY(files[&file], MappedFile::open(file.path()));
    if (files[&file].bytes().size() < file.bytes())
      return fail("weights.truncated", {{"file", file.path().string()},
                                        {"bytes", std::to_string(files[&file].bytes().size())},
                                        {"expected", std::to_string(file.bytes())}});
  }
  const std::vector<RowPiece> pieces = cut(stock.items);
  std::mutex mutex;
  Errors errors;
  const auto work = [&](WorkQueue& queue) -> Status {
    PieceWorker worker(files, stock, writer);
    while (const auto number = queue.next()) {
      const RowPiece& piece = pieces[*number];
      FATHOM_TRY_VOID(worker.run(piece));
      const Item& item = stock.items[piece.item];
      queue.add_done(static_cast<Bytes>(item.kind == Kind::kCopy ? piece.count : piece.count * source_row_bytes(item)));
    }
    const std::lock_guard lock(mutex);
    errors.squares += worker.errors().squares;
    errors.difference += worker.errors().difference;
    return {};
  };
  Bytes total = 0;
  for (const Item& item : stock.items) total += item.source.data.tensor->bytes();
  FATHOM_TRY_VOID(
      run_workers(pieces.size(), total, usable_threads(options.threads, pieces.size()), options.progress, work));
  return errors;
}

Status check_options(const QuantizeOptions& options) {
  if (options.asymmetric && options.to != WeightCode::kUint4) return fail("weights.quantize_asymmetric");
  if (options.weight_only && options.to == WeightCode::kInt8) return fail("weights.quantize_int8_weights");
  for (const std::string& text : options.ignore) FATHOM_TRY_VOID(model::ModulePattern::parse(text));
  return {};
}

}  // namespace

Result<WeightCode> parse_quantize_target(std::string_view name) {
  if (name == "fp8") return WeightCode::kE4m3;
  if (name == "int8") return WeightCode::kInt8;
  if (name == "int4") return WeightCode::kUint4;
  return fail("weights.quantize_target", {{"name", printable(name)}});
}

Result<model::ModelSpec> quantization_target(const model::ModelSpec& spec, const QuantizeOptions& options) {
  FATHOM_TRY(const auto architecture, model::make_architecture(spec));
  FATHOM_TRY(Target target, make_target(spec, architecture->weights(), options));
  return std::move(target.spec);
}

Result<QuantizeReport> quantize_checkpoint(const Path& model, const Path& folder, const QuantizeOptions& options) {
  const auto started = std::chrono::steady_clock::now();
  FATHOM_TRY_VOID(check_options(options));
  std::error_code ignored;
  if (!std::filesystem::is_directory(model, ignored))
    return fail("weights.quantize_folder", {{"path", model.string()}});
  if (std::filesystem::exists(folder, ignored) && std::filesystem::equivalent(model, folder, ignored))
    return fail("weights.quantize_same", {{"path", folder.string()}});
  FATHOM_TRY(const model::ModelSpec spec, model::load_config(model));
  FATHOM_TRY(const auto source, model::make_architecture(spec));
  FATHOM_TRY(const Target target, make_target(spec, source->weights(), options));
  FATHOM_TRY(const auto wanted, model::make_architecture(target.spec));
  FATHOM_TRY(const Checkpoint checkpoint, Checkpoint::open(model));
  FATHOM_TRY(const Inventory stock, take_stock(source->weights(), wanted->weights(), checkpoint));
  QuantizeReport report{.folder = folder,
                        .format = format_for(options, spec.plain_format),
                        .indivisible = target.indivisible,
                        .bytes_before = checkpoint.data_bytes()};
  for (const Item& item : stock.items) {
    if (item.kind != Kind::kQuantize)
      ++report.kept;
    else
      ++report.quantized, report.elements +=
                          static_cast<std::uint64_t>(item.entry->rows) * static_cast<std::uint64_t>(item.entry->cols);
  }
  if (report.quantized == 0) return fail("weights.quantize_nothing", {{"path", model.string()}});
  FATHOM_TRY(CheckpointWriter writer,
             CheckpointWriter::create(folder, stock.tensors,
                                      {.shard_bytes = options.shard_bytes, .overwrite = options.overwrite}));
  FATHOM_TRY(const Errors errors, write_items(checkpoint, stock, writer, options));
  FATHOM_TRY_VOID(copy_companions(model, writer));
  FATHOM_TRY_VOID(writer.add_file("config.json", target.config));
  report.files = writer.files();
  report.bytes = writer.file_bytes();
  FATHOM_TRY_VOID(writer.commit());
  report.relative_error = errors.squares > 0 ? std::sqrt(errors.difference / errors.squares) : 0;
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  return report;
}

}  // namespace fathom::weights
