#include "model/weight_table.h"

namespace fathom::model {

std::string_view weight_class_name(WeightClass cls) {
  static constexpr std::string_view names[kWeightClassCount] = {
      "embedding", "head",    "norm",       "bias",  "attention",  "dense_ffn", "shared_expert", "routed_expert",
      "router",    "indexer", "compressor", "hyper", "hash_table", "sink",      "engram_table",  "engram_projection",
      "mtp",       "vision"};
  return names[static_cast<int>(cls)];
}

std::string WeightEntry::name(std::int64_t expert, int naming) const {
  std::string text = naming == 0 ? pattern : aliases[static_cast<std::size_t>(naming - 1)];
  if (const std::size_t at = text.find("{e}"); at != std::string::npos)
    text.replace(at, 3, std::to_string(first_expert + expert));
  return text;
}

WeightId WeightTable::add(WeightEntry entry) {
  FATHOM_CHECK(entry.rows > 0 && entry.cols > 0 && entry.experts > 0, entry.pattern);
  if (entry.full_rows == 0) entry.full_rows = entry.rows;
  if (entry.full_cols == 0) entry.full_cols = entry.cols;
  if (entry.tied_to >= 0) {
    entry.first_parameter = entries_[static_cast<std::size_t>(entry.tied_to)].first_parameter;
  } else {
    entry.first_parameter = parameters_;
    parameters_ += static_cast<std::int32_t>(entry.experts);
  }
  entries_.push_back(std::move(entry));
  return static_cast<WeightId>(entries_.size() - 1);
}

WeightSet::WeightSet(const WeightTable& table) : weights_(static_cast<std::size_t>(table.parameters())) {
  for (const WeightEntry& entry : table.entries()) {
    first_.push_back(entry.first_parameter);
    count_.push_back(static_cast<std::int32_t>(entry.experts));
    for (std::int64_t e = 0; e < entry.experts; ++e) {
      tensor::Weight& weight = weights_[static_cast<std::size_t>(entry.first_parameter + e)];
      weight.format = entry.native;
      weight.activations = entry.activations;
      weight.rows = entry.rows;
      weight.cols = entry.cols;
      weight.parameter = entry.first_parameter + static_cast<std::int32_t>(e);
    }
  }
}

std::span<const tensor::Weight> WeightSet::experts(WeightId id) const {
  const auto i = static_cast<std::size_t>(id);
  return std::span(weights_).subspan(static_cast<std::size_t>(first_[i]), static_cast<std::size_t>(count_[i]));
}

std::span<tensor::Weight> WeightSet::experts(WeightId id) {
  const auto i = static_cast<std::size_t>(id);
  return std::span(weights_).subspan(static_cast<std::size_t>(first_[i]), static_cast<std::size_t>(count_[i]));
}

namespace {
// In a file: elements, scales, and of int4 its shape and zero points.
std::uint64_t tensors_stored(tensor::WeightFormat format) {
  const tensor::WeightLayout layout = tensor::weight_layout(format);
  if (layout.code == tensor::WeightCode::kPlain) return 1;
  return layout.code != tensor::WeightCode::kUint4 ? 2 : layout.zeros ? 4 : 3;
}
}  // namespace

ModelSizes model_sizes(const WeightTable& table, std::int64_t experts_per_token) {
  ModelSizes sizes;
  for (const WeightEntry& entry : table.entries()) {
    if (entry.tied_to >= 0) continue;
    const std::uint64_t n = entry.elements();
    const auto tensors = static_cast<std::uint64_t>(entry.experts);
    const Bytes bytes = tensor::weight_bytes(entry.native, entry.rows, entry.cols) * tensors;
    sizes.parameters_total += n;
    sizes.checkpoint_bytes += bytes;
    sizes.tensors += tensors * tensors_stored(entry.native);
    if (entry.part == WeightPart::kMtp) {
      sizes.checkpoint_bytes_mtp += bytes;
      continue;
    }
    sizes.parameters_main += n;
    if (entry.part == WeightPart::kVision || entry.cls == WeightClass::kEngramTable ||
        entry.cls == WeightClass::kHashTable)
      continue;
    if (entry.cls == WeightClass::kEmbedding) sizes.parameters_embedding += n;
    sizes.parameters_active_with_embedding +=
        entry.cls == WeightClass::kRoutedExpert ? n / tensors * static_cast<std::uint64_t>(experts_per_token) : n;
  }
  sizes.parameters_active = sizes.parameters_active_with_embedding - sizes.parameters_embedding;
  return sizes;
}

}  // namespace fathom::model
