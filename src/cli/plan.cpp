// fathom plan: what fits and how fast.
#include <cstdio>
#include <string>

#include "base/i18n.h"
#include "base/strings.h"
#include "cli/flags.h"
#include "cli/verbs.h"
#include "plan/answer.h"
#include "plan/answer_text.h"
#include "plan/batch.h"
#include "plan/engine_profile.h"
#include "plan/options.h"

namespace fathom::cli {
namespace {

// Flags that are keys of a request: the flag, the key, and the key of its help where that differs from the flag.
struct Setting {
  const char* flag;
  const char* key;
};
constexpr Setting kSettings[] = {{"task", "task"},
                                 {"engine", "engine"},
                                 {"gpus", "gpus"},
                                 {"gpus-per-node", "gpus_per_node"},
                                 {"network", "network"},
                                 {"weights", "weights"},
                                 {"compute", "compute"},
                                 {"kv", "kv"},
                                 {"tp", "tp"},
                                 {"pp", "pp"},
                                 {"dp", "dp"},
                                 {"dp-attention", "dp_attention"},
                                 {"ep", "ep"},
                                 {"cp", "cp"},
                                 {"vp", "vp"},
                                 {"zero", "zero"},
                                 {"offload", "offload"},
                                 {"recompute", "recompute"},
                                 {"optimizer", "optimizer"},
                                 {"lora-rank", "lora_rank"},
                                 {"micro-batch", "micro_batch"},
                                 {"global-batch", "global_batch"},
                                 {"seq", "seq"},
                                 {"batch-size", "batch"},
                                 {"input", "input"},
                                 {"output", "output"},
                                 {"speculative", "speculative"}};

struct PlanFlags {
  std::vector<std::string> words;  // of the model's name: "r1 distill qwen 7b" needs no quotes
  plan::PlanOptions plan;
  std::string values[std::size(kSettings)];
  std::string batch;
  int threads = 0;
} plan_flags;

Status print_answers(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0)
    return fail_environment("cli.plan.cannot_write");
  return {};
}

Result<int> run_one(const Common& common) {
  if (plan_flags.words.empty()) return fail("cli.plan.no_model");
  plan_flags.plan.model = join(plan_flags.words, " ");
  for (std::size_t i = 0; i < std::size(kSettings); ++i)
    if (!plan_flags.values[i].empty()) plan_flags.plan.settings.emplace_back(kSettings[i].key, plan_flags.values[i]);
  FATHOM_TRY(const plan::PlanRequest request, plan::request_from_options(plan_flags.plan));
  FATHOM_TRY(const plan::PlanAnswer answer, plan::make_plan(request, plan::PlanScope::kReport));
  std::string text;
  if (common.json)
    plan::append_report_json(request, answer, text);
  else
    text = plan::report_text(request, answer);
  if (common.json) text += '\n';
  FATHOM_TRY_VOID(print_answers(text));
  return answer.best.memory.fits || (answer.offload && request.engine->own_kernels) ? kExitOk : kExitNo;
}

}  // namespace

void setup_plan(FlagSet& verb) {
  verb.option("model", plan_flags.words, tr("cli.plan.model"));
  verb.option("--on", plan_flags.plan.on, tr("cli.plan.on"));
  verb.option("--gpu-memory", plan_flags.plan.gpu_memory, tr("cli.plan.gpu_memory"));
  verb.option("--slo", plan_flags.plan.slo, tr("cli.plan.slo"));
  verb.option("--context", plan_flags.plan.context, tr("cli.plan.context"));
  for (std::size_t i = 0; i < std::size(kSettings); ++i) {
    std::string help = kSettings[i].flag;
    for (char& c : help) c = c == '-' ? '_' : c;
    verb.option(std::string("--") + kSettings[i].flag, plan_flags.values[i], tr("cli.plan." + help));
  }
  verb.option("--batch", plan_flags.batch, tr("cli.plan.batch"));
  verb.option("--threads", plan_flags.threads, tr("cli.plan.threads")).within(0, 4096);
}

Result<int> run_plan(const Common& common) {
  if (plan_flags.batch.empty()) return run_one(common);
  FATHOM_TRY_VOID(plan::run_batch(plan_flags.batch, plan_flags.threads, print_answers));
  return kExitOk;
}

}  // namespace fathom::cli
