#include "weights/storage.h"

#include "base/strings.h"

namespace fathom::weights {
using model::WeightClass;
using model::WeightEntry;
using tensor::WeightFormat;

namespace {

// The format that the checkpoint's ordinary tensors have: that of the embedding, or of a norm on ranks without one.
WeightFormat ordinary_format(const model::WeightTable& table) {
  for (const WeightClass cls : {WeightClass::kEmbedding, WeightClass::kNorm})
    for (const WeightEntry& entry : table.entries())
      if (entry.cls == cls) return entry.native;
  return WeightFormat::bf16;
}

// Under a 16-bit policy. Router biases decide between experts whose scores are close.
bool stays_f32(const WeightEntry& entry, WeightFormat ordinary) {
  if (entry.native != WeightFormat::f32) return false;
  if (entry.cls == WeightClass::kHyper || entry.cls == WeightClass::kSink) return true;
  if (entry.cls == WeightClass::kRouter && entry.vector) return true;
  return ordinary != WeightFormat::f32 && ordinary != WeightFormat::f64;
}

WeightFormat stored_format(const WeightEntry& entry, const StoragePolicy& policy, WeightFormat ordinary) {
  if (!policy.dtype || entry.native == WeightFormat::i64) return entry.native;
  const bool narrow = *policy.dtype == DType::f16 || *policy.dtype == DType::bf16;
  return narrow && stays_f32(entry, ordinary) ? WeightFormat::f32 : tensor::plain_weight_format(*policy.dtype);
}

bool place(Bytes bytes, Bytes& end, Bytes& offset) {
  offset = end;
  Bytes padded = 0;
  if (!checked_add(bytes, kTensorAlignment - 1, padded)) return false;
  return checked_add(end, padded / kTensorAlignment * kTensorAlignment, end);
}

}  // namespace

Result<StoragePolicy> parse_storage_policy(std::string_view name) {
  if (name == "native") return StoragePolicy{};
  const auto dtype = parse_dtype(name);
  if (!dtype || *dtype > DType::bf16) return fail("weights.unknown_dtype", {{"name", printable(name)}});
  return StoragePolicy{.dtype = dtype};
}

Bytes scale_bytes(WeightFormat format, std::int64_t rows, std::int64_t cols) {
  return tensor::weight_scale_bytes(format, rows, cols);
}

Result<WeightPlan> plan_weights(const model::WeightTable& table, const StoragePolicy& policy) {
  WeightPlan plan;
  const WeightFormat ordinary = ordinary_format(table);
  plan.tensors.resize(static_cast<std::size_t>(table.parameters()));
  for (const WeightEntry& entry : table.entries()) {
    const WeightFormat format = entry.tied_to >= 0 ? plan.formats[static_cast<std::size_t>(entry.tied_to)] : stored_format(entry, policy, ordinary);
    plan.formats.push_back(format);
    if (entry.tied_to >= 0 || !policy.wants(entry)) continue;
    const Bytes all = tensor::weight_bytes(format, entry.rows, entry.cols), scales = scale_bytes(format, entry.rows, entry.cols);
    for (std::int64_t e = 0; e < entry.experts; ++e) {
      TensorOffsets& offsets = plan.tensors[static_cast<std::size_t>(entry.first_parameter + e)];
      const bool fits = place(all - scales, plan.arena_bytes, offsets.data) && (scales == 0 || place(scales, plan.arena_bytes, offsets.scales));
      if (!fits) return fail("weights.plan_overflow", {{"name", entry.name(e)}});
    }
    plan.tensor_bytes += all * static_cast<Bytes>(entry.experts);
    plan.by_class[static_cast<std::size_t>(entry.cls)] += all * static_cast<Bytes>(entry.experts);
  }
  return plan;
}

}  // namespace fathom::weights
