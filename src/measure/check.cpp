#include "measure/check.h"

#include <algorithm>
#include <map>

#include "model/catalog.h"
#include "plan/answer_text.h"
#include "plan/engine_profile.h"

namespace fathom::measure {
namespace {

// In the order in which a person would want them: precision first, then what makes it fit.
struct Way {
  const char* engine;
  const char* weights;
};
std::vector<Way> ways(plan::Task task, bool on_cpu, bool calibrated = false) {
  switch (task) {
    case plan::Task::kChat:
      if (!on_cpu && calibrated)
        return {{"fathom", "native"}, {"vllm", "native"}, {"vllm", "fp8"}, {"vllm", "int4"}, {"llama.cpp", "q4_k_m"}};
      if (on_cpu) return {{"fathom", "bf16"}, {"llama.cpp", "q8_0"}, {"llama.cpp", "q4_k_m"}};
      return {{"vllm", "native"}, {"vllm", "fp8"}, {"vllm", "int4"}, {"llama.cpp", "q4_k_m"}};
    case plan::Task::kServe:
      if (on_cpu) return {{"llama.cpp", "q8_0"}, {"llama.cpp", "q4_k_m"}};
      return {{"vllm", "native"}, {"vllm", "fp8"}, {"vllm", "int4"}};
    case plan::Task::kQlora:
      return {{"transformers", "nf4"}};
    case plan::Task::kLora:
    case plan::Task::kFull:
    case plan::Task::kPretrain:
      return {{"fsdp", "bf16"}};
  }
  return {};
}

struct Question {
  std::int64_t input = 3072, output = 1024, batch = 1, seq = 2048;
};

Result<plan::PlanRequest> make_request(const std::shared_ptr<const plan::PlanModel>& model,
                                       const plan::Cluster& cluster, plan::Task task, const Way& way) {
  const Question question;
  plan::PlanRequest request;
  request.model = model;
  request.cluster = cluster;
  request.task = task;
  FATHOM_TRY(request.engine, plan::find_engine(way.engine));
  FATHOM_TRY(request.weights, plan::find_weight_format(way.weights));
  request.input = question.input;
  request.output = question.output;
  request.seq = question.seq;
  const std::int64_t most = model->spec().max_context;
  if (request.input + request.output > most) request.input = most / 4 * 3, request.output = most / 4;
  request.seq = std::min(request.seq, most);
  request.batch = task == plan::Task::kServe ? 8 : 1;
  if (plan::is_training(task)) request.layout.micro_batch = 1, request.global_batch = cluster.devices;
  return request;
}

plan::Range scaled(double value, const std::optional<plan::Range>& like, bool inverse) {
  if (!like || like->value <= 0) return {value, value, value};
  return inverse ? plan::Range{value, value * like->value / like->high, value * like->value / like->low}
                 : plan::Range{value, value * like->low / like->value, value * like->high / like->value};
}

void fill_speed(const plan::PlanAnswer& answer, plan::Task task, int devices, TaskVerdict& verdict) {
  const plan::TimeEstimate& time = answer.best.time;
  verdict.provenance = time.provenance;
  verdict.calibrated = time.calibrated;
  if (task == plan::Task::kChat && time.decode_tokens_per_second)
    verdict.speed = scaled(*time.decode_tokens_per_second, time.tpot_ms, true);
  if (task == plan::Task::kServe && time.output_tokens_per_second_per_gpu)
    verdict.speed = scaled(*time.output_tokens_per_second_per_gpu * devices, time.tpot_ms, true);
  if (plan::is_training(task) && time.train_tokens_per_second_per_gpu)
    verdict.speed = scaled(*time.train_tokens_per_second_per_gpu * devices, time.step_ms, true);
}

TaskVerdict judge(const std::shared_ptr<const plan::PlanModel>& model, const plan::Cluster& cluster, plan::Task task) {
  TaskVerdict verdict{.task = task, .speed = {}};
  std::optional<plan::PlanRequest> last;
  for (const Way& way : ways(task, cluster.device.is_cpu(), cluster.device.calibration != nullptr)) {
    auto request = make_request(model, cluster, task, way);
    if (!request) continue;
    const auto answer = plan::make_plan(*request);
    if (!answer) continue;
    verdict.weights = way.weights;
    verdict.engine = way.engine;
    verdict.context = request->context();
    verdict.needed = answer->best.memory.bytes.total;
    verdict.capacity = answer->best.memory.bytes.capacity;
    verdict.fits = answer->best.memory.fits;
    if (verdict.fits) {
      // Whether training fits is arithmetic; how fast these engines train on a CPU nobody measured.
      if (!cluster.device.is_cpu() || !plan::is_training(task)) fill_speed(*answer, task, cluster.devices, verdict);
      verdict.why.clear();
      return verdict;
    }
    verdict.why = plan::why_not(*request, answer->best);
    last = std::move(*request);
  }
  if (!last) return verdict;
  // What a person would rent runs a GPU engine, not this machine's.
  for (const Way& way : ways(task, false)) {
    auto request = make_request(model, cluster, task, way);
    if (!request) continue;
    if (const auto rented = plan::cheapest_rented(*request);
        rented && (verdict.rented.empty() || rented->usd_per_hour < verdict.rented_usd_per_hour)) {
      verdict.rented = rented->offer->provider + " " + rented->offer->instance;
      verdict.rented_usd_per_hour = rented->usd_per_hour;
    }
  }
  return verdict;
}

}  // namespace

Result<std::vector<ModelVerdict>> survey(const hardware::Machine& machine,
                                         const std::optional<plan::KernelRates>& kernels,
                                         const std::function<void(std::size_t, std::size_t)>& progress) {
  FATHOM_TRY(const model::ModelCatalog* catalog, model::model_catalog());
  FATHOM_TRY(plan::Cluster cluster, plan::machine_cluster(machine));
  if (cluster.device.is_cpu() && cluster.device.calibration == nullptr) cluster.device.kernels = kernels;
  std::vector<ModelVerdict> verdicts;
  std::map<std::string, std::size_t> by_config;
  std::vector<const model::ModelEntry*> distinct;
  for (const model::ModelEntry& entry : catalog->models()) {
    if (!entry.id.starts_with("deepseek-ai/")) continue;
    const auto [found, fresh] = by_config.emplace(entry.config, verdicts.size());
    if (!fresh) {
      verdicts[found->second].same.push_back(entry.id);
      continue;
    }
    verdicts.push_back({.id = entry.id, .same = {}, .tasks = {}});
    distinct.push_back(&entry);
  }
  for (std::size_t i = 0; i < distinct.size(); ++i) {
    if (progress) progress(i, distinct.size());
    FATHOM_TRY(const auto model, plan::plan_model_from_config(distinct[i]->config));
    verdicts[i].parameters = static_cast<double>(model->sizes().parameters_main);
    verdicts[i].active = static_cast<double>(model->sizes().parameters_active);
    for (const plan::Task task :
         {plan::Task::kChat, plan::Task::kServe, plan::Task::kLora, plan::Task::kQlora, plan::Task::kFull})
      verdicts[i].tasks.push_back(judge(model, cluster, task));
  }
  std::stable_sort(verdicts.begin(), verdicts.end(),
                   [](const ModelVerdict& a, const ModelVerdict& b) { return a.parameters < b.parameters; });
  return verdicts;
}

}  // namespace fathom::measure
