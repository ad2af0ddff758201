// A step, recorded once and replayed for any number of tokens.
#pragma once

#include <memory>
#include <vector>

#include "native/cpu/kernel_table.h"
#include "native/cpu/step.h"
#include "native/cpu/thread_pool.h"

namespace quire {

// Instructions in order, and the values between them.
//
// Values whose lives do not overlap share memory: where a value is read for the last time, the next one of its width
// may begin.
class Program {
 public:
  Program(std::shared_ptr<ThreadPool> pool, const KernelTable& kernels) : pool_(std::move(pool)), kernels_(&kernels) {}

  // A new value of so many floats a row.
  ValueId add_value(int64_t width);
  void add(std::unique_ptr<Instruction> instruction);

  // Lays out the values' memory; nothing can be added afterwards. `kept` are the values that are read after a run,
  // `given` those that are written before it.
  void finish(std::vector<ValueId> kept, std::vector<ValueId> given);

  // Makes the values' memory ready for so many rows and returns that of a value. Valid until the next call that asks
  // for more rows.
  float* prepare(ValueId value, int64_t num_rows);

  // Runs the step. From one thread at a time.
  void run(const StepInputs& inputs);

  const KernelTable& kernels() const { return *kernels_; }
  int64_t width(ValueId value) const { return widths_[static_cast<size_t>(value)]; }
  int64_t num_instructions() const { return static_cast<int64_t>(instructions_.size()); }

 private:
  void reserve(int64_t num_rows);

  std::shared_ptr<ThreadPool> pool_;
  const KernelTable* kernels_;
  std::vector<std::unique_ptr<Instruction>> instructions_;
  std::vector<int64_t> widths_;     // by value
  std::vector<int32_t> places_;     // by value: which place holds it
  std::vector<Buffer> place_data_;  // by place
  std::vector<int64_t> place_widths_;
  std::vector<float*> pointers_;  // by value
  int64_t num_rows_ = 0;
  Buffer workspace_;
};

}  // namespace quire
