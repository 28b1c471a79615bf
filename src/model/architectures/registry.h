// The explicit list of architectures: how each reads its config and how it is built.
#pragma once
#include <memory>
#include <span>

#include "model/architecture.h"
#include "model/config_reader.h"

namespace fathom::model {

struct ArchitectureEntry {
  std::string_view model_type;
  /// Fills `spec` from the reader (problems are kept in the reader).
  void (*parse)(ConfigReader& reader, ModelSpec& spec);
  Result<std::unique_ptr<Architecture>> (*make)(const ModelSpec& spec, const Sharding& sharding);
};

std::span<const ArchitectureEntry> architectures();

void parse_llama(ConfigReader& reader, ModelSpec& spec);
void parse_qwen2(ConfigReader& reader, ModelSpec& spec);
void parse_qwen3(ConfigReader& reader, ModelSpec& spec);
void parse_deepseek_moe(ConfigReader& reader, ModelSpec& spec);
void parse_deepseek_v2(ConfigReader& reader, ModelSpec& spec);
void parse_deepseek_v3(ConfigReader& reader, ModelSpec& spec);
void parse_deepseek_v32(ConfigReader& reader, ModelSpec& spec);
void parse_deepseek_v4(ConfigReader& reader, ModelSpec& spec);
void parse_deepseek_v41(ConfigReader& reader, ModelSpec& spec);
void parse_gpt3(ConfigReader& reader, ModelSpec& spec);

Result<std::unique_ptr<Architecture>> make_dense(const ModelSpec& spec,
                                                 const Sharding& sharding);  // llama, qwen2, qwen3
Result<std::unique_ptr<Architecture>> make_deepseek_moe(const ModelSpec& spec, const Sharding& sharding);
Result<std::unique_ptr<Architecture>> make_deepseek_mla(const ModelSpec& spec,
                                                        const Sharding& sharding);  // V2, V3, V3.2
Result<std::unique_ptr<Architecture>> make_deepseek_v4(const ModelSpec& spec, const Sharding& sharding);
Result<std::unique_ptr<Architecture>> make_deepseek_v41(const ModelSpec& spec, const Sharding& sharding);
Result<std::unique_ptr<Architecture>> make_gpt3(const ModelSpec& spec, const Sharding& sharding);

}  // namespace fathom::model
