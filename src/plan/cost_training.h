// The price of one optimizer step of training.
#pragma once
#include "plan/cost_step.h"

namespace fathom::plan {

struct TrainModel {
  Program forward, backward;  // of the slowest stage, one micro-batch: layers, embedding or head
  Rates rates;
  Layout layout;
  const EngineProfile* engine = nullptr;
  bool adapters = false;
  bool keeps_every_second_product =
      false;  // what the engine's selective recompute keeps, beside attention; else all but attention
  double lora_rank = 0;
  double tokens = 0;    // of a micro-batch on one rank: micro_batch · seq / cp
  double sequence = 0;  // tokens of one sequence
  double hidden = 0;
  double dense_parameters = 0, expert_parameters = 0;  // of the stage on this rank, trainable in full training
  double adapter_parameters = 0;
  double gathered_bytes = 0;  // ZeRO 3: stored bytes of the stage's whole weights
  double stage_layers = 0;
  double model_flops = 0;  // of a whole step on one device, no recompute: for the MFU
};

struct TrainResult {
  double step = 0;  // seconds
  Parts parts{};
};
TrainResult train_step(const TrainModel& model);

}  // namespace fathom::plan
