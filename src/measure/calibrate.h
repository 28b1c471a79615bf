// Calibrate: Fathom's own ops timed on a device for about a minute, as the tables that a plan prices models by
// (plan/calibration.h). Every point is a sequence of calls of tensor::Ops as an architecture makes them, on weights
// that no cache holds; steps of decoding as recorded passes, prompts as they are launched. Shapes are a grid, not those
// of any model. docs/calibration.md has families and method.
#pragma once
#include <functional>
#include <string>

#include "plan/calibration.h"

namespace fathom::measure {

struct CalibrateOptions {
  std::string device = "cpu";  // cpu, cuda
  int gpus = 1;                // cuda: collectives are timed between 2, 4, … and so many
  int threads = 0;             // cpu
  std::string isa;
  bool quick = false;                                               // a coarse grid, for tests: not for plans
  std::function<void(std::size_t done, std::size_t all)> progress;  // points
};

/// Errors: those of make_backend and its memory; "calibration.device" (no catalog id for this accelerator),
/// "calibration.cannot_time".
Result<plan::Calibration> calibrate(const CalibrateOptions& options);

/// Writes it where plans look for it, or to `path`; what an older one of the same device has beside (collectives of
/// other numbers of ranks) is kept. Answers the path.
Result<Path> save_calibration(plan::Calibration calibration, const Path& path);

}  // namespace fathom::measure
