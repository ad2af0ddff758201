#include "native/cpu/program.h"

#include <algorithm>
#include <atomic>
#include <cassert>
#include <limits>

namespace quire {
namespace {

constexpr int32_t kNowhere = -1;

// Numbers the runs of all programs: what a thread keeps of one run is never taken for another's.
std::atomic<uint64_t> num_runs{0};

// The phases of all instructions of a run, one after the other.
class StepWork : public PhasedWork {
 public:
  StepWork(const Run& run, const std::vector<std::unique_ptr<Instruction>>& instructions) : run_(run) {
    for (const auto& instruction : instructions) {
      for (int phase = 0; phase < instruction->num_phases(); ++phase) phases_.push_back({instruction.get(), phase});
    }
  }

  int num_phases() const override { return static_cast<int>(phases_.size()); }

  int64_t num_chunks(int phase) const override {
    const auto& [instruction, own_phase] = phases_[static_cast<size_t>(phase)];
    return instruction->num_chunks(run_, own_phase);
  }

  void run_chunk(int phase, int64_t chunk, Scratch& scratch) const override {
    const auto& [instruction, own_phase] = phases_[static_cast<size_t>(phase)];
    instruction->run_chunk(run_, own_phase, chunk, scratch);
  }

 private:
  const Run& run_;
  std::vector<std::pair<const Instruction*, int>> phases_;
};

// The index of the last instruction that touches each value.
std::vector<size_t> last_uses(const std::vector<std::unique_ptr<Instruction>>& instructions, size_t num_values) {
  std::vector<size_t> last(num_values, 0);
  for (size_t i = 0; i < instructions.size(); ++i) {
    for (ValueId value : instructions[i]->reads) last[static_cast<size_t>(value)] = i;
    for (ValueId value : instructions[i]->writes) last[static_cast<size_t>(value)] = i;
  }
  return last;
}

}  // namespace

ValueId Program::add_value(int64_t width) {
  widths_.push_back(width);
  places_.push_back(kNowhere);
  return static_cast<ValueId>(widths_.size() - 1);
}

void Program::add(std::unique_ptr<Instruction> instruction) {
  instructions_.push_back(std::move(instruction));
}

void Program::finish(std::vector<ValueId> kept, std::vector<ValueId> given) {
  std::vector<size_t> last = last_uses(instructions_, widths_.size());
  for (ValueId value : kept) last[static_cast<size_t>(value)] = std::numeric_limits<size_t>::max();
  std::vector<int32_t> free_places;
  auto place = [&](ValueId value) {
    const size_t index = static_cast<size_t>(value);
    if (places_[index] != kNowhere) return;
    const auto fits = std::find_if(free_places.begin(), free_places.end(), [&](int32_t free) {
      return place_widths_[static_cast<size_t>(free)] == widths_[index];
    });
    if (fits != free_places.end()) {
      places_[index] = *fits;
      free_places.erase(fits);
    } else {
      places_[index] = static_cast<int32_t>(place_widths_.size());
      place_widths_.push_back(widths_[index]);
    }
  };
  for (ValueId value : given) place(value);
  for (size_t i = 0; i < instructions_.size(); ++i) {
    for (ValueId value : instructions_[i]->writes) place(value);
    std::vector<ValueId> touched = instructions_[i]->reads;
    touched.insert(touched.end(), instructions_[i]->writes.begin(), instructions_[i]->writes.end());
    std::sort(touched.begin(), touched.end());
    touched.erase(std::unique(touched.begin(), touched.end()), touched.end());
    for (ValueId value : touched) {
      assert(places_[static_cast<size_t>(value)] != kNowhere);
      if (last[static_cast<size_t>(value)] == i) free_places.push_back(places_[static_cast<size_t>(value)]);
    }
  }
  place_data_.resize(place_widths_.size());
  pointers_.assign(widths_.size(), nullptr);
}

void Program::reserve(int64_t num_rows) {
  if (num_rows <= num_rows_) return;
  // A power of two, so that a growing batch does not allocate at every step.
  int64_t rounded = 1;
  while (rounded < num_rows) rounded *= 2;
  for (size_t i = 0; i < place_data_.size(); ++i) {
    place_data_[i].reserve(static_cast<size_t>(rounded * place_widths_[i]) * sizeof(float));
  }
  for (size_t i = 0; i < pointers_.size(); ++i) {
    pointers_[i] = places_[i] == kNowhere ? nullptr : place_data_[static_cast<size_t>(places_[i])].as<float>();
  }
  num_rows_ = rounded;
}

float* Program::prepare(ValueId value, int64_t num_rows) {
  reserve(num_rows);
  return pointers_[static_cast<size_t>(value)];
}

void Program::run(const StepInputs& inputs) {
  reserve(std::max(inputs.num_tokens, inputs.num_rows));
  Run run{inputs, kernels_, pointers_.data(), nullptr, pool_->num_threads(), ++num_runs};
  size_t workspace_bytes = 0;
  for (const auto& instruction : instructions_) {
    workspace_bytes = std::max(workspace_bytes, instruction->workspace_bytes(run));
  }
  workspace_.reserve(workspace_bytes);
  run.workspace = workspace_.as<uint8_t>();
  pool_->run(StepWork(run, instructions_));
}

}  // namespace quire
