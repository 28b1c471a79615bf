// The decorators behind Tracer: a backend, its ops and its collectives, each call between two marks.
#pragma once
#include "measure/trace.h"

namespace fathom::measure {

std::unique_ptr<tensor::Backend> make_traced_backend(Tracer& tracer, std::unique_ptr<tensor::Backend> inner, int rank,
                                                     const model::WeightTable& weights);

}  // namespace fathom::measure
