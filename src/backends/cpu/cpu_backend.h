// Backend `cpu`: every op multi-threaded, with the best instruction set that this process can execute.
#pragma once
#include <memory>

#include "tensor/backend.h"

namespace fathom::cpu {

/// Activations are f32 (anything else: kUnsupported "cpu.activation_dtype"); weights f32, f16, bf16 and the quantized
/// formats. `options.threads` 0: as many as this process may use (affinity, cgroup quota). `options.isa`, or else the
/// environment's FATHOM_ISA, names the instruction set: amx, avx512_bf16, avx512, avx2, scalar; "" is the best that
/// runs here. Errors "cpu.unknown_isa", "cpu.isa_unavailable" name what there is.
///
/// `plain` (may be null: then grad_ops() is null) is a backend whose grad_ops() work on host memory. This backend
/// differentiates linear itself, on all threads, and hands every other op's backward to it.
///
/// Workspace is taken here and never grows: workspace_bytes(threads) below, whatever the shapes are. Bits: see
/// cpu_ops.h.
Result<std::unique_ptr<tensor::Backend>> make_cpu_backend(const tensor::BackendOptions& options,
                                                          std::unique_ptr<tensor::Backend> plain = nullptr);

/// What a backend of so many threads keeps for its kernels, exactly.
Bytes workspace_bytes(int threads);
/// Threads that options.threads = 0 means on this machine.
int default_threads();
/// Whether weights of this format can be multiplied with (all but f64; i64 only as a table).
bool supports(tensor::WeightFormat format);

}  // namespace fathom::cpu
