// Activations rounded to the 16-bit type of what they are multiplied with.
#pragma once
#include "backends/cuda/mma.cuh"

namespace fathom::cuda {

struct RoundView {
  View<const float> from;   // [rows, heads, width]; rows start at multiples of 16 bytes, width is a multiple of 8
  void* to = nullptr;       // the same, dense
  std::int64_t eights = 0;  // in all
};

template <class T>
static __global__ void __launch_bounds__(256) round_rows(const __grid_constant__ RoundView view) {
  const std::int64_t width = view.from.dims[2] / 8, heads = view.from.dims[1];
  for_items(view.eights, [&](std::int64_t item) {
    const std::int64_t row = item / width;
    const auto* from = reinterpret_cast<const float4*>(view.from.at(row / heads, row % heads) + item % width * 8);
    reinterpret_cast<uint4*>(view.to)[item] = pack_eight<T>(from[0], from[1]);
  });
}

/// [rows, heads, width] in the workspace, rounded; x may have rank 2.
template <class T>
T* rounded(Context& context, const tensor::Tensor& x) {
  RoundView view;
  view.from = view_of<const float>(x.shape.rank == 3 ? x : x.split_last(x.dim(1)));
  view.eights = x.elements() / 8;
  T* to = context.workspace.take<T>(x.elements());
  view.to = to;
  if (view.eights == 0) return to;
  round_rows<T><<<grid_for(context, view.eights, 256), 256, 0, context.stream>>>(view);
  context.launched();
  return to;
}

}  // namespace fathom::cuda
