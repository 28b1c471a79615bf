#include "engine/spread.h"

namespace fathom::engine {

std::vector<StageLayers> even_stages(std::int64_t layers, int pp) {
  std::vector<StageLayers> stages;
  std::int64_t at = 0;
  for (int s = 0; s < pp; ++s) {
    const std::int64_t count = layers / pp + (s < layers % pp ? 1 : 0);
    stages.push_back({at, at + count});
    at += count;
  }
  return stages;
}

Status check_spread(const model::ModelSpec& spec, const Spread& spread) {
  FATHOM_CHECK(spread.tp >= 1 && spread.pp >= 1 && spread.dp >= 1 && spread.ep >= 1);
  if (spread.pp > spec.layers)
    return fail("ranks.layers", {{"pp", std::to_string(spread.pp)}, {"layers", std::to_string(spec.layers)}});
  if (spread.ep > 1 && spec.routing.experts == 0) return fail("ranks.no_experts", {{"ep", std::to_string(spread.ep)}});
  if (spread.tp * spread.dp % spread.ep != 0)
    return fail("ranks.experts", {{"ep", std::to_string(spread.ep)}, {"ranks", std::to_string(spread.tp * spread.dp)}});
  return {};
}

model::Sharding sharding_of(const model::ModelSpec& spec, const Spread& spread, int rank,
                            const std::vector<StageLayers>& stages) {
  const std::vector<StageLayers> cut = stages.empty() ? even_stages(spec.layers, spread.pp) : stages;
  const StageLayers layers = cut[static_cast<std::size_t>(spread.stage(rank))];
  const int inside = rank % (spread.tp * spread.dp);  // among the ranks that share the stage's experts
  model::Sharding sharding{.tp = spread.tp, .tp_rank = spread.tensor_rank(rank)};
  if (spec.routing.experts > 0) {
    sharding.ep = spread.ep;
    sharding.ep_rank = inside / spread.expert_tp();
    sharding.expert_tp = spread.expert_tp();
    sharding.expert_tp_rank = inside % spread.expert_tp();
  }
  sharding.first_layer = layers.first;
  sharding.last_layer = layers.last == spec.layers ? -1 : layers.last;
  return sharding;
}

tensor::GroupMembers groups_of(const Spread& spread, int rank) {
  using tensor::Group;
  tensor::GroupMembers members;
  const auto of = [&](Group group) -> std::vector<int>& { return members.ranks[static_cast<std::size_t>(group)]; };
  const int t = spread.tensor_rank(rank), d = spread.replica(rank), p = spread.stage(rank);
  const auto number = [&](int tensor, int replica, int stage) {
    return tensor + spread.tp * (replica + spread.dp * stage);
  };
  for (int i = 0; i < spread.tp; ++i) of(Group::kTensor).push_back(number(i, d, p));
  for (int i = 0; i < spread.dp; ++i) of(Group::kAttention).push_back(number(t, i, p));
  for (int i = 0; i < spread.pp; ++i) of(Group::kPipeline).push_back(number(t, d, i));
  for (int i = 0; i < spread.tp * spread.dp; ++i) of(Group::kExpert).push_back(i + spread.tp * spread.dp * p);
  of(Group::kData).push_back(rank);
  of(Group::kContext).push_back(rank);
  return members;
}

}  // namespace fathom::engine
