// The fields of every catalog record, listed once: for reading, checking, converting and showing them.
#pragma once
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "hardware/catalog.h"

namespace fathom::hardware {

/// The unit in which a data file writes a figure; the record holds base units (bytes, bytes/s, FLOP/s, Hz, W, USD, s).
enum class Unit { kNone, kGB, kMiB, kGiB, kGBPerSecond, kTflops, kMHz, kWatt, kUsd, kMicroseconds };
double unit_scale(Unit unit);           // base units of one such unit
double unit_limit(Unit unit);           // the largest figure in that unit that is not absurd
std::string_view unit_name(Unit unit);  // "GB/s"

/// Called once for each field with its path in the data file ("memory.bandwidth_gb_s") and its place in the record.
class FieldVisitor {
 public:
  virtual ~FieldVisitor() = default;
  virtual void text(std::string_view path, std::string& value) = 0;
  virtual void texts(std::string_view path, std::vector<std::string>& value) = 0;
  virtual void number(std::string_view path, Unit unit, std::optional<double>& value) = 0;
  virtual void bytes(std::string_view path, Unit unit, std::optional<Bytes>& value) = 0;
  virtual void integer(std::string_view path, std::optional<int>& value) = 0;
  virtual void count(std::string_view path, int& value, int smallest) = 0;
  virtual void flag(std::string_view path, bool& value) = 0;
  /// "path": [low, high]
  virtual void range(std::string_view path, Unit unit, std::optional<double>& low, std::optional<double>& high) = 0;
  /// "path": {any name: figure}
  virtual void numbers(std::string_view path, Unit unit, std::map<std::string, double>& value) = 0;
  virtual void street(std::string_view path, std::vector<StreetPrice>& value) = 0;
  virtual void cloud(std::string_view path, std::vector<CloudPrice>& value) = 0;
};

void visit(Accelerator& record, FieldVisitor& visitor);
void visit(Cpu& record, FieldVisitor& visitor);
void visit(Link& record, FieldVisitor& visitor);
void visit(Storage& record, FieldVisitor& visitor);
void visit(CloudOffer& record, FieldVisitor& visitor);
void visit(Source& record, FieldVisitor& visitor);

}  // namespace fathom::hardware
