// Family experts, routing: which experts a token goes to and with what weights. As transformers' deepseek_v2 (greedy
// and group_limited_greedy), deepseek_v3 (noaux_tc) and deepseek_v4 (sqrtsoftplus, hash) have it.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "backends/reference/elements.h"
#include "backends/reference/reference_ops.h"

namespace fathom::reference {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

double softplus(double x) { return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x)); }

std::vector<double> scores_of(const double* logits, std::int64_t experts, Scoring scoring) {
  std::vector<double> scores(logits, logits + experts);
  if (scoring == Scoring::kSoftmax) {
    double largest = -std::numeric_limits<double>::infinity(), sum = 0;
    for (const double s : scores) largest = std::max(largest, s);
    for (double& s : scores) sum += s = std::exp(s - largest);
    for (double& s : scores) s /= sum;
  }
  for (double& s : scores) {
    if (scoring == Scoring::kSigmoid) s = sigmoid(s);
    if (scoring == Scoring::kSqrtSoftplus) s = std::sqrt(softplus(s));
  }
  return scores;
}

/// Indices of the `count` largest, best first; ties to the lower index; NaN ranks above everything, so that it is not
/// hidden.
std::vector<std::int64_t> largest_of(const std::vector<double>& values, std::int64_t count) {
  std::vector<std::int64_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  const auto value = [&](std::int64_t i) { return values[static_cast<std::size_t>(i)]; };
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    return std::isnan(value(b)) ? false : std::isnan(value(a)) || value(a) > value(b);
  });
  order.resize(static_cast<std::size_t>(count));
  return order;
}

/// Scores of experts outside the best groups become what the model's reference fills in: 0 when groups are ranked by
/// their best expert (V2, whose scores are not negative), minus infinity when by their two best (V3, whose biased
/// scores may be).
void keep_best_groups(std::vector<double>& choice, const Routing& routing) {
  if (routing.groups <= 1) return;
  const std::int64_t size = routing.experts / routing.groups;
  FATHOM_CHECK(size * routing.groups == routing.experts && routing.top_groups <= routing.groups);
  FATHOM_CHECK(routing.top_k <= routing.top_groups * size, "the best groups hold fewer experts than a token needs");
  std::vector<double> rank;
  for (std::int64_t g = 0; g < routing.groups; ++g) {
    const std::vector<double> group(choice.begin() + g * size, choice.begin() + (g + 1) * size);
    const auto best = largest_of(group, routing.group_rank == GroupRank::kMax ? 1 : 2);
    double value = 0;
    for (const std::int64_t i : best) value += group[static_cast<std::size_t>(i)];
    rank.push_back(value);
  }
  std::vector<bool> kept(static_cast<std::size_t>(routing.groups), false);
  for (const std::int64_t g : largest_of(rank, routing.top_groups)) kept[static_cast<std::size_t>(g)] = true;
  const double fill = routing.group_rank == GroupRank::kMax ? 0.0 : -std::numeric_limits<double>::infinity();
  for (std::int64_t e = 0; e < routing.experts; ++e)
    if (!kept[static_cast<std::size_t>(e / size)]) choice[static_cast<std::size_t>(e)] = fill;
}

}  // namespace

void ReferenceOps::route(const RouteArgs& args) {
  const Routing& routing = args.routing;
  const std::int64_t tokens = args.logits.dim(0), experts = args.logits.dim(1), top_k = routing.top_k;
  FATHOM_CHECK(experts == routing.experts && args.indices.shape == (Shape{tokens, top_k}) &&
               args.weights.shape == args.indices.shape);
  FATHOM_CHECK(top_k <= experts && (!args.table.defined() || args.table.cols == top_k));
  const Array logits = load(args.logits);
  const Array bias = args.bias.defined() ? load(args.bias) : Array(Shape{experts});
  const auto ids = args.table.defined() ? load_ints(args.ids) : std::vector<std::int64_t>();
  std::vector<std::int64_t> indices;
  Array weights(args.weights.shape);
  for (std::int64_t t = 0; t < tokens; ++t) {
    const std::vector<double> scores = scores_of(logits.at(t), experts, routing.scoring);
    std::vector<std::int64_t> chosen;
    if (args.table.defined()) {
      chosen = load_ints(args.table.row_range(ids[static_cast<std::size_t>(t)], 1).tensor());
    } else {
      std::vector<double> choice = scores;
      for (std::int64_t e = 0; e < experts; ++e) choice[static_cast<std::size_t>(e)] += *bias.at(e);
      keep_best_groups(choice, routing);
      chosen = largest_of(choice, top_k);
    }
    for (const std::int64_t e : chosen)
      FATHOM_CHECK(e >= 0 && e < experts, "a table names an expert that is not there");
    double sum = 0;
    for (std::int64_t j = 0; j < top_k; ++j)
      sum += weights.at(t)[j] = scores[static_cast<std::size_t>(chosen[static_cast<std::size_t>(j)])];
    for (std::int64_t j = 0; j < top_k; ++j)
      weights.at(t)[j] *= routing.scaling / (routing.normalize ? sum + 1e-20 : 1.0);
    indices.insert(indices.end(), chosen.begin(), chosen.end());
  }
  store_ints(args.indices, indices);
  store(args.weights, weights);
}

// The choice is frozen: the weights depend on the logits through the scores of the chosen alone (and, in softmax, of
// all).
void ReferenceGradOps::route_backward(const RouteGrad& args) {
  const Routing& routing = args.f.routing;
  const std::int64_t tokens = args.f.logits.dim(0), experts = routing.experts, top_k = routing.top_k;
  const Array logits = load(args.f.logits), dweights = load(args.dweights);
  const auto indices = load_ints(args.f.indices);
  Array dlogits(args.f.logits.shape);
  for (std::int64_t t = 0; t < tokens; ++t) {
    const std::vector<double> scores = scores_of(logits.at(t), experts, routing.scoring);
    std::vector<double> dscores(scores.size(), 0.0);
    const auto chosen = [&](std::int64_t j) {
      return static_cast<std::size_t>(indices[static_cast<std::size_t>(t * top_k + j)]);
    };
    double sum = 1e-20, along = 0;  // weights = scaling · s_j / sum
    for (std::int64_t j = 0; j < top_k; ++j) sum += scores[chosen(j)], along += dweights.at(t)[j] * scores[chosen(j)];
    for (std::int64_t j = 0; j < top_k; ++j)
      dscores[chosen(j)] +=
          routing.scaling * (routing.normalize ? (dweights.at(t)[j] - along / sum) / sum : dweights.at(t)[j]);
    const double mean = dot(dscores.data(), scores.data(), experts);
    for (std::int64_t e = 0; e < experts; ++e) {
      const double s = scores[static_cast<std::size_t>(e)], ds = dscores[static_cast<std::size_t>(e)];
      if (routing.scoring == Scoring::kSoftmax) dlogits.at(t)[e] = s * (ds - mean);
      if (routing.scoring == Scoring::kSigmoid) dlogits.at(t)[e] = s * (1.0 - s) * ds;
      if (routing.scoring == Scoring::kSqrtSoftplus)
        dlogits.at(t)[e] = ds == 0.0 ? 0.0 : sigmoid(logits.at(t)[e]) / (2.0 * s) * ds;
    }
  }
  add_to(args.dlogits, dlogits);
}

}  // namespace fathom::reference
