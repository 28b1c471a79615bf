// What a model weighs, computed from its configuration: no figure here is copied from anywhere.
#pragma once
#include "model/cache.h"
#include "model/spec.h"
#include "model/weight_table.h"

namespace fathom::model {

struct SizedModel {
  ModelSizes sizes;
  KvFigures kv;  // keys as the facts have them, without "bytes_per_token_" and "fixed_"
};
/// Builds the unsplit weight table and reads the figures off it.
Result<SizedModel> size_model(const ModelSpec& spec);

}  // namespace fathom::model
