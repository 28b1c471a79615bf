#include "measure/verify.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include "backends/backends.h"
#include "base/strings.h"
#include "engine/engine.h"
#include "engine/sampler.h"
#include "measure/session.h"
#include "measure/trace.h"
#include "model/architecture.h"
#include "weights/loader.h"

namespace fathom::measure {
namespace {

constexpr double kTolerance = 1e-3;

struct Prompt {
  std::vector<std::int32_t> ids, greedy;
  std::vector<float> logits;
};

// A tensor of the reference file, its type and rank checked.
Result<const weights::FileTensor*> reference_tensor(const weights::SafetensorsFile& file, const std::string& name,
                                                    int rank) {
  for (const weights::FileTensor& tensor : file.tensors())
    if (tensor.name == name) {
      if (tensor.rank != rank || !tensor.dtype)
        return fail("measure.reference_shape",
                    {{"tensor", name}, {"file", file.path().string()}, {"shape", weights::shape_text(tensor.dims())}});
      return &tensor;
    }
  return fail("measure.reference_missing", {{"tensor", name}, {"file", file.path().string()}});
}

Result<std::vector<std::int32_t>> read_ids(const weights::SafetensorsFile& file, std::span<const std::byte> bytes,
                                           const std::string& name) {
  FATHOM_TRY(const weights::FileTensor* tensor, reference_tensor(file, name, 1));
  const auto n = static_cast<std::size_t>(tensor->dims()[0]);
  std::vector<std::int32_t> ids(n);
  for (std::size_t i = 0; i < n; ++i) {
    if (tensor->dtype == DType::i32) {
      std::memcpy(&ids[i], bytes.data() + tensor->begin + i * 4, 4);
    } else if (tensor->dtype == DType::i64) {
      std::int64_t wide = 0;
      std::memcpy(&wide, bytes.data() + tensor->begin + i * 8, 8);
      ids[i] = wide < 0 || wide > INT32_MAX ? -1 : static_cast<std::int32_t>(wide);
    } else {
      return fail("measure.reference_type", {{"tensor", name}, {"file", file.path().string()}, {"type", tensor->type}});
    }
  }
  return ids;
}

Result<std::vector<Prompt>> read_reference(const Path& path, std::int64_t vocabulary) {
  FATHOM_TRY(const auto file, weights::SafetensorsFile::open(path));
  FATHOM_TRY(const auto mapped, MappedFile::open(path));
  std::vector<Prompt> prompts;
  const auto has = [&](const std::string& name) {
    return std::any_of(file.tensors().begin(), file.tensors().end(), [&](const auto& t) { return t.name == name; });
  };
  for (int i = 0; has("input_ids." + std::to_string(i)); ++i) {
    const std::string n = std::to_string(i);
    Prompt prompt;
    FATHOM_TRY(prompt.ids, read_ids(file, mapped.bytes(), "input_ids." + n));
    if (has("greedy." + n)) {
      FATHOM_TRY(prompt.greedy, read_ids(file, mapped.bytes(), "greedy." + n));
    }
    FATHOM_TRY(const weights::FileTensor* logits, reference_tensor(file, "logits." + n, 2));
    if (logits->dtype != DType::f32)
      return fail("measure.reference_type",
                  {{"tensor", "logits." + n}, {"file", path.string()}, {"type", logits->type}});
    if (prompt.ids.empty() || logits->dims()[0] != static_cast<std::int64_t>(prompt.ids.size()) ||
        logits->dims()[1] != vocabulary)
      return fail("measure.reference_shape",
                  {{"tensor", "logits." + n}, {"file", path.string()}, {"shape", weights::shape_text(logits->dims())}});
    prompt.logits.resize(logits->bytes() / sizeof(float));
    std::memcpy(prompt.logits.data(), mapped.bytes().data() + logits->begin, logits->bytes());
    prompts.push_back(std::move(prompt));
  }
  if (prompts.empty()) return fail("measure.reference_missing", {{"tensor", "input_ids.0"}, {"file", path.string()}});
  return prompts;
}

void compare(std::span<const float> ours, std::span<const float> reference, std::int64_t first_token,
             std::int64_t vocabulary, VerifyCase& result) {
  for (std::size_t i = 0; i < ours.size(); ++i) {
    const double difference = std::fabs(static_cast<double>(ours[i]) - static_cast<double>(reference[i]));
    if (difference <= result.worst || std::isnan(result.worst))
      continue;  // a NaN difference fails both tests and is kept
    result.worst = difference;
    result.worst_token = first_token + static_cast<std::int64_t>(i) / vocabulary;
    result.worst_id = static_cast<std::int64_t>(i) % vocabulary;
  }
}

// One pass after another over `ids` from nothing; logits of chunks go to `visit`, those of the last token come back.
Result<std::span<const float>> run_chunks(engine::Engine& engine, std::int64_t slot, std::span<const std::int32_t> ids,
                                          std::int64_t chunk,
                                          const std::function<void(std::int64_t, std::span<const float>)>& visit) {
  engine.reset(slot);
  std::span<const float> logits;
  const auto total = static_cast<std::int64_t>(ids.size());
  for (std::int64_t at = 0; at < total; at += chunk) {
    const engine::SlotTokens part{
        slot, ids.subspan(static_cast<std::size_t>(at), static_cast<std::size_t>(std::min(chunk, total - at)))};
    FATHOM_TRY(logits, engine.step(std::span(&part, 1), visit ? engine::Logits::kAll : engine::Logits::kLast));
    if (visit) visit(at, logits);
  }
  return logits.last(static_cast<std::size_t>(engine.spec().vocabulary));
}

Status run_case(engine::Engine& engine, std::int64_t slot, const Prompt& prompt, std::int64_t chunk,
                VerifyCase& result) {
  const std::int64_t vocabulary = engine.spec().vocabulary;
  // The reference computed every answer token from the whole text anew. Where an indexer chooses, an exact tie may fall
  // differently with every length, so there we do the same; elsewhere the caches go on.
  const bool chooses = engine.spec().index_top_k > 0;
  engine.set_topk_horizon(chooses ? static_cast<std::int64_t>(prompt.ids.size()) : 0);
  FATHOM_TRY(std::span<const float> logits,
             run_chunks(engine, slot, prompt.ids, chunk, [&](std::int64_t at, std::span<const float> ours) {
               compare(ours, std::span(prompt.logits).subspan(static_cast<std::size_t>(at * vocabulary), ours.size()),
                       at, vocabulary, result);
             }));
  engine::Sampler sampler({}, vocabulary);
  std::vector<std::int32_t> text = prompt.ids;
  for (const std::int32_t expected : prompt.greedy) {
    const auto id = sampler.sample(logits);
    if (!id || *id != expected) {
      result.greedy_differs_at = result.greedy_tokens;
      break;
    }
    if (++result.greedy_tokens == static_cast<std::int64_t>(prompt.greedy.size())) break;
    text.push_back(*id);
    if (chooses) {
      engine.set_topk_horizon(static_cast<std::int64_t>(text.size()));
      // All but the newest token in chunks of a size that does not take forever; the newest through the cache.
      const std::int64_t pace =
          std::min(std::max<std::int64_t>(chunk, 16), static_cast<std::int64_t>(prompt.ids.size()));
      FATHOM_TRY(logits, run_chunks(engine, slot, std::span(text).first(text.size() - 1), pace, {}));
      const engine::SlotTokens newest{slot, std::span(&text.back(), 1)};
      FATHOM_TRY(logits, engine.step(std::span(&newest, 1), engine::Logits::kLast));
    } else {
      const engine::SlotTokens part{slot, std::span(&text.back(), 1)};
      FATHOM_TRY(logits, engine.step(std::span(&part, 1), engine::Logits::kLast));
    }
  }
  return {};
}

}  // namespace

Result<VerifyReport> verify(const Path& folder, const VerifyOptions& options) {
  FATHOM_TRY(model::ModelSpec spec, model::load_config(folder));
  // References are computed with FP8 blocks that were widened.
  spec.block_activations = tensor::Activations::kAsTheyAre;
  for (model::QuantizationGroup& group : spec.quantization.groups)
    if (group.format == tensor::WeightFormat::fp8_block128) group.activations = tensor::Activations::kAsTheyAre;
  FATHOM_TRY(const std::vector<Prompt> prompts, read_reference(folder / "reference.safetensors", spec.vocabulary));
  const auto activations = parse_dtype(options.activations);
  if (!activations || *activations != DType::f32)
    return fail("measure.activations", {{"type", printable(options.activations)}});
  FATHOM_TRY(const auto storage, weights::parse_storage_policy(options.weights));
  FATHOM_TRY(const DType cache, parse_cache_type(options.kv == "auto" ? "f32" : options.kv));
  std::int64_t longest = 1, needed = 1;
  for (const Prompt& prompt : prompts) {
    longest = std::max(longest, static_cast<std::int64_t>(prompt.ids.size()));
    needed = std::max(needed, static_cast<std::int64_t>(prompt.ids.size() + prompt.greedy.size()));
  }
  FATHOM_TRY(const Launch launch, find_launch(options.ranks, options.device));
  VerifyReport report;
  report.passed = true;
  report.kv = options.kv == "auto" ? "f32" : options.kv;
  const bool whole =
      cache == DType::f32;  // rounded rows change choices of experts and of keys: of them nothing is asked
  report.tolerance = options.atol.value_or(whole ? kTolerance : std::numeric_limits<double>::infinity());
  FATHOM_TRY(report.spread,
             choose_spread(launch, options.ranks, spec, {.device = options.device, .weights = options.weights}));
  // Replicas take the prompts in turns.
  const engine::EngineOptions engine_options{.slots = report.spread.dp,
                                             .context = std::min(needed, spec.max_context),
                                             .prefill_chunk = std::max<std::int64_t>(longest, report.spread.dp),
                                             .logit_rows = longest,
                                             .cache_dtype = cache};
  std::shared_ptr<Tracer> tracer;
  if (!options.trace.empty()) {
    FATHOM_TRY(tracer, make_tracer(options.device, report.spread));
  }
  const auto make = [&](const engine::Seat& seat) -> Result<engine::EngineParts> {
    engine::EngineParts parts{.options = engine_options};
    FATHOM_TRY(parts.architecture, model::make_architecture(spec, sharding_of(spec, seat)));
    const tensor::BackendOptions backend = backend_options(seat, options.threads, options.isa);
    FATHOM_TRY(parts.backend, backends::make_backend(options.device, backend));
    FATHOM_TRY(OffloadChoice offload, prepare_memory({.architecture = parts.architecture.get(),
                                                      .backend = parts.backend.get(),
                                                      .storage = storage,
                                                      .engine = engine_options,
                                                      .seat = &seat,
                                                      .work = {.prompt = longest, .generate = needed - longest},
                                                      .weights = options.weights,
                                                      .isa = options.isa,
                                                      .threads = seat.alone() ? options.threads : backend.threads},
                                                     options.offload));
    parts.offload = std::move(offload.options);
    if (seat.rank == 0) report.offload = std::move(offload.report);
    if (tracer != nullptr)
      parts.backend = tracer->wrap(std::move(parts.backend), seat.rank, parts.architecture->weights());
    weights::LoadOptions load{.storage = storage, .host = std::move(offload.units)};
    if (!seat.alone()) load.read.threads = backend.threads;
    FATHOM_TRY(parts.weights, weights::load_weights(*parts.architecture, folder, *parts.backend, load));
    return parts;
  };
  FATHOM_TRY(auto engine, start_engine(launch, report.spread, make));
  if (engine == nullptr) {
    report.followed = true;
    FATHOM_TRY_VOID(finish_trace(tracer, launch, options.trace));
    return report;
  }
  report.device = engine->backend().description();
  for (std::size_t p = 0; p < prompts.size(); ++p) {
    const auto total = static_cast<std::int64_t>(prompts[p].ids.size());
    for (const auto& [way, chunk] :
         {std::pair<const char*, std::int64_t>{"whole", total}, {"chunks", options.chunk}, {"tokens", 1}}) {
      VerifyCase result{.prompt = static_cast<std::int64_t>(p), .way = way, .tokens = total};
      FATHOM_TRY_VOID(run_case(*engine, static_cast<std::int64_t>(p) % report.spread.dp, prompts[p], chunk, result));
      result.passed =
          std::isfinite(result.worst) && result.worst <= report.tolerance && (!whole || result.greedy_differs_at < 0);
      report.passed = report.passed && result.passed;
      if (!(result.worst <= report.worst)) report.worst = std::isnan(report.worst) ? report.worst : result.worst;
      report.cases.push_back(std::move(result));
    }
  }
  if (engine->offload() != nullptr) {
    report.fetched_bytes = engine->offload()->fetched_bytes();
    report.host_calls = engine->offload()->host_calls();
  }
  engine.reset();  // other ranks are let go
  FATHOM_TRY_VOID(finish_trace(tracer, launch, options.trace));
  return report;
}

}  // namespace fathom::measure
