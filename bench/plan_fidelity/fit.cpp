// Fits the figures of profiles and curves to measured rows, or says how well rows are met that a fit has not seen.
//
// usage: fit REQUESTS.jsonl PARAMETERS.txt KINDS [ROUNDS] [hold GROUPING]
//   REQUESTS    requests with "measured", as to_requests.py of the measurements' folder writes them
//   PARAMETERS  a line a figure: device|link|engine NAMES field prior sigma low high   (NAMES: a,b,c move together)
//   KINDS       kinds of rows, separated by commas: serving,serve,decode,prefill,train,finetune
//   GROUPING    engine, hardware, model, source or group (engine x hardware x model): refitted once without each
// Prints errors a kind and a group, and, without hold, the fitted figures as lines "FIT device|link|engine NAMES field
// value" (apply.py writes them into data/).
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <set>
#include <sstream>

#include "base/json.h"
#include "plan/cost_fields.h"
#include "plan/cost_model.h"

namespace {

using namespace fathom;
using namespace fathom::plan;

struct Row {
  std::string engine, hardware, model, source, kind, field;
  double measured = 0, weight = 1, error = 0;  // error: log(predicted / measured), of times
  PlanRequest request;
  CostInputs inputs;
  std::string group() const { return engine + " " + hardware + " " + model; }
  std::string figure() const { return kind + " " + field.substr(0, field.find('.')); }
};

struct Parameter {
  std::string kind, names, field;
  double prior = 1, sigma = 1, low = 0, high = 1e30, value = 1;
  bool names_one(const std::string& name) const {
    return ("," + names + ",").find("," + name + ",") != std::string::npos;
  }
};

struct World {
  CurveTables tables;
  std::vector<EngineProfile> engines;
};

double figure_of(const TimeEstimate& time, const std::string& field) {
  const auto range = [](const std::optional<Range>& r) { return r ? r->value : 0; };
  if (field == "ttft_ms.value") return range(time.ttft_ms);
  if (field == "tpot_ms.value") return range(time.tpot_ms);
  if (field == "step_ms.value") return range(time.step_ms);
  if (field == "decode_tokens_per_second") return time.decode_tokens_per_second.value_or(0);
  if (field == "prefill_tokens_per_second") return time.prefill_tokens_per_second.value_or(0);
  if (field == "train_tokens_per_second_per_gpu") return time.train_tokens_per_second_per_gpu.value_or(0);
  if (field == "output_tokens_per_second_per_gpu") return time.output_tokens_per_second_per_gpu.value_or(0);
  return 0;
}

/// Empty for rows that the planner refuses or that are of other kinds.
std::unique_ptr<Row> read_row(const std::string& line, const std::string& kinds) {
  const Json json = Json::parse(line);
  const Json& measured = json["measured"];
  auto row = std::make_unique<Row>();
  row->kind = measured["kind"], row->field = measured["field"], row->source = measured["source"],
  row->measured = measured["value"];
  row->hardware = json["hardware"];
  if (("," + kinds + ",").find("," + row->kind + ",") == std::string::npos || row->field.starts_with("memory"))
    return nullptr;
  std::string id;
  auto request = parse_request(line, id);
  if (!request) return nullptr;
  row->request = std::move(*request);
  row->engine = row->request.engine->name;
  const auto& spec = row->request.model->spec();
  row->model = json["model"].is_string() ? json["model"].get<std::string>()
                                         : std::to_string(spec.hidden) + "x" + std::to_string(spec.layers);
  const auto answer = make_plan(row->request);
  if (!answer) return nullptr;
  const Candidate& best = answer->best;
  CostInputs& in = row->inputs;
  in.request = &row->request, in.layout = best.layout, in.weights = best.weights, in.kv = best.kv,
  in.batch = best.batch;
  in.concurrent = std::max<std::int64_t>(1, best.memory.concurrent);
  const auto sharding = sharding_of(in.layout);
  const auto share = row->request.model->share_weights(sharding, *best.weights);
  if (!share) return nullptr;
  in.share = *share;
  const auto trace = [&](Phase phase) { return row->request.model->trace(sharding, phase).value_or(nullptr); };
  if (is_training(row->request.task))
    in.train = trace(Phase::kTrain);
  else
    in.prefill = trace(Phase::kPrefill), in.decode = trace(Phase::kDecode);
  return in.train != nullptr || (in.prefill != nullptr && in.decode != nullptr) ? std::move(row) : nullptr;
}

template <class Record>
double* field_of(Record& record, const std::string& name) {
  double* found = nullptr;
  visit_fields(record, [&](std::string_view field, auto& value) {
    if constexpr (std::is_same_v<std::decay_t<decltype(value)>, double>) {
      if (field == name) found = &value;
    }
  });
  return found;
}

std::vector<double*> targets(World& world, const Parameter& p) {
  std::vector<double*> out;
  if (p.kind == "device")
    for (auto& d : world.tables.devices)
      if (p.names_one(d.id)) out.push_back(field_of(d, p.field));
  if (p.kind == "link")
    for (auto& l : world.tables.links)
      if (p.names_one(l.kind)) out.push_back(field_of(l, p.field));
  if (p.kind == "engine")
    for (auto& e : world.engines)
      if (p.names_one(e.name)) out.push_back(field_of(e, p.field));
  if (out.empty() || std::find(out.begin(), out.end(), nullptr) != out.end()) {
    std::cerr << "no figure " << p.kind << " " << p.names << " " << p.field << "\n";
    std::exit(2);
  }
  return out;
}

double error_of(const Row& row, const World& world) {
  const auto engine = std::find_if(world.engines.begin(), world.engines.end(),
                                   [&](const EngineProfile& e) { return e.name == row.engine; });
  const double predicted =
      figure_of(estimate_time(row.inputs, find_curves(world.tables, row.request.cluster), *engine), row.field);
  if (!(predicted > 0)) return 3;
  return row.field.ends_with("_ms.value") ? std::log(predicted / row.measured) : std::log(row.measured / predicted);
}

/// Robust: what a row far off pulls with falls as it lies further off.
double loss(double error) { return std::log1p(std::pow(error / 0.12, 2)); }

class Fit {
 public:
  Fit(World& world, std::vector<Parameter>& parameters, std::vector<Row*> rows)
      : world_(world), parameters_(parameters), rows_(std::move(rows)) {
    for (Parameter& p : parameters_)
      for (double* x : targets(world_, p)) *x = p.value;
    for (Row* row : rows_) row->error = error_of(*row, world_), weight_ += row->weight;
  }

  void run(int rounds) {
    std::vector<double> step(parameters_.size(), 0.2);
    for (int round = 0; round < rounds; ++round) {
      double gained = 0;
      for (std::size_t i = 0; i < parameters_.size(); ++i) {
        const double gain = move(parameters_[i], step[i]);
        step[i] *= gain > 0 ? 1.3 : 0.45;
        gained += gain;
      }
      if (gained < 2e-5 * weight_ && *std::max_element(step.begin(), step.end()) < 0.01) break;
    }
  }

 private:
  bool touches(const Parameter& p, const Row& row) const {
    if (p.kind == "engine") return p.names_one(row.engine);
    return p.kind != "device" || p.names_one(row.hardware);
  }
  double penalty(const Parameter& p, double value) const { return std::pow(std::log(value / p.prior) / p.sigma, 2); }

  double move(Parameter& p, double step) {
    const std::vector<double*> places = targets(world_, p);
    for (const double direction : {1.0, -1.0}) {
      const double trial = std::clamp(p.value * std::exp(direction * step), p.low, p.high);
      if (trial == p.value) continue;
      for (double* x : places) *x = trial;
      double change = kPriorWeight * (penalty(p, trial) - penalty(p, p.value));
      std::vector<double> errors;
      for (const Row* row : rows_) {
        errors.push_back(touches(p, *row) ? error_of(*row, world_) : row->error);
        change += row->weight * (loss(errors.back()) - loss(row->error));
      }
      if (change < -1e-9) {
        p.value = trial;
        for (std::size_t i = 0; i < rows_.size(); ++i) rows_[i]->error = errors[i];
        return -change;
      }
      for (double* x : places) *x = p.value;
    }
    return 0;
  }

  static constexpr double kPriorWeight =
      1.0;  // a figure one sigma off costs as much as one group's rows missing by 15 %
  World& world_;
  std::vector<Parameter>& parameters_;
  std::vector<Row*> rows_;
  double weight_ = 0;
};

void report(const std::vector<std::unique_ptr<Row>>& rows) {
  std::map<std::string, std::vector<double>> groups;
  for (const auto& row : rows) {
    groups[row->figure()].push_back(row->error);
    groups[row->figure() + " | " + row->group()].push_back(row->error);
  }
  const auto quantile = [](std::vector<double> v, double q) {
    std::sort(v.begin(), v.end());
    return v[static_cast<std::size_t>(q * static_cast<double>(v.size() - 1))];
  };
  for (const auto& [name, errors] : groups) {
    std::vector<double> size, ratio;
    for (const double e : errors) ratio.push_back(std::exp(-e)), size.push_back(std::fabs(std::exp(e) - 1));
    std::printf(
        "%-88s %4zu rows  median %5.1f%%  p90 %6.1f%%  measured / predicted time: 5 %% %.2f, 50 %% %.2f, 95 %% %.2f\n",
        name.c_str(), errors.size(), 100 * quantile(size, 0.5), 100 * quantile(size, 0.9), quantile(ratio, 0.05),
        quantile(ratio, 0.5), quantile(ratio, 0.95));
  }
}

std::vector<Parameter> read_parameters(const std::string& path) {
  std::vector<Parameter> parameters;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line[0] == '#') continue;
    Parameter p;
    std::istringstream words(line);
    if (!(words >> p.kind >> p.names >> p.field >> p.prior >> p.sigma >> p.low >> p.high)) {
      std::cerr << "cannot read: " << line << "\n";
      std::exit(2);
    }
    p.value = p.prior;
    parameters.push_back(p);
  }
  return parameters;
}

}  // namespace

int main(int count, char** words) {
  if (count < 4) {
    std::cerr << "usage: fit REQUESTS.jsonl PARAMETERS.txt KINDS [ROUNDS] [hold engine|hardware|model|source|group]\n";
    return 2;
  }
  const int rounds = count > 4 ? std::atoi(words[4]) : 25;
  std::vector<std::unique_ptr<Row>> rows;
  std::ifstream file(words[1]);
  for (std::string line; std::getline(file, line);)
    if (auto row = read_row(line, words[3])) rows.push_back(std::move(row));
  // A group counts as the root of its rows, so that one with many does not drown the others.
  std::map<std::string, double> sizes;
  for (const auto& row : rows) sizes[row->figure() + row->group()] += 1;
  for (const auto& row : rows) row->weight = 1 / std::sqrt(sizes[row->figure() + row->group()]);
  const auto tables = curve_tables();
  const auto engines = engine_profiles();
  if (!tables || !engines || rows.empty()) return 2;
  World world{**tables, {engines->begin(), engines->end()}};
  std::vector<Parameter> parameters = read_parameters(words[2]);
  std::vector<Row*> all;
  for (const auto& row : rows) all.push_back(row.get());
  Fit(world, parameters, all).run(rounds);
  if (count < 7) {
    report(rows);
    for (const Parameter& p : parameters)
      std::printf("FIT %s %s %s %.4g  (prior %.4g)\n", p.kind.c_str(), p.names.c_str(), p.field.c_str(), p.value,
                  p.prior);
    return 0;
  }
  const std::string grouping = words[6];
  const auto key = [&](const Row& row) {
    return grouping == "engine"     ? row.engine
           : grouping == "hardware" ? row.hardware
           : grouping == "model"    ? row.model
           : grouping == "source"   ? row.source
                                    : row.group();
  };
  std::set<std::string> keys;
  for (const auto& row : rows) keys.insert(key(*row));
  std::map<Row*, double> unseen;
  for (const std::string& out : keys) {
    World without = world;
    std::vector<Parameter> start = parameters;
    std::vector<Row*> seen;
    for (const auto& row : rows)
      if (key(*row) != out) seen.push_back(row.get());
    // From the priors, not from what all rows gave, for figures that only the rows left out touch.
    for (Parameter& p : start) p.value = std::sqrt(p.value * p.prior);
    Fit(without, start, seen).run(std::max(rounds / 2, 6));
    for (const auto& row : rows)
      if (key(*row) == out) unseen[row.get()] = error_of(*row, without);
    std::fprintf(stderr, "%s\n", out.c_str());
  }
  for (const auto& [row, error] : unseen) row->error = error;
  report(rows);
}
