#include "weights/resolve.h"

#include <algorithm>
#include <array>
#include <optional>

#include "base/math.h"
#include "base/strings.h"

namespace fathom::weights {
using model::WeightEntry;
using model::WeightTable;
using tensor::WeightFormat;

std::string stem_of(std::string_view name) {
  for (const std::string_view ending : {".weight_packed", ".weight"})
    if (name.ends_with(ending)) return std::string(name.substr(0, name.size() - ending.size()));
  return std::string(name);
}

namespace {

constexpr std::array<std::string_view, 3> kScaleEndings = {".weight_scale_inv", ".scale", ".weight_scale"};

std::vector<std::int64_t> expected_shape(const WeightEntry& entry) {
  if (!entry.file_shape.empty()) return entry.file_shape;
  if (entry.vector) return {entry.full_cols};
  return {entry.full_rows, entry.full_cols};
}

bool same_shape(const FileTensor& tensor, std::span<const std::int64_t> shape) {
  return std::ranges::equal(tensor.dims(), shape);
}

bool is_plain_float(const std::optional<DType>& dtype) { return dtype && *dtype <= DType::bf16; }
bool is_scale_type(const std::optional<DType>& dtype) {
  return dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16 || dtype == DType::e8m0 ||
         dtype == DType::u8;
}
// Whether scales of type `from` can be kept as `to` without changing them.
bool keeps_scales(DType from, DType to) {
  if (from == DType::u8) from = DType::e8m0;
  return from == to || (to == DType::f32);
}
std::string file_of(const TensorPlace& place) { return place.file->path().string(); }

// Finds what the table names, in the namings that the checkpoint uses.
class Resolver {
 public:
  Resolver(const WeightTable& table, const StoragePolicy& policy, const WeightPlan& plan, const Checkpoint& checkpoint)
      : table_(table),
        policy_(policy),
        plan_(plan),
        checkpoint_(checkpoint),
        sources_(static_cast<std::size_t>(table.parameters())) {}

  Result<std::vector<TensorSource>> run() {
    naming_ = main_naming();
    for (std::size_t i = 0; i < table_.entries().size(); ++i) {
      const WeightEntry& entry = table_.entries()[i];
      if (entry.tied_to >= 0 || !policy_.wants(entry)) continue;
      for (std::int64_t e = 0; e < entry.experts; ++e) {
        const TensorPlace place = find(entry, e);
        if (!place) {
          note_missing(entry, e);
          continue;
        }
        FATHOM_TRY(sources_[static_cast<std::size_t>(entry.first_parameter + e)],
                   describe(entry, plan_.formats[i], place));
      }
    }
    if (missing_ > 0)
      return fail("weights.missing_tensors", {{"folder", checkpoint_.path().string()},
                                              {"name", first_missing_},
                                              {"shape", missing_shape_},
                                              {"count", std::to_string(missing_)},
                                              {"total", std::to_string(sources_.size())}});
    return std::move(sources_);
  }

 private:
  // The naming by which most tensors are found; decided once, so that a look-up seldom needs a second try.
  int main_naming() const {
    std::size_t most = 0;
    for (const WeightEntry& entry : table_.entries()) most = std::max(most, entry.aliases.size());
    std::vector<std::size_t> hits(most + 1, 0);
    for (const WeightEntry& entry : table_.entries())
      for (std::size_t n = 0; n <= entry.aliases.size(); ++n)
        hits[n] += checkpoint_.find(entry.name(0, static_cast<int>(n))) ||
                           checkpoint_.find(stem_of(entry.name(0, static_cast<int>(n))) + ".weight_packed")
                       ? 1
                       : 0;
    return static_cast<int>(std::max_element(hits.begin(), hits.end()) - hits.begin());
  }

  TensorPlace find(const WeightEntry& entry, std::int64_t expert) const {
    const bool packed = tensor::weight_layout(entry.native).code == tensor::WeightCode::kUint4;
    const auto look_up = [&](int naming) {
      return checkpoint_.find(packed ? stem_of(entry.name(expert, naming)) + ".weight_packed"
                                     : entry.name(expert, naming));
    };
    const int names = 1 + static_cast<int>(entry.aliases.size());
    if (naming_ < names)
      if (const TensorPlace place = look_up(naming_)) return place;
    for (int n = 0; n < names; ++n)
      if (n != naming_)
        if (const TensorPlace place = look_up(n)) return place;
    return {};
  }

  void note_missing(const WeightEntry& entry, std::int64_t expert) {
    if (missing_++ > 0) return;
    first_missing_ = entry.name(expert, naming_ <= static_cast<int>(entry.aliases.size()) ? naming_ : 0);
    missing_shape_ = shape_text(expected_shape(entry));
  }

  static tl::unexpected<Error> misshapen(const TensorPlace& place, std::span<const std::int64_t> expected) {
    return fail("weights.wrong_shape", {{"name", printable(place.tensor->name)},
                                        {"file", file_of(place)},
                                        {"expected", shape_text(expected)},
                                        {"found", shape_text(place.tensor->dims())}});
  }
  static tl::unexpected<Error> wrong_type(const TensorPlace& place, std::string_view expected) {
    return fail_unsupported("weights.wrong_type", {{"name", printable(place.tensor->name)},
                                                   {"file", file_of(place)},
                                                   {"expected", std::string(expected)},
                                                   {"found", printable(place.tensor->type)}});
  }

  Result<TensorSource> describe(const WeightEntry& entry, WeightFormat wanted, const TensorPlace& place) const {
    const FileTensor& tensor = *place.tensor;
    std::vector<std::int64_t> shape = expected_shape(entry);
    TensorSource source{.data = place};
    const tensor::WeightCode code = tensor::weight_layout(entry.native).code;
    if (code == tensor::WeightCode::kUint4) {
      if (tensor.dtype != DType::i32) return wrong_type(place, "I32");
      source.encoding = Encoding::kInt4;
      shape.back() = ceil_div(shape.back(), 8);
    } else if (code == tensor::WeightCode::kInt8) {
      if (tensor.dtype != DType::i8) return wrong_type(place, "I8");
      source.encoding = Encoding::kInt8;
    } else if ((tensor.dtype == DType::i8 || tensor.dtype == DType::u8) && entry.native != WeightFormat::i64 &&
               !entry.vector && entry.full_cols % 2 == 0) {
      source.encoding = Encoding::kFp4;
      shape.back() /= 2;
    } else if (tensor.dtype == DType::f8e4m3) {
      source.encoding = Encoding::kFp8;
    } else if (!is_plain_float(tensor.dtype) && tensor.dtype != DType::i64) {
      return wrong_type(place, tensor::weight_format_name(entry.native));
    }
    if (!same_shape(tensor, shape)) return misshapen(place, shape);
    if (source.encoding != Encoding::kPlain) FATHOM_TRY_VOID(find_scales(entry, source));
    FATHOM_TRY_VOID(check_conversion(entry, wanted, source));
    return source;
  }

  Status find_scales(const WeightEntry& entry, TensorSource& source) const {
    const std::string& name = source.data.tensor->name;
    const std::string stem = stem_of(name);
    for (const std::string_view ending : kScaleEndings)
      if (!source.scales) source.scales = checkpoint_.find(stem + std::string(ending));
    if (!source.scales) source.scales = checkpoint_.find(name + "_scale_inv");
    if (!source.scales)
      return fail("weights.missing_scales", {{"name", printable(name)},
                                             {"file", file_of(source.data)},
                                             {"scales", printable(stem + std::string(kScaleEndings[0]))},
                                             {"other", printable(stem + std::string(kScaleEndings[1]))}});
    if (!is_scale_type(source.scales.tensor->dtype)) return wrong_type(source.scales, "F32, F8_E8M0");
    if (source.encoding == Encoding::kInt4) FATHOM_TRY_VOID(find_int4_parts(entry, stem, source));
    const ScaleBlock own = scale_block(entry.native);
    if (own.cols == tensor::kWholeRow && source.scales.tensor->dims().size() < 2) return find_row_scales(entry, source);
    std::vector<ScaleBlock> blocks = {{128, 128}, {32, 32}, {1, 32}};
    if (source.encoding == Encoding::kFp4)
      blocks = {{1, 32}};
    else if (own.cols == tensor::kWholeRow || source.encoding == Encoding::kInt4)
      blocks = {own};
    else if (own.rows > 0)
      blocks.insert(blocks.begin(), own);
    for (const ScaleBlock& block : blocks) {
      const std::array<std::int64_t, 2> shape = {ceil_div(entry.full_rows, block.rows),
                                                 ceil_div(entry.full_cols, block.cols)};
      if (!same_shape(*source.scales.tensor, shape)) continue;
      source.block = block;
      return {};
    }
    const std::array<std::int64_t, 2> first = {ceil_div(entry.full_rows, blocks[0].rows),
                                               ceil_div(entry.full_cols, blocks[0].cols)};
    return misshapen(source.scales, first);
  }

  // Scales of rows as a vector, or one for all.
  static Status find_row_scales(const WeightEntry& entry, TensorSource& source) {
    source.block = scale_block(entry.native);
    const std::array<std::int64_t, 1> rows = {entry.full_rows}, one = {1};
    source.one_scale = same_shape(*source.scales.tensor, std::span<const std::int64_t>()) ||
                       (same_shape(*source.scales.tensor, one) && entry.full_rows != 1);
    if (source.one_scale || same_shape(*source.scales.tensor, rows)) return {};
    return misshapen(source.scales, rows);
  }

  // The shape that the file states, and zero points.
  Status find_int4_parts(const WeightEntry& entry, const std::string& stem, TensorSource& source) const {
    const TensorPlace shape = checkpoint_.find(stem + ".weight_shape");
    const std::array<std::int64_t, 1> two = {2};
    if (shape && !same_shape(*shape.tensor, two)) return misshapen(shape, two);
    source.zeros = checkpoint_.find(stem + ".weight_zero_point");
    const bool wanted = tensor::weight_layout(entry.native).zeros;
    if (wanted != static_cast<bool>(source.zeros))
      return fail("weights.zero_points", {{"name", printable(source.data.tensor->name)},
                                          {"file", file_of(source.data)},
                                          {"format", std::string(tensor::weight_format_name(entry.native))}});
    if (!wanted) return {};
    if (source.zeros.tensor->dtype != DType::i32) return wrong_type(source.zeros, "I32");
    const std::array<std::int64_t, 2> zeros = {ceil_div(entry.full_rows, 8),
                                               ceil_div(entry.full_cols, scale_block(entry.native).cols)};
    return same_shape(*source.zeros.tensor, zeros) ? Status{} : misshapen(source.zeros, zeros);
  }

  static Status check_conversion(const WeightEntry& entry, WeightFormat wanted, const TensorSource& source) {
    const ScaleBlock block = scale_block(wanted);
    const std::string_view wanted_name = tensor::weight_format_name(wanted);
    if (block.rows == 0) {
      if ((source.data.tensor->dtype == DType::i64) != (wanted == WeightFormat::i64))
        return wrong_type(source.data, wanted_name);
      return {};
    }
    const tensor::WeightLayout layout = tensor::weight_layout(wanted);
    const bool same_code = source.encoding == encoding_of(layout.code);
    if (!same_code || !(source.block == block) || !keeps_scales(*source.scales.tensor->dtype, layout.scale)) {
      return fail_unsupported(
          "weights.cannot_quantize",
          {{"name", printable(source.data.tensor->name)},
           {"file", file_of(source.data)},
           {"found", source.data.tensor->type + (source.scales ? " / " + source.scales.tensor->type : "")},
           {"wanted", std::string(wanted_name)}});
    }
    const auto cuts = [](std::int64_t first, std::int64_t count, std::int64_t full, std::int64_t step) {
      return first % step != 0 || (count % step != 0 && first + count != full);
    };
    const std::int64_t row_step = layout.zeros ? 8 : block.rows;
    const bool cuts_columns =
        block.cols != tensor::kWholeRow && cuts(entry.first_col, entry.cols, entry.full_cols, block.cols);
    if (cuts(entry.first_row, entry.rows, entry.full_rows, row_step) || cuts_columns)
      return fail_unsupported("weights.cuts_block",
                              {{"name", printable(source.data.tensor->name)}, {"format", std::string(wanted_name)}});
    return {};
  }

  const WeightTable& table_;
  const StoragePolicy& policy_;
  const WeightPlan& plan_;
  const Checkpoint& checkpoint_;
  std::vector<TensorSource> sources_;
  int naming_ = 0;
  std::size_t missing_ = 0;
  std::string first_missing_, missing_shape_;
};

// The parts of published checkpoints that the main model does not run, by their names.
bool is_left_out(std::string_view name) {
  constexpr std::array<std::string_view, 11> kStarts = {
      "mtp.",         "model.mtp.",   "vision.",  "vision_tower.", "vision_model.", "visual.",
      "model.vision", "model.visual", "aligner.", "model.aligner", "image_"};
  constexpr std::array<std::string_view, 3> kEnds = {"rotary_emb.inv_freq", "rotary_pos_emb.inv_freq", ".gate.bias_vl"};
  return std::ranges::any_of(kStarts, [&](std::string_view start) { return name.starts_with(start); }) ||
         std::ranges::any_of(kEnds, [&](std::string_view end) { return name.ends_with(end); });
}

// "model.layers.61." of "model.layers.61.eh_proj.weight" when 61 is not a layer of the main model.
std::optional<std::string_view> layer_past_end(std::string_view name, int layers) {
  constexpr std::string_view kStart = "model.layers.";
  if (!name.starts_with(kStart)) return std::nullopt;
  std::size_t at = kStart.size();
  std::int64_t number = 0;
  for (; at < name.size() && name[at] >= '0' && name[at] <= '9' && number < 1'000'000; ++at)
    number = number * 10 + (name[at] - '0');
  if (at == kStart.size() || at >= name.size() || name[at] != '.' || number < layers) return std::nullopt;
  return name.substr(0, at + 1);
}

void add_names(std::vector<std::string>& known, const WeightEntry& entry) {
  for (int naming = 0; naming <= static_cast<int>(entry.aliases.size()); ++naming) {
    for (std::int64_t e = 0; e < entry.experts; ++e) {
      std::string name = entry.name(e, naming);
      if (!entry.vector) {
        const std::string stem = stem_of(name);
        for (const std::string_view ending : kScaleEndings) known.push_back(stem + std::string(ending));
        if (tensor::weight_layout(entry.native).code == tensor::WeightCode::kUint4)
          for (const std::string_view ending : {".weight_packed", ".weight_shape", ".weight_zero_point"})
            known.push_back(stem + std::string(ending));
        known.push_back(name + "_scale_inv");
      }
      known.push_back(std::move(name));
    }
  }
}

}  // namespace

ScaleBlock scale_block(WeightFormat format) {
  const tensor::WeightLayout layout = tensor::weight_layout(format);
  return {layout.rows, layout.cols};
}

Encoding encoding_of(tensor::WeightCode code) {
  switch (code) {
    case tensor::WeightCode::kPlain:
      return Encoding::kPlain;
    case tensor::WeightCode::kE4m3:
      return Encoding::kFp8;
    case tensor::WeightCode::kE2m1:
      return Encoding::kFp4;
    case tensor::WeightCode::kInt8:
      return Encoding::kInt8;
    case tensor::WeightCode::kUint4:
      return Encoding::kInt4;
  }
  FATHOM_CHECK(false);
}

Result<std::vector<TensorSource>> resolve_tensors(const WeightTable& table, const StoragePolicy& policy,
                                                  const WeightPlan& plan, const Checkpoint& checkpoint) {
  return Resolver(table, policy, plan, checkpoint).run();
}

Status check_extra_tensors(const WeightTable& whole, const Checkpoint& checkpoint) {
  std::vector<std::string> known;
  int layers = 0;
  bool tied = true;
  for (const WeightEntry& entry : whole.entries()) {
    add_names(known, entry);
    if (entry.part == model::WeightPart::kMain) layers = std::max(layers, entry.layer + 1);
    if (entry.cls == model::WeightClass::kHead && entry.tied_to < 0) tied = false;
  }
  if (tied) known.insert(known.end(), {"lm_head.weight", "head.weight"});
  std::sort(known.begin(), known.end());
  for (const TensorPlace& place : checkpoint.tensors()) {
    const std::string& name = place.tensor->name;
    if (is_left_out(name) || std::binary_search(known.begin(), known.end(), name)) continue;
    const auto past = layer_past_end(name, layers);
    if (past && (checkpoint.find(std::string(*past) + "eh_proj.weight"))) continue;
    return fail("weights.extra_tensor", {{"name", printable(name)},
                                         {"file", place.file->path().string()},
                                         {"shape", shape_text(place.tensor->dims())}});
  }
  return {};
}

}  // namespace fathom::weights
