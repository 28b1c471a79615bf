// Calibration: what Fathom's own ops took on one device, as `fathom calibrate` timed them (src/measure/calibrate.h),
// and what an op of another size will take. A table a family of op sequences; docs/calibration.md says which sequence
// each is and what its axes are.
//
// Between points: seconds = base(bytes, FLOPs) · r, where base is the table's own roofline (a floor, its best
// bandwidth, its best rate) and r, by how much the points around missed it, is interpolated in the logarithms of the
// axes. Outside: r of the nearest edge.
#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/files.h"
#include "plan/cluster.h"

namespace fathom::plan {

enum class Family : std::uint8_t {
  kPlain,        // tokens, outputs, inputs: products of one x
  kSum,          // the same: a product and the sum that follows
  kGates,        // two products of one x and their gate; outputs: of both
  kNormed,       // a norm and products of what it gives
  kNormedGates,  // a norm, two products, their gate
  kGroupedIn,    // tokens, heads: a product a head from 128 columns to 512 (absorbed latent attention)
  kGroupedOut,   // and back
  kDecode,  // streams, keys, group: one token a sequence, with the rotations and cache rows that go before it; streams:
            // sequences · key heads, group: heads a key head. The format tells one sequence alone, see below
  kChunk,   // tokens, reach, heads, group: many tokens of one sequence; reach: keys / tokens
  kLatentDecode,  // sequences, keys, heads: the same, less kGroupedIn
  kLatentChunk,   // tokens, reach, heads
  kExpanded,      // tokens, heads: latent attention over its own tokens, expanded
  kRows,          // tokens, queries, keys: rotations of q and k, both caches written; queries, keys: columns
  kLatentRows,    // tokens, heads: the same of latent attention, absorbed
  kLatentFresh,   // tokens, heads: and expanded
  kExperts,       // tokens, hidden, inner, choices; with the sum that follows
  kRoute,         // tokens, experts: beyond the products that it goes beside
  kElementwise,   // bytes: an op that only reads and writes
  kAllReduce,     // bytes of the tensor; the format is the number of ranks
  kStep,          // bytes of logits: what a pass takes beside its ops; the format is the way to step, see below
  kCopy,          // bytes, read and written: device memory
  kHostCopy,      // bytes: host to device
  kLaunch,        // ops: as many short ops, one after the other, launched singly
};
inline constexpr int kFamilyCount = 23;
// Ways to step, as engines do: logits come to the host, from call to answer; the device chooses and ids come, the same;
// it chooses, and the next pass is under way by then: from one pass to the next. A processor's has the first alone.
inline constexpr std::string_view kStepToHost = "", kStepChosen = "chosen", kStepAhead = "ahead";
// Of kDecode: of one sequence, in layers of products that devices may launch with it; less those products.
inline constexpr std::string_view kOneSequence = "one";
std::string_view family_name(Family family);
/// Names of a family's axes, in their order.
std::span<const std::string_view> family_axes(Family family);

struct MeasuredTable {
  Family family = Family::kPlain;
  std::string format;                         // of the weights; ranks of an all-reduce; the way to step; "" else
  std::vector<std::vector<double>> axes;      // ascending, positive
  std::vector<double> seconds, bytes, flops;  // one a point, the last axis fastest

  std::size_t points() const;
  /// Derived from the points: the roofline, and its misses. Errors: "calibration.bad_table" (sizes, order, what is not
  /// positive).
  Status prepare();
  /// At a place on the axes, for what moves so many bytes and does so many FLOPs there.
  double at(std::span<const double> place, double moved, double done) const;
  double bytes_per_element() const { return bytes_per_element_; }  // of products' weights, from the largest point

 private:
  double base(double moved, double done) const;
  double floor_ = 0, stream_ = 0, rate_ = 0, bytes_per_element_ = 0;
  std::vector<double> misses_;  // log(seconds / base)
};

struct Calibration {
  std::string device;  // id of the accelerator, or "cpu"
  std::string name;    // as the machine calls it
  std::string date;    // of the measurement, 2026-11-22
  std::string source;  // how it was made
  int threads = 0;     // cpu: of the measurement
  bool here = false;   // made on this machine, by its user
  std::vector<MeasuredTable> tables;
  std::uint64_t serial = 0;  // unique in this process

  /// Of a format, or of the one whose elements have about as many bytes; null: none of this family.
  const MeasuredTable* find(Family family, std::string_view format = "") const;
  const MeasuredTable* find_like(Family family, double bytes_per_element, std::string_view prefix) const;
  /// Takes over what `other` has and this has not, when both are of one device.
  void keep_from(const Calibration& other);
};

/// Errors name `what` and the field.
Result<Calibration> parse_calibration(std::string_view json, std::string_view what);
std::string calibration_json(const Calibration& calibration);

/// Where a device's own calibration is: calibration/<id>.json of the user's folder.
Path calibration_path(std::string_view device);
/// Whether a calibration is of a cluster's device; a CPU's also has to be of as many threads.
bool is_of(const Calibration& calibration, const Device& device);
/// The user's, else the one that comes with this program; null: there is none. Read once; a file that cannot be read is
/// its error.
Result<std::shared_ptr<const Calibration>> find_calibration(const Device& device);

}  // namespace fathom::plan
