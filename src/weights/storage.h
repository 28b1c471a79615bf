// Which bytes the weights take: the one plan from which the planner, the loader and the synthesizer work.
#pragma once
#include <array>
#include <optional>
#include <string_view>
#include <vector>

#include "base/dtype.h"
#include "base/result.h"
#include "base/units.h"
#include "model/weight_table.h"

namespace fathom::weights {

/// The precision that weights have in memory.
/// Without `dtype` every tensor is kept as the checkpoint stores it (the table's native format). With one (f64, f32,
/// f16, bf16) all are converted to it, but integer tables stay integers and, under f16 and bf16, what must not lose
/// bits stays f32: hyper-connections, sinks, router biases, and whatever a 16-bit checkpoint itself keeps in f32.
struct StoragePolicy {
  std::optional<DType> dtype;
  bool main_only = true;  // leave out MTP, vision and Engram parts, which the main model does not run

  bool wants(const model::WeightEntry& entry) const { return !main_only || entry.part == model::WeightPart::kMain; }
};
/// "native" (no dtype), "f32", "bf16", "f16", "f64".
Result<StoragePolicy> parse_storage_policy(std::string_view name);

/// The alignment of every tensor, and of its scales, in the arena.
inline constexpr Bytes kTensorAlignment = 64;
/// The offset of what is not in the arena.
inline constexpr Bytes kNotInArena = ~Bytes{0};

struct TensorOffsets {
  Bytes data = kNotInArena, scales = kNotInArena;
};

/// Entries of the table that stay in host memory, those that are used and streamed together in one unit, in the order
/// in which a pass uses them; and how many places on the device units are streamed into in turns (0: none).
struct HostUnits {
  std::vector<std::vector<model::WeightId>> units;
  int places = 0;
};

/// Where the units lie.
struct Residence {
  struct Unit {
    Bytes offset = 0, bytes = 0;
    int place = 0;
  };  // in the block in host memory
  std::vector<Unit> units;
  std::vector<int> unit_of;  // by parameter number; -1: on the device. Empty without units
  int places = 0;
  Bytes place_bytes = 0, host_bytes = 0;
  Bytes ring_bytes() const { return place_bytes * static_cast<Bytes>(places); }
  /// -1: on the device.
  int unit(std::size_t parameter) const { return parameter < unit_of.size() ? unit_of[parameter] : -1; }
};

/// Blocks of memory that weights lie in.
struct WeightBlocks {
  std::byte *device = nullptr, *host = nullptr, *ring = nullptr;
};

/// Offsets are those of the loader: planned bytes are allocated bytes.
struct WeightPlan {
  std::vector<tensor::WeightFormat> formats;  // by entry of the table
  std::vector<TensorOffsets> tensors;         // by parameter number
  Bytes tensor_bytes = 0;                     // the tensors themselves, scales included: what the facts state
  Bytes arena_bytes = 0;  // what is allocated: each tensor and each block of scales begins on 64 bytes
  std::array<Bytes, model::kWeightClassCount> by_class{};  // of tensor_bytes
  Residence residence;  // what of it is in a block of its own in host memory: not in arena_bytes

  /// Where tensors of this parameter number begin: the block and, with what `tensors` says of it, the tensor.
  std::byte* home(const WeightBlocks& blocks, std::size_t parameter) const {
    return residence.unit(parameter) < 0 ? blocks.device : blocks.host;
  }
  /// Where ops on the device find it: a unit's is its place, or the host's memory when there are no places.
  std::byte* seen(const WeightBlocks& blocks, std::size_t parameter) const;
};
/// Errors: a sum that does not fit 64 bits.
Result<WeightPlan> plan_weights(const model::WeightTable& table, const StoragePolicy& policy,
                                const HostUnits& host = {});

/// The part of `bytes` that is scales (and zero points), for a weight of this format.
Bytes scale_bytes(tensor::WeightFormat format, std::int64_t rows, std::int64_t cols);

}  // namespace fathom::weights
