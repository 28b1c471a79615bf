#include "model/cache.h"

#include "tensor/int8_rows.h"

namespace fathom::model {

std::int64_t CacheTensor::rows_for(std::int64_t context) const {
  switch (rows) {
    case tensor::RowsOf::kPosition:
      return context;
    case tensor::RowsOf::kRing:
      return ring_rows;
    case tensor::RowsOf::kEntry:
      return context / ratio > 0 ? context / ratio : 1;
  }
  return context;
}

std::int64_t CacheTensor::first_apart(DType dtype) const {
  return dtype == DType::i8 ? tensor::int8_row_bytes(heads, (width - apart) / heads) : width - apart;
}

std::int64_t CacheTensor::row_elements(DType dtype) const {
  if (dtype != DType::i8) return width;
  return first_apart(dtype) + (apart > 0 ? tensor::int8_row_bytes(1, apart) : 0);
}

Bytes CacheSpec::bytes(std::int64_t slots, std::int64_t context, DType dtype) const {
  Bytes total = 0;
  for (const CacheTensor& t : tensors)
    total += static_cast<Bytes>(slots * t.rows_for(context) * t.row_elements(t.type(dtype))) *
             static_cast<Bytes>(dtype_bytes(t.type(dtype)));
  return total;
}

}  // namespace fathom::model
