// OpPricer: what a plan says of single ops of a pass, for a trace that shows them beside what they took.
#pragma once
#include <memory>

#include "plan/cost_units.h"

namespace fathom::plan {

/// The pass that an op is of, on one rank.
struct OpPass {
  double tokens = 0, sequences = 1, keys = 1;  // keys: rows that the longest of its sequences has by then
  bool decode = false;
};

class OpPricer {
 public:
  /// Of `engine` on a cluster's device: by its calibration, or by kernels that were timed, else by curves. Errors:
  /// those of the tables.
  static Result<OpPricer> make(const Cluster& cluster, const EngineProfile& engine, const Layout& layout);
  /// Seconds of one op whose rates are of its own pass (fixed counts), launched by itself.
  double seconds(const meta::OpRecord& op, const OpPass& pass) const;

 private:
  std::shared_ptr<const Calibration> calibration_;
  const EngineProfile* engine_ = nullptr;
  Layout layout_;
  Rates rates_;
  std::shared_ptr<const Calibration> empty_;  // stands in where nothing was measured
};

}  // namespace fathom::plan
