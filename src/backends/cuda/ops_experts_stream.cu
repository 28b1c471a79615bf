// Experts with weights of eight-bit floats: see experts_stream.h.
#include "backends/cuda/experts_stream.h"

#include "backends/cuda/experts_stream.cuh"

namespace fathom::cuda {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

HalfRows halved(Context& context, const View<const float>& from, const std::int32_t* count) {
  HalfRowsView view;
  view.from = from;
  view.to = {context.workspace.take<__half>(from.dims[0] * from.dims[1]), context.workspace.take<float>(from.dims[0])};
  view.count = count;
  launch_early(context, &halve_rows, static_cast<unsigned>(from.dims[0]), kHalfRowThreads, 0, view);
  context.launched();
  return view.to;
}

template <bool kGated>
void launch_stream(Context& context, const HitStreamView& view, const ExpertsArgs& args, int run) {
  // Experts are hit unevenly: most runs are there for hits of experts that other ranks have.
  const auto here = static_cast<int>(std::ssize(args.gate)), runs = std::min(view.most_runs, here + here / 4 + 4);
  const dim3 grid(static_cast<unsigned>(divide_up(view.rows, kGated ? 16 : 32)), static_cast<unsigned>(runs));
  if (run == 8) launch_early(context, &stream_code_hits<kGated, 1>, grid, kCodeThreads, 0, view);
  else launch_early(context, &stream_code_hits<kGated, 2>, grid, kCodeThreads, 0, view);
  context.launched();
}

bool in_sixteens(std::span<const Weight> weights) {
  for (const Weight& weight : weights)
    if (weight.cols % 16 != 0 || reinterpret_cast<std::uintptr_t>(weight.data) % 16 != 0) return false;
  return true;
}

}  // namespace

bool can_stream(const ExpertsArgs& args) {
  if (args.gate.empty() || rounds_activations(args.gate[0], args.x.dim(0)) || rounds_activations(args.down[0], args.x.dim(0))) return false;
  return streams_codes(args.gate[0].format) && streams_codes(args.down[0].format) && in_sixteens(args.gate) && in_sixteens(args.up) && in_sixteens(args.down) && rows_aligned(args.x, 16);
}

int stream_run(const ExpertsArgs& args, std::int64_t pairs) {
  const std::int64_t total = std::max<std::int64_t>(args.total_experts, std::ssize(args.gate));
  return pairs <= 4 * total ? 8 : 16;
}


float* multiply_stream(Context& context, const ExpertsArgs& args, const Matrices& matrices, const Tensor& x, const GatherView& gather) {
  const std::int64_t inner = args.gate[0].rows, h = x.dim(1), pairs = gather.pairs;
  float* hidden = context.workspace.take<float>(pairs * inner);
  float* y = context.workspace.take<float>(pairs * h);
  HitStreamView in;
  in.first = matrices.gate;
  in.second = matrices.up;
  in.format = args.gate[0].format;
  in.rows = inner;
  in.cols = h;
  in.x = halved(context, view_of<const float>(x), nullptr);
  in.token = gather.token;
  in.y = hidden;
  in.limit = static_cast<float>(args.limit);
  in.runs = gather.runs;
  in.most_runs = gather.most_runs;
  launch_stream<true>(context, in, args, gather.run);
  View<const float> hits;
  hits.data = hidden;
  hits.dims[0] = pairs, hits.dims[1] = inner;
  hits.strides[0] = inner, hits.strides[1] = 1;
  HitStreamView out = in;
  out.first = matrices.down;
  out.format = args.down[0].format;
  out.rows = h;
  out.cols = inner;
  out.x = halved(context, hits, gather.hits);
  out.token = nullptr;
  out.y = y;
  launch_stream<false>(context, out, args, gather.run);
  return y;
}

}  // namespace fathom::cuda
