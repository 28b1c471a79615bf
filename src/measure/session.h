// Session: a named model made ready to step, for run, bench and check: find it, load or synthesize its weights, create
// the engine.
#pragma once
#include <memory>
#include <optional>
#include <string>

#include "engine/engine.h"
#include "measure/offload.h"
#include "measure/ranks.h"
#include "text/tokenizer.h"

namespace fathom::measure {

class Tracer;  // trace.h

struct SessionOptions {
  std::string model = "default";  // "default", a folder, a config.json, or an id or short name of the catalog
  std::string device = "cpu";
  std::string weights = "native";  // native, bf16, f16, f32; synthetic ones also fp8, int8, int4
  std::string kv = "auto";         // f32, f16, bf16, fp8, int8; auto: bf16, or f32 with f32 weights
  std::string isa;
  int threads = 0;
  bool mmap = false;                   // weights stay in their files
  bool random_weights = false;         // synthetic weights although the model has a checkpoint, or has none
  std::optional<std::int64_t> layers;  // synthetic weights only: a model of so many layers
  std::uint64_t seed = 0;
  engine::EngineOptions engine;  // context 0: the model's own, at most 4096
  RankWishes ranks;
  OffloadWishes offload;
  OffloadWork work;    // that a layout and an offload are chosen for
  bool trace = false;  // every op on its own, with its times (trace.h)
  std::function<bool(Bytes, Bytes)> progress;
};

struct Session {
  std::string name;
  bool synthetic = false;
  model::ModelSpec spec;
  engine::Spread spread;
  std::shared_ptr<Tracer> tracer;          // null unless it was asked for
  std::unique_ptr<engine::Engine> engine;  // null: this process followed another's rank 0, and is done
  std::optional<Path> folder;              // of the checkpoint
  std::optional<OffloadReport> offload;    // of this rank; nothing: all weights are on the device
  double load_seconds = 0;
};

/// Errors: those of finding, loading and Engine::create; a catalog name without random_weights has no checkpoint to
/// load: the sentence says how to get one. `launch`: from find_launch.
Result<Session> open_session(const SessionOptions& options, const Launch& launch);
/// With ranks found and joined on the way.
Result<Session> open_session(const SessionOptions& options);

/// The element type of a cache by name: f32, f16, bf16, fp8, int8.
Result<DType> parse_cache_type(const std::string& name);

/// Resident memory of this process now, and its highest value since start or the last reset, from /proc/self/status; 0
/// when unreadable.
Bytes resident_bytes();
Bytes peak_resident_bytes();

}  // namespace fathom::measure
