// The price of one step: prompts' tokens and decoding sequences together, on one device of a layout.
#pragma once
#include <array>
#include <memory>

#include "plan/cost_program.h"

namespace fathom::plan {

/// What a step works on, for one attention replica.
struct StepShape {
  double prompt_tokens = 0;   // tokens of prompts in this step
  double prompt_length = 0;   // and how many of them each prompt contributes
  double prompt_past = 0;     // tokens of the same prompts that were done before
  double prompt_outputs = 0;  // prompts that end in this step
  double decodes = 0;         // sequences that add one token
  double context = 0;         // their mean length
  double decode_tokens = 1;   // tokens a sequence and step (speculation: 1 + drafts)
};

/// Seconds by what bounds them, indexed by BoundBy.
using Parts = std::array<double, 7>;
inline double& part(Parts& parts, BoundBy bound) { return parts[static_cast<std::size_t>(bound)]; }

struct MeasuredPasses;  // cost_measured.h

/// A model under an engine on a device, ready to be asked.
struct StepModel {
  Program prefill, decode;  // of all layers
  Rates rates;
  Layout layout;
  const EngineProfile* engine = nullptr;
  bool offline = false;                            // no server around the engine
  bool packed = false;                             // weights are unpacked by the kernels
  double hidden_bytes = 0;                         // of a token's residual row: sent between pipeline stages
  std::shared_ptr<const MeasuredPasses> measured;  // of a calibrated device: instead of the programs above
};

/// Device seconds of the pass, every stage of a pipeline after the other.
double device_seconds(const StepModel& model, const StepShape& shape, Parts* parts);
/// With the host's work: what a user's clock shows between two steps.
double step_seconds(const StepModel& model, const StepShape& shape, Parts* parts);

/// Quantities that a kernel's price depends on.
struct Load {
  double tokens = 0, outputs = 0;     // rows of products
  double sequences = 0, visible = 0;  // attention: sequences, and rows that a query token sees on average
  double keys = 0;                    // rows that a sequence's keys have
  double replicas = 1;                // attention replicas whose tokens meet in the experts
  bool decode = false;
  bool balanced = false;  // training: routing is balanced
};
double kernel_seconds(const Kernel& kernel, const Load& load, const Rates& rates, const Layout& layout, Parts* parts);

}  // namespace fathom::plan
