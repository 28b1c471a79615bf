// fathom run: a prompt in, an answer out.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <numeric>

#include "base/i18n.h"
#include "base/json.h"
#include "base/terminal.h"
#include "cli/flags.h"
#include "cli/offload_flags.h"
#include "cli/rank_flags.h"
#include "cli/verbs.h"
#include "engine/generate.h"
#include "measure/session.h"
#include "measure/trace.h"
#include "text/chat_template.h"

namespace fathom::cli {
namespace {

struct RunFlags {
  measure::SessionOptions session;
  engine::GenerateOptions generate;
  std::string prompt, system, trace;
  bool raw = false, quiet = false;
};
RunFlags run_flags;

struct Prepared {
  std::vector<std::int32_t> ids;
  std::optional<text::Tokenizer> tokenizer;
};

// The prompt as the model wants it: through its chat template when it has one and --raw was not given.
Result<Prepared> prepare(const measure::Session& session, const std::string& prompt) {
  Prepared prepared;
  if (!session.folder) {  // synthetic weights know no language: ids stand in for text
    for (const unsigned char c : prompt) prepared.ids.push_back(static_cast<std::int32_t>(c % session.spec.vocabulary));
    return prepared;
  }
  FATHOM_TRY(prepared.tokenizer, text::Tokenizer::load(*session.folder));
  std::string rendered = prompt;
  bool special = true;
  if (!run_flags.raw) {
    const auto chat = text::ChatTemplate::load(*session.folder);
    if (chat) {
      std::vector<text::ChatMessage> messages;
      if (!run_flags.system.empty()) messages.push_back({"system", run_flags.system});
      messages.push_back({"user", prompt});
      FATHOM_TRY(rendered, chat->render(messages, /*add_generation_prompt=*/true));
      special = false;  // the template writes them itself
    } else if (chat.error().key != "text.no_chat_template") {
      return tl::unexpected<Error>(chat.error());
    }
  }
  FATHOM_TRY(prepared.ids, prepared.tokenizer->encode(rendered, special));
  return prepared;
}

void print_json(const measure::Session& session, const Prepared& prepared, const engine::Generated& g) {
  const double decode = std::accumulate(g.token_seconds.begin(), g.token_seconds.end(), 0.0);
  const Json json = {
      {"model", session.name},
      {"synthetic_weights", session.synthetic},
      {"text", g.text},
      {"ids", g.ids},
      {"stopped_by", engine::stop_reason_name(g.reason)},
      {"offload", offload_json(session.offload)},
      {"prompt_tokens", prepared.ids.size()},
      {"tokens", g.ids.size()},
      {"prefill_seconds", g.prefill_seconds},
      {"decode_tokens_per_second", decode > 0 ? Json(static_cast<double>(g.token_seconds.size()) / decode) : Json()}};
  std::puts(dump_json(json, 2).c_str());
}

void print_statistics(const Prepared& prepared, const engine::Generated& g) {
  const double decode = std::accumulate(g.token_seconds.begin(), g.token_seconds.end(), 0.0);
  std::fprintf(
      stderr, "%s\n",
      tr("cli.run.statistics",
         {{"prompt", std::to_string(prepared.ids.size())},
          {"prefill", fmt::format("{:.1f}", static_cast<double>(prepared.ids.size()) / g.prefill_seconds)},
          {"tokens", std::to_string(g.ids.size())},
          {"decode", decode > 0 ? fmt::format("{:.1f}", static_cast<double>(g.token_seconds.size()) / decode) : "-"},
          {"reason", tr("cli.run.stopped_" + std::string(engine::stop_reason_name(g.reason)))}})
          .c_str());
}

}  // namespace

void setup_run(FlagSet& verb) {
  run_flags.session.engine.context = 0;  // the model's own
  verb.option("MODEL", run_flags.session.model, tr("cli.run.model"));
  verb.option("-p,--prompt", run_flags.prompt, tr("cli.run.prompt"));
  verb.option("--system", run_flags.system, tr("cli.run.system"));
  verb.flag("--raw", run_flags.raw, tr("cli.run.raw"));
  verb.option("-n,--max-tokens", run_flags.generate.max_tokens, tr("cli.run.max_tokens")).within(1, 1 << 24);
  verb.option("-c,--context", run_flags.session.engine.context, tr("cli.run.context")).within(1, 1 << 30);
  verb.option("--temperature", run_flags.generate.sampling.temperature, tr("cli.run.temperature"));
  verb.option("--top-k", run_flags.generate.sampling.top_k, tr("cli.run.top_k"));
  verb.option("--top-p", run_flags.generate.sampling.top_p, tr("cli.run.top_p"));
  verb.option("--min-p", run_flags.generate.sampling.min_p, tr("cli.run.min_p"));
  verb.option("--repetition-penalty", run_flags.generate.sampling.repetition_penalty, tr("cli.run.repetition"));
  verb.option("--seed", run_flags.generate.sampling.seed, tr("cli.run.seed"));
  verb.option("--stop", run_flags.generate.stop_strings, tr("cli.run.stop"));
  verb.option("--device", run_flags.session.device, tr("cli.run.device"));
  verb.option("--dtype", run_flags.session.weights, tr("cli.run.dtype"));
  verb.option("--kv,--cache-dtype", run_flags.session.kv, tr("cli.run.kv"));
  verb.option("--threads", run_flags.session.threads, tr("cli.run.threads")).within(1, 4096);
  verb.flag("--mmap", run_flags.session.mmap, tr("cli.run.mmap"));
  verb.option("--trace", run_flags.trace, tr("cli.bench.trace"));
  verb.flag("-q,--quiet", run_flags.quiet, tr("cli.run.quiet"));
  add_rank_flags(verb, run_flags.session.ranks);
  add_offload_flags(verb, run_flags.session.offload);
}

Result<int> run_run(const Common& common) {
  FATHOM_TRY_VOID(engine::check_sampling(run_flags.generate.sampling));
  FATHOM_TRY(const measure::Launch launch, measure::find_launch(run_flags.session.ranks, run_flags.session.device));
  std::string prompt = run_flags.prompt;
  if (launch.follows()) prompt = "-";  // rank 0 has the prompt
  if (prompt.empty() && ::isatty(STDIN_FILENO) == 0) {
    prompt = read_standard_input();
    while (!prompt.empty() && prompt.back() == '\n') prompt.pop_back();
  }
  if (launch.process != nullptr) {
    FATHOM_TRY_VOID(tensor::agree(*launch.process, prompt.empty() ? Status(fail("engine.empty_prompt")) : Status()));
  }
  if (prompt.empty()) return fail("engine.empty_prompt");
  std::unique_ptr<Progress> bar;
  run_flags.session.progress = [&](Bytes done, Bytes total) {
    if (!bar) bar = std::make_unique<Progress>(tr("cli.bench.loading"), total);
    bar->update(done);
    return true;
  };
  run_flags.session.work = {.prompt = std::max<std::int64_t>(static_cast<std::int64_t>(prompt.size()) / 4, 16),
                            .generate = run_flags.generate.max_tokens};
  run_flags.session.trace = !run_flags.trace.empty();
  FATHOM_TRY(measure::Session session, measure::open_session(run_flags.session, launch));
  bar.reset();
  if (session.engine == nullptr) {
    FATHOM_TRY_VOID(measure::finish_trace(session.tracer, launch, run_flags.trace));
    return kExitOk;
  }
  FATHOM_TRY(const Prepared prepared, prepare(session, prompt));
  if (session.offload && !run_flags.quiet)
    std::fprintf(stderr, "%s\n", measure::offload_text(*session.offload).c_str());
  if (session.synthetic) std::fprintf(stderr, "%s\n", tr("cli.run.synthetic").c_str());
  for (const std::int64_t id : session.spec.eos_ids)
    run_flags.generate.stop_ids.push_back(static_cast<std::int32_t>(id));
  if (prepared.tokenizer && prepared.tokenizer->eos_id())
    run_flags.generate.stop_ids.push_back(*prepared.tokenizer->eos_id());
  const bool stream = !common.json && prepared.tokenizer.has_value();
  const auto on_text = [&](std::string_view piece) {
    if (!stream) return true;
    return std::fwrite(piece.data(), 1, piece.size(), stdout) == piece.size() && std::fflush(stdout) == 0;
  };
  FATHOM_TRY(const engine::Generated generated,
             engine::generate(*session.engine, 0, prepared.ids, run_flags.generate,
                              prepared.tokenizer ? &*prepared.tokenizer : nullptr, on_text));
  if (common.json) {
    print_json(session, prepared, generated);
  } else {
    if (!prepared.tokenizer) std::fputs(fmt::format("{}", fmt::join(generated.ids, " ")).c_str(), stdout);
    std::puts("");
    if (!run_flags.quiet) print_statistics(prepared, generated);
  }
  session.engine.reset();  // other ranks are let go
  FATHOM_TRY_VOID(measure::finish_trace(session.tracer, launch, run_flags.trace));
  return kExitOk;
}

}  // namespace fathom::cli
