#include "plan/cost_serving.h"

#include <algorithm>
#include <cmath>

namespace fathom::plan {
namespace {

/// Prompts cut into chunks that fit a step beside the decoding sequences.
struct Chunks {
  double count = 1, tokens = 0, past = 0;  // of one prompt: chunks, tokens of a mean one, tokens before it
};

Chunks chunks_of(double input, double budget) {
  Chunks c;
  c.count = std::max(1.0, std::ceil(input / std::max(budget, 16.0)));
  c.tokens = input / c.count;
  c.past = (input - c.tokens) / 2;
  return c;
}

class LoopSolver {
 public:
  LoopSolver(const StepModel& model, const Loop& loop) : m_(model), e_(*model.engine), loop_(loop) {
    running_ = std::max(1.0, std::min(loop.users, loop.capacity));
    pipeline_ = std::max(1, model.layout.pp);
    context_ = loop.input + (loop.output + 1) / 2;
  }

  LoopResult solve() {
    decoding_ = running_;
    for (int i = 0; i < 3; ++i) iterate();
    LoopResult result;
    const double front = e_.host.request * m_.rates.host;
    const double together = m_.layout.dp_attention > 1 ? e_.replica_wait_steps * step_ : 0;
    const double alone = together + front + own_ + (running_ - 1) / 2 * stall_;
    const double steady = together + front + own_ + polling_ + wait_;
    const double first = (1 - e_.burst) * steady + e_.burst * alone;
    const double decode_wall = (loop_.output - 1) * step_ + meets_ * stall_;
    const double cycle = steady + decode_wall;
    result.requests_per_second = running_ / cycle;
    // Users without room for their caches wait outside (Little: users = rate · (queue + cycle)).
    const double queue = (loop_.users - running_) / result.requests_per_second;
    result.ttft = first + queue;
    result.tpot = loop_.output > 1 ? decode_wall / (loop_.output - 1) : step_;
    result.running = running_;
    result.decoding = decoding_;
    result.parts = parts_;
    return result;
  }

 private:
  /// Prompts that one user meets in a cycle: with several attention replicas in step, those of the others stop him too.
  double others() const {
    return std::max(0.0, running_ * std::pow(static_cast<double>(m_.layout.dp_attention), e_.replica_stalls) - 1);
  }

  void iterate() {
    parts_ = {};
    const double decodes = decoding_ / pipeline_;
    step_ = step_seconds(m_, {.decodes = decodes, .context = context_}, &parts_);
    const double budget = static_cast<double>(e_.max_batched_tokens);
    const Chunks c = chunks_of(loop_.input, e_.scheduler == Scheduler::kMixed ? std::max(budget - decodes, budget / 8) : budget);
    StepShape prompt{.prompt_tokens = c.tokens, .prompt_length = c.tokens, .prompt_past = c.past, .prompt_outputs = 1 / c.count};
    if (loop_.input <= 0) {
      own_ = stall_ = 0;
    } else if (e_.scheduler == Scheduler::kMixed) {
      prompt.decodes = decodes;
      prompt.context = context_;
      const double mixed = step_seconds(m_, prompt, nullptr);
      prompt.decodes = 0;
      const double apart = e_.mixing < 1 ? step_seconds(m_, prompt, nullptr) : 0;
      const double together = e_.mixing * (mixed - step_) + (1 - e_.mixing) * apart;
      stall_ = c.count * std::max(together, 0.0) / pipeline_;
      own_ = c.count * (std::max(together, 0.0) + step_);
    } else {
      const double alone = step_seconds(m_, prompt, nullptr);
      stall_ = c.count * alone / pipeline_;
      own_ = c.count * alone;
    }
    const double steps = std::max(loop_.output - 1, 0.0);
    const double n = others();
    double decode_wall = steps * step_ + n * stall_, cycle = own_ + polling_ + decode_wall;
    const double busy = std::min(n * stall_ / cycle, 0.999);
    const double apart = std::min(busy / (2 * (1 - busy) + 2 / (n + 1)), n / 2);
    // Requests that came between two looks at the queue start together.
    const double polled = std::min((e_.poll_steps - 1) / std::max(steps, 1.0), 1.0) * n / 2;
    polling_ = e_.poll_steps / 2 * step_;
    const double ahead = (1 - e_.lockstep) * std::min(apart + polled, n / 2) + e_.lockstep * n / 2;
    wait_ = ahead * stall_;
    meets_ = n - ahead;
    decode_wall = steps * step_ + meets_ * stall_;
    cycle = own_ + polling_ + wait_ + decode_wall;
    const double target = running_ * decode_wall / cycle;
    decoding_ = std::max(1.0, e_.scheduler == Scheduler::kPrefillFirst ? std::max(target, running_ * 0.5) : target);
  }

  const StepModel& m_;
  const EngineProfile& e_;
  const Loop& loop_;
  double running_ = 1, decoding_ = 1, pipeline_ = 1, context_ = 0;
  double polling_ = 0, step_ = 0, stall_ = 0, own_ = 0, wait_ = 0, meets_ = 0;
  Parts parts_{};
};

}  // namespace

LoopResult solve_loop(const StepModel& model, const Loop& loop) { return LoopSolver(model, loop).solve(); }

BatchResult static_batch(const StepModel& m, double sequences, double input, double output) {
  BatchResult result;
  const EngineProfile& e = *m.engine;
  const double pipeline = std::max(1, m.layout.pp);
  if (input > 0) {
    // Chunked engines cut long prompts; a static batch is one pass. Either way a chunk is a step.
    const double total = sequences * input;
    const double passes = e.scheduler == Scheduler::kStatic ? 1 : std::max(1.0, std::ceil(total / static_cast<double>(e.max_batched_tokens)));
    const double per_pass = total / passes, length = std::min(input, per_pass);
    const double cuts = std::max(1.0, input / length);
    result.prefill = passes * step_seconds(m, {.prompt_tokens = per_pass, .prompt_length = length, .prompt_past = (input - input / cuts) / 2, .prompt_outputs = sequences / passes}, &result.prefill_parts);
    result.prefill += e.host.request * m.rates.host;
  }
  const double decodes = sequences / pipeline;
  // Time is close to linear in the context: the mean context stands for the mean time.
  result.decode_step = step_seconds(m, {.decodes = decodes, .context = input + (output + 1) / 2}, &result.decode_parts);
  return result;
}

}  // namespace fathom::plan
