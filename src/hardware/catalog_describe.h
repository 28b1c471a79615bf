// Catalog records as figures for people and as JSON for programs.
#pragma once
#include <span>
#include <string>
#include <vector>

#include "hardware/catalog.h"
#include "hardware/catalog_fields.h"

namespace fathom::hardware {

/// How much one figure can be relied on.
enum class Trust { kSourced, kLinkLost, kUnverified, kUser };

struct Figure {
  std::string path;   // as in the data file
  std::string value;  // with its unit: "3350 GB/s", "81559 MiB (79.65 GiB)"
  Trust trust = Trust::kSourced;
  std::string file;  // kUser: the user's file
};

/// Every figure and text that the record has, in the order of the data files; names and provenance are left out.
std::vector<Figure> figures(const Accelerator& record);
std::vector<Figure> figures(const Cpu& record);
std::vector<Figure> figures(const Link& record);
std::vector<Figure> figures(const Storage& record);
std::vector<Figure> figures(const CloudOffer& record);

/// A figure in `unit` for a table: "3350"; an unknown one is "-". in_range: "1 – 2".
std::string in_unit(std::optional<double> base, Unit unit);
std::string in_range(std::optional<double> low, std::optional<double> high, Unit unit);

/// "H100 SXM5 80GB (h100-sxm5-80gb)".
std::string title_of(const Accelerator& record);
std::string title_of(const Cpu& record);
std::string title_of(const Link& record);
std::string title_of(const Storage& record);
std::string title_of(const CloudOffer& record);

/// Those in whose record every word of `search` occurs, any case, provenance aside.
std::vector<Cpu> matching(std::span<const Cpu> records, std::string_view search);
std::vector<Link> matching(std::span<const Link> records, std::string_view search);
std::vector<Storage> matching(std::span<const Storage> records, std::string_view search);
std::vector<CloudOffer> matching(std::span<const CloudOffer> records, std::string_view search);

/// One record in the form of the data files, with "source_details" and, for accelerators, what follows from it:
/// "usable_memory_bytes", "memory_bandwidth_bytes_per_second", "peak_dense_flops".
std::string record_json(const Catalog& catalog, const Accelerator& record);
std::string record_json(const Catalog& catalog, const Cpu& record);
std::string record_json(const Catalog& catalog, const Link& record);
std::string record_json(const Catalog& catalog, const Storage& record);
std::string record_json(const Catalog& catalog, const CloudOffer& record);

/// {"accelerators": […]} and so on, each record as above without "source_details".
std::string list_json(std::span<const Accelerator* const> records);
std::string list_json(std::span<const Cpu> records);
std::string list_json(std::span<const Link> records);
std::string list_json(std::span<const Storage> records);
std::string list_json(std::span<const CloudOffer> records);

}  // namespace fathom::hardware
