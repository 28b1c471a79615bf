#include "measure/calibrate_families.h"

#include "measure/calibrate_tables.h"

namespace fathom::measure {
using plan::Family;
using plan::MeasuredTable;

MeasuredTable make_table(Family family, std::string format, std::vector<std::vector<double>> axes) {
  MeasuredTable table;
  table.family = family;
  table.format = std::move(format);
  table.axes = std::move(axes);
  return table;
}

Status fill_table(MeasuredTable& table, const std::function<Result<Point>(const std::vector<double>&)>& time,
                  const std::function<void()>& point) {
  const std::size_t n = table.points();
  for (std::size_t i = 0; i < n; ++i) {
    std::vector<double> place(table.axes.size());
    std::size_t rest = i;
    for (std::size_t a = table.axes.size(); a-- > 0; rest /= table.axes[a].size())
      place[a] = table.axes[a][rest % table.axes[a].size()];
    FATHOM_TRY(const Point timed, time(place));
    table.seconds.push_back(timed.seconds);
    table.bytes.push_back(timed.bytes);
    table.flops.push_back(timed.flops);
    if (point) point();
  }
  return table.prepare();
}

std::size_t count_points(const Grid& g, tensor::Backend& backend) {
  const std::size_t products = g.tokens.size() * g.widths.size() * g.widths.size() +
                               (g.formats.size() - 1) * g.few_tokens.size() * g.few_widths.size() * g.few_widths.size();
  const std::size_t attention =
      g.streams.size() * g.keys.size() * g.groups.size() + g.one_heads.size() * g.keys.size() * g.one_groups.size() +
      g.chunk_tokens.size() * g.reaches.size() * g.chunk_heads.size() * g.chunk_groups.size() +
      g.expanded_tokens.size() * g.latent_heads.size();
  const std::size_t latents = g.sequences.size() * g.latent_keys.size() * g.latent_heads.size() +
                              g.latent_tokens.size() * g.latent_reaches.size() * g.latent_chunk_heads.size();
  const std::size_t rows = g.row_tokens.size() * (g.row_queries.size() * g.row_keys.size() + 2 * g.latent_heads.size());
  const std::size_t experts =
      g.expert_tokens.size() * g.expert_hidden.size() * g.expert_inner.size() * g.expert_choices.size() +
      g.route_tokens.size() * g.route_experts.size();
  return 5 * products + 2 * g.few_tokens.size() * g.latent_heads.size() + attention + latents + rows + experts +
         g.bytes.size() + 3 + step_ways(backend).size() * g.step_bytes.size();
}

Result<std::vector<MeasuredTable>> time_families(Rig& rig, const Grid& grid, const std::function<void()>& point) {
  std::vector<MeasuredTable> made;
  const Tables tables(rig, grid, point, made);
  for (const auto time : {time_products, time_attention, time_rows, time_experts, time_machine, time_steps})
    FATHOM_TRY_VOID(time(tables));
  return made;
}

}  // namespace fathom::measure
