#include "plan/cost_serving.h"

#include <algorithm>
#include <cmath>

#include "plan/cost_measured.h"

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

/// Of k prompts that came together and go through `together` at a time, those that one of them sees before its first
/// token.
double met_of(double k, double together) { return (k + std::min(k, together)) / 2 - 1; }

/// Time goes by in steps: users come back when a step has ended and are looked for before the next one.
class LoopSolver {
 public:
  LoopSolver(const StepModel& model, const Loop& loop) : m_(model), e_(*model.engine), loop_(loop) {
    running_ = std::max(1.0, std::min(loop.users, loop.capacity));
    pipeline_ = std::max(1, model.layout.pp);
    context_ = loop.input + (loop.output + 1) / 2;
    // With several attention replicas in step, prompts of the others stop a user too.
    others_ = std::max(0.0, running_ * std::pow(static_cast<double>(model.layout.dp_attention), e_.replica_stalls) - 1);
  }

  LoopResult solve() {
    decoding_ = running_;
    for (int i = 0; i < 3; ++i) iterate();
    LoopResult result;
    const double front = e_.host.request * m_.rates.host;
    const double replicas = m_.layout.dp_attention > 1 ? e_.replica_wait_steps * step_ : 0;
    const double start = front + replicas + own_ + std::min(met_of(running_, together_), others_) * stall_;
    const double steady = front + replicas + own_ + looking_ + shared_ * stall_;
    const double first = (1 - e_.burst) * steady + e_.burst * start;
    const double decode_wall = (loop_.output - 1) * step_ + meets_ * stall_;
    result.requests_per_second = running_ / (steady + decode_wall);
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
  /// Prices a decode step, what one prompt takes for itself and what it costs the others.
  void price() {
    parts_ = {};
    const double decodes = decoding_ / pipeline_;
    step_ = step_seconds(m_, {.decodes = decodes, .context = context_}, &parts_);
    const double budget = static_cast<double>(e_.max_batched_tokens);
    const double room = e_.scheduler == Scheduler::kMixed ? std::max(budget - decodes, budget / 8) : budget;
    const Chunks c = chunks_of(loop_.input, room);
    chunks_ = std::max(1.0, loop_.input / room);
    together_ = std::max(1.0, room / std::max(loop_.input, 1.0));
    own_ = stall_ = 0;
    if (loop_.input <= 0) return;
    StepShape prompt{
        .prompt_tokens = c.tokens, .prompt_length = c.tokens, .prompt_past = c.past, .prompt_outputs = 1 / c.count};
    if (e_.scheduler == Scheduler::kMixed) {
      prompt.decodes = decodes;
      prompt.context = context_;
      const double more = std::max(step_seconds(m_, prompt, nullptr) - step_, 0.0);
      stall_ = c.count * more / pipeline_;
      own_ = c.count * (more + step_);
    } else {
      const double alone = step_seconds(m_, prompt, nullptr);
      stall_ = c.count * alone / pipeline_;
      own_ = c.count * alone;
    }
  }

  void iterate() {
    price();
    const double steps = std::max(loop_.output - 1, 0.0), users = others_ + 1;
    // Prompts that come between two looks at the queue: users are back within a part of their cycle (`spread`), at the
    // least in the time that their prompts take one after another.
    const double window = std::max(steps * e_.spread + chunks_ + users / together_, 1.0);
    const double coming = std::min(users / window * std::max(e_.poll_steps, chunks_), others_);
    shared_ = std::min(met_of(1 + coming, together_), others_);
    // What is left of the step in progress, or of the steps until the next look: steps with prompts are longer and met
    // more often.
    const double inside = std::min(users / window * chunks_, together_);
    const double mean = step_ + inside * stall_;
    const double square = std::min(mean * mean + inside * stall_ * stall_, std::pow(step_ + together_ * stall_, 2));
    looking_ = square / (2 * mean) + (e_.poll_steps - 1) / 2 * mean;
    const double met = stall_ > 0 ? shared_ + std::max(looking_ - e_.poll_steps * step_ / 2, 0.0) / stall_ : 0;
    meets_ = std::max(others_ - met, 0.0);
    const double decode_wall = steps * step_ + meets_ * stall_;
    const double cycle = own_ + looking_ + shared_ * stall_ + decode_wall;
    const double target = running_ * decode_wall / cycle;
    decoding_ = std::max(1.0, e_.scheduler == Scheduler::kPrefillFirst ? std::max(target, running_ * 0.5) : target);
  }

  const StepModel& m_;
  const EngineProfile& e_;
  const Loop& loop_;
  double running_ = 1, decoding_ = 1, pipeline_ = 1, context_ = 0, others_ = 0;
  double step_ = 0, stall_ = 0, own_ = 0, chunks_ = 1,
         together_ = 1;                          // seconds; steps that a prompt fills; prompts that fit a step
  double looking_ = 0, shared_ = 0, meets_ = 0;  // seconds until a step takes a prompt; prompts beside and after it
  Parts parts_{};
};

}  // namespace

LoopResult solve_loop(const StepModel& model, const Loop& loop) { return LoopSolver(model, loop).solve(); }

StaticBatch static_batch(const StepModel& m, double sequences, double input, double output) {
  StaticBatch result;
  const EngineProfile& e = *m.engine;
  const double pipeline = std::max(1, m.layout.pp);
  if (input > 0 && m.measured != nullptr) {
    // Prompt after prompt, each in passes of a chunk, as the engine does it.
    result.prefill = sequences * measured_prompt(m, input, &result.prefill_parts);
  } else if (input > 0) {
    // Chunked engines cut long prompts; a static batch is one pass. Either way a chunk is a step.
    const double total = sequences * input;
    const double passes = e.scheduler == Scheduler::kStatic
                              ? 1
                              : std::max(1.0, std::ceil(total / static_cast<double>(e.max_batched_tokens)));
    const double per_pass = total / passes, length = std::min(input, per_pass);
    const double cuts = std::max(1.0, input / length);
    result.prefill = passes * step_seconds(m,
                                           {.prompt_tokens = per_pass,
                                            .prompt_length = length,
                                            .prompt_past = (input - input / cuts) / 2,
                                            .prompt_outputs = sequences / passes},
                                           &result.prefill_parts);
    result.prefill += e.host.request * m.rates.host;
  }
  const double decodes = sequences / pipeline;
  // Time is close to linear in the context: the mean context stands for the mean time.
  result.decode_step = step_seconds(m, {.decodes = decodes, .context = input + (output + 1) / 2}, &result.decode_parts);
  return result;
}

}  // namespace fathom::plan
