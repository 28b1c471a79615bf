#include "model/cache.h"

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

Bytes CacheSpec::bytes(std::int64_t slots, std::int64_t context, DType dtype) const {
  Bytes total = 0;
  for (const CacheTensor& t : tensors)
    total += static_cast<Bytes>(slots * t.rows_for(context) * t.width) *
             static_cast<Bytes>(dtype_bytes(t.state ? DType::f32 : dtype));
  return total;
}

}  // namespace fathom::model
