// Units: a pass as the sequences of ops that a calibration has tables of, each with its place on their axes. What no
// table knows stays a kernel of the profile's curves (cost_program.h).
#pragma once
#include <vector>

#include "plan/calibration.h"
#include "plan/cost_step.h"

namespace fathom::plan {

struct Unit {
  Family family = Family::kElementwise;
  const MeasuredTable* table = nullptr;
  const MeasuredTable* of_one = nullptr;  // attention of one sequence, where that has a table of its own
  float repeats = 1;                      // layers
  bool phase_bound = false;               // stays with its phase when prompts and decodes share a step
  BoundBy bound = BoundBy::kCompute;      // what its time counts as
  std::uint32_t ops = 1;                  // that are launched when nothing is replayed
  meta::Rate rows, flops, bytes;          // of products: all they move but weights
  double weight_bytes = 0;
  double outputs = 0, inputs = 0;       // products, rows: columns; experts: hidden, inner; route: outputs = experts
  double heads = 0, kv_heads = 1;       // attention, grouped products
  double row_bytes = 0, row_flops = 0;  // attention: of a visible row, one sequence; of one and a query token
  double experts_here = 0, experts_total = 1, choices = 0, expert_flops = 0;
  tensor::Group group = tensor::Group::kTensor;
  int ranks = 1;  // of the table, all-reduce
};

/// A pass: units, and kernels for the rest.
struct UnitProgram {
  std::vector<Unit> units;
  Program rest;
  double ops = 0;  // launched a pass
};

/// Of `trace`, run `repeats` times in a pass; appended.
void add_units(const meta::Trace& trace, double repeats, const LowerInputs& inputs, const Layout& layout,
               const Calibration& calibration, bool head, UnitProgram& program);

double unit_seconds(const Unit& unit, const Load& load, const Rates& rates, const Layout& layout, Parts* parts);

}  // namespace fathom::plan
