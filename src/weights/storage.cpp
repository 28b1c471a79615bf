#include "weights/storage.h"

#include <algorithm>

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

// Units one after the other in the host's block, whose offsets their tensors have then; places in turns.
void lay_out_units(WeightPlan& plan) {
  Residence& residence = plan.residence;
  for (std::size_t u = 0; u < residence.units.size(); ++u) {
    Residence::Unit& unit = residence.units[u];
    unit.offset = residence.host_bytes;
    unit.place = residence.places > 0 ? static_cast<int>(u) % residence.places : 0;
    residence.host_bytes += unit.bytes;
    if (residence.places > 0) residence.place_bytes = std::max(residence.place_bytes, unit.bytes);
  }
  for (std::size_t p = 0; p < residence.unit_of.size(); ++p) {
    if (residence.unit_of[p] < 0) continue;
    const Bytes first = residence.units[static_cast<std::size_t>(residence.unit_of[p])].offset;
    plan.tensors[p].data += first;
    if (plan.tensors[p].scales != kNotInArena) plan.tensors[p].scales += first;
  }
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

std::byte* WeightPlan::seen(const WeightBlocks& blocks, std::size_t parameter) const {
  const int unit = residence.unit(parameter);
  if (unit < 0) return blocks.device;
  if (residence.places == 0) return blocks.host;
  // Offsets count from the beginning of the host's block: the place stands where the unit does.
  const Residence::Unit& of = residence.units[static_cast<std::size_t>(unit)];
  return reinterpret_cast<std::byte*>(reinterpret_cast<std::uintptr_t>(blocks.ring) +
                                      residence.place_bytes * static_cast<Bytes>(of.place) - of.offset);
}

Result<WeightPlan> plan_weights(const model::WeightTable& table, const StoragePolicy& policy, const HostUnits& host) {
  WeightPlan plan;
  Residence& residence = plan.residence;
  const WeightFormat ordinary = ordinary_format(table);
  plan.tensors.resize(static_cast<std::size_t>(table.parameters()));
  std::vector<int> unit_of(table.entries().size(), -1);
  for (std::size_t u = 0; u < host.units.size(); ++u)
    for (const model::WeightId id : host.units[u]) unit_of[static_cast<std::size_t>(id)] = static_cast<int>(u);
  residence.units.resize(host.units.size());
  residence.places = host.places;
  if (!host.units.empty()) residence.unit_of.assign(plan.tensors.size(), -1);
  for (std::size_t i = 0; i < table.entries().size(); ++i) {
    const WeightEntry& entry = table.entries()[i];
    const WeightFormat format = entry.tied_to >= 0 ? plan.formats[static_cast<std::size_t>(entry.tied_to)]
                                                   : stored_format(entry, policy, ordinary);
    plan.formats.push_back(format);
    if (entry.tied_to >= 0 || !policy.wants(entry)) continue;
    const Bytes all = tensor::weight_bytes(format, entry.rows, entry.cols),
                scales = scale_bytes(format, entry.rows, entry.cols);
    Bytes& end = unit_of[i] < 0 ? plan.arena_bytes : residence.units[static_cast<std::size_t>(unit_of[i])].bytes;
    for (std::int64_t e = 0; e < entry.experts; ++e) {
      const auto parameter = static_cast<std::size_t>(entry.first_parameter + e);
      TensorOffsets& offsets = plan.tensors[parameter];
      const bool fits = place(all - scales, end, offsets.data) && (scales == 0 || place(scales, end, offsets.scales));
      if (!fits) return fail("weights.plan_overflow", {{"name", entry.name(e)}});
      if (unit_of[i] >= 0) residence.unit_of[parameter] = unit_of[i];
    }
    plan.tensor_bytes += all * static_cast<Bytes>(entry.experts);
    plan.by_class[static_cast<std::size_t>(entry.cls)] += all * static_cast<Bytes>(entry.experts);
  }
  lay_out_units(plan);
  return plan;
}

}  // namespace fathom::weights
