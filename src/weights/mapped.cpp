#include "weights/mapped.h"

#include <sys/mman.h>
#include <unistd.h>

#include <map>

#include "base/strings.h"
#include "weights/conversion.h"

namespace fathom::weights {
using model::WeightClass;
using model::WeightEntry;
using tensor::WeightFormat;

namespace {

class Mapper {
 public:
  explicit Mapper(LoadedWeights& loaded) : loaded_(loaded) {}

  // The bytes of `source` from its element `first` on, or an error when they cannot be used where they lie.
  Result<const std::byte*> bytes_of(const TensorPlace& place, Bytes skip, int alignment) {
    auto it = files_.find(place.file);
    if (it == files_.end()) {
      FATHOM_TRY(MappedFile file, MappedFile::open(place.file->path()));
      if (file.bytes().size() < place.file->bytes())
        return fail("weights.truncated", {{"file", place.file->path().string()},
                                          {"bytes", std::to_string(file.bytes().size())},
                                          {"expected", std::to_string(place.file->bytes())}});
      loaded_.files.push_back(std::move(file));
      it = files_.emplace(place.file, loaded_.files.back().bytes().data()).first;
    }
    const Bytes offset = place.tensor->begin + skip;
    if (offset % static_cast<Bytes>(alignment) != 0) return needs_copy(place, "weights.mmap_unaligned");
    return it->second + offset;
  }

  static tl::unexpected<Error> needs_copy(const TensorPlace& place, std::string_view key) {
    return fail_unsupported(key, {{"name", printable(place.tensor->name)},
                                  {"file", place.file->path().string()},
                                  {"type", printable(place.tensor->type)}});
  }

 private:
  LoadedWeights& loaded_;
  std::map<const SafetensorsFile*, const std::byte*> files_;
};

void advise(const std::byte* data, Bytes bytes, int advice) {
  static const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<std::uintptr_t>(data) / page * page,
             end = reinterpret_cast<std::uintptr_t>(data) + bytes;
  (void)::madvise(reinterpret_cast<void*>(begin), end - begin,
                  advice);  // only a hint: without it reading is slower, not wrong
}

int advice_for(const WeightEntry& entry) {
  const bool sparse = entry.cls == WeightClass::kRoutedExpert || entry.cls == WeightClass::kEmbedding ||
                      entry.cls == WeightClass::kEngramTable;
  return sparse ? MADV_RANDOM : MADV_WILLNEED;
}

bool stored_as_planned(const TensorSource& source, WeightFormat format) {
  const tensor::WeightLayout layout = tensor::weight_layout(format);
  if (layout.code == tensor::WeightCode::kPlain)
    return source.encoding == Encoding::kPlain && source.data.tensor->dtype == tensor::weight_dtype(format);
  if (source.encoding != encoding_of(layout.code) || layout.zeros || source.one_scale)
    return false;  // zero points lie behind the scales in memory
  const DType scales = *source.scales.tensor->dtype;
  return (scales == DType::u8 ? DType::e8m0 : scales) == layout.scale;
}

Status check_values(const TensorSource& source, WeightFormat format, const std::byte* data, Bytes bytes) {
  const DType type = scale_block(format).rows == 0       ? tensor::weight_dtype(format)
                     : source.encoding == Encoding::kFp8 ? DType::f8e4m3
                                                         : DType::u8;
  const auto bad = first_not_finite(type, {data, bytes});
  if (!bad) return {};
  return fail("weights.not_finite", {{"name", printable(source.data.tensor->name)},
                                     {"file", source.data.file->path().string()},
                                     {"element", std::to_string(*bad)}});
}

Status map_weight(Mapper& mapper, const WeightEntry& entry, WeightFormat format, const TensorSource& source,
                  tensor::Weight& weight, bool check_finite) {
  const bool cut = entry.cols != entry.full_cols && entry.full_rows != 1;
  if (cut || !stored_as_planned(source, format)) return Mapper::needs_copy(source.data, "weights.mmap_needs_copy");
  const ScaleBlock block = scale_block(format);
  const Bytes bytes = tensor::weight_bytes(format, entry.rows, entry.cols),
              scales = scale_bytes(format, entry.rows, entry.cols);
  const Bytes row = tensor::weight_row_bytes(format, entry.full_cols);
  const Bytes column = block.rows == 0 ? static_cast<Bytes>(entry.first_col) *
                                             static_cast<Bytes>(dtype_bytes(tensor::weight_dtype(format)))
                                       : 0;
  const int alignment = block.rows == 0 ? dtype_bytes(tensor::weight_dtype(format)) : 1;
  FATHOM_TRY(weight.data, mapper.bytes_of(source.data, static_cast<Bytes>(entry.first_row) * row + column, alignment));
  advise(weight.data, bytes - scales, advice_for(entry));
  weight.format = format;
  if (block.rows > 0) {
    const Bytes first = static_cast<Bytes>(entry.first_row / block.rows) * scale_bytes(format, 1, entry.full_cols);
    FATHOM_TRY(weight.scales, mapper.bytes_of(source.scales, first, dtype_bytes(tensor::weight_layout(format).scale)));
  }
  return check_finite ? check_values(source, format, weight.data, bytes - scales) : Status{};
}

}  // namespace

Result<LoadedWeights> load_mapped(const model::WeightTable& table, WeightPlan plan,
                                  std::span<const TensorSource> sources, const LoadOptions& options) {
  LoadedWeights loaded;
  loaded.set = model::WeightSet(table);
  Mapper mapper(loaded);
  for (std::size_t i = 0; i < table.entries().size(); ++i) {
    const WeightEntry& entry = table.entries()[i];
    if (entry.tied_to >= 0 || !options.storage.wants(entry)) continue;
    for (tensor::Weight& weight : loaded.set.experts(static_cast<model::WeightId>(i)))
      FATHOM_TRY_VOID(map_weight(mapper, entry, plan.formats[i], sources[static_cast<std::size_t>(weight.parameter)],
                                 weight, options.check_finite));
  }
  loaded.stats = {.bytes = plan.tensor_bytes, .files = loaded.files.size()};
  loaded.plan = std::move(plan);
  return loaded;
}

}  // namespace fathom::weights
