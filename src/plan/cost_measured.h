// Passes of a calibrated device: units priced by tables instead of kernels priced by curves.
#pragma once
#include "plan/cost_units.h"

namespace fathom::plan {

struct MeasuredPasses {
  std::shared_ptr<const Calibration> calibration;
  UnitProgram prefill, resume, decode;  // of all layers; resume: tokens of a prompt after its first pass
  double logit_bytes = 0;               // of a row
  double chunk = 512;                   // most tokens of a pass
};

/// As device_seconds: what the device takes, or the host to launch it.
double measured_seconds(const StepModel& model, const StepShape& shape, Parts* parts);
/// What a pass takes beside: until its logits or tokens are there, or until the next one can begin.
double measured_step(const StepModel& model, const StepShape& shape, Parts* parts);
/// A prompt from nothing, pass after pass, with the steps.
double measured_prompt(const StepModel& model, double tokens, Parts* parts);

}  // namespace fathom::plan
