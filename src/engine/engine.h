// Engine: a model, its weights, caches and activations in memory, ready to step. Everything is allocated in create(),
// exactly as planned by running the same model on meta; a step allocates nothing. Of a model that is spread over ranks
// each has an engine with its share: rank 0's is stepped, and has the others, which follow(), make the same pass.
#pragma once
#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "engine/offload.h"
#include "engine/spread.h"
#include "model/architecture.h"
#include "tensor/backend.h"
#include "weights/loader.h"

namespace fathom::engine {

struct EngineOptions {
  std::int64_t slots = 1;            // sequences that have a cache at once
  std::int64_t context = 4096;       // tokens a sequence may have, prompt and answer together
  std::int64_t prefill_chunk = 512;  // most tokens of one pass
  std::int64_t logit_rows = 0;       // most rows of logits of one pass; 0: one a slot
  DType cache_dtype = DType::f32;    // f32, f16, bf16, f8e4m3, i8 (f64 with f64 activations)
};

/// Bytes by category. Planned by plan_memory() on meta; what create() allocates is equal, to the byte.
struct EngineMemory {
  Bytes weights = 0;        // tensors
  Bytes weights_arena = 0;  // as they lie, aligned
  Bytes cache = 0;
  Bytes activations = 0;       // the arena
  Bytes activations_peak = 0;  // most bytes alive at once
  Bytes constants = 0;         // rotary frequencies and the batch's own tables
  Bytes workspace = 0;         // of kernels
  Bytes ring = 0;              // places that weights in host memory are streamed into
  Bytes sampling = 0;          // bits of seen tokens, where the device chooses
  Bytes host = 0;              // not in total(): weights in host memory, and what the host keeps for the device
  Bytes total() const { return weights_arena + ring + cache + activations + constants + workspace + sampling; }
};

/// The three kinds of pass have an arena plan each: from nothing, after earlier tokens, and one token a sequence.
enum class PassKind : std::uint8_t { kPrefill, kContinue, kDecode };

struct EnginePlan {
  EngineMemory memory;
  std::array<tensor::ArenaPlan, 3> arenas;  // by PassKind
};
/// What one block must have for the device buffers of such an engine and its weights (Backend::reserve), without the
/// backend's workspace.
Bytes reserved_bytes(const EngineMemory& memory);
/// What an engine of these options will allocate, without allocating it. Errors: kUnsupported when the architecture can
/// only be planned. `options` are those of the whole run, `spread` and `rank` say whose share `architecture` is.
Result<EnginePlan> plan_engine(model::Architecture& architecture, const weights::WeightPlan& weights,
                               const EngineOptions& options, DType activation_dtype, const Spread& spread = {},
                               int rank = 0);

/// Tokens to append to a sequence.
struct SlotTokens {
  std::int64_t slot = 0;
  std::span<const std::int32_t> ids;
};
enum class Logits : std::uint8_t { kNone, kLast, kAll };

class Engine {
 public:
  /// Takes over all three. `architecture` must be unsplit or sharded as `weights` are. With other ranks beside it all
  /// of them call this at once (crew.h does), and share what went wrong: an error of one is the error of all.
  static Result<std::unique_ptr<Engine>> create(std::unique_ptr<model::Architecture> architecture,
                                                std::unique_ptr<tensor::Backend> backend,
                                                weights::LoadedWeights weights, const EngineOptions& options,
                                                Seat seat = {}, OffloadOptions offload = {});
  /// Rank 0's lets the others go.
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  const model::ModelSpec& spec() const { return architecture_->spec(); }
  const EngineOptions& options() const { return options_; }
  tensor::Backend& backend() { return *backend_; }
  const EngineMemory& planned() const { return plan_.memory; }
  /// Read back from the buffers themselves and the peak that was seen.
  EngineMemory allocated() const;
  const Spread& spread() const { return seat_.spread; }
  /// Null when all weights are on the device.
  const OffloadOps* offload() const { return offload_.get(); }
  /// What every rank planned and took when it was made, by rank; rank 0 knows.
  struct RankMemory {
    EngineMemory planned, allocated;
  };
  const std::vector<RankMemory>& ranks() const { return ranks_; }

  /// Tokens that the slot's sequence has so far.
  std::int64_t length(std::int64_t slot) const { return lengths_[static_cast<std::size_t>(slot)]; }
  void reset(std::int64_t slot) { lengths_[static_cast<std::size_t>(slot)] = 0; }

  /// One pass over the given tokens (at most prefill_chunk in total, each slot at most once), appended to their
  /// sequences. Answers logits [rows, vocabulary] f32: none, one row a slot (its last token), or one a token; valid
  /// until the next call. Errors: engine.context_full (naming the limit), engine.bad_token; those of the device, and
  /// "ranks.failed" and "ranks.silent" when another rank is at fault: afterwards this run of ranks is over and every
  /// step answers the same.
  Result<std::span<const float>> step(std::span<const SlotTokens> tokens, Logits logits);
  /// For comparing with a reference that computed `tokens` tokens at once (tensor/topk_horizon.h); 0, the default: not.
  void set_topk_horizon(std::int64_t tokens) { topk_horizon_ = tokens; }
  /// Appends a prompt of any length in chunks; answers the logits of its last token.
  Result<std::span<const float>> prefill(std::int64_t slot, std::span<const std::int32_t> ids);

  /// Whether the device chooses tokens by itself, so that ids alone come to the host.
  bool chooses() const { return ids_chosen_ != nullptr; }
  /// Begins a pass as step(kLast), of whose logits the device chooses a token a slot by `asked` (Sampler::next_row;
  /// `seen` is set here), the same that a Sampler would; take_chosen() has them. Only where chooses().
  Status begin(std::span<const SlotTokens> tokens, std::span<const tensor::SamplingRow> asked);
  /// The same after a text of any length, appended in chunks.
  Status begin_text(std::int64_t slot, std::span<const std::int32_t> ids, const tensor::SamplingRow& asked);
  /// Begins another pass with what the one begun last chooses, one token a slot, whether or not that one has been
  /// taken: the device need not wait for the host to know. At most kMostBegun are under way. Only where continues(),
  /// and with no step() between. Errors: engine.context_full.
  Status begin_next(std::span<const tensor::SamplingRow> asked);
  /// Waits for the oldest pass that was begun, and answers a token for each of its slots: valid until the next call, -1
  /// where logits are not finite. What was begun and is never taken ends before the next step() or begin() starts, and
  /// its tokens count as the slots' own: reset() those whose text stopped earlier.
  Result<std::span<const std::int32_t>> take_chosen();
  static constexpr int kMostBegun = tensor::kMoments;
  /// Whether a pass can go on with what the device chose: not where other ranks need tokens that this one chose.
  bool continues() const { return chooses() && seat_.spread.dp == 1 && seat_.spread.pp == 1; }
  /// Whether that saves time, since the device works by itself.
  bool runs_ahead() const { return continues() && backend_->runs_ahead(); }
  /// Tokens (Sampler::seen) that penalties of this slot look at; what is chosen is added. Only where chooses().
  Status set_history(std::int64_t slot, std::span<const std::uint32_t> seen);

  /// Ranks other than 0: passes as rank 0 asks for them, until it lets this one go.
  Status follow();
  /// Keeps `company` (the threads of the other ranks) until after they were let go.
  void keep(std::shared_ptr<void> company) { company_ = std::move(company); }

 private:
  Engine() = default;
  Status prepare();
  Status allocate();
  Status set_up_offload();
  Status set_up_choosing();
  Status join_ranks(Status mine);
  Status check_room(std::int64_t slot, std::size_t tokens) const;
  Status check_tokens(std::span<const SlotTokens> tokens) const;
  /// What rank 0 has the others do.
  enum class Order : std::uint32_t { kLetGo, kStep, kBegin, kBeginNext, kTake, kHistory };
  friend void let_go(tensor::Transport& transport);
  Status command(Order order, std::span<const SlotTokens> tokens, Logits logits,
                 std::span<const tensor::SamplingRow> asked = {}, std::span<const std::uint32_t> seen = {});
  /// False when there is nothing more to do.
  Result<bool> obey(std::span<const std::byte> in);
  /// An error of this rank's that the others shall know of is what all of them say.
  template <class T>
  T told(T result);
  Result<std::span<const float>> pass(std::span<const SlotTokens> tokens, Logits logits);
  struct Share;  // of a pass: what falls to this rank
  Share take_share(std::span<const SlotTokens> tokens, Logits logits);
  void feed(std::span<const SlotTokens> tokens, Logits logits);
  void count(std::span<const SlotTokens> tokens);
  /// Where the logits will lie.
  Result<const std::byte*> launch(const Share& share, bool fed);
  Result<std::span<const float>> read_logits(const std::byte* logits, const Share& share);
  Status begin_pass(std::span<const SlotTokens> tokens, std::span<const tensor::SamplingRow> asked, bool fed);
  Status begin_next_pass(std::span<const tensor::SamplingRow> asked);
  void launch_choice(const std::byte* logits, std::span<const tensor::SamplingRow> asked, const Share& share);
  Status take_pass();
  Status write_history(std::int64_t slot, std::span<const std::uint32_t> seen);
  /// Waits for what was begun and not taken.
  Status finish_begun();
  /// Where host and device see the ids that a pass chose.
  std::int32_t* chosen_in(std::uint64_t pass) const;
  std::span<const float> in_order(std::span<const float> logits, const std::vector<std::int64_t>& order);

  std::shared_ptr<void> company_;  // destroyed last
  EngineOptions options_;          // of the run
  EngineOptions local_;            // of this rank: its replica's slots
  Seat seat_;
  std::vector<RankMemory> ranks_;
  EnginePlan plan_;
  std::unique_ptr<model::Architecture> architecture_;
  std::unique_ptr<tensor::Backend> backend_;
  OffloadOptions offload_options_;
  std::unique_ptr<tensor::Collectives> comm_;  // on the backend's memory
  weights::LoadedWeights weights_;
  std::unique_ptr<tensor::Buffer> cache_memory_, arena_, constants_;
  std::map<std::uint64_t, const std::byte*> outputs_of_;  // where a pass that may be replayed leaves its logits
  std::unique_ptr<tensor::Buffer> logits_;                // where the host reads them; null when it reads the arena
  std::unique_ptr<tensor::Buffer> handover_;              // to experts on the host
  std::unique_ptr<OffloadOps> offload_;
  model::CacheSet cache_;
  std::vector<std::int64_t> lengths_;
  std::int64_t topk_horizon_ = 0;
  std::int64_t passes_ = 0;
  std::unique_ptr<tensor::Buffer> ids_chosen_;  // by the device, of each pass under way, where the host reads them
  std::unique_ptr<tensor::Buffer> seen_;        // tokens that penalties look at: bits by slot
  /// A pass that was begun.
  struct Begun {
    std::size_t rows = 0;
    std::vector<std::int64_t> order;  // Share::order
  };
  std::array<Begun, kMostBegun> under_way_;  // by the number of the pass
  std::uint64_t begun_ = 0, taken_ = 0;      // passes
  std::vector<std::int64_t> begun_slots_;    // of the last one
  std::vector<std::int32_t> chosen_;
  std::vector<float> ordered_;  // logits of several replicas, in the order of the caller's tokens
  std::vector<tensor::Sequence> sequences_;
  tensor::Tensor ids_, positions_, rows_, table_;  // where the host fills them in
  std::unique_ptr<tensor::Buffer>
      staging_;  // constants_ as the host sees it, copied when a pass begins; null when it sees constants_
  Bytes tables_ = 0, tables_bytes_ = 0;  // of both
  std::byte* staged() const { return staging_ != nullptr ? staging_->data() : constants_->data(); }
  std::byte* on_device(const std::byte* at) const { return constants_->data() + (at - staged()); }
};

}  // namespace fathom::engine
