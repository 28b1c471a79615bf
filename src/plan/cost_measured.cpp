#include "plan/cost_measured.h"

#include <algorithm>

namespace fathom::plan {
namespace {

double pass_seconds(const StepModel& m, const UnitProgram& program, const Load& shared, const Load& bound,
                    bool bound_only, Parts* parts) {
  double seconds = 0;
  for (const Unit& u : program.units)
    if (!bound_only || u.phase_bound)
      seconds +=
          static_cast<double>(u.repeats) * unit_seconds(u, u.phase_bound ? bound : shared, m.rates, m.layout, parts);
  for (const Kernel& k : program.rest.kernels)
    if (!bound_only || k.phase_bound)
      seconds +=
          static_cast<double>(k.repeats) * kernel_seconds(k, k.phase_bound ? bound : shared, m.rates, m.layout, parts);
  return seconds;
}

}  // namespace

double measured_seconds(const StepModel& m, const StepShape& s, Parts* parts) {
  const MeasuredPasses& passes = *m.measured;
  const double decode_tokens = s.decodes * s.decode_tokens, replicas = static_cast<double>(m.layout.dp_attention);
  const Load decode{.tokens = decode_tokens,
                    .outputs = decode_tokens,
                    .sequences = s.decodes,
                    .visible = s.context,
                    .keys = s.context,
                    .replicas = replicas,
                    .decode = true};
  double seconds = 0;
  if (s.prompt_tokens > 0) {
    const Load prompt{.tokens = s.prompt_tokens,
                      .outputs = s.prompt_outputs,
                      .sequences = s.prompt_tokens / std::max(s.prompt_length, 1.0),
                      .visible = s.prompt_past + (s.prompt_length + 1) / 2,
                      .keys = s.prompt_past + s.prompt_length,
                      .replicas = replicas};
    Load shared = prompt;
    shared.tokens += decode_tokens, shared.outputs += decode_tokens;
    const UnitProgram& program = s.prompt_past > 0 ? passes.resume : passes.prefill;
    seconds = pass_seconds(m, program, shared, prompt, false, parts);
    if (s.decodes > 0) seconds += pass_seconds(m, passes.decode, decode, decode, true, parts);
    // Nothing of it is replayed: it cannot be faster than the host launches it.
    if (const MeasuredTable* launch = passes.calibration->find(Family::kLaunch)) {
      const double launching = launch->seconds.front() / launch->axes[0].front() * program.ops;
      if (launching > seconds && parts != nullptr) part(*parts, BoundBy::kHost) += launching - seconds;
      seconds = std::max(seconds, launching);
    }
  } else if (s.decodes > 0) {
    seconds = pass_seconds(m, passes.decode, decode, decode, false, parts);
  }
  if (m.layout.pp > 1) {
    const bool network = m.layout.tp * m.layout.pp * m.layout.dp_attention > m.rates.domain;
    const double sends = (m.layout.pp - 1) * send_seconds(network ? m.rates.inter : m.rates.intra,
                                                          (s.prompt_tokens + decode_tokens) * m.hidden_bytes);
    if (parts != nullptr) part(*parts, network ? BoundBy::kNetwork : BoundBy::kCommunication) += sends;
    seconds += sends;
  }
  return seconds;
}

namespace {

/// Decoding goes the best way that there is: ahead where no other rank needs to be told what was chosen
/// (Engine::continues). A prompt's logits are waited for.
const MeasuredTable* step_table(const Calibration& calibration, const Layout& layout, bool prompt) {
  const bool continues = layout.pp == 1 && layout.dp_attention == 1;
  for (const std::string_view way : {kStepAhead, kStepChosen}) {
    if (prompt || (way == kStepAhead && !continues)) continue;
    if (const MeasuredTable* table = calibration.find(Family::kStep, way)) return table;
  }
  return calibration.find(Family::kStep, kStepToHost);
}

}  // namespace

double measured_step(const StepModel& m, const StepShape& s, Parts* parts) {
  const MeasuredTable* table = step_table(*m.measured->calibration, m.layout, s.prompt_tokens > 0);
  if (table == nullptr) return 0;
  const double bytes = std::max((s.decodes * s.decode_tokens + s.prompt_outputs) * m.measured->logit_bytes, 1.0);
  const double seconds = table->at(std::array{bytes}, bytes, 0);
  if (parts != nullptr) part(*parts, BoundBy::kHost) += seconds;
  return seconds;
}

double measured_prompt(const StepModel& m, double tokens, Parts* parts) {
  double seconds = 0;
  for (double past = 0; past < tokens; past += m.measured->chunk) {
    const double own = std::min(m.measured->chunk, tokens - past);
    const StepShape shape{.prompt_tokens = own,
                          .prompt_length = own,
                          .prompt_past = past,
                          .prompt_outputs = past + own < tokens ? 0.0 : 1.0};
    seconds += measured_seconds(m, shape, parts) + measured_step(m, shape, parts);
  }
  return seconds;
}

}  // namespace fathom::plan
