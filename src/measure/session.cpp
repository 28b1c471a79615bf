#include "measure/session.h"

#include <algorithm>
#include <charconv>

#include "backends/backends.h"
#include "base/clock.h"
#include "base/strings.h"
#include "measure/trace.h"
#include "weights/quantize.h"
#include "weights/synth.h"

namespace fathom::measure {
namespace {

Bytes status_field(std::string_view name) {
  const auto text =
      read_file("/proc/self/status", kMiB);  // a proc file has size 0: read_file answers what its size says
  std::string status = text ? *text : "";
  if (status.empty()) {
    if (std::FILE* file = std::fopen("/proc/self/status", "r")) {
      char buffer[8192];
      status.assign(buffer, std::fread(buffer, 1, sizeof buffer, file));
      std::fclose(file);
    }
  }
  const std::size_t at = status.find(name);
  if (at == std::string::npos) return 0;
  const std::string_view rest = trim(std::string_view(status).substr(at + name.size(), 40));
  Bytes kib = 0;
  std::from_chars(rest.data(), rest.data() + rest.size(), kib);
  return kib * kKiB;
}

Result<DType> cache_type(const SessionOptions& options, const model::ModelSpec& spec) {
  if (options.kv == "auto") {
    const bool wide =
        options.weights == "f32" || (options.weights == "native" && spec.plain_format == tensor::WeightFormat::f32);
    return wide ? DType::f32 : DType::bf16;
  }
  return parse_cache_type(options.kv);
}

/// All that a session is, but for its engine.
Status look_up(const SessionOptions& options, Session& session, weights::StoragePolicy& storage,
               engine::EngineOptions& engine_options) {
  session.name = options.model;
  std::error_code ignored;
  const bool folder = std::filesystem::is_directory(options.model, ignored);
  FATHOM_TRY(session.spec, weights::find_model_spec(options.model));
  session.synthetic = options.random_weights || options.model == weights::kDefaultModel;
  if (!folder && !session.synthetic) return fail("measure.no_checkpoint", {{"model", printable(options.model)}});
  const bool quantized = options.weights == "fp8" || options.weights == "int8" || options.weights == "int4";
  if (quantized && !session.synthetic)
    return fail("measure.quantized_weights", {{"model", printable(options.model)}, {"name", options.weights}});
  FATHOM_TRY(storage, weights::parse_storage_policy(quantized ? "native" : options.weights));
  if (!session.synthetic && options.layers) return fail("measure.layers_need_random");
  if (session.synthetic) {
    if (quantized) {
      FATHOM_TRY(const auto to, weights::parse_quantize_target(options.weights));
      FATHOM_TRY(session.spec, weights::quantized_spec(session.spec, options.layers, to));
    } else {
      FATHOM_TRY(session.spec, weights::synthetic_spec(session.spec, options.layers, {}));
    }
  }
  engine_options = options.engine;
  if (engine_options.context == 0) engine_options.context = std::min<std::int64_t>(session.spec.max_context, 4096);
  engine_options.prefill_chunk = std::max(
      std::min(engine_options.prefill_chunk, engine_options.context * engine_options.slots), engine_options.slots);
  FATHOM_TRY(engine_options.cache_dtype, cache_type(options, session.spec));
  if (!session.synthetic) session.folder = options.model;
  return {};
}

}  // namespace

Result<DType> parse_cache_type(const std::string& name) {
  const auto parsed = name == "fp8" ? DType::f8e4m3 : name == "int8" ? DType::i8 : parse_dtype(name);
  for (const DType known : {DType::f32, DType::f16, DType::bf16, DType::f8e4m3, DType::i8})
    if (parsed == known) return known;
  return fail("measure.kv_type", {{"name", printable(name)}});
}

Bytes resident_bytes() { return status_field("VmRSS:"); }
Bytes peak_resident_bytes() { return status_field("VmHWM:"); }

Result<Session> open_session(const SessionOptions& options, const Launch& launch) {
  const double started = now_seconds();
  Session session;
  weights::StoragePolicy storage;
  engine::EngineOptions engine_options;
  const Status early = look_up(options, session, storage, engine_options);
  if (launch.process != nullptr) FATHOM_TRY_VOID(tensor::agree(*launch.process, early));
  FATHOM_TRY_VOID(early);
  FATHOM_TRY(session.spread, choose_spread(launch, options.ranks, session.spec,
                                           {.device = options.device,
                                            .weights = options.weights,
                                            .batch = engine_options.slots,
                                            .prompt = options.work.prompt,
                                            .generate = options.work.generate}));
  if (options.trace) {
    FATHOM_TRY(session.tracer, make_tracer(options.device, session.spread));
  }
  const auto make = [&options, &session, &storage,
                     engine_options](const engine::Seat& seat) -> Result<engine::EngineParts> {
    engine::EngineParts parts{.options = engine_options};
    FATHOM_TRY(parts.architecture, model::make_architecture(session.spec, sharding_of(session.spec, seat)));
    if (!parts.architecture->runnable()) return fail_unsupported("model.v41_not_runnable");
    const tensor::BackendOptions backend = backend_options(seat, options.threads, options.isa);
    FATHOM_TRY(parts.backend, backends::make_backend(options.device, backend));
    FATHOM_TRY(OffloadChoice offload, prepare_memory({.architecture = parts.architecture.get(),
                                                      .backend = parts.backend.get(),
                                                      .storage = storage,
                                                      .engine = engine_options,
                                                      .seat = &seat,
                                                      .work = options.work,
                                                      .weights = options.weights,
                                                      .isa = options.isa,
                                                      .threads = seat.alone() ? options.threads : backend.threads,
                                                      .mmap = options.mmap},
                                                     options.offload));
    parts.offload = std::move(offload.options);
    if (seat.rank == 0) session.offload = std::move(offload.report);
    if (session.tracer != nullptr)
      parts.backend = session.tracer->wrap(std::move(parts.backend), seat.rank, parts.architecture->weights());
    const auto progress = seat.rank == 0 ? options.progress : nullptr;
    const int threads = seat.alone() ? options.threads : backend.threads;
    if (session.synthetic) {
      FATHOM_TRY(parts.weights, weights::synthesize_in_memory(parts.architecture->weights(), *parts.backend,
                                                              {.storage = storage,
                                                               .host = std::move(offload.units),
                                                               .seed = options.seed,
                                                               .threads = threads,
                                                               .progress = progress}));
    } else {
      weights::LoadOptions load{.storage = storage, .host = std::move(offload.units), .mmap = options.mmap};
      load.read.progress = progress;
      if (!seat.alone()) load.read.threads = threads;
      FATHOM_TRY(parts.weights, weights::load_weights(*parts.architecture, *session.folder, *parts.backend, load));
    }
    return parts;
  };
  FATHOM_TRY(session.engine, start_engine(launch, session.spread, make));
  session.load_seconds = now_seconds() - started;
  return session;
}

Result<Session> open_session(const SessionOptions& options) {
  FATHOM_TRY(const Launch launch, find_launch(options.ranks, options.device));
  return open_session(options, launch);
}

}  // namespace fathom::measure
