#include "plan/cost_op.h"

#include <algorithm>

namespace fathom::plan {

Result<OpPricer> OpPricer::make(const Cluster& cluster, const EngineProfile& engine, const Layout& layout) {
  FATHOM_TRY(const CurveTables* tables, curve_tables());
  OpPricer pricer;
  pricer.engine_ = &engine;
  pricer.layout_ = layout;
  pricer.rates_ = make_rates(cluster, find_curves(*tables, cluster), engine);
  if (engine.own_kernels && !cluster.device.kernels) pricer.calibration_ = cluster.device.calibration;
  pricer.empty_ = std::make_shared<Calibration>();
  return pricer;
}

double OpPricer::seconds(const meta::OpRecord& op, const OpPass& pass) const {
  LowerInputs inputs;
  inputs.engine = engine_;
  inputs.rates = &rates_;
  inputs.phase = pass.decode ? Phase::kDecode : Phase::kPrefill;
  meta::Trace one;
  one.ops.push_back(op);
  UnitProgram program;
  add_units(one, 1, inputs, layout_, calibration_ != nullptr ? *calibration_ : *empty_, false, program);
  const double own = pass.tokens / std::max(pass.sequences, 1.0);
  // Rates of this record are counts: only what attention sees goes by the pass.
  const Load load{.tokens = pass.tokens,
                  .outputs = pass.tokens,
                  .sequences = pass.sequences,
                  .visible = pass.decode ? pass.keys : pass.keys - (own - 1) / 2,
                  .keys = pass.keys,
                  .decode = pass.decode};
  double seconds = 0;
  for (const Unit& unit : program.units) seconds += unit_seconds(unit, load, rates_, layout_, nullptr);
  for (const Kernel& kernel : program.rest.kernels) seconds += kernel_seconds(kernel, load, rates_, layout_, nullptr);
  return seconds;
}

}  // namespace fathom::plan
