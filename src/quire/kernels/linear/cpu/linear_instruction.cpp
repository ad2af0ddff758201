#include "linear/cpu/linear_instruction.h"

#include <algorithm>
#include <cassert>

namespace quire {
namespace {

constexpr int64_t kRowsPreparedByAll = 2;
constexpr int64_t kChunksPerThread = 6;
// Few rows wait for memory, and nobody has asked for a chunk's first weights in advance.
constexpr int64_t kChunksPerThreadOfFewRows = 3;

// The half of a gated weight that is multiplied with the gate's groups.
struct Halves {
  const Segment* gate;
  const Segment* up;
  int64_t up_group;
};

Halves halves_of(const PackedWeight& weight) {
  const Segment& first = *weight.segments[0];
  if (weight.segments.size() == 2) return {&first, weight.segments[1].get(), 0};
  return {&first, &first, first.num_groups / 2};
}

}  // namespace

bool LinearInstruction::can_gate(const PackedWeight& weight) {
  const auto& segments = weight.segments;
  if (segments.size() == 1) return weight.num_rows % (2 * kGroupRows) == 0;
  return segments.size() == 2 && segments[0]->num_rows == segments[1]->num_rows &&
         segments[0]->format == segments[1]->format;
}

LinearInstruction::LinearInstruction(std::shared_ptr<const PackedWeight> weight, LinearOptions options, Axis axis,
                                     ValueId x, ValueId out, const LinearKernels& kernels)
    : weight_(std::move(weight)), options_(options), axis_(axis), x_(x), out_(out), kernels_(kernels) {
  assert(options_.epilogue != Epilogue::kGate || can_gate(*weight_));
  reads = {x};
  writes = {out};
  for (const auto& segment : weight_->segments) {
    num_groups_ += segment->num_groups;
    const RowFormat format = kernels_.row_format(segment->format);
    if (std::find(row_formats_.begin(), row_formats_.end(), format) == row_formats_.end()) {
      row_formats_.push_back(format);
    }
  }
  if (options_.epilogue == Epilogue::kGate) num_groups_ /= 2;
}

LinearTask LinearInstruction::task(const Run& run) const {
  LinearTask task;
  task.x = run.value(x_);
  task.norm_weight = options_.norm_weight;
  task.epsilon = options_.epsilon;
  task.weight = weight_.get();
  task.bias = options_.bias;
  task.epilogue = options_.epilogue;
  task.out = run.value(out_);
  task.out_width = options_.epilogue == Epilogue::kGate ? weight_->num_rows / 2 : weight_->num_rows;
  task.tiles = kernels_.tile_rows(run.rows(axis_), weight_->num_columns);
  return task;
}

int64_t LinearInstruction::num_padded_rows(const RowTiles& tiles) const {
  return (tiles.num_tiles - 1) * tiles.height + tiles.last_height;
}

int64_t LinearInstruction::groups_per_chunk(const Run& run) const {
  const int64_t chunks = run.rows(axis_) <= kRowsPreparedByAll ? kChunksPerThreadOfFewRows : kChunksPerThread;
  const int64_t size = std::max<int64_t>(1, num_groups_ / (run.num_threads * chunks));
  return size < kGroupsAtOnce ? size : size - size % kGroupsAtOnce;
}

int64_t LinearInstruction::rows_per_chunk(const Run& run, const RowTiles& tiles) const {
  return std::clamp<int64_t>(num_padded_rows(tiles) / (run.num_threads * kChunksPerThread), 1, tiles.height);
}

int64_t LinearInstruction::num_chunks(const Run& run, int phase) const {
  const int64_t num_rows = run.rows(axis_);
  if (num_rows == 0) return 0;
  if (phase == 0) {
    if (num_rows <= kRowsPreparedByAll) return 0;
    const RowTiles tiles = kernels_.tile_rows(num_rows, weight_->num_columns);
    return divide_up(num_padded_rows(tiles), rows_per_chunk(run, tiles));
  }
  const int64_t size = groups_per_chunk(run);
  if (options_.epilogue == Epilogue::kGate) return divide_up(num_groups_, size);
  int64_t count = 0;
  for (const auto& segment : weight_->segments) count += divide_up(segment->num_groups, size);
  return count;
}

size_t LinearInstruction::workspace_bytes(const Run& run) const {
  const int64_t num_rows = run.rows(axis_);
  if (num_rows <= kRowsPreparedByAll) return 0;
  const RowTiles tiles = kernels_.tile_rows(num_rows, weight_->num_columns);
  int64_t bytes = 0;
  for (RowFormat format : row_formats_) bytes += num_padded_rows(tiles) * kernels_.row_bytes(format, tiles.num_blocks);
  return static_cast<size_t>(bytes);
}

int64_t LinearInstruction::offset_of(RowFormat format, const RowTiles& tiles) const {
  int64_t offset = 0;
  for (RowFormat earlier : row_formats_) {
    if (earlier == format) break;
    offset += num_padded_rows(tiles) * kernels_.row_bytes(earlier, tiles.num_blocks);
  }
  return offset;
}

void LinearInstruction::prepare(const LinearTask& task, int64_t begin, int64_t end, uint8_t* rows) const {
  for (RowFormat format : row_formats_) {
    kernels_.prepare_rows(task, format, begin, end, rows + offset_of(format, task.tiles));
  }
}

const uint8_t* LinearInstruction::prepared_rows(const Run& run, const LinearTask& task, Scratch& scratch) const {
  if (task.tiles.num_rows > kRowsPreparedByAll) return run.workspace;
  if (scratch.owner != this || scratch.epoch != run.epoch) {
    int64_t bytes = 0;
    for (RowFormat format : row_formats_) {
      bytes += num_padded_rows(task.tiles) * kernels_.row_bytes(format, task.tiles.num_blocks);
    }
    scratch.memory.reserve(static_cast<size_t>(bytes));
    prepare(task, 0, num_padded_rows(task.tiles), scratch.memory.as<uint8_t>());
    scratch.owner = this;
    scratch.epoch = run.epoch;
  }
  return scratch.memory.as<uint8_t>();
}

void LinearInstruction::run_chunk(const Run& run, int phase, int64_t chunk, Scratch& scratch) const {
  const LinearTask task = this->task(run);
  if (phase == 0) {
    const Span rows = span_of(chunk, rows_per_chunk(run, task.tiles), num_padded_rows(task.tiles));
    prepare(task, rows.begin, rows.end, run.workspace);
  } else {
    multiply_chunk(run, task, chunk, prepared_rows(run, task, scratch));
  }
}

void LinearInstruction::multiply_chunk(const Run& run, const LinearTask& task, int64_t chunk,
                                       const uint8_t* rows) const {
  const int64_t size = groups_per_chunk(run);
  if (options_.epilogue == Epilogue::kGate) {
    const Halves halves = halves_of(*weight_);
    const Span groups = span_of(chunk, size, num_groups_);
    kernels_.multiply_gated_groups(task, *halves.gate, *halves.up, halves.up_group,
                                   rows + offset_of(kernels_.row_format(halves.gate->format), task.tiles),
                                   groups.begin, groups.end);
    return;
  }
  for (const auto& segment : weight_->segments) {
    const int64_t count = divide_up(segment->num_groups, size);
    if (chunk < count) {
      const Span groups = span_of(chunk, size, segment->num_groups);
      const int64_t offset = offset_of(kernels_.row_format(segment->format), task.tiles);
      kernels_.multiply_groups(task, *segment, rows + offset, groups.begin, groups.end);
      return;
    }
    chunk -= count;
  }
}

}  // namespace quire
