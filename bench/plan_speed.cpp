// How fast plans are made: fully specified answers a second, and the search of every layout of R1 on 8 to 64 H200.
// usage: bench_plan_speed [requests.jsonl] [threads]
// Without a file: a built-in mix of models, engines and tasks, each with its layout given.
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "base/files.h"
#include "plan/answer.h"
#include "plan/batch.h"
#include "plan/request.h"

namespace {

using namespace fathom;

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::vector<std::string> built_in() {
  const char* const models[] = {"r1",      "v3.2", "r1-distill-llama-70b", "r1-distill-qwen-32b", "r1-distill-qwen-7b",
                                "v4-flash"};
  std::vector<std::string> lines;
  for (int i = 0; i < 4096; ++i) {
    const std::string model = models[i % 6];
    const bool moe = i % 6 == 0 || i % 6 == 1 || i % 6 == 5;
    char line[512];
    if (i % 8 == 7)
      std::snprintf(
          line, sizeof line,
          R"({"id": %d, "model": "r1-distill-llama-70b", "hardware": "h100-sxm5-80gb", "gpus": 64, "task": "pretrain", "engine": "megatron", "tp": 4, "pp": 4, "dp": 4, "dp_attention": 1, "ep": 1, "cp": 1, "vp": 1, "zero": 1, "offload": "none", "recompute": "%s", "micro_batch": 1, "global_batch": %d, "seq": 8192})",
          i, i % 16 == 7 ? "full" : "none", 64 + 64 * (i % 5));
    else
      std::snprintf(
          line, sizeof line,
          R"({"id": %d, "model": "%s", "hardware": "h200-sxm-141gb", "gpus": %d, "task": "%s", "engine": "%s", "weights": "native", "kv": "bf16", "tp": %d, "pp": 1, "dp": 1, "dp_attention": 1, "ep": %d, "cp": 1, "batch": %d, "input": %d, "output": %d})",
          i, model.c_str(), i % 6 == 4 ? 4 : 8, i % 3 == 0 ? "chat" : "serve", i % 2 == 0 ? "vllm" : "sglang",
          i % 6 == 4 ? 4 : 8, moe ? 8 : 1, 1 + i % 64, 512 + 32 * (i % 97), 128 + i % 512);
    lines.emplace_back(line);
  }
  return lines;
}

std::vector<std::string> from_file(const char* path) {
  std::ifstream in(path);
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);)
    if (!line.empty()) lines.push_back(line);
  return lines;
}

/// Answers all lines `rounds` times through the same door as `fathom plan --batch`; returns answers a second.
double answers_a_second(const std::vector<std::string>& lines, int threads, int rounds) {
  const Path path =
      std::filesystem::temp_directory_path() / ("fathom_plan_speed_" + std::to_string(::getpid()) + ".jsonl");
  {
    std::ofstream out(path);
    for (int round = 0; round < rounds; ++round)
      for (const std::string& line : lines) out << line << '\n';
  }
  const double start = seconds_now();
  const auto result = plan::run_batch(path, threads, [](std::string_view) -> Status { return {}; });
  const double seconds = seconds_now() - start;
  std::filesystem::remove(path);
  return result ? static_cast<double>(result->answered) / seconds : 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> lines = argc > 1 ? from_file(argv[1]) : built_in();
  const int threads = argc > 2 ? std::atoi(argv[2]) : 2;
  if (lines.empty()) return std::fprintf(stderr, "no requests\n"), 2;
  std::string sample;
  for (const std::string& line : lines) {
    sample.clear();
    plan::answer_line(line, sample);
    if (sample.find("\"error\"") != std::string::npos)
      return std::fprintf(stderr, "%s\n%s\n", line.c_str(), sample.c_str()), 2;
  }
  std::printf("fully specified answers a second, %d threads: %.0f\n", threads,
              answers_a_second(lines, threads, static_cast<int>(1 + 40000 / lines.size())));
  std::printf("one thread: %.0f\n", answers_a_second(lines, 1, static_cast<int>(1 + 20000 / lines.size())));

  double total = 0;
  for (const char* task : {"serve", "chat"})
    for (const int gpus : {8, 16, 32, 64}) {
      std::string id;
      const auto request = plan::parse_request(
          std::string(R"({"model": "deepseek-ai/DeepSeek-R1", "hardware": "h200-sxm-141gb", "gpus": )") +
              std::to_string(gpus) + R"(, "task": ")" + task + R"(", "engine": "sglang"})",
          id);
      if (!request) return std::fprintf(stderr, "%s\n", error_text(request.error()).c_str()), 2;
      const double start = seconds_now();
      const auto answer = plan::make_plan(*request);
      const double seconds = seconds_now() - start;
      total += seconds;
      if (!answer) return std::fprintf(stderr, "%s\n", error_text(answer.error()).c_str()), 2;
      std::printf("R1, %s on %d H200: %zu layouts in %.3f s\n", task, gpus, answer->layouts_seen, seconds);
    }
  std::printf("every layout of R1 on 8 to 64 H200, both tasks: %.3f s\n", total);
  return 0;
}
